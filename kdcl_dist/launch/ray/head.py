"""Whether the head of the Ray cluster is there: its control store (GCS) takes connections.

The steps of a run need no head. But Ray ends all processes of a cluster, the driver's too and without a word,
when the head is away for longer than Ray's own limit.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import ray

__all__ = ["Head"]

#: Ray's variable of its limit, and the value without it in seconds.
VARIABLE, RAY_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
#: Seconds between two looks, and for the answer.
LOOK_S, ANSWER_S = 2.0, 1.0


class Head:
    """The head, as the driver sees it.

    Args:
        address: of its control store; None: that of the connected cluster.
        clock: in seconds.

    Attributes:
        limit_s: half of Ray's limit; the other half is for a checkpoint.
    """

    def __init__(self, address: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.address: str = address or ray.get_runtime_context().gcs_address
        self.limit_s = float(os.environ.get(VARIABLE, RAY_S)) / 2
        self._clock, self._answered_at, self._looked_at = clock, clock(), clock()

    @property
    def is_away(self) -> bool:
        """Whether the head did not answer at the latest look."""
        return self._answered_at < self._looked_at

    def is_lost(self) -> bool:
        """Whether the head has been away for `limit_s`; looks now and then."""
        if self._clock() - self._looked_at > LOOK_S:
            self._looked_at = self._clock()
            if self._answers():
                self._answered_at = self._looked_at
        return self._clock() - self._answered_at > self.limit_s

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        except OSError:
            return False
        return True
