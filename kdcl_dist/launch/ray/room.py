"""The places of a cohort whose workers are of several kinds, each of which Ray Train places by itself.

A part of the cohort must not hold a part of the cluster while it waits for the rest: two such runs would wait
for each other for ever. So the cohort waits for room for all its workers at once, and one such run at a time
takes its places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from kdcl_dist.launch.preflight.placement import Need
from kdcl_dist.launch.ray.common import POLL_S

__all__ = ["await_room", "room_asked", "turn"]

#: The holder's name, and the namespace that all runs of a cluster share.
NAME, NAMESPACE = "kdcl-turn", "kdcl"


@contextmanager
def turn(wait: Callable[[], None]) -> Iterator[None]:
    """Be the one run of the cluster that takes its places; the turn ends with this process at the latest.

    Args:
        wait: called again and again while it is another's turn; may raise to give up.
    """
    while (holder := _take(wait)) is None:
        wait()
    try:
        yield
    finally:
        ray.kill(holder)


def _take(wait: Callable[[], None]) -> Any:
    """The actor that holds the turn by its name; None while another has the name."""
    try:
        holder = _Holder.options(name=NAME, namespace=NAMESPACE, num_cpus=0).remote()  # type: ignore[attr-defined]
        answer = holder.holds.remote()
        while not ray.wait([answer], timeout=POLL_S)[0]:
            wait()
        ray.get(answer)  # of two that ask at the same moment, one has no name and fails
        return holder
    except RayError:
        return None


@ray.remote
class _Holder:
    """Has a name that only one actor of a cluster can have."""

    def holds(self) -> None:
        """Show by the answer that the actor has the name."""


def await_room(needs: Sequence[Need], wait: Callable[[], None]) -> None:
    """Return when the cluster has room for all workers at once; nothing is held.

    Args:
        needs: of the workers.
        wait: called again and again until then; may raise to give up.
    """
    with room_asked(needs) as room:
        while not room.wait(POLL_S):
            wait()


@contextmanager
def room_asked(needs: Sequence[Need]) -> Iterator[PlacementGroup]:
    """In the block, ask the cluster for room for all workers at once, and an autoscaler for hosts that lack.

    The request ends with this process at the latest, however that ends. What `request_resources` of Ray asks
    for would stay, and a cluster has one such request, for all its runs.

    Args:
        needs: of the workers.
    """
    resources, selectors = zip(*((need.resources, need.label_selector) for need in needs), strict=True)
    room = placement_group(list(resources), bundle_label_selector=list(selectors))
    try:
        yield room
    finally:
        remove_placement_group(room)
