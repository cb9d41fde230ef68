"""Collect the results of the runs of this folder's tables, and what was measured of their ensembles.

    python -m examples.fashion.analysis runs/fashion docs/results/fashion

It reads the finished runs of a folder of `kdcl compare`, and writes them into the files of the second folder,
which keep the rows of all other runs: a table can be trained in several goes, on several machines.

- results.csv: arm, seed, student, top1 (%), loss (nats) on the test images
- noise.csv: arm, seed, student, deviation, top1 (%), loss, of the runs that have been tested under noise
- analysis.parquet: arm, seed, student, epoch, name, value: means over the epoch of the figures of
  docs/analysis.md, of `general` the weights, of `switokd` the share of steps in which a student paused
- analysis.csv: the same as means over the whole run
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdcl_dist.errors import RunFolderError
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.storage import Folder

Row = tuple[object, ...]
#: Arm and seed of a run.
Key = tuple[str, int]
RESULTS = ("arm", "seed", "student", "top1", "loss")
NOISE = ("arm", "seed", "student", "deviation", "top1", "loss")
MEANS = ("arm", "seed", "student", "name", "value")
RUN = re.compile(r"(.+)-seed(\d+)")


def finished_runs(folder: Path) -> Iterator[tuple[str, int, Folder]]:
    """Arm, seed and folder of each finished run, ordered by arm and seed."""
    found = []
    for path in folder.iterdir():
        if (match := RUN.fullmatch(path.name)) and (path / "run.json").exists():
            run = Folder(str(path))
            if read_record(run).get("state") == "finished":
                found.append((match[1], int(match[2]), run))
    yield from sorted(found, key=lambda item: item[:2])


def results_of(arm: str, seed: int, run: Folder) -> Iterator[Row]:
    """The rows of results.csv of one run."""
    for student, values in scores_of(read_record(run)).items():
        yield arm, seed, student, f"{100 * values['top1']:.2f}", f"{values['loss']:.5f}"


def noise_of(arm: str, seed: int, run: Folder) -> Iterator[Row]:
    """The rows of noise.csv of one run; none without its file."""
    path = Path(str(run.local)) / "noise.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                top1, loss = 100 * float(row["top1"]), float(row["loss"])
                yield arm, seed, row["student"], row["deviation"], f"{top1:.2f}", f"{loss:.5f}"


def analysis_of(arm: str, seed: int, run: Folder) -> pa.Table:
    """The rows of analysis.parquet of one run."""
    table = read_metrics(run)
    rows = table.filter((pc.field("split") == "analysis") | pc.field("name").isin(["weight", "paused"]))
    means = rows.group_by(["student", "epoch", "name"]).aggregate([("value", "mean")])
    means = means.sort_by([(name, "ascending") for name in ("student", "name", "epoch")])
    return pa.table(
        {
            "arm": pa.array([arm] * len(means)).dictionary_encode(),
            "seed": pa.array([seed] * len(means), pa.int32()),
            "student": means["student"].cast(pa.string()),
            "epoch": means["epoch"].cast(pa.int32()),
            "name": means["name"].cast(pa.string()),
            "value": means["value_mean"].cast(pa.float32()),
        }
    )


def means_of(table: pa.Table) -> Iterator[Row]:
    """The rows of analysis.csv: each figure's mean over the epochs."""
    keys = ["arm", "seed", "student", "name"]
    plain = table.set_column(0, "arm", table["arm"].cast(pa.string()))
    means = plain.group_by(keys).aggregate([("value", "mean")]).sort_by([(key, "ascending") for key in keys])
    for row in means.to_pylist():
        yield (*(row[key] for key in keys), f"{row['value_mean']:.5f}")


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Row], new: Collection[Key]) -> None:
    """Write rows into a table of CSV, in place of those of some runs, which are ordered by arm and seed."""
    others = [row for row in _rows(path) if (row[0], int(row[1])) not in new]
    found = [*others, *([str(value) for value in row] for row in rows)]
    found.sort(key=lambda row: (row[0], int(row[1])))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(found)


def write_analysis(path: Path, table: pa.Table, new: Collection[Key]) -> None:
    """Write rows into analysis.parquet, as `write_csv`."""
    kept = pq.read_table(path) if path.exists() else table.slice(0, 0)
    keys = zip(kept["arm"].to_pylist(), kept["seed"].to_pylist(), strict=True)
    kept = kept.filter(pa.array([key not in new for key in keys], pa.bool_()))
    plain = [each.set_column(0, "arm", each["arm"].cast(pa.string())) for each in (kept, table)]
    merged = pa.concat_tables(plain).sort_by([("arm", "ascending"), ("seed", "ascending")])  # a stable sort
    merged = merged.set_column(0, "arm", merged["arm"].combine_chunks().dictionary_encode())
    pq.write_table(merged, path, compression="zstd")


def main(runs: Path, out: Path) -> None:
    """Write all files."""
    found = list(finished_runs(runs))
    if not found:
        raise RunFolderError(f"{runs}: no finished run of a table is there")
    out.mkdir(parents=True, exist_ok=True)
    new = {(arm, seed) for arm, seed, _ in found}
    write_csv(out / "results.csv", RESULTS, (row for run in found for row in results_of(*run)), new)
    write_csv(out / "noise.csv", NOISE, (row for run in found for row in noise_of(*run)), new)
    analysis = pa.concat_tables(analysis_of(*run) for run in found)
    write_analysis(out / "analysis.parquet", analysis, new)
    write_csv(out / "analysis.csv", MEANS, means_of(analysis), new)
    print(f"{len(found)} finished runs: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
