"""``POST /api/embed`` and the older ``POST /api/embeddings``: Ollama's vectors."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, Field

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Request
from blip.gateway.routes.embeddings import MAX_TEXTS, Text, embed
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.ollama.dialect import DIALECT, nanoseconds, served_name
from blip.gateway.sampling import ModelName
from blip.gateway.text import quote


class EmbedRequest(Request):
    """Texts to embed."""

    model: ModelName
    """A name from GET /api/tags; :latest may stand behind it."""
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    """One text, or a list of them."""
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Numbers a vector, for models that allow to cut it short."""
    truncate: bool | None = None
    """Ignored: a text that is too long is an error here, never cut."""
    keep_alive: Annotated[Any, Ignored()] = None
    options: Annotated[Any, Ignored()] = None

    def texts(self) -> list[str]:
        """Return the texts, one or several."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbedAnswer(BaseModel):
    """The vectors, in the order of the texts; durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldEmbedRequest(Request):
    """A text to embed, as Ollama had it first."""

    model: ModelName
    """A name from GET /api/tags; :latest may stand behind it."""
    prompt: Text
    keep_alive: Annotated[Any, Ignored()] = None
    options: Annotated[Any, Ignored()] = None


class OldEmbedAnswer(BaseModel):
    """The vector of the text."""

    embedding: list[float]


async def create(exchange: Exchange, body: EmbedRequest) -> web.StreamResponse:
    """Embed texts, in Ollama's shapes."""
    model = served_name(exchange, body.model)
    vectors, tokens = await embed(exchange, model, body.texts(), body.dimensions)
    timings = [call.timing for call in exchange.calls]
    return web.Response(
        text=f'{{"model":{quote(body.model)},"embeddings":[{",".join(vectors)}],'
        f'"total_duration":{nanoseconds(max(timing.total or 0.0 for timing in timings))},'
        f'"load_duration":{nanoseconds(max(timing.load for timing in timings))},'
        f'"prompt_eval_count":{tokens}}}',
        content_type="application/json",
    )


async def create_one(exchange: Exchange, body: OldEmbedRequest) -> web.StreamResponse:
    """Embed one text, as Ollama had it first; /api/embed takes several."""
    model = served_name(exchange, body.model)
    (vector,), _ = await embed(exchange, model, [body.prompt], field="prompt")
    return web.Response(text=f'{{"embedding":{vector}}}', content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/embed",
        create,
        "Embed texts",
        "ollama",
        body=EmbedRequest,
        answer=EmbedAnswer,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "minilm", "input": ["a river", "a bank"]},
        dialect=DIALECT,
    ),
    Operation(
        "POST",
        "/api/embeddings",
        create_one,
        "Embed a text",
        "ollama",
        body=OldEmbedRequest,
        answer=OldEmbedAnswer,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "minilm", "prompt": "a river"},
        dialect=DIALECT,
    ),
)
