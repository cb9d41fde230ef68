"""The report of a dry run, on the terminal: memory, times and sizes."""

from __future__ import annotations

from datetime import timedelta

from rich.table import Table

from kdcl_dist.trial import Trial

__all__ = ["memory_table", "trial_lines"]


def memory_table(trial: Trial) -> Table:
    """The peaks of memory: a row for each process."""
    table = Table(title="peak memory", title_justify="left")
    for name in ("process", "host", "device", "resident", "on the GPU"):
        table.add_column(name, justify="right" if name in ("resident", "on the GPU") else "left")
    for name, found in trial.processes.items():
        gpu = "" if found.gpu_memory is None else _bytes(found.gpu_memory)
        table.add_row(name, found.host, found.device, _bytes(found.memory), gpu)
    return table


def trial_lines(trial: Trial) -> list[str]:
    """A line for each other figure."""
    first, *others = trial.steps_s
    if others:
        measured = f"median of {len(others)} after the first, which took {first:.3g} s with its warm-up"
        step = f"a step: {trial.step_s:.3g} s ({measured})"
    else:
        step = f"a step: at most {first:.3g} s (the first, with its warm-up; --dry-run 5 tells more)"
    sizes = f"{trial.checkpoints} checkpoints and the metrics of {trial.epochs} epochs"
    return [
        step,
        f"an epoch: about {_time(trial.epoch_s)} for {trial.steps_per_epoch:,} such steps, "
        "without tests and checkpoints",
        f"a checkpoint: {_bytes(trial.checkpoint_bytes)}",
        f"the run: at most about {_bytes(trial.run_bytes)} ({sizes}), and its logs",
        *filter(None, [trial.data_wait]),
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 10e6 else f"{count / 1e6:,.2g} MB"
