"""A picture of a run: latency, utilisation and cold loads of each policy. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip.errors import ConfigError
from blip.sim.mesh import Outcome
from blip.sim.report import counted, devices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches, and dots for each: wide enough for three panels in a document.
SIZE, DPI = (15.0, 4.5), 110

#: More devices than that are a curve, not bars with names.
BARS = 12


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG.

    Raises :class:`~blip.errors.ConfigError` without matplotlib, or if it cannot be written there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"a plot needs matplotlib, which cannot be imported ({error})",
            hint="pip install 'blip-mesh[sim]', or say --no-plot.",
        ) from error
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    latency, busy, cold = figure.subplots(1, 3)
    _latency(latency, outcomes)
    _busy(busy, outcomes)
    _cold(cold, outcomes)
    figure.suptitle(f"{outcomes[0].scenario.name}: {outcomes[0].scenario.title}")
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise ConfigError(
            f"the plot cannot be written: {error}", hint="--plot FILE chooses where it goes."
        ) from error


def _latency(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """The share of tasks that took longer, both axes logarithmic: the tail is what one feels."""
    for outcome in outcomes:
        values = sorted(r.latency for r in counted(outcome) if r.finished >= 0)
        shares = [1 - rank / len(values) for rank in range(len(values))]
        axes.plot(values, shares, label=outcome.policy)
    axes.set(xscale="log", yscale="log", xlabel="latency, seconds", ylabel="share that took longer")
    axes.axhline(0.01, color="grey", linewidth=0.5, linestyle=":")
    axes.legend(fontsize="small")


def _busy(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """How long each device had anything to do."""
    width = 0.8 / len(outcomes)
    for number, outcome in enumerate(outcomes):
        shares: dict[str, float] = {}
        for node, device in devices(outcome):
            uptime = node.uptime(outcome.end) * max(1, len(node.devices))
            if uptime:
                shares[node.id] = shares.get(node.id, 0.0) + device.busy / uptime
        if len(shares) <= BARS:
            places = [place + number * width for place in range(len(shares))]
            axes.bar(places, list(shares.values()), width)
            middle = [place + 0.4 - width / 2 for place in range(len(shares))]
            axes.set_xticks(middle, list(shares), rotation=60, ha="right", fontsize="small")
        else:
            axes.plot(sorted(shares.values()))
            axes.set_xlabel("nodes, the idlest first")
    axes.set(ylabel="share of time at work", ylim=(0, 1.05))


def _cold(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Loads begun so far, over time."""
    for outcome in outcomes:
        at: list[Any] = sorted(t for _, device in devices(outcome) for t in device.loads)
        axes.step([0.0, *at, outcome.end], [0, *range(1, len(at) + 1), len(at)], where="post")
    axes.set(xlabel="seconds", ylabel="loads begun", ylim=(0, None))
