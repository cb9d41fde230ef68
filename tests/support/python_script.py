"""A script of a user without a guard: networks and data are its own, and a student dies once.

Arguments: the launcher, the folder of runs, the name of the run.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdcl_dist import Student, train

LAUNCHER, RUNS, NAME = sys.argv[1:]
with Path(RUNS, "starts").open("a") as file:
    file.write("once\n")


class Net(nn.Module):
    """One hidden layer."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body, self.head = nn.Linear(16, width), nn.Linear(width, num_classes)

    def forward(self, x):
        """Logits."""
        return self.head(torch.relu(self.body(x.flatten(1))))


class Dies(Net):
    """Its process is killed in its fourth step, once."""

    steps = 0

    def forward(self, x):
        """Logits."""
        self.steps += self.training
        if self.steps == 5 and not Path(f"{RUNS}/died").exists():  # the rehearsal has a step of its own
            Path(RUNS, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Images:
    """Three classes of 1 x 4 x 4 pixels."""

    classes, channels, mean, std = ("x", "y", "z"), 1, (0.5,), (0.25,)

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = np.arange(count) % 3
        images = torch.eye(3)[torch.arange(count) % 3].repeat_interleave(5, 1)
        noise = torch.randn(count, 15, generator=generator) / 10
        self.images = (images + noise).clamp(0, 1)

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        """One image."""
        return torch.cat([self.images[index], torch.zeros(1)]).view(1, 4, 4)


torch.manual_seed(0)
given = Net(3, 4)
run = train(
    students={"small": Dies, "large": Student(lambda num_classes: Net(num_classes, 32)), "given": given},
    data=(Images(96, 1), lambda: Images(30, 2)),
    launcher=LAUNCHER,
    storage=RUNS,
    name=NAME,
    epochs=3,
    batch_size=16,
    optimizer={"lr": 0.01},
    schedule="constant",
    limits={"startup_s": 200},
)
shares = run.predict(torch.stack([Images(3, 3).image(index) for index in range(3)]))
answer = {"path": run.path, "state": run.state, "results": run.results, "rows": len(run.metrics())}
answer |= {"predicted": shares.argmax(1).tolist(), "evaluated": run.evaluate(Images(30, 2)).results}
answer |= {"weights": run.student("small").head.bias.tolist(), "recipe": str(run.recipe)}
Path(RUNS, f"{NAME}.json").write_text(json.dumps(answer))
