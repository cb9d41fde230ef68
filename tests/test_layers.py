"""What may import what, and that nothing happens at import."""

from __future__ import annotations

import ast
import importlib
import pickle
from pathlib import Path

import pytest
from conftest import ROOT

from kdcl_dist import errors

#: A module imports only from those before it.
ORDER = [
    "version",
    "errors",
    "seeding",
    "orphans",
    "importing",
    "memory",
    "strict",
    "optimisation",
    "optimisers",
    "compiling",
    "weights",
    "recipe",
    "recipe_file",
    "staging",
    "schedules",
    "simplex",
    "ensembles",
    "losses",
    "analysis",
    "models",
    "data",
    "message",
    "plan",
    "wire",
    "alignment",
    "retrying",
    "uris",
    "storage",
    "metrics",
    "events",
    "endpoint",
    "store",
    "pulse",
    "board",
    "verdict",
    "interfaces",
    "replicas",
    "session",
    "transfer",
    "student",
    "bank",
    "room",
    "walks",
    "coordinator",
    "checkpoint",
    "meeting",
    "recovery",
    "runs",
    "placement",
    "probe",
    "preflight",
    "exchange",
    "tensorboard",
    "staleness",
    "record",
    "student_loop",
    "coordinator_loop",
    "seat",
    "chair",
    "evaluation",
    "planning",
    "launch",
    "training",
    "display",
    "statistics",
    "compare",
    "report",
    "export",
    "cli",
    "__main__",
    "__init__",
]
FILES = sorted((ROOT / "kdcl_dist").rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT / "kdcl_dist").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_import_only_from_below(path: Path) -> None:
    own = part(path)
    assert own in ORDER, "give the new module its place in ORDER"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "kdcl_dist" and len(pieces) > 1 and pieces[1] in ORDER:
            assert ORDER.index(pieces[1]) <= ORDER.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ray_and_process_groups_stay_where_they_belong(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    without_ray = (
        "__init__.py",
        "devices.py",
        "local.py",
        "members.py",
        "processes.py",
        "server.py",
        "signals.py",
    )
    assert ("ray" in tops) <= (path.parent.name == "launch" and path.name not in without_ray)
    assert ("torch.distributed" in imports(path)) <= (path.name in ("exchange.py", "replicas.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_exported_exists_and_is_sorted(path: Path) -> None:
    if path.name == "__main__.py":
        return
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    exported = getattr(module, "__all__", [])
    assert all(hasattr(module, name) for name in exported)


def test_every_error_survives_pickling_and_json() -> None:
    kinds = [
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.KdclError)
    ]
    assert len(kinds) == 24
    for kind in kinds:
        error = kind("what", student="a", step=3, phase="gather", host="h", detail="more")
        for copy in (pickle.loads(pickle.dumps(error)), errors.from_dict(error.to_dict())):
            assert type(copy) is kind
            assert copy.to_dict() == error.to_dict()
            assert str(copy) == "student 'a', step 3, phase gather, host h: what"
    with pytest.raises(ValueError, match="os"):
        errors.from_dict({"error": "os", "message": ""})
