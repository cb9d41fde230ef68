"""Writes scikit-learn's breast cancer data as two CSV tables, half of each class in either.

python examples/tabular/make_data.py examples/tabular
"""

from __future__ import annotations

import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split


def main(folder: Path) -> None:
    """Write `train.csv` (285 rows) and `test.csv` (284 rows): 30 columns of numbers and `label`."""
    bunch = load_breast_cancer(as_frame=True)
    frame = bunch.data.assign(label=bunch.target_names[bunch.target])
    folder.mkdir(parents=True, exist_ok=True)
    train, test = train_test_split(frame, train_size=285, stratify=frame.label, random_state=0)
    train.to_csv(folder / "train.csv", index=False, lineterminator="\n")
    test.to_csv(folder / "test.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
