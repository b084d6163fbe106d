"""``POST /api/v1/inference/text-generation``: BitingLip's text."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Request
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.original.dialect import DIALECT, FRAMING, Finished, finished
from blip.gateway.sampling import (
    MaxTokens,
    ModelName,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    wishes,
)
from blip.gateway.text import Usage, collect, quote, stream, usage_of
from blip.kinds.completion import COMPLETION, CompletionInput
from blip.kinds.text import FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece

#: The defaults of BitingLip's API reference.
_MAX_TOKENS = 512
_TEMPERATURE = 0.7
_TOP_P = 0.9
_TOP_K = 50

#: Two names of one thing each.
_NAMES = (("model", "model_name"), ("prompt", "text"), ("max_tokens", "max_length"))


class TextGenerationRequest(Request):
    """A prompt to continue."""

    model: ModelName | None = None
    """A name from GET /v1/models."""
    model_name: ModelName | None = None
    """The name that the README of BitingLip's gateway has for the model."""
    prompt: str | None = None
    """The text to continue."""
    text: str | None = None
    """The name that BitingLip's code has for the prompt."""
    max_tokens: MaxTokens | None = None
    """Most tokens of the answer; 512 by default."""
    max_length: MaxTokens | None = None
    """The name that the README of BitingLip's gateway has for max_tokens."""
    temperature: Temperature = _TEMPERATURE
    """0 takes the likeliest token always."""
    top_p: TopP = _TOP_P
    """Sample from the likeliest tokens that make up this much probability."""
    top_k: TopK = _TOP_K
    """Sample from this many likeliest tokens; 0 for all."""
    repetition_penalty: RepetitionPenalty | None = None
    """Above 1 makes tokens less likely that were there before."""
    stop_sequences: Stops | None = None
    """Texts, at most four, before which the answer ends."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree."""
    stream: bool = False
    """Whether to send the answer piece by piece, as server-sent events."""
    do_sample: Annotated[Any, Ignored()] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` unless each thing is said once."""
        super().check(at)
        for one, other in _NAMES:
            said = getattr(self, one) is not None, getattr(self, other) is not None
            if all(said):
                raise InvalidRequest(
                    f"'{one}' and '{other}' are the same; send one.", param=at + other
                )
            if not any(said) and one != "max_tokens":
                raise InvalidRequest(f"'{one}' is missing.", param=at + one)

    def task(self) -> CompletionInput:
        """Return the input of the task."""
        sampling = wishes(
            max_tokens=self.max_tokens or self.max_length or _MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop_sequences,
            seed=self.seed,
        )
        prompt = self.text if self.prompt is None else self.prompt
        return CompletionInput(prompt=prompt or "", **sampling)


class TextResult(BaseModel):
    """What the model wrote."""

    generated_text: str
    tokens_generated: int
    finish_reason: FinishReason
    model_used: str


class TextGeneration(Finished):
    """An answer that is complete."""

    result: TextResult


class TextEvent(BaseModel):
    """A piece of the text with all before it; the last one has done and the whole."""

    token: str | None = None
    partial_text: str | None = None
    done: bool | None = None
    final_text: str | None = None


class Events:
    """Writes :class:`TextEvent`; see :class:`blip.gateway.text.Chunks`."""

    def __init__(self) -> None:
        self._text = ""

    def opening(self) -> str:
        """Nothing: a stream begins with its first piece."""
        return ""

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None) -> str:
        """A piece, and the whole so far."""
        self._text += text
        return f'data: {{"token":{quote(text)},"partial_text":{quote(self._text)}}}\n\n'

    def calls(self, index: int, pieces: list[CallPiece]) -> str:
        """Nothing: completions call no functions."""
        return ""

    def finish(self, index: int, reason: FinishReason, stop: str | None) -> str:
        """The whole."""
        return f'data: {{"done":true,"final_text":{quote(self._text)}}}\n\n'

    def usage(self, usage: Usage) -> str:
        """Nothing: these streams do not count."""
        return ""


async def create(exchange: Exchange, body: TextGenerationRequest) -> web.StreamResponse:
    """Continue a prompt, as BitingLip's documents ask for it.

    Defaults are those of its API reference: 512 tokens, temperature 0.7, top_p 0.9, top_k 50. Each
    event of a stream repeats the text so far, so long answers are better streamed elsewhere.
    """
    model = body.model or body.model_name or ""
    exchange.start(COMPLETION, model, [body.task()])
    if body.stream:
        return await stream(exchange, Events(), 1, usage=False, framing=FRAMING)
    (draft,) = await collect(exchange)
    result = TextResult(
        generated_text=draft.text,
        tokens_generated=usage_of(exchange.answers, 1).completion_tokens,
        finish_reason=draft.reason,
        model_used=model,
    )
    answer = TextGeneration(result=result, **finished(exchange))
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/api/v1/inference/text-generation",
        create,
        "Continue a prompt",
        "bitinglip",
        body=TextGenerationRequest,
        answer=TextGeneration,
        event=TextEvent,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "smollm2", "prompt": "The future of AI is", "max_tokens": 100},
        dialect=DIALECT,
    ),
)
