"""``blip bench image``: its sums, and a short run of the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip.bench import image
from blip.cli import main
from blip.errors import RuntimeFailed


def test_a_step_is_what_many_take_more_than_few() -> None:
    bare = [{"few": (0.2, 0.1), "many": (0.6, 0.5)}] * 3
    ours = [{"few": (0.3, 0.2), "many": (many, 0.6)} for many in (0.7, 0.78, 0.74)]
    rows = image.figures({"few": 5, "many": 45, "rounds": {"blip": ours, "bare": bare}})
    step, picture, cpu, _ = rows
    assert step.bare == pytest.approx(0.01)
    assert step.blip == pytest.approx(0.011)
    assert step.ratio.median == pytest.approx(1.1)
    assert step.ratio.q1 == pytest.approx(1.05)
    assert picture.ratio.median == pytest.approx(0.74 / 0.6)
    assert cpu.ratio.median == pytest.approx(1.0)


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "image", "--rounds", "1", "--steps", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "toy-shapes"
    names = [row["what"] for row in found["figures"]]
    assert names == ["step", "picture of 10 steps", "step, CPU", "picture of 10 steps, CPU"]
    pictures = [row for row in found["figures"] if row["what"].startswith("picture")]
    assert all(row["blip"] > 0 and row["bare"] > 0 for row in pictures)


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "image", "--model", str(tmp_path)]) == 2
    assert "model_index.json" in capsys.readouterr().err
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(RuntimeFailed, match="names no component"):
        image.main(model=tmp_path, steps=1, rounds=1)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    taken = [{"few": (0.2, 0.1), "many": (0.6, 0.5)}]
    slow = [{"few": (0.2, 0.1), "many": (0.8, 0.5)}]
    image._print(image.figures({"few": 5, "many": 45, "rounds": {"blip": slow, "bare": taken}}))
    lines = capsys.readouterr().out.splitlines()
    assert "1.500" in lines[2]
    assert "not met" in lines[2]
    assert "met" in lines[4]
