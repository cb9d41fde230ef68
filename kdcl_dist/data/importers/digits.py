"""The UCI handwritten digits (8x8, 1,797 images, CC BY 4.0), as packaged by scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcl_dist.data.dataset import Info
from kdcl_dist.data.importers.held_out import share_of_each_class
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError

__all__ = ["import_digits"]

SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
    "1998, https://doi.org/10.24432/C50P49; the 1,797 images in scikit-learn; pixels 0..16 scaled to 0..255"
)
TEST_SHARE = 0.2


def import_digits(folder: Path) -> list[Path]:
    """Write digits-train.arrow (80% of each class) and digits-test.arrow; returns their paths.

    The result is deterministic, byte for byte.

    Raises:
        DataError: scikit-learn is not installed, or the folder cannot be written.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("importing the digits needs scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    images_NCHW = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels_N = bunch.target.astype(np.int64)
    test_ids = share_of_each_class(labels_N, TEST_SHARE, seed=0)
    train_ids = np.setdiff1d(np.arange(len(labels_N)), test_ids)
    pixels = images_NCHW[train_ids] / 255
    info = Info(
        classes=tuple(str(digit) for digit in range(10)),
        encoding="raw",
        channels=1,
        shape=(1, 8, 8),
        mean=(round(float(pixels.mean()), 6),),
        std=(round(float(pixels.std()), 6),),
        source=SOURCE,
        license="CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    )
    paths = [folder / "digits-train.arrow", folder / "digits-test.arrow"]
    for path, ids in zip(paths, (train_ids, test_ids), strict=True):
        write_dataset(path, ((int(labels_N[i]), images_NCHW[i].tobytes()) for i in ids), info)
    return paths
