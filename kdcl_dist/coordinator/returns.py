"""Students that are away under policy `continue`: whether one comes back, or hangs on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.coordinator.roster import Roster
from kdcl_dist.errors import KdclError
from kdcl_dist.membership.rendezvous import Rendezvous
from kdcl_dist.run.events import Event, Warned

__all__ = ["Returns"]


class Returns:
    """Watches those that are away.

    Args:
        roster: who is away.
        rendezvous: of the coordinator.
        past: the failures that the run has survived, kept up to date.
        survive: counts a failure, and lets the process of who is lost be replaced; takes what follows, too.
        emit: called with each event.
    """

    def __init__(
        self,
        roster: Roster,
        rendezvous: Rendezvous,
        past: Sequence[KdclError],
        survive: Callable[[KdclError, str], None],
        emit: Callable[[Event], None],
    ) -> None:
        self.roster, self.rendezvous, self.past = roster, rendezvous, past
        self.survive, self.emit = survive, emit

    def has_returned(self) -> bool:
        """Whether a student that is away is ready to join again; one that hangs on the way is ended."""
        roster, recipe = self.roster, self.roster.recipe
        found = [index for index in roster.away if self.rendezvous.are_ready(roster.ranks([index]))]
        for error in self.rendezvous.failures():
            self.emit(Warned(str(error)))
        overdue = self.rendezvous.overdue(roster.ranks(roster.away), recipe.limits.startup_s)
        if overdue is not None and is_fatal(recipe.failure, self.past, overdue):
            self.emit(Warned(f"{overdue}; it stays away"))
        elif overdue is not None:
            self.survive(overdue, "the others go on")
        self.rendezvous.monitor.lost = []  # nobody of this generation
        return bool(found)
