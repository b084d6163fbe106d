"""Verbs that run a mesh, or a part of one."""

from __future__ import annotations

from typing import Annotated

import typer

from blip.cli.options import ConfigFile, ConfigJson, Json, Set, app


@app.command()
def up(
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, max=64, help="Nodes.")] = 1,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65535, help="The gateway's port.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=64, help="Gateway processes.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what the roles log.")
    ] = False,
    json: Json = False,
) -> int:
    """Run a whole mesh on this machine."""
    from blip.cli import settings, up

    loaded = settings.read(config, set_, {"gateway.port": port, "gateway.processes": processes})
    return up.up(loaded.config, nodes, stream=verbose, as_json=json)


@app.command()
def gateway(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=64, help="Processes on that port.")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    config_json: ConfigJson = None,
) -> int:
    """Run a gateway: the HTTP side of a mesh."""
    from blip.cli import roles

    flags = {"gateway.host": host, "gateway.port": port, "gateway.processes": processes}
    return roles.gateway(roles.settings_of(config_json, config, set_, flags))


@app.command()
def broker(config: ConfigFile = None, set_: Set = None, config_json: ConfigJson = None) -> int:
    """Run a broker: it knows the nodes and places tasks."""
    from blip.cli import roles

    return roles.broker(roles.settings_of(config_json, config, set_, {}))


@app.command()
def node(
    name: Annotated[str | None, typer.Option("--name", help="Display name.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    config_json: ConfigJson = None,
) -> int:
    """Run a node: it offers this machine to a mesh."""
    from blip.cli import roles

    return roles.node(roles.settings_of(config_json, config, set_, {"node.name": name}))
