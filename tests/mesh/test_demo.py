"""The demo itself, with the models that it ships."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blip.cli import FAILURE, INTERRUPTED
from blip.cli.demo import check_packages, find_settings
from blip.config import load
from blip.errors import ConfigError


def installed() -> bool:
    try:
        check_packages(load(find_settings(), env={}).config)
        importlib.metadata.version("torch")
    except (ConfigError, importlib.metadata.PackageNotFoundError):
        return False
    return True


pytestmark = [
    pytest.mark.models,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not installed(), reason="torch or the demo's models are not installed"),
]


def start(tmp_path: Path) -> subprocess.Popen[str]:
    # models go where they always go: converting one takes half a minute, once a machine
    environment = {**os.environ, "TMPDIR": str(tmp_path), "BLIP_GATEWAY__PORT": "nonsense"}
    return subprocess.Popen(
        [sys.executable, "-m", "blip", "demo", "--out", str(tmp_path / "made")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_demo(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        out, errors = process.communicate(timeout=850)
    assert errors == ""
    assert process.returncode == 0, out
    nodes = set(re.findall(r"^  (\S+-[12]): smollm2 ready", out, re.MULTILINE))
    assert len(nodes) == 2
    assert "The capital of France is Paris." in out
    assert set(re.findall(r"^  \[(\S+?)[;\]]", out, re.MULTILINE)) <= nodes
    related, unrelated = map(float, re.findall(r"(?:cosine of|of) 1 and [23]: ([\d.]+)", out))
    assert related > 0.4 > unrelated
    # what was painted is seen, and what was spoken is heard
    assert "  a large red heart on a white background\n" in out
    assert "fox jumps over the lazy dog" in out.rpartition("transcription")[2]
    made = tmp_path / "made"
    assert sorted(file.name for file in made.iterdir()) == ["fox.wav", "heart.png", "index.html"]
    assert not list(tmp_path.glob("blip-demo-*"))


def test_demo_interrupted(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "loading" in line or "ready" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED != FAILURE
