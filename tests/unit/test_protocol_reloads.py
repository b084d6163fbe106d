from __future__ import annotations

from blip.protocol.reloads import DISK_BANDWIDTH, LOAD_START, regret, reload_seconds


def test_regret_falls_with_silence_and_grows_with_the_reload() -> None:
    over_time = [regret(2.0, silence) for silence in (0.0, 1.0, 10.0, 100.0, 1e6)]
    assert over_time == sorted(over_time, reverse=True)
    assert regret(20.0, 10.0) > regret(2.0, 10.0)
    assert regret(2.0, -5.0) == regret(2.0, 0.0), "a clock that stood still"


def test_a_large_model_stays_longer_but_not_for_ever() -> None:
    assert regret(60.0, 60.0) > regret(5.0, 0.0)
    assert regret(60.0, 600.0) < regret(5.0, 0.0)


def test_reloads_take_a_moment_and_the_bytes() -> None:
    assert reload_seconds(0, None) == reload_seconds(-5, 1e9) == LOAD_START
    assert reload_seconds(int(DISK_BANDWIDTH), None) == LOAD_START + 1
    assert reload_seconds(10**9, 1e9) == LOAD_START + 1
