"""Class names in the metadata of Hugging Face's files, which may number the classes each in its own way."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from importing import encoded, imported
from importing import refused as import_refused

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import DataError

CAT, DOG, COW = "cat", "dog", "cow"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, names: list[str], labels: list[int], *, images: bool = False) -> None:
    """A table as `datasets` writes it; without names, as others do."""
    data = [encoded("PNG", seed=row) for row in range(len(labels))] if images else [1.5] * len(labels)
    table = pa.table({"image" if images else "x": data, "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


def test_an_import_of_images_maps_labels_by_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "train-0.parquet", [CAT, DOG, COW], [0, 1, 2], images=True)
    write(source / "train-1.parquet", [COW, CAT, DOG], [0, 1, 2], images=True)
    write(source / "train-2.parquet", [], [0, 1, 2], images=True)
    write(source / "test.parquet", [DOG, CAT, COW], [0, 1, 1], images=True)
    out = imported("table", source)
    train, test = (ArrowDataset(str(out / split)) for split in ("train", "test"))
    assert train.classes == test.classes == (CAT, DOG, COW)
    assert train.labels.tolist() == [0, 1, 2, 2, 0, 1, 0, 1, 2]
    assert test.labels.tolist() == [1, 0, 0]


def test_an_import_of_numbers_maps_labels_by_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "train-0.parquet", [CAT, DOG], [0, 1])
    write(source / "train-1.parquet", [DOG, CAT], [0, 1])
    write(source / "test-0.parquet", [DOG, CAT], [0, 1])
    write(source / "test-1.parquet", [CAT, DOG], [0, 1])
    out = imported("table", source)
    train, test = (open_dataset(str(out / f"{split}.arrow")) for split in ("train", "test"))
    assert train.classes == test.classes == (CAT, DOG)
    assert train.labels.tolist() == [0, 1, 1, 0]
    assert test.labels.tolist() == [1, 0, 0, 1]


def test_a_folder_of_parts_maps_labels_by_name(tmp_path: Path) -> None:
    write(tmp_path / "set" / "0.parquet", [], [0, 1])
    write(tmp_path / "set" / "1.parquet", [CAT, DOG], [0, 1])
    write(tmp_path / "set" / "2.parquet", [DOG, CAT], [0, 1])
    found = open_dataset(str(tmp_path / "set"))
    assert found.classes == (CAT, DOG)
    assert found.labels.tolist() == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([CAT, COW], "1.parquet: it names the class 'cow', which {source}/train-0.parquet does not"),
        ([DOG], "0.parquet: it names the class 'cat', which {source}/train-1.parquet does not"),
        ([DOG, CAT, COW], "1.parquet: it names the class 'cow', which {source}/train-0.parquet does not"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, images: bool, names: list[str], words: str) -> None:
    source = tmp_path / "source"
    write(source / "train-0.parquet", [CAT, DOG], [0, 1], images=images)
    write(source / "train-1.parquet", names, [0, 0], images=images)
    import_refused("table", source, words.format(source=source))
    if not images:
        with pytest.raises(DataError, match=words.format(source=source)):
            open_dataset(str(source))


@pytest.mark.parametrize("images", [False, True])
def test_names_that_go_on_are_the_same_numbers(tmp_path: Path, images: bool) -> None:
    source = tmp_path / "source"
    write(source / "train-0.parquet", [CAT, DOG, COW], [2, 1, 0], images=images)
    write(source / "train-1.parquet", [CAT, DOG], [1, 0], images=images)
    out = imported("table", source)
    found = open_dataset(str(out / ("train" if images else "train.arrow")))
    assert found.labels.tolist() == [2, 1, 0, 1, 0]


@pytest.mark.parametrize("images", [False, True])
def test_metadata_that_is_nested_without_end_has_no_names(tmp_path: Path, images: bool) -> None:
    source = tmp_path / "source"
    write(source / "train.parquet", [], [0, 1], images=images)
    table = pq.read_table(source / "train.parquet").replace_schema_metadata({"huggingface": "[" * 100_000})
    pq.write_table(table, source / "train.parquet")
    out = imported("table", source)
    assert open_dataset(str(out / ("train" if images else "train.arrow"))).classes == ("0", "1")
