"""Yielding to the owner: by measured use, by the schedule, and how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import ConfigError
from blip_node.capacity.device import DeviceInfo, DeviceSample, Process
from blip_node.capacity.display import has_display
from blip_node.capacity.neighbour import (
    BUSY_FOR,
    QUIET_FOR,
    Limits,
    Neighbour,
    Policy,
    Use,
    foreign_use,
    policy_for,
)
from blip_node.capacity.schedule import parse

GIB = 2**30
GPU = DeviceInfo("gpu", 0, "nvidia", "x")
CPU = DeviceInfo("cpu", 0, "cpu", "x")
LIMITS = Limits(GIB, 0.25)
#: A Monday.
NOON = datetime(2026, 1, 5, 12, 0)


class Owner:
    """Time passes in halves of a second, as the agent looks."""

    def __init__(self, policy: Policy = Policy.POLITE, *schedule: str) -> None:
        self.neighbour = Neighbour(policy, LIMITS, parse(schedule))
        self.now = 100.0
        self.local = NOON

    def see(self, seconds: float = 0.5, **use: Any) -> str:
        for _ in range(int(seconds * 2)):
            reason = self.neighbour.observe(Use(**use), self.now, self.local)
            self.now += 0.5
            self.local += timedelta(seconds=0.5)
        return reason


@pytest.mark.parametrize(
    ("setting", "info", "machine", "policy"),
    [
        ("auto", GPU, False, Policy.SCHEDULE),
        ("auto", GPU, True, Policy.POLITE),
        ("auto", replace(GPU, display=True), False, Policy.POLITE),
        ("auto", replace(GPU, display=False), False, Policy.SCHEDULE),
        ("auto", CPU, True, Policy.SCHEDULE),
        ("off", GPU, True, Policy.OFF),
        ("polite", CPU, False, Policy.POLITE),
        ("strict", GPU, False, Policy.STRICT),
    ],
)
def test_policies(setting: Any, info: DeviceInfo, machine: bool, policy: Policy) -> None:
    assert policy_for(setting, info, machine_display=machine) is policy


def test_memory_counts_at_once() -> None:
    owner = Owner()
    assert owner.see(memory=GIB - 1) == ""
    assert owner.see(memory=3 * GIB) == "Its owner is using it: 3.0 GiB by other programs."


def test_utilisation_counts_when_it_lasts() -> None:
    owner = Owner()
    assert owner.see(BUSY_FOR, utilization=0.9) == ""
    assert owner.see(1.0, utilization=0.1) == ""
    assert owner.see(BUSY_FOR, utilization=0.9) == ""
    assert owner.see(utilization=0.5) == "Its owner is using it: 50% busy with other programs."


def test_it_returns_when_it_was_quiet_for_a_while() -> None:
    owner = Owner()
    owner.see(memory=2 * GIB)
    assert owner.see(QUIET_FOR - 1, memory=0)
    assert owner.see(memory=2 * GIB)
    assert owner.see(QUIET_FOR - 0.5, memory=0)
    assert owner.see(1.0, memory=0) == ""


@pytest.mark.parametrize("policy", [Policy.OFF, Policy.SCHEDULE])
def test_use_that_does_not_matter(policy: Policy) -> None:
    assert Owner(policy).see(60.0, memory=50 * GIB, utilization=1.0) == ""


def test_what_is_not_known_does_not_count() -> None:
    assert Owner(Policy.STRICT).see(60.0) == ""


@pytest.mark.parametrize("policy", [Policy.SCHEDULE, Policy.POLITE, Policy.STRICT])
def test_the_schedule_counts_whatever_is_measured(policy: Policy) -> None:
    owner = Owner(policy, "mon 12:01-13:00")
    assert owner.see(60.0) == ""
    assert owner.see() == "It is its owner's at this hour (mon 12:01-13:00)."
    owner.local = NOON.replace(hour=13)
    assert owner.see(QUIET_FOR - 1)
    assert owner.see(1.5) == ""
    assert Owner(Policy.OFF, "daily 00:00-24:00").see() == ""


@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_it_does_not_flap(looks: list[bool]) -> None:
    owner, was, changes, used = Owner(), "", 0, 0.0
    for busy in looks:
        at = owner.now
        reason = owner.see(memory=GIB if busy else 0)
        used = at if busy else used
        assert bool(reason) is (used > 0 and at - used < QUIET_FOR)
        changes += bool(reason) is not bool(was)
        was = reason
    assert changes <= 2 * (len(looks) / 2 / QUIET_FOR + 1)


def own(pid: int, memory: int) -> Process:
    return Process(pid, memory, True)


@pytest.mark.parametrize(
    ("info", "sample", "workers", "idle", "use"),
    [
        (GPU, None, [], True, Use()),
        (GPU, {"foreign_memory": 5, "utilization": 0.5}, [], True, Use(5, 0.5)),
        (GPU, {"foreign_memory": 5, "utilization": 0.5}, [(1, 0)], False, Use(5, None)),
        (GPU, {"utilization": 0.9, "foreign_utilization": 0.1}, [], False, Use(None, 0.1)),
        # our worker is listed as ours
        (GPU, {"foreign_memory": 5, "processes": (own(1, 9),)}, [(1, 4)], False, Use(5)),
        # it is not, as in a container, or not yet
        (GPU, {"foreign_memory": 5, "processes": ()}, [(1, 4)], False, Use(1)),
        (GPU, {"foreign_memory": 5, "processes": ()}, [(None, 9)], False, Use(0)),
        (CPU, {"foreign_memory": 5, "utilization": 0.5}, [], True, Use(None, 0.5)),
    ],
)
def test_what_others_use(
    info: DeviceInfo,
    sample: dict[str, Any] | None,
    workers: list[tuple[int | None, int]],
    idle: bool,
    use: Use,
) -> None:
    seen = None if sample is None else DeviceSample(info.id, 1.0, **sample)
    assert foreign_use(info, seen, workers=workers, idle=idle) == use


@pytest.mark.parametrize(
    ("line", "inside", "outside"),
    [
        ("mon-fri 09:00-18:00", ["05T09:00", "09T17:59"], ["05T08:59", "05T18:00", "10T12:00"]),
        ("sat,sun 20:00-02:00", ["10T20:00", "11T01:59", "12T01:59"], ["12T20:00", "10T01:00"]),
        ("fri-mon 1:00-2:00", ["05T01:30", "09T01:30"], ["06T01:30"]),
        ("Daily 22:00 - 24:00", ["05T23:59"], ["06T00:00"]),
        ("mon,wed-thu 00:00-24:00", ["05T00:00", "07T23:59", "08T12:00"], ["06T12:00"]),
    ],
)
def test_schedules(line: str, inside: list[str], outside: list[str]) -> None:
    (window,) = parse([line])
    for moment in inside:
        assert window.contains(datetime.fromisoformat(f"2026-01-{moment}")), moment
    for moment in outside:
        assert not window.contains(datetime.fromisoformat(f"2026-01-{moment}")), moment


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "expected days"),
        ("mon 9-18", "expected days"),
        ("monday 09:00-18:00", "'monday' is no day"),
        ("mon-frid 09:00-18:00", "'mon-frid' is no day"),
        ("mon, 09:00-18:00", "'' is no day"),
        ("mon 24:00-25:00", "no such time"),
        ("mon 09:60-10:00", "no such time"),
        ("mon 09:00-24:01", "no such time"),
        ("mon 09:00-09:00", "ends when it begins"),
    ],
)
def test_bad_schedules_name_the_line(line: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        parse(["mon 09:00-10:00", line])
    assert f"node.schedule: '{line}'" in error.value.message
    assert error.value.hint


def connector(root: Path, name: str, status: str, driver: str) -> None:
    card = name.partition("-")[0]
    (root / "drivers" / driver).mkdir(parents=True, exist_ok=True)
    device = root / "sys/class/drm" / card / "device"
    device.mkdir(parents=True, exist_ok=True)
    if not (device / "driver").exists():
        (device / "driver").symlink_to(root / "drivers" / driver)
    (root / "sys/class/drm" / name).mkdir()
    (root / "sys/class/drm" / name / "status").write_text(status + "\n")


def test_displays(tmp_path: Path) -> None:
    assert not has_display({}, tmp_path)
    assert has_display({"WAYLAND_DISPLAY": "wayland-0"}, tmp_path)
    assert has_display({"DISPLAY": ":0"}, tmp_path)
    assert not has_display({"DISPLAY": "localhost:10.0"}, tmp_path)
    connector(tmp_path, "card0-VGA-1", "connected", "ast")
    connector(tmp_path, "card1-HDMI-A-1", "disconnected", "nvidia")
    assert not has_display({}, tmp_path)
    connector(tmp_path, "card1-DP-1", "connected", "nvidia")
    assert has_display({}, tmp_path)
