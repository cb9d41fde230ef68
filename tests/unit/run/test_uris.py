"""Paths and URIs of storage."""

from __future__ import annotations

import pytest

from kdcl_dist.run.uris import join, without_secret


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


def test_secrets_are_not_shown() -> None:
    assert without_secret("s3://key:secret@b/runs?region=x") == "s3://***@b/runs?region=x"
    assert without_secret("gs://anonymous@b/runs") == "gs://anonymous@b/runs"
