"""From the bytes of a request to a checked object, with errors a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from blip.errors import InvalidRequest, PayloadTooLarge
from blip.gateway.envelope import UnsupportedMediaType
from blip.gateway.fields import Request

RequestT = TypeVar("RequestT", bound=Request)
Path = list[str | int]

_FORM = "application/x-www-form-urlencoded"


async def read_body(request: web.Request, model: type[RequestT], limit: int) -> RequestT:
    """Read, parse and check the body of ``request``; ``limit`` is in bytes.

    Raises :class:`~blip.errors.InvalidRequest` and its kin, naming the line or the field.
    """
    declared = request.headers.get("Content-Type")
    if declared is not None and declared != "application/json":
        _check_type(request)
    return parse_body(await read_bytes(request, limit), model)


async def read_bytes(request: web.Request, limit: int) -> bytes:
    """Return all of a body. Raises :class:`~blip.errors.PayloadTooLarge` or ``InvalidRequest``."""
    check_length(request, limit)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit) from None
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"The body could not be read: {error}.") from None


def parse_body(data: bytes, model: type[RequestT]) -> RequestT:
    """Parse and check a body. Raises :class:`~blip.errors.InvalidRequest`, never anything else."""
    if not data:
        raise InvalidRequest(
            "The body is empty; this route takes a JSON object.", hint="GET /docs shows examples."
        )
    try:
        body = model.model_validate_json(data)
    except ValidationError as error:
        raise explain(error, model, data) from None
    body.check()
    return body


def check_length(request: web.Request, limit: int) -> None:
    """Raise :class:`~blip.errors.PayloadTooLarge` if the body says that it is over ``limit``."""
    length = request.content_length
    if length is not None and length > limit:
        raise too_large(limit)


def too_large(limit: int) -> PayloadTooLarge:
    """Return the error for a body over ``limit`` bytes."""
    return PayloadTooLarge(
        f"The body is larger than {limit} bytes, which is what this gateway takes.",
        hint="Send less at once, or raise the gateway's body limit.",
        details={"limit": limit},
    )


def _check_type(request: web.Request) -> None:
    kind = request.content_type
    if kind == "application/json" or kind.endswith("+json"):
        charset = request.charset
        if charset is not None and charset.lower() not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMediaType(f"The body is declared as {charset}; JSON is UTF-8.")
        return
    hint = "Send the header 'Content-Type: application/json'."
    if kind == _FORM:
        hint = (
            "`curl -d` declares a form unless told otherwise: "
            "add -H 'Content-Type: application/json', or use `curl --json`."
        )
    raise UnsupportedMediaType(f"The body is declared as {kind}; this route takes JSON.", hint=hint)


# --- explaining ------------------------------------------------------------------------------


def explain(error: ValidationError, model: type[Request], data: bytes) -> InvalidRequest:
    """Turn pydantic's findings about ``data`` into one sentence about the most telling of them."""
    findings = error.errors(include_url=False, include_input=False)
    first = findings[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(
            f"The body is not valid JSON: {first['ctx']['error']}.",
            hint="Check quotes, commas and escapes at that position.",
        )
    document = from_json(data)
    for finding in findings:
        if finding["type"] == "extra_forbidden":
            return _unknown_field(_path(finding, document), model)
    group = list(_same_union(findings, document))
    # a branch of the right type that breaks a rule was meant rather than one of another type
    meant = [finding for finding in group if not finding["type"].endswith("_type")] or group
    path = max((_path(finding, document) for finding in meant), key=len)
    messages = [finding["msg"] for finding in meant if _path(finding, document) == path]
    text = _either(messages)
    where = _dotted(path)
    if not where:
        return InvalidRequest(f"The body: {text}.")
    return InvalidRequest(f"'{where}': {text}.", param=where)


def _unknown_field(path: Path, model: type[Request]) -> InvalidRequest:
    schema = model.model_json_schema()
    objects = [schema] if len(path) == 1 else schema.get("$defs", {}).values()
    known = sorted({name for each in objects for name in each.get("properties", ())})
    where = _dotted(path)
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "Leave it out; GET /docs lists the fields."
    return InvalidRequest(f"'{where}' is not a field of this request.", hint=hint, param=where)


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def _path(finding: ErrorDetails, document: Any) -> Path:
    """Return where in the document it is: ``loc`` without pydantic's names of union branches."""
    path: Path = []
    here = document
    for part in finding["loc"]:
        if isinstance(here, dict):
            inside = part in here
        else:
            inside = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if not inside:
            continue
        here = here[part]
        path.append(part)
    if finding["type"] == "missing":
        path.append(finding["loc"][-1])
    return path


def _same_union(findings: list[ErrorDetails], document: Any) -> Iterator[ErrorDetails]:
    """Yield the first finding and its siblings in other branches of the same union."""
    first = findings[0]
    yield first
    path = _path(first, document)
    shared = 0
    while shared < len(path) and first["loc"][shared] == path[shared]:
        shared += 1
    if shared < len(first["loc"]):  # what follows is the name of a branch
        for finding in findings[1:]:
            if finding["loc"][:shared] == first["loc"][:shared]:
                yield finding


def _either(messages: list[str]) -> str:
    """Join "Input should be a" and "Input should be b" to "Input should be a or b"."""
    start = "Input should be "
    unique = list(dict.fromkeys(messages))
    if len(unique) > 1 and all(message.startswith(start) for message in unique):
        return start + " or ".join(message.removeprefix(start) for message in unique)
    return unique[0]
