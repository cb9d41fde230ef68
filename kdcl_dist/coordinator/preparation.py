"""How the coordinator's process is set up: as any process of a run, and with the solver of `linear`."""

from __future__ import annotations

import threading

from kdcl_dist.distillation.solving import prepare_solver, set_threads
from kdcl_dist.run.process import prepare_process
from kdcl_dist.run.run import Run

__all__ = ["prepare_coordinator"]


def prepare_coordinator(run: Run) -> None:
    """Set the process up, and begin to compile the solver, for which `Aggregator.load_method` waits.

    The first start on a machine compiles for seconds, in which the students start as well. The analysis of
    any method needs the solver.
    """
    prepare_process(run, threads=1)
    set_threads(run.recipe.distillation.threads)
    threading.Thread(target=prepare_solver, name="solver-preparation", daemon=True).start()
