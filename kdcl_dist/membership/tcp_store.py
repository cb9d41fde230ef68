"""The coordinator's store itself: torch's TCPStore, hosted by the coordinator and reached by the students."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from kdcl_dist.errors import CoordinatorLost, one_line
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.store import Store

__all__ = ["c10d", "connect_store", "host_store", "scoped"]


#: torch's annotations leave out the stores and the gloo group.
c10d: Any = dist


def host_store(host: str) -> tuple[Store, Endpoint]:
    """Open the run's store on a free port of one address; for the coordinator."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    store: Store = c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )
    return store, Endpoint(host, port)


def connect_store(endpoint: Endpoint, limit_s: float) -> Store:
    """Reach the coordinator's store.

    Raises:
        CoordinatorLost: nothing listens there any more, or nobody answers within `limit_s` seconds.
    """
    host, port = endpoint.host, endpoint.port
    try:
        # The store's client tries a refused connection until its limit; here it means that nobody is there.
        socket.create_connection((host, port), timeout=limit_s).close()
        store: Store = c10d.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=limit_s)
        )
        return store
    except (OSError, RuntimeError) as error:
        raise CoordinatorLost(
            f"the coordinator's store at {host}:{port} cannot be reached within {limit_s:g} s "
            f"(limits.startup_s): {one_line(error)}",
            phase="start",
        ) from error


def scoped(store: Store, name: str) -> Store:
    """A part of the store, such as that of one run, or of one generation of its group."""
    part: Store = c10d.PrefixStore(name, store)
    return part
