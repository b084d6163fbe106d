"""What a gateway's HTTP face can be told; :mod:`blip.config` maps its own settings to this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from blip.errors import ConfigError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Limits and access rules. Raises :class:`~blip.errors.ConfigError` on values that cannot be.

    ``api_keys`` maps a key's name to the SHA-256 of the key, 64 hex digits; no keys means that
    everyone may use the gateway, which is the server's business to allow on loopback only.
    """

    #: Largest request body in bytes, after decompression. Long prompts and 2048 texts to embed fit.
    body_limit: int = 32 * 1024 * 1024
    api_keys: Mapping[str, str] = field(default_factory=dict)
    #: Seconds of silence after which a stream carries a comment, so that proxies keep it open.
    heartbeat: float = 15.0
    #: Whether ``/metrics`` needs no key even where the rest does.
    metrics_open: bool = False

    def __post_init__(self) -> None:
        for name in ("body_limit", "heartbeat"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        for name, digest in self.api_keys.items():
            if not _SHA256.fullmatch(digest):
                raise ConfigError(
                    f"the API key '{name}' is not a SHA-256 in 64 lower-case hex digits",
                    hint="Store the digest of a key, never the key; `blip key new` makes both.",
                )
