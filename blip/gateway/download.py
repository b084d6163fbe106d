"""A kept file as an HTTP response: ranges, validators, and what to save it as (RFC 9110)."""

from __future__ import annotations

import logging
from email.utils import formatdate
from urllib.parse import quote

from aiohttp import web

from blip.errors import BlipError
from blip.gateway.envelope import RangeNotSatisfiable, error_response
from blip.gateway.exchange import Exchange
from blip.gateway.shelf import Kept
from blip.store.files import PIECE

log = logging.getLogger(__name__)


async def send_file(exchange: Exchange, kept: Kept) -> web.StreamResponse:
    """Answer with a kept file, or the part of it that the request's ``Range`` asks for.

    One range is served; several, and what is none, get all of it, as the standard allows. Raises
    :class:`~blip.errors.NotFound` if it went meanwhile.
    """
    request, files = exchange.request, exchange.gateway.files
    headers = {
        # what an id stands for never changes
        "ETag": f'"{kept.id}"',
        "Last-Modified": formatdate(kept.made, usegmt=True),
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={files.left(kept)}, immutable",
        "Content-Disposition": disposition(kept.name),
        "X-Content-Type-Options": "nosniff",
    }
    known = request.if_none_match or ()
    if any(tag.value in ("*", kept.id) for tag in known):
        return web.Response(status=304, headers=headers)
    start, stop, status = 0, kept.size, 200
    if "Range" in request.headers and request.headers.get("If-Range", f'"{kept.id}"') in (
        f'"{kept.id}"',
        headers["Last-Modified"],
    ):
        try:
            asked = request.http_range
        except ValueError:  # several ranges, another unit, or nonsense
            pass
        else:
            start, stop, _ = asked.indices(kept.size)
            status = 206
            if start >= stop:
                return _unsatisfiable(exchange, kept)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{kept.size}"
    response = web.StreamResponse(status=status, headers=headers)
    response.content_type = kept.media
    response.content_length = stop - start
    exchange.stamp(response)
    await response.prepare(request)
    if request.method != "HEAD":
        await _write(exchange, response, kept, start, stop)
    await response.write_eof()
    return response


async def _write(
    exchange: Exchange, response: web.StreamResponse, kept: Kept, start: int, stop: int
) -> None:
    try:
        while start < stop:
            # pieces lie at multiples of their size: the first read goes up to the next of them
            end = min(stop, (start // PIECE + 1) * PIECE)
            await response.write(await exchange.gateway.files.read(kept, start, end))
            start = end
    except BlipError as error:
        # too late for an error: less than was promised says that this is not all
        log.warning("%s: %s broke off: %s", exchange.request_id, kept.id, error.message)
        if exchange.request.transport is not None:
            exchange.request.transport.abort()


def _unsatisfiable(exchange: Exchange, kept: Kept) -> web.Response:
    error = RangeNotSatisfiable(f"The file has {kept.size} bytes, none of them in that range.")
    response = error_response(error, exchange.request_id)
    response.headers["Content-Range"] = f"bytes */{kept.size}"
    return response


def disposition(name: str) -> str:
    """Return a ``Content-Disposition`` with a file's name, in ASCII and as it is (RFC 6266)."""
    plain = "".join(char if char.isascii() and char.isprintable() else "_" for char in name)
    plain = plain.replace("\\", "_").replace('"', "_")
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
