"""A picture of detections beside the annotations.

Shapes: C channels, H W image, N boxes of an image.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid

from examples.detection.coco import Split
from examples.detection.evaluation import MASK_THRESHOLD, detect
from examples.detection.loading import Images
from examples.detection.recipe import DetectionRecipe
from kdcl_dist.utils.seeding import Purpose, permutation

__all__ = ["draw_predictions"]

#: Height of each image in the picture, in pixels.
HEIGHT = 320
WHITE = 255
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def draw_predictions(
    model: nn.Module,
    split: Split,
    recipe: DetectionRecipe,
    device: torch.device,
    *,
    count: int = 4,
    score: float = 0.5,
) -> bytes:
    """A PNG with a row for each of some images: the annotations, and the detections above a score.

    Args:
        model: the detector, on `device`.
        split: the images; the recipe's seed chooses those that are drawn.
        recipe: the run.
        device: device of the detector.
        count: images at most.
        score: detections below are left out.

    Raises:
        DataError: an image cannot be read.
    """
    model.eval()
    known = np.flatnonzero(split.annotated)
    names, images, tiles = list(split.categories.values()), Images(split, recipe), []
    for index in known[permutation(len(known), recipe.seed, Purpose.VIEW)][:count]:
        sample = images[index]
        found = detect(model, [sample], device)[0]
        sure = found["scores"] >= score
        kept = {name: value[sure].cpu() for name, value in found.items()}
        tiles += [_drawn(sample.image, part, names) for part in (sample.target, kept)]
    width = max(tile_CHW.shape[2] for tile_CHW in tiles)
    padded = [F.pad(tile_CHW, (0, width - tile_CHW.shape[2]), value=WHITE) for tile_CHW in tiles]
    picture_CHW = make_grid(padded, nrow=2, padding=4, pad_value=WHITE)
    Image.fromarray(picture_CHW.permute(1, 2, 0).numpy()).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def _drawn(image_CHW: Tensor, found: dict[str, Tensor], names: list[str]) -> Tensor:
    """The image at the picture's height, with masks, boxes and their names."""
    scale = HEIGHT / image_CHW.shape[1]
    size = [HEIGHT, max(1, round(image_CHW.shape[2] * scale))]
    image_CHW = resize(image_CHW, size)
    labels = found["labels"].tolist()
    if not labels:
        return image_CHW
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    if "masks" in found:
        masks_NHW = resize(found["masks"].reshape(len(labels), *found["masks"].shape[-2:]).float(), size)
        for mask_HW, colour in zip(masks_NHW >= MASK_THRESHOLD, colours, strict=True):
            image_CHW = draw_segmentation_masks(image_CHW, mask_HW, alpha=0.45, colors=colour)
    texts = [names[label - 1] for label in labels]
    if "scores" in found:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, found["scores"].tolist(), strict=True)]
    boxes_N4 = found["boxes"] * scale
    drawn_CHW: Tensor = draw_bounding_boxes(image_CHW, boxes_N4, labels=texts, colors=colours, width=2)
    return drawn_CHW
