"""``GET /v1/tasks`` and below: what this gateway's tasks do, and why they run where they run."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import InvalidRequest, NotFound
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.mesh import TaskView
from blip.gateway.routes.mesh import View
from blip.protocol.messages import TASK_ID_BYTES
from blip.protocol.names import unique_names

#: A whole id, or at least four digits of one.
_ID = re.compile(r"[0-9a-f]{4,32}")

#: Ids that an error names: enough to choose from.
_NAMED = 5


class TaskEntry(View):
    """A task in flight, or one that has just ended."""

    id: str
    kind: str
    model: str
    state: str
    node: str
    device: str
    """The device of the current attempt, once it has one."""
    attempt: int
    priority: int
    age: float
    """Seconds since it was submitted; of one that ended, what it took."""
    error: str


class TaskList(BaseModel):
    """Tasks in flight, oldest first; then those that ended lately, newest first."""

    tasks: list[TaskEntry]


class CandidateView(View):
    """A device that was considered, with what the attempt would have cost there, in seconds."""

    node: str = ""
    """The node's id."""
    name: str = ""
    device: str = ""
    wait: float | None = None
    """Until a slot is free there."""
    service: float | None = None
    """The work itself."""
    load: float | None = None
    """Until the model is loaded."""
    others: float | None = None
    """What it costs everybody else."""
    cost: float | None = None
    """The sum, which was compared."""
    room: bool | None = None
    """Whether it could have begun there at once."""
    evicts: list[str] = Field(default_factory=list)
    """Models that would have been unloaded for it."""


class ExclusionView(View):
    """A device that was out of the question, and why."""

    node: str = ""
    name: str = ""
    device: str = ""
    reason: str = ""


class EndView(View):
    """How an attempt ended."""

    outcome: str = ""
    run: float | None = None
    """Seconds that it ran."""
    load: float | None = None
    """Seconds that loading the model took."""
    units: float | None = None
    """Work done, in the kind's units."""


class DecisionView(View):
    """One thing that was decided about a task, or that happened to it."""

    ago: float
    """Seconds."""
    attempt: int
    outcome: str
    """grant, wait, deny, move or end."""
    by: str = ""
    """broker or gateway."""
    kind: str = ""
    model: str = ""
    code: str = ""
    """Why not: an error's code."""
    text: str = ""
    considered: list[CandidateView] = Field(default_factory=list)
    """The one that was chosen first; the others are those that came closest."""
    excluded: list[ExclusionView] = Field(default_factory=list)
    end: EndView | None = None


class StoryView(View):
    """Everything that is known about how a task came to run where it ran, oldest first."""

    id: str
    task: TaskEntry | None
    """The task itself; null if it is not one of this gateway's, or too long ago."""
    decisions: list[DecisionView]
    note: str
    """Whose part of the story is missing, if any."""


def find_task(tasks: list[TaskView], given: str) -> TaskView | str:
    """Return the task meant by an id, or by the start or the end of one.

    A whole id that is not among them is returned as it is: a broker may know it. Raises
    :class:`~blip.errors.InvalidRequest` and :class:`~blip.errors.NotFound`.
    """
    text = given.lower()
    if not _ID.fullmatch(text):
        raise InvalidRequest(
            f"'{given}' is not the id of a task: that is {2 * TASK_ID_BYTES} hex digits.",
            hint="The start or the end of one will do, from 4 digits on; `blip ps` lists them.",
            param="id",
        )
    found = [task for task in tasks if task.id.startswith(text) or task.id.endswith(text)]
    if len(found) > 1:
        named = ", ".join(task.id for task in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InvalidRequest(
            f"'{given}' is the id of {len(found)} tasks: {named}{more}.",
            hint="Give more digits; tasks of one gateway differ at the end.",
            param="id",
        )
    if found:
        return found[0]
    if len(text) == 2 * TASK_ID_BYTES:
        return text
    raise NotFound(
        f"This gateway knows no task '{given}': none in flight, none that ended lately.",
        hint="`blip ps` lists them. Another gateway's task needs its whole id.",
        param="id",
    )


async def index(exchange: Exchange) -> web.StreamResponse:
    """Show tasks of this gateway: those in flight, and those that ended lately."""
    found = exchange.gateway.mesh.tasks()
    view = TaskList(tasks=[TaskEntry.model_validate(task) for task in found])
    return web.Response(text=view.model_dump_json(), content_type="application/json")


async def show(exchange: Exchange) -> web.StreamResponse:
    """Show one task of this gateway: its id, or the start or the end of it, will do."""
    given = exchange.request.match_info["id"]
    found = find_task(exchange.gateway.mesh.tasks(), given)
    if isinstance(found, str):
        raise NotFound(
            f"This gateway knows no task '{given}': none in flight, none that ended lately.",
            hint="Ask the gateway that took it.",
            param="id",
        )
    view = TaskEntry.model_validate(found)
    return web.Response(text=view.model_dump_json(), content_type="application/json")


async def why(exchange: Exchange) -> web.StreamResponse:
    """Say why a task runs where it runs: candidates, costs, who was excluded, what happened.

    The broker remembers its last decisions, the gateway those that it made without a broker. With
    its whole id, a task of any gateway can be asked about.
    """
    mesh = exchange.gateway.mesh
    given = exchange.request.match_info["id"]
    found = find_task(mesh.tasks(), given)
    task = None if isinstance(found, str) else TaskEntry.model_validate(found)
    id = found if isinstance(found, str) else found.id
    story = await mesh.why(bytes.fromhex(id))
    if task is None and not story.decisions:
        missing = f"; {story.note}" if story.note else ""
        raise NotFound(f"Nobody here remembers a task '{given}'{missing}.", param="id")
    names = unique_names(mesh.nodes())
    decisions = [DecisionView.model_validate(_named(each, names)) for each in story.decisions]
    view = StoryView(id=id, task=task, decisions=decisions, note=story.note)
    return web.Response(text=view.model_dump_json(), content_type="application/json")


def _named(decision: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Give every node of a decision the name that tells it from others, where it is known."""
    named = dict(decision)
    for key in ("considered", "excluded"):
        named[key] = [
            {**each, "name": names.get(each.get("node", ""), each.get("name", ""))}
            for each in decision.get(key) or ()
        ]
    return named


OPERATIONS = (
    Operation("GET", "/v1/tasks", index, "Show tasks", "mesh", answer=TaskList),
    Operation(
        "GET",
        "/v1/tasks/{id}",
        show,
        "Show a task",
        "mesh",
        answer=TaskEntry,
        errors=(InvalidRequest, NotFound),
    ),
    Operation(
        "GET",
        "/v1/tasks/{id}/why",
        why,
        "Explain a task",
        "mesh",
        answer=StoryView,
        errors=(InvalidRequest, NotFound),
    ),
)
