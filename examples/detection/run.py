"""A run's folder: recipe.yaml, run.json, metrics/, and checkpoints that begin with the first weights.

checkpoints/step-00000000/detector.pt    the given backbone, and the other weights by the seed
metrics/epoch-0000.parquet               losses and learning rate of each step, AP after the epoch
detections.json                          detections of the latest test, in COCO's format of results
predictions.png                          some of them drawn, at the end
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.detection.backbone import Backbone, read_backbone
from examples.detection.coco import read_split
from examples.detection.loading import epoch_steps
from examples.detection.model import build_detector
from examples.detection.recipe import DetectionRecipe, differences, dump_recipe, parse_recipe
from kdcl_dist.errors import CheckpointError, DataError, RunFolderError, StorageError, one_line
from kdcl_dist.run.checkpoint import Manifest, commit, latest, prune, read_part, write_part
from kdcl_dist.run.prepare import NAME
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import versions
from kdcl_dist.run.storage import Folder

__all__ = ["Run", "State", "load_run", "prepare"]

PART = "detector"
#: Checkpoints that are kept.
KEEP = 2


@dataclass(frozen=True)
class State:
    """The content of a checkpoint.

    Attributes:
        step: training steps done.
        parts: model, optimizer, table; mean and std of the images; number of classes.
    """

    step: int
    parts: dict[str, Any]

    @property
    def normalisation(self) -> Backbone:
        """The mean and deviation that the detector normalises images with."""
        return Backbone(None, tuple(self.parts["mean"]), tuple(self.parts["std"]))


@dataclass(frozen=True)
class Run:
    """A run, as its processes get it; relative paths are looked up from `root`."""

    recipe: DetectionRecipe
    folder: Folder
    root: str

    @property
    def data(self) -> Path:
        """The data set's folder."""
        return Path(self.root) / self.recipe.data.root

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Write a checkpoint, and delete old ones; raises `CheckpointError`."""
        part = write_part(self.folder, step, PART, parts)
        commit(self.folder, Manifest(step, {PART: part}))
        prune(self.folder, KEEP)

    def load(self, warn: Callable[[str], None] = lambda text: None) -> State:
        """The latest undamaged checkpoint, on the CPU; raises `RunFolderError` when there is none."""
        if (manifest := latest(self.folder, warn, required=())) is None:
            raise RunFolderError(f"{str(self.folder)!r} has no complete checkpoint")
        try:
            return State(manifest.step, read_part(self.folder, manifest, PART))
        except CheckpointError as error:
            raise RunFolderError(f"{self.folder}: {error.message}") from error


def prepare(
    recipe: DetectionRecipe, storage: str, name: str, *, resume: bool, say: Callable[[str], None]
) -> Run:
    """Check the data and make the folder of a new run, or find the one to continue.

    Args:
        recipe: the run.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it.
        resume: continue the run.
        say: called with each line for the user.

    Raises:
        UserError: data, backbone or folder cannot be used.
    """
    if not re.fullmatch(NAME, name):
        raise RunFolderError(
            f"--name {name!r}: a name has letters, digits, '.', '_' and '-', and begins with a letter "
            "or digit"
        )
    run = Run(recipe, Folder(storage) / name, str(Path.cwd()))
    if resume:
        _check_resumable(run)
    elif run.folder.exists("recipe.yaml"):
        raise RunFolderError(
            f"run folder {str(run.folder)!r} exists: give another --name, or --resume to continue it"
        )
    classes = _check_data(run, say)
    for note in recipe.notes():
        say(note)
    if not resume:
        _begin(run, classes, say)
    say(f"run folder {run.folder}, from step {run.load(say).step}")
    return run


def _begin(run: Run, classes: int, say: Callable[[str], None]) -> None:
    """Write the recipe, and the first weights as a checkpoint, from which every process continues."""
    recipe, folder = run.recipe, run.folder
    backbone = read_backbone(recipe.backbone)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
    say(f"backbone {recipe.backbone or 'random'}; images are normalised by mean {mean} and deviation {std}")
    model = build_detector(recipe, classes, backbone)
    folder.check_writable()
    parts = {"model": model.state_dict(), "mean": list(backbone.mean), "std": list(backbone.std)}
    run.save(0, parts | {"classes": classes})
    update_record(folder, state="starting", versions=versions())
    head = "".join(f"# {package} {version}\n" for package, version in versions().items())
    folder.write("recipe.yaml", (head + dump_recipe(recipe)).encode())  # last: makes it a run


def load_run(uri: str) -> Run:
    """An existing run; raises `RunFolderError` when the folder is no run."""
    folder = Folder(uri)
    try:
        recipe = parse_recipe(folder.read("recipe.yaml").decode(), f"{folder}/recipe.yaml")
    except (OSError, ValueError, StorageError) as error:
        reason = "it has no recipe.yaml" if isinstance(error, FileNotFoundError) else one_line(error)
        raise RunFolderError(f"{uri!r} is not a run folder: {reason}") from None
    return Run(recipe, folder, str(Path.cwd()))


def _check_resumable(run: Run) -> None:
    folder = run.folder
    if not folder.exists("recipe.yaml"):
        raise RunFolderError(
            f"nothing to resume: {str(folder)!r} is not a run folder (see --storage and --name)"
        )
    if changed := differences(load_run(folder.uri).recipe, run.recipe):
        raise RunFolderError(
            f"{str(folder)!r} cannot be resumed with another recipe; it differs in {'; '.join(changed)}"
        )


def _check_data(run: Run, say: Callable[[str], None]) -> int:
    """Check that both splits can be used, and say what they hold; returns the number of categories."""
    names = run.recipe.data
    train, val = (read_split(run.data, split, masks=run.recipe.masks) for split in (names.train, names.val))
    if train.categories != val.categories:
        other = sorted(set(train.categories.items()) ^ set(val.categories.items()))[0]
        raise DataError(
            f"{names.train} and {names.val} have different categories, such as {other[1]!r} "
            f"with id {other[0]}"
        )
    epoch_steps(train, run.recipe, 0)
    if not val.annotated.any():
        raise DataError(f"{names.val}: no image has a box, so there is nothing to find")
    for split in (train, val):
        text = f"{split.path.name}: {len(split):,} images, {split.annotated.sum():,} with boxes to learn from"
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in split.skipped.items())
        say(text + (f"; not learned from: {skipped}" if skipped else ""))
    return len(train.categories)
