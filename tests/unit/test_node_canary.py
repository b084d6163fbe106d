"""Canaries: which model, what is asked, and which answers show that a device works."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from blip.errors import ModelLoadFailed
from blip.kinds import KINDS, input_from_wire
from blip.kinds.pipelines import results_to_wire
from blip.kinds.text import Delta, Finish, TokenLogprob, delta_to_wire
from blip_node.canary import QUESTIONS, Canary, choose, possible
from blip_node.catalogue import Catalogue, Entry
from blip_node.executions import State
from blip_node.models.spec import ModelSpec
from tests.unit.gateway_mesh import png

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    made = Catalogue()
    made.add(
        [
            ModelSpec("echo", "builtin:echo"),
            ModelSpec("tiny-chat", str(MODELS / "tiny-chat")),
            ModelSpec("tiny-embed", str(MODELS / "tiny-embed")),
        ]
    )
    return made


def only(catalogue: Catalogue, *names: str) -> list[Entry]:
    return [entry for entry in catalogue if entry.spec.name in names]


def chosen(entries: list[Entry], now: float = 0.0) -> tuple[str, str] | None:
    found = choose(entries, gpu=True, now=now)
    assert possible(entries, now) is (found is not None)
    return None if found is None else (found[0].spec.name, found[1])


def test_the_model_that_takes_least_and_an_echo_only_without_any(catalogue: Catalogue) -> None:
    entries = list(catalogue)
    least = min(entries[1:], key=lambda entry: entry.memory(gpu=True))
    found = chosen(entries)
    assert found is not None
    assert found[0] == least.spec.name
    assert chosen(only(catalogue, "echo")) == ("echo", "echo")
    assert chosen(only(catalogue, "tiny-chat")) == ("tiny-chat", "completion")
    assert chosen([]) is None


def test_a_model_that_cannot_be_loaded_is_no_measure(catalogue: Catalogue) -> None:
    entries = only(catalogue, "tiny-embed")
    entries[0].broken(ModelLoadFailed("no such file"), 100.0)
    assert chosen(entries, 101.0) is None
    assert chosen(entries, 1000.0) == ("tiny-embed", "embedding")
    entries[0].error = None


def test_there_is_a_question_for_each_kind_and_it_is_valid() -> None:
    assert set(QUESTIONS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(QUESTIONS))
def test_its_execution_is_one_that_a_worker_can_run(catalogue: Catalogue, kind: str) -> None:
    canary = Canary(next(iter(catalogue)), kind, "gpu", 5.0)
    execution = canary.execution
    assert input_from_wire(KINDS[kind], execution.payload) == QUESTIONS[kind].input
    assert execution.peer is None
    assert execution.expires == canary.deadline > 5.0


def test_a_sick_device_says_nothing_about_the_model(catalogue: Catalogue) -> None:
    entry = next(iter(catalogue))
    canary = Canary(entry, "echo", "gpu", 5.0)
    entry.broken(ModelLoadFailed("CUDA error"), 6.0)
    canary.failed()
    assert entry.error is None
    assert canary.execution.state is not State.RUNNING


def step(ids: list[int], *chances: float) -> Delta:
    return Delta("x", ids, [TokenLogprob("x", chance, b"x", []) for chance in chances] or None)


def finish(ids: list[int], *chances: float) -> bytes:
    return delta_to_wire(Finish("length", "", ids, step(ids, *chances).logprobs))


VECTOR = struct.pack("<3f", 0.0, 0.6, 0.8)


@pytest.mark.parametrize(
    ("kind", "parts", "end", "wrong"),
    [
        ("echo", [], b"1, 2, 3,", ""),
        ("echo", [], b"1, 2, 3", "not what was sent"),
        ("embedding", [], VECTOR, ""),
        ("embedding", [], b"", "empty"),
        ("embedding", [], VECTOR[:5], "no vector"),
        ("embedding", [], struct.pack("<2f", 1.0, math.nan), "not finite"),
        ("embedding", [], struct.pack("<2f", math.inf, 1.0), "not finite"),
        ("embedding", [], bytes(12), "all zeros"),
        ("rerank", [], VECTOR, ""),
        ("rerank", [], struct.pack("<f", math.nan), "not finite"),
        ("text-classification", [], results_to_wire([[["A", 0.5]]]), ""),
        ("fill-mask", [], results_to_wire([]), "cannot be read"),
        ("text2text-generation", [], b"\xc1", "cannot be read"),
        ("image", [], b"", "no picture"),
        ("image", [], png(8, 8), ""),
        ("chat", [], finish([5], -0.5), ""),
        ("completion", [delta_to_wire(step([5], -0.5))], finish([]), ""),
        ("completion", [], finish([]), "empty"),
        ("completion", [], finish([5], math.nan), "not finite"),
        ("chat", [delta_to_wire(step([5], -math.inf))], finish([6], -0.1), "not finite"),
        ("chat", [], b"\xc1", "cannot be read"),
        ("chat", [b"\x93"], finish([5]), "cannot be read"),
    ],
)
def test_answers(
    catalogue: Catalogue, kind: str, parts: list[bytes], end: bytes, wrong: str
) -> None:
    canary = Canary(next(iter(catalogue)), kind, "gpu", 5.0)
    for part in parts:
        canary.part(part)
    said = canary.done(end)
    assert wrong in said
    assert bool(said) is bool(wrong)
