"""The one layer between aiohttp and an operation: ids, keys, bodies, errors, metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, web

from blip.errors import BlipError
from blip.gateway.api import Operation
from blip.gateway.body import check_length, read_body
from blip.gateway.envelope import ExpectationFailed, error_response
from blip.gateway.exchange import Exchange, Gateway
from blip.gateway.form import FormRequest, read_form
from blip.gateway.task_options import read_options

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: nginx's status for a client that went away; nobody reads it but the metrics.
_CLIENT_GONE = 499


def make_handler(gateway: Gateway, operation: Operation) -> Handler:
    """Return the aiohttp handler of ``operation``.

    It wraps at registration; aiohttp's middlewares would wrap at every request.
    """
    metrics = gateway.metrics
    settings = gateway.settings
    run, body, route = operation.handler, operation.body, operation.template
    keyring = None if operation.public else gateway.keyring
    is_form = body is not None and issubclass(body, FormRequest)
    read: Callable[..., Awaitable[Any]] = read_form if is_form else read_body
    runs_tasks, dialect = operation.task, operation.dialect

    async def serve(request: web.Request) -> web.StreamResponse:
        begun = time.perf_counter()
        headers = request.headers
        exchange = Exchange(
            gateway, request, gateway.request_id(headers.get("X-Request-ID")), dialect
        )
        metrics.in_flight += 1
        status = _CLIENT_GONE
        response: web.StreamResponse
        try:
            try:
                if keyring is not None:
                    exchange.tenant = keyring.tenant(
                        headers.get("Authorization"), headers.get("X-API-Key")
                    )
                if runs_tasks:
                    exchange.options = read_options(headers, exchange.tenant, exchange.request_id)
                if body is None:
                    response = await run(exchange)
                else:
                    response = await run(exchange, await read(request, body, settings.body_limit))
                status = response.status
            except Exception as error:
                if exchange.client_gone():
                    # a plain return: aiohttp would log a raised error and answer nobody
                    return web.Response(status=_CLIENT_GONE)
                failure = exchange.failure(error)
                response = error_response(failure, exchange.request_id, dialect.error)
                status = response.status
            if not response.prepared:
                exchange.stamp(response)
            return response
        finally:
            exchange.close()
            metrics.in_flight -= 1
            metrics.requests[route, str(status)].observe(time.perf_counter() - begun)

    return serve


def make_expect_handler(
    gateway: Gateway, operation: Operation
) -> Callable[[web.Request], Awaitable[web.Response | None]]:
    """Return what answers ``Expect: 100-continue``: a body that is too large is never sent."""

    async def expect(request: web.Request) -> web.Response | None:
        try:
            if request.headers["Expect"].lower() != "100-continue":
                raise ExpectationFailed("The only expectation that can be met is '100-continue'.")
            check_length(request, gateway.settings.body_limit)
        except BlipError as error:
            request_id = gateway.request_id(request.headers.get("X-Request-ID"))
            response = error_response(error, request_id, operation.dialect.error)
            response.headers["X-Request-ID"] = request_id
            return response
        if request.version == HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # aiohttp takes bytes written for a response under way unless told otherwise
            request.writer.output_size = 0
        return None

    return expect
