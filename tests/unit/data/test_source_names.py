"""Names of sources of which the file system cannot say whether they are there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from importing import run

from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import DataError

KINDS = ("cifar10", "idx", "imagefolder", "table", "webdataset")


def refused(kind: str, source: Path, words: str, *more: str) -> None:
    source.parent.mkdir()
    result = run(kind, source, source.parent.parent / "out", *more)
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.startswith(f"kdcl: error: {source}")
    assert f": cannot be opened: {words}" in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_too_long(kind: str, tmp_path: Path) -> None:
    refused(kind, tmp_path / "folder" / ("x" * 300), "OSError: [Errno 36] File name too long")


def test_a_folder_of_classes_whose_name_is_too_long(tmp_path: Path) -> None:
    source = tmp_path / "folder" / ("x" * 300)
    refused("imagefolder", source, "OSError: [Errno 36] File name too long", "--test-fraction", "0.2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_may_not_be_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system says it to whom is not root."""
    stat: Any = os.stat

    def closed(path: Any, *rest: Any, **more: Any) -> Any:
        if str(path).startswith(str(tmp_path / "closed") + "/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *rest, **more)

    monkeypatch.setattr(os, "stat", closed)
    refused(kind, tmp_path / "closed" / "source", "PermissionError: [Errno 13] Permission denied")


@pytest.mark.parametrize("prefix", ["kdcl:", "hf:", ""])
def test_a_data_set_of_a_recipe(prefix: str) -> None:
    with pytest.raises(DataError, match="File name too long") as caught:
        open_dataset(prefix + "x" * 300)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_links_in_a_circle(kind: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = run(kind, tmp_path / "loop", tmp_path / "out")
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet: OSError: .*symbolic links"):
        open_dataset(str(tmp_path / "loop" / "t.parquet"))
