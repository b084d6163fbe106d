"""The file of a picture in an answer: its format, and whether it is inside or kept elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.mesh import Answer
from blip.gateway.text import quote
from blip.gateway.upload import encode_file
from blip.kinds.pictures import PictureFormat
from blip.protocol.messages import Payload


class PictureFileRequest(Request):
    """Fields of all requests that a model answers with pictures."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A name from GET /v1/models."""
    output_format: PictureFormat | None = None
    """The kind of file; png by default."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of jpeg and webp, 100 the best; 95 by default."""
    response_format: Literal["url", "b64_json"] | None = None
    """How the pictures come: in the answer, by default, or kept for a while under an address."""
    stream: bool | None = None
    """Whether to send events as the work goes on."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.stream and self.response_format == "url":
            raise InvalidRequest(
                "A stream carries its pictures with it.",
                hint="Leave out 'response_format', or 'stream'.",
                param=at + "response_format",
            )
        if self.output_compression not in (None, 100) and self.format == "png":
            raise InvalidRequest(
                "'output_compression' is for jpeg and webp; png loses nothing.",
                hint="Set 'output_format'.",
                param=at + "output_compression",
            )

    @property
    def format(self) -> PictureFormat:
        """The kind of file."""
        return self.output_format or "png"

    @property
    def file_quality(self) -> int | None:
        """How good a file that loses something is to be; None where none does, or none was said."""
        return None if self.format == "png" else self.output_compression

    async def shown(self, exchange: Exchange, answer: Answer) -> str:
        """Return a picture's file as a member of a JSON object: ``b64_json``, or ``url``.

        Raises what :meth:`blip.gateway.exchange.Exchange.keep` does.
        """
        # written by hand: a picture has megabytes, and base64 needs no escaping
        if self.response_format == "url":
            return f'"url":{quote(await keep_picture(exchange, answer.payload, self.format))}'
        return f'"b64_json":"{encode_file(answer.payload)}"'


async def keep_picture(exchange: Exchange, content: Payload, format: PictureFormat) -> str:
    """Keep a picture to be fetched; return its address."""
    ending = "jpg" if format == "jpeg" else format
    return await exchange.keep(content, f"image/{format}", f"picture.{ending}")


def size_of(answer: Answer) -> str:
    """Return width and height of a picture that was made, as ``512x512``."""
    return f"{answer.usage.get('width', 0)}x{answer.usage.get('height', 0)}"
