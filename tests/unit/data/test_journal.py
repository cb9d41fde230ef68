"""The journal of an import: what counts as finished after an interruption."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from cohorts import write_images

from kdcl_dist.data.importers.journal import NAME, Journal, Shard
from kdcl_dist.data.writer import content_digest
from kdcl_dist.errors import DataError

IDENTITY = {"source": "s", "shard_mb": 1}


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    journal = Journal.open(folder, IDENTITY)
    assert (journal.statistics, journal.shards) == (None, {})
    path = write_images(folder / "train.arrow", 4)
    shards = [
        Shard("train.arrow", content_digest(path), [(0, "a.png", "truncated")]),
        Shard("empty.arrow", None, [(1, "b.png", "not a JPEG or PNG image")]),
    ]
    journal.add_statistics({"mean": [0.5], "std": [0.25]})
    for shard in shards:
        journal.add_shard(shard)
    journal.lock.close()
    again = Journal.open(folder, IDENTITY)
    assert again.statistics == {"mean": [0.5], "std": [0.25]}
    assert [again.finished(shard.name) for shard in shards] == shards
    assert again.finished("other.arrow") is None


@pytest.mark.parametrize("damage", ["gone", "other", "cut"])
def test_a_shard_whose_file_changed_is_not_finished(damage: str, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "part", IDENTITY)
    path = write_images(tmp_path / "part" / "train.arrow", 4)
    journal.add_shard(Shard("train.arrow", content_digest(path), []))
    assert journal.finished("train.arrow") is not None
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        write_images(path, 4, seed=9)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert journal.finished("train.arrow") is None


def test_a_truncated_last_line_is_deleted(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "part", IDENTITY)
    journal.add_statistics({"mean": [0.5], "std": [0.25]})
    journal.lock.close()
    path = tmp_path / "part" / NAME
    whole = path.read_text()
    path.write_text(whole + '{"name": "train/sh')
    again = Journal.open(tmp_path / "part", IDENTITY)
    assert path.read_text() == whole
    again.add_shard(Shard("train.arrow", None, []))
    assert [json.loads(line) for line in path.read_text().splitlines()][-1]["name"] == "train.arrow"


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"import": {"source": "other"}}\n'])
def test_a_folder_of_something_else_is_refused(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    if content is not None:
        (tmp_path / "part" / NAME).write_text(content)
    with pytest.raises(DataError, match="holds an import of another source"):
        Journal.open(tmp_path / "part", IDENTITY)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Journal.open(tmp_path / "file" / "part", IDENTITY)


def test_one_import_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "out.part", IDENTITY):
        words = r"out\.part: an import into .*/out still runs: wait for its end"
        with pytest.raises(DataError, match=words):
            Journal.open(tmp_path / "out.part", IDENTITY)
    Journal.open(tmp_path / "out.part", IDENTITY).lock.close()
    for _ in range(2):  # one that is refused leaves no lock
        with pytest.raises(DataError, match="holds an import of another source"):
            Journal.open(tmp_path / "out.part", {"source": "other"})


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    Journal.open(tmp_path / "part", IDENTITY).lock.close()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"part: cannot be written: OSError: \[Errno 28\]"):
            Journal.open(folder, IDENTITY)
    assert not folder.exists(), "a journal without its first line would be of another source for ever"
    with Journal.open(folder, IDENTITY) as journal:
        monkeypatch.setattr(os, "fsync", full)
        words = r"import\.jsonl: cannot be written: .*; once it can, the same command goes on from there"
        with pytest.raises(DataError, match=words):
            journal.add_statistics({"mean": [0.5], "std": [0.25]})
        with pytest.raises(DataError, match=words):
            journal.add_shard(Shard("train.arrow", None, []))
        with pytest.raises(DataError, match=r"cannot be deleted: .*; the data set is complete"):
            journal.remove(tmp_path)
