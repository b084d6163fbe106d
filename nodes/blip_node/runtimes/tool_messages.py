"""Conversations with functions in them, as a model's chat template takes them. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from blip.errors import InvalidRequest
from blip.kinds.chat import ChatInput
from blip.kinds.tools import Tool, ToolCall
from blip_node.runtimes.tool_formats import ToolFormat

#: What a model is told whose template has no words for it. These are the words of Qwen's and
#: Hermes' templates, so that relatives of theirs recognise them.
_INTRODUCTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

Message = dict[str, Any]


def templated(value: ChatInput, form: ToolFormat | None) -> tuple[list[Message], list[Any] | None]:
    """Return messages and tools for a chat template.

    Those of a ``form`` get both as transformers documents them. Without one everything is written
    into messages of the roles that every template knows.
    """
    if form is None:
        return _spelled(value), None
    names = {call.id: call.name for message in value.messages for call in message.tool_calls}
    messages: list[Message] = []
    for message in value.messages:
        plain = message.model_dump(
            exclude_none=True, exclude={"tool_calls", "tool_call_id", "pictures"}
        )
        if message.tool_calls:
            plain["tool_calls"] = [_call(call, form) for call in message.tool_calls]
        if message.tool_call_id is not None:
            plain["tool_call_id"] = _id(message.tool_call_id, form)
            plain.setdefault("name", names.get(message.tool_call_id, ""))
        messages.append(plain)
    return messages, [_described(tool) for tool in value.tools] or None


def _call(call: ToolCall, form: ToolFormat) -> Message:
    function = {"name": call.name, "arguments": _arguments(call.arguments)}
    return {"id": _id(call.id, form), "type": "function", "function": function}


def _arguments(text: str) -> Any:
    """Return arguments as an object, which templates write as JSON; what is none stays a text."""
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def _id(given: str, form: ToolFormat) -> str:
    """Return an id as the form has it; the same for a call and for what came of it."""
    if not form.short_ids:
        return given
    return hashlib.blake2b(given.encode(), digest_size=8).hexdigest()[:9]


def _described(tool: Tool) -> Message:
    try:
        parameters = json.loads(tool.parameters or "{}")
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{tool.at}' is not valid JSON", param=tool.at) from None
    if not parameters:
        parameters = {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _spelled(value: ChatInput) -> list[Message]:
    """Return the messages with functions, calls and results spelled out in the Hermes form."""
    messages: list[Message] = []
    for message in value.messages:
        hidden = {"tool_calls", "tool_call_id", "pictures"}
        plain = message.model_dump(exclude_none=True, exclude=hidden)
        if message.tool_calls:
            calls = (
                json.dumps({"name": call.name, "arguments": _arguments(call.arguments)})
                for call in message.tool_calls
            )
            written = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
            plain["content"] = f"{message.content}\n{written}".lstrip("\n")
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if messages and messages[-1].get("results"):
                messages[-1]["content"] += f"\n{result}"
                continue
            plain = {"role": "user", "content": result, "results": True}
        messages.append(plain)
    for each in messages:
        each.pop("results", None)
    if value.tools:
        listed = "\n".join(json.dumps(_described(tool), ensure_ascii=False) for tool in value.tools)
        told = _INTRODUCTION.format(tools=listed)
        if messages[0]["role"] in ("system", "developer"):
            messages[0]["content"] = f"{messages[0]['content']}\n\n{told}"
        else:
            messages.insert(0, {"role": "system", "content": told})
    return messages
