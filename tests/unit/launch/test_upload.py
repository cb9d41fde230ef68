"""What a job takes with it, and whether its students can be built, before anything is uploaded."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private.runtime_env.packaging import create_package
from torch import nn

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import PreflightError, UserError
from kdcl_dist.launch.ray.jobs import RUNTIME_ENV
from kdcl_dist.launch.ray.private import largest_package, packed_paths
from kdcl_dist.launch.ray.upload import check_job

MODULE = """
import os
import signal
import time

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=None):
        super().__init__()
        self.classifier = nn.Linear(width or 64, num_classes)

    def forward(self, x):
        return self.classifier(x.flatten(1))

class Convolution(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(1, num_classes, 8)

    def forward(self, x):
        return self.convolution(x)[:, :, 0, 0]

def huge(num_classes):
    return nn.Sequential(nn.Linear(1 << 20, 1 << 20), nn.Linear(1 << 20, num_classes))

def counts(num_classes):
    return Net(num_classes, width=int(torch.full((1,), 64).item()))

def raises(num_classes):
    raise RuntimeError("no such weights")

def needs_more(num_classes, depth):
    return Net(num_classes)

def ends(num_classes):
    os._exit(3)

def hangs(num_classes):
    time.sleep(1000)

def is_killed(num_classes):
    os.kill(os.getpid(), signal.SIGKILL)

def hundred(num_classes):
    assert num_classes == 4, "made for four classes"
    return Net(num_classes)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe's file, data and modules, which is the working directory."""
    root = tmp_path.resolve() / "project"
    for name in ("sets", "weights"):
        (root / name).mkdir(parents=True)
    write_images(root / "sets" / "train.arrow", 60)
    write_images(root / "sets" / "test.arrow", 22)
    (root / "recipe.yaml").write_text("")
    (root / "my_nets.py").write_text(MODULE)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Any:
    """A recipe whose data lies in the project."""
    here = ("data.train=sets/train.arrow", "data.test=sets/test.arrow")
    return lambda *overrides: make_recipe(*here, *overrides)


def check(recipe: Recipe, root: Path, runtime_env: Mapping[str, Any] = RUNTIME_ENV) -> list[str]:
    """The warnings."""
    warnings: list[str] = []
    check_job(recipe, "recipe.yaml", root, runtime_env, warnings.append)
    return warnings


def refused(recipe: Recipe, root: Path, runtime_env: Mapping[str, Any] = RUNTIME_ENV) -> list[str]:
    """The lines of the error."""
    with pytest.raises(PreflightError) as caught:
        check(recipe, root, runtime_env)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


# -- files ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "a.pt", "b.arrow", "c d"])
PATTERNS = st.lists(
    st.one_of(NAMES, st.sampled_from(["*.pt", "/a", "a/", "!a", "**/b", "*", "!*/", "# a", "a/b"])),
    max_size=3,
)


@settings(max_examples=40)
@given(
    paths=st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=6),
    ignored=st.dictionaries(st.sampled_from([".gitignore", "a/.gitignore", "b/.rayignore"]), PATTERNS),
    excludes=PATTERNS,
)
def test_what_stays_behind_is_what_ray_leaves(
    paths: list[str], ignored: dict[str, list[str]], excludes: list[str]
) -> None:
    with TemporaryDirectory() as folder:
        root, package = Path(folder) / "root", Path(folder) / "package.zip"
        root.mkdir()
        for name, content in [
            *((path, "") for path in paths),
            *((n, "\n".join(p)) for n, p in ignored.items()),
        ]:
            file = root / name
            if all(not parent.is_file() for parent in file.parents) and not file.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
        create_package(str(root), package, include_gitignore=True, excludes=excludes)
        packed = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
        found = packed_paths(root, excludes)
        assert found is not None
        assert {str(path.relative_to(root)) for path in found if path.is_file()} == packed


def test_ray_does_not_say_what_it_ignores(project: Path) -> None:
    (project / ".gitignore").write_text("*.arrow\n")
    records: list[logging.LogRecord] = []
    handler, logger = logging.Handler(), logging.getLogger("ray")
    handler.emit = records.append  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        packed_paths(project, [])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert not records


def test_all_that_is_needed_is_there(project: Path, recipe: Any) -> None:
    assert check(recipe("students.a.model=my_nets:Net"), project) == []


def test_files_that_stay_behind_are_named(project: Path, recipe: Any) -> None:
    (project / ".gitignore").write_text("sets/test.arrow\nrecipe.yaml\nvit/*.json\n")
    torch.save(nn.Linear(1, 1).state_dict(), project / "weights" / "a.pt")
    (project / "vit").mkdir()
    (project / "vit" / "config.json").write_text('{"model_type": "vit"}')
    lines = refused(recipe("students.a.weights=weights/a.pt", "students.b.model=hf:vit"), project)
    assert lines[0] == (
        "recipe: 'recipe.yaml' is kept back from the upload by .gitignore or .rayignore; it must be uploaded"
    )
    assert lines[1] == (
        "data.test: 'sets/test.arrow' is kept back from the upload by .gitignore or .rayignore; "
        "give an absolute path that all hosts share"
    )
    assert lines[2].startswith(
        "students.a.weights: 'weights/a.pt' is kept back from the upload by excludes of"
    )
    assert lines[3].startswith(
        "students.b.model: 'vit/config.json' is kept back from the upload by .gitignore"
    )
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "../train.arrow",
            "'../train.arrow' lies outside of the folder that is uploaded, '{root}'; give an abs",
        ),
        ("sets/none.arrow", "'sets/none.arrow' is not in the folder that is uploaded, '{root}'; give an abs"),
    ],
)
def test_files_that_are_not_in_the_folder_are_named(
    project: Path, recipe: Any, path: str, words: str
) -> None:
    write_images(project.parent / "train.arrow", 60)
    (line,) = refused(recipe(f"data.train={path}"), project)
    assert line.startswith("data.train: " + words.format(root=project))


def test_a_shard_that_stays_behind_is_named(project: Path, recipe: Any) -> None:
    (project / ".rayignore").write_text("two.arrow\n")
    (project / "shards").mkdir()
    for name in ("one", "two"):
        write_images(project / "shards" / f"{name}.arrow", 60)
    (project / "shards" / "._two.arrow").write_text("hidden")
    (line,) = refused(recipe("data.train=shards"), project)
    assert line.startswith("data.train: 'shards' is kept back from")
    assert "'shards/two.arrow'" in line


def test_gitignore_counts_as_ray_counts_it(
    project: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".gitignore").write_text("*.arrow\n")
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert check(recipe(), project) == []


def test_a_folder_that_is_too_large(project: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = largest_package()
    assert limit == 100 << 20
    with (project / "large.bin").open("wb") as file:
        file.truncate(limit)
    (line,) = refused(recipe(), project)
    assert "takes less than 104.9 MB (the largest: large.bin 104.9 MB" in line
    assert check(recipe(), project, {"excludes": ["large.bin"]}) == []


def test_a_file_without_an_end(project: Path, recipe: Any) -> None:
    os.mkfifo(project / "pipe")
    (line,) = refused(recipe(), project)
    assert line == f"{project / 'pipe'} is no regular file, and Ray would wait for its end: move it elsewhere"


@pytest.mark.parametrize("excludes", ["*.pt", [1], {"a": 1}])
def test_excludes_of_a_wrong_type(project: Path, recipe: Any, excludes: Any) -> None:
    with pytest.raises(UserError, match="--runtime-env: excludes must be a list of texts"):
        check(recipe(), project, {"excludes": excludes})


def test_a_gitignore_that_cannot_be_read(project: Path, recipe: Any) -> None:
    (project / ".gitignore").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be packed: UnicodeDecodeError"):
        check(recipe(), project)


# -- modules -------------------------------------------------------------------------------------


def test_a_module_that_another_imports_stays_behind(project: Path, recipe: Any) -> None:
    (project / "parts").mkdir()
    (project / "parts" / "__init__.py").write_text("")
    (project / "parts" / "blocks.py").write_text("from my_nets import Net")
    (project / "top.py").write_text("from parts.blocks import Net")
    (project / ".gitignore").write_text("blocks.py\n")
    (line,) = refused(recipe("students.a.model=top:Net"), project)
    assert line.startswith(
        "module parts.blocks: 'parts/blocks.py' is kept back from the upload by .gitignore"
    )


def test_a_module_outside_of_the_folder(project: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = project.parent / "other"
    other.mkdir()
    (other / "far_nets.py").write_text(MODULE)
    monkeypatch.chdir(other)
    monkeypatch.syspath_prepend(other)  # as the command does
    (line,) = refused(recipe("students.a.model=far_nets:Net"), project)
    assert line.startswith(
        f"module far_nets ({other}/far_nets.py) lies outside of the folder in which the job"
    )
    more = {"env_vars": {"PYTHONPATH": "/mnt/modules"}}
    assert check(recipe("students.a.model=far_nets:Net"), project, more) == []


# -- students ------------------------------------------------------------------------------------


def test_students_are_built_without_memory_where_that_is_possible(project: Path, recipe: Any) -> None:
    """A network of 4 TB, and one whose factory needs numbers."""
    changes = ["students.a.model=my_nets:huge", "students.b.model=my_nets:counts"]
    assert check(recipe(*changes), project) == []


def test_every_student_that_cannot_be_built_is_named(project: Path, recipe: Any) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), project.parent / "w.pt")
    models = ["cnn_smal", "my_nets:raises", "my_nets:needs_more", "my_nets:None_", "none_nets:Net"]
    students: list[dict[str, Any]] = [{"name": f"s{i}", "model": model} for i, model in enumerate(models)]
    weights = {"weights": str(project.parent / "w.pt"), "transfer": "probe"}
    students.append({"name": "s5", "model": "my_nets:Convolution", **weights})
    students.append({"name": "s6", "model": "my_nets:ends"})
    students.append({"name": "s7", "model": "mlp"})
    lines = refused(recipe(f"students={students}"), project)
    words = [
        "model 'cnn_smal' is unknown: did you mean 'cnn_small'?",
        "model 'my_nets:raises' cannot be built: RuntimeError: no such weights",
        "model 'my_nets:needs_more' cannot be built: TypeError: ",
        "model 'my_nets:None_' cannot be built: ImportError: ",
        "model 'none_nets:Net' cannot be built: ImportError: ",
        "model 'my_nets:Convolution' cannot be transferred: that needs a last torch.nn.Linear",
        "its process died (exit code 3)",
    ]
    assert len(lines) == len(words)
    for number, (line, word) in enumerate(zip(lines, words, strict=True)):
        assert line.startswith(f"student 's{number}': {word}")


def test_a_student_that_this_machine_cannot_hold_is_a_warning(project: Path, recipe: Any) -> None:
    (line,) = check(recipe("students.a.model=my_nets:is_killed"), project)
    assert line.startswith(
        "student 'a' was not built here: its process died (killed by SIGKILL; out of memory"
    )
    (line,) = check(
        recipe("students.a.model=my_nets:hangs", "students.b=null", "limits.startup_s=1"), project
    )
    assert line == "student 'a' was not built here: no answer within 1 s (limits.startup_s)"


def test_a_method_of_the_user_s_own_is_imported_too(project: Path, recipe: Any) -> None:
    (line,) = refused(recipe("distillation.method=my_nets:target"), project)
    assert line.startswith("'my_nets:target' cannot be loaded: ImportError: ")
    (project / "my_method.py").write_text("def target(*_):\n    return None\n")
    (project / ".gitignore").write_text("my_method.py")
    (line,) = refused(recipe("distillation.method=my_method:target"), project)
    assert line.startswith("module my_method: 'my_method.py' is kept back from the upload by .git")


def test_a_transform_that_cannot_be_built_is_named_once(project: Path, recipe: Any) -> None:
    (line,) = refused(recipe("data.augment=[{name: RandomCrop, siz: 8}]"), project)
    assert line.startswith("data.augment: transform 0: RandomCrop with {'siz': 8}: TypeError")


def test_what_only_the_hosts_have_is_a_warning(project: Path, recipe: Any) -> None:
    """Data, weights and a package; a network for other numbers of classes is no mistake then."""
    (project / "needs.py").write_text("import package_of_the_hosts")
    changes = ["data.train=/mnt/shared/none/train.arrow", "students.b.model=needs:Net"]
    changes += ["students.a.model=my_nets:hundred", "students.a.weights=/mnt/shared/none/a.pt"]
    first, second = check(recipe(*changes), project)
    assert first.startswith(
        "student 'a': model 'my_nets:hundred' cannot be built: AssertionError: made for four"
    )
    assert "students were built for 1000 classes and 3 channels, since data.train: /mnt/shared/none" in first
    assert second.startswith("student 'b': model 'needs:Net' cannot be built: ")
    assert second.endswith("students were not built here, which lacks 'package_of_the_hosts'")
    (line,) = refused(recipe(changes[0], "students.a.model=my_nets:Nett"), project)
    assert line.startswith("student 'a': model 'my_nets:Nett' cannot be built: ImportError")
    (line,) = refused(recipe(changes[0], "data.augment=[{name: 'my_nets:Crop'}]"), project)
    assert line.startswith("transform 0: ImportError: 'my_nets:Crop'")
    (line,) = refused(recipe("data.train=my_nets:Digits"), project)
    assert line.startswith("data.train: data set 'my_nets:Digits': ImportError: ")
