"""The figures of ``blip bench text``: from times to ratios."""

from __future__ import annotations

import pytest

from blip.bench import speed, tables
from blip.bench.speed import ANSWERS, CROWD, PROMPTS, Times, Visit
from blip.errors import ConfigError, RuntimeFailed


def times(rate: float, gap: float = 0.01) -> Times:
    return Times(100, 100 / rate, gap, 2 * gap, 0.1)


def visit(alone: float, runtime: float, mesh: float | None, differing: int = 0) -> Visit:
    answer = None if mesh is None else times(mesh, 0.0105)
    return Visit(times(alone), times(runtime), answer, differing)


def test_times_are_summed_up() -> None:
    found = speed.times_of([[0.0, 1.0, 1.5, 2.0], [0.5, 1.0, 4.0]], 4.0, cpu=0.5)
    assert found == Times(5, 4.0, 0.5, 3.0, 0.75, 0.1)
    assert found.rate == 1.25


def test_answers_of_one_token_say_nothing() -> None:
    with pytest.raises(RuntimeFailed, match="nothing to measure"):
        speed.times_of([[0.0, 1.0]], 1.0)


def test_requests_are_the_same_every_time_and_of_all_lengths() -> None:
    requests = speed.requests_of(8, 100)
    assert requests == speed.requests_of(8, 100)
    assert requests != speed.requests_of(9, 100)[: len(requests)]
    assert len(requests) == 16
    assert {(len(prompt), tokens) for prompt, tokens in requests} == {
        (length, tokens) for length in PROMPTS for tokens in ANSWERS
    }
    assert all(1 <= token < 100 for prompt, _ in requests for token in prompt)


def test_ratios_are_taken_within_a_round() -> None:
    # the machine was half as fast in the second round: the ratio does not care
    row = speed.summarise(32, [visit(10, 40, 30), visit(5, 20, 15), visit(10, 50, 40, 1)])
    assert row.speedup.median == 4.0
    assert row.mesh_speedup is not None
    assert row.mesh_speedup.median == 3.0
    assert row.added is not None
    assert row.added.median == pytest.approx(0.0005)
    assert row.runtime.rate == 40
    assert row.differing == 1


def test_aims() -> None:
    crowd = speed.summarise(CROWD, [visit(10, 40, 30)])
    single = speed.summarise(1, [visit(10, 11, 10)])
    assert [aim.met for aim in speed.aims([single, crowd], "cpu")] == [True, True]
    assert [aim.met for aim in speed.aims([single, crowd], "cuda:0")] == [True, False]
    assert speed.aims([speed.summarise(8, [visit(10, 40, 30)])], "cpu") == []
    assert speed.aims([speed.summarise(1, [visit(10, 11, None)])], "cpu") == []


@pytest.mark.parametrize("mesh", [None, 30.0])
def test_tables(mesh: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [speed.summarise(32, [visit(10, 40, mesh)])]
    tables.print_tables(tables.text(rows))
    shown = capsys.readouterr().out
    assert "4.00" in shown
    assert ("3.00" in shown) is (mesh is not None)


def test_how_many_at_a_time() -> None:
    assert speed.companies_of("32,1, 8,8") == [1, 8, 32]
    for wrong in ("", "0", "1,x", "100000"):
        with pytest.raises(ConfigError, match="no numbers of requests"):
            speed.companies_of(wrong)
