"""What a caller may say about a task beside its input. Pure: keyword arguments in, headers out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blip.errors import InvalidRequest
from blip.protocol import constraints

#: What the device must be: a map, or text as on the command line.
Require = Mapping[str, Any] | str


def task_headers(
    priority: int | None, deadline: float | None, require: Require | None
) -> dict[str, str]:
    """Return the headers that say it; none for what is None.

    Raises :class:`~blip.errors.InvalidRequest` for a requirement that cannot be.
    """
    headers = {}
    if priority is not None:
        headers["X-Blip-Priority"] = str(priority)
    if deadline is not None:
        headers["X-Blip-Deadline"] = str(deadline)
    if require:
        checked = (
            constraints.parse(require) if isinstance(require, str) else constraints.check(require)
        )
        # as JSON: it has no characters that a header could not carry
        headers["X-Blip-Require"] = json.dumps(checked, separators=(",", ":"))
    return headers


def refuse_addresses(options: Mapping[str, Any]) -> None:
    """Raise :class:`~blip.errors.InvalidRequest` for a wish to have the address of a picture."""
    if options.get("response_format") not in (None, "b64_json"):
        raise InvalidRequest(
            "pictures come as the bytes of their files here",
            hint="Ask the route itself for addresses.",
            param="response_format",
        )
