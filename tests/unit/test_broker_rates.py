"""Learned rates."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.broker import rates as rates_module
from blip.broker.rates import DEFAULTS, FASTEST, SLOWEST, Rates
from blip.protocol.reloads import LOAD_START

A, B = ("a", "gpu0"), ("b", "gpu0")
GIB = 1024**3


def test_before_any_run_the_kind_and_the_speed_decide() -> None:
    rates = Rates()
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == DEFAULTS["chat"]
    assert rates.seconds_per_unit("chat", "m", A, 4.0) == DEFAULTS["chat"] / 4
    assert rates.seconds_per_unit("tea", "m", A, 1.0) == rates_module.DEFAULT
    assert not rates.knows("chat", "m")


def test_the_first_run_replaces_the_guess() -> None:
    rates = Rates()
    assert rates.observe("chat", "m", A, 1.0, units=100, seconds=50)
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == pytest.approx(0.5)
    assert rates.knows("chat", "m")
    assert rates.learned("chat", "m", A)
    assert not rates.learned("chat", "m", B)


def test_other_devices_profit_in_proportion_to_speed() -> None:
    rates = Rates()
    rates.observe("chat", "m", A, 2.0, units=100, seconds=50)
    assert rates.seconds_per_unit("chat", "m", B, 1.0) == pytest.approx(1.0)
    assert rates.seconds_per_unit("chat", "m", B, 4.0) == pytest.approx(0.25)
    assert rates.seconds_per_unit("chat", "other", B, 1.0) == DEFAULTS["chat"]
    assert rates.seconds_per_unit("image", "m", B, 1.0) == DEFAULTS["image"]


def test_noise_is_averaged_on_a_logarithmic_scale() -> None:
    rates, rng = Rates(), random.Random(1)
    for _ in range(300):
        rates.observe("chat", "m", A, 1.0, 10, 20 * math.exp(rng.gauss(0, 0.3)))
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == pytest.approx(2.0, rel=0.3)


def test_early_runs_count_alike_and_later_ones_a_fifth() -> None:
    rates = Rates()
    for seconds in (1.0, 1.0, 1.0, 1.5):
        rates.observe("chat", "m", A, 1.0, 1.0, seconds)
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == pytest.approx(1.5**0.25)
    for _ in range(50):
        rates.observe("chat", "m", A, 1.0, 1.0, 1.0)
    rates.observe("chat", "m", A, 1.0, 1.0, 1.5)
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == pytest.approx(1.5**0.2, rel=1e-3)


def test_a_run_of_more_than_twice_the_prediction_starts_anew() -> None:
    rates = Rates()
    for _ in range(50):
        rates.observe("chat", "m", A, 1.0, 1.0, 1.0)
    rates.observe("chat", "m", A, 1.0, 1.0, 2.5)
    assert rates.seconds_per_unit("chat", "m", A, 1.0) == pytest.approx(2.5)
    rates.observe("chat", "m", A, 1.0, 1.0, 0.1)
    assert 0.3 < rates.seconds_per_unit("chat", "m", A, 1.0) < 2.5, "faster is believed by and by"


def test_big_news_is_told_at_once_and_small_news_by_the_version() -> None:
    rates = Rates()
    assert rates.observe("chat", "m", A, 1.0, 1.0, 1.0), "the first run is big news"
    version = rates.version
    assert not rates.observe("chat", "m", A, 1.0, 1.0, 1.0)
    assert rates.version == version
    for _ in range(2):
        assert not rates.observe("chat", "m", A, 1.0, 1.0, 1.9)
    assert rates.version > version
    rates.observe("image", "m", A, 1.0, 1.0, 1.0)
    assert rates.observe("image", "m", B, 1.0, 1.0, 15.0), "so is a second that contradicts it"


@pytest.mark.parametrize("units", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("seconds", [1.0, 0.0, -1.0, math.inf, math.nan])
def test_nonsense_teaches_nothing(units: float, seconds: float) -> None:
    rates = Rates()
    assert not rates.observe("chat", "m", A, 1.0, units, seconds)
    assert not rates.observe("chat", "m", A, 1.0, seconds, units)
    assert not rates.knows("chat", "m")


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=True), st.floats(allow_nan=True), st.floats(allow_nan=True)),
        max_size=20,
    )
)
def test_whatever_is_reported_predictions_stay_sane(
    reports: list[tuple[float, float, float]],
) -> None:
    rates = Rates()
    for speed, units, seconds in reports:
        rates.observe("chat", "m", A, speed, units, seconds)
        rates.observe_load(A, GIB, seconds)
        for device in (A, B):
            rate = rates.seconds_per_unit("chat", "m", device, speed)
            assert FASTEST * 0.9999 <= rate <= SLOWEST * 1.0001
            assert LOAD_START <= rates.load_seconds(device, GIB, speed) < 1e5


def test_one_absurd_report_moves_an_established_rate_by_a_bounded_factor() -> None:
    rates = Rates()
    for _ in range(9):
        rates.observe("chat", "m", A, 1.0, 1.0, 1.0)
    rates.observe("chat", "m", A, 1.0, 1.0, 1e9)
    assert rates.seconds_per_unit("chat", "m", A, 1.0) <= rates_module.MOVE_LIMIT * 1.001


def test_memory_is_bounded() -> None:
    rates = Rates(limit=10)
    for number in range(50):
        rates.observe("chat", "m", (f"n{number}", "gpu0"), 1.0, 1.0, 1.0)
    assert not rates.learned("chat", "m", ("n0", "gpu0"))
    assert rates.learned("chat", "m", ("n49", "gpu0"))


# --- loading ------------------------------------------------------------------------------------


def test_loading_takes_its_start_and_the_bytes() -> None:
    rates = Rates()
    assert rates.load_seconds(A, 0, None) == LOAD_START
    assert rates.load_seconds(A, int(5e8), None) == LOAD_START + 1
    assert rates.load_seconds(A, int(5e8), 1e9) == LOAD_START + 0.5
    assert rates.load_seconds(A, -5, None) == LOAD_START


def test_bandwidth_is_learned_and_the_nodes_own_measurement_goes_first() -> None:
    rates = Rates()
    rates.observe_load(A, 4 * GIB, LOAD_START + 4.0)
    assert rates.load_seconds(A, GIB, None) == pytest.approx(LOAD_START + 1)
    assert rates.load_seconds(A, GIB, GIB * 2.0) == pytest.approx(LOAD_START + 0.5)
    assert rates.load_seconds(A, GIB, math.inf) == pytest.approx(LOAD_START + 1)
    assert rates.load_seconds(B, GIB, None) == pytest.approx(LOAD_START + GIB / 5e8)
    rates.observe_load(A, 4 * GIB, LOAD_START + 2.0)
    assert LOAD_START + 0.5 < rates.load_seconds(A, GIB, None) < LOAD_START + 1


def test_loads_that_say_nothing_are_ignored() -> None:
    rates = Rates()
    rates.observe_load(A, 1000, 5.0)
    for seconds in (0.0, -1.0, math.inf, math.nan):
        rates.observe_load(A, GIB, seconds)
    assert rates.load_seconds(A, int(5e8), None) == LOAD_START + 1
    rates.observe_load(A, GIB, 0.5)
    assert rates.load_seconds(A, GIB, None) > LOAD_START, "quicker than its start, still no magic"


def test_the_share_of_what_is_asked_that_is_done_is_learned() -> None:
    rates = Rates()
    assert rates.expected("chat", "m", 1000.0) == 1000.0
    rates.observe_work("chat", "m", 1000.0, 100.0)
    assert rates.expected("chat", "m", 1000.0) == pytest.approx(100.0)
    rates.observe_work("chat", "m", 1000.0, 300.0)
    assert rates.expected("chat", "m", 500.0) == pytest.approx(100.0), "the mean of the two"
    assert rates.expected("chat", "other", 500.0) == 500.0
    for _ in range(200):
        rates.observe_work("chat", "m", 100.0, 50.0)
    assert rates.expected("chat", "m", 100.0) == pytest.approx(50.0, rel=0.01)


@pytest.mark.parametrize(
    ("asked", "done"), [(0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan), (-1.0, 1.0)]
)
def test_a_share_of_nonsense_is_not_learned(asked: float, done: float) -> None:
    rates = Rates()
    rates.observe_work("chat", "m", asked, done)
    assert rates.expected("chat", "m", 7.0) == 7.0


def test_no_claim_makes_work_vanish() -> None:
    rates = Rates()
    rates.observe_work("chat", "m", 1e9, 1.0)
    assert rates.expected("chat", "m", 64.0) == 1.0
