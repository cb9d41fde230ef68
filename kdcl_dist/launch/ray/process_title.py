"""Names for the processes of a run on Ray."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["set_title"]


def set_title(name: str) -> None:
    """Show this actor's process as `ray::kdcl:NAME` to `ps` and in the dashboard's list of processes.

    Ray Train names its workers itself, and after every call of an actor Ray sets the process title anew to
    `ray::` and the name of the actor's class. So the class is renamed, in this process only; `ray stop` goes
    by the prefix. Where Ray comes to keep its actors elsewhere, the title stays Ray's own.
    """
    with suppress(Exception):
        from ray._private import worker

        for actor in worker.global_worker.actors.values():
            type(actor).__name__ = f"kdcl:{name}"
