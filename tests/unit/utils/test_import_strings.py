"""Import strings: their form, what they name, and errors in one line."""

from __future__ import annotations

import os.path
import signal
from pathlib import Path

import pytest

from kdcl_dist.utils.import_strings import is_import_string, load_object


@pytest.mark.parametrize("text", ["a:b", "a.b:c", "a.b.c:D.e", "_a1:_b2", "package.module:Class.method"])
def test_what_is_an_import_string(text: str) -> None:
    assert is_import_string(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a.b",
        "a:",
        ":b",
        "a:b:c",
        "a.:b",
        ".a:b",
        "1a:b",
        "a:1b",
        "a b:c",
        "a-b:c",
        "a:b()",
        "C:/data",
        "data/train:x",
        "s3://bucket/key",
        "gs://bucket",
        "a:b\n",
    ],
)
def test_what_is_none(text: str) -> None:
    assert not is_import_string(text)
    with pytest.raises(ImportError, match=r"form package\.module:attribute"):
        load_object(text)


def test_the_named_object_is_found() -> None:
    assert load_object("os.path:join") is os.path.join
    assert load_object("pathlib:Path.exists") is Path.exists


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_package.module:x", "importing 'no_such_package.module' failed: ModuleNotFoundError"),
        ("os:no_such", "'os' has no attribute 'no_such'"),
        ("pathlib:Path.no_such", "'pathlib' has no attribute 'Path.no_such'"),
    ],
)
def test_what_is_missing_is_named(text: str, message: str) -> None:
    with pytest.raises(ImportError, match=message.replace(".", r"\.")) as caught:
        load_object(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
        ("x = (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("raise SystemExit", "SystemExit"),
    ],
)
def test_a_module_that_fails(
    content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kdcl_test_broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        load_object("kdcl_test_broken:x")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_is_the_users_unless_the_process_ignores_it(
    ignored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kdcl_test_interrupts.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    old = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with pytest.raises(ImportError if ignored else KeyboardInterrupt):
            load_object("kdcl_test_interrupts:x")
    finally:
        signal.signal(signal.SIGINT, old)
