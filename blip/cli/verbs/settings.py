"""Verbs about settings and keys."""

from __future__ import annotations

from typing import Annotated

import typer

from blip.cli.options import ConfigFile, Json, Set, config_app, key_app


@config_app.command("show")
def config_show(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Only this section or key.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    json: Json = False,
) -> int:
    """Print every setting with its value and where that came from. Secrets are masked."""
    from blip.cli import settings

    return settings.show(settings.read(config, set_), key, as_json=json)


@config_app.command("path")
def config_path(config: ConfigFile = None, json: Json = False) -> int:
    """Print which configuration file is read, and where one is looked for."""
    from blip.cli import settings

    return settings.path(config, as_json=json)


@config_app.command("check")
def config_check(config: ConfigFile = None, set_: Set = None, json: Json = False) -> int:
    """Check all settings and list everything that is wrong."""
    from blip.cli import settings

    return settings.check(config, set_, as_json=json)


@key_app.command("new")
def key_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    json: Json = False,
) -> int:
    """Make an API key. It is shown this once; only its hash goes into the configuration."""
    from blip.cli import settings

    return settings.new_key(name, as_json=json)
