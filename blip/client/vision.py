"""What is in pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from blip.client.answers import Origin
from blip.client.connection import Connection, body_of, form_of
from blip.client.options import Require, task_headers
from blip.client.vision_answers import (
    CaptionAnswer,
    DepthAnswer,
    DetectionAnswer,
    LabelAnswer,
    SegmentAnswer,
    caption_from,
    depth_from,
    detections_from,
    labels_from,
    segments_from,
)


class VisionClient(Connection):
    """What models that see are asked. ``image`` is the bytes of a PNG, JPEG or WebP file."""

    async def caption(
        self, model: str, image: bytes, prompt: str | None = None, **options: Any
    ) -> CaptionAnswer:
        """Say what a picture shows; a captioner continues the prompt, a chat model answers it.

        Options go on under the route's names (``max_tokens``, ``temperature``, ``top_p``,
        ``seed``).
        """
        return caption_from(*await self._see("caption", model, image, prompt=prompt, **options))

    async def detect(
        self,
        model: str,
        image: bytes,
        labels: Sequence[str] | None = None,
        *,
        threshold: float | None = None,
        **task: Any,
    ) -> DetectionAnswer:
        """Find things in a picture; ``labels`` say what to look for, to models that read them."""
        fields: dict[str, Any] = {"labels": _listed(labels), "threshold": threshold}
        return detections_from(*await self._see("detect", model, image, **fields, **task))

    async def classify_image(
        self,
        model: str,
        image: bytes,
        labels: Sequence[str] | None = None,
        *,
        template: str | None = None,
        top: int | None = None,
        **task: Any,
    ) -> LabelAnswer:
        """Name a picture: one of the model's classes, or of ``labels`` for models that read them.

        ``template`` is the sentence around each label, ``{}`` in its place.
        """
        fields: dict[str, Any] = {"labels": _listed(labels), "template": template, "top": top}
        return labels_from(*await self._see("classify", model, image, **fields, **task))

    async def depth(self, model: str, image: bytes, **task: Any) -> DepthAnswer:
        """Tell how far away each pixel of a picture is."""
        return depth_from(*await self._see("depth", model, image, **task))

    async def segment(
        self,
        model: str,
        image: bytes,
        *,
        mode: str | None = None,
        threshold: float | None = None,
        **task: Any,
    ) -> SegmentAnswer:
        """Cut a picture up; ``mode`` is ``semantic``, ``instance`` or ``panoptic``."""
        fields: dict[str, Any] = {"mode": mode, "threshold": threshold}
        return segments_from(*await self._see("segment", model, image, **fields, **task))

    async def _see(
        self,
        route: str,
        model: str,
        image: bytes,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **fields: Any,
    ) -> tuple[Any, Origin]:
        headers = task_headers(priority, deadline, require)
        form = form_of(body_of(model, fields), image=image)
        return await self._json("POST", f"/v1/vision/{route}", form, headers)


def _listed(labels: Sequence[str] | None) -> str | None:
    """Return labels as a form has them, with whatever commas they have."""
    return None if labels is None else json.dumps(list(labels))
