"""The page of a soak: what was injected, how soon it was over, and whether anything was lost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from benchmarks.conditions import conditions
from benchmarks.soak.timeline import Outcome
from kdcl_dist.utils.intervals import Interval, mean_interval

__all__ = ["accuracy_table", "page", "verdict"]


def page(title: str, command: str, drawn: int, outcomes: Sequence[Outcome], verdicts: Sequence[str]) -> str:
    """The page in Markdown.

    Args:
        title: after "A soak of N faults".
        command: the module in `benchmarks` and its arguments.
        drawn: number of faults that were drawn; one whose process was being replaced is not met.
        outcomes: of the faults that happened.
        verdicts: lines on what was lost.
    """
    lost = sum(outcome.lost for outcome in outcomes)
    how = f"{drawn} faults drawn, of which {len(outcomes)} were met; {lost} steps repeated"
    lines = [
        f"# A soak of {len(outcomes)} faults {title}",
        "",
        *conditions(command, how),
        "",
        *verdicts,
        "",
        "| process | fault | count | found, median s | longest | goes on, median s | longest | lost steps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = defaultdict[tuple[str, str], list[Outcome]](list)
    for outcome in outcomes:
        groups[outcome.fault.role, outcome.fault.how].append(outcome)
    lines += [_row(role, how, groups[role, how]) for role, how in sorted(groups)]
    return "\n".join(lines) + "\n"


def verdict(differ: Sequence[str], left: Sequence[str]) -> str:
    """One line: the students with other weights than the undisturbed run's, and what was left behind."""
    weights = (
        f"The weights of {', '.join(differ)} differ." if differ else "All weights are equal, bit for bit."
    )
    return f"{weights} {remains(left)}"


def remains(left: Sequence[str]) -> str:
    """What a run left behind, as a sentence."""
    return "; ".join(left) if left else "No process, shared memory or half-written file was left."


def accuracy_table(rows: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[str]:
    """Accuracies in percent of the undisturbed and of the disturbed runs, in the order of their seeds."""
    lines = [
        "| test top-1 %, means | undisturbed | disturbed | difference (95% interval, paired by seed) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, (quiet, stormy) in rows.items():
        change = change_of(quiet, stormy)
        limits = "" if math.isnan(change.low) else f" ({change.low:+.2f} to {change.high:+.2f})"
        lines.append(f"| {name} | {fmean(quiet):.2f} | {fmean(stormy):.2f} | {change.value:+.2f}{limits} |")
    return lines


def change_of(quiet: Sequence[float], stormy: Sequence[float]) -> Interval:
    """The mean change by the faults, with its 95% interval."""
    return mean_interval([after - before for before, after in zip(quiet, stormy, strict=True)])


def _row(role: str, how: str, outcomes: list[Outcome]) -> str:
    found = _times([outcome.found_s for outcome in outcomes])
    on = _times([outcome.on_s for outcome in outcomes])
    return f"| {role} | {how} | {len(outcomes)} | {found} | {on} | {fmean(o.lost for o in outcomes):.1f} |"


def _times(seconds: list[float | None]) -> str:
    """Median and maximum of what is known, as two cells."""
    known = [each for each in seconds if each is not None]
    return f"{median(known):.2f} | {max(known):.2f}" if known else "| "
