"""A training loop without this package, one network for each rank: the baseline of `startup`."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks import first_step
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.utils.data_specs import DEMO

__all__ = ["DATA", "MODELS", "train"]

DATA = str(DEMO / "digits-train.arrow")
MODELS = ("cnn_medium", "cnn_small")
BATCH = 64


def train(rank: int, steps: int = 20) -> None:
    """Train this rank's network on the digits; the ranks exchange their logits at each step."""
    torch.set_num_threads(1)
    data = ArrowDataset(DATA)
    images_NCHW = torch.stack([data.image(number) for number in range(len(data))]).float() / 255
    labels_N = torch.from_numpy(data.labels)
    network = getattr(first_step, MODELS[rank])(num_classes=len(data.classes), in_channels=data.channels)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    order_N = torch.randperm(len(data))
    for ids_B in torch.split(order_N, BATCH)[:steps]:
        logits_BC = network(images_NCHW[ids_B])
        everyone = [torch.empty_like(logits_BC) for _ in MODELS]
        dist.all_gather(everyone, logits_BC.detach())
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(logits_BC, labels_N[ids_B]))
        optimizer.step()
