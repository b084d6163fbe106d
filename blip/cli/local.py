"""A whole mesh on this machine: store, broker, nodes and gateway, as children of this process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip.cli.children import Children
from blip.cli.supervision import Role, Supervisor
from blip.client import AsyncBlip, GatewayUnreachable
from blip.config import Config, check_exposure, save
from blip.errors import ConfigError, Unauthorized, Unavailable
from blip.store import embedded

#: Seconds that a role gets between SIGTERM and SIGKILL. A gateway lets requests finish, a node
#: what it runs; a broker holds nothing.
GRACE = {"gateway": 30.0, "node": 20.0, "broker": 5.0}
#: The order on the way down: first nothing new comes in, then what runs ends.
RANK = {"gateway": 0, "node": 1, "broker": 2}

#: Pause between two looks at /readyz while the mesh starts; nothing polls afterwards.
READY_PAUSE = 0.1


class LocalMesh:
    """Starts, watches and ends the roles. Use it as an async context manager, or call ``close``.

    ``say`` takes lines for the user (a role that died, ...). With ``nodes`` above one, the nodes
    are called NAME-1, NAME-2, ...

    Raises :class:`~blip.errors.ConfigError` from ``start`` when the settings cannot work here.
    """

    def __init__(
        self,
        config: Config,
        nodes: int = 1,
        *,
        say: Callable[[str], None] = lambda line: None,
        stream: bool = False,
    ) -> None:
        check_exposure(config)
        if config.gateway.port == 0:
            port = free_port(config.gateway.host)
            config = config.model_copy(
                update={"gateway": config.gateway.model_copy(update={"port": port})}
            )
        self.config = config
        self.node_count = nodes
        self.logs = config.mesh.state_dir / "logs"
        self._run = config.mesh.state_dir / "run"
        self._say = say
        self._stream = stream
        self._lock: int | None = None
        self._store: embedded.Embedded | None = None
        self._store_watch: int | None = None
        self._store_restart: asyncio.Task[None] | None = None
        self._children: Children | None = None
        self._asked_to_stop = False
        self._missing = "the gateway does not answer"

    @property
    def url(self) -> str:
        """The gateway's address, as clients on this machine reach it."""
        host = self.config.gateway.host
        host = "127.0.0.1" if host in ("0.0.0.0", "*") else "::1" if host == "::" else host
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def _port(self) -> int:
        return self.config.gateway.port

    async def __aenter__(self) -> LocalMesh:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the store and every role; returns before they are ready."""
        self._claim()
        self._check_ports()
        if not self.config.store.url:
            await self._start_store()
        self._run.mkdir(mode=0o700, exist_ok=True)
        self._write_settings()
        supervisor = Supervisor(self._roles())
        self._children = Children(supervisor, self.logs, self._say, stream=self._stream)
        if self._asked_to_stop:
            self._children.stop()
        else:
            self._children.start()

    async def ready(self, limit: float, api_key: str | None = None) -> dict[str, Any]:
        """Wait until the gateway is ready and knows every node; return its view of the mesh, in
        which no nodes are shown if the gateway wants a key and got none.

        Raises :class:`~blip.errors.Unavailable` when that takes more than ``limit`` seconds or a
        role was given up.
        """
        assert self._children is not None
        waiting = asyncio.create_task(self._await_ready(api_key))
        ended = asyncio.create_task(self._children.ended())
        try:
            await asyncio.wait((waiting, ended), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                self._children.supervisor.ready()
                return waiting.result()
        finally:
            waiting.cancel()
            ended.cancel()
            await asyncio.gather(waiting, ended, return_exceptions=True)
        if self._children.supervisor.stopping:
            raise Unavailable("the mesh did not come up", hint=f"The logs are in {self.logs}.")
        raise Unavailable(
            f"the mesh was not ready within {limit:g} s: {self._missing}",
            hint=f"The logs are in {self.logs}.",
        )

    async def ended(self) -> int:
        """Wait until every role has ended; return the exit code."""
        assert self._children is not None
        return await self._children.ended()

    def stop(self) -> None:
        """Begin to drain; :meth:`ended` tells when it is done. Before ``start``: start nothing."""
        self._asked_to_stop = True
        if self._children is not None:
            self._children.stop()

    def force(self) -> None:
        """End every role at once."""
        if self._children is not None:
            self._children.force()

    @property
    def stopping(self) -> bool:
        """Whether the roles are on their way down."""
        if self._children is None:
            return self._asked_to_stop
        return self._children.supervisor.stopping

    @property
    def failed(self) -> bool:
        """Whether a role was given up."""
        return self._children is not None and self._children.supervisor.code != 0

    def pid(self, role: str) -> int | None:
        """Return the process id of ``gateway``, ``broker``, ``node-1``, ... while it runs."""
        return self._children.pid(role) if self._children is not None else None

    @property
    def store_pid(self) -> int | None:
        """The process id of the embedded store, if there is one."""
        return self._store.pid if self._store is not None else None

    @property
    def roles(self) -> tuple[str, ...]:
        """The names of the roles."""
        return tuple(role.name for role in self._roles())

    async def close(self) -> None:
        """Drain, end the store, and leave the state directory to the next one."""
        if self._children is not None:
            self._children.stop()
            await self._children.ended()
            self._children = None
        self._unwatch_store()
        if self._store_restart is not None:
            await self._store_restart
        if self._store is not None:
            await asyncio.to_thread(self._store.stop)
            self._store = None
        if self._lock is not None:
            for role in self._roles():
                self._settings(role.name).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    # --- what must hold before anything starts ---

    def _claim(self) -> None:
        """Be the only mesh in this state directory; the kernel lets go when we die."""
        folder = self.config.mesh.state_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"mesh.state_dir: {folder} cannot be used: {error.strerror}",
                hint="Choose a folder that belongs to you and can be written.",
                param="mesh.state_dir",
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
            os.close(lock)
            raise ConfigError(
                f"a mesh is already running in {folder} (process {owner})",
                hint="Stop it with Ctrl-C there, use it as it is (`blip status`), "
                "or give this one a mesh.state_dir of its own.",
                param="mesh.state_dir",
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def _check_ports(self) -> None:
        gateway = self.config.gateway
        check_port(gateway.host, gateway.port, "gateway.port", "Choose another one with --port.")
        host, _, port = self.config.broker.bind.removeprefix("tcp://").rpartition(":")
        if self.config.broker.bind.startswith("tcp://") and port != "*":
            check_port(host, int(port), "broker.bind", "Choose another port for broker.bind.")

    # --- the store ---

    async def _start_store(self) -> None:
        self._store = await asyncio.to_thread(embedded.ensure, self.config.mesh.state_dir)
        store = self.config.store.model_copy(update={"url": self._store.url})
        self.config = self.config.model_copy(update={"store": store})
        if hasattr(os, "pidfd_open"):
            try:
                self._store_watch = os.pidfd_open(self._store.pid)
            except ProcessLookupError:
                return  # it ended just now; the roles say so
            asyncio.get_running_loop().add_reader(self._store_watch, self._store_ended)

    def _unwatch_store(self) -> None:
        if self._store_watch is not None:
            asyncio.get_running_loop().remove_reader(self._store_watch)
            os.close(self._store_watch)
            self._store_watch = None

    def _store_ended(self) -> None:
        self._unwatch_store()
        if not self.stopping:
            self._say("the embedded store ended; starting it again")
            self._store_restart = asyncio.create_task(self._restart_store())

    async def _restart_store(self) -> None:
        try:
            await self._start_store()
        except Exception as error:
            # synchronous requests do not need it, so the mesh goes on
            self._say(f"the embedded store cannot be started: {error}")

    # --- the roles ---

    def _roles(self) -> list[Role]:
        nodes = [f"node-{number}" for number in range(1, self.node_count + 1)]
        return [
            Role(
                name=name,
                argv=self._argv(name, kind),
                rank=RANK[kind],
                grace=GRACE[kind],
            )
            for name, kind in [
                ("gateway", "gateway"),
                *((name, "node") for name in nodes),
                ("broker", "broker"),
            ]
        ]

    def _settings(self, name: str) -> Path:
        return self._run / f"{name}.json"

    def _argv(self, name: str, kind: str) -> tuple[str, ...]:
        module = ("blip_node",) if kind == "node" else ("blip", kind)
        return (sys.executable, "-m", *module, "--config-json", str(self._settings(name)))

    def _write_settings(self) -> None:
        """Write each role's settings where its process will read them."""
        for role in self._roles():
            config = self.config
            if role.name.startswith("node-") and self.node_count > 1:
                base = config.node.name or socket.gethostname()
                name = f"{base}-{role.name.removeprefix('node-')}"
                config = config.model_copy(
                    update={"node": config.node.model_copy(update={"name": name})}
                )
            save(config, self._settings(role.name))

    # --- readiness ---

    async def _await_ready(self, api_key: str | None) -> dict[str, Any]:
        async with AsyncBlip(self.url, api_key, timeout=5) as client:
            while True:
                try:
                    ready, report = await client.ready()
                    if ready:
                        try:
                            mesh = await client.mesh()
                        except Unauthorized:
                            # only hashes of keys are known here; it lets us see no more than this
                            return {"nodes": []}
                        if len(mesh["nodes"]) >= self.node_count:
                            return mesh
                        self._missing = f"{len(mesh['nodes'])} of {self.node_count} nodes are here"
                    else:
                        self._missing = f"the gateway reports {report}"
                except GatewayUnreachable:
                    self._missing = "the gateway does not answer"
                await asyncio.sleep(READY_PAUSE)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that is free at this moment."""
    with socket.create_server((host, 0), family=_family(host)) as server:
        return int(server.getsockname()[1])


def check_port(host: str, port: int, key: str, hint: str) -> None:
    """Raise :class:`~blip.errors.ConfigError` if another program listens there."""
    try:
        # create_server sets SO_REUSEADDR: connections of an earlier run do not count
        socket.create_server((host.strip("[]"), port), family=_family(host)).close()
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot listen on {host}:{port}: {error.strerror}", hint=hint, param=key
        ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
