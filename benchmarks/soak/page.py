"""The page of a soak: what was injected, how soon it was over, and whether anything was lost."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, median

from benchmarks.conditions import conditions
from benchmarks.soak.faults import COORDINATOR
from benchmarks.soak.timeline import Outcome

__all__ = ["page"]


def page(
    launcher: str, outcomes: list[Outcome], drawn: int, seed: int, differ: list[str], left: list[str]
) -> str:
    """The page in Markdown.

    Args:
        launcher: "local" or "ray".
        outcomes: of the faults that happened.
        drawn: number of faults that were drawn; one whose process was being replaced is not met.
        seed: of the draw.
        differ: students whose weights are not those of the undisturbed run.
        left: what the run left behind.
    """
    lost = sum(outcome.lost for outcome in outcomes)
    how = f"{drawn} faults drawn, of which {len(outcomes)} were met; {lost} steps repeated"
    verdict = (
        f"The weights of {', '.join(differ)} differ." if differ else "All weights are equal, bit for bit."
    )
    remains = "; ".join(left) if left else "No process, shared memory or half-written file was left."
    lines = [
        f"# A soak of {len(outcomes)} faults under `rollback`, launcher `{launcher}`",
        "",
        *conditions(f"soak FOLDER --faults {drawn} --seed {seed} --launcher {launcher}", how),
        "",
        f"{verdict} {remains}",
        "",
        "| process | fault | count | found, median s | longest | goes on, median s | longest | lost steps |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = defaultdict[tuple[str, str], list[Outcome]](list)
    for outcome in outcomes:
        groups[_role(outcome), outcome.fault.how].append(outcome)
    lines += [_row(role, how, groups[role, how]) for role, how in sorted(groups)]
    return "\n".join(lines) + "\n"


def _role(outcome: Outcome) -> str:
    if outcome.fault.how == "launcher killed":
        return "launcher"
    if outcome.fault.who == COORDINATOR:
        return COORDINATOR
    return "replica" if "/" in outcome.fault.who else "student"


def _row(role: str, how: str, outcomes: list[Outcome]) -> str:
    found = _times([outcome.found_s for outcome in outcomes])
    on = _times([outcome.on_s for outcome in outcomes])
    return f"| {role} | {how} | {len(outcomes)} | {found} | {on} | {fmean(o.lost for o in outcomes):.1f} |"


def _times(seconds: list[float | None]) -> str:
    """Median and maximum of what is known, as two cells."""
    known = [each for each in seconds if each is not None]
    return f"{median(known):.2f} | {max(known):.2f}" if known else "| "
