"""Under what address this gateway is known to whoever asks. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: A name or an address, perhaps with a port: nothing that could end the host part of a URL.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?)"
    r"(?::(?P<port>\d{1,5}))?"
)


def origin_of(headers: Mapping[str, str], scheme: str, fallback: str) -> str:
    """Return the scheme and host that a request was sent to, ``https://example.com:8443``.

    A proxy says in ``X-Forwarded-Host`` and ``X-Forwarded-Proto`` what it was asked for (the first
    of several proxies counts); otherwise ``Host`` and the connection's ``scheme`` say it. What is
    no host is passed over; ``fallback`` is the socket's own ``host:port``. Who sends such headers
    deceives nobody but himself: only his own answer is written with them.
    """
    forwarded = _first(headers.get("X-Forwarded-Host"))
    host = next((each for each in (forwarded, headers.get("Host", "")) if _is_host(each)), fallback)
    proto = _first(headers.get("X-Forwarded-Proto")).lower()
    return f"{proto if proto in ('http', 'https') else scheme}://{host}"


def _first(value: str | None) -> str:
    return (value or "").partition(",")[0].strip()


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and int(found["port"] or 0) <= 65535
