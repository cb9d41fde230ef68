"""A served network as a module: its forward pass asks the server.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import cached_property
from queue import SimpleQueue
from threading import Thread
from typing import Any

from torch import Tensor, nn

from kdcl_dist.data.loader import Batch
from kdcl_dist.data.samples import Inputs, named, rows
from kdcl_dist.errors import ModelError
from kdcl_dist.models.remote.client import Endpoint
from kdcl_dist.models.remote.served import Served

__all__ = ["ServedNetwork", "asked_ahead"]

#: Batches whose logits are asked for before they are needed.
AHEAD = 2


def asked_ahead(network: nn.Module, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; of a served network, the logits of the next ones are asked for before they are needed."""
    return network.ahead(batches) if isinstance(network, ServedNetwork) else batches


class ServedNetwork(nn.Module):
    """A network without parameters of its own; it computes on the CPU, and without gradient.

    Args:
        url: of the server.
        classes: C.

    Attributes:
        limit_s: seconds for an answer, all attempts together.
        names: of the classes, which the server must have too; empty: any names.
    """

    def __init__(self, url: str, classes: int) -> None:
        super().__init__()
        self.url, self.classes, self.limit_s = url, classes, 60.0
        self.names: Sequence[str] = ()
        #: By the address of a batch's first tensor, which the entry keeps alive.
        self.asked: dict[int, tuple[Future[Tensor], Inputs]] = {}

    def forward(self, *inputs: Tensor, **more: Tensor) -> Tensor:
        """The logits (B, C), float32; those that were asked for, or else this waits for an answer.

        Raises:
            ModelError: the server refuses the batch, or is none of a network with these classes.
            StudentLost: it gives no answer in time.
        """
        given: Inputs = more or (inputs if len(inputs) > 1 else inputs[0])
        first = next(iter(named(given).values()))
        future, _ = self.asked.pop(first.data_ptr(), (None, None))
        return (future or self._ask(given)).result().to(first.device)

    def ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the logits of the next ones are asked for meanwhile."""
        self.asked.clear()
        waiting: deque[Batch] = deque()
        try:
            for batch in batches:
                if rows(inputs := batch.inputs):
                    first = next(iter(named(inputs).values()))
                    self.asked[first.data_ptr()] = self._ask(inputs), inputs
                waiting.append(batch)
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
        except Exception:  # an error in later data must not cost the steps before it
            yield from waiting
            raise
        yield from waiting

    def _ask(self, inputs: Inputs) -> Future[Tensor]:
        """The logits of a batch, for which the thread asks after those before."""
        future: Future[Tensor] = Future()
        self.queue.put((future, inputs))
        return future

    @cached_property
    def queue(self) -> SimpleQueue[tuple[Future[Tensor], Inputs]]:
        """What the one thread asks for. It is a daemon: no end of the process waits for a silent server."""
        queue: SimpleQueue[tuple[Future[Tensor], Inputs]] = SimpleQueue()
        Thread(target=self._answer, args=(queue,), name="served", daemon=True).start()
        return queue

    def _answer(self, queue: SimpleQueue[tuple[Future[Tensor], Inputs]]) -> None:
        while True:
            future, inputs = queue.get()
            try:
                future.set_result(self._logits(inputs))
            except BaseException as error:  # it is raised where the answer is awaited
                future.set_exception(error)

    @cached_property
    def endpoint(self) -> Endpoint:
        """The server."""
        return Endpoint(self.url, self.limit_s)

    @cached_property
    def served(self) -> Served:
        """The server's description of the network; `ModelError` if it has not the classes of the data."""
        served = self.endpoint.describe()
        if len(served.classes) != self.classes or list(self.names or served.classes) != served.classes:
            theirs, ours = (", ".join(map(repr, names[:5])) for names in (served.classes, self.names))
            raise ModelError(
                f"endpoint {self.url} serves a network of {len(served.classes)} classes ({theirs} ...), and "
                f"the data has {self.classes} ({ours} ...): names and order must be the same"
            )
        return served

    def _logits(self, inputs: Inputs) -> Tensor:
        names = [column.name for column in self.served.inputs.columns]
        tensors = list(named(inputs).items())
        if not isinstance(inputs, dict) and len(tensors) == len(names):  # positional, whatever their names
            tensors = list(zip(names, (tensor for _, tensor in tensors), strict=True))
        return self.endpoint.logits({name: tensor.cpu() for name, tensor in tensors}, self.classes)

    def __deepcopy__(self, memo: dict[int, Any]) -> ServedNetwork:
        return self  # it has no state to copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.classes)
