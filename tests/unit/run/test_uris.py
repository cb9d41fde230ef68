"""Paths and URIs of storage, and what texts show of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from kdcl_dist.cli import kdcl
from kdcl_dist.run import storage
from kdcl_dist.run.uris import displayed, join, without_secrets


@pytest.mark.parametrize(
    ("uri", "name", "joined"),
    [
        ("/runs/", "a", "/runs/a"),
        ("/what?/runs", "a", "/what?/runs/a"),
        ("s3://b/runs?region=x&scheme=http", "a/b", "s3://b/runs/a/b?region=x&scheme=http"),
        ("gs://b", "a", "gs://b/a"),
    ],
)
def test_names_are_added_before_the_query(uri: str, name: str, joined: str) -> None:
    assert join(uri, name) == joined


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@b/runs?region=x", "s3://***@b/runs?region=x"),
        ("s3://key:sec/r@e:t?@b/runs", "s3://***@b/runs"),
        ("s3://key:@b/runs", "s3://***@b/runs"),
        ("gs://anonymous@b/runs", "gs://anonymous@b/runs"),
        ("s3://b/runs@v2?region=x", "s3://b/runs@v2?region=x"),
        ("/runs/a:b@c", "/runs/a:b@c"),
        ("runs", "runs"),
    ],
)
def test_what_is_shown(uri: str, shown: str) -> None:
    assert displayed(uri) == shown


#: Every character that a person can type, of a length that no other part of the texts below has by chance.
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(st.from_regex(r"[A-Z0-9]{16,20}", fullmatch=True), SECRETS, st.booleans())
def test_no_secret_is_shown(key: str, secret: str, quoted: bool) -> None:
    uri = f"s3://{key}:{quote(secret, safe='') if quoted else secret}@b/runs"
    library = f"Cannot parse URI: '{uri}'; signature of {secret} for {uri.partition('://')[2]} does not match"
    for text in (displayed(uri), without_secrets(library, uri)):
        assert key not in text
        assert secret not in text
        assert quote(secret, safe="") not in text
    assert without_secrets("bucket b/runs not found", uri) == "bucket b/runs not found"


def test_a_path_with_an_at_sign_hides_no_less() -> None:
    uri = "s3://KEY1:wJalrXUtnFEMI@bucket/team@corp/runs"
    assert without_secrets("wJalrXUtnFEMI of KEY1:wJalrXUtnFEMI", uri) == "*** of ***:***"


def test_texts_without_credentials_stay() -> None:
    text = "Cannot parse URI: 's3://b/runs@v2'"
    assert without_secrets(text, "s3://b/runs@v2") == text


def nowhere(uri: str) -> None:
    """A storage library that quotes what it was given."""
    raise OSError(f"When resolving region for bucket in {uri}: curlCode 6, no host")


def unreadable(uri: str) -> None:
    """A storage library that does not understand what it was given."""
    raise ValueError(f"Cannot parse URI: '{uri}'")


@pytest.mark.parametrize("answer", [nowhere, unreadable])
@pytest.mark.parametrize("secret", ["wJalrXUtnFEMI", "wJal/rXUt@nFE?MI:x", "wJal%2FrXUt%40nFEMI"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "{uri}"],
        ["report", "{uri}"],
        ["export", "{uri}", "--student", "a"],
        ["train", "examples/digits.yaml", "--launcher", "local", "--storage", "{uri}"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_shows_a_secret(
    command: list[str], secret: str, answer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "open_uri", answer)
    monkeypatch.setattr(storage, "LIMIT_S", 0.0)
    monkeypatch.setattr("kdcl_dist.run.retry.PAUSES_S", (100.0, 100.0))
    uri = f"s3://AKIAIOSFODNN7EXAMPLE:{secret}@bucket/runs/x?region=eu-west-1"
    result = CliRunner().invoke(kdcl, [part.format(uri=uri) for part in command])
    assert result.exit_code == 2, result.output
    assert "s3://***@bucket/runs/x" in result.output
    assert not re.search("AKIA|wJal|nFE", result.output)


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of opening, but of every operation after it."""
    folder = storage.Folder("/", limit_s=0.0)
    folder.uri = "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/runs"

    class Refuses(fs.LocalFileSystem):
        def get_file_info(self, path: object) -> None:
            raise OSError(5, f"access denied for {folder.uri}")

    folder._fs = Refuses()
    with pytest.raises(storage.StorageError, match=r"s3://\*\*\*@") as caught:
        folder.exists("x")
    assert "wJal" not in str(caught.value)
    assert Path("/").is_dir()
