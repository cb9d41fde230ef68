"""All measurements for docs/gpu.md on a machine with one GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu --out docs/results/gpu.md

Each part is a table that a process of its own measures, row by row, with a limit of its time. A part that
fails or takes too long keeps the rows that it has, and the next part begins. After each part the page is
written, with all figures beside it as JSON. A machine without a GPU ends the command with exit code 2;
`--device cpu --quick` runs the same lines there on small networks: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_mps import Mps, MpsError
from benchmarks.gpu_page import page
from kdcl_dist.utils.devices import usable_gpus

__all__ = ["PARTS", "main"]


class Part(NamedTuple):
    """A table of the page.

    Attributes:
        rows: the module and generator function that gives its rows.
        limit_s: for all rows.
        mps: whether it runs under NVIDIA's MPS.
    """

    rows: str
    limit_s: float
    mps: bool = False


#: In the order in which they are measured: the first are worth most.
PARTS: Mapping[str, Part] = {
    "equality": Part("benchmarks.gpu_equality:rows", 90),
    "own device": Part("benchmarks.gpu_cohort:own_device", 150),
    "shared device": Part("benchmarks.gpu_cohort:shared_device", 100),
    "shared device, MPS": Part("benchmarks.gpu_cohort:shared_device", 100, mps=True),
    "copies": Part("benchmarks.gpu_step:copies", 40),
    "settings": Part("benchmarks.gpu_step:plain_settings", 90),
    "compile": Part("benchmarks.gpu_step:compiled_settings", 150),
    "collectives": Part("benchmarks.gpu_step:collectives", 60),
}
#: Seconds below which no further part begins.
LEAST_S = 10.0


def measure(name: str, limit_s: float, device: str, quick: bool) -> dict[str, Any]:
    """A part's rows, each a dictionary, its seconds, and why there are no more, if it broke off."""
    part, began = PARTS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        try:
            with Mps() if part.mps and device == "cuda" else contextlib.nullcontext({}) as environment:
                command = [sys.executable, "-m", "benchmarks.gpu_part", part.rows, str(file), device]
                failed = _run([*command, *(["quick"] if quick else [])], folder, environment, limit_s)
        except MpsError as error:
            failed = str(error)
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [json.loads(line) for line in lines]
    return {"rows": rows, "seconds": time.monotonic() - began, "failed": failed}


def _run(command: list[str], folder: str, more: dict[str, str], limit_s: float) -> str | None:
    """Run a part's process with all that it starts; why it failed."""
    environment = os.environ | {"TMPDIR": folder} | more
    with Path(folder, "output").open("w+b") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"took longer than its {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # the session is this process's and its children's
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        last = output.read().decode(errors="replace").strip().splitlines()[-12:]
    return None if code == 0 else "\n".join([f"exit code {code}", *last])


def conditions(device: str, quick: bool) -> dict[str, Any]:
    """The machine and the versions."""
    found: dict[str, Any] = {"device": "CPU", "cores": os.cpu_count(), "torch": torch.__version__}
    if device == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"device": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "cudnn": cudnn}
    return found | {"load": round(os.getloadavg()[0], 1), "quick": quick, "began": time.strftime("%Y-%m-%d")}


def main() -> None:
    """Measure all parts; write the page and the JSON to --out after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--quick", action="store_true", help="small networks and few steps: a test of the lines"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole (default 8)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    parser.add_argument("--out", type=Path, help="the page; the JSON has its name and the ending .json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not usable_gpus():
        print("benchmarks.gpu: this machine has no GPU that PyTorch can use (--device cpu)", file=sys.stderr)
        raise SystemExit(2)
    deadline = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"conditions": conditions(arguments.device, arguments.quick), "parts": {}}
    for name in arguments.only or PARTS:
        limit_s = min(PARTS[name].limit_s * (10 if arguments.quick else 1), deadline - time.monotonic())
        if limit_s < LEAST_S:
            found["parts"][name] = {"rows": [], "seconds": 0.0, "failed": "no time was left"}
            continue
        found["parts"][name] = done = measure(name, limit_s, arguments.device, arguments.quick)
        text = page(found)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(text)
            arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        end = f": {done['failed']}" if done["failed"] else ""
        print(
            f"{name}: {len(done['rows'])} rows in {done['seconds']:.0f} s{end}", file=sys.stderr, flush=True
        )
    print(page(found))


if __name__ == "__main__":
    main()
