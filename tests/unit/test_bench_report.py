import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from blip.bench import tables
from blip.bench.cases import CASES
from blip.bench.load import Sample, Spread
from blip.bench.report import Pair, Quartiles, Visit, aims, summarise

BY_NAME = {case.name: case for case in CASES}


def visit(
    name: str,
    count: int,
    *,
    p50: float = 0.001,
    cpu: float = 0.1,
    errors: dict[str, int] | None = None,
    threads: dict[str, float] | None = None,
) -> Visit:
    case = BY_NAME[name]
    spread = Spread(count, p50, p50 * 3)
    none = Spread()
    sample = Sample(
        seconds=1.0,
        answers=0 if case.streamed else count,
        events=count if case.streamed else 0,
        errors=errors or {},
        latency=none if case.streamed else spread,
        first=spread if case.streamed else none,
        gap=spread if case.streamed else none,
        delay=spread if case.rate else none,
        cpu=0.02,
    )
    return Visit(case, sample, {"gateway": cpu * 0.75, "nodes": cpu * 0.25}, 0.0, threads or {})


def show(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=tables.WIDTH).print(table)
    return out.getvalue()


def test_ratios_are_of_one_round() -> None:
    pairs = [
        Pair(visit("echo-64", 500, cpu=0.2), visit("echo-64", 1000)),
        Pair(visit("echo-64", 50, cpu=0.02), visit("echo-64", 100, cpu=0.01)),  # a slow round
        Pair(visit("echo-64", 600, cpu=0.18), visit("echo-64", 1000)),
    ]
    row = summarise(pairs)
    rate, cpu = row.figures["rate"], row.figures["cpu"]
    assert rate.blip == 500
    assert rate.bare == 1000
    assert rate.ratio == pytest.approx((0.5, 0.5, 0.55))
    assert cpu.ratio.median == pytest.approx(4.0)
    assert row.roles["gateway"] == pytest.approx(0.4 * 0.75 / 1150)
    assert row.generator == pytest.approx(0.06 / 1150)


def test_added_time_is_a_difference() -> None:
    pair = Pair(visit("echo-1", 10, p50=0.003), visit("echo-1", 10, p50=0.001))
    assert summarise([pair]).figures["p50"].added.median == pytest.approx(0.002)


def test_streams_count_tokens() -> None:
    row = summarise([Pair(visit("paced-64", 3000), visit("paced-64", 3000))])
    assert row.streamed
    assert row.figures["rate"].blip == 3000
    assert row.figures["delay_p50"].ratio.median == 1.0


def test_what_has_no_stamps_has_no_delay() -> None:
    row = summarise([Pair(visit("unpaced-16", 3000), visit("unpaced-16", 3000))])
    assert math.isnan(row.figures["delay_p50"].ratio.median)


def test_errors_of_both_stacks_are_added_up_over_rounds() -> None:
    pairs = [
        Pair(visit("echo-1", 5, errors={"HTTP 503": 2}), visit("echo-1", 5)),
        Pair(visit("echo-1", 5, errors={"HTTP 503": 1}), visit("echo-1", 5, errors={"x": 4})),
    ]
    assert summarise(pairs).errors == {"blip: HTTP 503": 3, "bare: x": 4}


def test_quartiles() -> None:
    assert Quartiles.of([3.0]) == (3.0, 3.0, 3.0)
    assert Quartiles.of([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert math.isnan(Quartiles.of([1.0, math.nan]).median)


def results(**rates: int) -> dict[str, list[Pair]]:
    return {
        name.replace("_", "-"): [
            Pair(visit(name.replace("_", "-"), rate), visit(name.replace("_", "-"), 1000))
        ]
        for name, rate in rates.items()
    }


def test_aims_are_met_or_not() -> None:
    found = aims(results(echo_64=600, echo_256=300), {"gateway": 0.001, "nodes": 0.01})
    verdicts = {(aim.what, aim.unit): aim.met for aim in found}
    assert verdicts == {
        ("CPU per request, 64 connections", "x bare"): True,
        ("throughput, 64 connections", "x bare"): True,
        ("throughput, 256 connections", "x bare"): False,
        ("blip's own throughput, 256 connections", "x that at 64"): False,
        ("idle CPU of gateway, broker and nodes", "% of a core"): False,
    }


def test_aims_that_were_not_measured_are_left_out() -> None:
    assert aims({}, None) == []
    (token,) = aims(results(paced_64=3000), None)
    assert token.what.startswith("p50 added to a token")
    assert token.met


def test_no_answer_meets_no_aim() -> None:
    found = aims(results(echo_1=0, echo_64=0, echo_256=0, paced_64=0, mib_1=0), None)
    assert len(found) == 7
    assert not any(aim.met for aim in found)


def test_the_idle_store_and_workers_are_not_the_meshs() -> None:
    (aim,) = aims({}, {"gateway": 0.001, "broker": 0.001, "store": 0.5, "workers": 0.5})
    assert aim.reached.median == pytest.approx(0.002)
    assert aim.met


def test_tables_show_every_row_in_full() -> None:
    rows = [
        summarise([Pair(visit(name, 123456), visit(name, 234567))] * 2)
        for name in ("echo-1", "mib-16")
    ]
    text = show(tables.requests(rows))
    assert "echo-1 " in text
    assert "mib-16" in text
    assert "0.53" in text
    streams = [summarise([Pair(visit(name, 99999), visit(name, 9999))]) for name in
               ("paced-64", "unpaced-16")]  # fmt: skip
    text = show(tables.streams(streams))
    assert "unpaced-16" in text
    assert " - " in text  # no delay without stamps
    text = show(tables.where([*rows, *streams]))
    assert "paced-64 token" in text
    assert "…" not in show(tables.requests(rows)) + show(tables.streams(streams)) + text


def test_missed_aims_are_shown_as_such() -> None:
    found = aims(results(echo_64=600, echo_256=300), {"gateway": 0.02})
    text = show(tables.aims(found))
    assert text.count("not met") == 3
    assert "2.00" in text
    assert "…" not in text


def test_threads_below_a_hundredth_are_left_out() -> None:
    threads = {"gateway main": 0.9, "broker main": 0.0995, "gateway python": 0.0005}
    pair = Pair(visit("echo-1", 10, threads=threads), visit("echo-1", 10))
    text = show(tables.threads([summarise([pair])]))
    assert "gateway main" in text
    assert "90.0" in text
    assert "gateway python" not in text


def test_idle_shares_are_percent() -> None:
    assert "0.25" in show(tables.idle({"gateway": 0.0025}))
