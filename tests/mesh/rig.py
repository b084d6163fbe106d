"""A whole mesh for tests: a broker and a dispatcher in this process, nodes as real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from blip.broker.server import Broker
from blip.broker.settings import Settings
from blip.config import Config
from blip.gateway.call import LiveCall
from blip.gateway.dispatch import Dispatcher
from blip.gateway.mesh import Options
from blip.kinds import KINDS, TaskInput
from blip.protocol.link import Liveness

MODELS = Path(__file__).parent.parent / "models"

#: Silence is judged three times as fast as in production: tests wait for it, on busy machines.
QUICK = Liveness(heartbeat=0.3, suspect_after=1.0, lost_after=3.0)

ECHO = {"echo": {"source": "builtin:echo", "preload": True}}
TINY = {
    "tiny-chat": {"source": str(MODELS / "tiny-chat"), "preload": True},
    "tiny-embed": {"source": str(MODELS / "tiny-embed"), "preload": True},
}


class NodeProcess:
    """A node agent, run as users run it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    def signal(self, number: signal.Signals) -> None:
        """Send the agent a signal."""
        self.process.send_signal(number)

    def workers(self) -> list[int]:
        """Return the pids of its model workers: children of its forkserver."""
        import psutil

        agent = psutil.Process(self.process.pid)
        children = agent.children(recursive=True)
        direct = {child.pid for child in agent.children()}
        return [child.pid for child in children if child.pid not in direct]

    async def kill(self) -> None:
        """kill -9 the agent."""
        self.process.kill()
        await self.process.wait()


class Rig:
    """``async with Rig(nodes=2) as rig``: everything is up, and everything is gone afterwards."""

    def __init__(
        self,
        nodes: int = 1,
        *,
        models: dict[str, Any] | None = None,
        liveness: Liveness = QUICK,
        settings: Settings | None = None,
        request_timeout: float = 30.0,
        node: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        upstreams: dict[str, Any] | None = None,
    ) -> None:
        self._upstreams = upstreams or {}
        self._count = nodes
        self._models = models or ECHO
        self._liveness = liveness
        self._settings = settings or Settings()
        self._timeout = request_timeout
        self._node = node or {}
        self._env = env or {}
        self.nodes: list[NodeProcess] = []
        self.broker: Broker | None = None
        self.dispatcher: Dispatcher
        self.endpoint = ""
        self._epoch = 0

    async def __aenter__(self) -> Rig:
        self._folder = tempfile.TemporaryDirectory(prefix="blip-rig-")
        self.folder = self._folder.name
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        await self.start_broker()
        self.dispatcher = Dispatcher(
            context=self.context,
            gateway_id="gateway",
            incarnation=1,
            request_timeout=self._timeout,
        )
        self.dispatcher.use_broker(self.endpoint)
        for number in range(self._count):
            await self.start_node(f"node-{number + 1}")
        await self.until(lambda: self.loaded() >= self._count, 90.0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.dispatcher.close()
        self.stop_broker()
        for node in self.nodes:
            if node.process.returncode is None:
                node.signal(signal.SIGCONT)
                node.process.terminate()
        for node in self.nodes:
            try:
                await asyncio.wait_for(node.process.wait(), 20)
            except TimeoutError:
                node.process.kill()
                await node.process.wait()
        self.context.term()
        self._folder.cleanup()

    def loaded(self) -> int:
        """Count the nodes that are ready and have loaded what they should from the start."""
        wanted = {name for name, model in self._models.items() if model.get("preload")}
        return sum(
            entry.status == "ready"
            and wanted <= {each.model for each in entry.advert.replicas if each.state == "ready"}
            for entry in self.dispatcher.nodes()
        )

    async def start_broker(self) -> None:
        """Start a broker, at the same address as any before."""
        self._epoch += 1
        for _ in range(100):
            try:
                self.broker = Broker(
                    context=self.context,
                    binds=[self.endpoint or "tcp://127.0.0.1:*"],
                    epoch=self._epoch,
                    liveness=self._liveness,
                    settings=self._settings,
                )
                break
            except zmq.ZMQError:  # the port of the one before is freed by an IO thread
                await asyncio.sleep(0.02)
        assert self.broker is not None
        self.endpoint = self.broker.endpoints[0]

    def stop_broker(self) -> None:
        """End the broker."""
        if self.broker is not None:
            self.broker.close()
            self.broker = None

    async def start_node(
        self, name: str, *, env: dict[str, str] | None = None, **node: Any
    ) -> NodeProcess:
        """Start another node; ``env`` is for it alone."""
        folder = Path(self._folder.name)
        limits = self._liveness
        config = Config.model_validate(
            {
                "mesh": {"state_dir": folder / "state"},
                "broker": {
                    "heartbeat": limits.heartbeat,
                    "suspect_after": limits.suspect_after,
                    "lost_after": limits.lost_after,
                },
                "node": {
                    "name": name,
                    "data_dir": folder / "data",
                    "brokers": [self.endpoint],
                    "find_models": False,
                    "nvml": False,
                    "benchmark": False,
                    **self._node,
                    **node,
                },
                "models": self._models,
                "upstreams": self._upstreams,
                "log": {"level": "warning"},
            }
        )
        path = folder / f"{name}.json"
        path.write_text(config.model_dump_json())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "blip_node",
            "--config-json",
            str(path),
            env={**os.environ, **self._env, **(env or {})},
        )
        made = NodeProcess(name, process)
        self.nodes.append(made)
        return made

    def call(self, kind: str, model: str, value: TaskInput, **options: Any) -> LiveCall:
        """Start a task."""
        return self.dispatcher.call(KINDS[kind], model, value, Options(**options))

    async def until(self, true: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until something is so; fail, saying what is there, if it does not come."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not true():
            if asyncio.get_running_loop().time() > deadline:
                nodes = [(node.name, node.status) for node in self.dispatcher.nodes()]
                raise AssertionError(f"it never came to that; nodes: {json.dumps(nodes)}")
            await asyncio.sleep(0.01)
