"""Devices ranked by what they were measured to do, and by kind."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.broker import priors
from blip.kinds import KINDS
from blip.protocol import ranking
from blip.protocol.ranking import REFERENCE_BANDWIDTH, REFERENCE_RATE, speed

#: What such cards do in public benchmarks, roughly; the tests are about the order only.
RTX_3060 = {"h2d": 1.2e10, "fp16": 2.5e13, "bf16": 2.5e13, "fp32": 1.0e13, "decode": 3.2e11}
RTX_3090 = {"h2d": 2.5e10, "fp16": 7.0e13, "bf16": 7.0e13, "fp32": 2.5e13, "decode": 8.6e11}
H100 = {"h2d": 5.0e10, "fp16": 6.5e14, "bf16": 6.5e14, "fp32": 5.0e13, "decode": 2.9e12}
#: A mining card: the memory of an A100, a riser with one lane, and arithmetic that was throttled.
CMP = {"h2d": 2.5e8, "fp16": 6.0e12, "fp32": 4.0e11, "decode": 1.3e12}
CPU = {"bf16": 5.0e11, "fp32": 2.0e11, "decode": 2.0e10}


def test_the_reference_is_one() -> None:
    assert speed({"decode": REFERENCE_BANDWIDTH, "fp16": REFERENCE_RATE}) == pytest.approx(1)
    assert speed(RTX_3060) == pytest.approx(1)
    for kind in KINDS:
        assert priors.kind_speed(RTX_3060, kind) == pytest.approx(1)


def test_cards_are_ranked_as_they_are() -> None:
    speeds = [speed(card) for card in (CPU, RTX_3060, RTX_3090, H100)]
    assert speeds == sorted(speeds, key=lambda value: value or 0.0)
    assert len(set(speeds)) == 4


def test_a_throttled_card_with_fast_memory_chats_well_and_paints_badly() -> None:
    assert _kind(CMP, "chat") > _kind(RTX_3060, "chat") * 1.5
    assert _kind(CMP, "image") < _kind(RTX_3060, "image") / 1.5
    assert _kind(CMP, "embedding") < _kind(CMP, "transcription") < _kind(CMP, "completion")


def test_kinds_that_take_as_long_as_they_are_told_do_so_everywhere() -> None:
    assert _kind(CPU, "echo") == _kind(H100, "echo") == 1


def test_every_kind_is_known() -> None:
    assert set(KINDS) <= set(priors.BANDWIDTH) | priors.PACED
    assert _kind(CMP, "of a plugin") == speed(CMP)


def test_only_a_riser_bounds_a_load() -> None:
    assert priors.load_bandwidth(CMP) == 2.5e8
    assert priors.load_bandwidth(CPU) is None
    assert priors.load_bandwidth({"h2d": math.nan}) is None


def test_one_figure_is_better_than_none() -> None:
    assert speed({"decode": 2 * REFERENCE_BANDWIDTH}) == 2
    assert speed({"fp32": REFERENCE_RATE / 2}) == 0.5
    assert speed({"h2d": 1e10, "seconds": 2.0}) is None
    assert speed({}) is None
    assert priors.kind_speed({}, "chat") is None


def test_figures_are_described_for_people() -> None:
    text = ranking.describe({"decode": 3.2e11, "fp16": 2.5e13, "h2d": 2.5e8})
    assert text == "speed 1, weights 320 GB/s, to the device 0.25 GB/s, fp16 25 TFLOP/s"
    assert ranking.describe({}) == ""


figures = st.dictionaries(
    st.sampled_from(ranking.KEYS), st.floats(allow_nan=True, allow_infinity=True)
)


@given(figures, st.floats(0, 1))
def test_nonsense_is_never_believed(benchmark: dict[str, float], weight: float) -> None:
    found = speed(benchmark, weight)
    assert found is None or ranking.SLOWEST <= found <= ranking.FASTEST


@given(st.floats(1e10, 1e13), st.floats(1e11, 1e15), st.floats(0, 1), st.floats(1.01, 4))
def test_better_is_never_slower(decode: float, rate: float, weight: float, more: float) -> None:
    one = speed({"decode": decode, "fp16": rate}, weight)
    assert one is not None
    for other in (
        {"decode": decode * more, "fp16": rate},
        {"decode": decode, "fp16": rate * more},
    ):
        found = speed(other, weight)
        assert found is not None
        assert found >= one * (1 - 1e-9)


def _kind(benchmark: dict[str, float], kind: str) -> float:
    found = priors.kind_speed(benchmark, kind)
    assert found is not None
    return found
