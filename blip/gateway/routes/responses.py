"""``POST /v1/responses``, OpenAI's newer way to ask: one answer, nothing stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.api import Operation
from blip.gateway.events import Framing
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.parts import Part, Typed, contents
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.responses_answer import DIALECT, Answered, Events, Response, ResponseEvent
from blip.gateway.sampling import (
    MaxTokens,
    ModelName,
    RepetitionPenalty,
    Seed,
    Stop,
    Stops,
    Temperature,
    TopK,
    TopP,
    wishes,
)
from blip.gateway.text import collect, stream, usage_of
from blip.gateway.upload import decode_picture
from blip.kinds.chat import CHAT, ChatInput, ChatMessage

_NO_TOOLS = "This mesh runs no tools: describe them in the prompt, or leave the field out."
_NOTHING_STORED = "Nothing is stored here: send the whole conversation as input."
_LOGPROBS = "message.output_text.logprobs"


class InputPart(Part):
    """A part of a message: what a user or an assistant wrote."""

    texts = {  # noqa: RUF012  (a ClassVar of the base)
        "input_text": "text",
        "output_text": "text",
        "text": "text",
        "refusal": "refusal",
    }

    type: str
    """input_text or input_image; output_text or refusal for an assistant's."""
    text: str | None = None
    image_url: str | None = None
    """The picture of an input_image: data:image/png;base64,... or another format."""
    detail: Annotated[Any, Ignored()] = None
    file_id: Annotated[Any, Refused("Send the picture itself as image_url.")] = None
    refusal: str | None = None
    annotations: Annotated[Any, Ignored()] = None
    logprobs: Annotated[Any, Ignored()] = None
    prompt_cache_breakpoint: Annotated[Any, Ignored()] = None

    def picture(self, at: str) -> bytes | None:
        """Return the file of an input_image, None for others."""
        if self.type != "input_image":
            return None
        self.check(at)
        if self.image_url is None:
            raise InvalidRequest(
                f"'{at}image_url' is missing from this part.", param=at + "image_url"
            )
        return decode_picture(self.image_url, f"{at}image_url")


class InputItem(Typed):
    """A message of the conversation; an item of an earlier response's output is one."""

    noun: ClassVar[str] = "items"

    type: str = "message"
    """message, the only type that is supported."""
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    """Text, or text in parts, which become paragraphs."""
    id: Annotated[Any, Ignored()] = None
    status: Annotated[Any, Ignored()] = None
    phase: Annotated[Any, Ignored()] = None

    def plain(self, at: str) -> ChatMessage:
        """Return the message as models get it."""
        if self.type != "message":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.role is None:
            raise InvalidRequest(f"'{at}role' is missing.", param=at + "role")
        if self.content is None:
            raise InvalidRequest(f"'{at}content' is missing.", param=at + "content")
        content: Any = self.content
        found = contents(content, at + "content")
        return ChatMessage(role=self.role, content=found.text, pictures=found.pictures)


class TextConfig(Request):
    """What the text should be like."""

    format: Annotated[
        Any, Refused("Ask for the format in the prompt and check what comes.", {"type": "text"})
    ] = None
    verbosity: Annotated[Any, Refused("Say in the prompt how long to answer.", "medium")] = None


class Reasoning(Request):
    """How to think before the answer; models here show no such thing."""

    effort: Annotated[Any, Refused("Say in the prompt how hard to think.", "none")] = None
    mode: Annotated[Any, Refused("Say in the prompt how hard to think.", "standard")] = None
    context: Annotated[Any, Ignored()] = None
    summary: Annotated[Any, Ignored()] = None
    generate_summary: Annotated[Any, Ignored()] = None


class ResponseStreamOptions(Request):
    """Nothing that matters here."""

    include_obfuscation: Annotated[Any, Ignored()] = None


class ResponseRequest(Request):
    """A conversation to continue, as one text or as items."""

    model: ModelName
    """A name from GET /v1/models."""
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    """One text of a user, or the conversation so far, oldest first."""
    instructions: str | None = None
    """What the model should heed throughout; it comes before the input."""
    max_output_tokens: MaxTokens | None = None
    """Most tokens of the answer."""
    temperature: Temperature | None = None
    """0 takes the likeliest token always, 1 (the default) samples as the model was trained."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens that make up this much probability; 1 by default."""
    top_k: TopK | None = None
    """Sample from this many likeliest tokens; 0 or -1 for all. vLLM's, not OpenAI's."""
    repetition_penalty: RepetitionPenalty | None = None
    """Above 1 makes tokens less likely that were there before. vLLM's, not OpenAI's."""
    stop: Stop | Stops | None = None
    """Texts, at most four, before which the answer ends. As in chat; not OpenAI's here."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree. As in chat; not OpenAI's here."""
    include: list[str] | None = None
    """message.output_text.logprobs says how likely each token was; others have nothing to add."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many alternatives to list for each token; needs that include."""
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    """Comes back with the answer."""
    stream: bool | None = None
    """Whether to send the answer piece by piece, as server-sent events."""
    stream_options: ResponseStreamOptions | None = None

    background_options: Annotated[Any, Ignored()] = None
    image: Annotated[Any, Ignored()] = None
    max_tool_calls: Annotated[Any, Ignored()] = None
    parallel_tool_calls: Annotated[Any, Ignored()] = None
    prompt_cache_key: Annotated[Any, Ignored()] = None
    prompt_cache_options: Annotated[Any, Ignored()] = None
    prompt_cache_retention: Annotated[Any, Ignored()] = None
    safety_identifier: Annotated[Any, Ignored()] = None
    service_tier: Annotated[Any, Ignored()] = None
    user: Annotated[Any, Ignored()] = None

    access_programs: Annotated[Any, Refused("Leave it out; it is OpenAI's own.")] = None
    background: Annotated[Any, Refused("Wait for the answer, or stream it.", False)] = None
    context_management: Annotated[Any, Refused(_NOTHING_STORED, [])] = None
    conversation: Annotated[Any, Refused(_NOTHING_STORED)] = None
    moderation: Annotated[Any, Refused("Nothing here moderates; do it before or after.")] = None
    previous_response_id: Annotated[Any, Refused(_NOTHING_STORED)] = None
    prompt: Annotated[Any, Refused("Send the prompt itself as input.")] = None
    store: Annotated[Any, Refused("Nothing is stored here; keep the answer yourself.", False)] = (
        None
    )
    tool_choice: Annotated[Any, Refused(_NO_TOOLS, "none", "auto")] = None
    tools: Annotated[Any, Refused(_NO_TOOLS, [])] = None
    truncation: Annotated[Any, Refused("Shorten the input yourself.", "disabled")] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        for name in ("text", "reasoning", "stream_options"):
            inner: Request | None = getattr(self, name)
            if inner is not None:
                inner.check(f"{at}{name}.")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(
                f"'top_logprobs' needs 'include': ['{_LOGPROBS}'].", param="top_logprobs"
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options")

    @property
    def logprobs(self) -> bool:
        """Whether the answer says how likely each token was."""
        return self.include is not None and _LOGPROBS in self.include

    def task(self) -> ChatInput:
        """Return the input of the task."""
        messages: Sequence[ChatMessage]
        if isinstance(self.input, str):
            messages = [ChatMessage(role="user", content=self.input)]
        else:
            messages = [item.plain(f"input.{index}.") for index, item in enumerate(self.input)]
        if self.instructions:
            messages = [ChatMessage(role="system", content=self.instructions), *messages]
        sampling = wishes(
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            seed=self.seed,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )
        return ChatInput(messages=list(messages), **sampling)


async def create(exchange: Exchange, body: ResponseRequest) -> web.StreamResponse:
    """Continue a conversation, in the shapes of OpenAI's Responses API.

    Nothing is stored: there is no response to get later and no conversation to go on with; send the
    whole of it. Streams are typed events, without data: [DONE].
    """
    task = body.task()
    exchange.start(CHAT, body.model, [task])
    answered = Answered(
        task_id=exchange.calls[0].task_id,
        created_at=int(time.time()),
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        temperature=task.temperature,
        top_p=task.top_p,
        top_logprobs=body.top_logprobs or 0,
    )
    if body.stream:
        events = Events(answered, logprobs=body.logprobs)
        framing = Framing(end="", failed=events.failed)
        return await stream(exchange, events, 1, usage=True, framing=framing)
    (draft,) = await collect(exchange)
    rows = draft.logprobs if body.logprobs else None
    answer = answered.whole(draft.text, rows, draft.reason, usage_of(exchange.answers, 1))
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


OPERATIONS = (
    Operation(
        "POST",
        "/v1/responses",
        create,
        "Respond",
        "text",
        body=ResponseRequest,
        answer=Response,
        event=ResponseEvent,
        errors=TEXT_FAILURES,
        task=True,
        example={"model": "smollm2", "input": "Name three rivers.", "max_output_tokens": 64},
        dialect=DIALECT,
    ),
)
