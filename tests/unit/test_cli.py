from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import blip
from blip.cli import INTERRUPTED, UNREACHABLE, USAGE, main, render, roles
from blip.config import restore

VERBS = (
    "up", "gateway", "broker", "node", "status", "ps", "why", "load", "unload", "cordon",
    "uncordon", "drain", "run", "embed", "models", "config", "doctor", "demo",
    "bench", "key", "version",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name.startswith(("BLIP_", "XDG_")):
            monkeypatch.delenv(name)
    # a port where nothing listens, so that no mesh of this machine takes part
    monkeypatch.setenv("BLIP_URL", "http://127.0.0.1:1")


def python(
    code: str, *args: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # coverage, where it follows subprocesses, imports what it measures
        env={key: text for key, text in os.environ.items() if not key.startswith("COVERAGE_")}
        | (env or {}),
    )


# --- help -----------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, blip.cli; blip.cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = python(code)
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    loaded = set(done.stderr.split())
    heavy = {
        "aiohttp", "asyncio", "pydantic", "zmq", "redis", "rich", "msgpack", "psutil", "pynvml",
        "torch", "numpy", "transformers", "multiprocessing", "blip.config", "blip.client",
    }  # fmt: skip
    assert "blip.cli.app" in loaded
    assert not heavy & loaded


def test_verbs_load_no_more_than_they_need() -> None:
    code = "import sys, blip.cli; blip.cli.main(['config', 'path']); print(*sys.modules)"
    assert not {"aiohttp", "zmq", "redis", "torch"} & set(python(code).stdout.split())


@pytest.mark.parametrize("verb", [*VERBS, "config show", "key new", "bench overhead"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: blip {verb}")
    assert "..." not in out.splitlines()[2]


def test_without_arguments_it_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == USAGE
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "error", "hint"),
    [
        (["modls"], USAGE, "No such command 'modls'. Did you mean 'models'?", "`blip --help`"),
        (["up", "--nodes", "0"], USAGE, "--nodes", "`blip up --help`"),
        (["run"], USAGE, "MODEL", "`blip run --help`"),
        (["models"], UNREACHABLE, "cannot reach a gateway at http://127.0.0.1:1", "blip up"),
        (["models", "--url", "http://127.0.0.1:2"], UNREACHABLE, "127.0.0.1:2", "BLIP_URL"),
        (["config", "show", "-s", "gateway.prot=1"], USAGE, "'gateway.port'", "config show"),
        (["config", "show", "-s", "port"], USAGE, "expected KEY=VALUE", ""),
        (["config", "show", "nonsense"], USAGE, "no setting 'nonsense'", "config show"),
        (["up", "-c", "gone.toml"], USAGE, "no configuration file 'gone.toml'", ""),
        (["up", "-s", "gateway.host=0.0.0.0"], USAGE, "api_keys is empty", "blip key new"),
        (["broker", "-s", "broker.bind=tcp://*:1"], USAGE, "not encrypted yet", "broker.bind"),
        (["node", "-s", "node.bind=tcp://*:1"], USAGE, "not encrypted yet", "node.bind"),
        (["gateway", "--host", "0.0.0.0"], USAGE, "api_keys is empty", "blip key new"),
        (["key", "new", " "], USAGE, "needs a name", ""),
        (["bench", "overhead", "--rounds", "0"], USAGE, "--rounds", "`blip bench overhead"),
    ],
)
def test_errors_are_a_line_and_a_hint(
    args: list[str], code: int, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert len(lines) == (2 if hint else 1)
    assert hint in lines[-1]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("args", [["--debug", "models"], ["models", "--debug"]])
def test_debug_shows_where(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == UNREACHABLE
    assert "Traceback" in capsys.readouterr().err


def test_debug_by_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLIP_DEBUG", "1")
    assert main(["models"]) == UNREACHABLE
    assert "Traceback" in capsys.readouterr().err


def test_bugs_are_reported_as_such(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("blip.cli.views.models", broken)
    assert main(["models"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: ZeroDivisionError: oops",
        "hint: This may be a bug in blip; --debug shows where it happened.",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EOFError])
def test_interrupted(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> int:
        raise error

    monkeypatch.setattr("blip.cli.views.models", interrupted)
    assert main(["models"]) == INTERRUPTED


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys, blip.cli; sys.exit(blip.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "config", "show"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


def test_python_m_blip() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blip", "version"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"blip {blip.__version__} (Python 3.")
    assert done.returncode == 0


# --- settings -------------------------------------------------------------------------------


def test_config_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("blip.toml").write_text("[gateway]\nport = 8002\n[models.m]\nsource = 'builtin:echo'\n")
    monkeypatch.setenv("BLIP_STORE__URL", "redis://:hunter2@h/0")
    assert main(["config", "show"]) == 0
    out = capsys.readouterr().out
    values = tomllib.loads(out.replace("= unset", "= 'unset'"))
    assert values["gateway"]["port"] == 8002
    assert values["models"]["m"]["slots"] == "unset"
    assert f"gateway.port = 8002 # {Path('blip.toml').absolute()}" in " ".join(out.split())
    assert "# environment variable BLIP_STORE__URL" in out
    assert "hunter2" not in out
    assert main(["config", "show", "gateway.port", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"key": "gateway.port", "value": 8002, "from": str(Path("blip.toml").absolute())}
    ]


def test_config_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "path"]) == 0
    assert str(tmp_path / "blip.toml") in capsys.readouterr().err
    Path("blip.toml").touch()
    assert main(["config", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "blip.toml")
    assert main(["config", "path", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "blip.toml")


def test_config_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out.startswith("fine: no configuration file")
    Path("blip.toml").write_text("[gateway]\nprot = 1\nhost = 7\n")
    assert main(["config", "check"]) == USAGE
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["config", "check", "--json"]) == USAGE
    assert json.loads(capsys.readouterr().out)["ok"] is False
    Path("blip.toml").write_text("[gateway]\nhost = '0.0.0.0'\n")
    assert main(["config", "check"]) == USAGE
    assert "api_keys is empty" in capsys.readouterr().out


def test_a_new_key_lets_its_owner_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", "jo.e"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    key = next(line for line in lines if line.startswith("blip_"))
    table = tomllib.loads("\n".join(lines[lines.index("[gateway.api_keys]") :]))
    assert table["gateway"]["api_keys"] == {"jo.e": hashlib.sha256(key.encode()).hexdigest()}
    assert main(["key", "new", "x", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["key"] != key
    assert hashlib.sha256(made["key"].encode()).hexdigest() == made["sha256"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blip"] == blip.__version__


# --- roles ----------------------------------------------------------------------------------


def test_roles_take_flags_or_what_a_parent_read(tmp_path: Path) -> None:
    config = roles.settings_of(None, None, ["broker.queue_limit=7"], {"gateway.port": 5})
    assert (config.broker.queue_limit, config.gateway.port) == (7, 5)
    handed = tmp_path / "c.json"
    handed.write_text(config.model_dump_json())
    assert roles.settings_of(handed, Path("ignored.toml"), None, {}) == config


def test_the_node_becomes_its_own_program(tmp_path: Path) -> None:
    """``blip node`` execs; what it execs finds the settings and nothing is left on disk."""
    code = """
import os, sys
import blip.cli.roles as roles
real = os.execv
def execv(path, argv):
    reader = "import sys; from blip.config import restore; print(restore(sys.argv[-1]).node.name)"
    assert argv[1:4] == ["-m", "blip_node", "--config-json"]
    real(path, [path, "-c", reader, argv[4]])
os.execv = execv
roles.node(roles.settings_of(None, None, None, {"node.name": "büro"}))
"""
    done = python(code, env={"TMPDIR": str(tmp_path)})
    assert (done.stdout, done.stderr) == ("büro\n", "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]
    assert restore("{}").node.name == ""


# --- looks ----------------------------------------------------------------------------------


def test_tables() -> None:
    text = render.table(("NAME", "N"), [("a", 1), ("long name", 22.5), ("x", None)])
    assert text.splitlines() == ["NAME          N", "a             1", "long name  22.5", "x"]
    assert render.table(("A", "B"), []) == "A  B"
    assert render.table(("A",), [(("x", "y"),)]) == "A\nx, y"


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (25 * 2**30, "25.0 GiB"),
     (2**42, "4.0 TiB")],
)  # fmt: skip
def test_sizes(count: int | None, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0012, "1.2 ms"), (0.0996, "0.1 s"), (4.25, "4.2 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text
