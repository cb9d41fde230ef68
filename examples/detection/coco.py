"""One split of a data set in COCO's format, checked and compact.

The annotations of an image are one line of JSON, and all lines are one tensor. The processes that load images
share its memory; a million Python objects would be copied to each.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcl_dist.errors import DataError, UserError, one_line

__all__ = ["Split", "annotation_file", "read_annotations", "read_split", "require_pycocotools"]

#: Pixels; the side of a thinner box can become 0 when an image is resized in single precision.
THINNEST = 0.1


class Split:
    """The images of a split with their boxes, as `read_split` makes it.

    Attributes:
        path: folder of the images.
        categories: names by COCO's ids, in the order of the ids; a detector's label 1 is the first.
        ids: COCO's id of each image.
        annotated: whether an image has a box to learn from.
        wide: whether an image is wider than high.
        skipped: the numbers of annotations that are not learned from, by reason.
    """

    def __init__(
        self, path: Path, categories: dict[int, str], rows: list[dict[str, Any]], skipped: Mapping[str, int]
    ) -> None:
        self.path, self.categories, self.skipped = path, categories, dict(skipped)
        self.ids = np.array([row["id"] for row in rows], np.int64)
        self.annotated = np.array([bool(row["boxes"]) for row in rows], bool)
        self.wide = np.array([row["width"] > row["height"] for row in rows], bool)
        lines = [json.dumps(row).encode() for row in rows]
        self._ends = np.cumsum([0, *map(len, lines)])
        self._text = torch.frombuffer(bytearray(b"".join(lines)), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image: id, file, width, height; boxes as [x1, y1, x2, y2], labels, segmentations."""
        line = self._text[self._ends[index] : self._ends[index + 1]]
        row: dict[str, Any] = json.loads(line.numpy().tobytes())
        return row


def require_pycocotools() -> None:
    """Raise `UserError` when pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"detection needs pycocotools ({one_line(error)}): pip install 'kdcl_dist[detection]'"
        ) from None


def annotation_file(root: Path, split: str) -> Path:
    """The path of a split's annotations in COCO 2017."""
    return root / "annotations" / f"instances_{split}.json"


def read_annotations(path: Path) -> dict[str, Any]:
    """A file of annotations: `images`, `annotations` and `categories`, each a list of objects.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"data.root: there is no {str(path)!r}; needed are ROOT/annotations/instances_SPLIT.json and the "
            "images in ROOT/SPLIT"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON, or is damaged: {one_line(error)}") from None
    for name in ("images", "annotations", "categories"):
        part = content.get(name) if isinstance(content, dict) else None
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise DataError(f"{path} has no list of {name}: is it a file of COCO's format?")
    for name in ("images", "categories"):
        if not content[name]:
            raise DataError(f"{path}: its list of {name} is empty")
    return content  # type: ignore[no-any-return]


def read_split(root: Path, split: str, *, masks: bool) -> Split:
    """Read and check one split.

    Args:
        root: the data set's folder.
        split: such as "train2017".
        masks: whether annotations must have a segmentation.

    Raises:
        DataError: a file is missing or damaged, or its items do not fit together.
    """
    source = annotation_file(root, split)
    content = read_annotations(source)
    reader = _Reader(source, masks)
    rows = reader.images(content["images"])
    categories = reader.categories(content["categories"])
    reader.annotations(content["annotations"], rows, categories)
    _check_files(root / split, [row["file"] for row in rows.values()])
    return Split(root / split, categories, list(rows.values()), reader.skipped)


class _Reader:
    """Checks the items of one file; errors name the file and the item."""

    def __init__(self, source: Path, masks: bool) -> None:
        self.source, self.masks = source, masks
        self.skipped: Counter[str] = Counter()

    def images(self, items: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """A row for each image, by id."""
        rows: dict[int, dict[str, Any]] = {}
        for item in items:
            number, name = self._id(item, "image", rows), item.get("file_name")
            if not isinstance(name, str) or not name:
                raise self._error("image", number, "file_name", name)
            size = {side: item.get(side) for side in ("width", "height")}
            for side, value in size.items():
                if not _is_whole(value) or value < 1:  # type: ignore[operator]
                    raise self._error("image", number, side, value)
            rows[number] = {"id": number, "file": name, **size, "boxes": [], "labels": []}
            if self.masks:
                rows[number]["segmentations"] = []
        return rows

    def categories(self, items: Iterable[dict[str, Any]]) -> dict[int, str]:
        """Names by id, in the order of the ids."""
        names: dict[int, str] = {}
        for item in items:
            number = self._id(item, "category", names)
            names[number] = str(item.get("name", number))
        return dict(sorted(names.items()))

    def annotations(
        self, items: Iterable[dict[str, Any]], rows: dict[int, dict[str, Any]], categories: dict[int, str]
    ) -> None:
        """Add the annotations to learn from to the images' rows, and count the others."""
        labels = {number: label for label, number in enumerate(categories, start=1)}
        seen: set[int] = set()
        for item in items:
            number = self._id(item, "annotation", seen)
            seen.add(number)
            self._check_flags(item)
            row, label = self._row(item, rows), self._label(item, labels)
            box = _clipped(self._box(item), row)
            segmentation = self._segmentation(item, row) if self.masks else None
            if item.get("iscrowd", 0):
                self.skipped["crowds"] += 1
            elif min(box[2] - box[0], box[3] - box[1]) < THINNEST:
                self.skipped["empty boxes"] += 1
            elif self.masks and not segmentation:
                self.skipped["empty masks"] += 1
            else:
                row["boxes"].append(box)
                row["labels"].append(label)
                if self.masks:
                    row["segmentations"].append(segmentation)

    def _id(self, item: dict[str, Any], kind: str, known: Any) -> int:
        number = item.get("id")
        if not _is_whole(number):
            raise DataError(f"{self.source}: the id of each {kind} is a whole number (got {number!r})")
        if number in known:
            raise DataError(f"{self.source}: two have the id {number} as {kind}")
        return int(number)  # type: ignore[arg-type]

    def _row(self, item: dict[str, Any], rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
        image = item.get("image_id")
        if not _is_whole(image) or image not in rows:
            raise self._error("annotation", item["id"], "image_id", image, "no image has that id")
        return rows[image]

    def _label(self, item: dict[str, Any], labels: dict[int, int]) -> int:
        category = item.get("category_id")
        if not _is_whole(category) or category not in labels:
            raise self._error("annotation", item["id"], "category_id", category, "no category has that id")
        return labels[category]

    def _check_flags(self, item: dict[str, Any]) -> None:
        """Check what pycocotools takes as it is: a text "0" would be true."""
        for name in ("iscrowd", "ignore"):
            if (value := item.get(name, 0)) not in (0, 1):
                raise self._error("annotation", item["id"], name, value, "needed is 0 or 1")
        if not _is_number(area := item.get("area", 0)):
            raise self._error("annotation", item["id"], "area", area, "needed is a number")

    def _box(self, item: dict[str, Any]) -> list[float]:
        box = item.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise self._error("annotation", item["id"], "bbox", box, "needed is [x, y, width, height]")
        return box

    def _segmentation(self, item: dict[str, Any], row: dict[str, Any]) -> Any:
        """Polygons with three corners or more, or a run-length encoding; nothing where no pixel is left."""
        given = item.get("segmentation")
        if isinstance(given, list):
            if not all(isinstance(part, list) and all(map(_is_number, part)) for part in given):
                raise self._error("annotation", item["id"], "segmentation", given)
            return [part for part in given if len(part) >= 6 and len(part) % 2 == 0]
        if isinstance(given, dict) and given.get("size") == [row["height"], row["width"]]:
            counts = given.get("counts")
            if isinstance(counts, str) or _is_run_lengths(counts, row["height"] * row["width"]):
                return given
        reason = "needed are polygons, or run lengths of the image's size, to train masks"
        raise self._error("annotation", item["id"], "segmentation", given, reason)

    def _error(self, kind: str, number: int, field: str, value: object, reason: str = "") -> DataError:
        text = repr(value)
        shown = text if len(text) <= 60 else text[:57] + "..."
        return DataError(
            f"{self.source}: {kind} {number}: {field} is {shown}" + (f": {reason}" if reason else "")
        )


def _check_files(folder: Path, names: list[str]) -> None:
    """Check that all images are there; one listing a folder, since a request for each file is slow on NFS."""
    by_folder = defaultdict(set)
    for name in names:
        path = folder / name
        by_folder[path.parent].add(path.name)
    missing = sorted(
        str(parent / name) for parent, wanted in by_folder.items() for name in wanted - set(_listed(parent))
    )
    if missing:
        raise DataError(f"{len(missing)} of {len(names)} images are missing, the first is {missing[0]!r}")


def _listed(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return


def _clipped(box: list[float], row: dict[str, Any]) -> list[float]:
    """[x, y, width, height] as [x1, y1, x2, y2] within the image."""
    x, y, width, height = box
    sides = zip((x, y, x + width, y + height), (row["width"], row["height"]) * 2, strict=True)
    return [min(max(float(side), 0.0), float(limit)) for side, limit in sides]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_run_lengths(value: object, pixels: int) -> bool:
    return (
        isinstance(value, list) and all(_is_whole(run) and run >= 0 for run in value) and sum(value) == pixels
    )
