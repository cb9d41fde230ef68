"""Each classic fault is found and named, and no committed checkpoint is lost."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cohorts import ROOT, Cohort, Inject, MakeRecipe, assert_same, train, weights
from commands import run

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, load_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.errors import (
    KdclError,
    MisalignedIds,
    ModelError,
    NonFiniteLogits,
    RunFolderError,
    StaleContribution,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.exchange.message import Flag
from kdcl_dist.launch import coordinator_link, local
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import Note, Stepped
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.student import loop
from kdcl_dist.student.student import Student

MakeRun = Callable[..., Run]


def all_agree(cohort: Cohort, kind: type[KdclError]) -> KdclError:
    """Every thread ends with the same first failure."""
    assert cohort.errors.keys() == {"a", "b", "coordinator"}
    assert {str(error) for error in cohort.errors.values()} == {str(cohort.errors["a"])}
    error = cohort.errors["a"]
    assert isinstance(error, kind), error
    return error


def test_an_exception_in_a_network_is_the_cause_for_all(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    error = all_agree(Cohort(make_run(make_recipe("students.b.model=nets:Raises"))).train(), StudentFailed)
    assert (error.student, error.step, error.phase) == ("b", 3, "forward")
    assert "a user's mistake" in str(error)
    assert "ArithmeticError" in (error.detail or "")


def test_nan_logits_name_the_student_and_spare_the_checkpoint(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    strict = ("failure.max_bad_steps=0", "batch_size=20")
    cohort = Cohort(make_run(make_recipe("students.b.model=nets:NotFinite", *strict))).train()
    error = all_agree(cohort, NonFiniteLogits)
    assert (error.student, error.step) == ("b", 3)
    state = weights(cohort.run.folder, 3, "b")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_misaligned_ids_are_refused(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = loop.StudentLoop._start_message

    def begin(self: loop.StudentLoop, round: Round) -> None:
        put(self, round)
        if self.worker.student == 1 and round.kind is Kind.TRAIN and round.step == 2:
            original = self.exchange.outgoing.write_rows
            self.exchange.outgoing.write_rows = lambda ids, *rest: original(ids + 1, *rest)  # type: ignore[method-assign]

    monkeypatch.setattr(loop.StudentLoop, "_start_message", begin)
    error = all_agree(Cohort(make_run(make_recipe())).train(), MisalignedIds)
    assert error.step == 2


def test_a_student_one_step_behind_is_refused(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = loop.StudentLoop._start_message

    def late(self: loop.StudentLoop, round: Round) -> None:
        behind = self.worker.student == 1 and round.step == 2 and round.kind is Kind.TRAIN
        begin(self, Round(round.kind, round.epoch, 1) if behind else round)

    monkeypatch.setattr(loop.StudentLoop, "_start_message", late)
    error = all_agree(Cohort(make_run(make_recipe())).train(), StaleContribution)
    assert error.student == "b"
    assert "step 1 instead of 2" in str(error)


def test_a_wrong_number_of_classes_is_the_users_mistake(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    error = all_agree(Cohort(make_run(make_recipe("students.b.model=nets:WrongClasses"))).train(), ModelError)
    assert error.exit_code == 2
    assert "(2, 5)" in str(error)
    assert "4 classes" in str(error)


def test_students_train_in_training_mode(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[bool, bool]] = []
    forward, predict = Student.forward, Student.predict

    def watched(self: Student, *arguments: object, **more: object) -> torch.Tensor:
        modes.append((True, all(module.training for module in self.model.modules())))
        return forward(self, *arguments, **more)  # type: ignore[arg-type]

    def predicted(self: Student, images: torch.Tensor, **more: bool) -> torch.Tensor:
        hook = self.model.register_forward_hook(lambda m, *_: modes.append((False, m.training)))
        logits = predict(self, images, **more)
        hook.remove()
        return logits

    monkeypatch.setattr(Student, "forward", watched)
    monkeypatch.setattr(Student, "predict", predicted)
    assert not Cohort(make_run(make_recipe())).train().errors
    assert len(modes) > 12
    assert all(training == expected for expected, training in modes)


def test_a_killed_process_is_named_and_the_checkpoint_stays(
    make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe("students.b.model=nets:Killed", "batch_size=20")
    run = make_run(recipe, "r")
    with pytest.raises(StudentLost, match="SIGKILL") as caught:
        local.launch(run, lambda event: None, threading.Event())
    assert caught.value.student == "b"
    assert make_run(recipe, "r", resume=True).step == 3


def test_a_hanging_student_is_found_within_the_limit(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE_S", 3.0)
    run = make_run(make_recipe("students.b.model=nets:Hangs", "limits.step_s=12"))
    with pytest.raises(StudentLost, match=r"limits\.step_s") as caught:
        local.launch(run, lambda event: None, threading.Event())
    assert (caught.value.student, caught.value.step, caught.value.phase) == ("b", 3, "forward")


def test_a_failure_after_the_last_epoch_loses_nothing(
    make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = loop.StudentLoop._run_round

    def fails_at_the_end(self: loop.StudentLoop, round: Round) -> Flag:
        if round.kind is Kind.END and self.worker.student == 0:
            raise OSError("disk gone")
        return take(self, round)

    monkeypatch.setattr(loop.StudentLoop, "_run_round", fails_at_the_end)
    recipe = make_recipe()
    cohort = Cohort(make_run(recipe, "r")).train()
    assert "disk gone" in str(all_agree(cohort, StudentFailed))
    monkeypatch.undo()
    resumed = make_run(recipe, "r", resume=True)
    assert resumed.step == 6
    assert not Cohort(resumed).train().errors
    assert read_record(resumed.folder)["state"] == "finished"


class Commands:
    """`kdcl train` of one recipe."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.folder, self.path = folder / "runs", folder / "recipe.yaml"
        self.path.write_text(dump_recipe(recipe))
        self.started: list[subprocess.Popen[str]] = []

    def train(self, name: str) -> subprocess.Popen[str]:
        """Start it in a process of its own."""
        command = [sys.executable, "-m", "kdcl_dist", *self._arguments(name)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def resume(self, name: str) -> None:
        """Run it to its end in this process, whose server of processes has its imports."""
        result = run(*self._arguments(name), "--resume")
        assert result.exit_code == 0, result.output

    def _arguments(self, name: str) -> list[str]:
        storage = ["--storage", str(self.folder), "--name", name]
        return ["train", str(self.path), "--launcher", "local", *storage]

    def run(self, name: str) -> Folder:
        return Folder(str(self.folder / name))


@pytest.fixture
def commands(make_recipe: MakeRecipe, tmp_path: Path) -> Iterator[Commands]:
    augment = "data.augment=[{name: RandomCrop, size: 8, padding: 1}]"
    recipe = make_recipe("students.b.model=nets:Plain", augment, "epochs=6", "limits.step_s=150")
    made = Commands(recipe, tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        assert process.stdout is not None
        process.stdout.close()


def until_held(process: subprocess.Popen[str], held: Path) -> None:
    """Wait until a run has shown its first epoch and is held in its fourth."""
    assert process.stdout is not None
    assert any(" epoch epoch=1/" in line for line in process.stdout)
    deadline = time.monotonic() + 100
    while not held.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_takes_a_checkpoint_and_resume_is_identical(
    inject: Inject, commands: Commands, make_run: MakeRun
) -> None:
    held = inject("coordinator", "gather", 10, "hold", until="stop")
    stopped = commands.train("stopped")
    until_held(stopped, held)
    stopped.send_signal(signal.SIGINT)
    assert stopped.stdout is not None
    rest = stopped.stdout.read()
    assert stopped.wait(200) == 130, rest
    commands.resume("stopped")
    whole = make_run(load_recipe(commands.path))
    train(whole)
    for name in ("a", "b"):
        assert_same(*(weights(folder, 18, name) for folder in (whole.folder, commands.run("stopped"))))


def test_when_the_launching_process_is_killed_all_end_and_resume_goes_on(
    inject: Inject, commands: Commands, tmp_path: Path
) -> None:
    held = inject("coordinator", "gather", 10, "hold", until=tmp_path / "never")
    killed = commands.train("killed")
    until_held(killed, held)
    placement = read_record(commands.run("killed"))["placement"]
    killed.kill()
    deadline = time.monotonic() + 60
    while alive := [name for name, at in placement.items() if Path(f"/proc/{at['pid']}").exists()]:
        assert time.monotonic() < deadline, f"left behind: {alive}"
        time.sleep(0.1)
    commands.resume("killed")
    assert read_record(commands.run("killed"))["state"] == "finished"


def test_the_last_process_to_resume_owns_the_folder(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run = make_run(make_recipe())
    steps = iter(range(100))

    def stop() -> bool:
        if next(steps) == 1:  # another process resumes the run while this one trains
            update_record(run.folder, owner="another")
        return False

    error = all_agree(Cohort(run).train(stop), RunFolderError)
    assert "resumed by another process (another)" in str(error)
    record = read_record(run.folder)
    assert (record["owner"], record["state"], record["cause"]) == ("another", "running", None)
    assert latest(run.folder, print) is None


def test_a_launcher_that_does_not_listen_holds_up_nobody() -> None:
    """Such as a launcher whose terminal is stopped by Ctrl-S."""
    ours, theirs = multiprocessing.Pipe()
    sender, count = coordinator_link.CoordinatorLink(theirs), 10_000
    began = time.monotonic()
    sender.emit(Note("first"))
    for step in range(count):
        sender.emit(Stepped(step, {"a": {"loss": 1.0}}))
    sender.emit(Note("last"))
    assert time.monotonic() - began < 60, "else it waits for ever"
    assert sender.queue.qsize() <= coordinator_link.BACKLOG + 1
    received = []
    while not received or received[-1] != Note("last"):
        received.append(ours.recv().event)
    sender.close()
    ours.close()
    sender._receiver.join(60)
    assert received[0] == Note("first")
    steps = [event.step for event in received[1:-1]]
    assert steps == sorted(steps)
    assert 0 < len(steps) < count
