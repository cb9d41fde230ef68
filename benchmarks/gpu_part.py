"""The process of one part of `gpu`: calls its generator, and keeps each row at once.

python -m benchmarks.gpu_part MODULE:FUNCTION FILE DEVICE [quick]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from kdcl_dist.utils.import_strings import load_object

__all__: list[str] = []


def main() -> None:
    """Append the rows of the part to the file, one line of JSON each."""
    function, path, device, *quick = sys.argv[1:]
    if device == "cpu":
        torch.set_num_threads(1)
    with Path(path).open("a") as file:
        for row in load_object(function)(torch.device(device), bool(quick)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
