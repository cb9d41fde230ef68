"""Students join, leave and are killed at random in one run; its weights against the replay of its record.

    python -m benchmarks.joins FOLDER --changes 200 --out docs/results/joins.md
    python -m benchmarks.joins FOLDER --changes 40 --launcher ray --out docs/results/joins.md

The recipe in the run folder says who took part when. A sequential computation of that recipe, by the
reference of the tests, must give the weights of all students bit for bit, also of those that have left.
Otherwise the exit code is 1. The pause of the others is measured at each change. All state is in FOLDER: the
same command goes on after an interruption. The page keeps the part of the other launcher.
"""

from __future__ import annotations

import argparse
import sys
import threading
from importlib import import_module
from pathlib import Path
from statistics import median

import torch

from benchmarks.conditions import conditions
from benchmarks.joins.changes import Change, Changes, read_changes
from benchmarks.joins.replay import differing_students
from benchmarks.joins.watch import JoinsFailed, Watch
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.run.checkpoint import has_committed
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import Launcher, train

DIGITS = Path("kdcl_dist/demo").absolute()
#: Seconds between two questions for events on Ray: the pauses are known to that.
RAY_POLL_S = 0.02
#: Where the part on Ray begins in the page.
ON_RAY = "\n## On Ray"
#: The run ends when enough has changed, long before its last epoch.
RECIPE = f"""
    name: joins
    epochs: 1000000
    batch_size: 16
    data: {{train: {DIGITS}/digits-train.arrow, test: {DIGITS}/digits-test.arrow, train_per_class: 32}}
    distillation: {{method: linear}}
    evaluate: {{every_epochs: 1000000}}
    students: [{{name: first, model: mlp}}, {{name: second, model: cnn_small}}]
    failure: {{policy: rollback, max_failures: 1000000}}
    tracking: []
"""


def trained(folder: Path, count: int, seed: int, launcher: Launcher) -> Watch:
    """Train until so many changes have happened; what was seen of the run.

    Raises:
        JoinsFailed: a change does not happen.
    """
    run, watch, stop = Folder(str(folder)) / "run", Watch(), threading.Event()
    resume = has_committed(run)
    changes = Changes(count, seed, run, folder / "changes.jsonl", watch, stop)
    changes.start()
    if launcher == "ray":
        import_module("kdcl_dist.launch.ray.trainers").POLL_S = RAY_POLL_S  # type: ignore[attr-defined]
    try:
        recipe = load_run(run.uri)[0] if resume else parse_recipe(RECIPE)
        train(
            recipe,
            launcher=launcher,
            storage=str(folder),
            name="run",
            resume=resume,
            on_event=watch.handle,
            stop=stop,
        )
    finally:
        stop.set()
        changes.join()
    if changes.error is not None:
        raise changes.error
    return watch


def page(
    changes: list[Change], watch: Watch, given: argparse.Namespace, differ: list[str], recipe: Recipe
) -> str:
    """The launcher's part of the page in Markdown."""
    kinds, title = [change.kind for change in changes], f"{len(changes)} changes of the cohort of one run"
    fired = sum(change.killed is not None for change in changes)
    how = f"{len(changes)} changes, one after another; {fired} newcomers joined while a process died"
    verdict = (
        f"The weights of {', '.join(differ)} differ from the replay."
        if differ
        else f"The weights of all {len(recipe.students)} students are those of the replay, bit for bit."
    )
    command, on_ray = f"joins FOLDER --changes {len(changes)} --seed {given.seed}", given.launcher == "ray"
    refused = sum(change.refused for change in changes)
    return "\n".join(
        [
            f"{ON_RAY}: {title}" if on_ray else f"# {title}",
            "",
            *conditions(command + " --launcher ray" * on_ray, how),
            "",
            f"{verdict} {refused} newcomers could not join, since their own process was killed.",
            "",
            "| change | count | from the request to the next generation, median s | longest |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {kind} | {kinds.count(kind)} | {_times([c.seconds for c in changes if c.kind == kind])} |"
                for kind in sorted({*kinds})
            ),
            "",
            "| pause of the others | count | median s | longest |",
            "| --- | ---: | ---: | ---: |",
            f"| a request is met, between two steps | {len(watch.met_s)} | {_times(watch.met_s)} |",
            f"| the cohort changes, after the epoch's checkpoint | {len(watch.changed_s)} "
            f"| {_times(watch.changed_s)} |",
            "",
        ]
    )


def _times(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} | {max(seconds):.2f}" if seconds else "| "


def main() -> int:
    """Train, replay and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=("local", "ray"), default="local")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in each student's process
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    watch = trained(folder, given.changes, given.seed, given.launcher)
    changes = read_changes(folder / "changes.jsonl")
    if len(changes) < given.changes:
        raise JoinsFailed(f"only {len(changes)} changes have happened")
    run = Folder(str(folder)) / "run"
    differ = differing_students(run)
    text = page(changes, watch, given, differ, load_run(run.uri)[0])
    print(text)
    if given.out is not None:
        before, _, ray = (given.out.read_text() if given.out.exists() else "").partition(ON_RAY)
        given.out.write_text(before + text if given.launcher == "ray" else text + ON_RAY * bool(ray) + ray)
    return int(bool(differ))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JoinsFailed as error:
        sys.exit(f"joins: {error}")
    except KeyboardInterrupt:
        sys.exit("joins: interrupted; the same command goes on")
