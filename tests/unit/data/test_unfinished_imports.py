"""Imports that cannot go on: into one of the source's own folders, and beside one that still runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from importing import content, encoded, run

from kdcl_dist.data.importers.imagefolder import ImageFolder
from kdcl_dist.data.importers.images import import_images
from kdcl_dist.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder whose two folders are the classes."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(encoded("PNG", seed=number))
    return tmp_path / "photos"


@pytest.mark.parametrize("out", ["out", "cat/out", "new/out"])
@pytest.mark.parametrize("split", ["", "train"])
def test_what_is_written_is_no_class(
    out: str, split: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    if split:
        for name in ("train", "val"):
            shutil.copytree(photos, photos.parent / "splits" / name)
        monkeypatch.chdir(photos.parent / "splits")
    before = content(Path.cwd())
    more = () if split else ("--test-fraction", "0.2")
    result = run("imagefolder", ".", Path(split, out), "--workers", "0", *more)
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    words = (
        f"{Path(split, out)}: lies in {Path.cwd() / split}, where folders are classes: choose a path outside"
    )
    assert words in result.output
    assert content(Path.cwd()) == before


def test_beside_the_classes_nothing_is_refused(photos: Path) -> None:
    """In a folder that is not read, beside the source, and beside the folders of its splits."""
    for name in ("train", "val"):
        shutil.copytree(photos, photos.parent / "splits" / name)
    for source, out, more in (
        (photos, photos.parent / "photos out", ("--test-fraction", "0.2")),
        (photos, photos / ".kdcl" / "out", ("--test-fraction", "0.2")),
        (photos.parent / "splits", photos.parent / "splits" / "out", ()),
    ):
        result = run("imagefolder", source, out, "--workers", "0", *more)
        assert result.exit_code == 0, result.output


def test_the_same_import_while_it_runs(photos: Path) -> None:
    """The first goes on as if there were no second, which ends at once and touches nothing."""
    (photos.parent / "whole").mkdir()
    shutil.copytree(photos, photos.parent / "splits" / "train")
    shutil.copytree(photos, photos.parent / "splits" / "val")
    source, outputs = photos.parent / "splits", []

    def again(what: str, done: int, total: int) -> None:
        before = content(photos.parent / "out.part")
        with pytest.raises(DataError, match=r"an import into .*/out still runs: wait for its end") as caught:
            import_images(ImageFolder(source), photos.parent / "out", workers=0, on_progress=lambda *_: None)
        outputs.append(str(caught.value))
        assert content(photos.parent / "out.part") == before

    import_images(ImageFolder(source), photos.parent / "out", workers=0, on_progress=again)
    assert len(outputs) == 6 + 6 + 6
    import_images(ImageFolder(source), photos.parent / "whole", workers=0, on_progress=lambda *_: None)
    assert content(photos.parent / "out") == content(photos.parent / "whole")
