"""What a task can ask for. One module a kind; :data:`KINDS` is the registry.

A kind owns the shape of its input (a pydantic model, validated at the gateway and again on the
node), what travels back, and how much *work* a task is: ``units`` are what the broker's learned
rates count in.
"""

from __future__ import annotations

from blip.kinds.base import Kind, TaskInput, input_from_wire, input_to_wire
from blip.kinds.chat import CHAT
from blip.kinds.completion import COMPLETION
from blip.kinds.echo import ECHO
from blip.kinds.embedding import EMBEDDING
from blip.kinds.image import IMAGE
from blip.kinds.moderation import MODERATION

#: Every built-in kind by name.
KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (CHAT, COMPLETION, EMBEDDING, IMAGE, MODERATION, ECHO)
}

__all__ = ["KINDS", "Kind", "TaskInput", "input_from_wire", "input_to_wire"]
