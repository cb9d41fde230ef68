"""A process has the environment of its launcher at its start, and not that of the server's start."""

from __future__ import annotations

import pytest

from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.processes import finish, start

LIMIT_S = 120.0


def told(name: str) -> str | None:
    """What a new process knows of a variable."""
    process = start(start_server(), "a", "forked:tell_environment", name, limit_s=LIMIT_S)
    assert process.link.poll(LIMIT_S)
    value: str | None = process.link.recv()
    finish(process)
    return value


def test_a_variable_that_is_set_after_the_server_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("KDCL_TEST_KEY") is None
    monkeypatch.setenv("KDCL_TEST_KEY", "set later")
    assert told("KDCL_TEST_KEY") == "set later"
    monkeypatch.delenv("KDCL_TEST_KEY")
    assert told("KDCL_TEST_KEY") is None
