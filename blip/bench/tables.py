"""How the figures look on a terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from blip.bench.freed import Row as Freed
from blip.bench.placement import KIB, MICRO, Spread, Weight
from blip.bench.placement import Row as Decisions
from blip.bench.report import Aim, Figure, Quartiles, Row
from blip.bench.speed import Row as Speed

#: Columns that every table here fits into; a pipe has no width of its own.
WIDTH = 120

_MILLI = 1e3
_MICRO = 1e6


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables on stdout, as wide as they are where that is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for table in tables:
        console.print(table)


def requests(rows: Sequence[Row]) -> Table:
    """Return the table of the cases that count requests."""
    table = _table("requests", "req/s", "x bare", "p50 ms", "added", "p99 ms", "x bare", "CPU µs",
                   "x bare", "errors")  # fmt: skip
    for row in rows:
        of = row.figures
        table.add_row(
            row.case,
            _number(of["rate"].blip),
            _ratio(of["rate"]),
            *_time_and_added(of["p50"]),
            _number(of["p99"].blip, _MILLI),
            _number(of["p99"].ratio.median),
            _number(of["cpu"].blip, _MICRO),
            _ratio(of["cpu"]),
            _errors(row),
        )
    return table


def streams(rows: Sequence[Row]) -> Table:
    """Return the table of the cases that count tokens."""
    table = _table("streams", "token/s", "x bare", "first ms", "added", "token ms", "added",
                   "p99 ms", "gap p99", "CPU µs", "x bare", "errors")  # fmt: skip
    for row in rows:
        of = row.figures
        table.add_row(
            row.case,
            _number(of["rate"].blip),
            _number(of["rate"].ratio.median),
            *_time_and_added(of["first_p50"]),
            *_time_and_added(of["delay_p50"]),
            _number(of["delay_p99"].blip, _MILLI),
            _number(of["gap_p99"].blip, _MILLI),
            _number(of["cpu"].blip, _MICRO),
            _number(of["cpu"].ratio.median),
            _errors(row),
        )
    return table


def where(rows: Sequence[Row]) -> Table:
    """Return where blip's CPU time goes: microseconds of a request or token by role."""
    names = list(dict.fromkeys(name for row in rows for name in row.roles))
    table = _table("CPU µs of one", *names, "all of blip", "bare", "(generator)")
    for row in rows:
        table.add_row(
            f"{row.case} {'token' if row.streamed else 'request'}",
            *(_number(row.roles.get(name, math.nan), _MICRO) for name in names),
            _number(sum(row.roles.values()), _MICRO),
            _number(row.figures["cpu"].bare, _MICRO),
            _number(row.generator, _MICRO),
        )
    return table


def threads(rows: Sequence[Row]) -> Table:
    """Return the threads that take at least a hundredth of blip's CPU time in some case."""
    totals = {row.case: sum(row.threads.values()) or math.nan for row in rows}
    names = {
        name: share
        for row in rows
        for name, seconds in row.threads.items()
        if (share := seconds / totals[row.case]) >= 0.01
    }
    table = _table("% of blip's CPU", *(row.case for row in rows))
    for name in sorted(names):
        cells = (row.threads.get(name, 0.0) / totals[row.case] * 100 for row in rows)
        table.add_row(name, *(_number(cell) for cell in cells))
    return table


def idle(shares: Mapping[str, float]) -> Table:
    """Return what the roles use while nothing is asked of them, in percent of a core."""
    table = _table("idle", *shares)
    table.add_row("% of a core", *(f"{share * 100:.2f}" for share in shares.values()))
    return table


def aims(found: Sequence[Aim]) -> Table:
    """Return the aims and what was reached."""
    table = _table("aim", "", "", "reached", "quartiles", "")
    table.columns[2].justify = "left"
    for aim in found:
        q1, median, q3 = (value * aim.scale for value in aim.reached)
        table.add_row(
            aim.what,
            f"{aim.bound} {aim.limit * aim.scale:g}",
            aim.unit,
            _number(median),
            f"{_number(q1)} to {_number(q3)}" if q1 != q3 else "",
            Text("met", "green") if aim.met else Text("not met", "red"),
        )
    return table


def decisions(rows: Sequence[Decisions]) -> Table:
    """Return the table of what the broker's calls take."""
    table = _table("µs", "place", "p99", "aim", "release", "p99", "advert", "p99", "adverts/s",
                   "tick", "p99", "run", "wait", "refused")  # fmt: skip
    for row in rows:
        table.add_row(
            row.case,
            *_spread(row.place),
            Text("met", "green") if row.met else Text("not met", "red"),
            *_spread(row.release),
            *_spread(row.advert),
            _number(row.adverts),
            *_spread(row.tick),
            str(row.running),
            str(row.waiting),
            f"{row.refused:.0%}",
        )
    return table


def weights(found: Sequence[Weight]) -> Table:
    """Return the table of what a broker's nodes weigh."""
    table = _table("memory", "MiB", "KiB a node")
    for weight in found:
        table.add_row(
            f"{weight.nodes} nodes",
            _number(weight.bytes, 1 / KIB**2),
            _number(weight.each, 1 / KIB),
        )
    return table


def text(rows: Sequence[Speed]) -> list[Table]:
    """Return the tables of how fast a model's tokens come: in a runtime, and through the mesh."""
    runtime = _table("runtime", "token/s", "generate", "x generate", "gap ms", "p99",
                     "generate p99", "first ms")  # fmt: skip
    mesh = _table("mesh", "token/s", "x generate", "gap ms", "added", "p99", "first ms",
                  "CPU µs")  # fmt: skip
    for row in rows:
        runtime.add_row(
            f"{row.company} at a time",
            _number(row.runtime.rate),
            _number(row.alone.rate),
            _of(row.speedup),
            _number(row.runtime.gap, _MILLI),
            _number(row.runtime.gap_p99, _MILLI),
            _number(row.alone.gap_p99, _MILLI),
            _number(row.runtime.first, _MILLI),
        )
        if row.mesh is not None and row.mesh_speedup is not None and row.added is not None:
            mesh.add_row(
                f"{row.company} at a time",
                _number(row.mesh.rate),
                _of(row.mesh_speedup),
                _number(row.mesh.gap, _MILLI),
                _number(row.added.median, _MILLI),
                _number(row.mesh.gap_p99, _MILLI),
                _number(row.mesh.first, _MILLI),
                _number(row.mesh.cpu, _MICRO),
            )
    return [runtime, mesh] if mesh.row_count else [runtime]


def cancels(rows: Sequence[Freed]) -> Table:
    """Return the table of how soon slots are free after a connection is closed."""
    table = _table("cancel", "model", "a step is", "step ms", "alone ms", "noise", "freed ms",
                   "worst", "within")  # fmt: skip
    for row in rows:
        enough = row.freed and row.within == len(row.freed)
        freed = statistics.median(row.freed) if row.freed else math.nan
        table.add_row(
            row.kind,
            row.model,
            row.step,
            _number(row.seconds, _MILLI),
            _number(statistics.median(row.alone), _MILLI),
            _number(row.noise, _MILLI),
            _number(freed, _MILLI),
            _number(max(row.freed, default=math.nan), _MILLI),
            Text(f"{row.within} of {len(row.freed)}", "green" if enough else "red"),
        )
    return table


def _spread(spread: Spread) -> tuple[str, str]:
    if not spread.count:
        return "-", "-"
    return _number(spread.median, MICRO), _number(spread.p99, MICRO)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float, scale: float = 1.0) -> str:
    """Write a number with three significant digits, "-" for NaN."""
    value *= scale
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(figure: Figure) -> str:
    return _of(figure.ratio)


def _of(ratio: Quartiles) -> str:
    if ratio.q1 == ratio.q3:
        return _number(ratio.median)
    return f"{_number(ratio.median)} [{_number(ratio.q1)}-{_number(ratio.q3)}]"


def _time_and_added(figure: Figure) -> tuple[str, str]:
    added = figure.added.median * _MILLI
    sign = "+" if added > 0 else ""
    return _number(figure.blip, _MILLI), f"{sign}{_number(added)}"


def _errors(row: Row) -> Text:
    count = sum(row.errors.values())
    return Text(str(count), "red" if count else "")
