"""Every error blip raises, as one tree.

    BlipError
    ├── InvalidRequest            400  invalid_request
    │   ├── UnsupportedField      400  unsupported_field
    │   ├── ContextTooLong        400  context_length_exceeded
    │   ├── PolicyViolation       400  content_policy_violation
    │   └── Unsatisfiable         422  unsatisfiable
    ├── Unauthorized              401  invalid_api_key
    ├── NotPermitted              403  not_permitted
    ├── NotFound                  404  not_found
    │   └── ModelNotFound         404  model_not_found
    ├── PayloadTooLarge           413  payload_too_large
    ├── Overloaded                429  overloaded
    │   └── DeadlineUnreachable   429  deadline_unreachable
    ├── Cancelled                 499  cancelled
    ├── InternalError             500  internal_error
    │   └── RuntimeFailed         500  runtime_failed
    ├── NodeLost                  502  node_lost
    ├── WorkerCrashed             502  worker_crashed
    ├── Unavailable               503  unavailable
    │   ├── NoNode                503  no_node
    │   ├── NoCapacity            503  no_capacity
    │   │   └── ModelTooLarge     503  model_too_large
    │   ├── ModelLoadFailed       503  model_load_failed
    │   └── StoreUnavailable      503  store_unavailable
    ├── DeadlineExceeded          504  deadline_exceeded
    ├── ConfigError               (start-up only)
    └── ProtocolError             (links only)
        ├── LocalProtocolError    we broke the rules: a bug here
        └── RemoteProtocolError   the peer broke the rules: drop and count

The ``code`` of an error is stable: it is what travels in FAIL, REFUSE and DENY messages, what the
HTTP error envelope shows, and what clients may match on. The HTTP status hangs on the class, so
there is exactly one table from code to status: :data:`BY_CODE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class BlipError(Exception):
    """The root; also what an unknown code from a newer peer becomes.

    ``message`` says what went wrong in a sentence, ``hint`` says what to do next, ``param`` names
    the request field at fault, ``details`` carries numbers (msgpack- and JSON-safe), and
    ``retry_after`` is in seconds.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    #: The ``type`` of OpenAI's error envelope, which its client libraries show.
    openai_type: ClassVar[str] = "server_error"
    #: Whether another attempt, on another node, may succeed where this one failed.
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.param = param
        self.retry_after = retry_after
        self.details: dict[str, Any] = dict(details or {})

    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        """Return ``(code, message, details)`` for a FAIL, REFUSE or DENY message."""
        details = dict(self.details)
        if self.hint and self.hint != self.default_hint:
            details["hint"] = self.hint
        if self.param is not None:
            details["param"] = self.param
        if self.retry_after is not None:
            details["retry_after"] = self.retry_after
        return self.code, self.message, details


class InvalidRequest(BlipError):
    """The request itself is wrong; sending it again changes nothing."""

    code = "invalid_request"
    status = 400
    openai_type = "invalid_request_error"


class UnsupportedField(InvalidRequest):
    """A field that would change the answer and that blip does not support."""

    code = "unsupported_field"


class ContextTooLong(InvalidRequest):
    """Prompt and requested output do not fit the model's context window."""

    code = "context_length_exceeded"
    default_hint = "Shorten the prompt or lower max_tokens."


class PolicyViolation(InvalidRequest):
    """What the gateway's policy for this API key does not let through; the message says what."""

    code = "content_policy_violation"


class Unsatisfiable(InvalidRequest):
    """No node of the mesh is what the task requires its device to be."""

    code = "unsatisfiable"
    status = 422
    default_hint = "`blip status` shows what there is; ask for less, or add such a node."


class Unauthorized(BlipError):
    """No API key, or one that this gateway does not know."""

    code = "invalid_api_key"
    status = 401
    openai_type = "authentication_error"
    default_hint = "Send 'Authorization: Bearer <key>'; `blip key new` makes one."


class NotPermitted(BlipError):
    """This API key may not use that model or that kind of task."""

    code = "not_permitted"
    status = 403
    openai_type = "permission_error"
    default_hint = "The gateway's operator decides what a key is for, in [policies]."


class NotFound(BlipError):
    """Nothing by that name here."""

    code = "not_found"
    status = 404
    openai_type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No node of the mesh serves a model by that name for that kind."""

    code = "model_not_found"
    default_hint = "`blip models` or GET /v1/models lists what the mesh serves."


class PayloadTooLarge(BlipError):
    """The body, or one message on the mesh, is over its size limit."""

    code = "payload_too_large"
    status = 413
    openai_type = "invalid_request_error"


class Overloaded(BlipError):
    """Every suitable device is busy and the queue is full."""

    code = "overloaded"
    status = 429
    openai_type = "rate_limit_error"
    default_hint = "Try again after the time in Retry-After, or add a node."


class DeadlineUnreachable(Overloaded):
    """It cannot be done by its deadline; ``earliest_finish`` says when it could be."""

    code = "deadline_unreachable"
    default_hint = "Allow it the time that 'earliest_finish' says, or add a faster node."


class Cancelled(BlipError):
    """The client went away or asked to stop. The status is nginx's for that case."""

    code = "cancelled"
    status = 499


class InternalError(BlipError):
    """A bug in blip; the request id leads to the log line."""

    code = "internal_error"


class RuntimeFailed(InternalError):
    """The model's runtime raised while it worked on this task."""

    code = "runtime_failed"


class NodeLost(BlipError):
    """The node that ran the task died or cannot be reached."""

    code = "node_lost"
    status = 502
    retryable = True


class WorkerCrashed(BlipError):
    """The worker process that ran the task ended; the node itself lives."""

    code = "worker_crashed"
    status = 502
    retryable = True


class Unavailable(BlipError):
    """The mesh cannot do this at the moment."""

    code = "unavailable"
    status = 503
    openai_type = "service_unavailable_error"
    retryable = True


class NoNode(Unavailable):
    """No node that could run this is connected."""

    code = "no_node"
    retryable = False
    default_hint = "Start one with `blip node`, or look at `blip status`."


class NoCapacity(Unavailable):
    """The model does not fit on any device at present."""

    code = "no_capacity"


class ModelTooLarge(NoCapacity):
    """The model is larger than every device that could load it, even if all else went."""

    code = "model_too_large"
    retryable = False


class ModelLoadFailed(Unavailable):
    """The model is known but could not be loaded; the message carries the reason."""

    code = "model_load_failed"


class StoreUnavailable(Unavailable):
    """Redis cannot be reached; only what must be durable needs it."""

    code = "store_unavailable"
    retryable = False


class DeadlineExceeded(BlipError):
    """The task's deadline passed before it finished."""

    code = "deadline_exceeded"
    status = 504
    openai_type = "timeout_error"


class ConfigError(BlipError):
    """A configuration value is missing, unknown or wrong; nothing was started."""

    code = "config_error"
    openai_type = "invalid_request_error"


class ProtocolError(BlipError):
    """Someone broke the rules of a link. Never instantiated itself."""

    code = "protocol_error"

    def __init__(self, message: str, **kwargs: Any) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError (we) or RemoteProtocolError (they)")
        super().__init__(message, **kwargs)


class LocalProtocolError(ProtocolError):
    """We tried something the current state does not allow: a bug on this side."""

    code = "local_protocol_error"


class RemoteProtocolError(ProtocolError):
    """The peer sent what the current state or the codec does not allow."""

    code = "remote_protocol_error"


def _tree(cls: type[BlipError]) -> list[type[BlipError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


#: Every error class by its code; on a shared code (the root's) the most specific class wins.
BY_CODE: dict[str, type[BlipError]] = {
    cls.code: cls for cls in _tree(BlipError) if cls is not ProtocolError
}


def from_wire(code: str, message: str, details: Mapping[str, Any] | None = None) -> BlipError:
    """Rebuild the error that a peer reported; unknown codes become :class:`InternalError`."""
    rest = dict(details or {})
    hint = rest.pop("hint", "")
    param = rest.pop("param", None)
    retry_after = rest.pop("retry_after", None)
    return BY_CODE.get(code, InternalError)(
        message,
        hint=hint if isinstance(hint, str) else "",
        param=param if isinstance(param, str) else None,
        retry_after=float(retry_after) if isinstance(retry_after, int | float) else None,
        details=rest,
    )
