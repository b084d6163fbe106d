"""Parts of the mesh die, freeze and come back at random while it works; clients notice nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

import pytest

from blip.errors import BlipError
from blip.kinds.echo import EchoInput
from tests.mesh.rig import NodeProcess, Rig

#: Another seed is another story; a failure prints the one it happened in.
SEEDS = (1, 2)

#: Troubles per story, and the seconds between two: long enough for the last to be over, since
#: three nodes lost under one request is where blip gives up by design.
TROUBLES, PAUSE = 5, 2.5


class Trouble:
    """Everything that may happen to a mesh."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self.rig = rig
        self.rng = rng
        self.story: list[str] = []

    def _node(self) -> NodeProcess:
        return self.rng.choice([n for n in self.rig.nodes if n.process.returncode is None])

    async def kill_a_worker(self) -> None:
        workers = self._node().workers()
        if workers:
            os.kill(self.rng.choice(workers), signal.SIGKILL)

    async def kill_a_node(self) -> None:
        node = self._node()
        await node.kill()
        self.rig.nodes.remove(node)
        await self.rig.start_node(node.name)

    async def freeze_a_node(self) -> None:
        node = self._node()
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.uniform(0.2, 4.0))
        node.signal(signal.SIGCONT)

    async def restart_the_broker(self) -> None:
        self.rig.stop_broker()
        await asyncio.sleep(self.rng.uniform(0.0, 2.0))
        await self.rig.start_broker()

    async def happen(self) -> None:
        """Let one thing happen, and the mesh recover from it."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.kill_a_worker,
            self.kill_a_node,
            self.freeze_a_node,
            self.restart_the_broker,
        ]
        trouble = self.rng.choice(kinds)
        self.story.append(trouble.__name__)
        await trouble()
        await asyncio.sleep(PAUSE)
        await self.rig.until(lambda: self.rig.loaded() >= 3, 60.0)


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", SEEDS)
async def test_clients_notice_nothing(seed: int) -> None:
    rng = random.Random(seed)
    async with Rig(nodes=3, request_timeout=60.0) as rig:
        trouble = Trouble(rig, rng)
        over = asyncio.Event()
        failures: list[BlipError] = []
        served = 0

        async def client(number: int) -> None:
            nonlocal served
            lengths = random.Random(seed * 1000 + number)
            while not over.is_set():
                text = f"{number}:{served}"
                delay = lengths.uniform(0.0, 0.4)
                try:
                    call = rig.call("echo", "echo", EchoInput(text=text, delay=delay))
                    answer = await call.answer()
                except BlipError as error:
                    failures.append(error)
                    continue
                assert bytes(answer.payload) == text.encode()
                served += 1

        clients = [asyncio.create_task(client(number)) for number in range(12)]
        try:
            for _ in range(TROUBLES):
                await trouble.happen()
        finally:
            over.set()
            await asyncio.gather(*clients)
        told = f"seed {seed}, {trouble.story}: {[(e.code, e.message) for e in failures]}"
        assert failures == [], told
        assert served > 100, told
        # and nothing is left behind: no lease, no attempt
        assert rig.broker is not None
        scheduler = rig.broker.scheduler
        await rig.until(lambda: len(scheduler.ledger) == 0)
        await rig.until(
            lambda: all(
                node.advert is not None and not node.advert.running
                for node in scheduler.registry.nodes()
                if node.status == "ready"
            )
        )
