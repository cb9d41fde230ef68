"""The commands and the Python code of the documents run as they stand, page after page, in a reader's folder.

What is not run says why in a comment (tests/support/pages.py). What differs from a reader's machine: recipes
train for one epoch, tables have one seed, commands get what `ADDED` says, and `kdcl` runs in this process.
`make` is left out, since it runs the tests. A Chinese page has the same commands (test_docs.py).
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cohorts import ROOT, Inject
from pages import DOCUMENTS, blocks, commands, named
from readers import PREPARE

from kdcl_dist.cli import kdcl
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import this_process

pytestmark = pytest.mark.filterwarnings("ignore")

#: What commands get besides: no Ray cluster, no epochs of the packaged recipe, no processes of importers.
ADDED = {
    "train": ["--launcher", "local"],
    "compare": ["--launcher", "local"],
    "preflight": ["--launcher", "local"],
    "demo": ["--set", "epochs=1"],
    "data import imagefolder": ["--workers", "0"],
    "data import table": ["--workers", "0"],
    "data import webdataset": ["--workers", "0"],
    "serve": ["--host", "127.0.0.1", "--port", "0"],
}
#: Seconds for a command of bash, and for a server's start.
LIMIT_S = 600

#: The documents with commands, but those in Chinese.
PAGES = {
    named(path): found
    for path in DOCUMENTS
    if ".zh." not in path.name and (found := commands(path.read_text(encoding="utf-8")))
}


def shorten(path: Path) -> None:
    """Let a recipe train for one epoch, and a table have one seed."""
    text = re.sub(r"^epochs: \d+", "epochs: 1", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^seeds: .*", "seeds: [0]", text, flags=re.MULTILINE)
    path.write_text(text.replace("step-00000220", "step-00000011"))  # the last of examples/transfer


@dataclass
class Reader:
    """Follows a page in the working directory."""

    patch: pytest.MonkeyPatch
    #: What the Python code so far has defined. As in a notebook, its module is `__main__`.
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    #: The commands so far, with what they wrote to standard output.
    printed: dict[str, str] = field(default_factory=dict)
    servers: list[Any] = field(default_factory=list)
    url: str = ""

    def read(self, page: str, *, takes: bool = False) -> None:
        """Write the files of a page, then run its commands, also those that take minutes if `takes`."""
        for block in blocks((ROOT / page).read_text(encoding="utf-8")):
            if block.title:
                Path(block.title).write_text(block.code)
                if block.language == "yaml":
                    shorten(Path(block.title))
                else:
                    compile(block.code, block.title, "exec")
        for prepare in PREPARE.get(page, ()):
            prepare(self)
        for text, language, mark in PAGES[page]:
            if not text.startswith("make ") and (not mark or (takes and mark == "takes")):
                self.follow(text, language)

    def follow(self, text: str, language: str = "sh") -> None:
        """Run a command, or a block of Python; what a page repeats runs once."""
        if text not in self.printed:
            kdcl_words = re.match(r"(?:\.venv/bin/)?kdcl ([^\n]*)$", text)
            if language == "python":
                self.printed[text] = self._python(text)
            elif kdcl_words:
                self.printed[text] = self._kdcl(shlex.split(kdcl_words[1]))
            else:
                self.printed[text] = self._bash(text)

    def _python(self, code: str) -> str:
        code = re.sub(r"epochs=\d+,", "", code).replace('launcher="local"', 'launcher="local", epochs=1')
        exec(compile(code.replace("http://127.0.0.1:8410", self.url), "a page", "exec"), self.names)
        return ""

    def _kdcl(self, words: list[str]) -> str:
        """`kdcl` in this process; `> FILE` and patterns of files are as in a shell."""
        target = words.pop() if ">" in words else None
        words = [found for word in words if word != ">" for found in expanded(word)]
        for beginning, more in ADDED.items():
            if words[: len(beginning.split())] == beginning.split():
                words += more
        if words[0] == "serve":
            return self._serve(words)
        if words[0] == "cohort":
            as_if_it_trained(words[1])
        done = CliRunner().invoke(kdcl, words)
        if done.exc_info and not isinstance(done.exception, SystemExit):
            traceback.print_exception(*done.exc_info)
        assert done.exit_code == 0, f"kdcl {shlex.join(words)}\n{done.output}"
        if target:
            Path(target).write_text(done.stdout)
            if target.endswith(".yaml"):
                shorten(Path(target))
        return done.stdout

    def _bash(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _serve(self, words: list[str]) -> str:
        """`kdcl serve` in a process of its own, until the page ends."""
        log = Path("serve.log").absolute()
        process = multiprocessing.get_context("fork").Process(target=serve, args=(words, log))
        process.start()
        self.servers.append(process)
        deadline = time.monotonic() + LIMIT_S
        while not (found := re.search(r"listens at (\S+)", log.read_text() if log.exists() else "")):
            assert process.is_alive(), log.read_text()
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        self.url = found[1]
        return ""

    def leave(self) -> None:
        """End the servers, and forget the modules of the folder."""
        for process in self.servers:
            process.terminate()
            process.join(LIMIT_S)
            assert process.exitcode == 0, Path("serve.log").read_text()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(Path.cwd())):
                del sys.modules[name]


def expanded(word: str) -> list[str]:
    """The files of a pattern; another word as it is."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def as_if_it_trained(run: str) -> None:
    """Make a run what it is while it trains, for some epochs more."""
    recipe = Path(run, "recipe.yaml")
    recipe.write_text(re.sub(r"^epochs: \d+", "epochs: 9", recipe.read_text(), flags=re.MULTILINE))
    update_record(Folder(run), state="running", launcher=this_process())


def serve(words: list[str], log: Path) -> None:
    """The process of a server; `log` gets what it prints."""
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    kdcl.main(words, standalone_mode=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all pages begin with: the examples, and a run that most pages read, `runs/mine`."""
    folder = tmp_path_factory.mktemp("pages") / "checkout"
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*.yaml"):
        shorten(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        averaged = "--set 'students.small.ema={decay: 0.9}'"
        Reader(patch).follow(f"kdcl train examples/digits.yaml --name mine {averaged}")
    return folder


@pytest.fixture
def reader(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Somebody with a folder of their own, which is the working directory."""
    shutil.copytree(checkout, tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    reader = Reader(monkeypatch)
    yield reader
    reader.leave()


def results(run: str) -> dict[str, Any]:
    found: dict[str, Any] = read_record(Folder(run))["results"]
    return found


def check_digits(reader: Reader) -> None:
    assert Path("runs/first/report.html").is_file()
    assert Path("found.csv").read_text().count("\n") > 300
    assert results("runs/first").items() <= results("runs/mine").items()


def check_node_dies(reader: Reader) -> None:
    failures = read_record(Folder("runs/dies"))["failures"]
    assert [cause["student"] for cause in failures["causes"]] == ["small"]
    assert results("runs/dies").items() <= results("runs/mine").items()


def check_planning(reader: Reader) -> None:
    """The page shows what its last command prints."""
    shown = [block for block in blocks((ROOT / "docs/planning.md").read_text()) if block.language == "text"]
    assert list(reader.printed.values())[-1].strip() == shown[0].code.strip()


#: What a page's commands must have led to, beside their exit codes.
CHECKS: dict[str, Callable[[Reader], None]] = {
    "docs/tutorials/digits.md": check_digits,
    "docs/tutorials/node-dies.md": check_node_dies,
    "docs/planning.md": check_planning,
}


def notice_death(log: Path, dead: Path) -> None:
    """Make a file as soon as a log tells of a death, or after `LIMIT_S`."""
    for _ in range(20 * LIMIT_S):
        if log.exists() and "a new one takes its place" in log.read_text():
            break
        time.sleep(0.05)
    dead.touch()


def pages_with(mark: str) -> list[str]:
    return [page for page, found in PAGES.items() if mark in {command.mark for command in found}]


@pytest.mark.parametrize("page", pages_with(""))
def test_the_commands_of_a_page_run(page: str, reader: Reader, inject: Inject, tmp_path: Path) -> None:
    if page == "docs/tutorials/node-dies.md":  # it cannot end before its death
        inject("small", "forward", 5, "hold", until=tmp_path / "dead")
        threading.Thread(
            target=notice_death, args=(Path("dies.log").absolute(), tmp_path / "dead"), daemon=True
        ).start()
    reader.read(page)
    if page in CHECKS:
        CHECKS[page](reader)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("takes"))
def test_the_commands_that_take_minutes_run(page: str, reader: Reader) -> None:
    reader.read(page, takes=True)
