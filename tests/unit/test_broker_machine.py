"""Everything at once, in any order: the broker against nodes and gateways that do as they like."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blip.broker.ledger import Key
from blip.broker.quotes import Quotes
from blip.broker.registry import Admission, Status
from blip.broker.scheduler import REPLAN, Command, Scheduler
from blip.broker.settings import Settings
from blip.errors import BY_CODE
from blip.protocol.codec import CONTROL_LIMIT, pack
from blip.protocol.messages import (
    Deny,
    Grant,
    Lease,
    Move,
    Order,
    Place,
    Release,
    Replica,
    Running,
)
from tests.unit.broker_mesh import GIB, advert, check, device, model, place, scheduler

NODES = ("a", "b", "c")
GATEWAYS = ("g", "h")
#: What is asked for: (model, kind).
LANES = (
    *(("m", "chat"), ("n", "chat"), ("big", "chat")) * 3,
    ("m", "embedding"),
    ("echo", "chat"),
    ("n", "embedding"),
    ("unknown", "chat"),
)
SETTINGS = Settings(queue_limit=6, queue_reserve=0.34, prefetch=1, refusal_pause=1.0, lookahead=4)

nodes = st.sampled_from(NODES)
gateways = st.sampled_from(GATEWAYS)


class Broker(RuleBasedStateMachine):
    """Plays nodes and gateways, and remembers what the broker owes them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        #: When a tick last planned everything anew.
        self.planned_at = -REPLAN
        self.broker: Scheduler = scheduler(SETTINGS)
        self.incarnations: dict[str, int] = {}
        #: Attempts that were asked for and not answered; leases that were granted and not ended.
        self.pending: dict[Key, tuple[str, Place]] = {}
        self.held: dict[Key, tuple[str, Place, Grant]] = {}
        #: Attempts that gateways were asked to move.
        self.moves: list[Key] = []

    # --- bookkeeping ------------------------------------------------------------------------

    def obey(self, commands: list[Command] | None) -> None:
        for gateway, message in commands or []:
            if isinstance(message, Order):
                assert gateway in self.broker.registry
                assert (message.verb, message.model) == ("load", "m")
                continue
            if isinstance(message, Move):
                assert self.held[message.task, message.attempt][0] == gateway
                self.moves.append((message.task, message.attempt))
                continue
            key = (message.task, message.attempt)
            assert key in self.pending, "answered twice, or never asked"
            owner, request = self.pending.pop(key)
            assert owner == gateway
            pack(1, message, CONTROL_LIMIT)
            if isinstance(message, Deny):
                assert message.code in BY_CODE
            else:
                self.granted(gateway, request, message)

    def granted(self, gateway: str, request: Place, grant: Grant) -> None:
        node = self.broker.registry.get(grant.node)
        assert node is not None
        assert node.status is Status.READY
        assert node.incarnation == grant.incarnation
        assert node.advert is not None
        assert not node.advert.draining
        assert grant.node not in request.exclude
        assert not request.require or node.advert.labels == {"zone": "attic"}
        (info,) = (d for d in node.advert.devices if d.id == grant.device)
        assert info.health > 0
        (found,) = (m for m in node.advert.models if m.name == request.model)
        assert request.kind in found.kinds
        account = self.broker.ledger.account(grant.node, grant.device, request.model)
        site = self.broker.index.find(account)
        assert site is not None
        assert account.load <= site.slots + SETTINGS.prefetch
        assert min(grant.wait, grant.service, grant.load) >= 0
        self.held[request.task, request.attempt] = (gateway, request, grant)

    def forget(self, gateway: str) -> None:
        self.pending = {k: v for k, v in self.pending.items() if v[0] != gateway}
        self.held = {k: v for k, v in self.held.items() if v[0] != gateway}

    # --- nodes ------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        for node in ("a", "b"):
            self.hello(node, 0)
            self.beat(node)

    @rule(node=nodes, step=st.sampled_from((0, 0, 0, 1, -1)))
    def hello(self, node: str, step: int) -> None:
        known = self.incarnations.get(node)
        incarnation = max(1, (known or 1) + step)
        there = node in self.broker.registry
        admission = self.broker.node_hello(node, incarnation, node, "", [], self.now)
        if there and known is not None and incarnation < known:
            assert admission is Admission.REJECTED
        else:
            assert admission is not Admission.REJECTED
            self.incarnations[node] = incarnation

    def beat(self, node: str, seldom: Callable[[str], bool] = lambda label: False) -> None:
        """Advertise what the broker expects, but for what happens ``seldom``."""
        sizes = {"m": 6.0, "n": 14.0, "big": 22.0, "echo": 0.0}
        models = [
            model(
                name,
                *("chat", "embedding") if name == "m" else ("chat",),
                memory=size,
                load=1.0,
                slots=2 if name == "m" else 1,
                error="broken" if seldom("error") else "",
                retry_in=5.0,
                min_replicas=2 if name == "m" else 0,
                max_replicas=1 if name == "n" else 0,
            )
            for name, size in sizes.items()
            if not seldom("no model")
        ]
        cards = [
            device(
                f"gpu{number}",
                speed=4.0 if node == "b" else 1.0,
                health=0.0 if seldom("dead") else 0.5 if seldom("ailing") else 1.0,
            )
            for number in range(1 if seldom("a device less") else 2 if node == "a" else 1)
        ]
        replicas = []
        for number, card in enumerate(cards):
            used = 0.0
            for each in models:
                account = self.broker.ledger.account(node, card.id, each.name)
                site = self.broker.index.find(account)
                there = site is not None and site.state.value != "cold"
                if there is seldom("surprise"):
                    continue
                state = "ready"
                for other in ("loading", "stopping", "failed"):
                    if seldom(other):
                        state = other
                replicas.append(
                    Replica(
                        each.name,
                        card.id,
                        state,
                        each.slots,
                        min(account.leases, each.slots) + seldom("others"),
                        seldom("others queue"),
                        each.memory,
                        0.5 if seldom("half") else 0.0,
                        3.0,
                    )
                )
                used += sizes[each.name]
            cards[number] = card._replace(memory_free=int(max(0.0, 24 - used) * GIB))
        running = [
            Running(lease.task, lease.attempt, not seldom("waiting"))
            for lease in self.broker.ledger.of_node(node)
            if not seldom("unlisted")
        ]
        known = node in self.broker.registry
        labels = {"zone": "cellar" if seldom("cellar") else "attic"}
        statement = advert(
            cards, models, replicas, running, draining=seldom("draining"), labels=labels
        )
        commands = self.broker.advert(node, statement, self.now)
        assert (commands is not None) is known
        self.obey(commands)

    @rule(node=nodes, odds=st.lists(st.integers(0, 60), max_size=5))
    def advertise(self, node: str, odds: list[int]) -> None:
        """State something else: the n-th thing that could be odd is, for every n in ``odds``."""
        things = itertools.count()
        self.beat(node, lambda label: next(things) in odds)

    def unreachable(self, node: str) -> None:
        known = node in self.broker.registry
        self.obey(self.broker.node_unreachable(node, self.now))
        # Of a node that it does not know (yet) the broker may hold adopted leases.
        assert not known or self.broker.ledger.of_node(node) == []

    def goodbye(self, node: str) -> None:
        known = node in self.broker.registry
        self.obey(self.broker.node_goodbye(node, self.now))
        assert node not in self.broker.registry
        assert not known or self.broker.ledger.of_node(node) == []

    # --- gateways ---------------------------------------------------------------------------

    @rule(
        gateway=gateways,
        lane=st.sampled_from(LANES),
        units=st.sampled_from((0.0, 10.0, 400.0)),
        priority=st.sampled_from((1, 5, 5, 10)),
        deadline=st.sampled_from((0.0, 0.0, 0.0, 0.5, 20.0)),
        exclude=st.sampled_from(((), (), (), ("a",), ("a", "b"))),
        tenant=st.sampled_from(("", "x", "y")),
        zone=st.sampled_from(("", "", "attic", "moon")),
        count=st.integers(1, 4),
    )
    def ask(
        self,
        gateway: str,
        lane: tuple[str, str],
        units: float,
        priority: int,
        deadline: float,
        exclude: tuple[str, ...],
        tenant: str,
        zone: str,
        count: int,
    ) -> None:
        for _ in range(count):
            request = place(
                *lane,
                units,
                priority=priority,
                deadline=deadline,
                exclude=list(exclude),
                tenant=tenant,
                require={"labels": {"zone": zone}} if zone else {},
            )
            self.pending[request.task, request.attempt] = (gateway, request)
            answer = self.broker.place(request, gateway, self.now)
            if answer is not None:
                self.obey([(gateway, answer)])

    @rule(node=nodes, data=st.data())
    def word_and_ask_again(self, node: str, data: st.DataObject) -> None:
        self.obey(self.broker.node_heard(node, self.now))
        held = data.draw(st.booleans())
        if self.held and (held or not self.pending):
            key = data.draw(st.sampled_from(sorted(self.held)))
            gateway, request, grant = self.held[key]
            if self.broker.ledger.get(*key) is not None:
                again = self.broker.place(request, gateway, self.now)
                assert isinstance(again, Grant)
                assert again.node == grant.node
        elif self.pending:
            key = data.draw(st.sampled_from(sorted(self.pending)))
            gateway, request = self.pending[key]
            assert self.broker.place(request, gateway, self.now) is None

    @rule(
        data=st.data(),
        outcome=st.sampled_from(("done", "done", "failed", "refused", "cancelled", "lost")),
        units=st.sampled_from((0.0, 10.0, 1e9)),
        run=st.sampled_from((0.0, 0.1, 3.0, 1e9)),
    )
    def release(self, data: st.DataObject, outcome: str, units: float, run: float) -> None:
        if self.held:
            key = data.draw(st.sampled_from(sorted(self.held)))
            gateway, _, _ = self.held.pop(key)
            release = Release(*key, outcome, units, run, run / 2)
            self.obey(self.broker.release(gateway, release, self.now))
            assert self.broker.ledger.get(*key) is None

    @rule()
    def move(self) -> None:
        """Do as the broker wishes, if the attempt is still there."""
        moves, self.moves = self.moves, []
        for key in moves:
            if key in self.held:
                gateway, request, _ = self.held.pop(key)
                self.obey(self.broker.release(gateway, Release(*key, "recalled"), self.now))
                again = request._replace(attempt=request.attempt + 1)
                self.pending[again.task, again.attempt] = (gateway, again)
                answer = self.broker.place(again, gateway, self.now)
                if answer is not None:
                    self.obey([(gateway, answer)])

    @rule(data=st.data(), gateway=gateways)
    def withdraw(self, data: st.DataObject, gateway: str) -> None:
        keys = sorted(self.pending.keys() | self.held.keys())
        if keys:
            key = data.draw(st.sampled_from(keys))
            known = (self.pending.get(key) or self.held.get(key) or ("",))[0]
            if known == gateway:
                self.pending.pop(key, None)
                self.held.pop(key, None)
            self.obey(self.broker.withdraw(gateway, *key, self.now))

    def gateway_lost(self, gateway: str) -> None:
        self.forget(gateway)
        self.obey(self.broker.gateway_lost(gateway, self.now))
        assert self.broker.ledger.of_gateway(gateway) == []

    def gateway_reconnects(self, gateway: str) -> None:
        """Half of what it held ended while it was away."""
        mine = [key for key, value in self.held.items() if value[0] == gateway]
        for key in mine[::2]:
            del self.held[key]
        self.greet(gateway)

    def greet(self, gateway: str) -> None:
        leases = [
            Lease(
                grant.task,
                grant.attempt,
                grant.node,
                grant.device,
                request.model,
                request.kind,
                request.units,
                1.0,
            )
            for owner, request, grant in self.held.values()
            if owner == gateway
        ]
        self.obey(self.broker.gateway_hello(gateway, leases, self.now))
        held = {key for key, value in self.held.items() if value[0] == gateway}
        assert {lease.key for lease in self.broker.ledger.of_gateway(gateway)} == held

    def broker_restarts(self) -> None:
        """A new one knows nothing; nodes and gateways greet it when they notice."""
        self.broker = scheduler(SETTINGS, settled_at=self.now + 3)
        self.planned_at = -REPLAN
        self.incarnations.clear()
        self.moves.clear()
        for gateway in GATEWAYS:
            self.greet(gateway)
        for gateway, request in list(self.pending.values()):
            answer = self.broker.place(request, gateway, self.now)
            if answer is not None:
                self.obey([(gateway, answer)])
        for node in NODES[:2]:
            self.hello(node, 0)

    @rule(
        what=st.sampled_from(
            ("reconnect", "reconnect", "unreachable", "goodbye", "gateway lost", "broker restarts")
        ),
        node=nodes,
        gateway=gateways,
    )
    def trouble(self, what: str, node: str, gateway: str) -> None:
        if what == "reconnect":
            self.gateway_reconnects(gateway)
        elif what == "unreachable":
            self.unreachable(node)
        elif what == "goodbye":
            self.goodbye(node)
        elif what == "gateway lost":
            self.gateway_lost(gateway)
        else:
            self.broker_restarts()

    # --- time -------------------------------------------------------------------------------

    @rule(
        seconds=st.sampled_from((0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 12.0)),
        silent=st.sampled_from(((), (), (), ("a",), ("b",), NODES)),
    )
    def tick(self, seconds: float, silent: tuple[str, ...]) -> None:
        self.now += seconds
        for name in NODES:
            if name in self.broker.registry and name not in silent:
                self.beat(name)
        first = self.broker.tickets.first(SETTINGS.lookahead)
        self.obey(self.broker.tick(self.now))
        for node in self.broker.registry.nodes():
            silence = self.now - node.heard
            assert (node.status is Status.READY) <= (silence < 3)
            assert (node.status is not Status.LOST) <= (silence < 10)
        for lease in self.broker.ledger.leases():
            assert lease.expires > self.now
        self.planned_at, before = self.now, self.planned_at
        if self.now - before < REPLAN:
            self.planned_at = before
            return
        for ticket in first:
            # Nobody waits for what is there to be had.
            if ticket.key in self.pending and ticket.site is not None:
                group = self.broker.index.groups[ticket.lane]
                candidate = group.members[ticket.site.device.key]
                quote = Quotes(SETTINGS).quote(candidate, ticket.demand.units, self.now, ticket.key)
                assert quote is None or not quote.room

    # --- what always holds ------------------------------------------------------------------

    @invariant()
    def sums_are_right(self) -> None:
        check(self.broker)

    @invariant()
    def everyone_who_asked_is_answered_or_waits(self) -> None:
        waiting = {ticket.key: ticket.gateway for ticket in self.broker.tickets}
        assert waiting == {key: gateway for key, (gateway, _) in self.pending.items()}
        assert len(waiting) <= SETTINGS.queue_limit

    @invariant()
    def leases_are_only_what_was_granted(self) -> None:
        # The other way round they may have expired, been revoked or got lost.
        for lease in self.broker.ledger.leases():
            assert self.held[lease.key][0] == lease.gateway

    @invariant()
    def every_decision_can_be_explained(self) -> None:
        for decision in self.broker.decisions(3):
            assert decision in self.broker.explain(decision.task)

    def teardown(self) -> None:
        """Whatever happened: with every node gone, nobody is left waiting."""
        for node in NODES:
            self.obey(self.broker.node_goodbye(node, self.now))
        self.now += 4  # past any settling
        self.obey(self.broker.tick(self.now))
        assert not self.pending
        assert not list(self.broker.tickets)


TestBroker = Broker.TestCase
TestBroker.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
