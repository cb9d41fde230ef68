"""What a name of a data set is: a path, a folder of Hugging Face's, a shipped one, or an import string."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcl_dist.utils.data_specs import DEMO, data_import, data_path, moved


def test_names_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").write_text("")
    for spec, path, imported in (
        ("data/train", "data/train", None),
        ("hf:sets", "sets", None),
        ("hf:/sets/train", "/sets/train", None),
        ("my_data:train", "my_data:train", "my_data:train"),
        ("a:b", "a:b", None),
        ("kdcl:digits", str(DEMO / "digits.arrow"), None),
    ):
        assert (data_path(spec), data_import(spec)) == (path, imported)


def test_a_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "root" / "sets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    root = str(tmp_path / "root")
    assert moved("sets", root) == f"{root}/sets"
    assert moved("hf:sets", root) == f"hf:{root}/sets"
    assert moved("hf:none", root) == "hf:none"
    assert moved("my_data:train", root) == "my_data:train"
    assert moved("kdcl:digits-test", root) == "kdcl:digits-test"
    assert moved("a" * 300, root) == "a" * 300, "whoever opens it tells what is wrong"
    (tmp_path / "here" / "sets").mkdir()
    assert moved("hf:sets", root) == "hf:sets"
