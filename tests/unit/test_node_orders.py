"""Orders: what is answered, when, and what is wrong with those that cannot be carried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from blip.errors import ConfigError
from blip.protocol.messages import Order, Ordered
from blip_node.capacity.neighbour import Limits, Neighbour, Policy
from blip_node.cordons import Cordons
from blip_node.orders import TELL_EVERY, VERBS, Orders
from blip_node.standing import Event, Standing, State


class Node:
    """The devices of a node; what is left there is what a test says."""

    def __init__(self, *devices: str) -> None:
        self.standings = {
            device: Standing(device, Neighbour(Policy.OFF, Limits(1, 1.0))) for device in devices
        }
        self.remaining = 0
        self.now = 0.0
        self.orders = Orders(self, "cellar", self)
        self.answers: list[Ordered] = []

    def load(self, order: Order, say: Callable[[Ordered], None]) -> None:
        say(Ordered(order.number, "done", text=f"{order.model} loaded"))

    def unload(self, order: Order, say: Callable[[Ordered], None]) -> None:
        say(Ordered(order.number, "done", text=f"{order.model} unloaded"))

    def order(self, devices: Sequence[str], event: Event, wish: str) -> None:
        for device in devices:
            self.standings[device].order(event, self.now, wish)
        self.settle()

    def settle(self) -> None:
        """What a step does with a device on which nothing runs."""
        for standing in self.standings.values():
            if standing.state is State.DRAINING and not self.remaining:
                standing.state = State.CORDONED

    def left(self, devices: Sequence[str]) -> int:
        return self.remaining

    def give(self, verb: str, device: str = "", number: int = 7, **options: Any) -> None:
        order = Order(number, verb, device, "", options)
        self.orders.handle(order, self.answers.append, self.now)

    def tick(self, seconds: float = 0.5) -> None:
        self.now += seconds
        self.settle()
        self.orders.tick(self.now)

    def states(self) -> list[State]:
        return [standing.state for standing in self.standings.values()]


def test_cordon_and_uncordon_one_device() -> None:
    node = Node("a", "b")
    node.remaining = 3
    node.give("cordon", "b", reason="noisy")
    assert node.states() == [State.READY, State.CORDONED]
    assert node.standings["b"].reason == "Cordoned by an operator: noisy."
    assert node.answers == [Ordered(7, "done", "", "b cordoned", {"left": 3, "devices": ["b"]})]
    node.give("uncordon", "b", 8)
    assert node.states() == [State.READY] * 2
    assert node.answers[1] == Ordered(8, "done", "", "b uncordoned", {"left": 0, "devices": ["b"]})


def test_a_whole_node() -> None:
    node = Node("a", "b")
    node.give("cordon")
    assert node.states() == [State.CORDONED] * 2
    assert node.answers[0].text == "a, b cordoned"


def test_drain_tells_how_much_is_left_and_no_more_than_once_a_second() -> None:
    node = Node("a", "b")
    node.remaining = 5
    node.give("drain", "a")
    for left in (5, 4, 3, 2, 1):
        node.remaining = left
        node.tick(TELL_EVERY / 2)
    assert [answer.state for answer in node.answers] == ["running"] * 3
    assert [answer.details["left"] for answer in node.answers] == [5, 4, 2]
    assert node.answers[0].text == "5 left on a"
    assert node.states() == [State.DRAINING, State.READY]
    node.remaining = 0
    node.tick()
    assert node.answers[3:] == [Ordered(7, "done", "", "a drained", {"left": 0, "devices": ["a"]})]
    node.tick(60.0)
    assert len(node.answers) == 4


def test_drain_of_what_is_idle_is_done_at_once() -> None:
    node = Node("a")
    node.give("drain")
    assert [answer.state for answer in node.answers] == ["done"]


def test_a_drain_that_is_taken_back_has_failed() -> None:
    node = Node("a", "b")
    node.remaining = 1
    node.give("drain")
    node.give("uncordon", "b", 8)
    node.tick()
    failed = node.answers[-1]
    assert (failed.number, failed.state, failed.code) == (7, "failed", "unavailable")
    assert failed.text == "b uncordoned before the drain was done"


def test_uncordon_of_a_device_that_is_still_at_fault_fails() -> None:
    node = Node("a")
    node.standings["a"].state = State.FAULTED
    node.order = lambda devices, event, wish: None  # type: ignore[method-assign]
    node.give("uncordon", "a")
    (failed,) = node.answers
    assert (failed.state, failed.code) == ("failed", "unavailable")
    assert failed.text.startswith("device 'a' is cordoned: ")


@pytest.mark.parametrize(
    ("order", "code", "text", "hint"),
    [
        (("drain", "c"), "not_found", "node 'cellar' has no device 'c'", "It has a, b."),
        (("explode", "a"), "invalid_request", "node 'cellar' knows no order 'explode'", "cordon"),
    ],
)
def test_errors_name_what_there_is(order: tuple[str, str], code: str, text: str, hint: str) -> None:
    node = Node("a", "b")
    node.give(*order)
    (failed,) = node.answers
    assert (failed.state, failed.code, failed.text) == ("failed", code, text)
    assert hint in failed.details["hint"]
    assert node.states() == [State.READY] * 2


def test_other_errors() -> None:
    node = Node()
    node.give("drain")
    assert node.answers[0].text == "node 'cellar' has no device, or has not found it yet"
    node = Node("a")
    node.give("cordon", reason=["no", "text"])
    assert node.answers[0].details["param"] == "reason"
    assert node.states() == [State.READY]
    assert set(VERBS) >= {"cordon", "uncordon", "drain"}


def test_cordons_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "node.cordons"
    kept = Cordons(path)
    kept.read()
    assert kept.devices == {}
    kept.write({})
    assert not path.exists()
    kept.write({"gpu": "a new fan", "cpu": ""})
    again = Cordons(path)
    again.read()
    assert again.devices == {"gpu": "a new fan", "cpu": ""}
    assert [each.name for each in tmp_path.iterdir()] == ["node.cordons"]


@pytest.mark.parametrize("text", ["", "[]", '{"cordoned": ["gpu"]}', '{"cordoned": {"gpu": 1}}'])
def test_cordons_that_cannot_be_read_are_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.cordons"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read") as error:
        Cordons(path).read()
    assert "Delete the file" in error.value.hint
