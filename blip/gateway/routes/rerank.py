"""``POST /v1/rerank``, ``/v2/rerank`` and ``/rerank``: documents by how well they answer a query.

The shapes are Cohere's and Jina's, which are nearly the same, under all of the paths where clients
of theirs, of vLLM and of Text Embeddings Inference look.
"""

from __future__ import annotations

import asyncio
import math
import operator
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from blip.errors import BlipError, ContextTooLong, InvalidRequest, RuntimeFailed
from blip.gateway import shares
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.routes.embeddings import little_endian, rows
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.sampling import ModelName
from blip.kinds.embedding import EMBEDDING, EmbeddingInput
from blip.kinds.rerank import MAX_DOCUMENTS, RERANK, RerankInput
from blip.kinds.text import CHARS_PER_TOKEN
from blip.protocol.messages import Payload

#: Numbers that are multiplied between two breaths of the event loop, about 2 ms.
_NUMBERS_A_BREATH = 32_768

Query = Annotated[str, Field(min_length=1)]


class RerankDocument(Request):
    """A document in an object of its own."""

    text: str


class RerankRequest(Request):
    """A query, and documents to sort by it."""

    model: ModelName
    """A name from GET /v1/models: one for rerank, or for embedding."""
    query: Query
    documents: Annotated[list[str | RerankDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    """Texts, or objects with a text."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """How many of the best are returned; all by default."""
    return_documents: bool | None = None
    """Whether the texts are returned with their scores; no by default."""
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    """Tokens after which each document is cut off."""
    truncate: bool | None = None
    """Whether documents that are too long lose their ends; otherwise they are an error. Ours."""
    raw_scores: bool | None = None
    """Whether scores are the model's logits rather than probabilities."""
    rank_fields: Annotated[Any, Refused("Send each document's text only.", [], ["text"])] = None
    max_chunks_per_doc: Annotated[Any, Refused("Cut the documents.", 1)] = None
    priority: Annotated[int | None, Ignored()] = None
    user: Annotated[str | None, Ignored()] = None

    def texts(self) -> list[str]:
        """Return the documents' texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class RerankText(BaseModel):
    """A document, as it was sent."""

    text: str


class RerankResult(BaseModel):
    """A document's place in the request, and how well it answers the query."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: int
    relevance_score: float
    """From 0 to 1 by a model for rerank; a cosine, from -1 to 1, by one for embedding."""
    document: RerankText | None = None


class RerankUsage(BaseModel):
    """Tokens that were read; the query counts with every document."""

    prompt_tokens: int
    total_tokens: int


class RerankMeta(BaseModel):
    """The same in Cohere's words, and what a caller should know."""

    api_version: dict[str, str]
    tokens: dict[str, int]
    warnings: list[str]


class RerankAnswer(BaseModel):
    """The best documents, best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: RerankMeta


async def create(exchange: Exchange, body: RerankRequest) -> web.StreamResponse:
    """Sort documents by how well they answer a query.

    A model for rerank reads the query with each document; long lists are shared by several
    devices. A model for embedding compares vectors, which is quicker and coarser.
    """
    documents = body.texts()
    kinds = {each.name: each.kinds for each in exchange.gateway.mesh.models()}.get(body.model, ())
    if "rerank" not in kinds and "embedding" in kinds:
        scores = await _compared(exchange, body, documents)
    else:
        scores = await _read(exchange, body, documents)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    counts = [answer.usage for answer in exchange.answers if answer is not None]
    tokens = sum(usage.get("prompt_tokens", 0) for usage in counts)
    cut = sum(usage.get("truncated", 0) for usage in counts)
    answer = RerankAnswer(
        id=exchange.request_id,
        model=body.model,
        results=[
            RerankResult(
                index=index,
                relevance_score=scores[index],
                document=RerankText(text=documents[index]) if body.return_documents else None,
            )
            for index in order
        ],
        usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
        meta=RerankMeta(
            api_version={"version": "2"},
            tokens={"input_tokens": tokens},
            warnings=[f"the ends of {cut} documents were cut off"] if cut else [],
        ),
    )
    return web.Response(
        text=answer.model_dump_json(exclude_none=True), content_type="application/json"
    )


async def _read(exchange: Exchange, body: RerankRequest, documents: list[str]) -> list[float]:
    """Have a model read each document with the query."""

    def make(part: range) -> RerankInput:
        return RerankInput(
            query=body.query,
            documents=documents[part.start : part.stop],
            raw=bool(body.raw_scores),
            truncate=bool(body.truncate),
            document_tokens=body.max_tokens_per_doc,
            first=part.start,
        )

    query = 1 + len(body.query) / CHARS_PER_TOKEN
    costs = [query + len(text) / CHARS_PER_TOKEN for text in documents]
    parts = shares.start(exchange, RERANK, body.model, costs, make)
    scores: list[float] = []
    for part, (_, answer) in zip(parts, await exchange.results(), strict=True):
        scores += numbers_of(answer.payload, len(part))
    return scores


async def _compared(exchange: Exchange, body: RerankRequest, documents: list[str]) -> list[float]:
    """Have a model embed everything; the cosines are computed here."""
    for name, value in (
        ("truncate", body.truncate),
        ("max_tokens_per_doc", body.max_tokens_per_doc),
        ("raw_scores", body.raw_scores),
    ):
        if value:
            raise InvalidRequest(
                f"'{name}' needs a model for rerank; '{body.model}' is one for embedding.",
                param=name,
            )
    empty = next((index for index, text in enumerate(documents) if not text), None)
    if empty is not None:
        raise InvalidRequest(f"'documents.{empty}' is empty.", param=f"documents.{empty}")
    # the query is a text among others, the first
    texts = [body.query, *documents]

    def make(part: range) -> EmbeddingInput:
        return EmbeddingInput(texts=list(texts[part.start : part.stop]), first=part.start)

    costs = [1 + len(text) / CHARS_PER_TOKEN for text in texts]
    parts = shares.start(exchange, EMBEDDING, body.model, costs, make)
    try:
        results = await exchange.results()
    except ContextTooLong as error:
        raise _renamed(error) from None
    vectors = [
        little_endian(row)
        for part, (_, answer) in zip(parts, results, strict=True)
        for row in rows(answer.payload, len(part))
    ]
    return await cosines(vectors[0], vectors[1:])


def _renamed(error: ContextTooLong) -> BlipError:
    """Return the error of a text under the name that it has in this request."""
    at = error.details.get("input")
    if not isinstance(at, int):
        return error
    name = f"documents.{at - 1}" if at else "query"
    tokens, limit = error.details.get("prompt_tokens"), error.details.get("limit")
    return ContextTooLong(
        f"'{name}' has {tokens} tokens; the model takes {limit}",
        hint="Split the text.",
        param=name,
        details={**error.details, "input": at - 1} if at else {},
    )


def numbers_of(payload: Payload, count: int) -> list[float]:
    """Read ``count`` scores. Raises :class:`~blip.errors.RuntimeFailed` if they are not there."""
    view = memoryview(payload).cast("B")
    if len(view) != 4 * count:
        raise RuntimeFailed(f"The node sent {len(view)} bytes, which are not {count} scores.")
    scores = little_endian(view).tolist()
    if not math.isfinite(sum(scores)):
        raise RuntimeFailed("The model returned a score that is not finite.")
    return scores


async def cosines(query: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[float]:
    """Return the cosine of the angle between the query's vector and each of the others."""
    length = math.hypot(*query)
    found = []
    since = 0
    for vector in vectors:
        lengths = length * math.hypot(*vector)
        found.append(sum(map(operator.mul, query, vector)) / lengths if lengths else 0.0)
        since += len(vector)
        if since > _NUMBERS_A_BREATH:
            since = 0
            await asyncio.sleep(0)
    return found


OPERATIONS = tuple(
    Operation(
        "POST",
        path,
        create,
        "Sort documents by a query",
        "text",
        body=RerankRequest,
        answer=RerankAnswer,
        errors=TEXT_FAILURES,
        task=True,
        example={
            "model": "tiny-rerank",
            "query": "bread in the oven",
            "documents": ["the river in the forest", "we bake bread"],
            "top_n": 1,
        },
    )
    for path in ("/v1/rerank", "/v2/rerank", "/rerank")
)
