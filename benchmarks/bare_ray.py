"""A minimal script for Ray Train: the baseline of `startup` on Ray. It runs in the repository's root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks.bare_training import MODELS, train


def _train(config: dict[str, str]) -> None:
    os.chdir(config["root"])
    train(ray.train.get_context().get_world_rank())


if __name__ == "__main__":
    TorchTrainer(
        _train,
        train_loop_config={"root": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=len(MODELS)),
        run_config=RunConfig(storage_path=sys.argv[1]),
    ).fit()
