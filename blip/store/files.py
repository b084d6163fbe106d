"""What tasks made, kept for a while so that any gateway can hand it out.

A file's content lies as results (:mod:`blip.store.results`): pieces of a few MiB, then a record
that makes them a file. One index of the mesh knows how much there is in all, and which is oldest.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from blip.store.client import Client
from blip.store.keys import Keys
from blip.store.results import Results

#: Bytes of a piece: half of what a result may have, so that one piece passes a slow link in time.
PIECE = 4 * 1024 * 1024

#: Bytes of the secret that addresses are signed with: as many as the hash has.
SECRET_BYTES = 32

# Sorted set: id -> when it expires, in milliseconds. Hash: id -> bytes.
# id, bytes, ttl, most bytes, most files -> ids that have to go, oldest first
_ADD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function forget(id)
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do forget(id) end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local total = 0
for _, size in ipairs(redis.call('HVALS', KEYS[2])) do total = total + tonumber(size) end
local gone = {}
while total > tonumber(ARGV[4]) or redis.call('HLEN', KEYS[2]) > tonumber(ARGV[5]) do
  local id = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  total = total - tonumber(redis.call('HGET', KEYS[2], id))
  forget(id)
  gone[#gone + 1] = id
end
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then redis.call('PEXPIRE', key, ARGV[3]) end
end
return gone
"""

# id -> nothing
_REMOVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
"""

# a new secret -> the secret, which is the new one if there was none
_SECRET = """
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
"""


class Files:
    """The files of one mesh. Every method raises StoreUnavailable while Redis is away."""

    def __init__(self, redis: Client, keys: Keys, results: Results) -> None:
        self._keys = keys
        self._results = results
        self._add = redis.register_script(_ADD)
        self._remove = redis.register_script(_REMOVE)
        self._secret = redis.register_script(_SECRET)

    async def secret(self) -> bytes:
        """Return the secret of the mesh's gateways; the first that asks makes it."""
        found: bytes = await self._secret(
            [self._keys.files_secret], [secrets.token_bytes(SECRET_BYTES)]
        )
        return found

    async def put(
        self,
        id: str,
        record: Mapping[str, Any],
        content: bytes | memoryview,
        *,
        ttl_ms: int,
        most_bytes: int,
        most_files: int,
    ) -> None:
        """Keep a file under a new id, and let the oldest go where there are too many.

        ``record`` says what the file is. It is there as a whole or not at all. Raises
        :class:`~blip.errors.InvalidRequest` for a record that cannot be stored.
        """
        view = memoryview(content)
        # counted first: what is lost on the way is too much in the index, never too little
        keys = [self._keys.files, self._keys.files_sizes]
        gone = await self._add(keys, [id, view.nbytes, ttl_ms, most_bytes, most_files])
        for old in gone:
            await self._drop(old.decode())
        for number, start in enumerate(range(0, view.nbytes, PIECE)):
            piece = view[start : start + PIECE]
            await self._results.put(_piece(id, number), {"attempt": 1}, piece, ttl_ms=ttl_ms)
        told = {**record, "attempt": 1, "bytes": view.nbytes}
        await self._results.put(id, told, ttl_ms=ttl_ms)

    async def find(self, id: str) -> dict[str, Any] | None:
        """Return a file's record, with its size as ``bytes``; None if it is not there (any more).

        Raises :class:`~blip.errors.InvalidRequest` for what cannot be an id.
        """
        found = await self._results.get(id, payload=False)
        return None if found is None or "bytes" not in found.record else found.record

    async def read(self, id: str, start: int, stop: int) -> bytes | None:
        """Return bytes of a file, only those pieces being fetched that hold some of them.

        None if it went meanwhile.
        """
        data = bytearray()
        for number in range(start // PIECE, -(-stop // PIECE)):
            piece = await self._results.get(_piece(id, number))
            if piece is None or piece.payload is None:
                return None
            at = number * PIECE
            data += piece.payload[max(0, start - at) : stop - at]
        return bytes(data)

    async def remove(self, id: str) -> None:
        """Forget a file."""
        await self._remove([self._keys.files, self._keys.files_sizes], [id])
        await self._drop(id)

    async def _drop(self, id: str) -> None:
        record = await self.find(id)
        if record is None:
            return
        await self._results.delete(id)  # first: nobody finds half a file
        for number in range(-(-int(record["bytes"]) // PIECE)):
            await self._results.delete(_piece(id, number))


def _piece(id: str, number: int) -> str:
    return f"{id}.{number}"
