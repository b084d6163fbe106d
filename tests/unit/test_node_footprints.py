"""What models were measured to take: kept, corrected, forgotten slowly, and read back."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from blip_node.footprints import FALL, GUESS_LASTS, LEAST_STEP, MOST_STEP, VERSION, Footprints
from blip_node.models.spec import ModelSpec

SPEC = ModelSpec("m", "hf:org/name")
GIB = 2**30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def expected(known: Footprints, spec: ModelSpec = SPEC, slots: int = 4) -> int | None:
    return known.expected(spec, slots, gpu=True)


def test_nothing_is_known_before_the_first_measurement() -> None:
    assert expected(Footprints()) is None


def test_what_moves_the_memory_of_a_model_tells_footprints_apart() -> None:
    known = Footprints()
    known.measured(SPEC, 4, GIB, gpu=True)
    assert expected(known) == GIB
    assert known.expected(SPEC, 4, gpu=False) is None
    assert expected(known, slots=5) is None
    assert expected(known, ModelSpec("m", "hf:org/name", dtype="float16")) is None
    assert expected(known, ModelSpec("m", "hf:org/name", context=128)) is None
    assert expected(known, ModelSpec("another-name", "hf:org/name")) == GIB


def test_it_rises_at_once_and_falls_slowly() -> None:
    known = Footprints()
    for size in (1000, 3000, 2000):
        known.measured(SPEC, 4, size, gpu=True)
    assert expected(known) == 3000
    known.ended(SPEC, 4, 2000, gpu=True)
    assert expected(known) == round(3000 - 1000 * FALL)
    known.ended(SPEC, 4, 5000, gpu=True)
    assert expected(known) == round(3000 - 1000 * FALL), "an end is no measurement"
    for _ in range(40):
        known.ended(SPEC, 4, 2000, gpu=True)
    assert expected(known) == pytest.approx(2000, abs=3)


def test_out_of_memory_corrects_upward_for_a_while() -> None:
    clock = Clock()
    known = Footprints(clock=clock)
    known.measured(SPEC, 4, 1000, gpu=True)
    # more than was thought, even if hardly anything was free; more than was free, within reason
    assert known.outgrown(SPEC, 4, 1000, 10, gpu=True) == 1000 * LEAST_STEP
    assert known.outgrown(SPEC, 4, 1000, 1500, gpu=True) == 1500
    assert known.outgrown(SPEC, 4, 1000, 80 * GIB, gpu=True) == 1000 * MOST_STEP
    assert expected(known) == 2000
    clock.now = GUESS_LASTS
    assert expected(known) == 1000
    known.outgrown(SPEC, 4, 1000, 10, gpu=True)
    known.measured(SPEC, 4, 900, gpu=True)
    assert expected(known) == 1000, "a measurement ends the guessing"


def test_measurements_outlive_the_node_and_guesses_do_not(tmp_path: Path) -> None:
    path = tmp_path / "data" / "footprints.json"
    known = Footprints(path)
    known.measured(SPEC, 4, GIB, gpu=True)
    known.measured(SPEC, 8, 2 * GIB, gpu=True)
    known.outgrown(SPEC, 8, 2 * GIB, 0, gpu=True)
    known.save()
    assert not known.unsaved
    again = Footprints(path)
    assert expected(again) == GIB
    assert expected(again, slots=8) == 2 * GIB
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "footprints.json",
        "footprints.lock",
    ]


def test_a_change_of_little_account_is_not_written(tmp_path: Path) -> None:
    known = Footprints(tmp_path / "footprints.json")
    known.measured(SPEC, 4, 1000, gpu=True)
    known.save()
    known.measured(SPEC, 4, 1001, gpu=True)
    assert not known.unsaved
    assert expected(known) == 1001


def test_small_steps_add_up_to_a_write(tmp_path: Path) -> None:
    known = Footprints(tmp_path / "footprints.json")
    for size in range(1000, 2000, 10):
        known.measured(SPEC, 4, size, gpu=True)
    known.save()
    assert (expected(Footprints(tmp_path / "footprints.json")) or 0) > 1850


def test_nodes_with_one_folder_keep_what_the_other_wrote(tmp_path: Path) -> None:
    path = tmp_path / "footprints.json"
    one, two = Footprints(path), Footprints(path)
    one.measured(SPEC, 1, 100, gpu=True)
    two.measured(SPEC, 2, 200, gpu=True)
    one.save()
    two.save()
    both = Footprints(path)
    assert (expected(both, slots=1), expected(both, slots=2)) == (100, 200)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        '{"version": 99, "bytes": {}}',
        f'{{"version": {VERSION}, "bytes": []}}',
        f'{{"version": {VERSION}, "bytes": {{"a": "much"}}}}',
        f'{{"version": {VERSION}, "bytes": {{"a": -1}}}}',
        f'{{"version": {VERSION}, "bytes": {{"a": true}}}}',
        "\x00\xff",
    ],
)
def test_a_corrupt_file_is_started_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    path = tmp_path / "footprints.json"
    path.write_text(text, "latin-1")
    with caplog.at_level(logging.WARNING):
        known = Footprints(path)
    assert "started anew" in caplog.text
    known.measured(SPEC, 4, GIB, gpu=True)
    known.save()
    assert expected(Footprints(path)) == GIB
    assert json.loads(path.read_text())["version"] == VERSION


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    known = Footprints(tmp_path / "file" / "footprints.json")
    known.measured(SPEC, 4, GIB, gpu=True)
    known.save()
    assert "cannot be kept" in caplog.text
    assert expected(known) == GIB
