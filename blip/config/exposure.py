"""What may listen where. Nothing that a stranger could reach starts without protection."""

from __future__ import annotations

import ipaddress

from blip.config.schema import Config
from blip.errors import ConfigError

ROLES = ("gateway", "broker", "node")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host`` (an address, or a name)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # a name may resolve to anything, and '*' to everything
        return False


def check_exposure(config: Config, roles: tuple[str, ...] = ROLES) -> None:
    """Refuse binds that strangers could use. Raises :class:`~blip.errors.ConfigError`."""
    if "gateway" in roles and not (is_loopback(config.gateway.host) or config.gateway.api_keys):
        raise ConfigError(
            f"gateway.host = '{config.gateway.host}' can be reached from other machines, "
            "but gateway.api_keys is empty: anyone there could use this mesh",
            hint="Make a key with `blip key new NAME` and add the line it prints, "
            "or set gateway.host to 127.0.0.1.",
            param="gateway.host",
        )
    for role, bind in (("broker", config.broker.bind), ("node", config.node.bind)):
        host = bind.removeprefix("tcp://").rpartition(":")[0]
        if role in roles and bind.startswith("tcp://") and not is_loopback(host):
            raise ConfigError(
                f"{role}.bind = '{bind}' can be reached from other machines, but links between "
                "roles are not encrypted yet: that comes in a later release",
                hint=f"Set {role}.bind to tcp://127.0.0.1 and a port; "
                "until then the roles of a mesh run on one machine.",
                param=f"{role}.bind",
            )
