"""The site has the repository's files at the repository's paths, so links work there as in a checkout.

MkDocs knows only files below `docs`. Here they get their paths from the root; documents of other folders come
along, and each file or folder of code that a document links to becomes a page that shows it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jieba
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "README.zh.md")
DOCUMENTS = (*TOP, "cluster/**/*.md", "docs/**/*.md", "examples/**/*.md")
LINK = re.compile(r"\]\(\s*([^)\s#:]+)[^):]*\)")
#: Files that a browser shows, or that are for download.
AS_THEY_ARE = {".arrow", ".css", ".csv", ".parquet", ".png", ".svg"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".json": "json", ".cfg": "ini"}


class CodePage(File):
    """A file or a folder that is no document, shown on a page of its own."""

    def is_documentation_page(self) -> bool:
        """Whether MkDocs renders it: always."""
        return True


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Jieba, which divides Chinese text for the search, keeps its cache where others cannot change it."""
    folder = Path(config.site_dir).parent
    folder.mkdir(parents=True, exist_ok=True)
    jieba.dt.tmp_dir = str(folder)
    jieba.setLogLevel(logging.WARNING)
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the site: all documents, and what they link to."""
    docs = Path(config.docs_dir)
    kept = [file for file in files if file.src_dir != str(docs)]
    documents = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    linked = {target for path in documents for target in targets(path)}
    linked |= {child for path in linked if path.is_dir() for child in path.iterdir() if child.is_file()}
    linked |= set((docs / "site").glob("*.css"))
    plain = [path for path in linked if path.suffix in AS_THEY_ARE]
    shown = sorted(linked - set(plain) - set(documents))
    return Files(
        [
            *kept,
            *(file_of(path, config) for path in (*documents, *plain)),
            *(code_page(p, config) for p in shown),
        ]
    )


def targets(document: Path) -> Iterator[Path]:
    """The files and folders that a document links to and that are there; MkDocs warns of the others."""
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        path = (document.parent / unquote(target)).resolve()
        if path.exists() and path.is_relative_to(ROOT):
            yield path


def inside(folder: Path) -> list[Path]:
    """The files and folders in a folder, and in those."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def file_of(path: Path, config: MkDocsConfig) -> File:
    """A file that keeps its path."""
    return File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, use_directory_urls=True)


def code_page(path: Path, config: MkDocsConfig) -> File:
    """A page at the path of a file or folder, outside the navigation."""
    name = path.relative_to(ROOT).as_posix()
    page = CodePage(name, None, config.site_dir, use_directory_urls=True, dest_uri=f"{name}/index.html")
    page.inclusion = InclusionLevel.NOT_IN_NAV
    page.content_string = f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n{text_of(path)}"
    return page


def text_of(path: Path) -> str:
    """The Markdown that shows a file or folder."""
    if path.is_dir():
        return "\n".join(
            f"- [{child.name}]({path.name}/{child.name})" for child in inside(path) if child.parent == path
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return fenced(text, LANGUAGES.get(path.suffix, "text"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(fenced(source, "python") if kind == "code" else source for kind, source in cells)


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"`````{language}\n{text}\n`````"


def on_post_page(output: str, *, page: Page, config: Any) -> str:
    """Chinese pages say that they are Chinese: browsers choose the glyphs by that."""
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if ".zh." in page.file.src_uri else output
