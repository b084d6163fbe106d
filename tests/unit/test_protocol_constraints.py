from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import InvalidRequest
from blip.protocol.constraints import KEYS, check, parse, unmet
from blip.protocol.messages import Device

GIB = 1 << 30
CARD = Device("GPU-1", "nvidia", "NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB)


def lacks(require: dict[str, Any], device: Device = CARD) -> list[str]:
    return unmet(check(require), node=("n1", "rig"), labels={"zone": "cellar"}, device=device)


@pytest.mark.parametrize(
    "require",
    [
        {},
        {"node": "rig"},
        {"node": ["other", "n1"]},
        {"device": "GPU-1"},
        {"vendor": ["amd", "nvidia"]},
        {"gpu": "rtx 4090"},
        {"memory": "24GiB"},
        {"memory": 24 * GIB},
        {"labels": {"zone": ["attic", "cellar"]}},
        {"not": {"node": "rig-2", "memory": "48GiB", "labels": {"zone": "attic"}}},
    ],
)
def test_what_a_device_is(require: dict[str, Any]) -> None:
    assert lacks(require) == []


@pytest.mark.parametrize(
    ("require", "said"),
    [
        ({"node": "rig-2"}, "it is node rig"),
        ({"device": "GPU-2"}, "it is device GPU-1"),
        ({"vendor": "amd"}, "its vendor is nvidia"),
        ({"gpu": "A100"}, "it is NVIDIA GeForce RTX 4090"),
        ({"memory": "48GiB"}, "it has 24.0 GiB of memory, not 48.0 GiB"),
        ({"labels": {"zone": "attic"}}, "its label zone is cellar"),
        ({"labels": {"owner": "me"}}, "it has no label owner"),
        ({"not": {"vendor": "nvidia"}}, "it is one with vendor nvidia"),
        ({"not": {"memory": "8GiB"}}, "it is one with 8.0 GiB of memory or more"),
        ({"not": {"labels": {"zone": "cellar"}}}, "it is one with label zone = cellar"),
    ],
)
def test_what_it_lacks(require: dict[str, Any], said: str) -> None:
    assert lacks(require) == [said]


def test_each_entry_below_not_must_fail_by_itself() -> None:
    assert len(lacks({"not": {"vendor": "nvidia", "memory": "8GiB"}})) == 2
    assert len(lacks({"not": {"labels": {"zone": "cellar", "owner": "me"}}})) == 1


@pytest.mark.parametrize(
    ("require", "param"),
    [
        ({"colour": "red"}, "require.colour"),
        ({"node": []}, "require.node"),
        ({"vendor": 3}, "require.vendor"),
        ({"memory": "much"}, "require.memory"),
        ({"memory": True}, "require.memory"),
        ({"memory": 0}, "require.memory"),
        ({"labels": {}}, "require.labels"),
        ({"labels": {"zone": 1}}, "require.labels.zone"),
        ({"not": "amd"}, "require.not"),
        ({"not": {"not": {"vendor": "amd"}}}, "require.not.not"),
    ],
)
def test_nonsense_is_named(require: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(require)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "require"),
    [
        ("", {}),
        ("node=rig-2|rig-3", {"node": ["rig-2", "rig-3"]}),
        ("memory>=24GiB; vendor=nvidia", {"memory": 24 * GIB, "vendor": ["nvidia"]}),
        ("memory>=500M, label.zone=cellar", {"memory": 500 << 20, "labels": {"zone": ["cellar"]}}),
        (
            "gpu=RTX 3090; vendor!=amd; memory<80GB",
            {"gpu": ["RTX 3090"], "not": {"vendor": ["amd"], "memory": 80 * 10**9}},
        ),
        ("node!=a; node!=b", {"not": {"node": ["a", "b"]}}),
    ],
)
def test_as_text(text: str, require: dict[str, Any]) -> None:
    assert parse(text) == require


@pytest.mark.parametrize("text", ["rig", "memory=24GiB", "node>=3", "what=ever", "memory>=x"])
def test_text_that_says_nothing(text: str) -> None:
    with pytest.raises(InvalidRequest, match="require"):
        parse(text)


@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), st.text(max_size=8) | st.none())
)
def test_checking_twice_changes_nothing(require: dict[str, Any]) -> None:
    try:
        once = check(require)
    except InvalidRequest:
        return
    assert check(once) == once


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        found = parse(text)
    except InvalidRequest:
        return
    assert check(found) == found
