"""Pictures."""

from __future__ import annotations

from typing import Any

import aiohttp

from blip.client.answers import ImageAnswer, pictures_from
from blip.client.connection import Connection, body_of
from blip.client.options import Require, task_headers
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
        n: int = 1,
        size: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> ImageAnswer:
        """Paint pictures of a prompt; with the bytes of an ``image``, paint that over.

        A ``mask`` of the same size says where: what is transparent in it, or light if it has no
        transparency. An image without a prompt is varied. Options go on under the route's names
        (``negative_prompt``, ``steps``, ``guidance_scale``, ``seed``, ``scheduler``,
        ``strength``, ``output_format``, ``output_compression``).
        """
        if options.get("response_format") not in (None, "b64_json"):
            raise InvalidRequest(
                "pictures come as the bytes of their files here",
                hint="Ask the route itself for addresses.",
                param="response_format",
            )
        headers = task_headers(priority, deadline, require)
        body = body_of(model, {"prompt": prompt or None, "n": n, "size": size, **options})
        if image is None:
            if mask is not None:
                raise InvalidRequest("a mask needs an image", param="mask")
            path = "/v1/images/generations"
            return pictures_from(*await self._json("POST", path, body, headers))
        form = aiohttp.FormData({name: str(value) for name, value in body.items()})
        form.add_field("image", image, filename="image")
        if mask is not None:
            form.add_field("mask", mask, filename="mask")
        path = "/v1/images/edits" if prompt else "/v1/images/variations"
        return pictures_from(*await self._json("POST", path, form, headers))
