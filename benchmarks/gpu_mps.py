"""NVIDIA's MPS for the length of a block: processes that share a GPU then compute at the same time."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

__all__ = ["Mps", "MpsError"]

CONTROL = "nvidia-cuda-mps-control"
#: Seconds until the daemon listens, and until it has ended.
START_S, END_S = 10.0, 20.0


class MpsError(Exception):
    """MPS is not installed here, or does not start."""


class Mps:
    """A context manager that starts a control daemon with folders of its own, and ends that one alone.

    It gives the environment variables of the processes that shall use it.

    Raises:
        MpsError: on entry, if MPS is not installed or does not start.
    """

    def __enter__(self) -> dict[str, str]:
        if shutil.which(CONTROL) is None:
            raise MpsError(f"{CONTROL} is not installed here")
        self.folder = tempfile.mkdtemp(prefix="mps-")
        self.environment = {
            "CUDA_MPS_PIPE_DIRECTORY": f"{self.folder}/pipe",
            "CUDA_MPS_LOG_DIRECTORY": f"{self.folder}/log",
        }
        for name in self.environment.values():
            Path(name).mkdir()
        # In the foreground: a daemon that leaves this process's sight could not be ended for certain.
        self.process = subprocess.Popen(
            [CONTROL, "-f"],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_S
        while not Path(self.folder, "pipe", "control").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = Path(self.folder, "log", "control.log")
                said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
                self.__exit__(None, None, None)
                raise MpsError(" ".join([f"{CONTROL} does not start", *said]))
            time.sleep(0.1)
        return self.environment

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                environment = os.environ | self.environment
                subprocess.run([CONTROL], input="quit -t 5\n", env=environment, text=True, timeout=END_S)
                self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
