"""What documents show beside the commands that test_pages.py runs: parts of recipes, programs, addresses."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml
from cohorts import ROOT
from commands import check_options
from pages import DOCUMENTS, blocks, commands, named

from kdcl_dist.compare.experiment import Table
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_mapping, parse_recipe
from kdcl_dist.config.student import Student

TEXTS = {named(path): path.read_text(encoding="utf-8") for path in DOCUMENTS}
LANGUAGES = {"sh", "python", "yaml", "text", "bibtex"}
PARTS = [
    pytest.param(block.code, id=f"{page}-{block.code.splitlines()[0]}")
    for page, text in TEXTS.items()
    if ".zh." not in page and page != "cluster/grafana/README.md"  # of Prometheus
    for block in blocks(text)
    if block.language == "yaml" and yaml.safe_load(block.code)
]
#: A recipe of which a block may be a part.
WHOLE = {
    "epochs": 100,
    "data": {"train": "train.arrow", "test": "test.arrow"},
    "students": [{"name": "a", "model": "mlp"}, {"name": "b", "model": "mlp"}],
}


def words_of(text: str) -> list[str]:
    """All commands of a document, those within its sentences too, a line each."""
    inline = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", inline)]
    return [*spans, *(command.text for command in commands(text) if command.language == "sh")]


#: The changes name what earlier versions had.
WORDS = sorted({line for page, text in TEXTS.items() if page != "CHANGELOG.md" for line in words_of(text)})


def test_commands_are_found_with_their_marks() -> None:
    text = (
        "```sh\nkdcl a \\\n  --b  # a note\nkdcl c    # takes minutes\n# needs a cluster\nkdcl d\n```\n"
        '  ```python title="x.py"\n  e = 1\n  ```\n```sh\nkdcl f > log &\nwait\n```\n'
    )
    assert commands(text) == [
        ("kdcl a --b", "sh", ""),
        ("kdcl c", "sh", "takes"),
        ("kdcl d", "sh", "needs"),
        ("kdcl f > log &\nwait\n", "sh", ""),
    ]
    assert [(block.title, block.code) for block in blocks(text)][1] == ("x.py", "e = 1\n")
    assert commands("The commands on this page\nneed a cluster.\n\n```sh\na\n```\n") == [("a", "sh", "needs")]
    assert {"README.md", "docs/data.md"} <= {page for page in TEXTS if commands(TEXTS[page])}


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_says_its_language(page: str) -> None:
    found = blocks(TEXTS[page])
    assert len(found) == len(re.findall(r"^ *```", TEXTS[page], re.MULTILINE)) / 2
    assert {block.language for block in found} <= LANGUAGES


@pytest.mark.parametrize("code", PARTS)
def test_a_part_of_a_recipe_is_one(code: str) -> None:
    part = parse_mapping(code)
    if "arms" in part:
        Table.model_validate(part)
    elif "model" in part:
        Student.model_validate({"name": "a", **part})
    else:
        whole: dict[str, Any] = WHOLE | part | {"data": WHOLE["data"] | part.get("data", {})}  # type: ignore[operator]
        assert isinstance(parse_recipe(yaml.safe_dump(whole)), Recipe)


@pytest.mark.parametrize("line", [line for line in WORDS if re.fullmatch(r"kdcl [a-z]+ .+", line)])
def test_options_within_sentences_are_options(line: str) -> None:
    check_options(line)


class Parsed(Exception):
    """A program has taken its arguments."""


PROGRAM = re.compile(r"python -m ((?:benchmarks|examples)\.[a-z][\w.]*)((?: [^|>&]*)?)$")
#: These take paths only.
WITHOUT_OPTIONS = re.compile(r"benchmarks\.split_forward|examples\.fashion\.")
PROGRAMS = sorted({found.groups() for line in WORDS if (found := PROGRAM.search(line)) and "..." not in line})


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("name", "arguments"), PROGRAMS)
def test_programs_take_their_arguments(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if WITHOUT_OPTIONS.match(name):
        assert "--" not in arguments
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> None:
        parse_args(self, *given)
        raise Parsed

    def invoke(self: click.Command, context: click.Context) -> None:
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(click.Command, "invoke", invoke)
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(arguments)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(Parsed):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("page", TEXTS)
def test_addresses_are_addresses(page: str) -> None:
    for address in re.findall(r"\]\((https?:[^)\s]*)\)|<(https?:[^>\s]*)>", TEXTS[page]):
        parts = urlsplit("".join(address))
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[a-z]{2,}", parts.netloc), address
        assert not re.search(r"[`\\<>\"]|[.,]$", "".join(address)), address
