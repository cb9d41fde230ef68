"""The paper's table 8: detectors on a vanilla and on a kdcl backbone, with the published figures."""

from __future__ import annotations

from collections.abc import Sequence

from examples.detection.driver import train
from examples.detection.recipe import DetectionRecipe, differences
from examples.detection.run import Run, load_run
from kdcl_dist.errors import RecipeError, RunFolderError
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

__all__ = ["make_table", "train_arms"]

ARMS = ("vanilla", "kdcl")
ROWS = {
    ("faster_rcnn", "bbox"): "Faster R-CNN, box",
    ("mask_rcnn", "bbox"): "Mask R-CNN, box",
    ("mask_rcnn", "segm"): "Mask R-CNN, mask",
}
#: AP with the vanilla and the kdcl backbone (Guo et al., CVPR 2020, table 8).
PUBLISHED = {
    ("faster_rcnn", "bbox"): (32.2, 33.1),
    ("mask_rcnn", "bbox"): (33.4, 34.0),
    ("mask_rcnn", "segm"): (30.7, 31.3),
}


def train_arms(
    recipes: Sequence[DetectionRecipe], backbones: Sequence[str], storage: str
) -> list[list[str]] | None:
    """Train each recipe with each backbone. Finished runs are skipped, stopped runs resumed.

    Args:
        recipes: their names begin the names of the runs.
        backbones: as `DetectionRecipe.backbone`, of the arms vanilla and kdcl.
        storage: path or URI of the folder that holds the runs.

    Returns:
        The finished runs, a pair for each recipe; None after a stop.

    Raises:
        RecipeError: two recipes have one name.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"name: the recipes' names must differ (got {', '.join(names)})")
    pairs = []
    for recipe in recipes:
        pair = []
        for arm, backbone in zip(ARMS, backbones, strict=True):
            name = f"{recipe.name}-{arm}"
            own = recipe.model_copy(update={"backbone": backbone})
            exists = (Folder(storage) / name).exists("recipe.yaml")
            folder, finished = train(own, storage, name, resume=exists)
            if not finished:
                return None
            pair.append(folder.uri)
        pairs.append(pair)
    return pairs


def make_table(pairs: Sequence[Sequence[str]]) -> str:
    """The table as Markdown.

    Args:
        pairs: paths or URIs of two finished runs each, vanilla and kdcl.

    Raises:
        RunFolderError: one is no finished run.
        RecipeError: the runs of a pair differ in more than their backbone.
    """
    heads = ["", *ARMS, "gain", *(f"{arm}, published" for arm in ARMS), "gain, published"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    notes = []
    for uris in pairs:
        runs = [load_run(uri) for uri in uris]
        recipe = runs[0].recipe
        if changed := differences(recipe, runs[1].recipe, "backbone"):
            raise RecipeError(f"{uris[0]} and {uris[1]} differ in more: {'; '.join(changed)}")
        results = [_results(run) for run in runs]
        for kind in results[0]:
            figures = [result[kind]["AP"] for result in results]
            lines.append(_line(recipe.detector, kind, figures))
        which = ", ".join(
            f"{arm} {run.recipe.backbone or 'random'}" for arm, run in zip(ARMS, runs, strict=True)
        )
        notes.append(f"- {recipe.name}: {recipe.epochs} epochs of {recipe.data.train}; backbones: {which}")
    head = ["# Detection: AP .50:.95 in %, ResNet-18", ""]
    end = [
        "",
        "Published: Guo et al., CVPR 2020, table 8, on COCO. One run an arm, here as there.",
        "",
        *notes,
    ]
    return "\n".join([*head, *lines, *end]) + "\n"


def _results(run: Run) -> dict[str, dict[str, float]]:
    record = read_record(run.folder)
    if record.get("state") != "finished":
        raise RunFolderError(
            f"{run.folder} is not finished (it is {record.get('state', 'no run')}): --resume it first"
        )
    results: dict[str, dict[str, float]] = record["results"]
    return results


def _line(detector: str, kind: str, figures: Sequence[float]) -> str:
    published = PUBLISHED[detector, kind]
    cells = [f"{value:.2f}" for value in figures] + [f"{figures[1] - figures[0]:+.2f}"]
    cells += [f"{value:.1f}" for value in published] + [f"{published[1] - published[0]:+.1f}"]
    return f"| {ROWS[detector, kind]} | " + " | ".join(cells) + " |"
