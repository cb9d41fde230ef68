"""What may import what, and that nothing happens at import."""

from __future__ import annotations

import ast
import functools
import importlib
import pickle
import sys
from pathlib import Path

import pytest
from cohorts import ROOT

from kdcl_dist import errors

#: The packages and top modules of kdcl_dist; each imports only from itself and those before it.
LAYERS = [
    *(
        "version",
        "errors",
        "utils",
        "distillation",
        "config",
        "data",
        "models",
        "run",
        "tracking",
        "membership",
        "exchange",
    ),
    *(
        "student",
        "coordinator",
        "launch",
        "training",
        "trial",
        "evaluation",
        "planning",
        "export",
        "compare",
        "report",
    ),
    *("cli", "api", "ensembles", "losses", "__main__", "__init__"),
]
FILES = sorted((ROOT / "kdcl_dist").rglob("*.py"))


@functools.cache
def nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, at its top or in a function."""
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


@functools.cache
def imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return frozenset(found)


def layer(module: str) -> str:
    """The package or top module that a dotted name within kdcl_dist belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def internal(path: Path) -> set[str]:
    """The modules of kdcl_dist that a file imports, at its top or in a function.

    `from package import module` is an import of the module, not of what the package's own file holds.
    """
    found = {name for name in imports(path) if name in MODULES} - {"kdcl_dist", name_of(path)}
    return found - {name.rpartition(".")[0] for name in found if path.parent == MODULES[name].parent}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    assert layer(module) in LAYERS, "give the new package its place in LAYERS"
    for name in internal(MODULES[module]):
        assert LAYERS.index(layer(name)) <= LAYERS.index(layer(module)), f"{module} imports {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module: internal(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ray_and_process_groups_stay_where_they_belong(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    assert ("ray" in tops) <= (path.parent == ROOT / "kdcl_dist/launch/ray")
    uses_groups = path.parent.name == "exchange" or path == ROOT / "kdcl_dist/membership/tcp_store.py"
    assert ("torch.distributed" in imports(path)) <= uses_groups


def test_the_method_imports_torch_numpy_and_numba_only() -> None:
    for path in (ROOT / "kdcl_dist/distillation").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert tops <= {"torch", "numpy", "numba", "llvmlite", "kdcl_dist"}
        assert all(name.startswith("kdcl_dist.distillation") for name in internal(path))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_exported_exists_and_is_sorted(path: Path) -> None:
    if path.name == "__main__.py":
        return
    module = importlib.import_module(name_of(path))
    exported = getattr(module, "__all__", [])
    assert all(hasattr(module, name) for name in exported)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_names_of_other_modules_are_in_their_all(path: Path) -> None:
    for node in nodes(path):
        if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
            continue
        names = {alias.name for alias in node.names} - {"*", "__all__"}
        names -= {name for name in names if f"{node.module}.{name}" in MODULES}
        exported = getattr(importlib.import_module(node.module), "__all__", [])
        assert names <= set(exported), f"{node.module}.__all__ lacks {sorted(names - set(exported))}"


def test_every_error_survives_pickling_and_json() -> None:
    kinds = [
        cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.KdclError)
    ]
    assert len(kinds) == 27
    for kind in kinds:
        error = kind("what", student="a", step=3, phase="gather", host="h", detail="more")
        for copy in (pickle.loads(pickle.dumps(error)), errors.from_dict(error.to_dict())):
            assert type(copy) is kind
            assert copy.to_dict() == error.to_dict()
            assert str(copy) == "student 'a', step 3, phase gather, host h: what"
    with pytest.raises(ValueError, match="os"):
        errors.from_dict({"error": "os", "message": ""})
