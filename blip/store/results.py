"""How tasks ended: one terminal state each, stored once, kept for a while.

A task is one hash with its record, its payload, the attempt that ended it, and a token. All of it
is one key and each write is one script, so a reader never sees half a result.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip.errors import InternalError, InvalidRequest, PayloadTooLarge
from blip.store.client import Client
from blip.store.keys import Keys
from blip.store.records import pack_map, unpack_map

#: Bytes of a record: state, times, usage, an error's story. What a model made is the payload.
RECORD_LIMIT = 64 * 1024

#: Bytes of a payload. A 1024 x 1024 PNG is about 2 MB, a minute of speech as WAV 3 MB; the largest
#: passes a 100 Mbit/s line in 0.7 s, inside the client's time limit.
PAYLOAD_LIMIT = 8 * 1024 * 1024

# Fields of the hash: 'attempt' (the least that may store), and once it is terminal 'token' (whose
# write it was), 'record' and perhaps 'payload'.

# token, attempt, ttl, record, [payload] -> 1 stored (now, or by this very call before), 0 refused
_PUT = """
local held = redis.call('HMGET', KEYS[1], 'token', 'attempt')
if held[1] then return held[1] == ARGV[1] and 1 or 0 end
if held[2] and tonumber(held[2]) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'attempt', ARGV[2], 'record', ARGV[4])
if ARGV[5] then redis.call('HSET', KEYS[1], 'payload', ARGV[5]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# attempt, ttl -> 1 earlier attempts are shut out, 0 refused
_FENCE = """
local held = redis.call('HMGET', KEYS[1], 'token', 'attempt')
if held[1] or (held[2] and tonumber(held[2]) > tonumber(ARGV[1])) then return 0 end
redis.call('HSET', KEYS[1], 'attempt', ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""

# -> 1 deleted, 0 nothing there; the token stays, so that a late writer is still refused
_DELETE = """
if redis.call('HDEL', KEYS[1], 'record', 'payload') == 0 then return 0 end
redis.call('HSET', KEYS[1], 'token', 'deleted')
return 1
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A task's terminal state."""

    record: dict[str, Any]
    #: What the task made; None if it made nothing, or was not asked for.
    payload: bytes | None
    #: The attempt that ended it.
    attempt: int


class Results:
    """The results of one mesh. Every method raises StoreUnavailable while Redis is away."""

    def __init__(self, redis: Client, keys: Keys, *, payload_limit: int = PAYLOAD_LIMIT) -> None:
        self._redis = redis
        self._keys = keys
        self._payload_limit = payload_limit
        self._put = redis.register_script(_PUT)
        self._fence = redis.register_script(_FENCE)
        self._delete = redis.register_script(_DELETE)

    async def put(
        self,
        task_id: str,
        record: Mapping[str, Any],
        payload: bytes | memoryview | None = None,
        *,
        ttl_ms: int,
    ) -> bool:
        """Store how a task ended, for ``ttl_ms`` milliseconds; ``record["attempt"]`` is the fence.

        False, and nothing changes, if the task already has a terminal state (also one that was
        deleted since) or if a later attempt has been fenced. Raises
        :class:`~blip.errors.PayloadTooLarge` and :class:`~blip.errors.InvalidRequest`.
        """
        key = self._keys.result(task_id)
        attempt = _counted(record.get("attempt"), "attempt")
        packed = pack_map(record, limit=RECORD_LIMIT, what=f"the record of task {task_id}")
        size = 0 if payload is None else memoryview(payload).nbytes
        if size > self._payload_limit:
            raise PayloadTooLarge(
                f"the result of task {task_id} is {size} bytes; at most {self._payload_limit} are "
                "stored",
                hint="Fetch it as a stream instead of storing it, or ask for a smaller result.",
                details={"size": size, "limit": self._payload_limit},
            )
        # If the reply is lost the client sends the script again; by the token it knows its own
        # write, and still refuses everybody else's.
        args: list[bytes | int] = [
            secrets.token_bytes(12),
            attempt,
            _counted(ttl_ms, "ttl_ms"),
            packed,
        ]
        if payload is not None:
            args.append(bytes(payload))
        return bool(await self._put([key], args))

    async def fence(self, task_id: str, attempt: int, *, ttl_ms: int) -> bool:
        """Shut out every attempt before ``attempt``, as it begins.

        False if the task has ended already or a later attempt has begun: do not begin this one.
        """
        args = [_counted(attempt, "attempt"), _counted(ttl_ms, "ttl_ms")]
        return bool(await self._fence([self._keys.result(task_id)], args))

    async def get(self, task_id: str, *, payload: bool = True) -> Stored | None:
        """How a task ended; None if it has not, or that is forgotten by now.

        ``payload=False`` leaves the payload in Redis. Raises :class:`~blip.errors.InternalError`
        if what lies there cannot be read.
        """
        fields = ["attempt", "record", "payload"][: 3 if payload else 2]
        values: list[Any] = await self._redis.hmget(self._keys.result(task_id), fields)
        attempt, record, *rest = values
        if record is None:
            return None
        what = f"the result of task {task_id}"
        if attempt is None or not attempt.isdigit():
            raise InternalError(
                f"{what} in Redis is corrupt: it names no attempt",
                hint="Delete it, and look for another program that writes to keys beginning with "
                "'blip:'.",
            )
        return Stored(unpack_map(record, what=what), rest[0] if rest else None, int(attempt))

    async def delete(self, task_id: str) -> bool:
        """Forget a result; false if there was none. Late writers stay refused until it expires."""
        return bool(await self._delete([self._keys.result(task_id)]))


def _counted(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**53:
        raise InvalidRequest(f"{name} is a whole number from 1, not {value!r}", param=name)
    return value
