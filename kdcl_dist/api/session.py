"""One training of a call in Python: its objects, what it shows, its callbacks, and a request to stop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from kdcl_dist.api.callbacks import Callback, CallbackThread
from kdcl_dist.api.display import display
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.run.events import Event, Note
from kdcl_dist.run.uris import displayed
from kdcl_dist.training import Launcher, Result
from kdcl_dist.training import train as run_training
from kdcl_dist.utils.objects import Objects, carrying

__all__ = ["run_session"]


def run_session(  # noqa: PLR0917 - those of `train`
    recipe: Recipe,
    objects: Objects,
    launcher: Launcher,
    storage: str,
    name: str | None,
    resume: bool,
    on_event: Callable[[Event], None] | None,
    callbacks: Sequence[Callback],
    stop: threading.Event | None,
) -> Result:
    """Train a recipe whose objects travel with the run; arguments and errors as `kdcl_dist.train`."""
    with (
        carrying(objects),
        display() if on_event is None else nullcontext(on_event) as show,
        nullcontext(stop) if stop else stop_on_signals(lambda text: show(Note(text))) as stop_requested,
    ):
        save = threading.Event()
        thread = CallbackThread(callbacks, stop_requested, save)

        def handle(event: Event) -> None:
            """Show an event, and let the callbacks know."""
            show(event)
            thread.handle(event)

        try:
            result = run_training(
                recipe,
                launcher=launcher,
                storage=storage,
                name=name,
                resume=resume,
                on_event=handle,
                stop=stop_requested,
                save=save,
            )
        finally:
            error = thread.close()
    if error is not None:
        path = displayed(result.path)
        error.message += f"; what was trained is saved in {path!r}, and Run({path!r}).resume() goes on"
        raise error
    if on_event is None:
        print(_line(result), file=sys.stderr)  # standard output is the script's own
    return result


def _line(result: Result) -> str:
    """How a run has ended, in one line."""
    scores = ", ".join(f"{name} {100 * values['top1']:.2f}" for name, values in result.metrics.items())
    how = "finished" if result.finished else "stopped after a checkpoint, `.resume()` goes on"
    return f"{displayed(result.path)}: {how}{f'; test top-1 % {scores}' if scores else ''}"
