"""The tables of the page: accuracies with gains, the large network's gains by its partner, noise."""

from __future__ import annotations

from collections.abc import Sequence

from examples.fashion.results import (
    ENOUGH,
    METHODS,
    PARTNERS,
    BySeed,
    Results,
    compared,
    grouped,
    interval,
    markdown,
    marked,
    minus,
    shown,
)
from examples.fashion.run import HERE, NOISY, STAGES
from kdcl_dist.compare.experiment import Table, load_table

__all__ = [
    "TABLES",
    "arms_table",
    "gap_table",
    "noise_table",
    "planned",
    "progress",
    "short_table",
    "who_gains",
]

STUDENTS = ("large", "twin", "medium", "small", "nano", "one", "two", "three", "four", "five", "ensemble")
CAPTION = (
    "Test top-1 in %, mean over seeds with the 95% interval (Student's t); in brackets the gain over "
    "`{base}`, paired by seed, in bold if it differs from 0 at 5% over the {count} gains of five "
    "seeds or more (t test, Holm). `kdcl compare examples/fashion/{name}.yaml --launcher local`"
)
TABLES = tuple(dict.fromkeys(name for name, _ in STAGES if name != "f"))


def planned(name: str) -> Table:
    """A table of this folder with the seeds that `run.py` trains."""
    table = load_table(HERE / f"{name}.yaml")
    return table.model_copy(update={"seeds": table.seeds[: max(n for stage, n in STAGES if stage == name)]})


def arms_table(name: str, results: Results) -> str:
    """A table of `kdcl compare` from the CSV, with the number of its runs that are done."""
    table = planned(name)
    results, arms, seeds = results.within(table.seeds), [arm.name for arm in table.arms], len(table.seeds)
    students = [student for student in STUDENTS if any(results.of(arm, student) for arm in arms)]
    gains = _gains(table, results)
    texts = dict(zip(gains, marked(list(gains.values())), strict=True))
    rows, done = [], 0
    for arm in arms:
        count = max((len(results.of(arm, student)) for student in students), default=0)
        done += count
        cells = [shown(interval(results.of(arm, student))) for student in students]
        for place, student in enumerate(students):
            cells[place] += f" ({texts[arm, student]})" if (arm, student) in texts else ""
        rows.append([f"`{arm}`", f"{count} of {seeds}", *cells])
    every = len(arms) * seeds
    state = "" if done == every else f"**Incomplete: {done} of {every} runs are done.** "
    caption = CAPTION.format(
        base=table.baseline, count=sum(len(gain) >= ENOUGH for gain in gains.values()), name=name
    )
    return f"{state}{caption}\n\n" + markdown(["arm", "seeds", *students], rows)


def short_table(heads: Sequence[str], results: Results) -> str:
    """Table A for a README: the means of its two networks, in brackets their gains."""
    rows = [
        [
            f"`{arm}`",
            f"{len(results.of(arm, 'large'))}",
            *(_short(arm, student, results) for student in ("large", "small")),
        ]
        for arm in ("none", "none_held_out", "general", "linear", "min_logit", "naive", "mean", "dml")
    ]
    return markdown([*heads, "large", "small"], rows)


def _short(arm: str, student: str, results: Results) -> str:
    value, gain = interval(results.of(arm, student)), interval(results.gain(arm, student, "none"))
    rise = f" ({shown(gain, '+')})" if gain and arm != "none" else ""
    return f"{value.value:.2f}{rise}" if value else ""


def _gains(table: Table, results: Results) -> dict[tuple[str, str], BySeed]:
    """The gains over the baseline that there are, by arm and student."""
    found = {
        (arm.name, student): results.gain(arm.name, student, str(table.baseline))
        for arm in table.arms
        for student in STUDENTS
    }
    return {at: gain for at, gain in found.items() if gain}


def who_gains(name: str, results: Results) -> str:
    """For each student of a table the arms that lift it and that cost it points, by the gains' intervals."""
    table = planned(name)
    gains = _gains(table, results.within(table.seeds))
    told = {
        student: grouped({f"`{arm}`": interval(gain) for (arm, who), gain in gains.items() if who == student})
        for student in STUDENTS
    }
    return "\n".join(f"- `{student}` {text}." for student, text in told.items() if text)


def gap_table(results: Results) -> str:
    """The numbers of the figure of gaps, and how much the gain falls from a twin to the smallest partner."""
    heads, rows, found = list(PARTNERS.values()), [], []
    for method, base in [*((method, "none") for method in METHODS), ("general", "none_held_out")]:
        gains = {end: results.gain(method + end, "large", base) for end in PARTNERS}
        rows.append(f"`{method}`" + (f" over `{base}`" if base != "none" else ""))
        found += [*gains.values(), minus(gains["_nano"], gains["_twin"])]
    texts = [f"{text} ({len(gain)})" if gain else "" for text, gain in zip(marked(found), found, strict=True)]
    width = len(heads) + 1
    lines = [[row, *texts[place * width : (place + 1) * width]] for place, row in enumerate(rows)]
    return markdown(["gain of the large (seeds)", *heads, "nano minus twin"], lines)


def noise_table(results: Results) -> str:
    """Table F: the loss of the networks of table A's pair without noise, and under noise."""
    levels = sorted({level for _, _, level in results.noise})
    rows = []
    for student in ("large", "small"):
        base = _losses("none", student, levels, results)
        for arm in NOISY:
            found = _losses(arm, student, levels, results)
            if any(found):
                cells = [compared(*pair, digits=3) for pair in zip(found, base, strict=True)]
                rows.append([f"`{arm}`, {student}", f"{len(found[0])} of 5", *cells])
    if not rows:
        return "**Not measured yet.**"
    return markdown(["arm, student", "seeds", "no noise", *(f"{level:g}" for level in levels)], rows)


def _losses(arm: str, student: str, levels: Sequence[float], results: Results) -> list[BySeed]:
    """A network's test loss without noise and at each level, of the seeds that were tested under noise."""
    noisy = [results.noise.get((arm, student, level), {}) for level in levels]
    clean = results.loss.get((arm, student), {})
    return [{seed: clean[seed] for seed in noisy[0]} if noisy else {}, *noisy]


def progress(results: Results) -> str:
    """How much of the experiment is done."""
    tables = [planned(name) for name in TABLES]
    wanted = {(arm.name, seed) for table in tables for arm in table.arms for seed in table.seeds}
    done = wanted & {(arm, seed) for (arm, _), found in results.top1.items() for seed in found}
    if done == wanted:
        return f"All {len(wanted)} runs are done."
    return (
        f"**Incomplete: {len(done)} of {len(wanted)} planned runs are done.** Each table says what it lacks."
    )
