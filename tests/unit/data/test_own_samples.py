"""Students that see different training samples: which, in how many steps, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from cohorts import MakeRecipe

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.probes import first_views
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import KdclError, RecipeError

EPOCH = "distillation.window=epoch"


def data_of(**fields: str) -> list[str]:
    return [f"students.{name}.data={value}" for name, value in fields.items()]


def test_each_student_sees_its_own_samples_only(make_recipe: MakeRecipe) -> None:
    """60 samples of 4 classes, 15 of each: a has 6 of two classes, b 9 of each class."""
    own = data_of(a="{classes: [class 0, class 3], share: [0, 0.4]}", b="{share: [0.4, 1]}")
    training_data = TrainingData.open(make_recipe(EPOCH, "batch_size=5", "distillation.method=none", *own))
    a, b = training_data.own
    assert (len(a), len(b)) == (12, 36)
    assert not np.isin(a, b).any()
    assert {int(label) for label in training_data.train.labels[a]} == {0, 3}
    assert training_data.schedule.steps_per_epoch == 7
    for index, ids in enumerate((a, b)):
        batches = [batch.ids.numpy() for batch in training_data.training_batches(index, 0)]
        assert len(batches) == 14
        assert set(np.concatenate(batches)) == set(ids)
        assert all(len(np.unique(batch)) == 5 for batch in batches)
        rest = [batch.ids.numpy() for batch in training_data.training_batches(index, 9)]
        assert np.array_equal(np.stack(rest), np.stack(batches[9:]))
        assert first_views(training_data, index, 4).ids.tolist() == ids[:4].tolist()


def test_a_file_of_logits_makes_no_epoch_longer(make_recipe: MakeRecipe) -> None:
    students = "{name: a, model: mlp, data: {share: 0.5}}, {name: t, logits: t.arrow}"
    found = TrainingData.open(make_recipe(f"students=[{students}]", EPOCH, "batch_size=8"))
    assert (len(found.own[0]), found.schedule.steps_per_epoch) == (32, 4)


def test_a_student_that_sees_all_keeps_its_order(make_recipe: MakeRecipe) -> None:
    plain = TrainingData.open(make_recipe(EPOCH))
    mixed = TrainingData.open(make_recipe(EPOCH, *data_of(b="{share: 0.5}")))
    batches = zip(plain.training_batches(0, 0), mixed.training_batches(0, 0), strict=True)
    assert all(one.ids.tolist() == other.ids.tolist() for one, other in batches)


def test_a_share_is_drawn_by_the_students_seed(make_recipe: MakeRecipe) -> None:
    def owned(*more: str) -> list[list[int]]:
        found = TrainingData.open(make_recipe(EPOCH, *data_of(a="{share: 0.5}", b="{share: 0.5}"), *more))
        return [ids.tolist() for ids in found.own]

    a, b = owned()
    assert a != b
    first, second = owned("students.a.seed=3", "students.b.seed=3")
    assert first == second


def test_balanced_weights_count_the_students_samples(make_recipe: MakeRecipe) -> None:
    more = "students.b.class_weights=balanced", "data.holdout_per_class=3"
    found = TrainingData.open(make_recipe(EPOCH, *data_of(b="{share: 0.5}"), *more)).class_weights(1)
    assert found is not None
    assert found.tolist() == [1, 1, 1, 1]
    classes = "{classes: [class 0, class 1]}"
    with pytest.raises(RecipeError, match=r"students\.b\.class_weights: .* there are none of 'class 2'"):
        TrainingData.open(make_recipe(EPOCH, *data_of(b=classes), *more))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            data_of(a="{share: 0.1}"),
            r"students\.a\.data: these are 8 samples, .* takes 16: raise share",
        ),
        (
            data_of(a="{classes: [class 0, dog]}"),
            r"students\.a\.data\.classes: dog is no class .* has class 0",
        ),
        (data_of(a="{share: [0, 0.01], sees: all}"), r"students\.a\.data: these are 0 samples"),
        (
            data_of(a="{share: [0, 0.5]}", b="{share: [0.5, 1]}"),
            r"students\.a\.data: no student .* any of its 32 samples: let their samples overlap",
        ),
    ],
)
def test_samples_from_which_nothing_is_learned(
    fields: list[str], words: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(KdclError, match=words) as caught:
        TrainingData.open(make_recipe(EPOCH, *fields))
    assert "\n" not in str(caught.value)


def test_only_a_teacher_can_teach(make_recipe: MakeRecipe) -> None:
    teacher = "distillation={method: teacher, teacher: b, window: epoch}", "students.b.weights=b.pt"
    fields = data_of(a="{share: [0, 0.5]}", b="{share: [0.5, 1]}")
    students = "[{name: a, model: mlp}, {name: b, model: mlp}, {name: c, model: mlp}]"
    with pytest.raises(KdclError, match=r"students\.a\.data: no student that could teach it"):
        TrainingData.open(make_recipe(f"students={students}", *teacher, *fields))
    TrainingData.open(make_recipe(f"students={students}", EPOCH, *fields))


def test_a_student_may_answer_on_samples_of_others(make_recipe: MakeRecipe) -> None:
    fields = data_of(a="{share: [0, 0.5], sees: all}", b="{share: [0.5, 1], sees: all}")
    plain, mixed = TrainingData.open(make_recipe()), TrainingData.open(make_recipe(*fields))
    assert [len(ids) for ids in mixed.own] == [32, 28]
    assert plain.schedule == mixed.schedule
    for index in range(2):
        batches = zip(plain.training_batches(index, 0), mixed.training_batches(index, 0), strict=True)
        assert all(one.ids.tolist() == other.ids.tolist() for one, other in batches)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("data={}", "data: needs classes or share"),
        ("data={share: 0}", "data.share: must be a number above 0 and at most 1, .* .got 0"),
        ("data={share: 1.5}", "data.share: must be .* .got 1.5"),
        ("data={share: half}", "data.share: must be .* .got 'half'"),
        ("data={share: [0.5]}", "data.share: must be"),
        ("data={share: [0.5, 0.5]}", "data.share: must be"),
        ("data={share: [0.5, 1.01]}", "data.share: must be"),
        ("data={share: [-0.1, 0.5]}", "data.share: must be"),
        ("data={share: [0, 0.2, 0.5]}", "data.share: must be"),
        ("data={share: [a, b]}", "data.share: must be"),
        ("data={share: .nan}", "data.share: must be"),
        ("data={share: true}", "data.share"),
        ("data={classes: [x]}", "data.classes"),
        ("data={classes: [x, x]}", "data.classes: class names must differ"),
        ("data={classes: x}", "data.classes"),
        ("data={share: 0.5, sees: others}", "data.sees: .* 'own' or 'all' .got 'others'"),
        ("data={part: 1}", "data.part: unknown field"),
        ("data=0.5", "data: Input should be a valid dictionary"),
    ],
)
def test_an_impossible_field_is_one_line(field: str, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"students\.0\.{words}") as caught:
        parse_recipe("data: {train: x, test: x}\nstudents: [{name: a, model: mlp}]", [f"students.a.{field}"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(";") == 0, "one error, not one of each form"


@pytest.mark.parametrize("window", ["1", "8"])
def test_own_samples_need_the_window_of_an_epoch(window: str, make_recipe: MakeRecipe) -> None:
    words = rf"students\.a\.data: .*\.window to epoch \(got {window}\), or sees to all"
    with pytest.raises(RecipeError, match=words):
        make_recipe(f"distillation.window={window}", *data_of(a="{share: 0.5}"))
    make_recipe(f"distillation.window={window}", *data_of(a="{share: 0.5, sees: all}"))


def test_own_samples_are_not_mixed(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"students\.b\.data: data\.mixup and data\.cutmix mix a sample"):
        make_recipe("data.mixup={}", *data_of(b="{share: 0.5, sees: all}"))
