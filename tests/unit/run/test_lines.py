"""Lines on a run: what each says, and that one comes while nothing moves. The clock is the tests'."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from kdcl_dist.errors import StudentLost, UserError
from kdcl_dist.run.events import Ended, EpochEnded, Evaluating, Note, Started, Stepped, Waiting, Warned
from kdcl_dist.run.lines import PERIOD_S, RunLines, stamped

STARTED = Started(["a", "b"], {}, epochs=3, steps_per_epoch=100, step=0)
VALUES = {"a": {"loss": 1.25, "lr": 0.05}, "b": {"loss": 2.0, "lr": 0.1}, "ensemble": {"top1": 0.5}}


class Run:
    """Lines on a run, by a clock that the test moves."""

    def __init__(self) -> None:
        self.now, self.written = 1_000_000.0, list[str]()
        self.lines = RunLines(self.written.append, lambda: self.now)

    def after(self, seconds: float) -> list[str]:
        """The lines that a look after some seconds writes, without their times."""
        self.now += seconds
        self.lines.tick()
        return self.new()

    def new(self) -> list[str]:
        """The lines since the last question, without their times."""
        found, self.written[:] = [line.partition(" ")[2] for line in self.written], []
        return found


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_line_at_the_latest_every_30_seconds() -> None:
    assert PERIOD_S + 1 < 30


def test_a_line_begins_with_its_time() -> None:
    time, _, text = stamped("a\nb", 1_000_000.0).partition(" ")
    assert datetime.fromisoformat(time) == datetime(1970, 1, 12, 13, 46, 40, tzinfo=timezone.utc)
    assert text == "a\\nb"


def test_steps_with_their_speed_and_the_time_that_is_left(run: Run) -> None:
    run.lines.handle(STARTED)
    assert run.new() == ["start epoch=1/3 step=0/300 students=a,b"]
    run.now += 10
    run.lines.handle(Stepped(40, VALUES))
    assert run.new() == []
    run.now += 9
    run.lines.handle(Stepped(80, VALUES))
    assert run.after(PERIOD_S - 19.5) == []
    assert run.after(0.5) == [
        "step epoch=1/3 step=80/300 steps_per_s=3.2 left=0:01:09 "
        "a.train.loss=1.25 a.train.lr=0.05 b.train.loss=2 b.train.lr=0.1"
    ]
    run.now += 1
    run.lines.handle(Stepped(105, VALUES))
    (line,) = run.after(PERIOD_S - 1)
    assert line.startswith("step epoch=2/3 step=105/300 steps_per_s=1 left=0:03:15 ")


def test_a_long_test_shows_how_far_it_is(run: Run) -> None:
    run.lines.handle(STARTED)
    run.now += PERIOD_S - 2
    run.lines.handle(Evaluating(100, 7, 50))
    run.new()
    assert run.after(2) == ["test epoch=1/3 step=100/300 batch=7/50"]


def test_the_start_says_since_when_it_waits_and_for_whom(run: Run) -> None:
    began = stamped("", run.now).strip()
    run.lines.handle(Note("run folder runs/x"))
    run.lines.handle(Warned("slow"))
    assert run.new() == ["run folder runs/x", "warning: slow"]
    assert run.after(PERIOD_S) == [f"wait since={began} seconds=25 phase=start for=unknown"]
    run.lines.handle(Waiting("start", 0, 20.0, ("b", "c/0")))
    assert run.after(PERIOD_S) == [f"wait since={began} seconds=50 phase=start for=b,c/0"]


def test_a_step_that_stands_still_says_since_when_and_for_whom(run: Run) -> None:
    run.lines.handle(STARTED)
    run.lines.handle(Stepped(80, VALUES))
    run.now += 20
    run.lines.handle(Stepped(81, VALUES))
    since = stamped("", run.now).strip()
    run.new()
    run.now += 12
    run.lines.handle(Waiting("gather", 81, 11.5, ("b",)))
    (line,) = run.new()
    assert line == f"wait since={since} seconds=12 phase=gather epoch=1/3 step=81/300 for=b"
    assert run.after(PERIOD_S - 1) == []
    (line,) = run.after(1)
    assert line == f"wait since={since} seconds=37 phase=gather epoch=1/3 step=81/300 for=b"
    run.now += 1
    run.lines.handle(Stepped(82, VALUES))
    (line,) = run.after(PERIOD_S - 1)
    assert line.startswith("step epoch=1/3 step=82/300 ")
    (line,) = run.after(PERIOD_S)
    assert line.endswith(" epoch=1/3 step=82/300 for=unknown")


def test_steps_that_are_done_again_have_no_time_left(run: Run) -> None:
    run.lines.handle(STARTED)
    run.lines.handle(Stepped(80, {}))
    assert len(run.after(PERIOD_S)) == 2
    run.lines.handle(Started(["a", "b"], {}, epochs=3, steps_per_epoch=100, step=50))
    assert run.new() == ["start epoch=1/3 step=50/300 students=a,b"]
    run.now += PERIOD_S
    run.lines.handle(Stepped(50, {}))
    assert run.new() == ["step epoch=1/3 step=50/300 steps_per_s=0 left=unknown"]


def test_the_end_and_its_error(run: Run) -> None:
    with run.lines as lines:
        lines.handle(STARTED)
        lines.handle(EpochEnded(2, {}, {}))
        lines.handle(Ended(finished=False))
        run.now += 5
    assert run.new()[-2:] == ["epoch epoch=3/3 step=300/300", "end state=stopped step=300 seconds=5"]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (
            StudentLost("b died", student="b"),
            "end state=failed step=0 seconds=0 error=\"student 'b': b died\"",
        ),
        (KeyboardInterrupt(), "end state=interrupted step=0 seconds=0 error='KeyboardInterrupt'"),
    ],
)
def test_an_error_ends_the_lines(run: Run, error: BaseException, end: str) -> None:
    def fails() -> None:
        with run.lines:
            run.lines.handle(STARTED)
            run.new()
            raise error

    with pytest.raises(type(error)):
        fails()
    assert run.new() == [end]


def test_a_mistake_found_before_the_start_has_the_line_of_the_command_alone(run: Run) -> None:
    with pytest.raises(UserError), run.lines:
        raise UserError("a mistake")
    assert run.new() == []


def test_a_line_comes_without_any_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread looks at the clock by itself."""
    monkeypatch.setattr("kdcl_dist.run.lines.POLL_S", 0.01)
    written = list[str]()
    now = iter([0.0] * 5)
    lines = RunLines(written.append, lambda: next(now, 1e6))
    with lines:
        while not written:
            lines._thread.join(0.05)
            assert lines._thread.is_alive()
    assert " wait since=" in written[0]
