"""Exports of networks that take a dict, a tuple or a table, and predictions of a data set's samples."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import words
from cohorts import Cohort
from commands import assert_one_line
from exporting import description, run

from kdcl_dist.cli.export import KINDS
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.dataset import ArrowSamples
from kdcl_dist.data.sample_writer import SampleWriter
from kdcl_dist.evaluation import Trained
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.run import Run

ALLOWED = ("--allow-imports", "words")


def trained(folder: Path, make: Any, students: str, data: str = "") -> Run:
    """A run of one epoch on samples."""
    sets = words.write(folder, make)
    recipe = parse_recipe(f"""
        {{name: samples, epochs: 1, batch_size: 16, students: [{students}],
        data: {{train: {sets["train"]}, test: {sets["test"]}{data}}},
        limits: {{startup_s: 200, step_s: 30}}}}
    """)
    made = prepare(recipe, str(folder), "run", resume=False, warn=print)
    assert not Cohort(made).train().errors
    return made


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Run:
    students = "{name: a, model: 'words:Bag'}, {name: b, model: 'words:Recurrent'}"
    collate = f", collate: {{values: {{tokens: {words.PADDING}}}}}"
    return trained(tmp_path_factory.mktemp("sentences"), words.sentence, students, collate)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    students = "{{name: a, model: 'words:{0}'}}, {{name: b, model: 'words:{0}'}}"
    return {
        "pair": trained(tmp_path_factory.mktemp("pairs"), words.pair, students.format("Both")),
        "table": trained(
            tmp_path_factory.mktemp("table"), words.row, students.format("Table"), ", normalise: true"
        ),
    }


def exported(made: Run, student: str, kind: str, folder: Path) -> Path:
    arguments = ("--student", student, "--format", kind, "--to", folder / kind, *ALLOWED)
    result = run("export", made.folder.local, *arguments)
    assert result.exit_code == 0, result.output
    return folder / kind


def probabilities(output: str, classes: int = 4) -> torch.Tensor:
    """Those of a table of CSV, by row and class."""
    lines = list(csv.reader(output.splitlines()))
    assert lines[0] == ["row", "rank", "class", "probability"]
    found = torch.zeros(len(lines[1:]) // classes, classes, dtype=torch.float64)
    for row, _, name, share in lines[1:]:
        found[int(row), words.CLASSES.index(name)] = float(share)
    return found


def expected_of(made: Run, student: int) -> torch.Tensor:
    known = Trained.load(made.folder.uri, device="cpu", warn=print, allow_imports=["words"])
    batches = known.training_data.test_batches()
    logits = torch.cat([known.students[student].predict(batch.inputs) for batch in batches])
    return F.softmax(logits.double(), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_student(
    sentences: Run, others: dict[str, Run], kind: str, tmp_path: Path
) -> None:
    for number, (made, index) in enumerate([(sentences, 0), (sentences, 1), (others["table"], 0)]):
        folder = exported(made, "ab"[index], kind, tmp_path / str(number))
        result = run("predict", folder, made.recipe.data.test, "--csv", "--top", 4, *ALLOWED)
        assert result.exit_code == 0, result.output
        assert torch.allclose(probabilities(result.output), expected_of(made, index), atol=2e-6)


def test_text_classifiers_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(**small, hidden_size=16, vocab_size=31).save_pretrained(tmp_path / "bert")

    def tokens(label: int, random: torch.Generator) -> dict[str, torch.Tensor]:
        sample = words.sentence(label, random)
        return {"input_ids": sample["tokens"], "attention_mask": sample["mask"].long()}

    students = "{{name: a, model: 'hf:{0}'}}, {{name: b, model: {{name: 'hf:bert', {1}}}}}"
    sizes = (
        "hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8, vocab_size: 31"
    )
    made = trained(tmp_path / "run", tokens, students.format(tmp_path / "bert", sizes))
    for kind in KINDS:
        folder = exported(made, "a", kind, tmp_path)
        result = run("predict", folder, made.recipe.data.test, "--csv", "--top", 4)
        assert torch.allclose(probabilities(result.output), expected_of(made, 0), atol=2e-6)
        assert "lengths" not in description(folder)
    assert "AutoModelForSequenceClassification" in (tmp_path / "state_dict" / "README.md").read_text()


def test_an_ensemble_of_a_pair(others: dict[str, Run], tmp_path: Path) -> None:
    made = others["pair"]
    folder = exported(made, "ensemble", "torch_export", tmp_path)
    result = run("predict", folder, made.recipe.data.test, "--csv", "--top", 4)
    expected = (expected_of(made, 0) + expected_of(made, 1)) / 2
    assert torch.allclose(probabilities(result.output), expected, atol=2e-6)
    assert exported(made, "ensemble", "safetensors", tmp_path).joinpath("model.py").exists()


def test_the_description_and_the_card(sentences: Run, others: dict[str, Run], tmp_path: Path) -> None:
    found = description(folder := exported(sentences, "a", "onnx", tmp_path))
    assert found["format"] == 2
    assert "input_shape" not in found
    assert found["inputs"]["columns"][0] == {"name": "tokens", "dtype": "int64", "shape": [None]}
    assert found["collate"]["values"] == {"tokens": words.PADDING}
    assert "lengths" not in found
    card = (folder / "README.md").read_text()
    assert "24 test samples" in card
    assert "dict of tokens: int64 (any), mask: bool (any)" in card
    scope: dict[str, Any] = {
        "tokens": torch.arange(12).view(2, 6).numpy(),
        "mask": torch.ones(2, 6).bool().numpy(),
    }
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]  # type: ignore[index]
    exec(code.replace('"model.onnx"', f'r"{folder}/model.onnx"'), scope)
    assert scope["logits"].shape == (2, 4)
    assert (
        "network(tokens=tokens, mask=mask)"
        in (exported(sentences, "b", "state_dict", tmp_path) / "README.md").read_text()
    )
    table = description(exported(others["table"], "a", "state_dict", tmp_path / "table"))
    data = ArrowSamples(others["table"].recipe.data.train)
    assert table["mean"] == {"input": list(data.info.mean["input"])}


def test_sequences_longer_than_any_before(sentences: Run, tmp_path: Path) -> None:
    long = tmp_path / "long.arrow"
    random = torch.Generator().manual_seed(1)
    with SampleWriter(long, words.CLASSES) as writer:
        for count in (3, 40):
            tokens = torch.randint(0, 30, (count,), generator=random)
            writer.add(0, {"tokens": tokens, "mask": torch.ones(count, dtype=torch.bool)})
    for kind in KINDS:
        folder = exported(sentences, "a", kind, tmp_path)
        assert run("predict", folder, long, *ALLOWED).exit_code == 0
    folder = exported(sentences, "b", "torch_export", tmp_path / "b")
    assert description(folder)["lengths"] == {"tokens": 9, "mask": 9}
    result = run("predict", folder, long, "--csv")
    assert result.exit_code == 2
    assert result.output.count("\n") == 6
    assert "row 1: tokens is of 40, and this file takes 9 at most" in result.output


def test_other_samples_are_refused_in_one_line(
    sentences: Run, others: dict[str, Run], tmp_path: Path, data: dict[str, str]
) -> None:
    folder, table = exported(sentences, "a", "torch_export", tmp_path), others["table"].recipe.data.test
    assert_one_line(run("predict", folder, data["test"]), "takes samples that are no images")
    assert_one_line(run("predict", folder, table, table), "give one data set (got 2)")
    words_of_both = (
        "takes a dict of tokens: int64 (any), mask: bool (any), and the data set has a tensor of input"
    )
    assert_one_line(run("predict", folder, table), words_of_both)
    assert_one_line(
        run("evaluate", sentences.folder.local, "--noise", "0.1", *ALLOWED), "--noise is on pixels"
    )


def test_a_collate_of_the_users_own_needs_permission(sentences: Run, tmp_path: Path) -> None:
    folder = exported(sentences, "a", "torch_export", tmp_path)
    path = folder / "preprocessing.json"
    text = path.read_text()
    changed = re.sub(r'"collate": \{.*?\n \}', '"collate": "os:system"', text, flags=re.DOTALL)
    assert changed != text
    path.write_text(changed)
    assert_one_line(run("predict", folder, sentences.recipe.data.test), "collate: 'os:system' would run code")


def test_a_format_2_without_inputs_is_refused(sentences: Run, tmp_path: Path) -> None:
    folder = exported(sentences, "a", "torch_export", tmp_path)
    path = folder / "preprocessing.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    assert_one_line(run("predict", folder, sentences.recipe.data.test), "format 2, and no other, has inputs")
