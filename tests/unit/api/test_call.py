"""What `train` returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcl_dist.api import call
from kdcl_dist.api.build import Student


def test_the_run_of_a_call_may_import_what_the_call_has_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Result:
        path = "run"

    monkeypatch.setattr(call, "run_session", lambda *arguments: Result())
    monkeypatch.setattr(call, "Run", lambda path, **given: made.update(given, path=path))
    samples = [(torch.zeros(3), 0), (torch.ones(3), 1)]
    students = {"a": Student({"name": "nets:Vector"}), "b": "https://teacher.example/v1"}
    call.train(students=students, data=(samples, samples), method="linear")  # type: ignore[call-overload]
    assert made["path"] == "run"
    assert set(made["allow_imports"]) == {"nets", "https://teacher.example/v1"}
