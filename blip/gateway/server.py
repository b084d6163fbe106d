"""The gateway's process: settings in, HTTP out, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid
from functools import partial

import zmq
from aiohttp import web

from blip import lifecycle
from blip.config import Config, check_exposure
from blip.errors import ConfigError
from blip.gateway.app import build_app
from blip.gateway.dispatch import Dispatcher
from blip.gateway.mesh import Health
from blip.gateway.policy import Policy
from blip.gateway.settings import GatewaySettings
from blip.store import Announcer, Store
from blip.store.finder import find, start_following
from blip.telemetry import logs
from blip.transport.host import host_id, reachable

log = logging.getLogger(__name__)

#: How long requests under way may take to end after SIGTERM.
DRAIN_SECONDS = 25.0

#: Idle keep-alive connections are closed after this: longer than the usual 60 s of the proxies in
#: front, which would otherwise reuse a connection just as it closes.
KEEPALIVE_SECONDS = 75.0

#: Pause before a gateway process that died is started again, doubled each time, in seconds.
FIRST_PAUSE = 0.5

#: Connections that may wait to be accepted: a burst of a thousand clients is not an attack.
BACKLOG = 1024


def main(config: Config) -> int:
    """Serve HTTP until SIGTERM or SIGINT; return the exit code."""
    check_exposure(config, ("gateway",))
    logs.configure("gateway", config.log.level, config.log.format)
    if config.gateway.processes == 1:
        return lifecycle.run(lambda stop: serve(config, _listen(config, shared=False), stop))
    return lifecycle.run(lambda stop: _fan_out(config, stop))


async def serve(config: Config, listener: socket.socket, stop: asyncio.Event) -> None:
    """Be a gateway on a bound socket until ``stop``."""
    with contextlib.ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        incarnation = time.time_ns()
        gateway_id = f"gw-{uuid.uuid4().hex[:12]}"
        settings = GatewaySettings(
            body_limit=int(config.gateway.body_limit),
            api_keys=dict(config.gateway.api_keys),
            processes=config.gateway.processes,
            results_bytes=int(config.gateway.results_bytes),
            results_count=config.gateway.results_count,
            results_seconds=config.gateway.results_seconds,
            results_url=config.gateway.results_url,
            video_jobs=config.gateway.video_jobs,
            video_timeout=config.gateway.video_timeout,
            moderation_model=config.gateway.moderation_model,
            moderation_image_model=config.gateway.moderation_image_model,
            policies=_policies(config),
        )
        store = await Store.open_if_there(
            config.store.url, config.mesh.state_dir, config.mesh.id, name="blip-gateway"
        )
        dispatcher = Dispatcher(
            context=context,
            gateway_id=gateway_id,
            incarnation=incarnation,
            request_timeout=config.gateway.request_timeout,
            store_health=partial(_store_health, store),
        )
        stack.callback(dispatcher.close)
        app = build_app(dispatcher, settings, None if store is None else store.files)
        runner = web.AppRunner(
            app,
            handle_signals=False,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEPALIVE_SECONDS,
        )
        await runner.setup()
        following = announcer = None
        named = await find(store) if store is not None else None
        if config.gateway.brokers:
            dispatcher.use_broker(str(config.gateway.brokers[0]))
        elif named is not None:
            _use(dispatcher, *named)
        else:
            dispatcher.use_broker(str(config.broker.bind))
        if store is not None and not config.gateway.brokers:
            following = start_following(store, partial(_use, dispatcher))
        site = web.SockSite(runner, listener, backlog=BACKLOG)
        await site.start()
        host, port = listener.getsockname()[:2]
        if store is not None:
            facts = {"host": host_id(), "url": f"http://{host}:{port}", "pid": os.getpid()}
            announcer = Announcer(store.discovery, "gateway", gateway_id, incarnation, facts)
            announcer.start()
        log.info("serving http://%s:%d", host, port)
        lifecycle.tune_gc()
        try:
            await stop.wait()
            log.info("draining")
            await site.stop()
            await dispatcher.drain(DRAIN_SECONDS)
        finally:
            if following is not None:
                following.cancel()
            if announcer is not None:
                await announcer.close()
            await runner.cleanup()
            if store is not None:
                await store.close()


async def _fan_out(config: Config, stop: asyncio.Event) -> None:
    """Keep ``gateway.processes`` gateways on one port until ``stop``."""
    # A bound socket that does not listen: it holds the port, and chooses it where that was left
    # open, while connections go to the processes that listen.
    holder = _listen(config, shared=True)
    port = holder.getsockname()[1]
    each = config.model_copy(update={"gateway": config.gateway.model_copy(update={"port": port})})
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(config.gateway.processes):
                group.create_task(_keep_one(each.model_dump_json(), stop))
    finally:
        holder.close()


async def _keep_one(settings: str, stop: asyncio.Event) -> None:
    """Run one gateway process, and another when it dies, until ``stop``."""
    loop = asyncio.get_running_loop()
    context = multiprocessing.get_context("spawn")
    stopping = asyncio.create_task(stop.wait())
    pause = FIRST_PAUSE
    while not stop.is_set():
        began = loop.time()
        process = context.Process(target=_process, args=(settings, os.getpid()))
        process.start()
        ended = loop.create_future()
        loop.add_reader(process.sentinel, ended.set_result, None)
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            process.terminate()
            await asyncio.wait({ended}, timeout=DRAIN_SECONDS + 5.0)
            process.kill()
        loop.remove_reader(process.sentinel)
        await asyncio.to_thread(process.join)
        code = process.exitcode
        process.close()
        if stop.is_set():
            break
        pause = FIRST_PAUSE if loop.time() - began > 60.0 else min(30.0, pause * 2)
        log.error("a gateway process ended with code %s; another in %.1f s", code, pause)
        await asyncio.wait({stopping}, timeout=pause)
    stopping.cancel()


def _process(settings: str, parent: int) -> None:
    """Be one of several gateway processes."""
    lifecycle.die_with_parent(parent)
    config = Config.model_validate_json(settings)
    logs.configure("gateway", config.log.level, config.log.format)
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, and twice would force
    listen = _listen(config, shared=True)
    sys.exit(lifecycle.run(lambda stop: serve(config, listen, stop), signals=(signal.SIGTERM,)))


def _policies(config: Config) -> list[Policy]:
    return [
        Policy(
            name,
            tuple(each.keys),
            tuple(each.kinds),
            tuple(each.models),
            each.prompts,
            each.pictures,
            tuple(each.block),
            tuple(each.allow),
            each.thresholds,
            tuple(each.words),
        )
        for name, each in config.policies.items()
    ]


async def _store_health(store: Store | None) -> Health:
    """No synchronous request needs the store, so it is never required."""
    if store is None:
        return Health("store", False, "no store was found when this gateway started", False)
    found = await store.healthy()
    return Health("store", found.ok, found.engine if found.ok else found.reason, False)


def _use(dispatcher: Dispatcher, endpoints: list[str], host: str) -> None:
    endpoint = reachable(endpoints, host)
    if endpoint is not None:
        dispatcher.use_broker(endpoint)


def _listen(config: Config, *, shared: bool) -> socket.socket:
    """Bind the HTTP socket. Raises :class:`~blip.errors.ConfigError` if that is impossible."""
    host, port = config.gateway.host, config.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="Choose another with --port or gateway.port.",
        ) from None
    return listener
