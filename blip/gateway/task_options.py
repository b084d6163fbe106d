"""What a client may say about a task beside its input: urgency, deadline, where it may run.

They are headers, not fields of the body: bodies are OpenAI's, and clients of OpenAI can add
headers to a request but seldom fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from multidict import CIMultiDictProxy

from blip.errors import InvalidRequest
from blip.gateway.mesh import Options
from blip.protocol import constraints

PRIORITY = "X-Blip-Priority"
DEADLINE = "X-Blip-Deadline"
REQUIRE = "X-Blip-Require"

#: A task's class where nothing is said: in the middle, so that both more and less can be asked for.
DEFAULT_PRIORITY = 5

_PRIORITY = re.compile(r"[1-9]|10")


class Header(NamedTuple):
    """A header of every route that runs tasks, as the OpenAPI document declares it."""

    name: str
    description: str
    schema: Mapping[str, Any]


HEADERS = (
    Header(
        PRIORITY,
        "1, the most urgent, to 10.",
        {"type": "integer", "minimum": 1, "maximum": 10, "default": DEFAULT_PRIORITY},
    ),
    Header(
        DEADLINE,
        "Seconds from now by which it must be done; what cannot be done by then is refused early.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    Header(
        REQUIRE,
        "What the device must be, such as `vendor=nvidia; memory>=24GiB; label.zone=cellar; "
        "node!=rig-3`, or the same as JSON.",
        {"type": "string"},
    ),
)


def read_options(headers: CIMultiDictProxy[str], tenant: str, request_id: str) -> Options:
    """Return the options of a request's tasks.

    Raises :class:`~blip.errors.InvalidRequest` that names the header.
    """
    if PRIORITY not in headers and DEADLINE not in headers and REQUIRE not in headers:
        return Options(tenant=tenant, request_id=request_id)  # nearly all requests
    return Options(
        tenant=tenant,
        priority=_priority(_text(headers, PRIORITY)),
        deadline=_deadline(_text(headers, DEADLINE)),
        require=read_require(_text(headers, REQUIRE) or ""),
        request_id=request_id,
    )


def read_require(text: str) -> Mapping[str, Any]:
    """Read what the device must be: terms, or a JSON object; "" requires nothing.

    Raises :class:`~blip.errors.InvalidRequest`.
    """
    try:
        if text.lstrip().startswith("{"):
            return constraints.check(_object(text), at=REQUIRE)
        return constraints.parse(text, at=REQUIRE)
    except InvalidRequest as error:
        error.param = REQUIRE  # the message names the term
        raise


def _text(headers: CIMultiDictProxy[str], name: str) -> str | None:
    """Return a header's value; lines of one name are one list, as HTTP has it."""
    values = headers.getall(name, ())
    # what was not UTF-8 stands in it as surrogates, which no answer could repeat
    raw = ", ".join(values).encode(errors="surrogateescape")
    return raw.decode(errors="replace") if values else None


def _priority(text: str | None) -> int:
    if text is None:
        return DEFAULT_PRIORITY
    if not _PRIORITY.fullmatch(text.strip()):
        raise InvalidRequest(
            f"'{PRIORITY}' must be a whole number from 1, the most urgent, to 10.", param=PRIORITY
        )
    return int(text)


def _deadline(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            f"'{DEADLINE}' must be a number of seconds above 0, counted from now.", param=DEADLINE
        )
    return seconds


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{REQUIRE}' begins like JSON, but is not a JSON object.")
    return value
