"""The connection to Redis: bounded in time, and failing as blip's own errors.

redis-py's defaults suit a script, not a gateway: ten retries (a refused connection surfaces after
3.4 s, a hung server after more than 20), a pool that raises instead of waiting, reply shapes that
depend on the protocol. :func:`connect` sets all of that, and :class:`Client` bounds every call.

A command may run twice: if the connection breaks after Redis executed it and before the reply came,
it is sent again. Everything blip writes is therefore a script that may be repeated; there is no
bare INCR or XADD on this client. Nor is there a blocking command: it would hit the time limit.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as rx
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.maint_notifications import MaintNotificationsConfig

from blip.errors import BlipError, ConfigError, InternalError, StoreUnavailable

#: Seconds for one call from start to end, waiting for a free connection included. The largest
#: reply (an 8 MiB result) takes 0.7 s at 100 Mbit/s; a server that needs longer than this hangs.
#: ``?socket_timeout=`` in the URL overrides it for slow links.
CALL_TIMEOUT = 2.0

#: Connections a process. One Python process drives Redis with 16; the rest is for subscriptions.
MAX_CONNECTIONS = 32

#: Two more tries, about 0.1 and 0.2 s apart with jitter: a restart of the server or a fail-over's
#: reset connections go unnoticed, and "connection refused" still surfaces within half a second.
RETRIES = 2
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.5)

#: The oldest server whose commands and scripts we may use.
MIN_VERSION = (7, 0)

#: The shape of replies that all of blip's code expects: bytes, and maps as flat dicts.
_REPLIES = {"protocol": 3, "legacy_responses": False, "decode_responses": False}


class Client(Redis):
    """A redis-py client whose commands and pipelines raise only blip's errors.

    :class:`~blip.errors.StoreUnavailable` if Redis is away, too slow, full, loading, read-only or
    refuses our credentials; :class:`~blip.errors.InternalError` for a command it rejects.
    Subscriptions bypass this: use them under :meth:`translated`.
    """

    def __init__(self, pool: BlockingConnectionPool, *, where: str) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        #: The address without credentials, for messages.
        self.where = where
        self._limit = pool.connection_kwargs["socket_timeout"] or CALL_TIMEOUT

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command within the time limit."""
        with self.translated():
            # The socket's own timeout is not enough: while a connection is being made, redis-py
            # turns it into a ConnectionError and tries again (measured: 6.2 s instead of 2).
            async with asyncio.timeout(self._limit):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Queue commands; ``execute()`` has the same time limit and errors as one command."""
        return _BoundedPipeline(self, transaction, shard_hint)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn redis-py's and the system's errors inside the block into blip's."""
        try:
            yield
        except rx.NoScriptError:
            raise  # redis-py's Script catches it, loads the script and calls again
        except (rx.RedisError, OSError) as error:  # OSError covers TimeoutError
            raise explain(error, self.where) from error


class _BoundedPipeline(Pipeline):
    def __init__(self, client: Client, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, shard_hint)
        self._client = client

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with self._client.translated():
            async with asyncio.timeout(self._client._limit):
                return await super().execute(raise_on_error)


def connect(url: str, *, name: str = "blip") -> Client:
    """Make a client for ``redis://``, ``rediss://`` or ``unix://``; connects at the first command.

    ``name`` is what CLIENT LIST shows. Raises :class:`~blip.errors.ConfigError` for a URL that
    cannot be one.
    """
    where = redacted(url)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=CALL_TIMEOUT,
            socket_timeout=CALL_TIMEOUT,
            socket_connect_timeout=CALL_TIMEOUT,
            # No pings of idle connections: TCP keepalive (on, from 30 s) does that, and with them a
            # missing password sends redis-py 8.1 round in circles until the time is up.
            health_check_interval=0,
            retry=Retry(_BACKOFF, RETRIES, supported_errors=(rx.ConnectionError,)),
            client_name=name,
            **_REPLIES,
            # A Redis Enterprise feature; elsewhere it costs a command and a warning a connection.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        # Otherwise an unknown query argument would surface at the first command.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, rx.RedisError) as error:
        raise ConfigError(
            f"the Redis URL {where} is wrong: {error}",
            hint="It looks like redis://user:password@host:6379/0, rediss://... for TLS, or "
            "unix:///path/to/socket?db=0.",
        ) from None
    # Query arguments of a URL win over ours.
    forbidden = [key for key, ours in _REPLIES.items() if pool.connection_kwargs[key] != ours]
    if forbidden:
        raise ConfigError(
            f"the Redis URL {where} sets {', '.join(forbidden)}, which blip sets itself",
            hint="Remove it from the URL.",
        )
    return Client(pool, where=where)


def redacted(url: str) -> str:
    """Return the URL without user, password and query, fit for logs and error messages."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(unreadable)"
    address = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{address}{f':{port}' if port else ''}{parts.path}"


#: What a server says while it cannot serve, by the first word of its reply: (sentence, way out).
_REFUSALS = {
    "MISCONF": ("cannot write to its disk", "Look at its log and its free disk space."),
    "NOREPLICAS": ("has too few replicas to accept writes", "Bring its replicas back."),
    "MASTERDOWN": ("is a replica that lost its primary", "Point the URL at the primary."),
    "CLUSTERDOWN": ("is part of a cluster that is down", "Bring the cluster back."),
    "TRYAGAIN": ("is moving keys between cluster nodes", "Try again."),
    "BUSY": ("is busy with another program's script", "End that script, or wait."),
}

#: The same for errors that redis-py gives a class; the first match counts.
_FAILURES: tuple[tuple[type[Exception], str, str], ...] = (
    (
        rx.AuthenticationError,
        "refuses blip's user or password",
        "Check both in the Redis URL.",
    ),
    (
        rx.NoPermissionError,
        "does not allow blip's user this command",
        "Allow it: ACL SETUSER <user> ~blip:* &blip:* +@all -@admin -@dangerous +info.",
    ),
    (rx.BusyLoadingError, "is still loading its data", "Wait; it answers when it is done."),
    (
        rx.OutOfMemoryError,
        "is full",
        "Raise its maxmemory, or keep results for a shorter time.",
    ),
    (rx.ReadOnlyError, "is a read-only replica", "Point the URL at the primary."),
    (TimeoutError, "does not answer", "Check whether it hangs: `redis-cli ping`."),
    (rx.TimeoutError, "does not answer", "Check whether it hangs: `redis-cli ping`."),
    (rx.ConnectionError, "cannot be reached", "Start it, or correct the Redis URL."),
    (OSError, "cannot be reached", "Start it, or correct the Redis URL."),
)


def _root(error: BaseException | None) -> BaseException | None:
    """What redis-py wrapped: on unix sockets it hides any failure in a ConnectionError."""
    while isinstance(error, rx.ConnectionError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def explain(failure: Exception, where: str) -> BlipError:
    """Turn an error of redis-py or the system into blip's, with what to do about it."""
    error = _root(failure)
    if isinstance(error, rx.MovedError | rx.AskError):
        return InternalError(
            f"Redis at {where} is a node of a Redis Cluster that keeps this key elsewhere",
            hint="Point the URL at a single server, or at a proxy in front of the cluster.",
        )
    word = error.status_code if isinstance(error, rx.RedisError) else None
    refusal = _REFUSALS.get(word or str(error).partition(" ")[0])
    if refusal is None:
        refusal = next(((s, h) for cls, s, h in _FAILURES if isinstance(error, cls)), None)
    if refusal is None:
        return InternalError(f"Redis at {where} rejected a command: {error}")
    sentence, hint = refusal
    reason = f": {error}" if str(error) else ""
    return StoreUnavailable(f"Redis at {where} {sentence}{reason}", hint=hint, retry_after=1.0)


def advice(error: BlipError) -> str:
    """Write an error and what to do about it as one line of a log."""
    return f"{error.message}. {error.hint}" if error.hint else error.message


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says about itself."""

    #: "valkey 9.1.2", "redis 7.0.15"
    engine: str
    #: Sentences about settings that are not wrong but should be known.
    warnings: tuple[str, ...]


def engine_of(info: Mapping[str, Any]) -> str:
    """Name the program and version that an INFO reply speaks of: "valkey 9.1.2"."""
    valkey = info.get("valkey_version")
    return f"valkey {valkey}" if valkey else f"redis {info.get('redis_version', '0')}"


def judge(info: Mapping[str, Any]) -> Server:
    """Decide from INFO whether blip can work with a server.

    Raises :class:`~blip.errors.ConfigError` if it is too old, or would throw away keys that blip
    relies on when its memory is full.
    """
    engine = engine_of(info)
    # Valkey, too, has this field: the Redis that it is compatible with.
    version = re.match(r"(\d+)\.(\d+)", str(info.get("redis_version")))
    if version is None or (int(version[1]), int(version[2])) < MIN_VERSION:
        raise ConfigError(
            f"the Redis server is {engine}; blip needs 7.0 or newer",
            hint="Upgrade it, or let blip start its own by leaving the Redis URL empty.",
        )
    warnings = []
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        way_out = "CONFIG SET maxmemory-policy noeviction (or your provider's parameter for it)"
        if int(info.get("maxmemory", 0)):
            raise ConfigError(
                f"the Redis server's maxmemory-policy is {policy}: when its memory is full it "
                "would silently drop tasks and results that blip promised to keep",
                hint=f"Set it: {way_out}.",
            )
        warnings.append(
            f"maxmemory-policy is {policy}, harmless only while maxmemory is 0; better: {way_out}"
        )
    if not int(info.get("aof_enabled", 0)):
        warnings.append(
            "appendonly is off: what is stored since its last snapshot is lost if it dies; "
            "better: CONFIG SET appendonly yes"
        )
    return Server(engine, tuple(warnings))


async def check(client: Client) -> Server:
    """Ask a server for INFO and :func:`judge` it.

    Raises :class:`~blip.errors.ConfigError`, also for refused credentials (waiting does not mend
    them), or :class:`~blip.errors.StoreUnavailable` if it cannot be asked now.
    """
    try:
        info = await client.info()
    except StoreUnavailable as error:
        if isinstance(_root(error.__cause__), rx.AuthenticationError | rx.NoPermissionError):
            raise ConfigError(error.message, hint=error.hint) from error
        raise
    return judge(info)
