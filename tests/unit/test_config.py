from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.config import Config, Loaded, load, restore, save
from blip.config.describe import rows, toml
from blip.config.load import NAMED, dotted, find_file, parse_key
from blip.config.schema import default_data_dir, default_state_dir
from blip.errors import ConfigError

HASH = hashlib.sha256(b"key").hexdigest()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the machine that runs the tests takes part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CONFIG", "STATE", "DATA"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(
    overrides: dict[str, Any] | None = None, *, env: dict[str, str] | None = None, file: str = ""
) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(write(Path("x.toml"), file), overrides=overrides, env=env or {})
    return caught.value


# --- order and origins ----------------------------------------------------------------------


def test_each_source_beats_the_next() -> None:
    file = write(
        Path("my.toml"),
        "[gateway]\nport = 1\nhost = '127.0.0.2'\nprocesses = 3\n[broker]\nqueue_limit = 5\n",
    )
    env = {"BLIP_GATEWAY__PORT": "2", "BLIP_GATEWAY__HOST": "127.0.0.3"}
    loaded = load(file, overrides={"gateway.port": 3}, env=env)
    gateway = loaded.config.gateway
    assert (gateway.port, gateway.host, gateway.processes) == (3, "127.0.0.3", 3)
    assert loaded.config.broker.queue_limit == 5
    assert loaded.origin(("gateway", "port")) == "command line"
    assert loaded.origin(("gateway", "host")) == "environment variable BLIP_GATEWAY__HOST"
    assert loaded.origin(("gateway", "processes")) == str(file)
    assert loaded.origin(("gateway", "body_limit")) == "default"


def test_models_of_all_sources_come_together() -> None:
    file = write(
        Path("m.toml"), "[models.a]\nsource = '/a'\nslots = 2\n[models.'b.c']\nsource='b'\n"
    )
    env = {"BLIP_MODELS": '{"a": {"slots": 4}, "d": {"source": "builtin:echo"}}'}
    loaded = load(file, env=env, overrides={'models."b.c".threads': "3"})
    models = loaded.config.models
    assert sorted(models) == ["a", "b.c", "d"]
    assert (models["a"].source, models["a"].slots) == ("/a", 4)
    assert models["b.c"].threads == 3
    assert loaded.origin(("models", "a", "slots")) == "environment variable BLIP_MODELS"
    assert loaded.origin(("models", "a", "source")) == "m.toml"
    assert loaded.origin(("models", "a", "dtype")) == "default"


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("BLIP_GATEWAY__PORT", "9", "port", 9),
        ("BLIP_GATEWAY__BODY_LIMIT", "2KiB", "body_limit", 2048),
        ("BLIP_GATEWAY__BODY_LIMIT", "77", "body_limit", 77),
        ("BLIP_GATEWAY__REQUEST_TIMEOUT", "1.5", "request_timeout", 1.5),
        ("BLIP_GATEWAY__BROKERS", '["tcp://[::1]:5"]', "brokers", ["tcp://[::1]:5"]),
        ("BLIP_GATEWAY__API_KEYS", f'{{"me": "{HASH}"}}', "api_keys", {"me": HASH}),
    ],
)
def test_text_becomes_what_the_field_is(variable: str, text: str, key: str, value: Any) -> None:
    assert getattr(load(env={variable: text}).config.gateway, key) == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("0", False), ("no", False), ("Yes", True)]
)
def test_truth_values(text: str, value: bool) -> None:
    assert load(env={"BLIP_NODE__NVML": text}).config.node.nvml is value


def test_text_stays_text_where_text_is_wanted() -> None:
    node = load(env={"BLIP_NODE__NAME": "123", "BLIP_NODE__LABELS": '{"rack": "7"}'}).config.node
    assert node.name == "123"
    assert node.labels == {"rack": "7"}


def test_variables_of_others_are_left_alone() -> None:
    env = {"BLIP_URL": "http://x", "BLIP_DEBUG": "1", "BLIP_API_KEY": "k", "PATH": "/bin"}
    assert load(env=env).origins == {}


# --- which file -----------------------------------------------------------------------------


def test_search_order(tmp_path: Path) -> None:
    assert find_file(env={}) is None
    home = write(tmp_path / "home" / ".config" / "blip" / "blip.toml", "")
    assert find_file(env={}) == home
    local = write(tmp_path / "blip.toml", "")
    assert find_file(env={}) == local
    named = write(tmp_path / "named.toml", "")
    assert find_file(env={"BLIP_CONFIG": str(named)}) == named
    asked = write(tmp_path / "asked.toml", "")
    assert find_file(asked, {"BLIP_CONFIG": str(named)}) == asked


def test_files_beside_the_configuration_are_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "etc" / "models" / "toy").mkdir(parents=True)
    (tmp_path / "etc" / "ink.safetensors").touch()
    file = write(
        tmp_path / "etc" / "mesh.toml",
        '[models.toy]\nsource = "models/toy"\nloras = { ink = "ink.safetensors", far = "hf:a/b" }\n'
        '[models.echo]\nsource = "builtin:echo"\n[models.other]\nsource = "not/there"\n',
    )
    models = load(file, env={}).config.models
    assert models["toy"].source == str(tmp_path / "etc" / "models" / "toy")
    assert models["toy"].loras["ink"] == str(tmp_path / "etc" / "ink.safetensors")
    assert models["toy"].loras["far"] == "hf:a/b"
    assert models["echo"].source == "builtin:echo"
    assert models["other"].source == "not/there"  # from the working directory, if anywhere


def test_no_search() -> None:
    write(Path("blip.toml"), "[gateway]\nport = 1\n")
    assert load(env={}).config.gateway.port == 1
    assert load(env={}, search=False).config.gateway.port == 8001


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_file_that_was_asked_for_must_exist(how: str) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file 'gone\.toml'"):
        find_file("gone.toml" if how == "option" else None, {"BLIP_CONFIG": "gone.toml"})


def test_bad_files(tmp_path: Path) -> None:
    assert "is not valid TOML" in refused(file="[gateway").message
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(tmp_path / "bin.toml", env={})


def test_xdg_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_state_dir() == tmp_path / "home/.local/state/blip"
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_state_dir() == Path("/s/blip")
    assert default_data_dir() == tmp_path / "home/.local/share/blip"


def test_folders_are_absolute(tmp_path: Path) -> None:
    loaded = load(env={}, overrides={"mesh.state_dir": "~/s", "node.data_dir": "d"})
    assert loaded.config.mesh.state_dir == tmp_path / "home" / "s"
    assert loaded.config.node.data_dir == tmp_path / "d"


# --- what is wrong is named -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "key", "near"),
    [
        ("[gateway]\nprot = 1\n", "gateway.prot", "gateway.port"),
        ("[gatway]\nport = 1\n", "gatway", "gateway"),
        ("[gateway]\nqueue_limit = 1\n", "gateway.queue_limit", "broker.queue_limit"),
        ("port = 1\n", "port", "gateway.port"),
        ("[models.m]\nsource = 'a'\nthread = 1\n", "models.m.thread", "models.m.threads"),
        ("[models.'m.1']\nsource='a'\nslot=1\n", 'models."m.1".slot', 'models."m.1".slots'),
        ("[[node.devices]]\nid='a'\nname='a'\nspede=1\n", "node.devices.0.spede",
         "node.devices.0.speed"),
    ],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(file: str, key: str, near: str) -> None:
    error = refused(file=file)
    assert error.message.startswith(f"unknown key '{key}' (x.toml)")
    assert f"the nearest known key is '{near}'" in error.message
    assert error.param == key
    assert "blip config show" in error.hint


def test_unknown_keys_of_every_source() -> None:
    error = refused(env={"BLIP_GATEWAY__PROT": "1"})
    assert "'gateway.prot' (environment variable BLIP_GATEWAY__PROT)" in error.message
    assert "'gateway.prot' (command line)" in refused({"gateway.prot": 1}).message
    assert "nearest" not in refused({"xyzzy.plugh": 1}).message


def test_a_slip_in_a_variable_is_not_ignored() -> None:
    error = refused(env={"BLIP_GATEWAY_PORT": "1"})
    assert "BLIP_GATEWAY_PORT sets nothing" in error.message
    assert error.hint == "Write BLIP_GATEWAY__PORT."


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("[gateway]\nport = '80'\n", "gateway.port = '80' (x.toml): expected a valid integer"),
        ("[gateway]\nport = 65536\n", "gateway.port = 65536 (x.toml): expected less than"),
        ("[gateway]\nport = true\n", "gateway.port = True (x.toml): expected a valid integer"),
        ("[gateway]\nbody_limit = 'big'\n", "gateway.body_limit = 'big' (x.toml): expected a size"),
        ("[gateway]\nbody_limit = 0\n", "gateway.body_limit = 0 (x.toml): expected greater than 0"),
        ("gateway = 1\n", "gateway = 1 (x.toml): expected a table"),
        ("[models]\nm = 1\n", "models.m = 1 (x.toml): expected a table"),
        ("[models.m]\n", "'models.m.source' is missing (x.toml)"),
        ("[upstreams]\nv = 1\n", "upstreams.v = 1 (x.toml): expected a table"),
        ("[upstreams.v]\n", "'upstreams.v.url' is missing (x.toml)"),
        ("[upstreams.v]\nurl = 'localhost:8000'\n", "expected a base URL such as"),
        ("[upstreams.'a/b']\nurl = 'http://h/v1'\n", "as a name"),
        ("[mesh]\nid = 'A b'\n", "mesh.id = 'A b' (x.toml): expected at most 63"),
        ("[mesh]\nstate_dir = ''\n", "mesh.state_dir = '' (x.toml): expected a folder"),
        ("[broker]\nbind = 'tcp://x'\n", "broker.bind = 'tcp://x' (x.toml): expected an endpoint"),
        ("[broker]\nbind = 'tcp://x:99999'\n", "port 99999 is over 65535"),
        ("[broker]\nheartbeat = 5\n", "broker (x.toml): heartbeat, suspect_after and lost_after"),
        ("[node]\ncpu = 'maybe'\n", "node.cpu = 'maybe' (x.toml): expected 'auto', 'on' or 'off'"),
        ("[node]\nspeed = nan\n", "node.speed = nan (x.toml): expected"),
        ("[log]\nlevel = 'loud'\n", "log.level = 'loud' (x.toml): expected 'debug', 'info'"),
    ],
)
def test_wrong_values_name_key_value_and_what_is_expected(file: str, said: str) -> None:
    assert said in refused(file=file).message


@pytest.mark.parametrize(
    "line",
    ["url = 'http://me:sk-secret@h/v1'", "url = 'http://h/v1'\napi_key_env = 'sk-secret'"],
)
def test_keys_of_engines_are_neither_taken_nor_shown(line: str) -> None:
    error = refused(file=f"[upstreams.v]\n{line}\n")
    assert "api_key_env" in error.message
    assert "sk-secret" not in error.message + error.hint + str(error.details)


def test_upstreams_from_all_sources() -> None:
    file = write(Path("u.toml"), "[upstreams.vllm]\nurl = 'http://h:8000/v1/'\nmodels = ['a*']\n")
    env = {"BLIP_UPSTREAMS": '{"o": {"url": "http://h:11434/v1"}}'}
    loaded = load(file, env=env, overrides={"upstreams.vllm.slots": "4"})
    vllm = loaded.config.upstreams["vllm"]
    assert (vllm.url, vllm.models, vllm.slots) == ("http://h:8000/v1", ["a*"], 4)
    assert loaded.config.upstreams["o"].timeout == 120
    assert loaded.origin(("upstreams", "vllm", "slots")) == "command line"
    assert loaded.origin(("upstreams", "o", "url")) == "environment variable BLIP_UPSTREAMS"
    assert shown(loaded)["upstreams.vllm.models"] == (["a*"], "u.toml")


def test_broken_environment() -> None:
    assert "expected a JSON object" in refused(env={"BLIP_MODELS": "[]"}).message
    error = refused(env={"BLIP_GATEWAY__BROKERS": "tcp://a:1"})
    assert "gateway.brokers = 'tcp://a:1'" in error.message
    assert "expected a valid list" in error.message


def test_all_problems_are_listed_and_the_cause_comes_first() -> None:
    error = refused(file="[models.m]\nsorce = 'a'\n[gateway]\nport = 'x'\n")
    problems = error.details["problems"]
    assert len(problems) == 3
    assert problems[-1].startswith("'models.m.source' is missing")
    assert "(and 2 more; `blip config check` lists them)" in error.message


def test_secrets_are_not_repeated() -> None:
    assert "hunter2" not in refused({"gateway.api_keys": {"me": "hunter2"}}).message
    error = refused({"store.url": "http://:hunter2@host"})
    assert "hunter2" not in error.message
    assert "redis://" in error.message


def test_keys_that_are_none() -> None:
    with pytest.raises(ConfigError, match="is not a key"):
        parse_key("a b")


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4))
def test_keys_survive_being_written(parts: list[str]) -> None:
    key = tuple(part.encode("utf-8", "replace").decode() for part in parts)
    assert parse_key(dotted(key)) == key


# --- hand-over to child processes -----------------------------------------------------------


def test_save_and_restore(tmp_path: Path) -> None:
    config = load(
        env={},
        overrides={
            "store.url": "redis://:secret@h:1/0",
            "models.a.source": "builtin:echo",
            "node.devices": [{"id": "x", "name": "X", "memory": "1GiB"}],
            "gateway.body_limit": "1MiB",
        },
    ).config
    path = tmp_path / "c.json"
    save(config, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert restore(path) == restore(str(path)) == restore(path.read_text()) == config


def test_restore_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the settings in"):
        restore(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"unknown key 'gateway\.prot'"):
        restore('{"gateway": {"prot": 1}}')


def test_settings_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().gateway.port = 1


# --- how they are shown ---------------------------------------------------------------------


def shown(loaded: Loaded) -> dict[str, tuple[Any, str]]:
    return {dotted(key): (value, origin) for key, value, origin in rows(loaded)}


def test_rows_mask_secrets() -> None:
    loaded = load(
        env={"BLIP_STORE__URL": "rediss://user:hunter2@host:1/0"},
        overrides={"gateway.api_keys": {"me": HASH}, "models.m.source": "x"},
    )
    found = shown(loaded)
    url, origin = found["store.url"]
    assert url == "rediss://***@host:1/0"
    assert origin == "environment variable BLIP_STORE__URL"
    assert found["gateway.api_keys"] == ({"me": "***"}, "command line")
    assert found["models.m.source"] == ("x", "command line")
    assert found["models.m.slots"] == (None, "default")


def test_rows_cover_every_setting() -> None:
    fields = {
        f"{section}.{name}"
        for section, info in Config.model_fields.items()
        if section not in NAMED
        for name in info.annotation.model_fields  # type: ignore[union-attr]
    }
    assert set(shown(load(env={}))) == fields


def test_values_as_toml() -> None:
    assert toml({"a b": [1, True, "x"]}) == '{"a b" = [1, true, "x"]}'
    assert toml(None) == "unset"
