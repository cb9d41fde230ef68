"""`students.N.compile`: torch.compile changes neither a student's results, beyond rounding, nor its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, weights
from torch import Tensor
from torch._dynamo.utils import counters

from kdcl_dist.errors import ModelError
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.membership.tcp_store import host_store, scoped
from kdcl_dist.run.run import Run
from kdcl_dist.student.dry_run import check_output, try_step
from kdcl_dist.student.student import Student

COHORT = "students=[{name: a, model: 'nets:Tiny', epochs: 1, compile: true}, {name: b, model: mlp}]"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiler's files in a folder that goes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(autouse=True)
def _nothing_compiled(cache: None) -> Iterator[None]:
    """Each test finds the files of those before, at most."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def student_of(make_recipe: MakeRecipe, *overrides: str) -> Student:
    return Student(make_recipe(COHORT, *overrides), 0, classes=4, channels=1, device=torch.device("cpu"))


def batch(number: int, rows: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    target = torch.randn(rows, 4, generator=generator).log_softmax(dim=1)
    return torch.randn(rows, 1, 8, 8, generator=generator), torch.arange(rows) % 4, target


def walk(student: Student) -> list[float]:
    """All that a run does with a student; the figures that it sees."""
    images, labels, _ = batch(0)
    check_output(student, images[:2])
    try_step(student, images[:2], labels[:2])
    seen: list[Tensor | float] = []
    for number in range(4):
        images, labels, target = batch(number)
        losses = student.loss(student.forward(images, number), labels, target)
        seen += [*losses, *student.conflict(losses)]
        student.learn(losses.total, 0.1)
    student.forward(images * torch.nan, 4)
    student.undo_forward()
    seen += [*student.forward(images, 5, learns=False)[0], *student.predict(images[:5])[0]]
    return [float(torch.as_tensor(each).detach()) for each in seen]


@pytest.mark.parametrize("fields", [(), ("students.a.model=nets:compiled", "students.a.compile=false")])
def test_the_same_student(fields: Sequence[str], make_recipe: MakeRecipe) -> None:
    """A network that compiles itself is compiled as one for which the recipe says so."""
    plain, fast = student_of(make_recipe, "students.a.compile=false"), student_of(make_recipe, *fields)
    before = counters["stats"]["unique_graphs"]
    assert walk(fast) == pytest.approx(walk(plain), rel=1e-4, abs=1e-5)
    assert counters["stats"]["unique_graphs"] - before == 2, "one for training, one for teaching"
    left, right = plain.state_dict()["model"], fast.state_dict()["model"]
    assert left.keys() == right.keys()
    for key in left:
        assert torch.allclose(left[key].float(), right[key].float(), atol=1e-5), key


def test_all_is_compiled_before_the_first_step_and_nothing_twice(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe)
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    images, labels, _ = batch(0)
    try_step(student, images[:2], labels[:2])
    assert_same(student.model.state_dict(), before)
    assert all(parameter.grad is None for parameter in student.model.parameters())
    graphs = counters["stats"]["unique_graphs"]
    walk(student)
    assert counters["stats"]["unique_graphs"] == graphs


def test_with_replicas(make_recipe: MakeRecipe) -> None:
    """One replica alone: the same wrapper and hooks as with many."""
    server, _ = host_store("127.0.0.1")
    link = Replicas(scoped(server, "test"), 0, 1, host="127.0.0.1", device=torch.device("cpu"), limit_s=10)
    alone, joined = student_of(make_recipe), student_of(make_recipe)
    found = walk(alone)
    joined.join(link)
    graphs = counters["stats"]["unique_graphs"]
    assert walk(joined) == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert counters["stats"]["unique_graphs"] == graphs
    assert joined.state_dict()["model"].keys() == alone.state_dict()["model"].keys()
    link.close()


def test_stopped_and_resumed(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    recipe = make_recipe(COHORT)
    whole, part = make_run(recipe), make_run(recipe, name="part")
    assert not Cohort(whole).train().errors
    calls = iter([False, False] + [True] * 9)
    assert not Cohort(part).train(stop=lambda: next(calls)).errors
    again = make_run(recipe, name="part", resume=True)
    assert 0 < again.step < 6
    assert not Cohort(again).train().errors
    for name in recipe.names:
        assert_same(weights(whole.folder, 6, name), weights(again.folder, 6, name))


def test_a_failing_compiler_is_one_clear_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from torch._inductor import config

    student = student_of(make_recipe, "batch_size=12")  # of another shape than what is compiled already
    images, labels, _ = batch(0, rows=2)
    # Inductor's own way to change its settings for a while: to set them back by hand removes them.
    with (
        config.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}),
        pytest.raises(ModelError, match=r"students\.a\.compile: .*nets:Tiny.*set it to false") as caught,
    ):
        try_step(student, images, labels)
    assert "\n" not in str(caught.value)


def test_synchronised_batch_norm_goes_before_a_network_s_own_compilation(make_recipe: MakeRecipe) -> None:
    fields = "students.a.model=nets:compiled", "students.a.compile=false", "students.a.sync_batchnorm=true"
    student = student_of(make_recipe, *fields)
    assert not student.compiles
    assert student.network is student.model
