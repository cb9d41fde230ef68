"""The private interfaces of Ray that a run uses: one function each, with a way out where Ray lacks it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "address_of_cluster",
    "draining_nodes",
    "largest_package",
    "packed_paths",
    "set_title",
    "spare_data_sets",
]


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


def packed_paths(folder: Path, excludes: Sequence[str]) -> list[Path] | None:
    """The files and folders below a job's working directory that Ray uploads; None where Ray does not tell.

    What .gitignore and .rayignore name stays behind, what the job excludes, and what Ray excludes by default.

    Args:
        folder: the working directory, absolute.
        excludes: of the job's runtime environment, in the form of .gitignore.
    """
    try:
        from ray._private.ray_constants import get_runtime_env_default_excludes
        from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
    except ImportError:
        return None
    found: list[Path] = []
    excluded = _get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])
    respects = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    quiet = logging.getLogger(__name__)  # Ray's own logger names every .gitignore
    _dir_travel(folder, [excluded], found.append, include_gitignore=respects, logger=quiet)
    return found


def largest_package() -> int | None:
    """The size in bytes from which on Ray's head refuses an upload; None where Ray does not tell."""
    try:
        from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
    except ImportError:
        return None
    return int(DASHBOARD_CLIENT_MAX_SIZE)


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


def spare_data_sets(trainer: Any) -> None:
    """Keep Ray Train from starting a process that hands out data sets of Ray Data, of which no run has any.

    The process would import for two seconds and take 200 MB. Ray has no public setting. Without the private
    callback the process is there.

    Args:
        trainer: Ray Train's trainer, before its `fit`.
    """
    with suppress(ImportError, AttributeError):
        from ray.train.v2._internal.callbacks import DatasetsCallback

        create = trainer._create_default_callbacks
        trainer._create_default_callbacks = lambda: [
            callback for callback in create() if not isinstance(callback, DatasetsCallback)
        ]
