"""``POST /v1/embeddings``: texts in, vectors out."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import RuntimeFailed
from blip.gateway import shares
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Request
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.sampling import TokenId
from blip.kinds.embedding import EMBEDDING, EmbeddingInput
from blip.kinds.text import CHARS_PER_TOKEN
from blip.protocol.messages import Payload

#: Texts a request, as OpenAI has it.
MAX_TEXTS = 2048

#: Numbers that are written as JSON between two breaths of the event loop, about 2 ms.
_NUMBERS_A_BREATH = 8192

TokenText = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(Request):
    """Texts to embed: text or token ids, one or several."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """A name from GET /v1/models."""
    input: (
        Text
        | TokenText
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[TokenText], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    """One text, one list of token ids, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers, or the base64 of little-endian float32; float by default."""
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Numbers a vector, for models that allow to cut it short."""
    user: Annotated[str | None, Ignored()] = None

    def texts(self) -> list[str | list[int]]:
        """Return the texts, one or several."""
        single = isinstance(self.input, str) or isinstance(self.input[0], int)
        return [self.input] if single else self.input  # type: ignore[list-item, return-value]


class Embedding(BaseModel):
    """One vector: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens that a request used."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def rows(payload: Payload, count: int) -> Iterator[memoryview]:
    """Cut the raw result into ``count`` vectors of little-endian float32, without copying.

    Raises :class:`~blip.errors.RuntimeFailed` if it cannot be that many.
    """
    view = memoryview(payload).cast("B")
    size, rest = divmod(len(view), count)
    if rest or size == 0 or size % 4:
        raise RuntimeFailed(f"The node sent {len(view)} bytes, which are not {count} vectors.")
    return (view[start : start + size] for start in range(0, len(view), size))


def little_endian(row: memoryview) -> array[float]:
    """Read little-endian float32."""
    values = array("f", bytes(row))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def numbers(row: memoryview) -> str:
    """Write one vector as a JSON array; nine digits tell every float32 from its neighbours.

    Raises :class:`~blip.errors.RuntimeFailed` for what JSON has no word for.
    """
    values = little_endian(row)
    if not math.isfinite(sum(values)):
        raise RuntimeFailed("The model returned a vector that is not finite.")
    return f"[{','.join(['%.9g'] * len(values))}]" % tuple(values)


async def written(payload: Payload, count: int, *, packed: bool = False) -> list[str]:
    """Write each of the vectors as JSON: an array of numbers, or if ``packed`` base64.

    Raises :class:`~blip.errors.RuntimeFailed`. Many numbers are written with pauses.
    """
    vectors: list[str] = []
    since = 0
    for row in rows(payload, count):
        if packed:
            vectors.append(f'"{base64.b64encode(row).decode()}"')
            continue
        vectors.append(numbers(row))
        since += len(row) // 4
        if since > _NUMBERS_A_BREATH:
            since = 0
            await asyncio.sleep(0)
    return vectors


async def embed(
    exchange: Exchange,
    model: str,
    texts: Sequence[str | list[int]],
    dimensions: int | None = None,
    *,
    packed: bool = False,
    field: str = "input",
) -> tuple[list[str], int]:
    """Embed texts; return each one's vector as :func:`written`, and the tokens of all.

    ``field`` is where the texts stand in the request. Many texts are shared by the devices that
    can take some. Raises :class:`~blip.errors.BlipError`; errors name a text by its number in the
    request.
    """

    def make(part: range) -> EmbeddingInput:
        some = list(texts[part.start : part.stop])
        return EmbeddingInput(texts=some, dimensions=dimensions, first=part.start)

    costs = [_cost(text) for text in texts]
    parts = shares.start(exchange, EMBEDDING, model, costs, make)
    vectors: list[str] = []
    tokens = 0
    for part, (_, answer) in zip(
        parts, await shares.results(exchange, {"texts": field}), strict=True
    ):
        vectors += await written(answer.payload, len(part), packed=packed)
        tokens += answer.usage.get("prompt_tokens", 0)
    return vectors, tokens


def _cost(text: str | list[int]) -> float:
    return 1 + (len(text) / CHARS_PER_TOKEN if isinstance(text, str) else len(text))


async def create(exchange: Exchange, body: EmbeddingRequest) -> web.StreamResponse:
    """Embed texts.

    Many texts become several tasks, which the devices of the mesh share. With encoding_format
    base64 the vectors travel as they are; as numbers they take three times the bytes.
    """
    packed = body.encoding_format == "base64"
    vectors, tokens = await embed(
        exchange, body.model, body.texts(), body.dimensions, packed=packed
    )
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{vector}}}'
        for index, vector in enumerate(vectors)
    )
    usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
    return web.Response(
        text=f'{{"object":"list","data":[{data}],"model":{json.dumps(body.model)},'
        f'"usage":{usage.model_dump_json()}}}',
        content_type="application/json",
    )


OPERATIONS = (
    Operation(
        "POST",
        "/v1/embeddings",
        create,
        "Embed texts",
        "text",
        body=EmbeddingRequest,
        answer=EmbeddingList,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "minilm", "input": ["a river", "a bank"]},
    ),
)
