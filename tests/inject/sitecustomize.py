"""Faults on order, in every process that is started with this folder on PYTHONPATH.

KDCL_TEST_FAULTS names a file of lines of JSON: {"who", "phase", "step", "how", "once"}. A member of a cast
that enters that phase of that step meets the fault, unless the file `once` exists, which it creates.
"""

import json
import os
import signal
import time
from pathlib import Path


def _meet(how: str) -> None:
    if how == "exception":
        raise ArithmeticError("a fault on order")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "block":
        time.sleep(600)


def _install(path: Path) -> None:
    from kdcl_dist.board import Board, Pulse

    init, enter = Board.__init__, Pulse.enter

    def named(self, *arguments, **more):
        init(self, *arguments, **more)
        self.pulse.who = self.name

    def entered(self, phase, step=None):
        enter(self, phase, step)
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            fault = json.loads(line)
            place = {"who": getattr(self, "who", None), "phase": phase, "step": self.step}
            if place.items() <= fault.items() and not Path(fault["once"]).exists():
                Path(fault["once"]).touch()
                _meet(fault["how"])

    Board.__init__, Pulse.enter = named, entered


if "KDCL_TEST_FAULTS" in os.environ:
    _install(Path(os.environ["KDCL_TEST_FAULTS"]))
