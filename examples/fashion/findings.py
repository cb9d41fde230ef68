"""What the gains say, in words that follow from their intervals, and the method that table H is made with."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.fashion.results import (
    FEW,
    METHODS,
    PARTNERS,
    BySeed,
    Results,
    direction,
    grouped,
    interval,
    minus,
    shown,
)

__all__ = ["best_method", "choice", "conflict_answer", "dml_answer", "gain", "measured", "told", "verdicts"]

#: The methods whose soft target is made with the label.
LABEL = ("naive", "linear", "min_logit")
#: What a method compares with that trains on other images than `none`.
BASES = {"general": "none_held_out"}
#: The methods of KDCL, and the seeds of table A that choose one of them for table H.
CHOICE = ("naive", "linear", "min_logit", "general")
CHOICE_SEEDS = range(5)


def told(values: BySeed) -> str:
    """A gain in words: whether its interval is clear of zero."""
    found = interval(values)
    if found is None:
        return "has no run yet"
    if len(values) < FEW:
        return f"has too few runs yet ({shown(found, '+')})"
    if not direction(found):
        return f"shows no clear difference ({shown(found, '+')})"
    size = found._replace(value=abs(found.value), low=abs(found.value) - found.half_width)
    return f"{'gains' if found.value > 0 else 'loses'} {shown(size)} points"


def gain(results: Results, student: str, arm: str, base: str = "none") -> str:
    """The gain of a student in words."""
    return told(results.gain(arm, student, base))


def measured(results: Results, student: str, arm: str, name: str) -> str:
    """A figure of docs/analysis.md, as a mean over the run."""
    look = ("+", 2) if name == "gradient_cosine" else ("", 3)
    return shown(interval(results.measured(arm, student, name)), *look) or "(no run yet)"


def verdicts(results: Results, student: str, label: str) -> str:
    """What the methods that use the label, or do not, do to a network of table A's pair.

    `general` stands beside a network that trains on as few images.
    """
    cases = {}
    for method in METHODS:
        if (method in LABEL) == (label == "label"):
            base = BASES.get(method, "none")
            name = f"`{method}` over `{base}`" if method in BASES else f"`{method}`"
            cases[name] = results.gain(method, student, base)
    found = {name: interval(own) for name, own in cases.items() if own}
    return grouped({f"{name} ({shown(own, '+')})": own for name, own in found.items()})


def conflict_answer(results: Results) -> str:
    """The methods that harm the large network of table A's pair, by whether its two gradients conflict."""
    harmful = [m for m in METHODS if direction(interval(results.gain(m, "large", BASES.get(m, "none")))) < 0]
    signs = {m: direction(interval(results.measured(m, "large", "gradient_cosine"))) for m in harmful}
    lines = []
    for sign, what in ((-1, "conflict"), (0, "neither conflict nor agree"), (1, "agree")):
        names = [f"`{method}`" for method in harmful if signs[method] == sign]
        lines += [f"- {what} with {', '.join(names)}"] if names else []
    return "\n".join(lines) or "- have no such method."


def dml_answer(results: Results) -> str:
    """Whether `dml` harms the large network and a growing gap does, by the rule of the protocol."""
    gains = {end: results.gain("dml" + end, "large", "none") for end in PARTNERS}
    enough = [interval(own) for own in gains.values() if len(own) >= FEW]
    harmed = [direction(found) for found in enough].count(-1)
    lines = [
        f"`dml` harms the large network beside {harmed} of the {len(enough)} partners with runs enough:",
        "",
    ]
    lines += [f"- beside {name} it {told(gains[end])}" for end, name in PARTNERS.items()]
    change = minus(gains["_nano"], gains["_twin"])
    if len(change) >= FEW:
        fall = interval(change)
        harm = "a growing gap does harm" if direction(fall) < 0 else "a growing gap is not shown to harm"
        lines.append(f"- from the twin to the smallest its gain changes by {shown(fall, '+')}: {harm}")
    return "\n".join(lines)


def best_method(results: Results) -> tuple[str, str]:
    """The method of KDCL that lifts `small` most in table A over the first five seeds, and what decided.

    Raises:
        ValueError: a run of these is missing.
    """
    gains = {arm: results.within(CHOICE_SEEDS).gain(arm, "small", "none") for arm in CHOICE}
    for arm, found in gains.items():
        if len(found) < len(CHOICE_SEEDS):
            raise ValueError(f"{arm}: {len(found)} of {len(CHOICE_SEEDS)} seeds are done")
    means = {arm: sum(found.values()) / len(found) for arm, found in gains.items()}
    best = max(means, key=means.__getitem__)
    return best, ", ".join(f"`{arm}` {shown(interval(found), '+')}" for arm, found in gains.items())


def choice(results: Results) -> str:
    """The same as a sentence."""
    try:
        return "The method is `{}`: the gains of `small` are {}.".format(*best_method(results))
    except ValueError as error:
        return f"**Not chosen yet** ({error})."


if __name__ == "__main__":
    print(*best_method(Results(Path(sys.argv[1]))), sep=": ")
