"""What a gateway's HTTP face can be told; :mod:`blip.config` maps its own settings to this."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blip.errors import ConfigError
from blip.gateway.policy import Policies, Policy

_POSITIVE = (
    "body_limit",
    "heartbeat",
    "results_bytes",
    "results_count",
    "results_seconds",
    "video_jobs",
    "video_timeout",
)

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
    #: Most bytes and files that are kept to be fetched, and for how many seconds each.
    results_bytes: int = 128 * 1024 * 1024
    results_count: int = 1000
    results_seconds: float = 3600.0
    #: What their addresses begin with; "" for whatever host a request was sent to.
    results_url: str = ""
    #: Processes that share this gateway's port: what one keeps in memory, the others do not have.
    processes: int = 1
    #: Videos that one API key may have unfinished, and the seconds that each may take.
    video_jobs: int = 8
    video_timeout: float = 3600.0
    #: Models that moderate texts and pictures where a request names none, and for policies.
    moderation_model: str = ""
    moderation_image_model: str = ""
    policies: Sequence[Policy] = ()

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        for name, digest in self.api_keys.items():
            if not _SHA256.fullmatch(digest):
                raise ConfigError(
                    f"the API key '{name}' is not a SHA-256 in 64 lower-case hex digits",
                    hint="Store the digest of a key, never the key; `blip key new` makes both.",
                )
        Policies(self.policies)
        for policy in self.policies:
            self._check_policy(policy)

    def _check_policy(self, policy: Policy) -> None:
        """Refuse a policy that could not be kept: better no gateway than one that lets all pass."""
        at = f"policies.{policy.name}"
        unknown = sorted(set(policy.keys) - self.api_keys.keys())
        if unknown:
            raise ConfigError(
                f"{at}.keys names '{unknown[0]}', which is no API key",
                hint=f"Those of gateway.api_keys: {', '.join(self.api_keys) or 'none'}.",
                param=f"{at}.keys",
            )
        for wish, model in (
            ("prompts", "moderation_model"),
            ("pictures", "moderation_image_model"),
        ):
            if getattr(policy, wish) and not getattr(self, model):
                raise ConfigError(
                    f"{at}.{wish} is on, and there is no model that could check them",
                    hint=f"Set gateway.{model}, or {at}.{wish} = false.",
                    param=f"{at}.{wish}",
                )
