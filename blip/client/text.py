"""Text: chat, completions and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blip.client.answers import EmbeddingAnswer, TextAnswer, text_from, vectors_from
from blip.client.connection import Connection, body_of
from blip.client.options import Require, task_headers
from blip.client.parts import with_parts
from blip.client.stream import TextStream

#: Text for a chat: one user message, or the conversation. A message's content is a text, or a list
#: of texts and of what :func:`blip.client.picture` makes.
Messages = str | Sequence[Mapping[str, Any]]


class TextClient(Connection):
    """What models of text are asked."""

    async def chat(
        self,
        model: str,
        messages: Messages,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextAnswer:
        """Return the assistant's next message."""
        body = _chat_body(model, messages, options)
        headers = task_headers(priority, deadline, require)
        return text_from(*await self._json("POST", "/v1/chat/completions", body, headers))

    def chat_stream(
        self,
        model: str,
        messages: Messages,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextStream:
        """Return the assistant's next message piece by piece, as it is made."""
        body = _chat_body(model, messages, options)
        headers = task_headers(priority, deadline, require)
        return TextStream(self, "/v1/chat/completions", body, headers)

    async def complete(
        self,
        model: str,
        prompt: str,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextAnswer:
        """Return the continuation of a text."""
        body = body_of(model, {"prompt": prompt, **options})
        headers = task_headers(priority, deadline, require)
        return text_from(*await self._json("POST", "/v1/completions", body, headers))

    def complete_stream(
        self,
        model: str,
        prompt: str,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TextStream:
        """Return the continuation of a text piece by piece, as it is made."""
        body = body_of(model, {"prompt": prompt, **options})
        headers = task_headers(priority, deadline, require)
        return TextStream(self, "/v1/completions", body, headers)

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
    ) -> EmbeddingAnswer:
        """Return one vector a text."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        options = {"input": texts, "encoding_format": "base64", "dimensions": dimensions}
        headers = task_headers(priority, deadline, require)
        body = body_of(model, options)
        return vectors_from(*await self._json("POST", "/v1/embeddings", body, headers))


def _chat_body(model: str, messages: Messages, options: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return body_of(model, {"messages": list(map(with_parts, messages)), **options})
