"""The documents: what they link to is there, and what they tell to run can be run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from cohorts import ROOT
from commands import check, commands_in, fences

SKIPPED = (".venv", "runs", "exports", "build", "data")
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if path.relative_to(ROOT).parts[0] not in SKIPPED)
LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)")
MODULE = re.compile(r"python -m ((?:benchmarks|examples)[\w.]*)")


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


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def test_there_are_documents_links_and_commands() -> None:
    assert ROOT / "README.md" in DOCUMENTS
    assert len(list(links(ROOT / "README.md"))) > 10
    assert anchors("# One: two\n") == {"one-two"}
    assert commands_in("x\nkdcl train a \\\n  --resume  # again\nkdcl none\n") == ["kdcl train a  --resume"]
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
def test_modules_tests_and_targets_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    modules = [name.rstrip(".") for name in MODULE.findall(text)]
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    assert [name for name in re.findall(r"\b(tests/\w+\.py)", text) if not (ROOT / name).exists()] == []
    targets = re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)
    made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(targets) <= set(made)
