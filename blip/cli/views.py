"""``blip status``, ``blip models``, ``blip ps``: what a gateway knows, as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from blip.cli import FAILURE, render
from blip.client import Blip


def models(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """List what the mesh serves."""
    with Blip(url, api_key) as client:
        found = client.models()
    if as_json:
        render.print_json([asdict(model) for model in found])
    elif not found:
        print("This mesh serves no models.")
        render.note("hint: Name one in the configuration of a node: [models.NAME] source = ...")
    else:
        rows = [(m.id, m.kinds, m.context, m.ready, m.nodes) for m in found]
        print(render.table(("MODEL", "KINDS", "CONTEXT", "LOADED", "NODES"), rows))
    return 0


def status(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Show health, nodes, devices and replicas; exit code 1 while the gateway is not ready."""
    with Blip(url, api_key) as client:
        ready, report = client.ready()
        mesh = client.mesh()
    if as_json:
        render.print_json({"url": client.url, **report, **mesh})
        return 0 if ready else FAILURE
    print(f"{client.url} is {'ready' if ready else 'not ready'}")
    for check in report["checks"]:
        word = "ok" if check["ok"] else "down" if check["required"] else "away"
        detail = f": {check['detail']}" if check["detail"] else ""
        print(f"  {word:<5}{check['name']}{detail}")
    print("\n" + render.table(("NODE", "STATUS", "DEVICE", "FREE", "OF", "BUSY"), _devices(mesh)))
    replicas = [
        (node["name"], r["model"], r["device"], _state(r), f"{r['active']}/{r['slots']}")
        for node in mesh["nodes"]
        for r in node["replicas"]
    ]
    if replicas:
        print("\n" + render.table(("NODE", "MODEL", "DEVICE", "STATE", "ACTIVE"), replicas))
    return 0 if ready else FAILURE


def _devices(mesh: dict[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for node in mesh["nodes"]:
        state = "draining" if node["draining"] else node["status"]
        if not node["devices"]:
            rows.append((node["name"], state, "none", "", "", ""))
        for device in node["devices"]:
            busy = device["utilization"]
            rows.append(
                (
                    node["name"],
                    state,
                    f"{device['id']} ({device['name']})",
                    render.size(device["memory_free"]),
                    render.size(device["memory_total"]),
                    None if busy is None else f"{busy:.0%}",
                )
            )
    return rows


def _state(replica: dict[str, Any]) -> str:
    if replica["state"] == "loading":
        return f"loading {replica['progress']:.0%}"
    if replica["error"]:
        return f"{replica['state']}: {replica['error']}"
    return str(replica["state"])


def ps(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """List tasks."""
    with Blip(url, api_key) as client:
        tasks = client.tasks()
    if as_json:
        render.print_json(tasks)
    elif not tasks:
        print("No tasks.")
    else:
        rows = [
            (
                task["id"],
                task["kind"],
                task["model"],
                task["state"],
                task["node"],
                task["attempt"],
                render.duration(task["age"]),
                task["error"],
            )
            for task in tasks
        ]
        header = ("TASK", "KIND", "MODEL", "STATE", "NODE", "ATTEMPT", "AGE", "ERROR")
        print(render.table(header, rows))
    return 0
