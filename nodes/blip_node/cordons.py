"""Operators' cordons, in a small file: they outlive the agent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from blip.errors import ConfigError


class Cordons:
    """A JSON file of device ids, each with the operator's reason (or "")."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: What the file says.
        self.devices: dict[str, str] = {}

    def read(self) -> None:
        """Read the file; none means none.

        Raises :class:`~blip.errors.ConfigError` if it cannot be understood: a device that someone
        has taken out of service must not come back because of that.
        """
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise self._unreadable(str(error)) from None
        devices = found.get("cordoned") if isinstance(found, dict) else None
        if not isinstance(devices, dict) or not all(
            isinstance(why, str) for why in devices.values()
        ):
            raise self._unreadable("it is not a map of device ids under 'cordoned'")
        self.devices = devices

    def write(self, devices: Mapping[str, str]) -> None:
        """Replace what the file says, unless it says so already. Raises ``OSError``."""
        if devices == self.devices:
            return
        draft = self._path.with_name(self._path.name + ".new")
        draft.write_text(json.dumps({"cordoned": dict(devices)}), encoding="utf-8")
        # whole or not at all, also when the power goes
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(self._path)
        self.devices = dict(devices)

    def _unreadable(self, why: str) -> ConfigError:
        return ConfigError(
            f"the list of cordoned devices, {self._path}, cannot be read: {why}",
            hint="Delete the file to start with no device cordoned.",
        )
