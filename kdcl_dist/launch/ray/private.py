"""What is used of Ray's private interfaces: one function each, with what happens where Ray lacks it."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["address_of_cluster", "draining_nodes", "set_title"]


def address_of_cluster() -> str | None:
    """The address in RAY_ADDRESS, else that of the cluster of `ray start` on this machine; None without both.

    Ray's public `address="auto"` would also join a cluster that another program started for itself.
    Without the private function only RAY_ADDRESS counts.
    """
    try:
        from ray._private.services import get_ray_address_from_environment
    except ImportError:
        return os.environ.get("RAY_ADDRESS") or None
    address: str | None = get_ray_address_from_environment(None, None)
    return address


def draining_nodes() -> set[str] | None:
    """Ids of the nodes that drain, as spot hosts do before they are taken away; None where Ray cannot tell.

    Ray Train's watcher uses the same private call, but that watcher does not work where one worker is
    replaced at a time. Ray has no public call. Without the private one there is no notice.

    Raises:
        RayError, RuntimeError: the cluster does not answer at present.
    """
    try:
        from ray._private.state import state

        return set(state.get_draining_nodes())
    except (ImportError, AttributeError):
        return None


def set_title(name: str) -> None:
    """Show this actor's process as `ray::kdcl:NAME` to `ps` and in the dashboard's list of processes.

    Ray has no public setting: after every call of an actor it sets the process title anew to `ray::` and the
    name of the actor's class, and Ray Train names its workers itself. So the class is renamed, in this
    process only. The prefix stays, since `ray stop` looks for it. Without Ray's private list of actors the
    title stays as Ray sets it.
    """
    with suppress(Exception):
        from ray._private import worker

        for actor in worker.global_worker.actors.values():
            type(actor).__name__ = f"kdcl:{name}"
