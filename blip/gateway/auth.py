"""Who is asking: API keys, known by their SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from blip.errors import Unauthorized

#: Headers that proved good, so that a busy client's key is hashed once. Only accepted ones are
#: kept, hence it grows with the number of keys, or with an attacker who already has one.
_REMEMBERED = 4096


class Keyring:
    """The keys of a gateway, digest by name. Without any, everyone may use it, unnamed."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = [(digest.encode(), name) for name, digest in keys.items()]
        self._accepted: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def tenant(self, authorization: str | None, api_key: str | None = None) -> str:
        """Return the name of the key in an ``Authorization`` header, "" where none is needed.

        ``api_key`` is the ``x-api-key`` header, which counts where the other one is missing.
        Raises :class:`~blip.errors.Unauthorized`.
        """
        if not self._keys:
            return ""
        if authorization is None and api_key is not None:
            authorization = f"Bearer {api_key}"
        if authorization is None:
            raise Unauthorized("This gateway needs an API key and the request has none.")
        name = self._accepted.get(authorization)
        if name is None:
            name = self._check(authorization)
            if len(self._accepted) >= _REMEMBERED:
                self._accepted.clear()
            self._accepted[authorization] = name
        return name

    def _check(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("The Authorization header is not of the form 'Bearer <key>'.")
        # surrogates stand for bytes of a header that were not UTF-8
        digest = hashlib.sha256(key.strip().encode(errors="surrogateescape")).hexdigest().encode()
        found = None
        for known, name in self._keys:  # to the end always: the time says nothing about the key
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise Unauthorized("This gateway does not know that API key.")
        return found
