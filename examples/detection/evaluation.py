"""Average precision as COCO defines it: detections in COCO's format, evaluated by pycocotools.

Shapes: H W image, N detections of an image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.detection.loading import Sample

__all__ = ["average_precision", "detect", "to_coco"]

#: The first of pycocotools' twelve figures, as COCO's page names them.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
KINDS = {"bbox": "bbox", "segm": "segmentation"}
#: A pixel belongs to a mask where its probability is at least this, as in torchvision's own evaluation.
MASK_THRESHOLD = 0.5

Detection = dict[str, Any]


@torch.no_grad()
def detect(model: nn.Module, samples: Sequence[Sample], device: torch.device) -> list[dict[str, Tensor]]:
    """What a detector in evaluation mode finds in each image: boxes (N, 4), labels, scores and masks."""
    images = [sample.image.to(device).float() / 255 for sample in samples]
    found: list[dict[str, Tensor]] = model(images)
    return found


def to_coco(output: dict[str, Tensor], image_id: int, categories: Sequence[int]) -> Iterator[Detection]:
    """The detections of one image in COCO's format of results.

    Args:
        output: of `detect`, for this image.
        image_id: COCO's.
        categories: COCO's ids of the labels 1, 2, ...

    Yields:
        image_id, category_id, score, bbox as [x, y, width, height], and the mask as segmentation.
    """
    boxes, labels, scores = (output[name].cpu() for name in ("boxes", "labels", "scores"))
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    masks = _encoded(output["masks"]) if "masks" in output else [None] * len(boxes)
    for box, label, score, mask in zip(boxes.tolist(), labels.tolist(), scores.tolist(), masks, strict=True):
        found = {"image_id": image_id, "category_id": categories[label - 1], "score": score, "bbox": box}
        yield found if mask is None else found | {"segmentation": mask}


def average_precision(
    truth: dict[str, Any], detections: Sequence[Detection], *, masks: bool
) -> dict[str, dict[str, float]]:
    """COCO's figures of the detections of a whole split.

    Args:
        truth: the split's file of annotations, as it is.
        detections: as `to_coco` gives them.
        masks: evaluate masks besides boxes.

    Returns:
        {"bbox": {"AP": ..., "AP50": ..., ...}}, and the same of "segm"; percent. -1 where there is nothing
        to find, such as small objects.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # prints the figures that are returned
        judged, coco = {}, _index(truth)
        for kind in ("bbox", "segm") if masks else ("bbox",):
            evaluation = COCOeval(coco, _results(coco, detections, KINDS[kind]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            judged[kind] = {
                name: float(value) if value < 0 else 100 * float(value)
                for name, value in zip(NAMES, evaluation.stats, strict=False)
            }
    return judged


def _index(content: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    # COCOeval writes into the annotations, and needs fields that other files often leave out. It takes an id
    # of 0 for no match, so ids are counted from 1.
    annotations = [
        {"iscrowd": 0} | item | {"id": number} for number, item in enumerate(content["annotations"], 1)
    ]
    for item in annotations:
        item.setdefault("area", item["bbox"][2] * item["bbox"][3])
    coco.dataset = content | {"annotations": annotations}
    coco.createIndex()
    return coco


def _results(coco: Any, detections: Sequence[Detection], field: str) -> Any:
    """Detections for pycocotools, with the evaluated field only: that field decides on the area."""
    if not detections:  # loadRes would read the fields of the first
        return _index(coco.dataset | {"annotations": []})
    names = ("image_id", "category_id", "score", field)
    return coco.loadRes([{name: item[name] for name in names} for item in detections])


def _encoded(masks_N1HW: Tensor) -> list[dict[str, Any]]:
    """Masks as run lengths that JSON can hold."""
    from pycocotools import mask as coco_mask

    encoded = []
    for mask_HW in (masks_N1HW[:, 0] >= MASK_THRESHOLD).byte().cpu().numpy():
        runs = coco_mask.encode(np.asfortranarray(mask_HW))
        encoded.append({"size": runs["size"], "counts": runs["counts"].decode("ascii")})
    return encoded
