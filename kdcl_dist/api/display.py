"""What a call in Python shows of its run: a live table in IPython, one line in a script."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from kdcl_dist.run.events import EpochEnded, Event, Note, Started, Stepped, Values, Warned
from kdcl_dist.run.metrics import ENSEMBLE
from kdcl_dist.utils.text import shown

__all__ = ["display", "results_html", "table_html"]

#: Seconds between two changes of a table in a notebook.
REFRESH_S = 0.5


@contextlib.contextmanager
def display() -> Iterator[Callable[[Event], None]]:
    """The handler of events for where this process runs: a notebook, a terminal with IPython, or a script."""
    shell = _ipython()
    if shell is None:
        yield _show_warning
    elif hasattr(shell, "kernel"):
        table = _NotebookTable()
        yield table.handle
        table.show()
    else:
        from rich.console import Console

        from kdcl_dist.cli.training_display import Display

        with Display(Console()) as terminal:
            yield terminal.handle


def _ipython() -> Any:
    """The running IPython; None elsewhere. A program that has not imported it does not run in it."""
    module = sys.modules.get("IPython")
    return None if module is None else module.get_ipython()


def _show_warning(event: Event) -> None:
    if isinstance(event, Warned):
        print(shown(f"warning: {event.text}"), file=sys.stderr)


class _NotebookTable:
    """A run's progress as a table of HTML, which changes in place."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.step = 0
        self.lines: list[str] = []
        self.train: Values = {}
        self.test: Values = {}
        self.tested = "test"
        self.shown_at = 0.0
        self.handle_of_output: Any = None

    def handle(self, event: Event) -> None:
        """Take an event; the table changes twice a second at most."""
        if isinstance(event, Note | Warned):
            self.lines.append(event.text if isinstance(event, Note) else f"warning: {event.text}")
        elif isinstance(event, Started):
            self.started, self.step = event, event.step
        elif isinstance(event, Stepped):
            self.step, self.train = event.step, event.values
        elif isinstance(event, EpochEnded):
            self._end_epoch(event)
        if time.monotonic() - self.shown_at > REFRESH_S or not isinstance(event, Stepped):
            self.show()

    def _end_epoch(self, event: EpochEnded) -> None:
        self.train = event.train
        if self.started is not None:
            self.step = (event.epoch + 1) * self.started.steps_per_epoch
        if event.val or event.test:
            self.test, self.tested = (event.val, "validation") if event.val else (event.test, "test")

    def show(self) -> None:
        """Show the table as it is now."""
        from IPython.display import HTML
        from IPython.display import display as show

        self.shown_at = time.monotonic()
        content = HTML(self._html())
        if self.handle_of_output is None:
            self.handle_of_output = show(content, display_id=True)
        else:
            self.handle_of_output.update(content)

    def _html(self) -> str:
        lines = "".join(f"<div>{html.escape(shown(line))}</div>" for line in self.lines)
        if self.started is None:
            return f"{lines}<div>starting</div>"
        per_epoch, names = self.started.steps_per_epoch, [*self.started.students, ENSEMBLE]
        epoch = min(self.started.epochs, self.step // per_epoch + 1)
        rows = [
            [name, _figure(self.train, name, "loss", 1, 3), *(self._shares(name))]
            for name in dict.fromkeys((*names, *self.test))
        ]
        head = ["student", "loss", "train top-1 %", f"{self.tested} top-1 %"]
        total = self.started.epochs * per_epoch
        place = f"epoch {epoch} of {self.started.epochs}, step {self.step} of {total}"
        bar = f"<progress value='{self.step}' max='{total}'></progress> {place}"
        return f"{lines}<div>{bar}</div>{table_html(head, rows)}"

    def _shares(self, name: str) -> list[str]:
        return [_figure(values, name, "top1", 100, 2) for values in (self.train, self.test)]


def _figure(values: Values, name: str, figure: str, factor: float, digits: int) -> str:
    found = values.get(name, {}).get(figure)
    return "" if found is None else f"{factor * found:.{digits}f}"


def table_html(head: list[str], rows: list[list[str]]) -> str:
    """A table of texts, of which none is taken for HTML."""
    cells = [f"<tr>{''.join(f'<th>{html.escape(text)}</th>' for text in head)}</tr>"]
    cells += [f"<tr>{''.join(f'<td>{html.escape(shown(text))}</td>' for text in row)}</tr>" for row in rows]
    return f"<table>{''.join(cells)}</table>"


def results_html(results: Values) -> str:
    """Test results as a table: loss, top-1 and top-5 by student."""
    figures = (("loss", 1, 4), ("top1", 100, 2), ("top5", 100, 2))
    rows = [[name, *(_figure(results, name, *each) for each in figures)] for name in results]
    return table_html(["student", "loss", "top-1 %", "top-5 %"], rows)
