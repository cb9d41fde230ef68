"""A signal at any moment of a dry run's folder leaves no folder."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from kdcl_dist import trial
from kdcl_dist.config.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["create", "launch", "_measure"])
def test_a_signal_leaves_no_folder(
    moment: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a handler SIGTERM would end the process of this test."""
    functions = {
        "create": trial.create,
        "launch": lambda run, launcher, told, stop: moment == "_measure" or not stop.wait(60),
        "_measure": lambda *_: "measured",
    }

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return functions[moment](*arguments)

    for name, function in functions.items():
        monkeypatch.setattr(trial, name, interrupted if name == moment else function)
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(str(ROOT / "examples/digits.yaml"), [])
    stopped = nullcontext() if moment == "_measure" else pytest.raises(KeyboardInterrupt)
    with stopped:
        trial.try_run(recipe, 1, launcher="local", storage=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
