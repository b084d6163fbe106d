"""``blip config`` and ``blip key``; also how every verb reads its settings."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.cli import USAGE, render
from blip.config.describe import rows, toml
from blip.config.load import Loaded, dotted, find_file, load, parse_key, search_path
from blip.errors import ConfigError


def read(
    file: Path | None, sets: Sequence[str] | None, flags: Mapping[str, Any] | None = None
) -> Loaded:
    """Read the settings for a verb: ``--config``, ``--set`` and the verb's own flags (None: unset).

    Raises :class:`~blip.errors.ConfigError`.
    """
    overrides: dict[str, Any] = {}
    for item in sets or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item}: expected KEY=VALUE, such as gateway.port=8002")
        overrides[key.strip()] = value.strip()
    overrides.update((key, value) for key, value in (flags or {}).items() if value is not None)
    return load(file, overrides=overrides)


def show(loaded: Loaded, prefix: str | None, *, as_json: bool) -> int:
    """Print settings; ``prefix`` is a section or a key."""
    wanted = parse_key(prefix) if prefix else ()
    found = [row for row in rows(loaded) if row[0][: len(wanted)] == wanted]
    if wanted and not found:
        raise ConfigError(
            f"there is no setting '{prefix}'", hint="`blip config show` lists every key."
        )
    if as_json:
        render.print_json(
            [{"key": dotted(key), "value": value, "from": origin} for key, value, origin in found]
        )
        return 0
    lines = [(f"{dotted(key)} = {toml(value)}", origin) for key, value, origin in found]
    # one very long value must not push all origins off the screen
    width = max((len(text) for text, _ in lines if len(text) <= 60), default=0)
    for text, origin in lines:
        print(f"{text:<{width}}  # {origin}")
    return 0


def path(file: Path | None, *, as_json: bool) -> int:
    """Print which file is read."""
    found = find_file(file)
    places = search_path()
    if as_json:
        render.print_json(
            {"file": str(found) if found else None, "searched": [str(place) for place in places]}
        )
    elif found:
        print(found)
    else:
        render.note("no configuration file; looked for:")
        for place in places:
            render.note(f"  {place}")
    return 0


def check(file: Path | None, sets: Sequence[str] | None, *, as_json: bool) -> int:
    """Say whether the settings are good, and everything that is not."""
    from blip.config import check_exposure

    loaded: Loaded | None = None
    problems: list[str] = []
    try:
        loaded = read(file, sets)
        check_exposure(loaded.config)
    except ConfigError as error:
        problems = error.details.get("problems") or [error.message]
    if as_json:
        render.print_json({"ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            print(f"wrong: {problem}")
    else:
        used = loaded.file if loaded is not None else None
        print(f"fine: {used or 'no configuration file, defaults and environment only'}")
    return USAGE if problems else 0


def new_key(name: str, *, as_json: bool) -> int:
    """Make an API key and print it with the line that lets it in."""
    if not name.strip():
        raise ConfigError("an API key needs a name: it says whose requests are counted where")
    # 256 random bits need no slow hash: there is nothing to guess
    key = f"blip_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    if as_json:
        render.print_json({"name": name, "key": key, "sha256": digest})
        return 0
    print(f"API key of {name}, shown this once:\n\n  {key}\n")
    print("Let it in, in the gateway's configuration:\n")
    print(f'  [gateway.api_keys]\n  {dotted((name,))} = "{digest}"')
    return 0
