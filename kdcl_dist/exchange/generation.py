"""One generation of the exchange group: all processes form it together, and its first failure is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Protocol

from kdcl_dist.errors import wrap
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.shared import SharedExchange
from kdcl_dist.membership.failure_detector import await_all
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import scoped
from kdcl_dist.run.run import Run

__all__ = ["Closes", "open_exchange"]


class Closes(Protocol):
    """Connections of a process that can be closed, more than once."""

    def close(self) -> None:
        """Close them."""


@contextmanager
def open_exchange(
    run: Run,
    monitor: Monitor,
    *,
    host: str,
    classes: int,
    pinned: bool = False,
    prepare: Callable[[], None] | None = None,
    connect: Callable[[], Closes] | None = None,
) -> Iterator[Exchange]:
    """Form the exchange group of `run.generation`; close it at the end of the block.

    Args:
        run: the run.
        monitor: of this process, which has entered the generation.
        host: address of this process.
        classes: classes of the data.
        pinned: see `Exchange`.
        prepare: called first; the others wait until it has returned.
        connect: opens other connections once all processes are ready; they are closed too.

    Raises:
        KdclError: the first failure of the generation, for any exception in this function or in the block.
            It is reported before a connection is closed, so that it precedes the failures that follow.
    """
    with ExitStack() as opened:
        try:
            if prepare is not None:
                prepare()
            await_all(monitor, run.recipe.limits.startup_s)
            others = None if connect is None else opened.enter_context(closing(connect()))
            exchange = _form(run, monitor, host, ExchangeLayout.of(run.recipe, classes), pinned)
            if others is not None:
                exchange.beside = others.close
            yield opened.enter_context(closing(exchange))
        except Exception as error:
            if error is monitor.cause:
                raise
            student = None if monitor.is_coordinator else monitor.name
            step, phase = monitor.heartbeat.step, monitor.heartbeat.phase
            raise monitor.report(wrap(error, student=student, step=step, phase=phase)) from error


def _form(run: Run, monitor: Monitor, host: str, layout: ExchangeLayout, pinned: bool) -> Exchange:
    store = scoped(monitor.store, str(run.generation))
    options: dict[str, Any] = {
        "host": host,
        "layout": layout,
        "run": run.number,
        "generation": run.generation,
        "step_s": run.recipe.limits.step_s,
        "pinned": pinned,
    }
    if assistants := sum(rank >= len(run.recipe.workers) for rank in monitor.present):
        return SharedExchange(monitor, store, recipe=run.recipe, assistants=assistants, **options)
    return Exchange(monitor, store, **options)
