"""Asks a plugin what it is, in a child process: its code stays out of the agent, crashes too.

``python -m blip_node.plugins.describe PLACE`` prints its card, or the reason why there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from blip.errors import BlipError, ModelLoadFailed
from blip_node.plugins.card import Card, card_of
from blip_node.plugins.place import find_class

#: Seconds that importing a plugin may take. torch takes ten on a slow disk.
TIMEOUT = 120.0

#: What marks the line that is meant for us: a plugin may print while it is imported.
_MARK = "blip-card:"


def describe_plugin(place: str) -> Card:
    """Return a plugin's card; blocking. Raises :class:`~blip.errors.ModelLoadFailed`."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__, place],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadFailed(
            f"the plugin {place} took more than {TIMEOUT:g} s to be imported"
        ) from None
    for line in reversed(child.stdout.splitlines()):
        if line.startswith(_MARK):
            said = json.loads(line.removeprefix(_MARK))
            if "error" in said:
                raise ModelLoadFailed(said["error"], hint=said["hint"])
            return Card.from_json(said["card"])
    lines = child.stderr[-4000:].strip().splitlines()
    reason = lines[-1] if lines else f"it ended with status {child.returncode}"
    raise ModelLoadFailed(f"the plugin {place} could not be described: {reason}")


def main(place: str) -> None:
    """Print a plugin's card."""
    said = {}
    try:
        said["card"] = card_of(find_class(place)).to_json()
    except BlipError as error:
        said = {"error": error.message, "hint": error.hint}
    print(f"\n{_MARK}{json.dumps(said)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
