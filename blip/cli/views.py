"""``blip status``, ``blip models``, ``blip ps``: what a gateway knows, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def status(url: str | None, api_key: str | None, *, devices: bool, as_json: bool) -> int:
    """Show health, nodes, devices and replicas; exit code 1 while the gateway is not ready.

    ``devices`` shows all that is known of each device besides.
    """
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
    print("\n" + _table(_DEVICE_COLUMNS, _devices(mesh)))
    if devices:
        for node in mesh["nodes"]:
            for device in node["devices"]:
                print("\n" + "\n".join(_everything(node, device)))
    replicas = [
        (node["unique_name"], r["model"], r["device"], _state(r), f"{r['active']}/{r['slots']}")
        for node in mesh["nodes"]
        for r in node["replicas"]
    ]
    if replicas:
        print("\n" + render.table(("NODE", "MODEL", "DEVICE", "STATE", "ACTIVE"), replicas))
    return 0 if ready else FAILURE


_DEVICE_COLUMNS = (
    "NODE", "STATUS", "DEVICE", "STATE", "FREE", "OF", "OURS", "OTHERS", "BUSY", "TEMP", "NOTE"
)  # fmt: skip


def _devices(mesh: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for node in mesh["nodes"]:
        status = "draining" if node["draining"] else node["status"]
        if not node["devices"]:
            rows.append((node["unique_name"], status, "none", *[""] * 8))
        for device in node["devices"]:
            busy, temperature = device["utilization"], device["temperature"]
            rows.append(
                (
                    node["unique_name"],
                    status,
                    f"{device['id']} ({device['name']})",
                    device["state"],
                    render.size(device["memory_free"]),
                    render.size(device["memory_total"]),
                    render.size(device["ours"]),
                    render.size(device["foreign"]),
                    None if busy is None else f"{busy:.0%}",
                    None if temperature is None else f"{temperature:.0f} °C",
                    _note(device),
                )
            )
    return rows


def _note(device: Mapping[str, Any]) -> str:
    """Say what is wrong with a device, if anything is."""
    health = f"health {device['health']:.0%}" if device["health"] < 1 else ""
    return ": ".join(filter(None, (health, device["reason"])))


def _table(header: Sequence[str], rows: list[tuple[object, ...]]) -> str:
    """Return a table without the columns in which nothing stands."""
    kept = [
        column
        for column in range(len(header))
        if not rows or any(row[column] not in ("", None) for row in rows)
    ]
    return render.table(
        [header[column] for column in kept], [[row[column] for column in kept] for row in rows]
    )


def _everything(node: Mapping[str, Any], device: Mapping[str, Any]) -> Iterator[str]:
    yield f"{node['unique_name']} {device['id']} ({device['name']}), {device['kind']}"
    known = {
        "state": device["state"],
        "reason": device["reason"],
        "health": device["health"],
        "speed": device["speed"],
        "age": render.duration(device["age"]),
        "power": None if device["power"] is None else f"{device['power']:.0f} W",
        "reserved": render.size(device["reserved"]) if device["reserved"] else None,
        "load_bandwidth": _per_second(device["load_bandwidth"]),
        **device["metrics"],
    }
    rows = [(name, _value(value)) for name, value in known.items() if value not in (None, "")]
    rows += [(f"benchmark {name}", _large(value)) for name, value in device["benchmark"].items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"  {name.replace('_', ' '):<{width}}  {value}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_value(each)}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _large(value: float) -> str:
    """Write a number with the prefix of its thousands: ``9.31 T``."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 1000:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    return f"{value:.3g} T"


def _per_second(value: float | None) -> str | None:
    return None if value is None else f"{render.size(value)}/s"


def _state(replica: Mapping[str, Any]) -> str:
    if replica["state"] == "loading":
        return f"loading {replica['progress']:.0%}"
    if replica["error"]:
        return f"{replica['state']}: {replica['error']}"
    return str(replica["state"])


def ps(url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """List the loaded models and the tasks."""
    with Blip(url, api_key) as client:
        mesh = client.mesh()
        tasks = client.tasks()
    if as_json:
        loaded = [
            {"node": node["id"], "name": node["unique_name"], **replica}
            for node in mesh["nodes"]
            for replica in node["replicas"]
        ]
        render.print_json({"models": loaded, "tasks": tasks})
        return 0
    replicas = [_replica(node, replica) for node in mesh["nodes"] for replica in node["replicas"]]
    header: tuple[str, ...]
    if replicas:
        header = (
            "MODEL", "NODE", "DEVICE", "STATE", "MEMORY", "ACTIVE/SLOTS", "IDLE", "UNLOADS"
        )  # fmt: skip
        print(render.table(header, replicas) + "\n")
    else:
        print("No models are loaded.\n")
    if not tasks:
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


def _replica(node: Mapping[str, Any], replica: Mapping[str, Any]) -> tuple[object, ...]:
    idle = replica["state"] == "ready" and not replica["active"]
    unload = replica["unload_in"]
    return (
        replica["model"],
        node["unique_name"],
        replica["device"],
        _state(replica),
        render.size(replica["memory"]) if replica["memory"] else "",
        f"{replica['active']}/{replica['slots']}",
        render.duration(replica["idle"]) if idle else "",
        "pinned"
        if replica["pinned"]
        else ""
        if unload is None
        else f"in {render.duration(unload)}",
    )
