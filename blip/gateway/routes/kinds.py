"""``POST /v1/tasks`` and ``GET /v1/kinds``: kinds of task that plugins define."""

from __future__ import annotations

import asyncio
import difflib
import functools
import json
from contextlib import aclosing
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from blip.errors import InvalidRequest, ModelNotFound, NotFound, RuntimeFailed
from blip.gateway.api import Operation
from blip.gateway.events import send_events
from blip.gateway.exchange import Exchange, News
from blip.gateway.fields import Request
from blip.gateway.mesh import Answer
from blip.gateway.offers import Offer, offers
from blip.gateway.routes.failures import TASK_FAILURES
from blip.gateway.schemas import complaint
from blip.gateway.text import quote
from blip.gateway.upload import encode_file
from blip.kinds import KINDS, Kind
from blip.kinds.plugin import JSON, Piece, PluginInput, Progress, measure, piece_from_wire
from blip.protocol.messages import Payload

#: From this many letters on an input is checked in a thread, so that other requests go on.
_LARGE = 64 * 1024


#: Most bytes of all parts of an answer that is not streamed: the gateway holds them.
MAX_ANSWER_BYTES = 256 * 1024 * 1024


class TaskRequest(Request):
    """A task of a kind that a plugin defines."""

    kind: Annotated[str, Field(min_length=1, max_length=64)]
    """A kind from GET /v1/kinds that is not built in."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A model that serves it; may be left out where only one does."""
    input: dict[str, Any]
    """What the kind's schema says."""
    stream: bool | None = None
    """Whether to send parts and progress as events while it runs."""


class TaskResult(BaseModel):
    """What became of a task."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    kind: str
    model: str
    output: Any
    """What the plugin answered; a list where it answers in parts."""
    units: float
    """Work done, in the kind's units."""


class TaskEvent(BaseModel):
    """An event of a stream: ``progress``, ``part`` or, at the end, ``completed``."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: Literal["progress", "part", "completed"]
    progress: float | None = None
    """From 0 to 1."""
    text: str | None = None
    """On what it is."""
    index: int | None = None
    """The part's number."""
    output: Any = None
    """The part, or the answer of a plugin that has no parts."""
    media_type: str | None = None
    """What 'data' is."""
    data: str | None = None
    """In place of 'output': bytes, in base64."""
    units: float | None = None


class KindEntry(BaseModel):
    """A kind of task; one that nodes define differently is there several times."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    builtin: bool
    """Built-in kinds have routes of their own; POST /v1/tasks takes the others."""
    about: str
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    units: str
    """The input's field that says how much work it is."""
    streams: bool
    """Whether the answer comes in parts."""
    models: list[str]
    nodes: list[str]
    """Who defines it so; empty for a built-in kind."""


class KindList(BaseModel):
    """Every kind that a task may be of."""

    object: Literal["list"] = "list"
    data: list[KindEntry]


async def create(exchange: Exchange, body: TaskRequest) -> web.StreamResponse:
    """Run a task of a kind that a plugin on a node defines.

    The input is held against the kind's schema here, and by the plugin again. The answer is JSON,
    or bytes of the type that the plugin says. With stream: true progress and parts come as they are
    made. Where nodes have different versions of a kind, an input that one of them takes will do.
    """
    found = _versions(exchange, body.kind)
    model = body.model or _only_model(exchange, body.kind)
    mine = [each for each in found if model in each.models] or found
    try:
        document = json.dumps(body.input, ensure_ascii=False, allow_nan=False)
        document.encode()
    except ValueError:
        raise InvalidRequest(
            "'input' has a number or a text that JSON has no word for.", param="input"
        ) from None
    if len(document) > _LARGE:
        await asyncio.to_thread(_check, mine, body.input)
    else:
        _check(mine, body.input)
    units = measure(body.input, mine[0].kind.units)
    kind = Kind(body.kind, PluginInput, lambda value: units)
    exchange.start(kind, model, [PluginInput(document=document)])
    if body.stream:
        return await send_events(exchange, _Events().render)
    parts, answer = await _collect(exchange)
    if answer.payload:
        whole = _piece(answer.payload)
        assert isinstance(whole, Piece)
        if whole.media != JSON:
            return _bytes(whole.media, whole.body)
        return _json(exchange, _text(whole), answer)
    pieces = [piece for piece in map(_piece, parts) if isinstance(piece, Piece)]
    kinds = {piece.media for piece in pieces}
    if len(kinds) == 1 and kinds != {JSON}:
        return _bytes(pieces[0].media, b"".join(piece.body for piece in pieces))
    return _json(exchange, f"[{','.join(map(_as_json, pieces))}]", answer)


async def _collect(exchange: Exchange) -> tuple[list[Payload], Answer]:
    """Wait for the end; return the parts that came before. A plugin may not know when to stop."""
    parts: list[Payload] = []
    size = 0
    async with aclosing(exchange.news()) as news:
        async for batch in news:
            for _, item in batch:
                if isinstance(item, Answer):
                    return parts, item
                parts.append(item)
                size += len(item)
            if size > MAX_ANSWER_BYTES:
                raise InvalidRequest(
                    f"The answer has more than {MAX_ANSWER_BYTES} bytes, the most at once.",
                    hint="Set 'stream': true.",
                    param="stream",
                )
    raise RuntimeFailed("The node's answer has no end.")


def _versions(exchange: Exchange, name: str) -> list[Offer]:
    """Return all versions of a kind. Raises :class:`~blip.errors.NotFound` where there is none."""
    if name in KINDS:
        raise InvalidRequest(
            f"'{name}' is a built-in kind and has routes of its own.",
            hint="GET /docs lists them.",
            param="kind",
        )
    everything = offers(exchange.gateway.mesh.nodes())
    found = [each for each in everything if each.kind.name == name]
    if not found:
        known = sorted({each.kind.name for each in everything})
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise NotFound(
            f"No node defines a kind '{name}'{guess}",
            hint="GET /v1/kinds lists what there is.",
            param="kind",
            details={"near": near},
        )
    return found


def _only_model(exchange: Exchange, kind: str) -> str:
    names = [model.name for model in exchange.gateway.mesh.models() if kind in model.kinds]
    if len(names) == 1:
        return names[0]
    if not names:
        raise ModelNotFound(f"No node serves a model for '{kind}'.", param="model")
    raise InvalidRequest(
        f"{len(names)} models serve '{kind}': {', '.join(names[:5])}.",
        hint="Say which: 'model'.",
        param="model",
    )


def _check(versions: list[Offer], value: dict[str, Any]) -> None:
    """Raise what most nodes would say of an input, unless a version takes it."""
    found = None
    for version in versions:
        error = complaint(version.kind.input_schema, value)
        if error is None:
            return
        found = found or error
    if found is not None:
        raise found


# --- the answer ------------------------------------------------------------------------------


def _piece(payload: Payload) -> Piece | Progress:
    try:
        return piece_from_wire(payload)
    except (ValueError, TypeError) as error:
        raise RuntimeFailed(f"The node's answer cannot be read: {error}.") from None


def _text(piece: Piece) -> str:
    # a stream's lines end where it says: JSON may be laid out in several
    return str(piece.body, "utf-8").replace("\r", " ").replace("\n", " ")


def _encoded(piece: Piece) -> str:
    data = encode_file(piece.body)
    return f'"media_type":{quote(piece.media)},"data":"{data}"'


def _as_json(piece: Piece) -> str:
    return _text(piece) if piece.media == JSON else f"{{{_encoded(piece)}}}"


def _json(exchange: Exchange, output: str, answer: Answer) -> web.Response:
    (call,) = exchange.calls
    return web.Response(
        text=f'{{"id":"{call.task_id}","kind":{quote(exchange.kind)},'
        f'"model":{quote(exchange.model)},"output":{output},"units":{answer.units:g}}}',
        content_type="application/json",
    )


def _bytes(media: str, body: bytes | memoryview) -> web.Response:
    # what a plugin answers is not a page of this gateway's, whatever it says it is
    headers = {
        "Content-Type": media,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
    }
    return web.Response(body=bytes(body), headers=headers)


class _Events:
    """Writes :class:`TaskEvent` events."""

    def __init__(self) -> None:
        self._index = 0

    def render(self, news: News) -> str:
        _, item = news
        if isinstance(item, Answer):
            inside = ""
            if item.payload:
                whole = _piece(item.payload)
                assert isinstance(whole, Piece)
                inside = f",{self._inside(whole)}"
            return f'data: {{"type":"completed","units":{item.units:g}{inside}}}\n\n'
        piece = _piece(item)
        if isinstance(piece, Progress):
            said = f'"progress":{piece.share:.4g},"text":{quote(piece.text)}'
            return f'data: {{"type":"progress",{said}}}\n\n'
        index = self._index
        self._index += 1
        return f'data: {{"type":"part","index":{index},{self._inside(piece)}}}\n\n'

    @staticmethod
    def _inside(piece: Piece) -> str:
        return f'"output":{_text(piece)}' if piece.media == JSON else _encoded(piece)


# --- the list --------------------------------------------------------------------------------


async def index(exchange: Exchange) -> web.StreamResponse:
    """List the kinds of task that there are, with the schemas of their inputs."""
    mesh = exchange.gateway.mesh
    serving: dict[str, list[str]] = {}
    for model in mesh.models():
        for kind in model.kinds:
            serving.setdefault(kind, []).append(model.name)
    data = [KindEntry(models=serving.get(name, []), **_builtin(name)) for name in sorted(KINDS)]
    data += [
        KindEntry(
            name=offer.kind.name,
            builtin=False,
            about=offer.kind.about,
            input_schema=_object(offer.kind.input_schema) or {},
            output_schema=_object(offer.kind.output_schema),
            units=offer.kind.units,
            streams=offer.kind.streams,
            models=sorted(offer.models),
            nodes=sorted(offer.nodes),
        )
        for offer in offers(mesh.nodes())
    ]
    view = KindList(data=data)
    return web.Response(text=view.model_dump_json(), content_type="application/json")


@functools.cache
def _builtin(name: str) -> dict[str, Any]:
    kind = KINDS[name]
    about = (kind.input.__doc__ or "").partition("\n")[0].replace("``", "'")
    return {
        "name": name,
        "builtin": True,
        "about": about,
        "input_schema": kind.input.model_json_schema(),
        "output_schema": None,
        "units": "",
        "streams": False,
        "nodes": [],
    }


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


OPERATIONS = (
    Operation("GET", "/v1/kinds", index, "List kinds", "kinds", answer=KindList),
    Operation(
        "POST",
        "/v1/tasks",
        create,
        "Run a task of your kind",
        "kinds",
        body=TaskRequest,
        answer=TaskResult,
        media={"*/*": "Bytes, where the plugin answers those."},
        event=TaskEvent,
        errors=(*TASK_FAILURES, NotFound),
        task=True,
        example={"kind": "wordcount", "model": "wordcount", "input": {"text": "one two two"}},
    ),
)
