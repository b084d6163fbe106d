"""Pictures with more pixels, or cleaner ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blip.client.answers import Origin, picture_from
from blip.client.connection import Connection, body_of, form_of
from blip.client.options import Require, refuse_addresses, task_headers


@dataclass(frozen=True, slots=True)
class UpscaleAnswer:
    """A picture's file, its size such as ``512x512``, and its format."""

    file: bytes
    size: str
    format: str
    origin: Origin


class UpscaleClient(Connection):
    """What super-resolution models are asked."""

    async def upscale(
        self,
        model: str,
        image: bytes,
        *,
        scale: float | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> UpscaleAnswer:
        """Enlarge the picture in the bytes of a file.

        Its sides become ``scale`` times as long, by default and at most what the model was made
        for. Options go on under the route's names (``output_format``, ``output_compression``; of
        diffusion models ``prompt``, ``negative_prompt``, ``steps``, ``guidance_scale``, ``seed``).
        """
        headers = task_headers(priority, deadline, require)
        body = body_of(model, {"scale": scale, **options})
        return await self._better("upscale", body, image, headers)

    async def enhance(
        self,
        model: str,
        image: bytes,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> UpscaleAnswer:
        """Clean a picture, which keeps its size; options as those of :meth:`upscale`."""
        headers = task_headers(priority, deadline, require)
        return await self._better("enhance", body_of(model, options), image, headers)

    async def _better(
        self, what: str, fields: dict[str, Any], image: bytes, headers: dict[str, str]
    ) -> UpscaleAnswer:
        refuse_addresses(fields)
        form = form_of(fields, image=image)
        body, origin = await self._json("POST", f"/v1/images/{what}", form, headers)
        file = picture_from(body["data"][0]["b64_json"])
        return UpscaleAnswer(file, body["size"], body["output_format"], origin)
