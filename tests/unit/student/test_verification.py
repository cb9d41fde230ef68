"""Steps that are computed twice: every bit that flips in one is found, and nothing else is touched."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe
from torch import Tensor

from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.distillation.losses import Losses
from kdcl_dist.distillation.methods import Context
from kdcl_dist.errors import ModelError, SilentCorruption
from kdcl_dist.exchange.checksum import is_intact, write_checksum
from kdcl_dist.exchange.message import Message, MessageLayout
from kdcl_dist.student.dry_run import try_step
from kdcl_dist.student.snapshot import Snapshot, gradients_of, named_state
from kdcl_dist.student.step_part import StepPart
from kdcl_dist.student.step_tape import Lesson
from kdcl_dist.student.student import Student
from kdcl_dist.student.verification import Verification, _of_replica
from kdcl_dist.utils.bits import bits_of, differing

#: Flips that are injected in each of five places.
FLIPS = 100
ROWS, CLASSES = 6, 4
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(ROWS, 1, 8, 8, generator=GENERATOR), torch.arange(ROWS) % CLASSES
TARGET = torch.log_softmax(torch.randn(ROWS, CLASSES, generator=GENERATOR), dim=1)
SCHEDULE = RunSchedule(epochs=2, steps_per_epoch=4, holdout_batches=0, test_batches=1, checkpoint_epochs=1)
#: Every kind of state: batch norm, Adam, an average.
RECIPE = (
    "failure.verify_every_steps=1",
    "students.a.model=nets:Tiny",
    "students.a.optimizer={name: adam, lr: 0.01}",
    "students.a.ema={decay: 0.9}",
)

Meet = Callable[[str], None]


def student_of(make_recipe: MakeRecipe, *overrides: str) -> Student:
    recipe = make_recipe(*RECIPE, *overrides)
    return Student(recipe, 0, classes=CLASSES, channels=1, device=torch.device("cpu"))


def take_step(verification: Verification, step: int, meet: Meet = lambda moment: None) -> Message:
    """A step as the loop takes it; `meet` is called at moments of it. Returns the message."""
    student, sent = verification.student, Message(MessageLayout(ROWS, CLASSES))
    meet("before the step")
    for part in range(student.recipe.accumulate):
        round = Round(Kind.TRAIN, step // SCHEDULE.steps_per_epoch, step, part)
        verification.begin(round, IMAGES, learns=True)
        meet("before the forward pass")
        logits_BC = student.forward(IMAGES, step, part)
        sent.write_rows(torch.arange(ROWS), student.contribution(logits_BC, step, part), LABELS)
        meet("before the loss")
        random.random(), torch.rand(1)  # as the next batch does, which is loaded meanwhile
        lesson = Lesson(LABELS, TARGET, None, Context())
        verification.keep(lesson)
        losses = student.loss(logits_BC, *lesson)
        handle = student.optimizer.register_step_pre_hook(lambda *_: meet("before the update"))
        try:
            skipped = student.learn(losses.total, student.lr(step, SCHEDULE.steps_per_epoch), part)
        finally:
            handle.remove()
        verification.end(round, logits_BC, sent, StepPart.of({}, losses, skipped))
    return sent


def flip(tensor: Tensor, draw: random.Random) -> None:
    """Flip one bit, unseen by autograd."""
    bits, bit = bits_of(tensor.data), draw.randrange(8 * tensor.element_size())
    mask = torch.tensor(1 << bit).to(bits.dtype) if bit < 63 else torch.tensor(-(2**63))
    bits[tuple(draw.randrange(size) for size in bits.shape)] ^= mask


def flipper(student: Student, place: str, draw: random.Random) -> tuple[str, Callable[[], None]]:
    """When a bit of a place flips, and how: once, in the first computation."""
    if place == "activations":
        layers = [module for module in student.model.modules() if not list(module.children())]
        return "before the forward pass", lambda: flip_output(draw.choice(layers), draw)
    moments, tensors = PLACES[place]
    return draw.choice(moments), lambda: flip(draw.choice(tensors(student)), draw)


def flip_output(layer: torch.nn.Module, draw: random.Random) -> None:
    """Flip a bit of what a layer gives in its next forward pass."""

    def hook(module: Any, inputs: Any, output: Tensor) -> None:
        handle.remove()
        flip(output, draw)

    handle = layer.register_forward_hook(hook)


def weights_of(student: Student) -> list[Tensor]:
    assert student.average is not None
    return [*student.model.parameters(), *student.model.buffers(), *student.average.tensors.values()]


def states_of(student: Student) -> list[Tensor]:
    return [tensor for state in student.optimizer.state.values() for tensor in state.values()]


#: When a bit may flip, and the tensors.
PLACES: dict[str, tuple[tuple[str, ...], Callable[[Student], list[Tensor]]]] = {
    "weights": (
        ("before the step", "before the forward pass", "before the loss", "before the update"),
        weights_of,
    ),
    "gradients": (("before the update",), lambda student: list(gradients_of(student.model).values())),
    "optimiser state": (
        ("before the step", "before the forward pass", "before the loss", "before the update"),
        states_of,
    ),
}


@pytest.mark.parametrize("place", [*PLACES, "activations"])
def test_every_flip_is_found(place: str, make_recipe: MakeRecipe) -> None:
    """A flip is drawn again if the step ends in the bits that it has without the flip, or in an error."""
    student, draw = student_of(make_recipe), random.Random(place)
    verification, found = Verification(student, SCHEDULE), 0
    take_step(verification, 0)
    start, rest = Snapshot(student), verification.rest
    take_step(verification, 1)
    clean = {name: tensor.clone() for name, tensor in named_state(student).items()}
    while found < FLIPS:
        start.restore()
        verification.rest = rest
        when, flips = flipper(student, place, draw)

        def meet(moment: str, when: str = when, flips: Callable[[], None] = flips) -> None:
            if moment == when:
                flips()

        try:
            take_step(verification, 1, meet)
        except SilentCorruption:
            found += 1
        except ArithmeticError:  # an optimiser that divides by its number of steps
            assert place == "optimiser state"
        else:
            assert not differing(clean, named_state(student)), f"a flip {when} was missed"


def test_every_flip_in_a_message_is_found(make_recipe: MakeRecipe) -> None:
    """Half of the flips are in the logits before the message has its checksum, half on the way."""
    student, draw = student_of(make_recipe), random.Random(6)
    verification = Verification(student, SCHEDULE)
    sent = take_step(verification, 0)
    write_checksum(sent, sent.buffer)
    assert is_intact(sent.buffer)
    for _ in range(FLIPS // 2):
        arrived = sent.buffer.clone()
        flip(arrived, draw)
        assert not is_intact(arrived)
    for step in range(FLIPS // 2):
        round = Round(Kind.TRAIN, 0, step)
        verification.begin(round, IMAGES, learns=True)
        logits_BC = student.forward(IMAGES, step)
        sent.write_rows(torch.arange(ROWS), student.contribution(logits_BC, step), LABELS)
        flip(sent.logits, draw)
        student.undo_forward()
        with pytest.raises(SilentCorruption, match=r"^step \d+: sent logits had other bits") as caught:
            verification.end(round, logits_BC, sent, None)
        assert caught.value.step == step


FIELDS = {
    "adam and an average": (),
    "momentum, two parts, clipped": (
        "students.a.optimizer={name: sgd}",
        "accumulate=2",
        "students.a.clip_grad_norm=0.1",
    ),
    "dropout": ("students.a.model=nets:Dropout",),
    "a state that is no tensor": ("students.a.model=nets:NotFiniteOnce",),
    "noise": ("distillation.logit_noise=0.1",),
    "half precision": ("students.a.precision=bf16",),
    "nadamw": ("students.a.optimizer={name: nadamw}",),
    "own optimiser": ("students.a.optimizer={name: 'torch.optim:Adagrad', lr: 0.05}",),
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_no_number_and_no_generator_is_touched(fields: tuple[str, ...], make_recipe: MakeRecipe) -> None:
    """From the first step on, before which the optimiser has no state."""
    ends = []
    for every in (0, 1):
        student = student_of(make_recipe, *fields, f"failure.verify_every_steps={every}")
        random.seed(1)
        torch.manual_seed(1)
        verification = Verification(student, replace(SCHEDULE, accumulate=student.recipe.accumulate))
        for step in range(6):
            take_step(verification, step)
        assert (verification.rest is not None) == bool(every)
        drawn = {"torch": torch.rand(3), "python": torch.tensor(random.random())}
        ends.append(named_state(student) | gradients_of(student.model) | drawn)
    assert not differing(ends[0], ends[1])


class Noisy:
    """A loss with a random factor."""

    paused = False

    def __init__(self, loss: Callable[..., Losses]) -> None:
        self.loss = loss

    def __call__(self, *arguments: Any) -> Losses:
        found = self.loss(*arguments)
        return found._replace(total=found.total * (1 + torch.rand(())))


def test_random_numbers_are_drawn_again(make_recipe: MakeRecipe) -> None:
    """Those of Python in a network, and those of torch in a loss."""
    student = student_of(make_recipe)
    student.model.register_forward_hook(lambda module, inputs, output: output * (1 + random.random()))
    student.loss = Noisy(student.loss)  # type: ignore[assignment]
    verification = Verification(student, SCHEDULE)
    for step in range(3):
        take_step(verification, step)


def test_a_student_that_has_learned_all_its_epochs_is_verified_too(make_recipe: MakeRecipe) -> None:
    """Its schedule ends with them."""
    schedule = "{name: poly, power: 0.9}"
    student = student_of(make_recipe, "epochs=2", "students.a.epochs=1", f"students.a.schedule={schedule}")
    verification, step = Verification(student, SCHEDULE), SCHEDULE.steps_per_epoch
    round, sent = Round(Kind.TRAIN, 1, step + 1), Message(MessageLayout(ROWS, CLASSES))
    verification.begin(round, IMAGES, learns=False)
    logits_BC = student.forward(IMAGES, step + 1, learns=False)
    sent.write_rows(torch.arange(ROWS), student.contribution(logits_BC, step + 1), LABELS)
    student.undo_forward()
    verification.end(round, logits_BC, sent, None)
    assert verification.rest is not None


def test_a_step_that_is_left_out_has_no_gradient_to_compare(make_recipe: MakeRecipe) -> None:
    """A student that learns alone has computed it before it knew."""
    student, sent = student_of(make_recipe), Message(MessageLayout(ROWS, CLASSES))
    verification, round = Verification(student, SCHEDULE), Round(Kind.TRAIN, 0, 0)
    verification.begin(round, IMAGES, learns=True)
    logits_BC = student.forward(IMAGES, 0)
    sent.write_rows(torch.arange(ROWS), student.contribution(logits_BC, 0), LABELS)
    student.add_gradient(student.loss.task(logits_BC, LABELS))
    student.undo_forward()
    verification.end(round, logits_BC, sent, None)
    assert verification.rest is not None


def test_which_steps_are_computed_twice(make_recipe: MakeRecipe) -> None:
    """Each fifth, and the last of each epoch that a checkpoint may follow."""
    schedule = RunSchedule(
        epochs=4, steps_per_epoch=3, holdout_batches=0, test_batches=1, checkpoint_epochs=2, evaluate_epochs=3
    )

    def sampled(*overrides: str) -> list[int]:
        verification = Verification(student_of(make_recipe, *overrides), schedule)
        return [step for step in range(12) if verification.samples(step)]

    assert sampled("failure.verify_every_steps=5") == [4, 5, 9, 11]
    assert sampled("failure.verify_every_steps=0") == []
    early = ("data.val_fraction=0.1", "early_stopping={patience: 1}")
    assert sampled("failure.verify_every_steps=100", *early) == [5, 8, 11]


def test_a_flip_between_a_step_and_its_checkpoint_is_found(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe)
    verification = Verification(student, SCHEDULE)
    for step in range(SCHEDULE.steps_per_epoch):
        take_step(verification, step)
    verification.check_rest(SCHEDULE.steps_per_epoch)
    flip(student.model.get_parameter("linear.weight"), random.Random(1))
    with pytest.raises(SilentCorruption, match=r"linear\.weight changed between two steps"):
        verification.check_rest(SCHEDULE.steps_per_epoch)


def test_a_network_whose_steps_differ_is_refused_before_the_run(make_recipe: MakeRecipe) -> None:
    student, factors = student_of(make_recipe), iter(range(1, 1000))
    student.model.register_forward_hook(lambda module, inputs, output: output * next(factors))
    said = r"failure\.verify_every_steps: 1, but model 'nets:Tiny'.*logits"
    with pytest.raises(ModelError, match=said) as caught:
        try_step(student, IMAGES, LABELS)
    assert caught.value.exit_code == 2


def test_a_gpu_may_differ_a_little() -> None:
    first = {"x": torch.tensor([3.0, 4.0]), "n": torch.tensor(3)}
    assert not differing(first, {"x": torch.tensor([3.1, 4.0]), "n": torch.tensor(3)}, 0.05)
    assert differing(first, {"x": torch.tensor([3.5, 4.0]), "n": torch.tensor(4)}, 0.05) == ["x", "n"]
    assert differing(first, {"x": torch.tensor([torch.nan, 4.0])}, 0.05) == ["x", "n"]
    kinds = {"x": torch.tensor(torch.nan), "b": torch.tensor(True), "c": torch.tensor(1j)}
    assert not differing(kinds, {name: tensor.clone() for name, tensor in kinds.items()})
    assert differing({"zero": torch.tensor(0.0)}, {"zero": torch.tensor(-0.0)}) == ["zero"]


def replica(index: int, rows: list[list[int]]) -> Any:
    """A link to replicas that give these rows: the number of their own faults, and the sum of a tensor."""
    return SimpleNamespace(
        replica=index, device=torch.device("cpu"), gathered=lambda mine: [torch.tensor(row) for row in rows]
    )


def test_of_replicas_the_one_at_fault_is_named() -> None:
    alike = {"w": torch.zeros(2, dtype=torch.int32)}
    # One knows of a fault of its own: the others, which have averaged its gradient, are not at fault.
    rows = [[0, 0], [1, 0], [0, 0]]
    assert _of_replica(replica(0, rows), alike, [], ["gradient of w", "w"]) == []
    assert _of_replica(replica(1, rows), alike, ["logits"], ["logits", "w"]) == ["logits", "w"]
    # Nobody does: all of them may be.
    assert _of_replica(replica(0, [[0, 0]] * 3), alike, [], ["w"]) == ["w"]


@pytest.mark.parametrize(("sums", "at_fault"), [((0, 5, 0), (False, True, False)), ((0, 5), (True, True))])
def test_replicas_compare_their_state(sums: tuple[int, ...], at_fault: tuple[bool, ...]) -> None:
    """Most are right; of two either may be at fault."""
    for index, is_named in enumerate(at_fault):
        link = replica(index, [[0, each] for each in sums])
        found = _of_replica(link, {"w": torch.zeros(2)}, [], [])
        assert found == (["w (unlike that of other replicas)"] if is_named else [])
