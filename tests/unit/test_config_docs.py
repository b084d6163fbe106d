from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip.config import Config
from blip.config.describe import main, reference, rewrite

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert rewrite(page) == page, "run: python -m blip.config.describe docs/configuration.md"


def test_every_setting_is_described() -> None:
    schema = Config.model_json_schema()
    for name, section in schema["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key} has no description"
            assert f"| `{key}` |" in reference()


def test_rewriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    stale = PAGE.read_text().replace("`8001`", "`1`")
    assert stale != PAGE.read_text()
    page.write_text(stale)
    main([str(page)])
    assert page.read_text() == PAGE.read_text()
    with pytest.raises(ValueError, match="lacks the markers"):
        rewrite("no markers")
    main([])
    assert capsys.readouterr().out.strip() == reference().strip()


def test_reading_settings_imports_little() -> None:
    code = "import sys, blip.config; print(*sys.modules)"
    # coverage, where it follows subprocesses, imports what it measures
    env = {key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    heavy = {"asyncio", "aiohttp", "zmq", "redis", "typer", "rich", "msgpack", "torch", "numpy"}
    assert not heavy & set(out.stdout.split())
