"""The scripts of the examples: their sets are those that are shipped, and the same each time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cohorts import ROOT

from examples.languages import make_data
from examples.tabular import make_data as make_table
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.utils.data_specs import DEMO

LISTS = {
    "dutch": ["Überzee", "appel", "boom", "gezin", "hond", "huis", "kat", "same", "water"],
    "english": ["Bread", "apple", "cat's", "house", "naïve", "same", "sixteen" * 3, "tree", "windows"],
}


def words(data: Any) -> list[tuple[str, str]]:
    """(language, word) of each sample."""
    texts = ["".join(make_data.LETTERS[place] for place in data.sample(i)) for i in range(len(data))]
    return [(data.classes[label], text) for label, text in zip(data.labels, texts, strict=True)]


def make(
    folder: Path, lists: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, train: int = 4
) -> list[Path]:
    folder.mkdir()
    for language, own in lists.items():
        (folder / language).write_text("\n".join(own), encoding="utf-8")
    named = [f"{language}={folder / language}" for language in lists]
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(folder), *named, f"--train={train}", "--test=1"])
    make_data.main()
    return [folder / "train.arrow", folder / "test.arrow"]


def test_words_are_plain_balanced_of_one_language_and_of_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = (words(open_dataset(str(path))) for path in make(tmp_path / "a", LISTS, monkeypatch))
    assert [language for language, _ in train] == ["dutch", "english"] * 4
    assert [language for language, _ in test] == ["dutch", "english"]
    allowed = {("dutch", word) for word in ("uberzee", "appel", "boom", "gezin", "hond", "huis", "water")} | {
        ("english", word) for word in ("bread", "apple", "house", "naive", "tree", "windows")
    }
    assert {*train, *test} <= allowed
    assert len({*train, *test}) == 10


def test_the_order_of_the_words_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {language: own[::-1] for language, own in LISTS.items()}
    first, second = make(tmp_path / "a", LISTS, monkeypatch), make(tmp_path / "b", turned, monkeypatch)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_too_few_words_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"english: 6 words, need 7"):
        make(tmp_path / "a", LISTS, monkeypatch, train=6)


def test_the_words_that_are_shipped() -> None:
    train, test = (
        words(open_dataset(str(ROOT / f"examples/languages/{n}.arrow"))) for n in ("train", "test")
    )
    languages = ["dutch", "english", "polish", "spanish"]
    assert [language for language, _ in train] == languages * 400
    assert [language for language, _ in test] == languages * 200
    assert len({word for _, word in train + test}) == 2400


def test_the_table_that_is_shipped(tmp_path: Path) -> None:
    make_table.main(tmp_path)
    for name in ("train.csv", "test.csv"):
        assert (tmp_path / name).read_bytes() == (ROOT / "examples/tabular" / name).read_bytes()


def test_the_demo_is_the_example() -> None:
    assert (DEMO / "digits.yaml").read_bytes() == (ROOT / "examples/digits.yaml").read_bytes()
