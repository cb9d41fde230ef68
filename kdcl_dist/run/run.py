"""A run's folder: where it lies, what it belongs to, what became of it.

recipe.yaml    the complete recipe, with the versions it ran with
run.json       state, placement, data fingerprints, final metrics, first cause of a failure
metrics/       see kdcl_dist.run.metrics
checkpoints/   see kdcl_dist.run.checkpoint
tensorboard/   the metrics once more
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdcl_dist.config.differences import differences, roundings
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, parse_recipe
from kdcl_dist.errors import KdclError, RunFolderError, StorageError, from_dict, one_line
from kdcl_dist.run.checkpoint import Manifest, latest
from kdcl_dist.run.storage import Folder
from kdcl_dist.version import __version__

__all__ = [
    "Run",
    "check_owner",
    "load_run",
    "next_generation",
    "past_failures",
    "prepare",
    "read_record",
    "record_failure",
    "record_survival",
    "recorded_failure",
    "update_record",
    "versions",
]


#: What a run may be called: one folder, on any file system.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
#: Seconds for which the record is asked who owns the folder, while the students wait.
OWNER_S = 3.0


@dataclass(frozen=True)
class Run:
    """All that a process is told about the run it belongs to.

    Attributes:
        recipe: what to do.
        id: unique for each start; messages of another id are refused.
        folder: where everything is written.
        start: the checkpoint to continue from, or None.
        root: folder from which relative paths and import strings of the recipe are looked up.
        generation: number of the exchange group within the run.
    """

    recipe: Recipe
    id: str
    folder: Folder
    start: Manifest | None
    root: str
    generation: int = 0

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.uri.rpartition("/")[2]

    @property
    def number(self) -> int:
        """The id as the 64-bit number in message headers."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "little")

    @property
    def step(self) -> int:
        """Training steps that are done already."""
        return self.start.step if self.start else 0

    def remove_partial(self) -> None:
        """Delete what a coordinator that died in the middle of a write left; the next one has begun."""
        for name in ("", "metrics"):
            self.folder.remove_partial(name)


def prepare(
    recipe: Recipe, storage: str, name: str | None, *, resume: bool, warn: Callable[[str], None]
) -> Run:
    """Make the folder of a new run, or find the one to continue.

    Args:
        recipe: the run.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it. Null: the recipe's name and the time; to resume, the latest
            folder of the recipe's name that has a checkpoint.
        resume: continue from the latest undamaged checkpoint.
        warn: hears what is passed over.

    Raises:
        RunFolderError: the folder is taken, unwritable, has nothing to resume, or is of another recipe.
    """
    root = _storage(storage, recipe.limits.patience_s)
    if name is not None and not re.fullmatch(NAME, name):
        raise RunFolderError(
            f"--name {name!r}: a name has letters, digits, '.', '_' and '-', at most 128, and begins with "
            "a letter or digit"
        )
    start: Manifest | None = None
    if resume:
        try:
            name = name or _latest_name(root, recipe.name)
            start = _resume(root / name, recipe, warn)
        except StorageError as error:
            raise RunFolderError(f"nothing to resume: {error.message}") from error
    name = name or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    folder = root / name
    root.check_writable()
    run = Run(recipe, f"{name}-{uuid.uuid4().hex[:12]}", folder, start, str(Path.cwd()))
    if resume:
        run.remove_partial()
    else:
        _create(folder, recipe)
    if read_record(folder).get("state") != "finished":
        update_record(folder, state="starting", cause=None, owner=run.id, root=run.root)
    return run


def check_owner(run: Run) -> None:
    """See that no other process has resumed the run meanwhile: the last to come owns the folder.

    Raises:
        RunFolderError: another does.
    """
    try:
        owner = read_record(run.folder.with_limit(OWNER_S)).get("owner", run.id)
    except StorageError:  # a storage that does not answer says nothing of another process
        return
    if owner != run.id:
        raise RunFolderError(
            f"{str(run.folder)!r} was resumed by another process ({owner}), which goes on; this one ends here"
        )


def load_run(uri: str) -> tuple[Recipe, Folder]:
    """The recipe and folder of an existing run; raises `RunFolderError` when it is none."""
    folder = Folder(uri)
    try:
        return parse_recipe(folder.read("recipe.yaml").decode(), source=f"{folder}/recipe.yaml"), folder
    except (OSError, ValueError, StorageError) as error:
        reason = "it has no recipe.yaml" if isinstance(error, FileNotFoundError) else one_line(error)
        raise RunFolderError(f"{uri!r} is not a run folder: {reason}") from None


def read_record(folder: Folder) -> dict[str, Any]:
    """The content of run.json; empty when there is none."""
    try:
        record: dict[str, Any] = json.loads(folder.read("run.json"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunFolderError(f"{folder}/run.json is damaged ({one_line(error)}); delete it") from None
    return record


def update_record(folder: Folder, **changes: Any) -> None:
    """Write fields of run.json, keeping the others."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = read_record(folder) | changes | {"updated": now}
    folder.write("run.json", json.dumps(record, indent=1).encode())


def record_failure(run: Run, cause: KdclError) -> None:
    """Note the first cause of a failure, in a run that is this process's own still.

    A storage that fails as well must not hide it.
    """
    with contextlib.suppress(Exception):
        check_owner(run)
        update_record(run.folder, state="failed", cause=cause.to_dict())


def past_failures(run: Run) -> list[KdclError]:
    """The failures that this start of the run has survived so far, as recorded."""
    failures = read_record(run.folder).get("failures", {})
    return [from_dict(cause) for cause in failures.get("causes", [])] if failures.get("run") == run.id else []


def record_survival(run: Run, failures: Sequence[KdclError]) -> None:
    """Note the failures that the run has survived."""
    update_record(run.folder, failures={"run": run.id, "causes": [failure.to_dict() for failure in failures]})


def next_generation(run: Run) -> int:
    """The number of the exchange group after those that this start of the run had."""
    generation = read_record(run.folder).get("generation", {})
    return int(generation["number"]) + 1 if generation.get("run") == run.id else 0


def recorded_failure(run: Run) -> KdclError | None:
    """The first cause that was noted since this start of the run, if any."""
    try:
        record = read_record(run.folder)
    except StorageError:  # what is known of the cause otherwise counts more
        return None
    return from_dict(record["cause"]) if record.get("state") == "failed" and record.get("cause") else None


def versions() -> dict[str, str]:
    """The versions on which a result can depend."""
    import torch  # not at the top: a worker of Ray that holds a run does without its import

    installed = {package: version(package) for package in ("numpy", "pyarrow", "torchvision")}
    own = {"kdcl_dist": __version__, "python": platform.python_version()}
    return own | installed | {"torch": str(torch.__version__)}  # its own says which build it is


def _has_checkpoint(folder: Folder) -> bool:
    steps = folder.names("checkpoints")
    return any(folder.exists(f"checkpoints/{step}/manifest.json") for step in steps)


def _storage(uri: str, limit_s: float) -> Folder:
    if not uri.strip():
        raise RunFolderError("--storage is empty; give the folder of runs as a path or URI")
    return Folder(uri if "://" in uri else str(Path(uri).expanduser()), limit_s)


def _create(folder: Folder, recipe: Recipe) -> None:
    if folder.exists("recipe.yaml"):
        raise RunFolderError(
            f"run folder {str(folder)!r} exists: give another --name, or --resume to continue it"
        )
    header = "".join(f"# {name} {version}\n" for name, version in versions().items())
    folder.write("recipe.yaml", (header + dump_recipe(recipe)).encode())
    update_record(folder, versions=versions())


def _resume(folder: Folder, recipe: Recipe, warn: Callable[[str], None]) -> Manifest:
    if not folder.exists("recipe.yaml"):
        raise RunFolderError(
            f"nothing to resume: {str(folder)!r} is not a run folder (see --storage and --name)"
        )
    old, _ = load_run(folder.uri)
    if changed := differences(old, recipe):
        raise RunFolderError(
            f"{str(folder)!r} cannot be resumed with another recipe; it differs in {'; '.join(changed)}"
        )
    if (start := latest(folder, warn)) is None:
        raise RunFolderError(f"nothing to resume: {str(folder)!r} has no complete checkpoint")
    if changed := roundings(old, recipe):
        warn(f"results may differ in the last bits from those of a run without a break: {'; '.join(changed)}")
    return start


def _latest_name(root: Folder, recipe_name: str) -> str:
    """The latest run of a recipe: names end in the time of their start, so the last in order."""
    pattern = re.escape(recipe_name) + r"-\d{8}-\d{6}-[0-9a-f]{4}"
    names = [name for name in root.names() if re.fullmatch(pattern, name)]
    with_checkpoint = [name for name in names if _has_checkpoint(root / name)]
    if not with_checkpoint:
        raise RunFolderError(
            f"nothing to resume: {str(root)!r} has no run of recipe {recipe_name!r} with a checkpoint"
        )
    return with_checkpoint[-1]
