"""A small drawn data set in COCO 2017's layout, for trials and tests.

Shapes: H W image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdcl_dist.errors import DataError

__all__ = ["draw_shapes"]

#: With a gap among the ids, as COCO has them.
CATEGORIES = ({"id": 1, "name": "disc"}, {"id": 3, "name": "square"}, {"id": 4, "name": "triangle"})
#: Sides of an image in pixels, wide or high.
SIDES = (128, 96)
CORNERS = 20

Polygon = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def draw_shapes(root: Path, *, train: int, val: int, seed: int = 0) -> None:
    """Draw discs, squares and triangles, and write images and annotations.

    Discs are annotated by run lengths and the others by polygons. Every fifth image has a crowd, which is
    annotated by run lengths, as COCO does it.

    Args:
        root: a folder that does not exist yet.
        train: images of train2017; val: images of val2017.
        seed: seed of all drawings.

    Raises:
        DataError: the folder exists.
    """
    if root.exists():
        raise DataError(f"{str(root)!r} exists already")
    (root / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate((("train2017", train), ("val2017", val))):
        (root / split).mkdir()
        rng = np.random.default_rng((seed, number))
        content = _draw_split(root / split, count, rng)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _draw_split(folder: Path, count: int, rng: np.random.Generator) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        width, height = SIDES if number % 2 else SIDES[::-1]
        pixels_HWC = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        kinds = rng.permutation(len(CATEGORIES))[:2]
        found = [_draw(pixels_HWC, half, kind, rng) for half, kind in enumerate(kinds)]
        if number % 5 == 0:
            found.append(_draw_crowd(pixels_HWC, rng))
        name = f"{number:012d}.jpg"
        Image.fromarray(pixels_HWC).save(folder / name, quality=95)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for item in found:
            annotations.append(item | {"id": len(annotations) + 1, "image_id": number})
    return {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}


def _draw(
    pixels_HWC: npt.NDArray[np.uint8], half: int, kind: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw one shape in the first or second half of the image's longer side; its annotation."""
    size = np.array(pixels_HWC.shape[1::-1])
    longer = int(size.argmax())
    size[longer] //= 2
    radius = rng.uniform(16, 30)
    centre = rng.uniform(radius, size - radius)
    centre[longer] += half * size[longer]
    polygon = centre + radius * _corners(kind)
    height, width = pixels_HWC.shape[:2]
    mask_HW = _inside(polygon, height, width)
    pixels_HWC[mask_HW] = rng.integers(150, 256, 3)
    lengths = _run_lengths(mask_HW) if kind == 0 else [polygon.round(2).ravel().tolist()]
    return _annotation(mask_HW, kind, lengths, crowd=False)


def _draw_crowd(pixels_HWC: npt.NDArray[np.uint8], rng: np.random.Generator) -> dict[str, Any]:
    """Draw small discs in the upper left corner; one annotation for all."""
    height, width = pixels_HWC.shape[:2]
    mask_HW = np.zeros((height, width), bool)
    for number in range(4):
        polygon = np.array([6 + 10 * number, 6]) + 4 * _corners(0)
        mask_HW |= _inside(polygon, height, width)
    pixels_HWC[mask_HW] = rng.integers(150, 256, 3)
    return _annotation(mask_HW, 0, _run_lengths(mask_HW), crowd=True)


def _annotation(mask_HW: Mask, kind: int, segmentation: Any, *, crowd: bool) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": CATEGORIES[kind]["id"],
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask_HW.sum()),
        "segmentation": segmentation,
        "iscrowd": int(crowd),
    }


def _corners(kind: int) -> Polygon:
    """Corners of a shape of radius 1 in order, (corners, 2) as x, y; a triangle stands on its base."""
    corners = (CORNERS, 4, 3)[kind]
    first = (0.0, np.pi / 4, -np.pi / 2)[kind]
    angles = first + 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _inside(polygon: Polygon, height: int, width: int) -> Mask:
    """Which pixels' centres a convex polygon covers, (H, W)."""
    y_HW, x_HW = np.mgrid[:height, :width] + 0.5
    inside_HW = np.ones((height, width), bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        inside_HW &= (x2 - x1) * (y_HW - y1) >= (y2 - y1) * (x_HW - x1)
    return inside_HW


def _run_lengths(mask_HW: Mask) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, beginning with those outside."""
    flat = np.concatenate([[False], mask_HW.ravel(order="F"), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff([0, *ends, mask_HW.size]).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    return {"size": list(mask_HW.shape), "counts": counts}
