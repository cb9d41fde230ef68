"""How long the rest of a table takes, from the runs that have ended and those that train."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from kdcl_dist.compare.experiment import Job
from kdcl_dist.compare.runs import Outcome

__all__ = ["Forecast", "duration"]

#: Share of a run, since its start, below which its pace is not known: the first steps are slower.
LEAST_SHARE = 0.05


class Forecast:
    """The expected time of the jobs of a table that have not ended.

    A run takes as long as the ended runs of its arm on average; before there is one, as the pace of its arm's
    current runs says; and else, for each epoch, as the runs of the other arms.

    Args:
        jobs: all that are to be trained.
        at_once: how many train at the same time.
        done: outcomes of earlier runs of the table.
    """

    def __init__(self, jobs: Sequence[Job], at_once: int, done: Sequence[Outcome] = ()) -> None:
        self.waiting = {job.name: job for job in jobs}
        self.at_once = at_once
        self.current: dict[str, _Current] = {}
        self.ended_s: dict[str, list[float]] = {}
        self.epochs = {outcome.job.arm: outcome.job.recipe.epochs for outcome in done}
        self.epochs |= {job.arm: job.recipe.epochs for job in jobs}
        for outcome in done:
            self._learn(outcome)

    def begin(self, job: Job, share: float, now: float, start_s: float = 0.0) -> None:
        """A job begins to train, or begins anew, with a share of its steps done, after the time of its start.

        `now` is in seconds, by a clock that all calls share.
        """
        self.waiting.pop(job.name, None)
        self.current[job.name] = _Current(job, share, now, start_s)

    def step(self, job: Job, share: float, now: float) -> None:
        """A share of the steps of a job that has begun is done."""
        if job.name in self.current:
            self.current[job.name].share = share
            self.current[job.name].now = now

    def end(self, outcome: Outcome) -> None:
        """A job has ended, in any way."""
        self.waiting.pop(outcome.job.name, None)
        self.current.pop(outcome.job.name, None)
        self._learn(outcome)

    def left_s(self, now: float) -> float | None:
        """Seconds until all jobs have ended; None while no pace is known."""
        paces = {arm: fmean(seconds) for arm, seconds in self.ended_s.items()}
        for run in self.current.values():
            if run.whole_s is not None:
                paces.setdefault(run.job.arm, run.start_s + run.whole_s)
        if not paces:
            return None
        epoch_s = fmean(seconds / self.epochs[arm] for arm, seconds in paces.items())
        expected = {arm: paces.get(arm, epoch_s * epochs) for arm, epochs in self.epochs.items()}
        left = [expected[job.arm] for job in self.waiting.values()]
        left += [run.left_s(expected[run.job.arm], now) for run in self.current.values()]
        return max(sum(left) / self.at_once, max(left, default=0.0))

    def _learn(self, outcome: Outcome) -> None:
        if outcome.results is not None and outcome.seconds is not None:
            self.ended_s.setdefault(outcome.job.arm, []).append(outcome.seconds)


class _Current:
    """A run that trains: its job, the share of its steps at its start and now, and when these were."""

    def __init__(self, job: Job, share: float, now: float, start_s: float) -> None:
        self.job, self.first, self.share, self.began, self.now = job, share, share, now, now
        self.start_s = start_s

    @property
    def whole_s(self) -> float | None:
        """The seconds of all steps of such a run, by its pace; None while that is not known."""
        done = self.share - self.first
        return (self.now - self.began) / done if done >= LEAST_SHARE else None

    def left_s(self, expected_s: float, now: float) -> float:
        """The seconds until its end, by its own pace, or as such a run is expected to take."""
        whole_s = expected_s if self.whole_s is None else self.whole_s
        return max(0.0, whole_s * (1 - self.share) - (now - self.now))


def duration(seconds: float) -> str:
    """A time in words, rounded as an estimate is: "40 s", "6 min", "2 h 10 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
