"""The tracker `wandb`: a run of Weights & Biases, online or offline."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from kdcl_dist.config.tracking import Wandb
from kdcl_dist.tracking.tracker import Point, Status, TrackedRun
from kdcl_dist.utils.extras import load_extra

__all__ = ["WandbRun"]

#: Settings where the package knows them. It shall not read the command line, which may hold a storage's
#: credentials, nor take the process's output or measure the host.
SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbRun:
    """Writes points as `split/name/student` at the step that they have."""

    run: Any

    def __init__(self, spec: Wandb) -> None:
        self.spec = spec

    def start(self, run: TrackedRun) -> str:
        """Begin a run, or go on with the run of an id."""
        wandb = load_extra("wandb")
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{name: value for name, value in SETTINGS.items() if name in known})
        wandb.setup(settings)  # silent from here on
        self.run = wandb.init(
            project=self.spec.project or run.group,
            entity=self.spec.entity,
            name=run.name,
            id=run.id or uuid.uuid4().hex[:12],
            resume="allow",
            config=dict(run.hparams),
            dir=os.environ.get("WANDB_DIR") or run.folder.local,
            settings=settings,
        )
        Path(self.run.dir, "recipe.yaml").write_text(run.recipe)  # what lies there becomes a file of the run
        return str(self.run.id)

    def log(self, points: Sequence[Point]) -> None:
        """Add the points step by step; the server takes no step twice."""
        step_of = attrgetter("step")
        for step, found in groupby(sorted(points, key=step_of), key=step_of):
            self.run.log({f"{p.split}/{p.name}/{p.student}": p.value for p in found}, step=step)

    def finish(self, status: Status) -> None:
        """End the run; a failed one has the exit code 1."""
        self.run.finish(exit_code=int(status == "failed"))
