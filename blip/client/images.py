"""Pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from blip.client.answers import ImageAnswer, pictures_from
from blip.client.connection import Connection, body_of, form_of
from blip.client.options import Require, refuse_addresses, task_headers
from blip.errors import InvalidRequest


class ImageClient(Connection):
    """What models of pictures are asked."""

    async def image(
        self,
        model: str,
        prompt: str = "",
        *,
        image: bytes | None = None,
        mask: bytes | None = None,
        loras: Mapping[str, float] | None = None,
        control: Mapping[str, Any] | None = None,
        n: int = 1,
        size: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> ImageAnswer:
        """Paint pictures of a prompt; with the bytes of an ``image``, paint that over.

        A ``mask`` of the same size says where: what is transparent in it, or light if it has no
        transparency. An image without a prompt is varied. ``loras`` are the model's, with weights:
        ``{"ink": 0.8}``. ``control`` is a picture whose shapes to follow, by a ControlNet of the
        model: ``{"type": "canny", "image": file}``, and maybe ``weight``, ``start``, ``end`` and
        ``preprocess``. Options go on under the route's names (``negative_prompt``, ``steps``,
        ``guidance_scale``, ``seed``, ``scheduler``, ``strength``, ``output_format``,
        ``output_compression``).
        """
        refuse_addresses(options)
        headers = task_headers(priority, deadline, require)
        chosen = [{"name": name, "weight": weight} for name, weight in (loras or {}).items()]
        guide = dict(control) if control else None
        shapes = guide.pop("image", None) if guide else None
        fields = {"prompt": prompt or None, "n": n, "size": size, **options}
        if image is None:
            if mask is not None:
                raise InvalidRequest("a mask needs an image", param="mask")
            if guide and shapes is not None:
                guide["image"] = base64.b64encode(shapes).decode()
            body = body_of(model, {**fields, "loras": chosen or None, "control": guide})
            path = "/v1/images/generations"
            return pictures_from(*await self._json("POST", path, body, headers))
        form = form_of(body_of(model, fields), image=image, mask=mask, control_image=shapes)
        for name, value in (("loras", chosen), ("control", guide)):
            if value:
                form.add_field(name, json.dumps(value))
        path = "/v1/images/edits" if prompt else "/v1/images/variations"
        return pictures_from(*await self._json("POST", path, form, headers))
