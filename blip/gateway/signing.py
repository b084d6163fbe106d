"""Addresses that authorise whoever has them, until they expire. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac


class Signer:
    """Signs with the newest of its secrets and knows the signatures of all of them."""

    def __init__(self, secret: bytes) -> None:
        self._secrets = [secret]

    def adopt(self, secret: bytes) -> None:
        """Sign with another secret from now on."""
        if secret not in self._secrets:
            self._secrets.append(secret)

    def sign(self, id: str, expires: int) -> str:
        """Return the signature of an address; ``expires`` is in seconds since the epoch."""
        return _signature(self._secrets[-1], id, expires)

    def genuine(self, id: str, expires: int, signature: str) -> bool:
        """Return whether one of our secrets made a signature.

        The time it takes does not depend on how much of it is right.
        """
        given = signature.encode(errors="replace")
        found = [
            hmac.compare_digest(_signature(secret, id, expires).encode(), given)
            for secret in self._secrets
        ]
        return any(found)


def _signature(secret: bytes, id: str, expires: int) -> str:
    # an id has no line end, so no two pairs become one text
    digest = hmac.digest(secret, f"{id}\n{expires}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
