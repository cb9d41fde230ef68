"""Makes the training and the test set of `recipe.yaml` of lists of words, a file a language.

    python examples/languages/make_data.py data/words english=/usr/share/dict/american-english ...

A list has a word a line. The same words give the same sets, in whatever order they stand in their files.
"""

from __future__ import annotations

import argparse
import hashlib
import unicodedata
from pathlib import Path

import torch
from torch import Tensor

from kdcl_dist.data.sample_writer import SampleWriter

#: A letter's id is its place here; 0 is the padding.
LETTERS = " abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 4, 15


def plain(word: str) -> str:
    """A word in small letters without accents, which alone would tell the language."""
    parts = unicodedata.normalize("NFKD", word.strip().casefold())
    return "".join(letter for letter in parts if not unicodedata.combining(letter))


def words_of(path: Path) -> set[str]:
    """The words of a list that have 4 to 15 letters from a to z, and nothing else."""
    found = map(plain, path.read_text(encoding="utf-8").splitlines())
    return {word for word in found if SHORTEST <= len(word) <= LONGEST and set(word) <= set(LETTERS[1:])}


def chosen(paths: dict[str, Path], train: int, test: int) -> dict[str, list[tuple[str, str]]]:
    """Each split's (language, word), the languages in turn.

    Words of two languages are left out. The order of a language's words is that of their SHA-256, so that a
    smaller training set is part of a larger one, and the test set stays.
    """
    words = {language: words_of(path) for language, path in paths.items()}
    rows: dict[str, list[list[tuple[str, str]]]] = {"test": [], "train": []}
    for language, own in words.items():
        own = own.difference(*(others for name, others in words.items() if name != language))
        if len(own) < train + test:
            raise SystemExit(f"{paths[language]}: {len(own)} words, need {train + test}")
        order = sorted(own, key=lambda word: hashlib.sha256(word.encode()).digest())
        rows["test"].append([(language, word) for word in order[:test]])
        rows["train"].append([(language, word) for word in order[test : test + train]])
    return {
        split: [row for turn in zip(*lists, strict=True) for row in turn] for split, lists in rows.items()
    }


def encode(word: str) -> Tensor:
    """The ids of a word's letters, int32 (L,)."""
    return torch.tensor([LETTERS.index(letter) for letter in word], dtype=torch.int32)


def main() -> None:
    """Write `train.arrow` and `test.arrow`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the two files")
    parser.add_argument("lists", nargs="+", metavar="LANGUAGE=FILE", help="two or more lists of words, UTF-8")
    parser.add_argument("--train", type=int, default=400, help="training words a language (default 400)")
    parser.add_argument("--test", type=int, default=200, help="test words a language (default 200)")
    parser.add_argument("--license", default="", help="terms of use, kept in the files")
    args = parser.parse_args()
    paths = {language: Path(path) for language, _, path in (item.partition("=") for item in args.lists)}
    source = ", ".join(f"{language}: {path.name}" for language, path in paths.items())
    for split, rows in chosen(paths, args.train, args.test).items():
        path = args.folder / f"{split}.arrow"
        with SampleWriter(path, list(paths), source=source, license=args.license) as writer:
            for language, word in rows:
                writer.add(language, encode(word))


if __name__ == "__main__":
    main()
