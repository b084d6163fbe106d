"""Everything at once: tasks, links, executions and the scheduler, on wires that fail at will.

Hypothesis composes submissions, work, refusals, crashes, cancels, lost, doubled, held and broken
messages, restarts of anybody, and time. At every moment a task has at most one end and its
client's stream is what one attempt sent, or what several sent in continuation; nothing is placed
on a node that is suspect. When the faults stop, every task ends, every lease is given back, every
node is idle and every link stands.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blip.errors import BlipError, NodeLost
from blip.protocol.attempt import State
from blip.protocol.link import State as LinkState
from blip.protocol.messages import Done
from tests.unit.small_mesh import LENGTH, Call, Mesh

INDEX = st.integers(0, 20)


class Everything(RuleBasedStateMachine):
    """Two nodes, two gateways, a broker."""

    @initialize(settled=st.booleans())
    def begin(self, settled: bool) -> None:
        self.mesh = Mesh(nodes=2, gateways=2)
        if settled:
            self.mesh.run(4.0)

    def pick(self, index: int, of: Any) -> Any:
        items = list(of)
        return items[index % len(items)] if items else None

    # --- what people do ---------------------------------------------------------------------

    @rule(
        gateway=st.sampled_from(["gw-0", "gw-1"]),
        resumable=st.booleans(),
        timeout=st.sampled_from([5.0, 60.0, 60.0]),
    )
    def submit(self, gateway: str, resumable: bool, timeout: float) -> None:
        self.mesh.submit(gateway, resumable, timeout)
        self.mesh.soon()

    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        live = [(gateway, call) for gateway, call in self.mesh.calls if not call.ends]
        found = self.pick(index, live)
        if found is not None and found[0] in self.mesh.gateways.values():
            gateway, call = found
            gateway.cancel(call)
            self.mesh.soon()

    # --- what nodes do ----------------------------------------------------------------------

    @rule(index=INDEX, how=st.sampled_from(["on", "on", "on", "on", "crash"]))
    def work(self, index: int, how: str) -> None:
        self.pick(index, self.mesh.nodes).work(how)
        self.mesh.soon()

    @rule(index=INDEX, code=st.sampled_from(["busy", "no_memory", "load_failed"]))
    def refuse(self, index: int, code: str) -> None:
        self.pick(index, self.mesh.nodes).refuse_next = code

    @rule(index=INDEX)
    def advertise(self, index: int) -> None:
        self.pick(index, self.mesh.nodes).advertise()
        self.mesh.soon()

    # --- what wires do ----------------------------------------------------------------------

    @rule(index=INDEX, upward=st.booleans(), count=st.integers(1, 3))
    def deliver(self, index: int, upward: bool, count: int) -> None:
        """Some channel is quicker than the others: messages overtake each other across links."""
        channel = self.pick(index, self.mesh.channels)
        for _ in range(count):
            if not channel.held:
                channel.deliver(upward)
                self.mesh.soon()

    @rule()
    def settle(self) -> None:
        self.mesh.settle()

    @rule(index=INDEX, upward=st.booleans(), at=INDEX)
    def drop(self, index: int, upward: bool, at: int) -> None:
        channel = self.pick(index, [c for c in self.mesh.channels if c.up or c.down])
        if channel is not None:
            wire = channel.up if (upward and channel.up) or not channel.down else channel.down
            del wire[at % len(wire)]

    @rule(index=INDEX, upward=st.booleans(), at=INDEX)
    def double(self, index: int, upward: bool, at: int) -> None:
        channel = self.pick(index, [c for c in self.mesh.channels if c.up or c.down])
        if channel is not None:
            wire = channel.up if (upward and channel.up) or not channel.down else channel.down
            at %= len(wire)
            wire.insert(at, wire[at])

    @rule(index=INDEX, held=st.booleans())
    def hold(self, index: int, held: bool) -> None:
        self.pick(index, self.mesh.channels).held = held

    @rule(index=INDEX, told=st.booleans())
    def cut(self, index: int, told: bool) -> None:
        self.pick(index, self.mesh.channels).cut(told)
        self.mesh.soon()

    # --- what machines do -------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.25, 0.5, 0.5, 1.0]), count=st.sampled_from([1, 1, 4, 12]))
    def tick(self, seconds: float, count: int) -> None:
        for _ in range(count):
            self.mesh.tick(seconds)

    @rule(seconds=st.sampled_from([1.0, 3.0, 12.0]), work=st.sampled_from(["on", "on", None]))
    def run(self, seconds: float, work: str | None) -> None:
        """Time passes and messages arrive; held channels stay held, and fall silent."""
        self.mesh.run(seconds, work)

    @rule(index=INDEX)
    def restart_node(self, index: int) -> None:
        self.mesh.start_node(self.pick(index, self.mesh.nodes).id)
        self.mesh.soon()

    @rule()
    def restart_broker(self) -> None:
        self.mesh.start_broker()

    @rule(gateway=st.sampled_from(["gw-0", "gw-1"]))
    def restart_gateway(self, gateway: str) -> None:
        self.mesh.start_gateway(gateway)
        self.mesh.soon()

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def one_end_and_one_stream(self) -> None:
        for _, call in self.mesh.calls:
            assert len(call.ends) <= 1
            assert call.received == bytes(range(len(call.received))), "a gap, or doubled"
            if call.ends and isinstance(call.ends[0], Done):
                assert len(call.received) == LENGTH, "an end that is too early"
            if call.ends and isinstance(call.ends[0], NodeLost):
                assert call.ends[0].details["delivered"] <= len(call.received)
            if not call.ends:
                assert call.task.state in (State.PLACING, State.SUBMITTED, State.RUNNING)

    @invariant()
    def nodes_end_attempts_once(self) -> None:
        for node in self.mesh.nodes:
            assert all(count == 1 for count in node.ends.values())

    @invariant()
    def the_ledger_agrees_with_itself(self) -> None:
        ledger = self.mesh.broker.ledger
        assert sum(account.leases for account in ledger.accounts()) == len(ledger)

    def teardown(self) -> None:
        if not hasattr(self, "mesh"):
            return
        mesh = self.mesh
        for channel in mesh.channels:
            channel.held = False
        # All links find out what is wrong with them, and whoever waits is served. Nobody works.
        mesh.settle()
        mesh.run(25.0, work=None)
        for channel in mesh.channels:
            if channel.dialler is not None:
                assert channel.dialler.state is LinkState.READY
        self.one_end_and_one_stream()
        # The ledger is what gateways hold: no lease too many, and none too few.
        held = mesh.held()
        leased = {lease.key for lease in mesh.broker.ledger.leases()}
        assert leased <= set(held), "a lease that nobody holds"
        # Leases of nodes that were silent for long are void, and what runs there is others' work
        # to the broker; but it counts.
        for node in mesh.nodes:
            account = mesh.broker.ledger.account(node.id, "gpu", "m")
            assert account.load == len(node.executions)
        on_nodes = [
            (running.task, running.attempt)
            for node in mesh.nodes
            for running in node.executions.running()
        ]
        assert set(on_nodes) == set(held), "an attempt that nobody knows of, or that is nowhere"
        assert len(on_nodes) == len(set(on_nodes)), "one attempt on two nodes"
        # Now they work, and everything ends.
        mesh.run(60.0)
        mesh.run(12.0)
        for gateway, call in mesh.calls:
            if gateway in mesh.gateways.values():
                assert call.ends, f"never ended: {call.task.state}"
        assert not mesh.held()
        assert len(mesh.broker.ledger) == 0, "a lease was leaked"
        assert len(mesh.broker.scheduler.tickets) == 0, "a ticket was leaked"
        for node in mesh.nodes:
            assert len(node.executions) == 0, "a node still holds an attempt"
            assert all(count == 1 for count in node.ends.values())
        self.one_end_and_one_stream()
        # And the mesh is as good as new.
        for place in mesh.gateways:
            call = mesh.submit(place, False, 60.0)
            mesh.run(10.0)
            assert outcome(call) == "done"


def outcome(call: Call) -> str:
    """How a call ended, in a word."""
    if not call.ends:
        return "not ended"
    [end] = call.ends
    return end.message if isinstance(end, BlipError) else "done"


TestEverything = Everything.TestCase
TestEverything.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_mesh_where_nothing_goes_wrong() -> None:
    mesh = Mesh(nodes=2, gateways=2)
    mesh.run(4.0)
    calls = [mesh.submit(f"gw-{n % 2}", False, 60.0) for n in range(12)]
    mesh.run(20.0)
    assert [outcome(call) for call in calls] == ["done"] * 12
    assert len(mesh.broker.ledger) == 0
    # one that waits may be moved to a node that idles
    assert all((call.task.failures, call.task.refusals) == (0, 0) for call in calls)


def test_a_mesh_without_its_broker_goes_on() -> None:
    mesh = Mesh(nodes=2, gateways=1)
    mesh.run(4.0)
    for channel in mesh.channels:
        channel.held = channel.target == "broker"
    mesh.run(5.0)
    call = mesh.submit("gw-0", False, 60.0)
    mesh.run(5.0)
    assert outcome(call) == "done"
    assert not call.granted
