"""What tasks made, kept so that it can be fetched: in the store where there is one, else here.

A file is found by an id of 128 random bits. Its address carries when it expires and a signature of
both, which authorises whoever has it, as the addresses of OpenAI's files do.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import quote

from blip.errors import NotFound, PayloadTooLarge, StoreUnavailable
from blip.gateway.settings import GatewaySettings
from blip.gateway.shelf import Kept, Shelf
from blip.gateway.signing import Signer
from blip.protocol.messages import Payload
from blip.store import files as stored
from blip.store.files import SECRET_BYTES

log = logging.getLogger(__name__)

_ID = re.compile(r"file-[0-9a-f]{32}")

_LOST = "Files are kept for a while only; make it again."


class Files:
    """The kept files of one gateway process. ``clock`` tells the seconds since the epoch."""

    def __init__(
        self,
        settings: GatewaySettings,
        store: stored.Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._shelf = Shelf(settings.results_bytes, settings.results_count)
        # ours until the store's is known: then every gateway of the mesh knows our signatures
        self._signer = Signer(secrets.token_bytes(SECRET_BYTES))
        self._adopted = False

    async def keep(self, content: Payload, media: str, name: str) -> Kept:
        """Keep a file; ``name`` is what it may be saved as.

        Where the store is away it is kept in memory, so that what was made is not lost. Raises
        :class:`~blip.errors.PayloadTooLarge` for a file larger than all that may be kept.
        """
        limits = self._settings
        size = len(content)
        if size > limits.results_bytes:
            raise PayloadTooLarge(
                f"The result is {size} bytes, and {limits.results_bytes} are kept in all.",
                hint="Raise gateway.results_bytes, or have it sent in the answer.",
                details={"size": size, "limit": limits.results_bytes},
            )
        now = self._clock()
        id = f"file-{secrets.token_hex(16)}"
        kept = Kept(id, media, name, size, int(now), int(now + limits.results_seconds))
        if self._store is not None:
            record = {
                "media": kept.media,
                "name": kept.name,
                "made": kept.made,
                "expires": kept.expires,
            }
            try:
                await self._adopt()
                await self._store.put(
                    id,
                    record,
                    content,
                    ttl_ms=int(limits.results_seconds * 1000),
                    most_bytes=limits.results_bytes,
                    most_files=limits.results_count,
                )
                return kept
            except StoreUnavailable as error:
                log.warning("keeping %s in memory: %s", id, error.message)
        self._shelf.put(kept, content, now)
        return kept

    async def find(self, id: str) -> Kept:
        """Return what is known of a file.

        Raises :class:`~blip.errors.NotFound` if it is not kept (any more).
        """
        if not _ID.fullmatch(id):
            raise NotFound(f"There is no file '{id[:64]}'.")
        now = self._clock()
        found = self._shelf.get(id, now)
        if found is not None:
            return found[0]
        record = None if self._store is None else await self._store.find(id)
        if record is None or record["expires"] <= now:
            raise NotFound(f"The file {id} is not kept here, or not any more.", hint=_LOST)
        return Kept(
            id, record["media"], record["name"], record["bytes"], record["made"], record["expires"]
        )

    async def read(self, kept: Kept, start: int = 0, stop: int | None = None) -> Payload:
        """Return bytes of a file, all of them by default.

        Raises :class:`~blip.errors.NotFound` if it went meanwhile.
        """
        stop = kept.size if stop is None else stop
        found = self._shelf.get(kept.id, self._clock())
        if found is not None:
            return memoryview(found[1])[start:stop]
        content = None
        if self._store is not None:
            content = await self._store.read(kept.id, start, stop)
        if content is None:
            raise NotFound(f"The file {kept.id} is not kept any more.", hint=_LOST)
        return content

    def left(self, kept: Kept) -> int:
        """Return the seconds for which a file is kept from now on."""
        return max(0, int(kept.expires - self._clock()))

    async def forget(self, id: str) -> None:
        """Forget a file, if it is there."""
        self._shelf.remove(id)
        if self._store is not None:
            await self._store.remove(id)

    async def address(self, kept: Kept, origin: str) -> str:
        """Return a file's address below ``https://host:port``, good until it expires."""
        await self._adopt()
        signature = self._signer.sign(kept.id, kept.expires)
        base = self._settings.results_url or origin
        return (
            f"{base}/v1/files/{kept.id}/content?expires={kept.expires}&signature={quote(signature)}"
        )

    async def admit(self, id: str, expires: str, signature: str) -> None:
        """Check an address.

        Raises :class:`~blip.errors.NotFound`, which does not tell whether there is such a file,
        for one that we have not signed or that has expired.
        """
        await self._adopt()
        moment = int(expires) if re.fullmatch(r"[0-9]{1,12}", expires) else 0
        if not self._signer.genuine(id, moment, signature):
            raise NotFound(
                "No file has this address.",
                hint="Addresses are signed: take them as they are, with 'expires' and 'signature'.",
            )
        if moment <= self._clock():
            raise NotFound("This address has expired.", hint=_LOST)

    async def _adopt(self) -> None:
        """Learn the secret of the mesh, once the store tells it."""
        if self._store is None or self._adopted:
            return
        try:
            self._signer.adopt(await self._store.secret())
        except StoreUnavailable as error:
            log.warning("signing for this process alone: %s", error.message)
        else:
            self._adopted = True
