"""Which errors a route that runs tasks may answer with; declared for its OpenAPI entry."""

from __future__ import annotations

from blip.errors import (
    BlipError,
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoCapacity,
    NodeLost,
    NoNode,
    NotPermitted,
    Overloaded,
    RuntimeFailed,
    Unavailable,
    Unsatisfiable,
    WorkerCrashed,
)

#: Errors of every route that runs a task.
TASK_FAILURES: tuple[type[BlipError], ...] = (
    NotPermitted,
    ModelNotFound,
    Unsatisfiable,
    Overloaded,
    DeadlineUnreachable,
    Cancelled,
    RuntimeFailed,
    NodeLost,
    WorkerCrashed,
    Unavailable,
    NoNode,
    NoCapacity,
    ModelTooLarge,
    ModelLoadFailed,
    DeadlineExceeded,
)

#: Errors of every route that runs a model with a context window.
TEXT_FAILURES: tuple[type[BlipError], ...] = (*TASK_FAILURES, ContextTooLong)
