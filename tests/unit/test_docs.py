"""The documents: their links lead somewhere, their commands run, and the code that they name is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import click
import pytest
from cohorts import ROOT
from commands import check, check_options, commands_in, fences
from pages import DOCUMENTS, named
from pydantic import BaseModel
from test_layers import LAYERS

from kdcl_dist.config.recipe import Recipe

LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)")
PACKAGE = ROOT / "kdcl_dist"
MODULE = re.compile(r"(?:python -m |\b(?=kdcl_dist\.))((?:benchmarks|examples|kdcl_dist)(?:\.[a-z]\w*)*)")
#: Files and folders of code; a document may leave out `kdcl_dist/`.
PATH = re.compile(r"(?<![\w/.-])((?:kdcl_dist|tests|benchmarks|examples|cluster)/[\w./-]*\w|\w[\w/]*\.py)\b")
#: `name` in `file.py`, and `file.py` `name`.
DEFINED_IN = re.compile(r"`([A-Za-z_][\w.]*)`\s+(?:in|of)\s+`([\w/]+\.py)`")
DEFINES = re.compile(r"`([\w/]+\.py)`\s+`([A-Za-z_][\w.]*)`")


def text_of(document: Path) -> str:
    """A document without its blocks of code, in which brackets are no links."""
    text = document.read_text(encoding="utf-8")
    for block in fences(text):
        text = text.replace(block, "")
    return text


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """The files that a document links to, with the part behind `#`."""
    for target in LINK.findall(text_of(document)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = unquote(target).partition("#")
            yield (document.parent / path if path else document), anchor


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a document without code."""
    heads = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_there_are_documents_links_and_commands() -> None:
    assert ROOT / "README.md" in DOCUMENTS
    assert len(list(links(ROOT / "README.md"))) > 10
    assert anchors("# One: two\n") == {"one-two"}
    assert commands_in("x\nkdcl train a \\\n  --resume  # again\nkdcl none\n") == ["kdcl train a  --resume"]
    with pytest.raises(click.NoSuchOption):
        check_options("kdcl train --no-such-option")
    with pytest.raises(click.UsageError):
        check("kdcl train a --no-such-option")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in links(document):
        assert path.exists(), f"{path} is not there"
        assert not anchor or anchor in anchors(text_of(path)), f"{path} has no heading {anchor!r}"


COMMANDS = sorted(
    {line for path in DOCUMENTS for block in fences(path.read_text()) for line in commands_in(block)}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_commands(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_modules_and_targets_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [name for name in MODULE.findall(text) if not is_there(name)] == []
    targets = re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)
    made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(made)


def is_there(name: str) -> bool:
    """Whether a dotted name is that of a module, or of an object in a module."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    module, _, last = name.rpartition(".")
    return found is not None or (is_there(module) and hasattr(importlib.import_module(module), last))


def code(path: str) -> Path | None:
    """The file or folder that a document names: from the root, within the package, or a test by its name."""
    found = [base / path for base in (ROOT, PACKAGE) if (base / path).exists()]
    if not found and "/" not in path:
        found = [*(ROOT / "tests").rglob(path), *(ROOT / "examples").rglob(path)]
    return found[0] if found else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_files_of_code_exist(document: Path) -> None:
    if document == ROOT / "CHANGELOG.md":  # names files of earlier versions
        return
    text = re.sub(r"\w+:/\S+", "", document.read_text(encoding="utf-8"))
    theirs = {"model.py", "my_nets.py", *re.findall(r'title="(.*)"', text)}  # of an export, of a user
    assert [path for path in PATH.findall(text) if path not in theirs and code(path) is None] == []


def definitions(tree: ast.AST) -> Iterator[str]:
    """Names that a module defines at its top, and those within its classes as `Class.name`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for name in definitions(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def pairs(text: str) -> list[tuple[str, str]]:
    """Each file with a name that a document says it defines."""
    return DEFINES.findall(text) + [(path, name) for name, path in DEFINED_IN.findall(text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_file_defines_what_a_document_finds_there(document: Path) -> None:
    for path, name in pairs(document.read_text(encoding="utf-8")):
        file = code(path)
        assert file, f"{path} is not there"
        assert name in set(definitions(ast.parse(file.read_text()))), f"{path} does not define {name}"


def test_documents_that_the_code_names_exist() -> None:
    named = {
        name for path in PACKAGE.rglob("*.py") for name in re.findall(r"docs/[\w/-]+\.md", path.read_text())
    }
    assert len(named) > 3
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_architecture_lists_every_package_from_the_top_down() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert len(pairs(text)) > 30
    listed = re.findall(r"^(\w+)/ ", text, re.MULTILINE)
    assert sorted(listed) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert listed == sorted(listed, key=LAYERS.index, reverse=True)


def rows(text: str) -> str:
    """The rows of a document's tables."""
    return "\n".join(re.findall(r"^\| .*", text, re.MULTILINE))


#: The documents in two languages, by their English names.
BOTH = sorted(Path(str(path).replace(".zh.md", ".md")) for path in DOCUMENTS if ".zh." in path.name)


@pytest.mark.parametrize("document", BOTH, ids=named)
@pytest.mark.parametrize(
    "parts",
    [
        lambda text: [re.sub(r"(?:^| +)# .*", "", block, flags=re.MULTILINE) for block in fences(text)],
        lambda text: re.findall(r"[-+]?\d+(?:\.\d+)?", rows(text)),
        lambda text: re.findall(r"^\| `(\w+)`", rows(text), re.MULTILINE),
        lambda text: [re.sub(r"#.*", "", link).replace(".zh.md", ".md") for link in LINK.findall(text)],
    ],
    ids=["commands", "numbers", "methods", "links"],
)
def test_a_document_is_the_same_in_both_languages(parts: Callable[[str], list[str]], document: Path) -> None:
    chinese = document.with_suffix(".zh.md")
    texts = [path.read_text(encoding="utf-8") for path in (document, chinese)]
    assert parts(texts[0]) == parts(texts[1])
    assert len(parts(texts[0])) > 4 or document.name != "README.md"
    assert chinese.name in LINK.findall(texts[0])
    assert document.name in LINK.findall(texts[1])


def test_the_start_the_tutorials_and_the_method_are_in_both_languages() -> None:
    tutorials = {path for path in (ROOT / "docs/tutorials").glob("*.md") if ".zh." not in path.name}
    assert len(tutorials) >= 5
    assert {*BOTH} == {ROOT / "README.md", ROOT / "docs/method.md", *tutorials}


def test_the_site_has_every_document() -> None:
    listed = re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert len(listed) == len({*listed})
    assert {named(path) for path in DOCUMENTS} - {*listed} == {"release/index.md", "tests/golden/README.md"}


@pytest.mark.parametrize("figure", ["ensembles", "time-lost"])
def test_a_figure_is_what_its_script_draws(figure: str) -> None:
    script = ROOT / f"docs/images/{figure.replace('-', '_')}.py"
    drawn = runpy.run_path(str(script))["figure"]()
    assert (script.parent / f"{figure}.svg").read_text(encoding="utf-8") == f"{drawn}\n"


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All fields of a part of a recipe, with those of its parts; a student's begin with the student's own."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in parts_of(field.annotation):
            yield from fields_of(part, "" if name == "students" else f"{prefix}{name}.")


def parts_of(annotation: Any) -> set[type[BaseModel]]:
    """The parts of a recipe that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*map(parts_of, get_args(annotation))) if get_args(annotation) else set()


def test_the_fields_beside_those_of_other_trainers_are_there() -> None:
    lines = (ROOT / "docs/compare-tools.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[-2] for line in lines if line.startswith("| ")]
    named = {name for cell in cells for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)(?:: \w+)?`", cell)}
    assert len(named) > 30
    assert named <= set(fields_of(Recipe))
