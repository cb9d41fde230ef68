"""The coordinator's end of the link to its launcher; two threads use it, so that neither side waits."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch.messages import (
    CohortAsked,
    EndProcess,
    EventEmitted,
    Message,
    Noticed,
    Question,
    Reply,
    StopAsked,
)
from kdcl_dist.launch.processes import GRACE_S
from kdcl_dist.run.events import Evaluating, Event, Stepped, Waiting
from kdcl_dist.utils.process import is_over

__all__ = ["BACKLOG", "CoordinatorLink", "LinkToHosts"]

#: Waiting messages from which on the events of steps are dropped.
BACKLOG = 100
#: Seconds within which a launcher answers; one that is stopped answers later or never.
ANSWER_S = 2.0


class CoordinatorLink:
    """See `kdcl_dist.coordinator.processes.Processes`: all processes are on this machine.

    Args:
        link: the pipe to the launcher.

    Attributes:
        stop: set once the launcher asks for a checkpoint and an end after the current step.
    """

    def __init__(self, link: Connection) -> None:
        self.link, self.stop = link, threading.Event()
        self.queue, self._replies = SimpleQueue[Message | None](), SimpleQueue[Reply]()
        self._notices = deque[str]()
        self._sender = threading.Thread(target=self._send, name="kdcl-sender", daemon=True)
        self._receiver = threading.Thread(target=self._receive, name="kdcl-receiver", daemon=True)
        self._sender.start()
        self._receiver.start()

    def emit(self, event: Event) -> None:
        """Send an event; one that the next of its kind replaces is dropped while many messages wait."""
        if not isinstance(event, Stepped | Evaluating | Waiting) or self.queue.qsize() < BACKLOG:
            self.queue.put(EventEmitted(event))

    def close(self) -> None:
        """Wait until all messages are sent, at most `GRACE_S`."""
        self.queue.put(None)
        self._sender.join(GRACE_S)

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the process is dead."""
        return is_over(pid)

    def has(self, name: str) -> bool:
        """True: the launcher starts all workers' processes, and waits for no resources."""
        return True

    def end(self, name: str, pid: int | None) -> None:
        """Let the launcher end the process."""
        self.queue.put(EndProcess(name, pid))

    def admit(self, recipe: Recipe, wanted: Recipe) -> None:
        """Let the launcher start processes for those who are to join."""
        self.queue.put(CohortAsked(recipe, wanted))

    def notice(self) -> str | None:
        """Once for each notice of the launcher: why a checkpoint is wanted now."""
        return self._notices.popleft() if self._notices else None

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the launcher is gone, and this process ends with it
            # Without a limit: this daemon thread ends with the process.
            while (message := self.queue.get()) is not None:
                self.link.send(message)

    def _receive(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # as above, and without a limit for the same reason
            while True:
                match self.link.recv():
                    case StopAsked():
                        self.stop.set()
                    case Noticed(text) if text not in self._notices:  # one checkpoint meets all that wait
                        self._notices.append(text)
                    case Reply() as reply:
                        self._replies.put(reply)


class LinkToHosts(CoordinatorLink):
    """The same where the processes are on several hosts: the launcher is asked about them."""

    def __init__(self, link: Connection) -> None:
        super().__init__(link)
        self._numbers, self._asking = itertools.count(), threading.Lock()

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the launcher knows that the process is dead."""
        return self._ask("is_gone", name, pid)

    def has(self, name: str) -> bool:
        """Whether the launcher has started a process for a worker."""
        return self._ask("has", name)

    def _ask(self, method: str, *arguments: str | int) -> bool:
        """The launcher's answer; False where it does not answer in time."""
        with self._asking:
            question = Question(next(self._numbers), method, arguments)
            self.queue.put(question)
            deadline = time.monotonic() + ANSWER_S
            with contextlib.suppress(Empty):
                while True:
                    reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
                    if reply.number == question.number:  # else the late answer to an earlier question
                        return reply.answer
        return False
