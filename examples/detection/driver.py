"""`train`: the whole of a run as one call, with its progress on the terminal; `picture` of its detector."""

from __future__ import annotations

import contextlib

import torch
from rich.console import Console

from examples.detection.coco import read_split, require_pycocotools
from examples.detection.launch import cluster, launch
from examples.detection.model import build_detector
from examples.detection.picture import draw_predictions
from examples.detection.recipe import DetectionRecipe
from examples.detection.run import Run, load_run, prepare
from kdcl_dist.cli.import_display import ImportProgress
from kdcl_dist.errors import KdclError, StorageError, UserError
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.storage import Folder

__all__ = ["picture", "train"]


def train(recipe: DetectionRecipe, storage: str, name: str, *, resume: bool) -> tuple[Folder, bool]:
    """Train a detector on Ray; returns the run folder, and whether the run is finished.

    Args:
        recipe: what to train.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it.
        resume: continue the run from its latest checkpoint.

    Raises:
        UserError: recipe, data, backbone or run folder cannot be used as they are.
        KdclError: the run failed.
    """
    require_pycocotools()
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    run = prepare(recipe, storage, name, resume=resume, say=say)
    if read_record(run.folder).get("state") == "finished":
        say("the run is finished already")
        return run.folder, True
    update_record(run.folder, state="starting", cause=None)
    try:
        with cluster(recipe), ImportProgress(console) as progress, stop_on_signals(say) as asked:
            finished = launch(run, say, progress.update, asked)
    except KdclError as error:
        _note_failure(run, error)
        raise
    if not finished:
        update_record(run.folder, state="stopped")
    return run.folder, finished


def _note_failure(run: Run, error: KdclError) -> None:
    """Record why a run failed. A run without a step that a mistake ended leaves its name free."""
    if isinstance(error, UserError) and run.folder.names("checkpoints") == ["step-00000000"]:
        run.folder.delete("")
    else:
        with contextlib.suppress(StorageError):  # which must not hide the cause
            update_record(run.folder, state="failed", cause=error.to_dict())


def picture(uri: str, *, count: int, score: float) -> bytes:
    """A PNG of some test images, with the detections of the latest checkpoint above a score.

    Raises:
        RunFolderError: the folder is no run, or has no checkpoint.
        DataError: the data set is not where the recipe has it, or is damaged.
    """
    run = load_run(uri)
    state = run.load()
    split = read_split(run.data, run.recipe.data.val, masks=run.recipe.masks)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_detector(run.recipe, state.parts["classes"], state.normalisation)
    model.load_state_dict(state.parts["model"])
    return draw_predictions(model.to(device), split, run.recipe, device, count=count, score=score)
