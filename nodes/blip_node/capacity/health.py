"""How far a device can be relied on: a multiplier from 1 to 0, and the sentence behind it. Pure.

The broker reads the multiplier as the share of a device that is left: at 0.5 it expects everything
to cost twice as much there, because the device is half as fast or fails every other time. At 0
nothing is placed, see :mod:`blip_node.standing`.

What is wrong now (heat, a driver that hangs) passes by itself. What has happened (a fatal Xid,
memory errors) counts until :meth:`Health.readmit`.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

from blip_node.capacity.device import DeviceSample, Reading

#: What is left of a device whose clocks are held down by heat or by its power supply. NVML's header
#: says of the three ``hw_`` reasons "reducing the core clocks by a factor of 2 or more".
#: ``sw_thermal`` lowers them step by step until the temperature holds; 0.7 is the middle of what
#: that may mean, used until the device has shown its clock without it. Every other reason, the
#: power cap above all, is how a healthy device looks at work.
THROTTLED: dict[str, float] = {
    "hw_thermal": 0.5,
    "hw_slowdown": 0.5,
    "hw_power_brake": 0.5,
    "sw_thermal": 0.7,
}

#: What is left of a throttling device, by its clock, is kept within these: it is at its limit, so
#: never as good as new, and it still computes, so never as bad as broken.
LEAST_THROTTLED, MOST_THROTTLED = 0.2, 0.9

#: Degrees Celsius at which GPUs begin to slow down: by model from 83 to 93, mostly above 85.
HOT = 85.0

#: What is left of a device that is about to throttle: little enough that an equal one beside it is
#: preferred (near equals are those within a tenth), too little to move anything to a slower one.
WARMING = 0.9

#: How far ahead a temperature is predicted, in seconds: heat sinks follow within about as much,
#: and what is placed now runs in that time.
FORECAST = 30.0

#: The slope is a line through the samples of this many seconds, at least so many of them: sensors
#: tell whole degrees, and over less time the slope is mostly rounding (ten samples one second
#: apart leave 2 °C of it in the forecast, five leave 6 °C).
SLOPE_SECONDS, SLOPE_SAMPLES = 15.0, 10

#: Seconds without a sample after which a device's numbers count as old: five samples missed, while
#: a busy driver may take one or two.
OLD_AFTER = 5.0

#: What is left of it then. Its free memory is not known any more, so a load there may well fail.
OLD = 0.5

#: Seconds without a sample after which the driver counts as dead. NVIDIA's own gives up on its
#: firmware after 45 s (Xid 119), so this is no busy moment any more.
DEAD_AFTER = 60.0

#: Longest step, in seconds, that counts towards the two above. If we were stopped ourselves the
#: first look back shows old samples, which is nobody's fault; we look twice a second.
LONGEST_STEP = 2.0

#: What is left once a row of memory waits to be remapped: the page is taken out of use at once, but
#: memory that has failed is likelier to fail again, and all is well only after a reset.
REMAP_PENDING = 0.5

#: Each uncorrectable memory error of the last hour halves what is left, and this many leave
#: nothing. An error costs whatever used that memory; its row is replaced, so errors of a sound
#: card stay single.
ECC_LIMIT, ECC_SECONDS = 3, 3600.0

#: A multiplier rises once nothing worse was seen for this long, and falls at once. What swings
#: about a threshold faster than that stays down, and adverts do not flap: heat swings within
#: seconds, as tasks come and go.
HOLD = 15.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is left of a device, 1 to 0, and why; no reason at 1."""

    multiplier: float
    reason: str = ""


HEALTHY = Verdict(1.0)


class Health:
    """The health of one device. Ask :meth:`observe` about every half second."""

    def __init__(self) -> None:
        self._readmitted = -math.inf
        self._last: float | None = None
        self._sampled: float | None = None
        self._waited = 0.0
        self._top: float | None = None
        self._heat: collections.deque[tuple[float, float]] = collections.deque()
        self._ecc: int | None = None
        self._errors: collections.deque[tuple[float, int]] = collections.deque()
        self._held: collections.deque[tuple[float, Verdict]] = collections.deque()
        #: Whether nothing that is so at this moment speaks against trying the device.
        self.answers = True

    def observe(self, reading: Reading, now: float) -> Verdict:
        """Judge a device by its reading; ``now`` never goes back."""
        self._learn(reading.sample, now)
        present = self._present(reading.sample)
        self.answers = present.multiplier > 0
        worst = min(present, self._past(reading), key=lambda verdict: verdict.multiplier)
        # the least of the last HOLD seconds: entries that a later one undercuts are never needed
        while self._held and self._held[-1][1].multiplier >= worst.multiplier:
            self._held.pop()
        self._held.append((now, worst))
        while self._held[0][0] <= now - HOLD:
            self._held.popleft()
        return self._held[0][1]

    def readmit(self, now: float) -> None:
        """Forget what has happened: the device has proved itself, or an operator vouches."""
        self._readmitted = now
        self._errors.clear()
        self._held.clear()

    # --- what was measured ------------------------------------------------------------------

    def _learn(self, sample: DeviceSample | None, now: float) -> None:
        step = 0.0 if self._last is None else min(now - self._last, LONGEST_STEP)
        self._last = now
        if sample is None:
            return
        if sample.at == self._sampled:
            self._waited += step
            return
        self._sampled, self._waited = sample.at, 0.0
        if sample.clock is not None and sample.throttle is not None and not _heat(sample.throttle):
            self._top = max(self._top or 0.0, sample.clock)
        if sample.temperature is not None:
            self._heat.append((sample.at, sample.temperature))
        while self._heat and self._heat[0][0] < sample.at - SLOPE_SECONDS:
            self._heat.popleft()
        count = sample.ecc_uncorrected
        if count is not None:
            # fewer than before: the driver was loaded anew, and counts from 0
            if self._ecc is not None and count > self._ecc:
                self._errors.append((sample.at, count - self._ecc))
            self._ecc = count
        while self._errors and self._errors[0][0] < sample.at - ECC_SECONDS:
            self._errors.popleft()

    def _slope(self) -> float:
        """Degrees a second, by least squares; 0 where there are too few samples."""
        if len(self._heat) < SLOPE_SAMPLES:
            return 0.0
        mean_at = sum(at for at, _ in self._heat) / len(self._heat)
        mean = sum(degrees for _, degrees in self._heat) / len(self._heat)
        spread = sum((at - mean_at) ** 2 for at, _ in self._heat)
        if spread == 0:
            return 0.0
        return sum((at - mean_at) * (degrees - mean) for at, degrees in self._heat) / spread

    # --- what it means ----------------------------------------------------------------------

    def _present(self, sample: DeviceSample | None) -> Verdict:
        if sample is None:
            return HEALTHY
        if sample.lost:
            return Verdict(0.0, sample.error or "The device is lost.")
        rows = sample.remapped_rows
        if rows is not None and rows.failed:
            return Verdict(0.0, "Its memory has more broken rows than it can replace.")
        if self._waited >= DEAD_AFTER:
            return Verdict(0.0, f"Its driver has not answered for {self._waited:.0f} s.")
        found = [HEALTHY]
        if self._waited >= OLD_AFTER:
            found.append(Verdict(OLD, "Its driver does not answer; its numbers are old."))
        if rows is not None and rows.pending:
            found.append(
                Verdict(REMAP_PENDING, "A broken row of its memory is replaced at its next reset.")
            )
        found.append(self._throttled(sample))
        found.append(self._warm(sample))
        return min(found, key=lambda verdict: verdict.multiplier)

    def _throttled(self, sample: DeviceSample) -> Verdict:
        reasons = _heat(sample.throttle)
        if not reasons:
            return HEALTHY
        left = min(THROTTLED[reason] for reason in reasons)
        text = f"It is throttled ({', '.join(sorted(reasons))})"
        if self._top is not None and sample.clock is not None and sample.clock < self._top:
            # tenths: a clock moves all the time, and placement cares for no less
            share = math.floor(10 * sample.clock / self._top) / 10
            left = min(MOST_THROTTLED, max(LEAST_THROTTLED, share))
            text += f": {sample.clock:.0f} of {self._top:.0f} MHz"
        return Verdict(left, text + ".")

    def _warm(self, sample: DeviceSample) -> Verdict:
        degrees, slope = sample.temperature, self._slope()
        if degrees is None:
            return HEALTHY
        if degrees >= HOT:
            if sample.throttle is None:  # nobody says that it is not throttled, so it may well be
                return Verdict(THROTTLED["sw_thermal"], f"It is at {degrees:.0f} °C.")
            return Verdict(WARMING, f"It is at {degrees:.0f} °C, close to throttling.")
        if degrees + slope * FORECAST >= HOT:
            return Verdict(
                WARMING, f"It is at {degrees:.0f} °C, rising {60 * slope:.0f} °C a minute."
            )
        return HEALTHY

    def _past(self, reading: Reading) -> Verdict:
        fatal = [event for event in reading.events if event.fatal and event.at > self._readmitted]
        if fatal:
            return Verdict(0.0, fatal[-1].text)
        errors = sum(count for _, count in self._errors)
        if errors:
            left = 0.0 if errors >= ECC_LIMIT else 0.5**errors
            plural = "error" if errors == 1 else "errors"
            return Verdict(left, f"{errors} uncorrectable memory {plural} within an hour.")
        return HEALTHY


def _heat(throttle: frozenset[str] | None) -> set[str]:
    return {reason for reason in throttle or () if reason in THROTTLED}
