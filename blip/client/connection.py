"""The connection to a gateway: what every part of the client sends its requests through."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from blip.client.answers import GatewayUnreachable, Origin, error_from
from blip.client.stream import CONNECT_TIMEOUT
from blip.errors import DeadlineExceeded, InternalError

DEFAULT_URL = "http://127.0.0.1:8001"


class Connection:
    """Where the gateway is, and HTTP with it. Its parts are mixed into one client."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout: float = 600.0
    ) -> None:
        self.url = (url or os.environ.get("BLIP_URL") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            self.url = f"http://{self.url}"
        self._key = api_key or os.environ.get("BLIP_API_KEY") or ""
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | aiohttp.FormData | None = None,
        said: Mapping[str, str] | None = None,
    ) -> tuple[Any, Origin]:
        status, raw, headers = await self._send(method, path, body, said)
        self._check(status, raw, headers)
        return object_of(raw), Origin.of(headers)

    def _check(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if status >= 400:
            raise error_from(status, body, headers, self.url)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | aiohttp.FormData | None = None,
        said: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        sent: dict[str, Any] = {"data" if isinstance(body, aiohttp.FormData) else "json": body}
        total = aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_TIMEOUT)
        try:
            async with self._open().request(
                method, self.url + path, headers=said, timeout=total, **sent
            ) as response:
                return response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            # limit=0: how many requests are under way is the caller's decision, not the pool's
            self._session = aiohttp.ClientSession(
                headers=headers, connector=aiohttp.TCPConnector(limit=0)
            )
        return self._session

    def _unreachable(self, error: BaseException) -> GatewayUnreachable | DeadlineExceeded:
        if isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ConnectionTimeoutError
        ):
            return DeadlineExceeded(f"no answer from {self.url} within {self._timeout:g} s")
        if isinstance(error, aiohttp.InvalidURL):
            return GatewayUnreachable(f"'{self.url}' is not a URL", hint="Write http://host:port.")
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error) or type(error).__name__
        return GatewayUnreachable(f"cannot reach a gateway at {self.url}: {reason}")


def object_of(raw: bytes) -> Any:
    """Return what a JSON body says. Raises :class:`~blip.errors.InternalError` if it is none."""
    try:
        return json.loads(raw)
    except ValueError:
        raise InternalError("the gateway's answer is not JSON") from None


def form_of(body: Mapping[str, Any], **files: bytes | None) -> aiohttp.FormData:
    """Return a request's body as a form, with the contents of files; None leaves one out."""
    form = aiohttp.FormData({name: str(value) for name, value in body.items()})
    for name, file in files.items():
        if file is not None:
            form.add_field(name, file, filename=name)
    return form


def body_of(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body; an option that is None is left out."""
    return {"model": model, **{key: value for key, value in options.items() if value is not None}}
