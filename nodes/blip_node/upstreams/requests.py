"""Puts blip's inputs into OpenAI's fields. Pure.

Fields that a request did not set stay home, so that an engine which knows few of them is not asked
for more. Temperature and ``top_p`` always travel: engines have defaults of their own, from a
model's files, and an answer must not depend on who gives it.

A field that the engine is known to ignore, and that would change the answer, is refused here by
name: a silent difference is worse than an error.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from blip.errors import UnsupportedField
from blip.kinds.base import TaskInput
from blip.kinds.chat import ChatInput, ChatMessage
from blip.kinds.completion import CompletionInput
from blip.kinds.embedding import EmbeddingInput
from blip.kinds.grammar import ANY_OBJECT, Grammar
from blip.kinds.pictures import read_header
from blip.kinds.text import TextInput
from blip.kinds.tools import Tool

#: blip's fields that are OpenAI's under the same name, with the same meaning.
_SAME = (
    "max_tokens",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop",
    "seed",
)

#: vLLM's additions and their names, by dialect; None where the engine ignores them, as its
#: documentation says. What is not listed, and every engine that is not known, gets vLLM's name.
_EXTENSIONS: dict[str, dict[str, str | None]] = {
    "top_k": {"ollama": None},
    "repetition_penalty": {"ollama": None, "llama.cpp": "repeat_penalty"},
}

#: OpenAI's own that an engine ignores.
_IGNORED = {"ollama": ("logit_bias",)}

#: Fields that are dealt with one by one below.
_OWN = frozenset(
    {"messages", "prompt", "echo", "temperature", "top_p", "logprobs", "generated", "texts"}
    | {"grammar", "tools", "tool_choice", "tool", "parallel_tool_calls"}
)

#: Engines that take forms other than JSON, and forms of completions, under vLLM's name.
_STRUCTURED = ("vllm", "blip")


class Request(NamedTuple):
    """What is posted: the path behind the base URL, and the JSON of the body."""

    path: str
    body: dict[str, Any]


def text_request(value: TextInput, model: str, dialect: str, *, usage: bool) -> Request:
    """Return the request for a streamed chat or completion.

    ``usage`` asks for a last chunk with the tokens counted. Raises
    :class:`~blip.errors.UnsupportedField` naming a field that the engine would ignore.
    """
    _check(value, dialect)
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "temperature": value.temperature,
        "top_p": value.top_p,
    }
    if usage:
        body["stream_options"] = {"include_usage": True}
    given = _given(value)
    for field in _SAME:
        if field in given:
            body[field] = given[field]
    for field, names in _EXTENSIONS.items():
        name = names.get(dialect, field)
        if field in given and name is not None:
            body[name] = given[field]
    if value.grammar is not None:
        body |= _form(value.grammar, dialect, chat=isinstance(value, ChatInput))
    if isinstance(value, ChatInput):
        body["messages"] = [_message(message) for message in value.messages]
        if value.tools:
            body |= _tools(value)
        if value.logprobs is not None:
            body["logprobs"] = True
            body["top_logprobs"] = value.logprobs
        return Request("/chat/completions", body)
    assert isinstance(value, CompletionInput)
    body["prompt"] = value.prompt
    if value.echo:
        body["echo"] = True
    if value.logprobs is not None:
        body["logprobs"] = value.logprobs
    return Request("/completions", body)


def _message(message: ChatMessage) -> dict[str, Any]:
    """Return a message; with pictures it becomes parts, the pictures as ``data:`` URLs."""
    plain = message.model_dump(exclude_none=True, exclude={"tool_calls", "pictures"})
    if message.pictures:
        plain["content"] = list(_parts(message))
    if message.tool_calls:
        plain["content"] = plain["content"] or None
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return plain


def _parts(message: ChatMessage) -> Iterator[dict[str, Any]]:
    begun = 0
    for picture in sorted(message.pictures, key=lambda picture: picture.at):
        if text := message.content[begun : picture.at].strip("\n"):
            yield {"type": "text", "text": text}
        header = read_header(picture.data)
        media = f"image/{header.format}" if header is not None else "application/octet-stream"
        url = f"data:{media};base64,{base64.b64encode(picture.data).decode()}"
        yield {"type": "image_url", "image_url": {"url": url}}
        begun = picture.at
    if text := message.content[begun:].strip("\n"):
        yield {"type": "text", "text": text}


def _tools(value: ChatInput) -> dict[str, Any]:
    """Return the fields about tools."""
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in value.tools]}
    if value.tool is not None:
        fields["tool_choice"] = {"type": "function", "function": {"name": value.tool}}
    elif value.tool_choice != "auto":
        fields["tool_choice"] = value.tool_choice
    if not value.parallel_tool_calls:
        fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = (
        json.loads(tool.parameters) if tool.parameters else {"type": "object", "properties": {}}
    )
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _form(grammar: Grammar, dialect: str, *, chat: bool) -> dict[str, Any]:
    """Return the field that asks for a form.

    Raises :class:`~blip.errors.UnsupportedField` for one that the engine is not known to take.
    """
    schema = json.loads(grammar.text) if grammar.form == "json" else None
    if chat and grammar.text == ANY_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if chat and schema is not None:
        named = {"name": "answer", "schema": schema, "strict": grammar.strict}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if dialect not in _STRUCTURED:
        raise UnsupportedField(
            f"'{grammar.at}' cannot be passed on to the engine that runs this model",
            hint="Ask for a JSON schema in a chat, or for a model that a node runs itself.",
            param=grammar.at,
        )
    asked = {
        "json": ("json", schema),
        "regex": ("regex", grammar.text),
        "choice": ("choice", grammar.choices),
        "lark": ("grammar", grammar.text),
    }
    name, form = asked[grammar.form]
    return {"structured_outputs": {name: form}}


def embedding_request(value: EmbeddingInput, model: str) -> Request:
    """Return the request for embeddings, as numbers: not every engine knows base64."""
    body: dict[str, Any] = {"model": model, "input": value.texts, "encoding_format": "float"}
    if value.dimensions is not None:
        body["dimensions"] = value.dimensions
    return Request("/embeddings", body)


def _given(value: TaskInput) -> dict[str, Any]:
    """Return the fields that are not at their defaults."""
    return {
        name: given
        for name, field in type(value).model_fields.items()
        if (given := getattr(value, name)) != field.get_default(call_default_factory=True)
    }


def _check(value: TextInput, dialect: str) -> None:
    known = _OWN | set(_SAME) | set(_EXTENSIONS)
    for name in _given(value):
        if name not in known:
            raise UnsupportedField(
                f"'{name}' cannot be passed on to the engine that runs this model", param=name
            )
        ignored = name in _IGNORED.get(dialect, ())
        if ignored or _EXTENSIONS.get(name, {}).get(dialect, name) is None:
            raise UnsupportedField(
                f"'{name}' has no effect on the engine that runs this model ({dialect})",
                hint="Leave it out, or ask for a model that a node runs itself.",
                param=name,
            )
