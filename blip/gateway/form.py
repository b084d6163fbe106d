"""Request bodies with files in them: ``multipart/form-data`` (RFC 7578), as browsers send it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from aiohttp import BodyPartReader, web
from pydantic import GetJsonSchemaHandler, PrivateAttr, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, from_json

from blip.errors import InvalidRequest
from blip.gateway.body import check_length, explain, parse_body, read_bytes, too_large
from blip.gateway.envelope import UnsupportedMediaType
from blip.gateway.fields import Request
from blip.gateway.upload import decode_file

FormT = TypeVar("FormT", bound="FormRequest")

#: Parts of one form; a request has some twenty fields, and a part costs headers to parse.
MAX_PARTS = 64

#: Bytes of one field that is not a file: OpenAI's longest prompt, in the longest UTF-8.
MAX_FIELD_BYTES = 4 * 32_000


@dataclass(frozen=True, slots=True)
class File:
    """A file that a form may carry, at most one of each name."""

    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """Words that a form may carry several of, each a field of the same name."""

    description: str
    values: tuple[str, ...]


class FormRequest(Request):
    """A form: fields as in JSON, written out as text, lists of words, and files."""

    media: ClassVar[str] = "multipart/form-data"
    files: ClassVar[Mapping[str, File]] = {}
    lists: ClassVar[Mapping[str, Choices]] = {}
    #: Fields that are objects: in a form they are JSON text.
    objects: ClassVar[frozenset[str]] = frozenset()
    #: Whether it may be sent as JSON as well, with files in base64 or as ``data:`` URLs, bare or as
    #: OpenAI's ``{"image_url": ...}``.
    json_too: ClassVar[bool] = False

    _uploads: dict[str, bytes] = PrivateAttr(default_factory=dict)
    _chosen: dict[str, list[str]] = PrivateAttr(default_factory=dict)

    def upload(self, name: str) -> bytes | None:
        """Return the content of a file, None where none was sent."""
        return self._uploads.get(name)

    def chosen(self, name: str) -> list[str]:
        """Return the words of a list, none where none was sent."""
        return self._chosen.get(name, [])

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the files and the lists to the fields."""
        found = handler.resolve_ref_schema(handler(schema))
        properties = found.setdefault("properties", {})
        for name, file in cls.files.items():
            properties[name] = {
                "type": "string",
                "format": "binary",
                "contentMediaType": "application/octet-stream",
                "description": file.description,
            }
        for name, choices in cls.lists.items():
            properties[name] = {
                "type": "array",
                "items": {"type": "string", "enum": list(choices.values)},
                "description": choices.description,
            }
        required = [name for name, file in cls.files.items() if file.required]
        found["required"] = [*found.get("required", ()), *required]
        return found


async def read_form(request: web.Request, model: type[FormT], limit: int) -> FormT:
    """Read, parse and check the form in ``request``; ``limit`` is in bytes, of all of it.

    Raises :class:`~blip.errors.InvalidRequest` and its kin, naming the field.
    """
    if model.json_too and request.content_type == "application/json":
        return await _read_json(request, model, limit)
    if request.content_type != "multipart/form-data":
        raise UnsupportedMediaType(
            f"The body is declared as {request.content_type}; this route takes "
            "multipart/form-data.",
            hint="With curl: -F model=... -F NAME=@PATH, and no Content-Type of your own.",
        )
    check_length(request, limit)
    try:
        fields, uploads, chosen = await _read_parts(request, model, limit)
    except (ValueError, AssertionError, web.RequestPayloadError) as error:
        # aiohttp raises these for boundaries and headers that are none
        raise InvalidRequest(f"The form could not be read: {error}.") from None
    body = _parse(fields, uploads, model)
    body._chosen = chosen
    body.check()
    return body


async def _read_parts(
    request: web.Request, model: type[FormRequest], limit: int
) -> tuple[dict[str, str], dict[str, bytes], dict[str, list[str]]]:
    fields: dict[str, str] = {}
    chosen: dict[str, list[str]] = {}
    uploads: dict[str, bytes] = {}
    left = limit
    reader = await request.multipart()
    count = 0
    while (part := await reader.next()) is not None:
        count += 1
        if count > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        name = part.name if isinstance(part, BodyPartReader) else None
        if not isinstance(part, BodyPartReader) or not name:
            raise InvalidRequest("The form has a part without a name.")
        name = name.removesuffix("[]")  # how OpenAI's clients write lists
        is_file = name in model.files
        data = await _read_part(part, left, limit)
        left -= len(data)
        if name in model.refused and name in fields:
            continue  # what it is refused for is said of the first
        if name in fields or name in uploads:
            raise InvalidRequest(
                f"'{name}' was sent more than once; one is all that this route takes.", param=name
            )
        if is_file:
            uploads[name] = data
        elif len(data) > MAX_FIELD_BYTES:
            raise InvalidRequest(f"'{name}' is longer than {MAX_FIELD_BYTES} bytes.", param=name)
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                raise InvalidRequest(f"'{name}' is not UTF-8 text.", param=name) from None
            if name in model.lists:
                chosen.setdefault(name, []).append(_word(name, text, model.lists[name]))
            else:
                fields[name] = text
    return fields, uploads, chosen


def _word(name: str, text: str, choices: Choices) -> str:
    if text not in choices.values:
        raise InvalidRequest(
            f"'{name}': {text[:100]!r} is not one of {', '.join(choices.values)}.", param=name
        )
    return text


async def _read_part(part: BodyPartReader, left: int, limit: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(64 * 1024):
        data += chunk
        if len(data) > left:
            raise too_large(limit)
    return bytes(data)


def _parse(fields: dict[str, str], uploads: dict[str, bytes], model: type[FormT]) -> FormT:
    # a browser sends every field of a page, empty where nothing was entered
    given: dict[str, Any] = {name: text for name, text in fields.items() if text}
    objects = {name: _strings(name, given[name]) for name in model.objects & given.keys()}
    try:
        body = model.model_validate_strings(given | objects)
    except ValidationError as error:
        said = {name: _unpacked(text) for name, text in given.items()}
        raise explain(error, model, json.dumps(said).encode()) from None
    _check_required(model, uploads)
    body._uploads = uploads
    return body


async def _read_json(request: web.Request, model: type[FormT], limit: int) -> FormT:
    try:
        document = from_json(await read_bytes(request, limit))
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The body is not a JSON object.")
    uploads = {}
    for name in model.files:
        content = document.pop(name, None)
        if content is None:
            continue
        if isinstance(content, dict) and "image_url" in content:
            content = content["image_url"]
        if not isinstance(content, str):
            raise InvalidRequest(f"'{name}' is not base64: it is not a string.", param=name)
        uploads[name] = decode_file(content, name)
    _check_required(model, uploads)
    body = parse_body(json.dumps(document).encode(), model)
    body._uploads = uploads
    body.check()
    return body


def _check_required(model: type[FormRequest], uploads: Mapping[str, bytes]) -> None:
    for name, file in model.files.items():
        if file.required and name not in uploads:
            raise InvalidRequest(
                f"'{name}' is missing.", hint=f"Send a file: -F {name}=@PATH", param=name
            )


def _strings(name: str, text: str) -> dict[str, str]:
    """Return an object's fields as a form would have each of them; null is not there."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{name}' is not valid JSON: {error}.", param=name) from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"'{name}' is not a JSON object.", param=name)
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in fields.items()
        if value is not None
    }


def _unpacked(text: str) -> Any:
    """Return what a field holds if it is JSON of several values, else its text."""
    if text.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.loads(text)
    return text
