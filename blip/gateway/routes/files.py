"""``GET /v1/files/{file_id}/content``: results that were kept to be fetched."""

from __future__ import annotations

from aiohttp import web

from blip.errors import NotFound, StoreUnavailable
from blip.gateway.api import Operation
from blip.gateway.download import send_file
from blip.gateway.envelope import RangeNotSatisfiable
from blip.gateway.exchange import Exchange


async def content(exchange: Exchange) -> web.StreamResponse:
    """Fetch a result by the address that an answer gave for it.

    The signature in the address authorises whoever has it until it expires; no API key is needed.
    Ranges and conditional requests are served.
    """
    files, request = exchange.gateway.files, exchange.request
    id, query = request.match_info["file_id"], request.query
    await files.admit(id, query.get("expires", ""), query.get("signature", ""))
    return await send_file(exchange, await files.find(id))


OPERATIONS = (
    Operation(
        "GET",
        "/v1/files/{file_id}/content",
        content,
        "Fetch a result",
        "images",
        media={"*/*": "The file, as what it is."},
        query={
            "expires": {"type": "integer", "description": "When the address expires; part of it."},
            "signature": {"type": "string", "description": "Part of the address."},
        },
        errors=(NotFound, RangeNotSatisfiable, StoreUnavailable),
        public=True,
    ),
)
