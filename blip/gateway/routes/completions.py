"""``POST /v1/completions``, OpenAI's older text completion: raw prompts, many at once."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, cast

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Refused
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.sampling import SamplingRequest, TokenId
from blip.gateway.text import Usage, collect, likelihood, quote, stream, usage_of, with_seeds
from blip.kinds.completion import COMPLETION, CompletionInput
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece

#: OpenAI's default for this route.
_DEFAULT_MAX_TOKENS = 16

#: Tasks that one request may start at once: prompts times choices.
_MAX_TASKS = 128

TokenPrompt = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingRequest):
    """Prompts to continue: text or token ids, one or several."""

    prompt: (
        str
        | TokenPrompt
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenPrompt], Field(min_length=1)]
    )
    """One text, one list of token ids, or a list of either."""
    echo: bool | None = None
    """Whether an answer begins with its prompt."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Say how likely each token was, with this many alternatives."""

    best_of: Annotated[Any, Refused("Ask for n choices and pick the best yourself.", 1)] = None
    suffix: Annotated[Any, Refused("Models here only write forwards.", "")] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one an element."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]  # the first element tells for all
        return cast("list[str | list[int]]", prompt)

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        tasks = len(self.prompts) * self.choices
        if tasks > _MAX_TASKS:
            raise InvalidRequest(
                f"'prompt' and 'n' ask for {tasks} completions; {_MAX_TASKS} a request is most.",
                hint="Spread the prompts over several requests.",
                param="prompt",
            )

    def tasks(self) -> list[CompletionInput]:
        """Return one task a prompt and choice, choices of one prompt in a row."""
        sampling = self.sampling(self.max_tokens or _DEFAULT_MAX_TOKENS, self.logprobs)
        found: list[CompletionInput] = []
        for prompt in self.prompts:
            value = CompletionInput(prompt=prompt, echo=bool(self.echo), **sampling)
            found += with_seeds(value, self.choices)
        return found


class CompletionLogprobs(BaseModel):
    """Log-probabilities as parallel lists; ``text_offset`` counts characters of ``text``."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation, or, in a stream, a piece of it."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """All continuations; the events of a stream have the same shape."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None
    system_fingerprint: str | None = None


def completion_logprobs(
    rows: list[TokenLogprob], offset: int, *, alternatives: bool
) -> CompletionLogprobs:
    """Return log-probabilities in OpenAI's shape; ``offset`` is the first token's."""
    offsets = []
    for row in rows:
        offsets.append(offset)
        offset += len(row.token)
    return CompletionLogprobs(
        tokens=[row.token for row in rows],
        token_logprobs=[likelihood(row.logprob) for row in rows],
        top_logprobs=[_top(row) for row in rows] if alternatives else None,
        text_offset=offsets,
    )


def _top(row: TokenLogprob) -> dict[str, float]:
    # the chosen token is always among them, even if it was not among the most likely
    top = {token: likelihood(logprob) for token, logprob, _ in row.top}
    top.setdefault(row.token, likelihood(row.logprob))
    return top


class CompletionChunks:
    """Writes :class:`Completion` events; what does not change is written once."""

    def __init__(self, completion_id: str, body: CompletionRequest) -> None:
        self._logprobs = body.logprobs
        self._head = (
            f'data: {{"id":"{completion_id}","object":"text_completion",'
            f'"created":{int(time.time())},"model":{quote(body.model)},'
            f'"system_fingerprint":null,"choices":['
        )
        self._tail = ',"usage":null}\n\n' if body.wants_usage else "}\n\n"
        self._offsets: dict[int, int] = {}

    def opening(self) -> str:
        """Nothing: this route has no roles."""
        return ""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece of a choice."""
        shape = "null"
        if self._logprobs is not None and logprobs is not None:
            offset = self._offsets.get(index, 0)
            self._offsets[index] = offset + sum(len(row.token) for row in logprobs)
            shape = completion_logprobs(
                logprobs, offset, alternatives=self._logprobs > 0
            ).model_dump_json()
        return self._chunk(index, quote(text), shape, "null")

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Nothing: completions call no functions."""
        return ""

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The end of a choice."""
        return self._chunk(index, '""', "null", f'"{reason}"')

    def usage(self, usage: Usage) -> str:
        """The chunk after all choices."""
        return f'{self._head}],"usage":{usage.model_dump_json()}}}\n\n'

    def _chunk(self, index: int, text: str, logprobs: str, reason: str) -> str:
        return (
            f'{self._head}{{"index":{index},"text":{text},"logprobs":{logprobs},'
            f'"finish_reason":{reason}}}]{self._tail}'
        )


async def create(exchange: Exchange, body: CompletionRequest) -> web.StreamResponse:
    """Continue raw text.

    Several prompts make several choices, the n choices of the first prompt first. Each is a task
    of its own, with seed + its number among its prompt's choices where a seed is given.
    """
    exchange.start(COMPLETION, body.model, body.tasks())
    completion_id = f"cmpl-{exchange.calls[0].task_id}"
    if body.stream:
        chunks = CompletionChunks(completion_id, body)
        return await stream(exchange, chunks, body.choices, usage=body.wants_usage)
    drafts = await collect(exchange)
    logprobs = body.logprobs
    answer = Completion(
        id=completion_id,
        created=int(time.time()),
        model=body.model,
        choices=[
            CompletionChoice(
                text=draft.text,
                index=index,
                logprobs=None
                if logprobs is None
                else completion_logprobs(draft.logprobs, 0, alternatives=logprobs > 0),
                finish_reason=draft.reason,
            )
            for index, draft in enumerate(drafts)
        ],
        usage=usage_of(exchange.answers, body.choices),
    )
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/v1/completions",
        create,
        "Continue raw text",
        "text",
        body=CompletionRequest,
        answer=Completion,
        event=Completion,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32},
    ),
)
