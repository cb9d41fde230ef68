"""What the server of the tests' processes does besides, instead of each process of each run."""

import tensorboardX.summary  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from compiled import compile_solver

compile_solver()
