import itertools
import json

import pytest

from blip.bench.cases import CASES, NAMES, Case, select
from blip.errors import ConfigError
from blip.gateway.routes.echo import EchoRequest


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_request_that_the_gateway_takes(case: Case) -> None:
    load = case.load(8001, {"Authorization": "Bearer k"}, 2.0)
    asked = EchoRequest.model_validate_json(load.body)
    asked.check()
    assert asked.stream is case.streamed
    assert load.connections == case.connections
    if case.streamed:
        assert load.events == asked.chunks
        assert load.size == 0
    else:
        assert load.size in (len(asked.text), asked.size)


def test_a_paced_stream_takes_as_long_as_a_visit() -> None:
    (paced,) = (case for case in CASES if case.rate)
    load = paced.load(8001, {}, 2.0)
    body = json.loads(load.body)
    assert body["chunks"] * body["interval"] == pytest.approx(2.0)
    assert body["stamp"] is True
    assert load.once
    starts = [load.stagger * number / load.connections for number in range(load.connections)]
    phases = sorted(start % body["interval"] for start in starts)
    gaps = [b - a for a, b in itertools.pairwise(phases)]
    assert max(gaps) == pytest.approx(body["interval"] / load.connections)  # none tick together
    assert paced.load(8001, {}, 0.001).events == 2  # a gap needs two


def test_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)


def test_cases_are_selected_by_name_or_family() -> None:
    assert select("") == (list(CASES), True)
    assert [case.name for case in select("echo-64, mib")[0]] == ["echo-64", "mib-1", "mib-16"]
    assert select("echo-64")[1] is False
    assert select("idle") == ([], True)


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(ConfigError, match="'ehco-64'") as caught:
        select("echo-1,ehco-64")
    assert "echo-64" in caught.value.hint
