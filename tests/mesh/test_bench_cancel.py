"""``blip bench cancel`` with a real mesh. Nothing here looks at how fast anything was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip.bench import tables
from blip.bench.asks import ASKS, BATCH, LARGE, OVERLAP, RATE, TILE, noise, png
from blip.bench.freed import Row
from blip.cli import USAGE, main
from blip.kinds import KINDS
from blip.kinds.pictures import MAX_PIXELS, read_header
from blip.kinds.sounds import check_sound
from blip_node.runtimes.batching import BATCH_TEXTS
from blip_node.runtimes.upscaling import tiles

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def settings(tmp_path: Path) -> str:
    file = tmp_path / "blip.toml"
    file.write_text(
        f"""
[models.echo]
source = "builtin:echo"

[models.words]
source = "{MODELS / "tiny-embed"}"

[node]
cpu = "on"
nvml = false
"""
    )
    return str(file)


@pytest.mark.timeout(120)
def test_a_round(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["bench", "cancel", "-c", settings, "--rounds", "1", "--json"]
    code = main([*ask, "--kinds", "echo,embedding"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    assert found["failed"] == {}
    rows = {row["kind"]: row for row in found["rows"]}
    assert set(rows) == {"echo", "embedding"}
    for row in rows.values():
        assert row["seconds"] > 0
        assert len(row["alone"]) == 2
        assert len(row["freed"]) + row["missed"] == 1
        # it never waits for the whole of the long one
        assert all(freed < row["seconds"] * ASKS[row["kind"]].many for freed in row["freed"])


def test_what_is_not_known(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cancel", "-c", settings, "--kinds", "dance"]) == USAGE
    assert "'dance'" in capsys.readouterr().err


def test_every_kind_can_be_asked_for() -> None:
    assert set(ASKS) == set(KINDS)
    for ask in ASKS.values():
        assert ask.short <= ask.many > ask.few
        for steps in {ask.short, ask.many}:
            assert ask.make("m", steps).body["model"] == "m"
    assert (BATCH, TILE, OVERLAP) == (BATCH_TEXTS, tiles.TILE, tiles.OVERLAP)
    upscale = ASKS["upscale"].make("m", 6)
    assert upscale.file is not None
    header = read_header(upscale.file[1])
    assert header is not None
    assert len(tiles.spans(header.width)) == 6
    assert LARGE**2 == MAX_PIXELS
    assert read_header(png(LARGE, 3)) is not None
    check_sound(noise(2), "file")
    assert len(noise(2)) > 4 * RATE


def test_the_table() -> None:
    late = Row("chat", "m", "token", 0.02, (0.1, 0.12), (0.03, 0.05))
    none = Row("depth", "m", "picture", 0.5, (0.1, 0.1), (), missed=2)
    assert late.within == 1
    assert late.noise == pytest.approx(0.02)
    table = tables.cancels([late, none])
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["chat", "depth"]
    assert [str(cell) for cell in cells[-1]] == ["1 of 2", "0 of 0"]
    assert cells[-2] == ["50.0", "-"]
