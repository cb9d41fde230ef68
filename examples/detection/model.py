"""Faster R-CNN and Mask R-CNN with a feature pyramid on a ResNet-18, nothing frozen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from examples.detection.backbone import Backbone
from examples.detection.recipe import DetectionRecipe
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["build_detector"]

ALL_LAYERS = 5
DETECTORS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


def build_detector(recipe: DetectionRecipe, classes: int, backbone: Backbone) -> nn.Module:
    """A detector; the recipe's seed gives the weights that the backbone lacks.

    Args:
        recipe: kind of detector, and size of its images.
        classes: number of categories, without the background.
        backbone: weights, and the mean and deviation that the detector normalises images with.

    Returns:
        A module of torchvision: takes a list of images (3, H, W) in [0, 1], in training with their
        targets, and gives losses, or in evaluation mode boxes, labels, scores and masks.
    """
    torch.manual_seed(derive(recipe.seed, Purpose.INITIAL_WEIGHTS))
    pyramid = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=ALL_LAYERS
    )
    if backbone.state is not None:
        _load(pyramid.body, backbone.state)
    detector: nn.Module = DETECTORS[recipe.detector](
        pyramid,
        num_classes=classes + 1,
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        box_batch_size_per_image=recipe.proposals,
    )
    return detector


def _load(body: nn.Module, state: Mapping[str, Tensor]) -> None:
    body.load_state_dict(state)  # strictly: `read_backbone` has checked it
