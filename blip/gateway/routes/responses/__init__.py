"""``POST /v1/responses``, OpenAI's newer way to ask: one answer, nothing stored."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from blip.gateway.api import Operation
from blip.gateway.events import Framing
from blip.gateway.exchange import Exchange
from blip.gateway.parts import Typed
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.responses.answers import DIALECT, Answered, Response, ResponseEvent
from blip.gateway.routes.responses.events import Events
from blip.gateway.routes.responses.requests import FunctionChoice, ResponseRequest
from blip.gateway.text import collect, stream, usage_of
from blip.kinds.chat import CHAT
from blip.kinds.tools import joined


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
        format=_shown(body.text.format if body.text else None) or {"type": "text"},
        tools=[_shown(tool) for tool in body.tools or ()],
        tool_choice=_shown(body.tool_choice)
        if isinstance(body.tool_choice, FunctionChoice)
        else body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
    )
    if body.stream:
        events = Events(answered, logprobs=body.logprobs)
        framing = Framing(end="", failed=events.failed)
        return await stream(exchange, events, 1, usage=True, framing=framing)
    (draft,) = await collect(exchange)
    rows = draft.logprobs if body.logprobs else None
    usage = usage_of(exchange.answers, 1)
    answer = answered.whole(draft.text, rows, joined(draft.calls), draft.reason, usage)
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _shown(given: Typed | None) -> dict[str, Any]:
    """Return an object of the request as it was sent, to show it in the answer."""
    return {} if given is None else given.model_dump(by_alias=True, exclude_unset=True)


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
