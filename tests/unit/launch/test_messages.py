"""The messages of a cohort's processes, the end of a process, and the first cause of a failure."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import (
    CoordinatorLost,
    KdclError,
    ShapeMismatch,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.launch import messages
from kdcl_dist.launch.failures import failure_of, first_cause, first_worker_failure
from kdcl_dist.launch.messages import (
    Answered,
    CohortAsked,
    CoordinatorUnreachable,
    EndpointOpened,
    EndProcess,
    EventEmitted,
    Failed,
    Finished,
    Message,
    Noticed,
    Question,
    Reply,
    RunEndedByFailure,
    StopAsked,
)
from kdcl_dist.launch.processes import Process, await_ready, finish, how_it_ended, receive
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Note

ERROR = ShapeMismatch("9 rows", student="a", step=3, phase="gather", host="h", detail="more")
RECIPE = parse_recipe("data: {train: x, test: x}\nstudents: [{name: a, model: mlp}]")
MESSAGES: list[Any] = [
    EndpointOpened(Endpoint("h", 1)),
    EventEmitted(Note("a line")),
    EndProcess("a", 7),
    Question(1, "is_gone", ("a", 7)),
    Reply(1, True),
    StopAsked(),
    Noticed("why"),
    CohortAsked(RECIPE, RECIPE),
    CoordinatorUnreachable("x"),
    Finished(True),
    Answered({"a": 1}),
    Failed(ERROR),
    RunEndedByFailure(ERROR),
]


class Handle:
    """As a process of multiprocessing that stands still until a test ends it."""

    def __init__(self) -> None:
        self.sentinel, self.death = os.pipe()
        self.exitcode: int | None = None

    def die(self, exitcode: int) -> None:
        self.exitcode = exitcode
        os.close(self.death)

    def join(self, timeout: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        self.die(-signal.SIGTERM)


@pytest.fixture
def process() -> Iterator[tuple[Process, Connection]]:
    """A process, and the end of its link at which it sends."""
    ours, theirs = multiprocessing.Pipe()
    handle = Handle()
    yield Process("a", handle, ours), theirs  # type: ignore[arg-type]
    os.close(handle.sentinel)
    theirs.close()


def test_every_message_is_tried_here() -> None:
    assert {type(message).__name__ for message in MESSAGES} == set(messages.__all__) - {"Message"}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_pickling(message: Message) -> None:
    copy = pickle.loads(pickle.dumps(message))
    assert type(copy) is type(message)
    if isinstance(message, Failed | RunEndedByFailure):
        assert copy.error.to_dict() == ERROR.to_dict()
    else:
        assert copy == message


def test_messages_import_nothing_heavy() -> None:
    code = "import sys, kdcl_dist.launch.failures; print({'torch', 'ray', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_launcher_notes_how_a_process_ends(message: Message, process: tuple[Process, Connection]) -> None:
    known, link = process
    assert await_ready([known], 0) == []
    link.send(message)
    assert await_ready([known], 60) == [known]
    assert type(receive(known)) is type(message)
    assert known.finished == (True if isinstance(message, Finished) else None)
    assert (known.error is not None) == isinstance(message, Failed | RunEndedByFailure)
    assert known.failed == (known.error is not None)
    assert not known.ended


def test_the_last_messages_of_a_dead_process_are_read(process: tuple[Process, Connection]) -> None:
    known, link = process
    link.send(Finished(False))
    known.handle.die(0)  # type: ignore[attr-defined]
    link.close()
    assert await_ready([known], 60) == [known]
    assert receive(known) == Finished(False)
    assert receive(known) is None
    assert (known.finished, known.ended, known.failed) == (False, True, False)


def test_a_process_is_dead_though_its_child_holds_the_link(process: tuple[Process, Connection]) -> None:
    known, _ = process  # the other end of the link stays open
    known.handle.die(-signal.SIGKILL)  # type: ignore[attr-defined]
    assert await_ready([known], 60) == [known]
    assert receive(known) is None
    assert known.failed
    assert how_it_ended(known) == "killed by SIGKILL; out of memory, or killed by hand"
    known.end_reason = "ended, since it did not answer"
    assert how_it_ended(known) == "ended, since it did not answer"


def test_a_process_that_dies_in_the_middle_of_a_message_is_dead(process: tuple[Process, Connection]) -> None:
    known, link = process
    os.write(link.fileno(), (100_000).to_bytes(4, "big") + b"its beginning")
    known.handle.die(-signal.SIGKILL)  # type: ignore[attr-defined]
    link.close()
    assert receive(known) is None
    assert known.failed


def test_a_process_that_goes_on_is_ended(process: tuple[Process, Connection]) -> None:
    known, _ = process
    finish(known)
    assert how_it_ended(known) == "killed by SIGTERM"
    assert known.link.closed


# -- the first cause -----------------------------------------------------------------------------


def dead(name: str, error: KdclError | None = None, finished: bool | None = None) -> Process:
    """A process that has ended, with exit code 1."""
    return Process(name, None, None, finished, error, ended=True, end_reason="exit code 1")  # type: ignore[arg-type]


def test_a_report_is_the_failure_of_its_process() -> None:
    assert failure_of(dead("a", ERROR), "h") is ERROR
    lost = failure_of(dead("a"), "h")
    assert type(lost) is StudentLost
    assert str(lost) == "student 'a', host h: the process of a died (exit code 1)"
    assert type(failure_of(dead("coordinator"))) is CoordinatorLost


def test_a_death_comes_before_the_reports_that_follow_from_it() -> None:
    reports = [
        dead("coordinator", StudentLost("silent", student="b", step=4, phase="forward")),
        dead("a", ERROR),
    ]
    cause = first_cause([*reports, dead("b")], "h")
    assert type(cause) is StudentLost
    assert str(cause) == "student 'b', step 4, phase forward, host h: the process of b died (exit code 1)"
    assert first_cause(reports, "h") is reports[0].error
    assert first_cause([dead("a", finished=True)], "h") is None


def test_a_failure_comes_before_the_losses_that_other_workers_of_ray_report() -> None:
    lost, failed = CoordinatorLost("gone"), StudentFailed("broken", student="b")
    assert first_worker_failure({0: lost, 1: failed}) is failed
    assert first_worker_failure({0: OSError("x"), 1: lost}) is lost
    died = first_worker_failure({2: OSError("killed\nmore")})
    assert type(died) is StudentLost
    assert died.message == "the worker of rank 2 died: OSError: killed"
    assert first_worker_failure({}) is None
