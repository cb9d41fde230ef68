"""What a call in Python shows where it runs."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kdcl_dist.api.display import display, results_html
from kdcl_dist.run.events import EpochEnded, Event, Note, Started, Stepped, Warned

EVENTS: list[Event] = [
    Note("run folder <runs>"),
    Started(["a", "b"], {}, 2, 10, 0),
    Stepped(4, {"a": {"loss": 1.25, "top1": 0.5}}),
    Warned("look at <this>"),
    EpochEnded(0, {"a": {"loss": 1.0}}, {"a": {"top1": 0.75}, "ensemble": {"top1": 0.8}}, {}),
]


class Output:
    """A notebook's output, with all that it has shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, content: str) -> None:
        """Show something else."""
        self.shown.append(content)


def run_in(shell: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook shows of the events."""
    output = Output()

    def show(content: str, display_id: bool) -> Output:
        output.update(content)
        return output

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=show))  # type: ignore[misc]
    with display() as handle:
        for event in EVENTS:
            handle(event)
    return output.shown


def test_a_notebook_has_one_table_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run_in(SimpleNamespace(kernel=1), monkeypatch)
    assert "starting" in shown[0]
    last = shown[-1]
    for text in ("run folder &lt;runs&gt;", "warning: look at &lt;this&gt;", "epoch 2 of 2, step 10 of 20"):
        assert text in last
    assert "<tr><td>a</td><td>1.000</td><td></td><td>75.00</td></tr>" in last
    assert "<tr><td>ensemble</td><td></td><td></td><td>80.00</td></tr>" in last


def test_a_script_has_its_warnings_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in(None, monkeypatch) == []
    assert capsys.readouterr() == ("", "warning: look at <this>\n")


def test_a_terminal_with_ipython_has_the_display_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in(SimpleNamespace(), monkeypatch) == []
    assert "run folder <runs>" in capsys.readouterr().out


def test_results_are_no_html() -> None:
    assert "<td>&lt;b&gt;</td><td>0.5000</td><td>25.00</td><td></td>" in results_html(
        {"<b>": {"loss": 0.5, "top1": 0.25}}
    )
