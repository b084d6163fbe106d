"""What every kind of task has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

from blip.errors import InvalidRequest


class TaskInput(BaseModel):
    """The input of a task, as it travels to the node. Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of task.

    ``units`` estimates the work of an input before it runs, in a unit of the kind's own choosing
    (tokens, texts, ...); only ratios within one kind and model matter, since the broker learns
    seconds per unit for each (model, device). ``resumable`` says that a half-delivered answer can
    be continued on another node without doubling anything: text from all of its parts, another
    kind by its ``resume``, which makes of an input and the last part that was delivered the input
    of the rest, or None if that cannot be.
    """

    name: str
    input: type[TaskInput]
    units: Callable[[Any], float]
    resumable: bool = False
    resume: Callable[[Any, bytes | memoryview], TaskInput | None] | None = None


def input_to_wire(value: TaskInput) -> bytes:
    """Encode an input for a SUBMIT payload; fields at their defaults stay home."""
    packed: bytes = msgpack.packb(value.model_dump(exclude_defaults=True))
    return packed


def input_from_wire(kind: Kind, payload: bytes | memoryview) -> Any:
    """Decode and validate a SUBMIT payload.

    Raises :class:`~blip.errors.InvalidRequest` naming the field, never anything else.
    """
    try:
        # maps keyed by numbers are meant: a logit_bias is keyed by token ids
        return kind.input.model_validate(msgpack.unpackb(payload, strict_map_key=False))
    except ValidationError as error:
        raise invalid_request(error) from None
    except Exception:
        # msgpack raises half a dozen unrelated types on hostile bytes
        raise InvalidRequest(f"the {kind.name} input is not valid msgpack") from None


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's first complaint into a sentence that names the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    where = f"'{param}': " if param else ""
    return InvalidRequest(f"{where}{first['msg']}", param=param)
