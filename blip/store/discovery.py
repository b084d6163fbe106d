"""Who is there: nodes, brokers and gateways, found by each other through Redis.

Redis is the bootstrap and the fallback, not the heartbeat: links between the parties are fresher.
Everyone in a role is one field of one hash, ``id -> incarnation, expiry, payload``, so a listing is
one round trip and a registration is one atomic script. Three rules hold whatever happens:

* An older incarnation never overwrites, extends or removes a newer one that is still alive.
* Expiry is judged by the server's clock alone; the parties' clocks do not matter.
* Every script may run twice with the same effect, since a lost reply makes the client repeat it.

A publication after each change is only a hint (Redis loses those silently at reconnects), so
watchers also look by themselves every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import PubSub

from blip.errors import BlipError, InternalError, InvalidRequest, StoreUnavailable
from blip.store.client import Client, advice
from blip.store.keys import Keys, Role
from blip.store.records import pack_map, unpack_map

log = logging.getLogger(__name__)

#: A record's life in milliseconds. Renewed every third of it, so two renewals may be lost; not
#: shorter, because live links notice a loss (10 s) sooner than Redis has to.
TTL_MS = 15_000

#: Bytes of a payload. An advert of 8 GPUs measures 430 bytes; 500 nodes at this limit would make a
#: listing 8 MB, which still passes within the client's time limit.
PAYLOAD_LIMIT = 16 * 1024

#: Seconds between a watcher's own looks. Hints carry ordinary changes within milliseconds; what
#: this bounds is a lost hint and an expiry (which publishes nothing). A third of the record's life
#: adds that much to how long the dead are still seen, and costs one command per watcher.
WATCH_PERIOD = 5.0

#: Seconds in which a burst of hints (a rack coming up) is answered by one listing.
BURST = 0.05

# An incarnation may be a time in nanoseconds, more than Lua's doubles hold exactly. Twenty digits,
# zero-padded, compare as text exactly as the numbers do.
_INCARNATIONS = 2**63

_PRELUDE = """
local function now_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function parse(value)
    return string.sub(value, 1, 20), tonumber(string.sub(value, 21, 40)) or 0, string.sub(value, 41)
end
-- The living record of an id: incarnation, payload; nothing if there is none.
local function living(id, now)
    local value = redis.call('HGET', KEYS[1], id)
    if not value then return nil end
    local incarnation, expiry, payload = parse(value)
    if expiry <= now then return nil end
    return incarnation, payload
end
local function keep(id, incarnation, payload, now, ttl)
    redis.call('HSET', KEYS[1], id, incarnation .. string.format('%020d', now + ttl) .. payload)
    -- The hash outlives its last record by nothing, even if nobody ever lists it again.
    if redis.call('PTTL', KEYS[1]) < ttl then redis.call('PEXPIRE', KEYS[1], ttl) end
end
"""

# id, incarnation, ttl, payload, channel -> 1 kept, 0 a newer incarnation lives
_REGISTER = """
local id, mine, ttl, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local now = now_ms()
local held, before = living(id, now)
if held and held > mine then return 0 end
keep(id, mine, payload, now, ttl)
if held ~= mine or before ~= payload then redis.call('PUBLISH', ARGV[5], id) end
return 1
"""

# id, incarnation, ttl -> 1 extended, 0 not ours (any more)
_RENEW = """
local now = now_ms()
local held, payload = living(ARGV[1], now)
if held ~= ARGV[2] then return 0 end
keep(ARGV[1], held, payload, now, tonumber(ARGV[3]))
return 1
"""

# id, incarnation, channel -> 1 removed, 0 nothing there or a newer incarnation lives
_WITHDRAW = """
local held = living(ARGV[1], now_ms())
if not held or held > ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""

# [id] -> {{id, incarnation, milliseconds left, payload}, ...}; removes what has expired
_LIST = """
local now, found = now_ms(), {}
local fields
if ARGV[1] then fields = {ARGV[1], redis.call('HGET', KEYS[1], ARGV[1])}
else fields = redis.call('HGETALL', KEYS[1]) end
for i = 1, #fields, 2 do
    if fields[i + 1] then
        local incarnation, expiry, payload = parse(fields[i + 1])
        if expiry > now then
            found[#found + 1] = {fields[i], incarnation, expiry - now, payload}
        else
            redis.call('HDEL', KEYS[1], fields[i])
        end
    end
end
return found
"""

# -> an epoch greater than every one before
_EPOCH = """
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or 0) + 1, now_ms())
redis.call('SET', KEYS[1], string.format('%d', epoch))
return epoch
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One member of the mesh, as registered."""

    id: str
    incarnation: int
    payload: dict[str, Any]
    #: Milliseconds until it expires, counted when it was read.
    left_ms: int


# ``list`` is a method's name below.
Records = list[Record]
Args = list[str | int | bytes]


class Discovery:
    """The registry of one mesh. Every method raises StoreUnavailable while Redis is away."""

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._register = redis.register_script(_PRELUDE + _REGISTER)
        self._renew = redis.register_script(_PRELUDE + _RENEW)
        self._withdraw = redis.register_script(_PRELUDE + _WITHDRAW)
        self._list = redis.register_script(_PRELUDE + _LIST)
        self._epoch = redis.register_script(_PRELUDE + _EPOCH)

    async def register(
        self,
        role: Role,
        id: str,
        incarnation: int,
        payload: Mapping[str, Any],
        ttl_ms: int = TTL_MS,
    ) -> bool:
        """Enter or replace a record for ``ttl_ms`` milliseconds.

        False if a newer incarnation of that id lives: the caller is superseded and should end.
        Raises :class:`~blip.errors.InvalidRequest` and :class:`~blip.errors.PayloadTooLarge`.
        """
        packed = pack_map(payload, limit=PAYLOAD_LIMIT, what=f"the payload of {role} {id}")
        who: Args = [_checked(id), _digits(incarnation), _lifetime(ttl_ms)]
        args = [*who, packed, self._keys.changes(role)]
        return bool(await self._register([self._keys.members(role)], args))

    async def renew(self, role: Role, id: str, incarnation: int, ttl_ms: int = TTL_MS) -> bool:
        """Extend a record without sending its payload again.

        False if it is gone or not of this incarnation: then :meth:`register`.
        """
        args: Args = [_checked(id), _digits(incarnation), _lifetime(ttl_ms)]
        return bool(await self._renew([self._keys.members(role)], args))

    async def withdraw(self, role: Role, id: str, incarnation: int) -> bool:
        """Remove a record of this or an older incarnation; false if there was none."""
        args = [_checked(id), _digits(incarnation), self._keys.changes(role)]
        return bool(await self._withdraw([self._keys.members(role)], args))

    async def list(self, role: Role) -> Records:
        """Everyone alive in a role, by id. Records that cannot be read are logged and left out."""
        records = []
        for row in await self._list([self._keys.members(role)]):
            try:
                records.append(_record(role, row))
            except InternalError as error:
                log.warning("left out of the list: %s", advice(error))
        return sorted(records, key=lambda record: record.id)

    async def get(self, role: Role, id: str) -> Record | None:
        """One member if it is alive.

        Raises :class:`~blip.errors.InternalError` if its record cannot be read.
        """
        rows = await self._list([self._keys.members(role)], [_checked(id)])
        return _record(role, rows[0]) if rows else None

    async def next_epoch(self) -> int:
        """Return a number greater than any returned before: who holds it is the newest broker.

        At least the server's time in milliseconds, so epochs keep growing even if Redis lost all
        its data. A repeated call skips numbers, which harms nobody.
        """
        return int(await self._epoch([self._keys.epoch]))

    async def watch(
        self,
        role: Role,
        period: float = WATCH_PERIOD,
        jitter: Callable[[], float] = random.random,
    ) -> AsyncGenerator[Records, None]:
        """Yield the full listing at once, after each change, and every ``period`` seconds.

        While Redis is away nothing is yielded (keep what you have; it is logged once), and the
        first listing afterwards comes by itself. Close it: ``async with aclosing(d.watch(...))``.
        """
        failures = 0
        while True:
            try:
                with self._redis.translated():
                    async with self._redis.pubsub() as hints:
                        await hints.subscribe(self._keys.changes(role))
                        # Once this is confirmed, no change can fall between listing and waiting.
                        await hints.get_message(timeout=period)
                        while True:
                            records = await self.list(role)
                            if failures:
                                log.info("watching %ss again: Redis is back", role)
                                failures = 0
                            yield records
                            await _next_hint(hints, period)
            except StoreUnavailable as error:
                if not failures:
                    log.warning("watching %ss is interrupted: %s", role, advice(error))
                failures += 1
            await asyncio.sleep(backoff(failures, jitter()))


class Announcer:
    """Keeps one record alive from :meth:`start` to :meth:`close`.

    Registers, renews every third of the record's life, comes back by itself after Redis was away
    or lost its data, and stops for good when a newer incarnation appears. ``jitter`` returns a
    number in [0, 1) and spreads the retries of many announcers.
    """

    def __init__(
        self,
        discovery: Discovery,
        role: Role,
        id: str,
        incarnation: int,
        payload: Mapping[str, Any],
        *,
        ttl_ms: int = TTL_MS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._discovery = discovery
        self._role: Role = role
        self._id = id
        self._incarnation = incarnation
        self._payload = self._storable(payload)
        self._ttl_ms = ttl_ms
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Set once the record is in Redis for the first time.
        self.announced = asyncio.Event()
        #: Set when a newer incarnation of the same id was found; nothing is renewed after that.
        self.superseded = asyncio.Event()

    def start(self) -> None:
        """Begin, on the running event loop; returns at once, whether Redis is there or not."""
        self._task = asyncio.create_task(self._run(), name=f"announce {self._role} {self._id}")

    def update(self, payload: Mapping[str, Any]) -> None:
        """Announce another payload from now on, at once if Redis is there.

        Raises :class:`~blip.errors.InvalidRequest` and :class:`~blip.errors.PayloadTooLarge`.
        """
        self._payload = self._storable(payload)
        self._wake.set()

    async def close(self) -> None:
        """Stop renewing and withdraw the record; if Redis is away it expires by itself."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # raises what should never have happened
        try:
            await self._discovery.withdraw(self._role, self._id, self._incarnation)
        except StoreUnavailable as error:
            log.debug("%s %s not withdrawn: %s", self._role, self._id, error.message)

    async def _run(self) -> None:
        failures = 0
        sent: dict[str, Any] | None = None
        while True:
            self._wake.clear()
            payload = self._payload
            try:
                if not await self._announce(payload, renew=sent is payload):
                    log.error(
                        "%s %s: a newer incarnation of it is registered; this one is no longer "
                        "announced. Two processes with one id? Give each machine its own.",
                        self._role,
                        self._id,
                    )
                    self.superseded.set()
                    return
            except BlipError as error:
                if not failures:
                    log.warning(
                        "%s %s cannot be announced: %s", self._role, self._id, advice(error)
                    )
                failures += 1
                pause = backoff(failures, self._jitter())
            else:
                if failures:
                    log.info("%s %s is announced again", self._role, self._id)
                failures = 0
                sent = payload
                self.announced.set()
                pause = self._ttl_ms / 3000
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _storable(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Copy a payload after making sure, for the caller's sake, that it can be sent."""
        pack_map(payload, limit=PAYLOAD_LIMIT, what=f"the payload of {self._role} {self._id}")
        return dict(payload)

    async def _announce(self, payload: Mapping[str, Any], *, renew: bool) -> bool:
        who = (self._role, self._id, self._incarnation)
        if renew and await self._discovery.renew(*who, self._ttl_ms):
            return True
        return await self._discovery.register(*who, payload, self._ttl_ms)


def backoff(failures: int, jitter: float) -> float:
    """Seconds until the next try after ``failures`` in a row; ``jitter`` is in [0, 1).

    Doubles from 0.1 to 5 s (a third of a record's life, so nobody is missing for long once Redis is
    back), of which a random half spreads a whole mesh's return.
    """
    ceiling = min(5.0, 0.1 * 2.0 ** min(failures - 1, 10))
    return ceiling * (0.5 + 0.5 * jitter)


async def _next_hint(hints: PubSub, period: float) -> None:
    """Wait for a hint, or ``period`` seconds; swallow the rest of a burst."""
    if await hints.get_message(timeout=period) is None:
        return
    await asyncio.sleep(BURST)
    while await hints.get_message(timeout=0) is not None:
        pass


def _record(role: Role, row: list[Any]) -> Record:
    id, incarnation, left_ms, payload = row
    name = id.decode("utf-8", "replace")
    what = f"the record of {role} {name}"
    if not incarnation.isdigit():
        raise InternalError(f"{what} in Redis is corrupt", hint="Another program writes there.")
    return Record(name, int(incarnation), unpack_map(payload, what=what), int(left_ms))


def _checked(id: str) -> str:
    if not 0 < len(id) <= 128:
        raise InvalidRequest(f"an id has 1 to 128 characters, not {len(id)}", param="id")
    return id


def _digits(incarnation: int) -> str:
    if not 0 <= incarnation < _INCARNATIONS:
        raise InvalidRequest(
            f"an incarnation is from 0 to 2**63 - 1, not {incarnation}", param="incarnation"
        )
    return f"{incarnation:020d}"


def _lifetime(ttl_ms: int) -> int:
    if ttl_ms < 1:
        raise InvalidRequest(f"ttl_ms is at least 1, not {ttl_ms}", param="ttl_ms")
    return ttl_ms
