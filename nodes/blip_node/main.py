"""The agent's process: settings in, a node on the mesh until a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import zmq

from blip import lifecycle
from blip.config import Config, check_exposure, restore
from blip.errors import BlipError, ConfigError
from blip.protocol.link import Liveness
from blip.store import Announcer, Store
from blip.store.finder import find, start_following
from blip.telemetry import logs
from blip.transport.folder import socket_folder
from blip.transport.host import host_id, reachable
from blip_node import capacity
from blip_node.agent import Agent, Identity
from blip_node.capacity.display import has_display
from blip_node.capacity.neighbour import Limits
from blip_node.capacity.schedule import parse
from blip_node.catalogue import Catalogue
from blip_node.cordons import Cordons
from blip_node.footprints import Footprints
from blip_node.measurements import Store as BenchmarkStore
from blip_node.models.find import found
from blip_node.models.means import Means
from blip_node.models.spec import ModelSpec, Upstream, parse_source
from blip_node.plugins.place import announced
from blip_node.replicas import Place
from blip_node.supervisor import kill_forkserver
from blip_node.upstreams.poller import Upstreams
from blip_node.warden import Manners

log = logging.getLogger(__name__)

#: How long running tasks may take to end after SIGTERM. Chat answers take seconds; what takes
#: longer is retried, or resumed, elsewhere.
DRAIN_SECONDS = 15.0


def main(argv: list[str]) -> int:
    """Run a node; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m blip_node", description="A node's agent.")
    parser.add_argument("--config-json", required=True, help="settings, as `blip` hands them over")
    source = parser.parse_args(argv).config_json
    try:
        config = restore(source)
        check_exposure(config, ("node",))
    except BlipError as error:
        return lifecycle.report(error)
    name = config.node.name or socket.gethostname()
    logs.configure(f"node {name}", config.log.level, config.log.format)
    return lifecycle.run(lambda stop: serve(config, name, stop))


async def serve(config: Config, name: str, stop: asyncio.Event) -> None:
    """Be a node until ``stop``."""
    node = config.node
    manners = Manners(
        node.neighbour,
        Limits(node.neighbour_memory, node.neighbour_utilization),
        parse(node.schedule),
        has_display(os.environ),
    )
    with contextlib.ExitStack() as stack:
        identity = stack.enter_context(_identity(config.mesh.state_dir, name))
        # the agent's own, as the identity's file is held: nobody else writes it
        cordons = Cordons(_node_file(config.mesh.state_dir, name, "cordons"))
        cordons.read()
        folder = stack.enter_context(socket_folder("blip-node-"))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        providers = capacity.providers(
            nvml=config.node.nvml,
            amd=config.node.amd,
            cpu="auto" if config.node.cpu == "auto" else config.node.cpu == "on",
            static=[
                capacity.StaticDevice(each.id, each.name, each.memory, each.speed)
                for each in config.node.devices
            ],
        )
        catalogue = Catalogue(Footprints(config.node.data_dir / "footprints.json"))
        models = _models(config)
        remote = [each for each in models if isinstance(parse_source(each.source), Upstream)]
        await asyncio.to_thread(catalogue.add, [each for each in models if each not in remote])
        limits = config.broker
        agent = Agent(
            context=context,
            identity=identity,
            binds=[f"ipc://{folder}/data.sock", config.node.bind],
            providers=providers,
            catalogue=catalogue,
            place=Place(
                config.node.data_dir,
                config.node.downloads,
                config.node.speed,
                max(1, (os.cpu_count() or 1) // max(1, len(config.models))),
            ),
            manners=manners,
            cordons=cordons,
            liveness=Liveness(limits.heartbeat, limits.suspect_after, limits.lost_after),
            benchmarks=BenchmarkStore(config.node.data_dir) if config.node.benchmark else None,
        )
        await agent.start([each for each, model in config.models.items() if model.preload])
        upstreams = Upstreams(config.upstreams, remote, catalogue, agent)
        upstreams.start()
        store = await Store.open_if_there(
            config.store.url, config.mesh.state_dir, config.mesh.id, name="blip-node"
        )
        following = announcer = None
        named = await find(store) if store is not None else None
        if config.node.brokers:
            agent.use_brokers([str(each) for each in config.node.brokers])
        elif named is not None:
            _use(agent, *named)
        else:
            agent.use_brokers([str(config.broker.bind)])
        if store is not None and not config.node.brokers:
            following = start_following(store, partial(_use, agent))
        if store is not None:
            facts = {"name": name, "host": host_id(), "endpoints": agent.endpoints}
            announcer = Announcer(store.discovery, "node", identity.id, identity.incarnation, facts)
            announcer.start()
        log.info("serving %d models at %s", len(catalogue), agent.endpoints[-1])
        lifecycle.tune_gc()
        try:
            await stop.wait()
            log.info("draining")
            await agent.drain(DRAIN_SECONDS)
        finally:
            if following is not None:
                following.cancel()
            if announcer is not None:
                await announcer.close()
            await upstreams.close()
            await agent.close()
            kill_forkserver()
            if store is not None:
                await store.close()


def _use(agent: Agent, endpoints: list[str], host: str) -> None:
    endpoint = reachable(endpoints, host)
    if endpoint is not None:
        agent.use_brokers([endpoint])


def _models(config: Config) -> list[ModelSpec]:
    specs = [
        ModelSpec(
            name,
            model.source,
            tuple(model.kinds) or None,
            model.slots,
            model.dtype,
            model.context,
            model.threads,
            model.keep_alive,
            model.pin,
            model.min_replicas,
            model.max_replicas,
            means=Means(
                model.quantization,
                model.offload,
                model.vae_tiling,
                model.attention_slicing,
                model.compile,
            ),
            runtime=model.runtime,
            loras=tuple(model.loras.items()),
            controlnets=tuple(model.controlnets.items()),
            options=model.options,
            labels=model.labels,
            thresholds=model.thresholds,
        )
        for name, model in config.models.items()
    ]
    if not config.node.find_models:
        return specs
    return [*specs, *(ModelSpec(name, f"plugin:{name}") for name in announced()), *found()]


def _node_file(state_dir: Path, name: str, suffix: str) -> Path:
    return state_dir / "nodes" / f"{name.replace('/', '_')}.{suffix}"


@contextlib.contextmanager
def _identity(state_dir: Path, name: str) -> Iterator[Identity]:
    """Read or make this node's stable id, and hold it: two processes cannot be one node.

    Raises :class:`~blip.errors.ConfigError` if another process is that node already.
    """
    path = _node_file(state_dir, name, "json")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"a node named '{name}' is running on this machine already",
                hint="Stop it, or give this one another name: --set node.name=...",
            ) from None
        file.seek(0)
        try:
            id = str(json.load(file)["id"])
        except (ValueError, KeyError):
            id = uuid.uuid4().hex
            file.truncate(0)
            json.dump({"id": id}, file)
            file.flush()
        yield Identity(id, name, time.time_ns())
