"""Hidden files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcl_dist.utils.hidden import is_hidden


@pytest.mark.parametrize("name", [".DS_Store", "._0.png", "a/._0.png", ".git/0.png", "../.x"])
def test_hidden(name: str) -> None:
    assert is_hidden(name)
    assert is_hidden(Path(name))


@pytest.mark.parametrize("name", ["a.png", "a./b..png", "../train/0.png", "a/b"])
def test_shown(name: str) -> None:
    assert not is_hidden(name)
