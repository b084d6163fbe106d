"""Functions that a model may call, and its calls of them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from blip.kinds.base import TaskInput

#: Functions of one request; OpenAI's limit. Every prompt repeats all of them.
MAX_TOOLS = 128

#: What functions may be called: what OpenAI and Anthropic both take, and what no format of a model
#: could mistake for its own markers.
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Tool(TaskInput):
    """A function. ``parameters`` is the JSON Schema of its arguments as JSON text, "" for none.

    As text it keeps the order of its fields and numbers of any size. Keywords that cannot be
    enforced are an error if ``strict``, and ignored otherwise. ``at`` is where the request's field
    stands, for errors.
    """

    name: ToolName
    description: str = ""
    parameters: str = ""
    strict: bool = False
    at: str = "tools"


class ToolCall(TaskInput):
    """A call that a model made earlier in the conversation; ``arguments`` are JSON text."""

    id: str
    name: str
    arguments: str


class CallPiece(NamedTuple):
    """What is new in a call, the ``number``-th of its answer from 0 on.

    Its first piece has the function's ``name``, later ones have none. The ``arguments`` of all
    pieces, one behind the other, are the call's arguments as JSON text.
    """

    number: int
    name: str
    arguments: str


def joined(pieces: list[CallPiece]) -> list[CallPiece]:
    """Return one piece a call, with all of its arguments."""
    calls: dict[int, tuple[str, list[str]]] = {}
    for piece in pieces:
        name, texts = calls.get(piece.number, ("", []))
        calls[piece.number] = (name or piece.name, texts)
        texts.append(piece.arguments)
    return [CallPiece(number, name, "".join(texts)) for number, (name, texts) in calls.items()]
