"""What readings amount to: a multiplier and a sentence, that do not flap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_node.capacity.device import (
    DeviceEvent,
    DeviceInfo,
    DeviceSample,
    Reading,
    RemappedRows,
)
from blip_node.capacity.health import (
    DEAD_AFTER,
    ECC_SECONDS,
    HOLD,
    HOT,
    OLD,
    OLD_AFTER,
    REMAP_PENDING,
    THROTTLED,
    WARMING,
    Health,
    Verdict,
)

INFO = DeviceInfo("gpu", 0, "nvidia", "x")
COOL: frozenset[str] = frozenset()


class Watched:
    """A device that is looked at every half second and sampled every second."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 1000.0
        self.events: tuple[DeviceEvent, ...] = ()
        self._sample: DeviceSample | None = None

    def see(self, seconds: float = 1.0, **sample: Any) -> Verdict:
        end = self.now + seconds
        while self.now < end:
            self._sample = DeviceSample("gpu", self.now, **sample)
            self.look()
            verdict = self.look()
        return verdict

    def look(self) -> Verdict:
        verdict = self.health.observe(Reading(INFO, self._sample, 0.0, self.events), self.now)
        self.now += 0.5
        return verdict

    def answers(self) -> bool:
        return self.health.answers

    def xid(self, code: int, *, fatal: bool) -> None:
        self.events += (DeviceEvent("gpu", self.now, code, f"Xid {code}.", fatal),)


@pytest.fixture
def gpu() -> Watched:
    return Watched()


def test_nothing_known_is_healthy(gpu: Watched) -> None:
    assert gpu.look() == Verdict(1.0)
    assert gpu.see(60.0) == Verdict(1.0)


@pytest.mark.parametrize("reason", ["sw_power_cap", "applications_clocks", "sync_boost"])
def test_what_is_normal_at_work_is_healthy(gpu: Watched, reason: str) -> None:
    assert gpu.see(throttle=frozenset({reason}), clock=900.0, temperature=70) == Verdict(1.0)


@pytest.mark.parametrize("reason", sorted(THROTTLED))
def test_throttling(gpu: Watched, reason: str) -> None:
    verdict = gpu.see(throttle=frozenset({reason, "sw_power_cap"}))
    assert verdict == Verdict(THROTTLED[reason], f"It is throttled ({reason}).")
    assert gpu.answers()


@pytest.mark.parametrize(
    ("clock", "left"), [(1900.0, 0.9), (1410.0, 0.7), (1000.0, 0.5), (100.0, 0.2), (2500.0, 0.7)]
)
def test_throttling_by_the_clock_it_has_shown(gpu: Watched, clock: float, left: float) -> None:
    gpu.see(throttle=COOL, clock=2000.0)
    assert gpu.see(throttle=frozenset({"sw_thermal"}), clock=clock).multiplier == left


def test_a_clock_that_was_throttled_is_no_measure(gpu: Watched) -> None:
    gpu.see(throttle=frozenset({"hw_thermal"}), clock=1000.0)
    assert gpu.see(throttle=frozenset({"hw_thermal"}), clock=900.0).multiplier == 0.5


def test_heat(gpu: Watched) -> None:
    for degrees in range(60, 69):
        assert gpu.see(temperature=degrees, throttle=COOL) == Verdict(1.0)
    rising = gpu.see(temperature=69, throttle=COOL)
    assert rising == Verdict(WARMING, "It is at 69 °C, rising 60 °C a minute.")
    near = gpu.see(40.0, temperature=HOT, throttle=COOL)
    assert near == Verdict(WARMING, "It is at 85 °C, close to throttling.")
    silent = gpu.see(temperature=HOT)
    assert silent == Verdict(THROTTLED["sw_thermal"], "It is at 85 °C.")
    assert gpu.see(2 * HOLD, temperature=70, throttle=COOL) == Verdict(1.0)


def test_rounding_of_a_sensor_is_no_slope(gpu: Watched) -> None:
    for degrees in (80, 81, 80, 81, 81, 80) * 5:
        assert gpu.see(temperature=degrees, throttle=COOL) == Verdict(1.0)


def test_fatal_xids_hold_until_readmitted(gpu: Watched) -> None:
    gpu.xid(31, fatal=False)
    assert gpu.see() == Verdict(1.0)
    gpu.xid(79, fatal=True)
    assert gpu.see(3600.0) == Verdict(0.0, "Xid 79.")
    assert gpu.answers()
    gpu.health.readmit(gpu.now)
    assert gpu.see() == Verdict(1.0)
    gpu.now += 1
    gpu.xid(79, fatal=True)
    assert gpu.see().multiplier == 0


def test_memory_errors(gpu: Watched) -> None:
    assert gpu.see(ecc_uncorrected=7).multiplier == 1  # before our time
    assert gpu.see(ecc_uncorrected=8) == Verdict(
        0.5, "1 uncorrectable memory error within an hour."
    )
    assert gpu.see(ecc_uncorrected=9) == Verdict(
        0.25, "2 uncorrectable memory errors within an hour."
    )
    assert gpu.see(ECC_SECONDS + HOLD + 5, ecc_uncorrected=9).multiplier == 1
    assert gpu.see(ecc_uncorrected=12).multiplier == 0
    assert gpu.answers()
    gpu.health.readmit(gpu.now)
    assert gpu.see(ecc_uncorrected=12).multiplier == 1
    assert gpu.see(ecc_uncorrected=0).multiplier == 1  # a driver loaded anew
    assert gpu.see(ecc_uncorrected=1).multiplier == 0.5


@pytest.mark.parametrize(
    ("sample", "left", "answers"),
    [
        ({"lost": True}, 0.0, False),
        ({"lost": True, "error": "GPU is lost."}, 0.0, False),
        ({"remapped_rows": RemappedRows(0, 9, False, True)}, 0.0, False),
        ({"remapped_rows": RemappedRows(2, 0, False, False)}, 1.0, True),
        ({"remapped_rows": RemappedRows(2, 1, True, False)}, REMAP_PENDING, True),
    ],
)
def test_states(gpu: Watched, sample: dict[str, Any], left: float, answers: bool) -> None:
    verdict = gpu.see(**sample)
    assert verdict.multiplier == left
    assert gpu.answers() is answers
    assert (verdict.reason == "") is (left == 1)


def test_a_provider_that_hangs(gpu: Watched) -> None:
    gpu.see()
    seen = {round(2 * second) / 2: gpu.look().multiplier for second in range(int(DEAD_AFTER) * 3)}
    assert set(seen.values()) == {1.0, OLD, 0.0}
    assert not gpu.answers()
    assert gpu.see().multiplier == 0  # held
    assert gpu.answers()
    assert gpu.see(HOLD).multiplier == 1


def test_our_own_stop_is_not_the_providers(gpu: Watched) -> None:
    gpu.see()
    gpu.now += 3600.0  # SIGSTOP and SIGCONT, say
    assert gpu.look() == Verdict(1.0)
    assert gpu.look() == Verdict(1.0)
    assert OLD_AFTER > 4


def test_it_falls_at_once_and_rises_after_a_while(gpu: Watched) -> None:
    assert gpu.see(throttle=frozenset({"hw_thermal"})).multiplier == 0.5
    assert gpu.see(5.0, throttle=frozenset({"sw_thermal"})).multiplier == 0.5
    assert gpu.see(HOLD - 4, throttle=COOL).multiplier == 0.7
    assert gpu.see(5.0, throttle=COOL).multiplier == 1


samples: list[Callable[[], dict[str, Any]]] = [
    lambda: {"throttle": COOL, "temperature": 60},
    lambda: {"throttle": frozenset({"sw_thermal"}), "temperature": 60},
]


@given(st.lists(st.tuples(st.sampled_from(samples), st.integers(1, 40)), max_size=30))
def test_it_does_not_flap(course: list[tuple[Callable[[], dict[str, Any]], int]]) -> None:
    gpu, changes, was = Watched(), 0, 1.0
    began, fell = gpu.now, None
    for sample, seconds in course:
        for _ in range(seconds):
            left = gpu.see(**sample()).multiplier
            raw = 0.7 if sample()["throttle"] else 1.0
            assert left <= raw
            if left > was:
                assert fell is not None
                assert gpu.now - fell >= HOLD
            if left < was:
                fell = gpu.now
            changes += left != was
            was = left
    # at most a fall and a rise for each HOLD, however quickly it swings
    assert changes <= 2 * ((gpu.now - began) / HOLD + 1)
