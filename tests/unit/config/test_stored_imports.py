"""What a run folder or an export names is imported only by the user's word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.stored_imports import check_recipe_imports, check_stored_imports, import_strings
from kdcl_dist.errors import ImportRefused

RECIPE = """
data: {train: train.arrow, test: test.arrow}
students: [{name: a, model: mlp}, {name: b, model: mlp}]
"""
#: An override that puts an import string into each field that takes one, and the field's name in the error.
FIELDS = {
    "data.train={}": "data.train",
    "data.test={}": "data.test",
    "data.augment=[{{name: Resize, size: 8}}, {{name: '{}', command: x}}]": "data.augment.1.name",
    "data.test_view=[{{name: '{}', command: x}}]": "data.test_view.0.name",
    "students.b.model={}": "students.b.model",
    "students.b.model={{name: '{}', depth: 3}}": "students.b.model",
    "students.b.augment=[{{name: '{}'}}]": "students.b.augment.0.name",
}


def run_folder(folder: Path, *overrides: str) -> str:
    """A run folder whose recipe someone else wrote."""
    from kdcl_dist.config.recipe_file import dump_recipe

    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(parse_recipe(RECIPE, overrides)))
    return str(folder)


def answer(*arguments: str) -> tuple[int, str]:
    """The exit code of a command, and its one line."""
    result = CliRunner().invoke(kdcl, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    (line,) = result.output.splitlines()
    return result.exit_code, line


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A module that leaves a mark when it is imported; tells whether it was."""
    mark = tmp_path / "mark"
    (tmp_path / "evil_code.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef run(**_): raise ValueError('it ran')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return mark.exists


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--student", "b"]], ids=lambda c: c[0])
@pytest.mark.parametrize(("override", "field"), FIELDS.items(), ids=FIELDS.values())
def test_a_run_folder_imports_nothing(
    command: list[str], override: str, field: str, evil: Callable[[], bool], tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", override.format("evil_code:run"))
    for allowed in ([], ["--allow-imports", "evil_cod,code,evil_code.sub,run"]):
        code, line = answer(*command, run, *allowed)
        assert code == 2
        assert f"{field}: 'evil_code:run'" in line
        assert "--allow-imports evil_code" in line
        assert not evil()
    code, line = answer(*command, run, "--allow-imports", "other, evil_code")
    assert code == 2
    assert "allow-imports" not in line  # it lacks a checkpoint, or the data


def description(**changes: Any) -> dict[str, Any]:
    """What an export says of itself."""
    fields = {
        "run": "r", "student": "a", "model": "mlp", "step": 1, "kind": "state_dict", "weights": "w.pt",
        "sha256": "0" * 64, "input_shape": [1, 8, 8], "colours": "grey", "test_view": [], "mean": [0.5],
        "std": [0.5], "classes": ["x", "y"], "seed": 0,
    }  # fmt: skip
    return fields | changes


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model", {"model": "evil_code:run"}),
        ("model", {"model": {"name": "evil_code:run", "depth": 3}}),
        ("test_view.0.name", {"test_view": [{"name": "evil_code:run", "command": "id"}]}),
        ("test_view.1.name", {"test_view": [{"name": "Resize", "size": 8}, {"name": "evil_code:run"}]}),
    ],
)
def test_an_export_imports_nothing(
    field: str, changes: dict[str, Any], evil: Callable[[], bool], tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "preprocessing.json").write_text(json.dumps(description(**changes)))
    code, line = answer("predict", str(export), str(tmp_path))
    assert code == 2
    assert f"{field}: 'evil_code:run'" in line
    assert not evil()
    code, line = answer("predict", str(export), str(tmp_path), "--allow-imports", "evil_code")
    assert code == 2
    assert "w.pt" in line  # what it lacks next


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("mine_nets:torch.os.system", "posix"),
        ("mine_nets:system", "posix"),
        ("mine_nets:shell", "posix"),
        ("mine_nets:torch.hub.load", "torch.hub"),
        ("mine_nets:eval", "builtins"),
        ("mine_nets:os", "builtins"),
        ("mine_nets:made", "other_nets"),
    ],
)
def test_an_allowed_module_is_no_door_to_others(
    name: str, origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_nets.py").write_text("class Made:\n    def __call__(self): pass\n")
    (tmp_path / "mine_nets.py").write_text(
        "import os, torch\nfrom functools import partial\nfrom os import system\n"
        "from other_nets import Made\n"
        "eval = eval\nshell = partial(partial(system, 'true'))\nmade = Made()\n"
        "def own(**_): raise ValueError('it ran')\nown_with = partial(own, size=3)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = tmp_path / "mark"
    view = f"data.test_view=[{{name: '{name}', command: touch {mark}}}]"
    run = run_folder(tmp_path / "run", view)
    code, line = answer("evaluate", run, "--allow-imports", "mine_nets")
    assert code == 2
    assert f"the module {origin!r}" in line
    assert not mark.exists()
    for own in ("mine_nets:own", "mine_nets:own_with"):
        check_stored_imports({"test_view.0.name": own}, "r", ["mine_nets"])


def test_a_program_needs_no_network_of_the_user(tmp_path: Path) -> None:
    """An ONNX file or a torch.export program holds the computation: nothing of the user's is imported."""
    for kind in ("onnx", "torch_export"):
        export = tmp_path / kind
        export.mkdir()
        text = json.dumps(description(model="my_own_nets:tiny", kind=kind))
        (export / "preprocessing.json").write_text(text)
        code, line = answer("predict", str(export), str(tmp_path))
        assert code == 2
        assert "w.pt" in line  # what it lacks, and not a permission


def test_names_of_modules_are_checked(tmp_path: Path) -> None:
    result = CliRunner().invoke(kdcl, ["evaluate", str(tmp_path), "--allow-imports", "my_nets,os;x"])
    assert result.exit_code == 2
    assert "'os;x' is not the name of a module" in result.output


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}(\.[a-z_][a-z0-9_]{0,5}){0,2}", fullmatch=True)


@given(NAMES, NAMES, st.lists(NAMES, max_size=3))
def test_only_a_named_module_and_what_lies_below_it_is_allowed(
    module: str, attribute: str, allowed: list[str]
) -> None:
    parts = module.split(".")
    below = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    fields = {"model": f"{module}:{attribute}"}
    if below & set(allowed):
        check_stored_imports(fields, "r", allowed)
    else:
        with pytest.raises(ImportRefused, match="allow-imports"):
            check_stored_imports(fields, "r", allowed)


def test_built_in_names_and_paths_need_no_word() -> None:
    recipe = parse_recipe(RECIPE, ["data.augment=[{name: RandomCrop, size: 8}, {name: Cutout, size: 2}]"])
    check_recipe_imports(recipe, "r", ())
    for spec in ("hf:sets", "hf:sets/train", "rows.csv", "/data/rows.parquet"):
        check_recipe_imports(parse_recipe(RECIPE, [f"data.train={spec}", f"data.test={spec}"]), "r", ())
    check_recipe_imports(parse_recipe(RECIPE, ["data.train=s3://bucket/train.arrow"]), "r", ())


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:vit_b_16", "hf:vit", "hf:folder", "mlp"])
def test_networks_of_libraries_need_no_permission(name: str) -> None:
    """As models: as transforms or data their names are import strings like any other."""
    for model in (name, f"{{name: '{name}', depth: 3}}"):
        recipe = parse_recipe(RECIPE, [f"students.b.model={model}"])
        check_recipe_imports(recipe, "run", [])
        assert not import_strings(recipe)
    if ":" in name:
        recipe = parse_recipe(RECIPE, [f"data.test_view=[{{name: '{name}'}}]"])
        with pytest.raises(ImportRefused):
            check_recipe_imports(recipe, "run", [])


def test_a_server_gets_samples_by_the_users_word_only(tmp_path: Path) -> None:
    url, other = "http://127.0.0.1:9", "http://127.0.0.1:8"
    folder = run_folder(tmp_path / "run", f"students.b.model={url}")
    for allowed in ([], ["--allow-imports", other]):
        code, line = answer("evaluate", folder, *allowed)
        assert code == 2
        assert f"students.b.model: the server {url} would get the samples" in line
        assert line.endswith(f"--allow-imports {url}")
    code, line = answer("evaluate", folder, "--allow-imports", f"my_nets,{url}")
    assert "no complete checkpoint" in line
    assert import_strings(parse_recipe(RECIPE, [f"students.b.model={url}"])) == {url}


def test_a_method_and_a_loss_of_ones_own_are_import_strings() -> None:
    own = ["distillation.method={name: 'mine:method', peers: true}", "distillation.loss='mine:loss'"]
    assert import_strings(parse_recipe(RECIPE, own)) == {"mine:method", "mine:loss"}
    assert not import_strings(parse_recipe(RECIPE, ["distillation.loss=dkd"]))
