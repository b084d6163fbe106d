"""Operations: what the gateway offers, declared once, served and described from there."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

import blip
from blip.errors import (
    BlipError,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedField,
)
from blip.gateway.dialect import OPENAI, Dialect
from blip.gateway.envelope import ErrorEnvelope, UnsupportedMediaType
from blip.gateway.fields import Request
from blip.gateway.task_options import HEADERS

#: Called with the exchange, and with the body where the operation has one.
OperationHandler = Callable[..., Awaitable[web.StreamResponse]]

_PATH_FIELD = re.compile(r"{(\w+)(?::[^}]*)?}")
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. The handler's docstring is its description."""

    method: str
    #: As aiohttp's router takes it.
    path: str
    handler: OperationHandler
    summary: str
    tag: str
    body: type[Request] | None = None
    #: The JSON body of a 200, or of another status where one is named.
    answer: type[BaseModel] | None = None
    answers: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    #: What else a 200 may be, by media type, with a sentence about it.
    media: Mapping[str, str] = field(default_factory=dict)
    #: What each event of a stream is, where the operation can stream.
    event: type[BaseModel] | None = None
    errors: tuple[type[BlipError], ...] = ()
    #: What the query may say: the JSON schema of each parameter, with its description.
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Whether it needs no API key.
    public: bool = False
    #: Whether it runs tasks, and so takes the headers of :mod:`blip.gateway.task_options`.
    task: bool = False
    #: A body to try.
    example: Mapping[str, Any] | None = None
    dialect: Dialect = OPENAI

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it; also its name in metrics."""
        return _PATH_FIELD.sub(r"{\1}", self.path)

    @property
    def all_errors(self) -> list[type[BlipError]]:
        """The errors of this operation: its own, and those that come with a key or a body."""
        found = [*self.errors, InternalError]
        if not self.public:
            found.append(Unauthorized)
        if self.body is not None:
            found += [InvalidRequest, UnsupportedField, UnsupportedMediaType, PayloadTooLarge]
        return sorted(set(found), key=lambda error: (error.status, error.code))


class Api:
    """All operations of a gateway. ``secured`` says whether keys are asked for."""

    def __init__(self, operations: tuple[Operation, ...], *, secured: bool) -> None:
        self.operations = operations
        self.secured = secured

    @cached_property
    def document(self) -> dict[str, Any]:
        """The OpenAPI 3.1 document."""
        schemas, definitions = models_json_schema(_models(self.operations), ref_template=_REF)
        refs = {model.__name__: schema for (model, _), schema in schemas.items()}
        paths: dict[str, dict[str, Any]] = {}
        for operation in self.operations:
            path = paths.setdefault(operation.template, {})
            path[operation.method.lower()] = self._describe(operation, refs)
        components: dict[str, Any] = {"schemas": definitions["$defs"]}
        if self.secured:
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "x_api_key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "The same key, as Anthropic's clients send it.",
                },
            }
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "blip",
                "version": blip.__version__,
                "description": "A mesh of machines behind OpenAI's API.",
            },
            "paths": paths,
            "components": components,
        }

    @cached_property
    def text(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.document).encode()

    def _describe(self, operation: Operation, refs: Mapping[str, Any]) -> dict[str, Any]:
        words = re.sub(r"[^a-z0-9]+", "_", operation.template)
        described: dict[str, Any] = {
            "operationId": (operation.method.lower() + words).rstrip("_"),
            "summary": operation.summary,
            "description": " ".join((operation.handler.__doc__ or "").split()),
            "tags": [operation.tag],
            "responses": _responses(operation, refs),
        }
        parameters = _parameters(operation)
        if parameters:
            described["parameters"] = parameters
        if operation.body is not None:
            content = {"schema": refs[operation.body.__name__], "example": operation.example}
            medias = {operation.body.media: content}
            if getattr(operation.body, "json_too", False):
                medias["application/json"] = {"schema": content["schema"]}
            described["requestBody"] = {"required": True, "content": medias}
        if self.secured and not operation.public:
            described["security"] = [{"key": []}, {"x_api_key": []}]
        return described


def _models(
    operations: tuple[Operation, ...],
) -> list[tuple[type[BaseModel], JsonSchemaMode]]:
    found: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {
        (ErrorEnvelope, "serialization"): None
    }
    for operation in operations:
        found[operation.dialect.envelope, "serialization"] = None
        if operation.body is not None:
            found[operation.body, "validation"] = None
        for model in (operation.answer, operation.event, *operation.answers.values()):
            if model is not None:
                found[model, "serialization"] = None
    return list(found)


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_FIELD.findall(operation.path)
    ]
    found += [
        {"name": name, "in": "query", "required": False, "schema": dict(schema)}
        for name, schema in operation.query.items()
    ]
    if operation.task:
        found += [
            {
                "name": header.name,
                "in": "header",
                "required": False,
                "description": header.description,
                "schema": dict(header.schema),
            }
            for header in HEADERS
        ]
    return found


def _responses(operation: Operation, refs: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        media: {"schema": {"type": "string", "description": text}}
        for media, text in operation.media.items()
    }
    if operation.answer is not None:
        content["application/json"] = {"schema": refs[operation.answer.__name__]}
    if operation.event is not None:
        content[operation.dialect.media] = {
            "schema": {
                "type": "string",
                "description": operation.dialect.streams,
                "contentMediaType": "application/json",
                "contentSchema": refs[operation.event.__name__],
            }
        }
    responses: dict[str, Any] = {"200": {"description": "It worked.", "content": content}}
    for status, model in operation.answers.items():
        responses[str(status)] = {
            "description": (model.__doc__ or "").split("\n", maxsplit=1)[0],
            "content": {"application/json": {"schema": refs[model.__name__]}},
        }
    envelope = refs[operation.dialect.envelope.__name__]
    for error in operation.all_errors:
        line = f"`{error.code}`: {(error.__doc__ or '').splitlines()[0]}"
        entry = responses.setdefault(
            str(error.status),
            {
                "description": "",
                "content": {"application/json": {"schema": envelope}},
            },
        )
        entry["description"] = f"{entry['description']}\n\n{line}".strip()
    return responses
