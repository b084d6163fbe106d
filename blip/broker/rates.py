"""How fast each device runs and loads each model, learned from what it did.

A rate is in seconds a unit, for one attempt alone on its replica. Estimates live on a logarithmic
scale, where twice as fast and half as fast are equally far off. What is asked for is looked up
from the specific to the general:

1. this (kind, model) on this device: an average that gives the last run one fifth;
2. this (kind, model) on any device, divided by this device's speed;
3. the kind's default, divided by this device's speed.

Being right within a factor of 1.35 is good enough: in simulation it cost 15 % of mean latency.

How much work a task asks for is often only a bound (a chat that may answer with 1,000 tokens and
stops after 80), so the share of it that was really done is learned too, for each kind and model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from blip.protocol.reloads import DISK_BANDWIDTH, LOAD_START, reload_seconds

#: A device of a node: ``(node id, device id)``. What is learned outlives restarts of the node.
DeviceKey = tuple[str, str]

#: Weight of the newest run once there have been five; before, each counts the same.
ALPHA = 0.2

#: Weight of the newest task in the share of the asked work that is really done. Answers differ in
#: length far more than runs in speed, so it takes longer to learn: some twenty tasks count.
SHARE_ALPHA = 0.05

#: The least and the most of what was asked that is expected to be done.
SHARE_LEAST, SHARE_MOST = 1 / 64, 4.0

#: A run that took more than this many times what we expected means that something changed (a
#: driver, a power limit, another program), and the past no longer counts. dask does the same.
RESET_FACTOR = 2.0

#: One report moves an established estimate by no more than this factor, whatever it claims.
MOVE_LIMIT = 16.0

#: Seconds a unit that we believe at all: from 10 million units a second to one in three hours.
FASTEST, SLOWEST = 1e-7, 1e4

#: Seconds a unit on a device of speed 1, taken as a mid-range card of some years ago. Units are
#: the kinds' own: output tokens, texts, characters, seconds of audio, steps x megapixels. A first
#: guess, replaced by the first run.
DEFAULTS: dict[str, float] = {
    "chat": 1 / 40,
    "completion": 1 / 40,
    "caption": 1 / 40,
    "embedding": 1 / 2000,
    "rerank": 1 / 1000,
    "text-classification": 1 / 1000,
    "zero-shot-classification": 1 / 1000,
    "token-classification": 1 / 1000,
    "fill-mask": 1 / 1000,
    "feature-extraction": 1 / 1000,
    "question-answering": 1 / 1000,
    "text2text-generation": 1 / 100,
    "classification": 1 / 500,
    "moderation": 1 / 5000,
    "image": 1 / 4,
    "speech": 1 / 75,
    # Pictures: a pass of an encoder of 100 to 300 million weights, and what is made of it.
    "detection": 1 / 20,
    "image-classification": 1 / 50,
    "depth": 1 / 20,
    "segmentation": 1 / 10,
    "image-feature-extraction": 1 / 50,
    # Seconds of sound through an encoder of a hundred million weights.
    "audio-classification": 1 / 100,
    "zero-shot-audio-classification": 1 / 100,
    # Its units count every frame, of which the denoiser sees a quarter to an eighth.
    "video": 1 / 20,
    "upscale": 2.0,
    "transcription": 1 / 20,
    "translation": 1 / 20,
    # Its units are the seconds it was asked to take.
    "echo": 1.0,
}
#: For kinds that only a plugin knows.
DEFAULT = 1 / 20

#: Loads smaller than this say nothing about bandwidth: the start outweighs them.
MEASURABLE = 64 * 1024 * 1024

#: Bytes a second that we believe at all: a floppy disk to all of an HBM stack.
SLOWEST_BANDWIDTH, FASTEST_BANDWIDTH = 1e5, 1e13

#: When the estimate for a model on any device moved by this factor, those who use it should know:
#: soon, or at once if it turned out to be a different order of magnitude.
NEWS_FACTOR, ALARM_FACTOR = 1.25, 2.0


@dataclass(slots=True)
class Estimate:
    """An average on a logarithmic scale. ``runs`` counts what went into it."""

    log: float
    runs: int = 1
    #: Its logarithm when it was last reported as news.
    told: float = 0.0

    @property
    def value(self) -> float:
        """The estimate itself."""
        return math.exp(self.log)

    def add(self, value: float, *, reset_above: float = math.inf) -> None:
        """Take one more measurement; above ``reset_above`` times the estimate it replaces it."""
        distance = math.log(value) - self.log
        limit = math.log(MOVE_LIMIT)
        distance = min(limit, max(-limit, distance))
        self.runs += 1
        if distance > math.log(reset_above):
            self.log += distance
            self.runs = 1
        else:
            self.log += distance * max(ALPHA, 1 / self.runs)


class Rates:
    """Learned rates and load bandwidths.

    ``limit`` bounds the number of (kind, model, device) estimates; beyond it those that were
    created first are dropped.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        #: Rises when estimates for devices that never ran a model moved notably, and where it
        #: stood when those of a (kind, model) last did.
        self.version = 0
        self.moved: dict[tuple[str, str], int] = {}
        self._devices: dict[tuple[str, str, DeviceKey], Estimate] = {}
        #: At speed 1.
        self._models: dict[tuple[str, str], Estimate] = {}
        self._bandwidths: dict[DeviceKey, Estimate] = {}
        #: Mean share of the asked units that was done, and how many tasks went into it.
        self._shares: dict[tuple[str, str], tuple[float, int]] = {}

    def expected(self, kind: str, model: str, asked: float) -> float:
        """Predict the units of a task that asks for at most so many."""
        share, _ = self._shares.get((kind, model), (1.0, 0))
        return asked * share

    def observe_work(self, kind: str, model: str, asked: float, done: float) -> None:
        """Learn from a task that was done to its end. Nonsense is ignored."""
        if not (0 < asked < math.inf and 0 < done < math.inf):
            return
        share, tasks = self._shares.get((kind, model), (0.0, 0))
        newest = _clamp(done / asked, SHARE_LEAST, SHARE_MOST)
        share += (newest - share) * max(SHARE_ALPHA, 1 / (tasks + 1))
        self._shares[kind, model] = share, tasks + 1

    def seconds_per_unit(self, kind: str, model: str, device: DeviceKey, speed: float) -> float:
        """Predict the seconds one unit takes alone on a device of that (prior) speed."""
        estimate = self._devices.get((kind, model, device))
        if estimate is not None:
            return estimate.value
        general = self._models.get((kind, model))
        base = DEFAULTS.get(kind, DEFAULT) if general is None else general.value
        return _clamp(base / _speed(speed), FASTEST, SLOWEST)

    def knows(self, kind: str, model: str) -> bool:
        """Whether any device has run that model: before, predictions are guesses."""
        return (kind, model) in self._models

    def learned(self, kind: str, model: str, device: DeviceKey) -> bool:
        """Whether this very device has run that model."""
        return (kind, model, device) in self._devices

    def observe(
        self, kind: str, model: str, device: DeviceKey, speed: float, units: float, seconds: float
    ) -> bool:
        """Learn from a run: ``units`` of work that took, or would have taken, ``seconds`` alone.

        Nonsense (nothing done, no time, not finite) is ignored. Returns True when what is
        predicted for devices that never ran this model has changed a lot.
        """
        if not (0 < units < math.inf and 0 < seconds < math.inf):
            return False
        rate = _clamp(seconds / units, FASTEST, SLOWEST)
        key = (kind, model, device)
        estimate = self._devices.get(key)
        if estimate is None:
            self._devices[key] = Estimate(math.log(rate))
            if len(self._devices) > self.limit:
                del self._devices[next(iter(self._devices))]
        else:
            estimate.add(rate, reset_above=RESET_FACTOR)
        at_one = _clamp(rate * _speed(speed), FASTEST, SLOWEST)
        general = self._models.get((kind, model))
        if general is None:
            self._models[kind, model] = Estimate(math.log(at_one), told=math.log(at_one))
            self._news(kind, model)
            return True
        general.add(at_one)
        moved = abs(general.log - general.told)
        if moved > math.log(NEWS_FACTOR):
            general.told = general.log
            self._news(kind, model)
        return moved > math.log(ALARM_FACTOR)

    def _news(self, kind: str, model: str) -> None:
        self.version += 1
        self.moved[kind, model] = self.version

    def load_seconds(
        self, device: DeviceKey, size: int, advertised: float | None, most: float | None = None
    ) -> float:
        """Predict the seconds until a model of ``size`` bytes is loaded on an idle device.

        ``advertised`` is the node's own measurement in bytes a second; it outlives brokers, so it
        goes before ours. Before any load was measured, a disk is assumed, or ``most``, what the
        link to the device carries, if that is less: a riser with one lane.
        """
        if advertised is not None and SLOWEST_BANDWIDTH <= advertised <= FASTEST_BANDWIDTH:
            bandwidth = advertised
        elif device in self._bandwidths:
            bandwidth = self._bandwidths[device].value
        else:
            bandwidth = DISK_BANDWIDTH if most is None else min(DISK_BANDWIDTH, most)
        return reload_seconds(size, bandwidth)

    def observe_load(self, device: DeviceKey, size: int, seconds: float) -> None:
        """Learn from a load. Small ones and nonsense are ignored."""
        if size < MEASURABLE or not 0 < seconds < math.inf:
            return
        # A load as quick as its start alone still took some of it to move the bytes.
        moving = max(seconds - LOAD_START, seconds / 10, size / FASTEST_BANDWIDTH)
        bandwidth = max(size / moving, SLOWEST_BANDWIDTH)
        estimate = self._bandwidths.get(device)
        if estimate is None:
            self._bandwidths[device] = Estimate(math.log(bandwidth))
        else:
            estimate.add(bandwidth)


def _speed(speed: float) -> float:
    """Read an advertised speed; what is not a positive number is 1."""
    return _clamp(speed, 1e-3, 1e3) if 0 < speed < math.inf else 1.0


def _clamp(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
