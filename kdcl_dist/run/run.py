"""One start of a run: its recipe, folder and id, as every process of it knows them."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, parse_recipe
from kdcl_dist.config.strict_yaml import MAX_BYTES
from kdcl_dist.errors import RunFolderError, StorageError, one_line
from kdcl_dist.run.checkpoint import Manifest
from kdcl_dist.run.storage import Folder
from kdcl_dist.run.uris import displayed
from kdcl_dist.utils.objects import Objects
from kdcl_dist.version import __version__

__all__ = ["Run", "load_run", "versions", "write_recipe"]


@dataclass(frozen=True)
class Run:
    """One start of a run.

    Its folder holds:

        recipe.yaml    the complete recipe, with the versions of the libraries
        run.json       see kdcl_dist.run.record
        metrics/       see kdcl_dist.run.metrics
        checkpoints/   see kdcl_dist.run.checkpoint
        tensorboard/   the metrics for TensorBoard
        logits/        see kdcl_dist.coordinator.logit_record
        logs/          see kdcl_dist.run.process_log

    Attributes:
        recipe: what to train, and how.
        id: unique for each start; a message of another id is refused.
        folder: the run folder.
        start: the checkpoint to continue from, or None.
        root: the folder from which relative paths and import strings of the recipe are looked up.
        generation: number of the exchange group within the run.
        dry_steps: of a dry run, how many steps it takes; None: the whole run is trained.
        objects: what the caller has passed in Python; no part of the folder.
    """

    recipe: Recipe
    id: str
    folder: Folder
    start: Manifest | None
    root: str
    generation: int = 0
    dry_steps: int | None = None
    objects: Objects = field(default_factory=Objects, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.uri.rpartition("/")[2]

    @property
    def number(self) -> int:
        """The id as the 64-bit number in message headers."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:8], "little")

    @property
    def step(self) -> int:
        """Training steps that were done before this start."""
        return self.start.step if self.start else 0

    @property
    def epoch(self) -> int:
        """The epoch, from 0, in which `start` goes on; the run's last also after its end."""
        return min(self.start.epoch, self.recipe.epochs - 1) if self.start else 0

    def for_coordinator(self) -> Run:
        """The run without the objects that the coordinator does not need: networks and data sets."""
        return replace(self, objects=self.objects.only(self.recipe.distillation.method_name))

    def remove_partial(self) -> None:
        """Delete the partial files of a coordinator that died in a write; the next one has begun."""
        for name in ("", "metrics", "logits"):
            self.folder.remove_partial(name)


def load_run(uri: str) -> tuple[Recipe, Folder]:
    """The recipe and folder of an existing run.

    Raises:
        RunFolderError: the folder is no run folder, or cannot be read.
        RecipeError: its recipe.yaml is no recipe.
    """
    folder = Folder(uri)
    try:
        text = folder.read("recipe.yaml", MAX_BYTES).decode()
        return parse_recipe(text, source=f"{folder}/recipe.yaml"), folder
    except (OSError, ValueError, StorageError) as error:
        reason = "it has no recipe.yaml" if isinstance(error, FileNotFoundError) else one_line(error)
        raise RunFolderError(f"{displayed(uri)!r} is not a run folder: {reason}") from None


def write_recipe(folder: Folder, recipe: Recipe) -> None:
    """Write recipe.yaml: the complete recipe, below the versions of the libraries."""
    header = "".join(f"# {name} {version}\n" for name, version in versions().items())
    folder.write("recipe.yaml", (header + dump_recipe(recipe)).encode())


def versions() -> dict[str, str]:
    """The versions of all libraries on which a result can depend."""
    import torch  # not at the top: Ray's workers hold a `Run` and must not import torch

    installed = {package: version(package) for package in ("numpy", "pyarrow", "torchvision")}
    own = {"kdcl_dist": __version__, "python": platform.python_version()}
    return own | installed | {"torch": str(torch.__version__)}  # the package's metadata lacks the build
