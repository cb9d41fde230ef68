"""Files of stored logits: what is written is read, and damage or a misfit is one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from cohorts import MakeRecipe
from stored_files import write_logits

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.logits_writer import LogitsWriter
from kdcl_dist.data.stored_fit import check_stored
from kdcl_dist.data.stored_logits import TEST_VIEW, LogitsInfo, StoredLogits
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError

INFO = LogitsInfo(("x", "y", "z", "w"), "data", 5, views=2, seed=3)
IDS = np.arange(5)
LOGITS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) * 5


def written(path: Path, info: LogitsInfo = INFO) -> StoredLogits:
    with LogitsWriter(path, info) as writer:
        for view in (1, TEST_VIEW, 0):
            writer.add(IDS[::-1], view, LOGITS[view].flip(0))
    return StoredLogits(str(path))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(dtype: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "t.arrow", replace(INFO, dtype=dtype))
    assert len(file) == 15
    for view in (TEST_VIEW, 0, 1):
        logits, found = file.rows(np.array([4, 0, 2]), view)
        expected = LOGITS[view][[4, 0, 2]]
        assert torch.equal(logits, expected if dtype == "float32" else expected.half().float())
        assert found.all()
    assert file.missing(np.array([4, 7, -1]), 0).tolist() == [7, -1]
    assert not file.rows(np.array([1]), 2)[1].any()
    assert [file.info.view_of(epoch) for epoch in range(3)] == [0, 1, 0]
    size = (tmp_path / "t.arrow").stat().st_size
    assert 0 <= size - 15 * file.info.row_bytes < 3000


def test_the_rest_of_the_largest_keeps_its_total(tmp_path: Path) -> None:
    logits, _ = written(tmp_path / "t.arrow", replace(INFO, top_k=2)).rows(IDS, 1)
    found, expected = F.softmax(logits, dim=1), F.softmax(LOGITS[1], dim=1)
    largest = expected.topk(2, dim=1).indices
    assert torch.allclose(found.gather(1, largest), expected.gather(1, largest))
    others = found.scatter(1, largest, 0.0)
    assert torch.allclose(others.sum(dim=1), 1 - expected.gather(1, largest).sum(dim=1), atol=1e-6)
    assert ((others > 0).sum(dim=1) == 2).all()


def test_logits_that_do_not_fit_16_bits_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"a logit of sample 3 is no finite number in float16"),
        LogitsWriter(tmp_path / "t.arrow", replace(INFO, dtype="float16")) as writer,
    ):
        writer.add(np.array([3]), 0, torch.full((1, 4), 1e5))
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def changed(**columns: Any) -> Callable[[Path], None]:
    """Write the file again with other columns, without any check."""

    def change(path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        for name, values in columns.items():
            kind = table.schema.field(name).type
            values = values(table[name].to_pylist())
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))
        _write(path, table)

    return change


def of_metadata(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        info = json.loads(table.schema.metadata[b"kdcl"]) | fields
        _write(path, table.replace_schema_metadata({b"kdcl": json.dumps(info).encode()}))

    return change


def _write(path: Path, table: pa.Table) -> None:
    with (
        pa.OSFile(str(path.with_suffix(".new")), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    path.with_suffix(".new").replace(path)


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


DAMAGES = {
    "truncated or damaged": cut,
    "row 0 has id 5, and its metadata has ids from 0 to 4": changed(id=first(5)),
    "row 0 has id -1": changed(id=first(-1)),
    "row 0 has view 2, and its metadata has views from -1 to 1": changed(view=first(2)),
    "it has sample 3, view 1, more than once": changed(id=first(3)),
    "the logits of sample 4 are damaged": changed(logits=first([1.0, float("nan")])),
    "sample 4 are damaged: .* occurs twice": changed(classes=first([1, 1])),
    "a class does not exist": changed(classes=first([1, 4])),
    "or a class does not exist or": changed(classes=first([-1, 2])),
    "one is not finite": changed(rest=first(float("inf"))),
    "rows with a null in them": changed(logits=first(None)),
    "column 'logits' has rows with a null in them": changed(logits=first([1.0, None])),
    "columns are not those of its metadata": of_metadata(top_k=3),
    "has views 1048577, which must be": of_metadata(views=(1 << 20) + 1),
    "has top_k 9, which must be 1 to 4": of_metadata(top_k=9),
    "has samples 0, which must be": of_metadata(samples=0),
    "no file of stored logits, but a data set of format 1": of_metadata(format=1),
    "metadata cannot be read: 'dtype'": of_metadata(dtype="float64"),
    "metadata cannot be read: 'more'": of_metadata(more=1),
    "names a class twice": of_metadata(classes=["x", "y", "z", "x"]),
}


@pytest.mark.parametrize("text", DAMAGES)
def test_damage_is_one_line(text: str, tmp_path: Path) -> None:
    written(tmp_path / "t.arrow", replace(INFO, top_k=2))
    DAMAGES[text](tmp_path / "t.arrow")
    with pytest.raises(DataError, match=text) as caught:
        StoredLogits(str(tmp_path / "t.arrow")).check()
    assert "\n" not in str(caught.value)


def test_an_unusable_file_is_told_with_its_field(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in (
        (tmp_path / "none.arrow", "none.arrow: no such file; write it with `kdcl logits`"),
        (tmp_path, "not a regular file"),
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        recipe = make_recipe(f"students=[{{name: a, model: mlp}}, {{name: t, logits: '{path}'}}]")
        with pytest.raises(DataError, match=r"^students\.t\.logits: ") as caught:
            check_stored(TrainingData.open(recipe))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_views_of_python_are_those_of_the_file(
    data: dict[str, str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Arguments of transforms may be tuples in Python, and are lists in the file."""
    crop = {"name": "RandomResizedCrop", "size": 8, "scale": (0.5, 1.0)}
    file = write_logits(tmp_path / "t.arrow", data["train"], 2, seed=0, augment=(crop,))
    students = f"students=[{{name: a, model: mlp}}, {{name: t, logits: '{file}'}}]"
    fields = make_recipe(students, "data.views=2", "distillation.invariant=false").model_dump()
    fields["data"]["augment"] = [crop]
    assert check_stored(TrainingData.open(Recipe.model_validate(fields)))


VIEWS = [
    "data.views=2",
    "seed=3",
    "distillation.invariant=false",
    "data.augment=[{name: RandomCrop, size: 8, padding: 1}]",
]
#: What a recipe asks for, what the file has, and the reason why they do not fit.
MISFITS: list[tuple[list[str], dict[str, Any], str]] = [
    ([], {"classes": ("x", "y", "z")}, "has logits of 3 classes, and data.train has 4"),
    ([], {"classes": ("x", "y", "z", "w")}, "other class names than data.train"),
    ([], {"data": "0" * 64}, r"another data set than data.train \(fingerprint 000000000000, not "),
    ([], {"ids": range(50)}, "lacks view 0 of 10 of 60 training samples, the first is 50"),
    ([], {"ids": range(50), "views": 0}, "lacks the test view of 10 of 60 training samples"),
    (
        ["distillation.method=general", "data.holdout_per_class=3"],
        {"held": False},
        "lacks the test view of 12 of 12 held-out samples",
    ),
    (VIEWS, {"views": 1}, "of other views .*: data.views is 2, and of the file 1"),
    (VIEWS[1:], {}, "data.views is null, and of the file 2"),
    (VIEWS, {"seed": 4}, "seed is 3, and of the file 4"),
    (VIEWS, {"augment": ()}, "data.augment is .*RandomCrop.*, and of the file"),
]


#: What fits all recipes above.
FITTING: dict[str, Any] = {
    "views": 2,
    "seed": 3,
    "augment": ({"name": "RandomCrop", "size": 8, "padding": 1},),
}


@pytest.mark.parametrize(("overrides", "changes", "reason"), MISFITS)
def test_a_misfit_is_refused_with_its_reason(
    overrides: list[str],
    changes: dict[str, Any],
    reason: str,
    data: dict[str, str],
    make_recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    good = write_logits(tmp_path / "good.arrow", data["train"], **FITTING)
    bad = write_logits(tmp_path / "bad.arrow", data["train"], **FITTING | changes)
    member = "students=[{{name: a, model: mlp}}, {{name: t, logits: {}}}]"
    if changes:
        check_stored(TrainingData.open(make_recipe(member.format(good), *overrides)))
    with pytest.raises(DataError, match=reason) as caught:
        check_stored(TrainingData.open(make_recipe(member.format(bad), *overrides)))
    assert str(caught.value).startswith("students.t.logits: ")
    assert "\n" not in str(caught.value)
