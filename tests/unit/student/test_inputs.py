"""A student whose samples are no images: its rehearsal, its passes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import words
from torch import Tensor, nn

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.samples import Inputs, forward, map_tensors, rows
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import ModelError
from kdcl_dist.launch.preflight.trial_build import trial_build
from kdcl_dist.models.compilation import compiled
from kdcl_dist.planning.survey import survey
from kdcl_dist.student.dry_run import check_head, dry_run
from kdcl_dist.student.student import Student

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Data sets by what makes their samples."""
    folder = tmp_path_factory.mktemp("sets")
    makers: dict[str, Callable] = {"sentence": words.sentence, "row": words.row, "pair": words.pair}
    return {name: words.write(folder / name, make) for name, make in makers.items()}


def recipe_of(data: dict[str, str], model: str, *overrides: str) -> Recipe:
    text = f"""
        {{name: samples, epochs: 1, batch_size: 16, data: {{train: {data["train"]}, test: {data["test"]}}},
        students: [{{name: a, model: '{model}'}}, {{name: b, model: '{model}'}}]}}
    """
    return parse_recipe(text, overrides)


def student_of(recipe: Recipe) -> tuple[Student, TrainingData]:
    data = TrainingData.open(recipe)
    return Student.of(data, 0, device=CPU), data


@pytest.mark.parametrize(
    ("kind", "model"), [("sentence", "words:Bag"), ("row", "words:Table"), ("pair", "words:Both")]
)
def test_the_rehearsal_takes_the_passes_of_the_run(
    kind: str, model: str, sets: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ("students.a.replicas=2", "accumulate=2", "students.a.ema={}", "analysis.every_steps=1")
    student, data = student_of(recipe_of(sets[kind], model, *fields))
    seen: set[tuple[int, bool]] = set()
    before, prepare = [each.clone() for each in student.model.parameters()], student.prepare

    def recorded(inputs: Inputs) -> Inputs:
        seen.add((rows(inputs), student.model.training))
        return prepare(inputs)

    monkeypatch.setattr(student, "prepare", recorded)
    dry_run(student, data, 0)
    # 24 test samples are parts of 8 in each test batch, 4 a replica; a replica's share of a step's part is 4.
    assert {(4, False), (4, True)} <= seen
    assert all(map(torch.equal, before, student.model.parameters()))


def test_rows_are_predicted_as_in_a_call_of_the_network(sets: dict[str, dict[str, str]]) -> None:
    student, data = student_of(recipe_of(sets["sentence"], "words:Bag"))
    inputs = next(data.test_batches()).inputs
    assert isinstance(inputs, dict)
    with torch.no_grad():
        assert torch.equal(student.predict(inputs), student.model(inputs["tokens"], inputs["mask"]))
    assert student.predict(map_tensors(inputs, lambda tensor: tensor[:0])).shape == (0, 4)


def test_a_compiled_step_takes_sequences_of_any_length() -> None:
    torch._dynamo.reset()
    network = words.Bag(4)
    whole = compiled(network, 1)
    for length in (5, 7):
        inputs = {
            "tokens": torch.randint(0, 30, (6, length)),
            "mask": torch.ones(6, length, dtype=torch.bool),
        }
        assert torch.allclose(forward(whole, inputs), forward(network, inputs), atol=1e-6)
    torch._dynamo.reset()


class TwoHeads(words.Bag):
    """With a second head of its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.other, self.last = self.head, nn.Linear(8, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits."""
        return super().forward(tokens, mask) + self.last(self.vectors(tokens).mean(dim=1))


def test_a_second_head_is_found_by_whole_numbers_too(sets: dict[str, dict[str, str]]) -> None:
    student, data = student_of(recipe_of(sets["sentence"], "words:Bag"))
    inputs = data.first_batch(0).inputs
    check_head(student, "head", inputs)
    student.model = TwoHeads(4)
    with pytest.raises(ModelError, match="another head beside 'last'"):
        check_head(student, "last", inputs)


@pytest.mark.parametrize(
    ("model", "field", "words_of_it"),
    [
        ("mlp", "epochs=1", "model 'mlp' takes images"),
        ("torchvision:resnet18", "epochs=1", "model 'torchvision:resnet18' takes images"),
        ("timm:resnet18", "epochs=1", "model 'timm:resnet18' takes images"),
        ("words:Bag", "students.a.channels_last=true", "students.a.channels_last: true is for images"),
        ("words:Table", "epochs=1", "fails on inputs of shapes tokens (2, "),
        ("nets:Plain", "epochs=1", "fails on inputs of shapes tokens (2, "),
    ],
)
def test_a_network_that_does_not_take_the_samples_is_refused(
    model: str, field: str, words_of_it: str, sets: dict[str, dict[str, str]]
) -> None:
    data = TrainingData.open(recipe_of(sets["sentence"], model, field))
    with pytest.raises(ModelError) as caught:
        dry_run(Student.of(data, 0, device=CPU), data, 0)
    assert words_of_it in caught.value.message
    assert "\n" not in caught.value.message


def test_a_job_and_a_plan_are_tried(sets: dict[str, dict[str, str]]) -> None:
    for kind, model in (("sentence", "words:Bag"), ("pair", "words:Both")):
        recipe = recipe_of(sets[kind], model)
        found = trial_build(recipe, 0, ".")
        assert (found.problem, found.warning) == (None, None)
    made = survey(recipe, 2, {}, cores=2.0, device="cpu")
    # LazyLinear(5, 4) and Linear(2, 4), float32
    assert made.model.students[0].gradient_bytes == 4 * (5 * 4 + 4 + 2 * 4 + 4)
    problem = trial_build(recipe_of(sets["row"], "mlp"), 0, ".").problem
    assert problem is not None
    assert "takes images" in problem
