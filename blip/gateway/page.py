"""The page at ``/docs``: the API for people, rendered here, without a script or another host."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from typing import Any

from blip.gateway.api import Api, Operation
from blip.gateway.fields import Request
from blip.gateway.form import FormRequest

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --ok: #2a7; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); text-transform: capitalize; }
h3 { margin-top: 2rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; }
.method { color: var(--ok); font-weight: bold; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); white-space: pre-line; }
summary { cursor: pointer; margin: .5rem 0; }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: Nothing from elsewhere, no script at all, and only this page's own style.
CONTENT_POLICY = f"default-src 'self'; script-src 'none'; style-src 'sha256-{_STYLE_HASH}'"


def render(api: Api, origin: str) -> str:
    """Return the page; ``origin`` is where the reader found the gateway, for the examples."""
    document = api.document
    schemas = document["components"]["schemas"]
    sections = []
    operations = sorted(api.operations, key=lambda operation: _TAGS.index(operation.tag))
    for tag, group in groupby(operations, key=lambda operation: operation.tag):
        sections.append(f"<h2>{escape(tag)}</h2>")
        for operation in group:
            described = document["paths"][operation.template][operation.method.lower()]
            sections.append(_section(operation, described, schemas, origin, api.secured))
    key = "Requests carry <code>Authorization: Bearer &lt;key&gt;</code>. " if api.secured else ""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>blip {document['info']['version']}</title><style>{_STYLE}</style></head><body>"
        f"<h1>blip</h1><p>{escape(document['info']['description'])} {key}"
        "Any OpenAI client works: its base URL is "
        f"<code>{escape(origin)}/v1</code>. "
        "<a href='/openapi.json'>OpenAPI document</a>.</p>"
        f"{''.join(sections)}</body></html>"
    )


_TAGS = (
    "text",
    "images",
    "audio",
    "vision",
    "video",
    "pipelines",
    "safety",
    "kinds",
    "anthropic",
    "ollama",
    "bitinglip",
    "mesh",
    "health",
    "about",
)


def _section(
    operation: Operation,
    described: Mapping[str, Any],
    schemas: Mapping[str, Any],
    origin: str,
    secured: bool,
) -> str:
    parts = [
        f"<h3><span class=method>{operation.method}</span> "
        f"<code>{escape(operation.template)}</code></h3>",
        f"<p>{escape(described['description'])}</p>",
        f"<pre>{escape(curl(operation, origin, secured=secured))}</pre>",
    ]
    if operation.body is not None:
        rows = "".join(_field_rows(schemas[operation.body.__name__], schemas))
        parts.append(
            "<details><summary>Fields</summary><table><tr><th>Field<th>Type<th></tr>"
            f"{rows}</table></details>"
        )
    headers = [each for each in described.get("parameters", ()) if each["in"] == "header"]
    if headers:
        rows = "".join(
            f"<tr><td><code>{escape(each['name'])}</code><td>{escape(_type(each['schema']))}"
            f"<td>{escape(each['description'])}"
            for each in headers
        )
        parts.append(
            "<details><summary>Headers</summary><table><tr><th>Header<th>Type<th></tr>"
            f"{rows}</table></details>"
        )
    rows = "".join(
        f"<tr><td>{status}<td>{escape(answer['description'])}"
        for status, answer in sorted(described["responses"].items())
    )
    parts.append(
        f"<details><summary>Answers</summary><table><tr><th>Status<th></tr>{rows}</table></details>"
    )
    return "".join(parts)


def curl(operation: Operation, origin: str, *, secured: bool) -> str:
    """Return a command that tries the operation."""
    words = ["curl", shlex.quote(origin + operation.template)]
    if secured and not operation.public:
        words.append('-H "Authorization: Bearer $BLIP_API_KEY"')
    if operation.example is not None and issubclass(operation.body or Request, FormRequest):
        words += (f"-F {shlex.quote(f'{key}={each}')}" for key, each in operation.example.items())
    elif operation.example is not None:
        words.append(f"--json {shlex.quote(json.dumps(operation.example))}")
    return " \\\n  ".join([" ".join(words[:2]), *words[2:]])


def _field_rows(
    schema: Mapping[str, Any], schemas: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        note = field.get("description", "")
        if name in required:
            note = f"Required. {note}"
        cells = (f"<code>{escape(prefix + name)}</code>", escape(_type(field)), escape(note))
        yield f"<tr><td>{'<td>'.join(cells)}"
        for option in field.get("anyOf", [field]):
            inner, dot = (option["items"], "[].") if "items" in option else (option, ".")
            if "$ref" in inner:
                yield from _field_rows(schemas[_name(inner)], schemas, prefix + name + dot)


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _type(field: Mapping[str, Any]) -> str:
    """Describe a JSON schema in a few words."""
    if "anyOf" in field:
        kinds = [_type(option) for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in field:
        return "object"
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    word = str(field.get("type", "anything"))
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum")
    if low is not None and high is not None:
        word += f" {low} to {high}"
    return word
