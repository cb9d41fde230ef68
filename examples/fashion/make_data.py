"""Split the training set for the choice of hyper-parameters: 50,000 images to train on, 10,000 to choose by.

    python -m examples.fashion.make_data data/fashion

The test images take no part in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.writer import write_dataset

#: Images before this one train, the others choose.
BORDER = 50_000


def main(folder: Path) -> None:
    """Write tuning-train.arrow and tuning-val.arrow beside train.arrow."""
    source = ArrowDataset(str(folder / "train.arrow"))
    for name, ids in (("train", range(BORDER)), ("val", range(BORDER, len(source)))):
        samples = ((int(source.labels[i]), source.image(i).numpy().tobytes()) for i in ids)
        write_dataset(folder / f"tuning-{name}.arrow", samples, source.info)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
