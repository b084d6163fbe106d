"""``POST /api/v1/inference/embeddings``: BitingLip promised it and had no fields for it."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.routes.embeddings import MAX_TEXTS, Text, embed
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.original.dialect import DIALECT, Finished, finished
from blip.gateway.sampling import ModelName

Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]


class VectorsRequest(Request):
    """Texts to embed."""

    model: ModelName
    """A name from GET /v1/models."""
    text: Texts | None = None
    """One text, or a list of them; named as in BitingLip's other requests."""
    input: Texts | None = None
    """OpenAI's name of text."""

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` unless there is one of both."""
        super().check(at)
        if self.text is None and self.input is None:
            raise InvalidRequest("'text' is missing.", param="text")
        if self.text is not None and self.input is not None:
            raise InvalidRequest("'text' and 'input' are the same; send one.", param="input")

    def texts(self) -> list[str]:
        """Return the texts, one or several."""
        texts = (self.text or self.input) or []
        return [texts] if isinstance(texts, str) else texts


class VectorsResult(BaseModel):
    """The vectors, in the order of the texts."""

    embeddings: list[list[float]]
    dimensions: int
    model_used: str


class Vectors(Finished):
    """An answer that is complete."""

    result: VectorsResult


async def create(exchange: Exchange, body: VectorsRequest) -> web.StreamResponse:
    """Embed texts, with BitingLip's envelope around the vectors."""
    field = "input" if body.text is None else "text"
    vectors, _ = await embed(exchange, body.model, body.texts(), field=field)
    view = Vectors(
        result=VectorsResult(
            embeddings=[], dimensions=vectors[0].count(",") + 1, model_used=body.model
        ),
        **finished(exchange),
    )
    # written already, with pauses; pydantic would do it again in one go
    text = view.model_dump_json().replace(
        '"embeddings":[]', f'"embeddings":[{",".join(vectors)}]', 1
    )
    return web.Response(text=text, content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/inference/embeddings",
        create,
        "Embed texts",
        "bitinglip",
        body=VectorsRequest,
        answer=Vectors,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "minilm", "text": ["a river", "a bank"]},
        dialect=DIALECT,
    ),
)
