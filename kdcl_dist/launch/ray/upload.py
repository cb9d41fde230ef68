"""What a job takes with it, held against what its recipe needs, before anything is uploaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcl_dist.config.model import Model
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student
from kdcl_dist.errors import PreflightError, UserError, one_line
from kdcl_dist.launch.preflight.trial_build import trial_build
from kdcl_dist.launch.ray.private import largest_package, packed_paths
from kdcl_dist.utils.data_specs import data_path
from kdcl_dist.utils.hidden import is_hidden
from kdcl_dist.utils.import_strings import is_import_string

__all__ = ["check_job"]

MB = 1e6
#: Bytes that a zip archive takes for a file beside its content, and twice its name.
ZIP_ENTRY = 76
#: Fields of a runtime environment by which a job finds modules outside its working directory.
MODULES = ("py_modules", "env_vars.PYTHONPATH")
SHARED = "give an absolute path that all hosts share"
UPLOADED = "it must be uploaded"


def check_job(
    recipe: Recipe,
    recipe_file: str,
    root: Path,
    runtime_env: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Check that a job will find what its recipe names, and that its students can be built.

    Args:
        recipe: the run.
        recipe_file: its file, relative to `root`.
        root: the folder to upload, absolute.
        runtime_env: Ray's runtime environment of the job.
        warn: called with each warning.

    Raises:
        PreflightError: the job would fail; the message has a line for each cause.
        UserError: the `excludes` of the runtime environment are not texts.
    """
    upload = _Upload(root, runtime_env)
    _require(upload.problems() + upload.lacks_of(recipe, recipe_file))
    builds = [trial_build(recipe, index, str(root)) for index in recipe.networks]
    for warning in dict.fromkeys(build.warning for build in builds if build.warning):
        warn(warning)
    modules = {name: place for build in builds for name, place in build.modules.items()}
    problems = [build.problem for build in builds if build.problem]
    _require(problems + upload.lacks_of_modules(modules))


def _require(problems: Sequence[str]) -> None:
    if problems:
        raise PreflightError("\n".join(dict.fromkeys(problems)))


class _Upload:
    """The files of a folder that Ray would upload.

    Attributes:
        packed: their absolute paths, and those of the folders, in the folder's order; None where this
            version of Ray does not tell.
    """

    def __init__(self, root: Path, runtime_env: Mapping[str, Any]) -> None:
        self.root, self.runtime_env = root, runtime_env
        excludes = runtime_env.get("excludes") or []
        if not (isinstance(excludes, list) and all(isinstance(each, str) for each in excludes)):
            raise UserError(f"--runtime-env: excludes must be a list of texts (got {excludes!r})")
        try:
            self.packed = packed_paths(root, excludes)
        except (
            OSError,
            ValueError,
        ) as error:  # a folder without permission, a .gitignore that cannot be read
            raise UserError(f"--working-dir {str(root)!r} cannot be packed: {one_line(error)}") from error
        self.names = {str(path) for path in self.packed or ()}

    def problems(self) -> list[str]:
        """Why Ray would not upload the folder: its size, or a file that has no end."""
        sizes: dict[Path, int] = {}
        for path in self.packed or ():
            mode = path.stat().st_mode if path.exists() else stat.S_IFREG
            if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                return [f"{path} is no regular file, and Ray would wait for its end: move it elsewhere"]
            if path.is_file():
                name = os.fsencode(path.relative_to(self.root))
                sizes[path] = path.stat().st_size + ZIP_ENTRY + 2 * len(name)
        limit = largest_package()
        total = sum(sizes.values())
        if limit is None or total < limit:
            return []
        large = sorted(sizes, key=lambda path: -sizes[path])[:3]
        named = ", ".join(f"{path.relative_to(self.root)} {sizes[path] / MB:,.1f} MB" for path in large)
        return [
            f"--working-dir {str(self.root)!r}: its {len(sizes):,} files have {total / MB:,.1f} MB, and Ray "
            f"takes less than {limit / MB:,.1f} MB (the largest: {named}); name what the job does not need "
            "in .gitignore, or in excludes of --runtime-env"
        ]

    def lacks_of(self, recipe: Recipe, recipe_file: str) -> list[str]:
        """A line for each file that the recipe names by a relative path, and that would be missing there."""
        fields = {
            **{f"data.{name}": data_path(spec) for name, spec in recipe.data.sets.items()},
            "distillation.bank.folder": recipe.distillation.bank.folder,
            **{f"students.{student.name}.weights": student.weights for student in recipe.students},
            **{f"students.{student.name}.logits": student.logits for student in recipe.students},
            **{f"students.{student.name}.model": self._config_of(student) for student in recipe.students},
        }
        lines = [self._lack("recipe", recipe_file, UPLOADED)]
        for name, path in fields.items():
            if path is None or Path(path).is_absolute():
                continue
            if not is_import_string(path) or (self.root / path).exists():
                lines.append(self._lack(name, path, SHARED))
        return [line for line in lines if line is not None]

    def _config_of(self, student: Student) -> str | None:
        """The file of a network of transformers; None for other networks."""
        library, _, folder = Model.of(student.model).name.partition(":")
        return f"{folder}/config.json" if library == "hf" and (self.root / folder).is_dir() else None

    def lacks_of_modules(self, modules: Mapping[str, tuple[str, str]]) -> list[str]:
        """A line for each module of the user's that the job would not find; see `TrialBuild.modules`."""
        lines = []
        for name, (folder, file) in modules.items():
            if folder == str(self.root):
                lines.append(self._lack(f"module {name}", file, UPLOADED))
            elif not self._finds_more_modules:
                lines.append(
                    f"module {name} ({folder}/{file}) lies outside of the folder in which the job looks, "
                    f"{str(self.root)!r}: move it there, or give --runtime-env with {' or '.join(MODULES)}"
                )
        return [line for line in lines if line is not None]

    @property
    def _finds_more_modules(self) -> bool:
        variables = self.runtime_env.get("env_vars")
        has_path = isinstance(variables, dict) and "PYTHONPATH" in variables
        return has_path or bool(self.runtime_env.get("py_modules"))

    def _lack(self, what: str, relative: str, remedy: str) -> str | None:
        """Why a file or folder would not be there; None if it would."""
        path = Path(os.path.normpath(self.root / relative))
        folder = f"the folder that is uploaded, {str(self.root)!r}"
        if not path.is_relative_to(self.root):
            return f"{what}: {relative!r} lies outside of {folder}; {remedy}"
        if not path.exists():
            return f"{what}: {relative!r} is not in {folder}; {remedy}"
        behind = None if self.packed is None else self._first_left_behind(path)
        if behind is None:
            return None
        file = "" if behind == path else f": {str(behind.relative_to(self.root))!r}"
        return f"{what}: {relative!r} is kept back from the upload by {self._cause(behind)}{file}; {remedy}"

    def _first_left_behind(self, path: Path) -> Path | None:
        """A file that stays behind: the path itself, or one of a data set's files in that folder."""
        shards = [each for each in sorted(path.glob("*.arrow")) if not is_hidden(each.name)]
        return next((each for each in shards or [path] if str(each) not in self.names), None)

    def _cause(self, path: Path) -> str:
        """The list that keeps a file back."""
        without = {str(each) for each in packed_paths(self.root, []) or ()}
        return (
            "excludes of the runtime environment (cluster/runtime_env.yaml, or --runtime-env)"
            if str(path) in without
            else ".gitignore or .rayignore"
        )
