"""What a gateway counts, in Prometheus' terms; one registry an app, so that tests may have many.

The counting is plain arithmetic on the event loop's one thread. prometheus_client's own counters
take a lock each time and search their buckets one by one, which shows on an echo; here it only
turns the numbers into its formats when someone asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

#: Seconds. From an echo on one machine (0.3 ms) to a long answer on a slow one (10 minutes).
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Histogram:
    """How often a time fell between two bounds, and the sum of all times."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return pairs of upper bound and how many were at most that, as Prometheus has it."""
        found = []
        below = 0
        for bound, count in zip((*map(float, _BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            found.append((str(bound), float(below)))
        return found


class Metrics(Collector):
    """The numbers of one gateway, by label values in the order in which they are declared."""

    def __init__(self) -> None:
        #: Requests being served.
        self.in_flight = 0
        #: By route and status; 499 means that the client went away.
        self.requests: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        #: By kind and outcome: 'succeeded' or the code of the error.
        self.tasks: defaultdict[tuple[str, str], int] = defaultdict(int)
        #: By kind.
        self.firsts: defaultdict[tuple[str], Histogram] = defaultdict(Histogram)
        #: By model and direction: 'prompt' or 'completion'.
        self.tokens: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def task(self, kind: str, outcome: str, first: float | None) -> None:
        """Count a task that ended; ``first`` is its time to the first part in seconds."""
        self.tasks[kind, outcome] += 1
        if first is not None:
            self.firsts[(kind,)].observe(first)

    def usage(self, model: str, usage: dict[str, int]) -> None:
        """Count the tokens of a task that succeeded, if its kind has any."""
        for direction in ("prompt", "completion"):
            count = usage.get(direction + "_tokens")
            if count:
                self.tokens[model, direction] += count

    def collect(self) -> Iterable[Metric]:
        """Yield everything, for prometheus_client."""
        yield GaugeMetricFamily(
            "blip_http_requests_in_flight", "Requests being served.", value=self.in_flight
        )
        requests = HistogramMetricFamily(
            "blip_http_request_seconds",
            "Seconds from the request's headers to the last byte of its answer. "
            "Status 499: the client went away.",
            labels=("route", "status"),
        )
        firsts = HistogramMetricFamily(
            "blip_task_first_part_seconds",
            "Seconds from the request to the first part of the answer: time to first token.",
            labels=("kind",),
        )
        for route, histogram in self.requests.items():
            requests.add_metric(route, histogram.buckets(), histogram.total)
        for kind, histogram in self.firsts.items():
            firsts.add_metric(kind, histogram.buckets(), histogram.total)
        yield requests
        yield firsts
        tasks = CounterMetricFamily(
            "blip_tasks",
            "Tasks that ended, by 'succeeded' or the code of the error.",
            labels=("kind", "outcome"),
        )
        tokens = CounterMetricFamily(
            "blip_tokens",
            "Tokens as the nodes counted them; direction is 'prompt' or 'completion'.",
            labels=("model", "direction"),
        )
        for counter, counts in ((tasks, self.tasks), (tokens, self.tokens)):
            for names, count in counts.items():
                counter.add_metric(names, count)
            yield counter

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all of it in a format that the ``Accept`` header allows, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
