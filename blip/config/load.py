"""Reads the settings from where people put them, and remembers where each one came from."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from blip.config.schema import Config, default_config_file
from blip.errors import ConfigError

#: A setting's place: ``("gateway", "port")``, ``("models", "smollm2", "source")``.
Key = tuple[str, ...]

#: A file of this name in the working directory is read when nothing else is named.
LOCAL_FILE = "blip.toml"

#: Sections whose keys are names that people choose, each with a table of its own.
NAMED = ("models", "upstreams", "policies")

PREFIX = "BLIP_"
SEPARATOR = "__"
DEFAULT = "default"
COMMAND_LINE = "command line"

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOW = "`blip config show` lists every key with its value."


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, the file that was read (if any), and where each value came from."""

    config: Config
    file: Path | None = None
    origins: dict[Key, str] = field(default_factory=dict)

    def origin(self, key: Key) -> str:
        """Where the value at ``key`` came from: a file, a variable, the command line, a default."""
        setting = key[: 3 if key[0] in NAMED else 2]
        inside = (o for k, o in reversed(self.origins.items()) if k[: len(key)] == key)
        return self.origins.get(key) or next(inside, None) or self.origins.get(setting, DEFAULT)


def load(
    file: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    search: bool = True,
) -> Loaded:
    """Read all settings: ``overrides`` > environment > file > defaults.

    ``file`` is the TOML file to read; None looks for one, see :func:`find_file`, unless ``search``
    is false. ``overrides`` are dotted keys of the command line; text is converted as that of the
    environment is.

    Raises :class:`~blip.errors.ConfigError`: what it names first is also in its message, all that
    is wrong is in ``details["problems"]``.
    """
    env = os.environ if env is None else env
    path = find_file(file, env) if file or search else None
    layers: list[tuple[Key, Any, str]] = []
    if path is not None:
        layers += (
            (key, _beside(path, key, value), str(path)) for key, value in _flatten(_read(path))
        )
    layers += _from_environment(env)
    for name, value in (overrides or {}).items():
        key = parse_key(name)
        layers.append((key, _from_text(key, value, COMMAND_LINE), COMMAND_LINE))

    tree: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    for key, value, origin in layers:
        _put(tree, key, value)
        origins[key] = origin
    try:
        return Loaded(Config.model_validate(tree), path, origins)
    except ValidationError as error:
        raise _explain(error, Loaded(Config(), path, origins)) from None


def find_file(file: str | Path | None = None, env: Mapping[str, str] | None = None) -> Path | None:
    """Return the configuration file to read, or None where there is none.

    In this order: ``file``, ``$BLIP_CONFIG``, ``./blip.toml``, ``~/.config/blip/blip.toml``. The
    first two were asked for, so they must exist: :class:`~blip.errors.ConfigError` otherwise.
    """
    env = os.environ if env is None else env
    asked = str(file) if file else env.get("BLIP_CONFIG", "")
    if asked:
        path = Path(asked).expanduser()
        if not path.is_file():
            where = "--config" if file else "BLIP_CONFIG"
            raise ConfigError(f"there is no configuration file '{asked}' (from {where})")
        return path
    return next((path for path in search_path() if path.is_file()), None)


def search_path() -> tuple[Path, ...]:
    """The files that are read when none is named; the first that exists wins."""
    return (Path.cwd() / LOCAL_FILE, default_config_file())


def save(config: Config, path: Path) -> None:
    """Write settings for a child process; readable by this user only, since URLs carry secrets."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(config.model_dump_json())


def restore(source: str | Path) -> Config:
    """Read what :func:`save` wrote, or its JSON text itself. No file or variable is consulted.

    Raises :class:`~blip.errors.ConfigError`.
    """
    text = str(source)
    try:
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        return Config.model_validate_json(text)
    except OSError as error:
        raise ConfigError(f"cannot read the settings in '{source}': {error.strerror}") from None
    except ValidationError as error:
        raise _explain(error, Loaded(Config())) from None


def dotted(key: Key) -> str:
    """Write a key as TOML does: ``models."qwen2.5".source``."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in key)


def quoted(text: str) -> str:
    """Write text as a TOML string: JSON's, but for the one control character JSON leaves bare."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def parse_key(text: str) -> Key:
    """Read a key as TOML writes it; the inverse of :func:`dotted`.

    Raises :class:`~blip.errors.ConfigError`.
    """
    try:
        tree: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"'{text}' is not a key such as gateway.port") from None
    key: list[str] = []
    while isinstance(tree, dict):
        part, tree = next(iter(tree.items()))
        key.append(part)
    return tuple(key)


def field_at(key: Key) -> FieldInfo | None:
    """Return the schema's field at a key; None where there is none, or a whole table."""
    table: Any = Config
    for depth, part in enumerate(key):
        if _is_table(table):
            info: FieldInfo | None = table.model_fields.get(part)
            if info is None:
                return None
            table = info.annotation
            if not (_is_table(table) or (depth == 0 and part in NAMED)):
                # the rest of the key, if any, is inside a map or list: part of this value
                return info
        else:
            table = _rows_of(table)
    return None


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _rows_of(annotation: Any) -> Any:
    """Return the model of ``dict[str, Model]`` or ``list[Model]``; None for anything else."""
    if get_origin(annotation) in (dict, list):
        row = get_args(annotation)[-1]
        return row if _is_table(row) else None
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


#: Settings of a model that say where files are.
_SOURCES = ("source", "loras", "controlnets")


def _beside(path: Path, key: Key, value: Any) -> Any:
    """Return the sources of a model as absolute paths if they lie beside the file that names them.

    A configuration and the models beside it can so be used from any working directory.
    """
    if len(key) != 3 or key[0] != "models" or key[2] not in _SOURCES:
        return value
    if isinstance(value, dict):
        return {name: _beside(path, key, source) for name, source in value.items()}
    if isinstance(value, str) and value and (path.parent / value).exists():
        return str((path.parent / value).resolve())
    return value


def _flatten(tree: Mapping[str, Any]) -> Iterator[tuple[Key, Any]]:
    """Yield every setting of a file. Maps and lists that are values stay whole."""
    for section, table in tree.items():
        if not isinstance(table, dict):
            yield (section,), table
            continue
        for name, value in table.items():
            if section in NAMED and isinstance(value, dict):
                # an empty table is a model too; its missing source is then reported
                yield (section, name), {}
                yield from (((section, name, inner), item) for inner, item in value.items())
            else:
                yield (section, name), value


def _from_environment(env: Mapping[str, str]) -> Iterator[tuple[Key, Any, str]]:
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        origin = f"environment variable {variable}"
        if name in NAMED:
            tables = _json(text)
            if not isinstance(tables, dict):
                raise ConfigError(
                    f"{name} ({origin}): expected a JSON object of names and tables",
                    param=name,
                )
            yield from ((key, value, origin) for key, value in _flatten({name: tables}))
        elif SEPARATOR in name:
            key = tuple(name.split(SEPARATOR))
            yield key, _from_text(key, text, origin), origin
        else:
            section, _, rest = name.partition("_")
            if field_at((section, rest)) is not None:
                # BLIP_GATEWAY_PORT is a slip that would otherwise be ignored without a word
                raise ConfigError(
                    f"environment variable {variable} sets nothing: two underscores separate "
                    "section and key",
                    hint=f"Write {PREFIX}{section.upper()}{SEPARATOR}{rest.upper()}.",
                )


def _from_text(key: Key, value: Any, origin: str) -> Any:
    """Turn text into what the field wants: itself, a number, a truth value, or JSON."""
    if not isinstance(value, str):
        return value
    info = field_at(key)
    if info is None:
        return value
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]
    parsed = _json(value)
    for candidate, strict in ((value, True), (value, False), (parsed, True)):
        try:
            valid = adapter.validate_python(candidate, strict=strict)
        except ValidationError:
            continue
        return candidate if strict else valid
    return value if parsed is None else parsed


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _put(tree: dict[str, Any], key: Key, value: Any) -> None:
    """Set a value, unless it is the empty table of a model that is already there."""
    for part in key[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            below = tree[part] = {}
        tree = below
    if value == {} and isinstance(tree.get(key[-1]), dict):
        return
    tree[key[-1]] = value


def _explain(error: ValidationError, loaded: Loaded) -> ConfigError:
    """Turn pydantic's complaints into one error whose message names key, value and way out."""
    # a misspelt key often makes another one missing: the cause comes first
    items = sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing")
    found = [_problem(item, loaded) for item in items]
    problem, hint, param = found[0]
    more = f" (and {len(found) - 1} more; `blip config check` lists them)" if found[1:] else ""
    return ConfigError(
        problem + more,
        hint=hint,
        param=param,
        details={"problems": [text for text, _, _ in found]},
    )


def _problem(item: Mapping[str, Any], loaded: Loaded) -> tuple[str, str, str]:
    key: Key = tuple(str(part) for part in item["loc"])
    name, origin = dotted(key), loaded.origin(key)
    if item["type"] == "missing":
        origin = loaded.origin(key[:-1])
    where = "" if origin == DEFAULT else f" ({origin})"
    if item["type"] == "extra_forbidden":
        near = _nearest(key)
        nearest = f"; the nearest known key is '{near}'" if near else ""
        return f"unknown key '{name}'{where}{nearest}", _SHOW, name
    if item["type"] == "missing":
        return f"'{name}' is missing{where}", "", name
    if item["type"] in ("model_type", "dict_type", "model_attributes_type"):
        wanted = "expected a table"
    else:
        wanted = str(item["msg"]).removeprefix("Value error, ")
        wanted = wanted.replace("Input should be", "expected", 1)
    shown = "" if isinstance(item["input"], dict) else f" = {_masked(key, item['input'])}"
    return f"{name}{shown}{where}: {wanted}", "", name


def _masked(key: Key, value: Any) -> str:
    info = field_at(key)
    secret = info is not None and isinstance(info.json_schema_extra, dict)
    return "'***'" if secret else repr(value)


def _nearest(key: Key) -> str | None:
    """Return the known key that was probably meant: a near name here, or the same one elsewhere."""
    table: Any = Config
    for part in key[:-1]:
        if _is_table(table):
            info = table.model_fields.get(part)
            table = info.annotation if info else None
        else:
            table = _rows_of(table)
    if not _is_table(table):
        table = _rows_of(table)
    if table is not None:
        near = difflib.get_close_matches(key[-1], table.model_fields, 1)
        if near:
            return dotted((*key[:-1], near[0]))
    elsewhere = {
        f"{section}.{name}": name
        for section, info in Config.model_fields.items()
        if _is_table(info.annotation)
        for name in info.annotation.model_fields  # type: ignore[union-attr]
    }
    near = difflib.get_close_matches(key[-1], elsewhere.values(), 1, cutoff=0.8)
    return next((full for full, name in elsewhere.items() if near and name == near[0]), None)
