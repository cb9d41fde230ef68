"""The documents, their blocks of code, and the commands in these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cohorts import ROOT

SKIPPED = (".pytest_cache", ".venv", "runs", "exports", "build", "data")
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if path.relative_to(ROOT).parts[0] not in SKIPPED)

_BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"\n]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
#: How a comment begins that says why a command is not run, or not at once.
_MARK = re.compile(r"# (needs|downloads|takes) ")
#: What a page says whose commands all need a cluster.
_PAGE_MARK = re.compile(r"commands\s+on\s+this\s+page\s+need\s")
_COMPOUND = re.compile(r"&$|\bdo\b", re.MULTILINE)


class Block(NamedTuple):
    """A block of code."""

    language: str
    #: The file that it is, or nothing.
    title: str
    code: str


class Command(NamedTuple):
    """A command of a page, or a block of Python."""

    text: str
    language: str
    #: Why it is not run: "needs" or "downloads"; or not at once: "takes". Else nothing.
    mark: str


def named(document: Path) -> str:
    """Its path from the root."""
    return str(document.relative_to(ROOT))


def blocks(markdown: str) -> list[Block]:
    """The blocks of code of a document."""
    return [
        Block(language, title, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for indent, language, title, code in _BLOCK.findall(markdown)
    ]


def commands(markdown: str) -> list[Command]:
    """The commands of a document, and its code that is no file."""
    found = [block for block in blocks(markdown) if block.language in ("sh", "python") and not block.title]
    page = "needs" if _PAGE_MARK.search(markdown) else ""
    return [Command(text, block.language, page or mark) for block in found for text, mark in _marked(block)]


def _marked(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with its mark; a mark on a line of its own is that of all below it.

    A block of Python, or with a loop or a process in the background, is one command.
    """
    rest = ""
    whole = block.language == "python" or _COMPOUND.search(block.code)
    lines = [block.code] if whole else re.sub(r" *\\\n *", " ", block.code).splitlines()
    for line in lines:
        found = _MARK.search(line)
        if line.startswith("#") and not whole:
            rest = found[1] if found else rest
        elif line.strip():
            yield line if whole else re.sub(r"\s+#.*", "", line), found[1] if found else rest
