"""Functions in requests and their calls in answers, as OpenAI's chat has them; and what all
dialects check and name alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Ignored, Request
from blip.gateway.parts import Typed
from blip.kinds.tools import MAX_TOOLS, CallPiece, Tool, ToolCall, ToolName, joined

Mode = Literal["none", "auto", "required"]


class Choice(NamedTuple):
    """Which functions a model may or must call; ``name`` for just one."""

    mode: Mode = "auto"
    name: str | None = None


#: Nothing said: what OpenAI does then.
ANY = Choice()


def tool_of(
    name: str,
    description: str | None,
    parameters: dict[str, Any] | None,
    at: str,
    *,
    strict: bool | None = False,
) -> Tool:
    """Return a function; ``at`` is where the schema of its arguments stands in the body."""
    return Tool(
        name=name,
        description=description or "",
        parameters=json.dumps(parameters) if parameters else "",
        strict=bool(strict),
        at=at,
    )


def tool_fields(
    tools: Sequence[Tool], choice: Choice, parallel: bool | None, at: str = "tool_choice"
) -> dict[str, Any]:
    """Return the fields of a :class:`~blip.kinds.chat.ChatInput` about tools.

    ``at`` is where the choice stands in the body. Raises :class:`~blip.errors.InvalidRequest` for
    a choice without such tools, and for two tools of one name.
    """
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"'tools': two are called '{name}'.", param=f"tools.{index}")
    if choice.name is not None and choice.name not in names:
        raise InvalidRequest(f"'{at}': there is no tool '{choice.name}'.", param=at)
    if choice.mode == "required" and not tools:
        raise InvalidRequest(f"'{at}' requires a call, and there are no tools.", param=at)
    if choice.mode == "none" or not tools:
        return {}
    fields: dict[str, Any] = {"tools": list(tools)}
    if choice.name is not None:
        fields["tool"] = choice.name
    elif choice.mode == "required":
        fields["tool_choice"] = "required"
    if parallel is False:
        fields["parallel_tool_calls"] = False
    return fields


def call_id(task_id: str, number: int, prefix: str = "call") -> str:
    """Return the id of a call: the same on whichever node the task goes on."""
    return f"{prefix}_{task_id}{number}"


# --- OpenAI's chat ---------------------------------------------------------------------------


class FunctionDefinition(Request):
    """A function that may be called."""

    name: ToolName
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """The JSON Schema of its arguments; none without it."""
    strict: bool | None = None
    """Whether keywords that cannot be enforced are an error; otherwise they are ignored."""


class ToolDefinition(Typed):
    """Something that the model may call."""

    noun: ClassVar[str] = "tools"
    hint: ClassVar[str] = "Describe a function."

    type: str
    """function, the only type that is supported."""
    function: FunctionDefinition | None = None

    def plain(self, at: str) -> Tool:
        """Return it as models get it; ``at`` is where it stands in the body, ending in a dot."""
        if self.type != "function":
            self.refuse_type(self.type, at)
        self.check(at)
        given = self.function
        if given is None:
            raise InvalidRequest(f"'{at}function' is missing.", param=at + "function")
        where = f"{at}function.parameters"
        return tool_of(given.name, given.description, given.parameters, where, strict=given.strict)


Tools = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)]


class NamedFunction(Request):
    """A function by its name."""

    name: str


class ToolChoice(Typed):
    """The function that must be called."""

    noun: ClassVar[str] = "choices"
    hint: ClassVar[str] = "Name a function, or send none, auto or required."

    type: str
    """function, the only type that is supported."""
    function: NamedFunction | None = None

    def plain(self, at: str) -> Choice:
        """Return the choice; ``at`` is where it stands in the body, ending in a dot."""
        if self.type != "function":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.function is None:
            raise InvalidRequest(f"'{at}function' is missing.", param=at + "function")
        return Choice("required", self.function.name)


def choice_of(given: Mode | ToolChoice | None, at: str = "tool_choice.") -> Choice:
    """Return what a ``tool_choice`` says."""
    if given is None:
        return ANY
    return Choice(given) if isinstance(given, str) else given.plain(at)


class CalledFunction(Request):
    """What was called."""

    name: str
    arguments: str
    """As JSON text."""


class CallParam(Typed):
    """A call in an earlier message of the assistant."""

    noun: ClassVar[str] = "calls"
    hint: ClassVar[str] = "Send calls of functions only."

    id: str
    type: str = "function"
    """function, the only type that is supported."""
    function: CalledFunction | None = None
    index: Annotated[Any, Ignored()] = None

    def plain(self, at: str) -> ToolCall:
        """Return it as models get it; ``at`` is where it stands in the body, ending in a dot."""
        if self.type != "function":
            self.refuse_type(self.type, at)
        self.check(at)
        if self.function is None:
            raise InvalidRequest(f"'{at}function' is missing.", param=at + "function")
        return ToolCall(id=self.id, name=self.function.name, arguments=self.function.arguments)


class AnswerFunction(BaseModel):
    """What is called; ``arguments`` are JSON text, in a stream a piece of it."""

    name: str | None = None
    arguments: str


class AnswerCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunction


class AnswerCallPiece(BaseModel):
    """A piece of a call in a stream; the first has id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: AnswerFunction


def answer_calls(task_id: str, pieces: list[CallPiece]) -> list[AnswerCall]:
    """Return the calls of an answer in OpenAI's shape."""
    return [
        AnswerCall(
            id=call_id(task_id, call.number),
            function=AnswerFunction(name=call.name, arguments=call.arguments),
        )
        for call in joined(pieces)
    ]


def piece_json(task_id: str, piece: CallPiece) -> str:
    """Return a piece of a call in OpenAI's shape, as JSON text."""
    if not piece.name:
        return AnswerCallPiece(
            index=piece.number, function=AnswerFunction(arguments=piece.arguments)
        ).model_dump_json(exclude_none=True)
    return AnswerCallPiece(
        index=piece.number,
        id=call_id(task_id, piece.number),
        type="function",
        function=AnswerFunction(name=piece.name, arguments=piece.arguments),
    ).model_dump_json(exclude_none=True)
