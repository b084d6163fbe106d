"""``POST /v1/chat/completions``, OpenAI's chat."""

from __future__ import annotations

import time

from aiohttp import web

from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.routes.chat.answers import (
    ChatAnswerMessage,
    ChatCallingMessage,
    ChatChoice,
    ChatChunks,
    ChatCompletion,
    ChatCompletionChunk,
    chat_logprobs,
)
from blip.gateway.routes.chat.requests import ChatRequest
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.text import (
    Draft,
    collect,
    stream,
    usage_of,
    with_seeds,
)
from blip.gateway.tools import (
    answer_calls,
)
from blip.kinds.chat import CHAT


async def create(exchange: Exchange, body: ChatRequest) -> web.StreamResponse:
    """Continue a conversation.

    Fields have OpenAI's names and meanings; top_k and repetition_penalty are vLLM's. Fields that
    would change the answer and are not supported are refused by name. Each of the n choices is a
    task of its own, with seed + index where a seed is given.
    """
    exchange.start(CHAT, body.model, with_seeds(body.task(), body.choices))
    completion_id = f"chatcmpl-{exchange.calls[0].task_id}"
    if body.stream:
        chunks = ChatChunks(completion_id, body, [call.task_id for call in exchange.calls])
        return await stream(exchange, chunks, body.choices, usage=body.wants_usage)
    drafts = await collect(exchange)
    answer = ChatCompletion(
        id=completion_id,
        created=int(time.time()),
        model=body.model,
        choices=[
            _choice(index, draft, body, exchange.calls[index].task_id)
            for index, draft in enumerate(drafts)
        ],
        usage=usage_of(exchange.answers, body.choices),
    )
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _choice(index: int, draft: Draft, body: ChatRequest, task_id: str) -> ChatChoice:
    message: ChatAnswerMessage | ChatCallingMessage = ChatAnswerMessage(content=draft.text)
    if draft.calls:
        calls = answer_calls(task_id, draft.calls)
        message = ChatCallingMessage(content=draft.text or None, tool_calls=calls)
    return ChatChoice(
        index=index,
        message=message,
        logprobs=chat_logprobs(draft.logprobs) if body.logprobs else None,
        finish_reason=draft.reason,
    )


OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        create,
        "Continue a conversation",
        "text",
        body=ChatRequest,
        answer=ChatCompletion,
        event=ChatCompletionChunk,
        errors=TEXT_FAILURES,
        task=True,
        example={
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Name three rivers."}],
            "max_tokens": 64,
        },
    ),
)
