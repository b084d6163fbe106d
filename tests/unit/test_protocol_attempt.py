"""A task and its attempts, as the gateway decides about them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blip.errors import (
    BlipError,
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelLoadFailed,
    NoCapacity,
    NodeLost,
    Overloaded,
    RuntimeFailed,
    Unavailable,
    WorkerCrashed,
)
from blip.protocol import messages
from blip.protocol.attempt import (
    MAX_FAILURES,
    MAX_REFUSALS,
    REFUSED,
    TERMINAL,
    TRANSITIONS,
    Command,
    Deliver,
    Event,
    Finish,
    Refusal,
    State,
    Task,
    ToBroker,
    ToNode,
)
from blip.protocol.messages import (
    Cancel,
    Credit,
    Data,
    Deny,
    Done,
    Fail,
    Grant,
    Move,
    Payload,
    Place,
    Recall,
    Refuse,
    Release,
    Submit,
)

TASK = b"t" * 16
WINDOW = 1000
PLACE = Place(TASK, 1, "echo", "model", 2.0, 3, 30.0, "tenant")


def new(resume: Callable[[], Payload | None] | None = None) -> Task:
    return Task(PLACE, b"input", window=WINDOW, resume=resume)


def grant(attempt: int = 1, node: str = "a") -> Grant:
    return Grant(TASK, attempt, node, 7, "gpu", 0.1, 0.2, 0.3)


def done(attempt: int = 1, parts: int = 0) -> Done:
    return Done(TASK, attempt, parts, {"n": 1}, 2.0, 0.1, 0.2, 0.3, 0.4, b"end")


def refuse(attempt: int = 1, code: str = "busy") -> Refuse:
    return Refuse(TASK, attempt, code, "no", {"why": 1})


def fail(error: BlipError, attempt: int = 1) -> Fail:
    return Fail(TASK, attempt, *error.to_wire())


def stop(attempt: int = 1) -> messages.Cancelled:
    return messages.Cancelled(TASK, attempt)


def submitted(resume: Callable[[], Payload | None] | None = None) -> Task:
    task = new(resume)
    task.granted(grant(), 30.0)
    return task


def running(parts: int = 0, resume: Callable[[], Payload | None] | None = None) -> Task:
    task = submitted(resume)
    task.accepted(1)
    for part in range(parts):
        task.data(Data(TASK, 1, part, b"x" * 10))
    return task


def error_of(commands: Sequence[Command]) -> BlipError:
    """The one error that the client is told."""
    [finish] = [command for command in commands if isinstance(command, Finish)]
    assert isinstance(finish.outcome, BlipError)
    return finish.outcome


def placed(commands: Sequence[Command]) -> Place:
    """The one PLACE among the commands; nothing is said to the client."""
    assert not [command for command in commands if isinstance(command, Finish)]
    [place] = [
        command.message
        for command in commands
        if isinstance(command, ToBroker) and isinstance(command.message, Place)
    ]
    return place


def released(commands: Sequence[Command]) -> list[tuple[int, str]]:
    """Every lease that is given back: attempt and outcome."""
    return [
        (command.message.attempt, command.message.outcome)
        for command in commands
        if isinstance(command, ToBroker) and isinstance(command.message, Release)
    ]


# --- the usual life -------------------------------------------------------------------------


def test_a_task_that_succeeds() -> None:
    task = new()
    assert task.start() == (ToBroker(PLACE),)
    submit = Submit(TASK, 1, "echo", "model", "gpu", 12.5, WINDOW, b"input")
    assert task.granted(grant(), 12.5) == (ToNode("a", 7, submit),)
    assert task.accepted(1) == ()
    assert task.data(Data(TASK, 1, 0, b"one")) == (Deliver(b"one"),)
    assert task.data(Data(TASK, 1, 1, memoryview(b"two"))) == (Deliver(b"two"),)
    assert task.delivered == 6
    end = done(parts=2)
    assert task.done(end) == (Finish(end), ToBroker(Release(TASK, 1, "done", 2.0, 0.4, 0.2)))
    assert task.state is State.SUCCEEDED


@pytest.mark.parametrize("first", ["data", "done"])
def test_an_accept_that_was_lost_is_not_missed(first: str) -> None:
    task = submitted()
    if first == "data":
        assert task.data(Data(TASK, 1, 0, b"x")) == (Deliver(b"x"),)
        assert task.state is State.RUNNING
        assert task.accepted(1) == ()
    assert isinstance(task.done(done(parts=task.part))[0], Finish)


# --- the table ------------------------------------------------------------------------------


def in_state(state: State) -> Task:
    """A task that got there as tasks do."""
    task = running() if state is not State.SUBMITTED else submitted()
    if state in (State.PLACING, State.CANCELLED, State.EXPIRED):
        task = new()
    if state is State.CANCELLED:
        task.cancel()
    elif state is State.EXPIRED:
        task.expire()
    elif state is State.CANCELLING:
        task.cancel()
    elif state is State.SUCCEEDED:
        task.done(done())
    elif state is State.FAILED:
        task.failed(fail(InvalidRequest("no")))
    assert task.state is state
    return task


def repeat(task: Task) -> Sequence[Command]:
    """Something after which the attempt is repeated."""
    if task.state is State.PLACING:  # refused nodes are forgiven once
        task.exclude = {"a": True}
        return task.denied(Deny(TASK, 1, "no_capacity", "full"))
    return task.failed(fail(WorkerCrashed("signal 9")))


def give_up(task: Task) -> Sequence[Command]:
    """Something after which it is not."""
    if task.state is State.PLACING:
        return task.denied(Deny(TASK, 1, "no_node", "nobody"))
    return task.failed(fail(InvalidRequest("no")))


CAUSES: dict[Event, Callable[[Task], Sequence[Command]]] = {
    Event.GRANT: lambda task: task.granted(grant(), 30.0),
    Event.ACCEPT: lambda task: task.accepted(1),
    Event.DATA: lambda task: task.data(Data(TASK, 1, task.part, b"x")),
    Event.RETRY: repeat,
    Event.GIVE_UP: give_up,
    Event.DONE: lambda task: task.done(done(parts=task.part)),
    Event.CANCEL: Task.cancel,
    Event.EXPIRE: Task.expire,
    Event.STOPPED: lambda task: task.stopped(stop()),
}

#: Where what the outside does amounts to another event: to a node that is stopping anything is
#: STOPPED, and a node that stops by itself is as good as lost.
OTHERWISE = {
    (State.CANCELLING, Event.DONE): State.CANCELLED,
    (State.CANCELLING, Event.RETRY): State.CANCELLED,
    (State.CANCELLING, Event.GIVE_UP): State.CANCELLED,
    (State.SUBMITTED, Event.STOPPED): State.PLACING,
    (State.RUNNING, Event.STOPPED): State.PLACING,
}


def test_the_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state in State if not TRANSITIONS[state]} == set(TERMINAL)
    reached = {target for row in TRANSITIONS.values() for target in row.values()}
    assert reached == set(State)


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name
)
def test_every_cell_of_the_table(state: State, event: Event) -> None:
    task = in_state(state)
    commands = CAUSES[event](task)
    expected = TRANSITIONS[state].get(event, state)
    assert task.state is OTHERWISE.get((state, event), expected)
    if event not in TRANSITIONS[state] and (state, event) not in OTHERWISE:
        assert not [c for c in commands if not isinstance(c, ToBroker)], "nobody hears of it"


@pytest.mark.parametrize("state", TERMINAL)
def test_nothing_follows_the_end(state: State) -> None:
    """Only leases that come too late are given back."""
    task = in_state(state)
    for cause in CAUSES.values():
        for command in cause(task):
            assert command == ToBroker(Release(TASK, 1, "cancelled"))
    assert not list(task.lost("gone"))
    assert not list(task.refused(refuse()))
    assert not list(task.consumed(10**9))
    assert task.state is state


# --- stale words ----------------------------------------------------------------------------


def test_words_about_other_attempts_are_ignored() -> None:
    task = submitted()
    task.refused(refuse())
    task.granted(grant(2, "b"), 30.0)
    for state in (State.SUBMITTED, State.RUNNING):
        assert task.state is state
        for stale in (1, 3):
            assert task.accepted(stale) == ()
            assert task.data(Data(TASK, stale, 0, b"x")) == ()
            assert task.done(done(stale)) == ()
            assert task.failed(fail(WorkerCrashed("x"), stale)) == ()
            assert task.refused(refuse(stale)) == ()
            assert task.stopped(stop(stale)) == ()
            assert task.denied(Deny(TASK, stale, "no_node", "nobody")) == ()
            assert task.state is state
        task.accepted(2)
    assert (task.part, task.delivered, task.failures, task.refusals) == (0, 0, 0, 1)


def test_a_grant_nobody_wants_is_given_back() -> None:
    task = submitted()
    assert task.granted(grant(), 30.0) == (), "the same grant again is the lease we hold"
    task.refused(refuse())
    assert task.granted(grant(1, "a"), 30.0) == (ToBroker(Release(TASK, 1, "cancelled")),)
    task.granted(grant(2, "b"), 30.0)
    assert task.granted(grant(1, "a"), 30.0) == (ToBroker(Release(TASK, 1, "cancelled")),)
    assert task.state is State.SUBMITTED
    gone = in_state(State.CANCELLED)
    assert gone.granted(grant(), 30.0) == (ToBroker(Release(TASK, 1, "cancelled")),)


def test_a_denial_after_a_grant_is_stale() -> None:
    task = submitted()
    assert task.denied(Deny(TASK, 1, "no_node", "nobody")) == ()
    assert task.state is State.SUBMITTED


def test_a_node_that_refuses_what_it_runs_is_not_believed() -> None:
    task = running()
    assert task.refused(refuse()) == ()
    assert task.state is State.RUNNING


# --- retry and give up ----------------------------------------------------------------------


def test_a_refusal_is_placed_again_elsewhere_at_once() -> None:
    task = submitted()
    commands = task.refused(refuse(code="no_memory"))
    assert released(commands) == [(1, "refused")]
    assert placed(commands) == PLACE._replace(attempt=2, exclude=["a"])
    assert commands[0] == ToBroker(Release(TASK, 1, "refused")), "the lease goes before the ticket"
    commands = task.granted(grant(2, "b"), 30.0)
    assert isinstance(commands[0], ToNode)
    assert commands[0].node == "b"
    assert isinstance(commands[0].message, Submit)
    assert commands[0].message.attempt == 2


def test_refusals_are_counted_and_end() -> None:
    task = new()
    for attempt in range(1, MAX_REFUSALS):
        task.granted(grant(attempt, f"node-{attempt}"), 30.0)
        place = placed(task.refused(refuse(attempt)))
        assert place.attempt == attempt + 1
        assert place.exclude == [f"node-{n}" for n in range(1, attempt + 1)]
    task.granted(grant(MAX_REFUSALS, "last"), 30.0)
    commands = task.refused(refuse(MAX_REFUSALS))
    assert task.state is State.FAILED
    assert released(commands) == [(MAX_REFUSALS, "refused")]
    error = error_of(commands)
    assert isinstance(error, Overloaded)
    assert error.details == {"why": 1, "refusal": "busy"}


@pytest.mark.parametrize(
    ("code", "heard"),
    [
        ("busy", Overloaded),
        ("no_memory", NoCapacity),
        ("load_failed", ModelLoadFailed),
        ("expired", DeadlineExceeded),
        ("draining", Unavailable),
        ("superseded", Unavailable),
        ("a code from the future", Unavailable),
    ],
)
def test_what_the_client_hears_if_everyone_refused(code: str, heard: type[BlipError]) -> None:
    task = new()
    commands: Sequence[Command] = ()
    for attempt in range(1, MAX_REFUSALS + 1):
        task.granted(grant(attempt, f"node-{attempt}"), 30.0)
        commands = task.refused(refuse(attempt, code))
    assert type(error_of(commands)) is heard


def test_every_refusal_that_has_a_meaning_for_clients_is_one_of_ours() -> None:
    assert set(REFUSED) <= {refusal.value for refusal in Refusal}


def test_failures_are_counted_and_end() -> None:
    task = new()
    for attempt in range(1, MAX_FAILURES):
        task.granted(grant(attempt, f"node-{attempt}"), 30.0)
        task.accepted(attempt)
        commands = task.failed(fail(WorkerCrashed("signal 9"), attempt))
        assert released(commands) == [(attempt, "failed")]
        assert placed(commands).attempt == attempt + 1
    task.granted(grant(MAX_FAILURES, "last"), 30.0)
    commands = task.failed(fail(WorkerCrashed("signal 11"), MAX_FAILURES))
    assert isinstance(error_of(commands), WorkerCrashed)
    assert error_of(commands).message == "signal 11"
    assert released(commands) == [(MAX_FAILURES, "failed")]
    assert task.state is State.FAILED


@pytest.mark.parametrize(
    "error", [InvalidRequest("bad"), RuntimeFailed("raised"), InternalError("bug")], ids=repr
)
def test_what_is_not_retryable_is_not_retried(error: BlipError) -> None:
    task = running()
    commands = task.failed(fail(error))
    assert type(error_of(commands)) is type(error)
    assert error_of(commands).message == error.message
    assert released(commands) == [(1, "failed")]


def test_an_error_that_only_a_newer_node_knows_is_final() -> None:
    commands = running().failed(Fail(TASK, 1, "quantum_decoherence", "it collapsed", {}))
    assert isinstance(error_of(commands), InternalError)
    assert error_of(commands).message == "it collapsed"


def test_the_order_of_the_end_is_the_client_first() -> None:
    commands = running().failed(fail(InvalidRequest("bad")))
    assert [type(command).__name__ for command in commands] == ["Finish", "ToBroker"]


# --- moved to another device -----------------------------------------------------------------


MOVE = Move(TASK, 1, "b", "gpu")


@pytest.mark.parametrize("make", [submitted, running])
def test_an_attempt_that_has_not_begun_moves(make: Callable[[], Task]) -> None:
    task = make()
    assert task.moved(MOVE) == (ToNode("a", 7, Recall(TASK, 1)),)
    commands = task.refused(refuse(code="recalled"))
    assert released(commands) == [(1, "recalled")]
    again = placed(commands)
    assert (again.attempt, again.exclude) == (2, [])
    assert (task.refusals, task.failures) == (0, 0)


def test_what_has_begun_or_is_another_attempt_does_not_move() -> None:
    assert running(parts=1).moved(MOVE) == ()
    assert submitted().moved(MOVE._replace(attempt=2)) == ()
    assert new().moved(MOVE) == ()
    task = running()
    task.cancel()
    assert task.moved(MOVE) == ()


def test_a_recall_that_crosses_a_cancel_only_frees_the_lease() -> None:
    task = submitted()
    task.moved(MOVE)
    task.cancel()
    assert released(task.refused(refuse(code="recalled"))) == [(1, "refused")]


# --- lost nodes -----------------------------------------------------------------------------


def test_a_lost_node_is_never_tried_again() -> None:
    task = running()
    commands = task.lost("the link broke")
    assert released(commands) == [(1, "lost")]
    assert placed(commands) == PLACE._replace(attempt=2, exclude=["a"])
    # when the mesh has no other node, that is the story, and the node is not forgiven
    error = error_of(task.denied(Deny(TASK, 2, "no_node", "nobody")))
    assert isinstance(error, NodeLost)
    assert error.message == "the link broke (node a)"
    assert error.details == {"node": "a", "delivered": 0}


@pytest.mark.parametrize("state", [State.PLACING, *TERMINAL])
def test_there_is_nothing_to_lose_without_a_node(state: State) -> None:
    task = in_state(state)
    assert task.lost("gone", cancel=True) == ()
    assert task.state is state


def test_a_silent_node_is_told_to_stop_nevertheless() -> None:
    commands = submitted().lost("no answer", cancel=True)
    assert commands[0] == ToNode("a", 7, Cancel(TASK, 1))
    assert placed(commands).attempt == 2


@pytest.mark.parametrize(
    "what", ["lost", "crashed", "gap", "end too early", "stopped"], ids=lambda what: what
)
def test_a_stream_that_delivered_something_is_not_repeated(what: str) -> None:
    task = running(parts=3)
    commands = {
        "lost": lambda: task.lost("the link broke"),
        "crashed": lambda: task.failed(fail(WorkerCrashed("signal 9"))),
        "gap": lambda: task.data(Data(TASK, 1, 4, b"x")),
        "end too early": lambda: task.done(done(parts=4)),
        "stopped": lambda: task.stopped(stop()),
    }[what]()
    assert task.state is State.FAILED
    assert not [c for c in commands if isinstance(c, Deliver)]
    error = error_of(commands)
    if what == "crashed":
        assert isinstance(error, WorkerCrashed)
    else:
        assert isinstance(error, NodeLost)
        assert error.details["delivered"] == 30
    assert len(released(commands)) == 1


def test_a_stream_that_can_resume_continues_where_the_client_stands() -> None:
    copy = bytearray()
    task = running(resume=lambda: b"after " + bytes(copy))

    def read(commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Deliver):
                copy.extend(command.payload)

    read(task.data(Data(TASK, 1, 0, b"one ")))
    read(task.data(Data(TASK, 1, 1, b"two ")))
    placed(task.lost("the link broke"))
    [command] = task.granted(grant(2, "b"), 30.0)
    assert isinstance(command, ToNode)
    assert isinstance(command.message, Submit)
    assert command.message.payload == b"after one two "
    assert task.data(Data(TASK, 1, 2, b"three ")) == (), "the old attempt has no say any more"
    assert task.data(Data(TASK, 2, 2, b"three ")) != (), "parts count anew"
    task = running(resume=lambda: b"")
    placed(task.lost("before anything was delivered"))
    [command] = task.granted(grant(2, "b"), 30.0)
    assert isinstance(command, ToNode)
    assert isinstance(command.message, Submit)
    assert command.message.payload == b"input", "nothing to resume: the input as it was"


@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_stream_that_nobody_could_continue_fails_where_it_stands(how: str) -> None:
    task = running(parts=1, resume=lambda: None)
    gone = NodeLost("the engine broke off")
    commands = task.lost("the link broke") if how == "lost" else task.failed(fail(gone))
    assert isinstance(error_of(commands), NodeLost)
    task = running(resume=lambda: None)  # nothing was delivered: it can begin anew
    placed(task.lost("the link broke") if how == "lost" else task.failed(fail(gone)))


def test_parts_count_anew_in_each_attempt() -> None:
    task = running(parts=2, resume=lambda: b"rest")
    task.lost("the link broke")
    task.granted(grant(2, "b"), 30.0)
    assert task.data(Data(TASK, 2, 0, b"x")) == (Deliver(b"x"),)
    assert task.done(done(2, parts=1))[0] == Finish(done(2, parts=1))


@pytest.mark.parametrize("part", [1, 5, -1])
def test_a_part_out_of_turn_ends_the_attempt_and_stops_the_node(part: int) -> None:
    task = running()
    commands = task.data(Data(TASK, 1, part, b"x"))
    assert commands[0] == ToNode("a", 7, Cancel(TASK, 1))
    assert placed(commands).attempt == 2
    assert released(commands) == [(1, "lost")]


def test_an_end_that_counts_more_parts_than_came_is_no_end() -> None:
    task = running()
    commands = task.done(done(parts=1))
    assert placed(commands).attempt == 2
    assert released(commands) == [(1, "lost")]


# --- denials --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["no_node", "overloaded", "model_not_found", "deadline_exceeded"])
def test_a_denial_is_the_end_and_leaves_no_lease(code: str) -> None:
    task = new()
    commands = task.denied(Deny(TASK, 1, code, "no", {"retry_after": 2.0}))
    assert error_of(commands).code == code
    assert error_of(commands).retry_after == 2.0
    assert released(commands) == []
    assert task.state is State.FAILED


def test_nodes_that_only_refused_are_forgiven_once() -> None:
    task = submitted()
    task.refused(refuse())
    task.granted(grant(2, "b"), 30.0)
    task.lost("the link broke")
    assert placed(task.denied(Deny(TASK, 3, "no_capacity", "full"))).exclude == ["b"]
    task.granted(grant(4, "a"), 30.0)
    task.refused(refuse(4))
    commands = task.denied(Deny(TASK, 5, "no_capacity", "full"))
    assert isinstance(error_of(commands), Overloaded), "what happened on the nodes is the story"
    assert task.state is State.FAILED


def test_nobody_is_forgiven_where_waiting_does_not_help() -> None:
    for code in ("overloaded", "deadline_exceeded"):
        task = submitted()
        task.refused(refuse())
        assert error_of(task.denied(Deny(TASK, 2, code, "no"))).code == code


# --- cancel and expire ----------------------------------------------------------------------


@pytest.mark.parametrize("event", ["cancel", "expire"])
def test_a_task_that_waits_is_withdrawn(event: str) -> None:
    task = new()
    commands = getattr(task, event)()
    assert isinstance(error_of(commands), Cancelled if event == "cancel" else DeadlineExceeded)
    assert commands[1:] == (ToBroker(Cancel(TASK, 1)),)
    assert task.state is (State.CANCELLED if event == "cancel" else State.EXPIRED)


@pytest.mark.parametrize("event", ["cancel", "expire"])
@pytest.mark.parametrize("make", [submitted, running], ids=["submitted", "running"])
def test_the_client_is_told_at_once_and_the_node_must_confirm(
    make: Callable[[], Task], event: str
) -> None:
    task = make()
    commands = getattr(task, event)()
    assert isinstance(error_of(commands), Cancelled if event == "cancel" else DeadlineExceeded)
    assert commands[1:] == (ToNode("a", 7, Cancel(TASK, 1)),)
    assert task.state is State.CANCELLING
    assert task.cancel() == ()
    assert task.expire() == ()
    assert task.data(Data(TASK, 1, task.part, b"late")) == ()
    assert task.accepted(1) == ()
    assert task.delivered == 0


@pytest.mark.parametrize(
    ("word", "outcome"),
    [
        (lambda task: task.stopped(stop()), "cancelled"),
        (lambda task: task.refused(refuse()), "refused"),
        (lambda task: task.failed(fail(InvalidRequest("no"))), "failed"),
        (lambda task: task.failed(fail(WorkerCrashed("no"))), "failed"),
        (lambda task: task.lost("gone"), "lost"),
        (lambda task: task.data(Data(TASK, 1, 9, b"x")), "lost"),
    ],
)
def test_any_last_word_frees_the_slot(
    word: Callable[[Task], Sequence[Command]], outcome: str
) -> None:
    task = submitted()
    task.cancel()
    assert word(task) == (ToBroker(Release(TASK, 1, outcome)),)
    assert task.state is State.CANCELLED


def test_work_done_before_the_cancel_arrived_still_teaches_the_rates() -> None:
    task = running()
    task.cancel()
    assert task.done(done()) == (ToBroker(Release(TASK, 1, "done", 2.0, 0.4, 0.2)),)


def test_what_the_deadline_caught_says_where_it_was() -> None:
    assert "waited for a device" in error_of(new().expire()).message
    assert "while the task ran" in error_of(running().expire()).message


# --- credit ---------------------------------------------------------------------------------


def credit(commands: Sequence[Command]) -> int:
    """The bytes granted by these commands."""
    sizes = []
    for command in commands:
        assert isinstance(command, ToNode)
        assert (command.node, command.incarnation) == ("a", 7)
        assert isinstance(command.message, Credit)
        sizes.append(command.message.size)
    return sum(sizes)


def test_credit_flows_as_the_client_reads() -> None:
    task = running()
    for part in range(10):
        task.data(Data(TASK, 1, part, bytes(100)))
    assert credit(task.consumed(499)) == 0
    assert credit(task.consumed(1)) == 500
    assert credit(task.consumed(500)) == 500


@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
def test_nobody_is_granted_credit_who_does_not_run(state: State) -> None:
    assert in_state(state).consumed(WINDOW) == ()


def test_reading_what_an_earlier_attempt_sent_earns_the_next_one_nothing() -> None:
    """Else a client that lags behind would let every retry fill another window of memory."""
    task = running(resume=lambda: b"rest")
    task.data(Data(TASK, 1, 0, bytes(900)))
    assert credit(task.consumed(100)) == 0
    task.lost("the link broke")
    task.granted(grant(2, "a"), 30.0)
    task.data(Data(TASK, 2, 0, bytes(600)))
    assert credit(task.consumed(700)) == 0
    assert credit(task.consumed(100)) == 0, "all of attempt 1 is read now"
    assert credit(task.consumed(499)) == 0
    assert credit(task.consumed(1)) == 500


# --- every order ----------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Anything may happen at any time, and be said about any attempt.

    The stream is the numbers 0, 1, 2, ... as bytes; a resumed attempt is asked to go on from some
    number, any other one from 0.
    """

    @initialize(resumable=st.booleans())
    def begin(self, resumable: bool) -> None:
        self.received = bytearray()
        self.resumable = resumable
        self.task = Task(
            PLACE,
            b"",
            window=WINDOW,
            resume=(lambda: bytes([len(self.received)])) if resumable else None,
        )
        self.finishes: list[Finish] = []
        self.leased: list[int] = []
        self.released: list[int] = []
        self.placed: list[int] = []
        #: Where each attempt's stream begins, and how many parts it has sent.
        self.streams: dict[int, list[int]] = {}
        self.obey(self.task.start())

    def obey(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Deliver(payload):
                    assert not self.finishes, "a part after the end"
                    self.received += payload
                case Finish():
                    self.finishes.append(command)
                case ToBroker(Place() as place):
                    self.placed.append(place.attempt)
                case ToBroker(Release() as release):
                    self.released.append(release.attempt)
                case ToNode(_, _, Submit() as submit):
                    begin = submit.payload[0] if submit.payload else 0
                    self.streams[submit.attempt] = [begin, 0]

    @property
    def attempt(self) -> int:
        return self.task.place.attempt

    attempts = st.integers(-2, 0)

    def number(self, back: int) -> int:
        return max(1, self.attempt + back)

    @rule(back=attempts, node=st.sampled_from("abcdefgh"))
    def grant(self, back: int, node: str) -> None:
        attempt = self.number(back)
        if attempt == self.attempt and self.task.state is State.PLACING:
            self.leased.append(attempt)
        self.obey(self.task.granted(grant(attempt, node), 1.0))

    @rule(code=st.sampled_from(["no_node", "no_capacity", "overloaded"]), back=attempts)
    def deny(self, code: str, back: int) -> None:
        self.obey(self.task.denied(Deny(TASK, self.number(back), code, "no")))

    @rule(back=attempts)
    def accept(self, back: int) -> None:
        self.obey(self.task.accepted(self.number(back)))

    @rule(back=attempts, code=st.sampled_from(["busy", "no_memory"]))
    def refuse(self, back: int, code: str) -> None:
        self.obey(self.task.refused(refuse(self.number(back), code)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), skip=st.sampled_from([0, 0, 0, 0, 1, -1]))
    def part(self, data: st.DataObject, skip: int) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.streams)))
        stream = self.streams[attempt]
        stream[1] += skip  # lost on the way, or doubled
        begin, part = stream
        stream[1] += 1
        payload = bytes([(begin + part) % 256])
        self.obey(self.task.data(Data(TASK, attempt, part, payload)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.streams)))
        self.obey(self.task.done(done(attempt, self.streams[attempt][1])))

    @rule(back=attempts, retryable=st.booleans())
    def fail(self, back: int, retryable: bool) -> None:
        error = WorkerCrashed("x") if retryable else InvalidRequest("x")
        self.obey(self.task.failed(fail(error, self.number(back))))

    @rule(back=attempts)
    def stopped(self, back: int) -> None:
        self.obey(self.task.stopped(stop(self.number(back))))

    @rule(cancel=st.booleans())
    def lose(self, cancel: bool) -> None:
        self.obey(self.task.lost("gone", cancel=cancel))

    @rule()
    def cancel(self) -> None:
        self.obey(self.task.cancel())

    @rule()
    def expire(self) -> None:
        self.obey(self.task.expire())

    @invariant()
    def one_end(self) -> None:
        state = self.task.state
        told = state in TERMINAL or state is State.CANCELLING
        assert len(self.finishes) == int(told)
        succeeded = [end for end in self.finishes if isinstance(end.outcome, Done)]
        assert (state is State.SUCCEEDED) == bool(succeeded)

    @invariant()
    def one_stream(self) -> None:
        """What the client has is 0, 1, 2, ... without a gap and without doubling."""
        assert self.received == bytes(n % 256 for n in range(len(self.received)))

    @invariant()
    def every_lease_is_given_back(self) -> None:
        held = {attempt for attempt in self.leased if attempt not in self.released}
        if self.task.state in (State.SUBMITTED, State.RUNNING, State.CANCELLING):
            assert held == {self.attempt}
        else:
            assert held == set()
        assert len(self.leased) == len(set(self.leased))

    @invariant()
    def attempts_are_numbered_and_bounded(self) -> None:
        assert self.placed == list(range(1, len(self.placed) + 1))
        assert len(self.placed) <= MAX_FAILURES + MAX_REFUSALS + 1


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
