"""Scores against a slow reference, and the table of metrics on its storage."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from kdcl_dist.errors import StorageError
from kdcl_dist.run.metrics import SCHEMA, MetricsTable, Scores, read_metrics
from kdcl_dist.run.storage import Folder


def reference(scores: list[float], label: int, most: int) -> bool:
    """Whether a stable sort by descending score has the label among the first `most`."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return label in order[:most]


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_scores_equal_a_stable_sort(levels: int) -> None:
    """With few levels many scores are equal: then the lower class number ranks first."""
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(levels, (64, 9), generator=generator).double()
    labels = torch.randint(9, (64,), generator=generator)
    found = Scores()
    for start in (0, 16, 48):
        part = slice(start, {0: 16, 16: 48, 48: 64}[start])
        found.add(F.log_softmax(logits[part], dim=1), labels[part])
    rows = list(zip(F.log_softmax(logits, dim=1).tolist(), labels.tolist(), strict=True))
    assert found.samples == 64
    assert (found.top1, found.top5) == tuple(sum(reference(*row, most) for row in rows) for most in (1, 5))
    expected = float(F.cross_entropy(logits, labels))
    assert found.values() == pytest.approx(
        {"loss": expected, "top1": found.top1 / 64, "top5": found.top5 / 64}
    )
    ranks = Scores()
    assert torch.equal(ranks.add_ranks(logits, labels), logits.gather(1, labels[:, None]))
    assert (ranks.samples, ranks.loss, ranks.top1, ranks.top5) == (64, 0.0, found.top1, found.top5)


def test_no_samples_have_no_score() -> None:
    assert Scores().values() == {"loss": 0.0, "top1": 0.0, "top5": 0.0}


def fill(table: MetricsTable, epoch: int) -> None:
    for step in range(2):
        table.add("a", epoch, 2 * epoch + step, "train", {"loss": 1.0 + step, "top1": 0.5})
        table.add("ensemble", epoch, 2 * epoch + step, "train", {"loss": 4.0})
    table.add("a", epoch, 2 * epoch + 2, "test", {"loss": 3.0})


def test_means_are_by_student_and_split_of_the_current_epoch(tmp_path: Path) -> None:
    table = MetricsTable(Folder(str(tmp_path)))
    fill(table, 0)
    assert table.mean("train") == {"a": {"loss": 1.5, "top1": 0.5}, "ensemble": {"loss": 4.0}}
    assert table.mean("test") == {"a": {"loss": 3.0}}
    assert table.end_epoch(0).num_rows == 7
    assert table.mean("train") == {}


def test_rows_are_written_by_epoch_and_read_in_order(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert read_metrics(folder).equals(SCHEMA.empty_table())
    table, rows = MetricsTable(folder), []
    for epoch in range(2):
        fill(table, epoch)
        rows.append(table.end_epoch(epoch))
        table.flush(1.0)
    assert folder.names("metrics") == ["epoch-0000.parquet", "epoch-0001.parquet"]
    assert read_metrics(folder).equals(pa.concat_tables(rows))
    fill(table, 1)  # a resumed run repeats an epoch
    table.end_epoch(1)
    table.flush(1.0)
    assert read_metrics(folder).equals(pa.concat_tables(rows))


def test_state_holds_the_unfinished_epoch_and_unwritten_files(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    table = MetricsTable(folder)
    fill(table, 0)
    table.end_epoch(0)
    fill(table, 1)
    state = table.state_dict()
    assert state.keys() == {"rows", "unwritten"}, "run folders of version 0.1.0 hold these keys"
    torch.save(state, tmp_path / "state.pt")
    again = MetricsTable(folder)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.mean("train") == table.mean("train")
    assert again.unwritten == table.unwritten
    again.end_epoch(1)
    again.flush(1.0)
    assert read_metrics(folder).num_rows == 14


def test_a_file_that_cannot_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, name: str, data: bytes) -> None:
        raise StorageError("no space left")

    table = MetricsTable(Folder(str(tmp_path)))
    fill(table, 0)
    table.end_epoch(0)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", full)
        with pytest.raises(StorageError, match="no space left"):
            table.flush(0.1)
    assert list(table.unwritten) == ["metrics/epoch-0000.parquet"]
    table.flush(1.0)
    assert not table.unwritten
    assert read_metrics(table.run).num_rows == 7
