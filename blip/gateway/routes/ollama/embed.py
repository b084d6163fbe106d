"""``POST /api/embed`` and the older ``POST /api/embeddings``: Ollama's vectors."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, Field

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Request
from blip.gateway.routes.embeddings import MAX_TEXTS, Text, written
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.ollama.dialect import DIALECT, nanoseconds, served_name
from blip.gateway.sampling import ModelName
from blip.gateway.text import quote
from blip.kinds.embedding import EMBEDDING, EmbeddingInput


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

    def task(self) -> EmbeddingInput:
        """Return the input of the task."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        return EmbeddingInput(texts=list(texts), dimensions=self.dimensions)


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

    def task(self) -> EmbeddingInput:
        """Return the input of the task."""
        return EmbeddingInput(texts=[self.prompt])


class OldEmbedAnswer(BaseModel):
    """The vector of the text."""

    embedding: list[float]


async def create(exchange: Exchange, body: EmbedRequest) -> web.StreamResponse:
    """Embed texts, in Ollama's shapes. All texts of a request make one task."""
    task = body.task()
    exchange.start(EMBEDDING, served_name(exchange, body.model), [task])
    ((_, answer),) = await exchange.results()
    vectors = await written(answer.payload, len(task.texts))
    timing = exchange.calls[0].timing
    return web.Response(
        text=f'{{"model":{quote(body.model)},"embeddings":[{",".join(vectors)}],'
        f'"total_duration":{nanoseconds(timing.total or 0.0)},'
        f'"load_duration":{nanoseconds(timing.load)},'
        f'"prompt_eval_count":{answer.usage.get("prompt_tokens", 0)}}}',
        content_type="application/json",
    )


async def create_one(exchange: Exchange, body: OldEmbedRequest) -> web.StreamResponse:
    """Embed one text, as Ollama had it first; /api/embed takes several."""
    exchange.start(EMBEDDING, served_name(exchange, body.model), [body.task()])
    ((_, answer),) = await exchange.results()
    (vector,) = await written(answer.payload, 1)
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
