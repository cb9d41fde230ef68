"""The store of a run: torch's TCPStore, which the coordinator hosts and the students connect to."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from kdcl_dist.errors import CoordinatorLost, one_line
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.store import Store

__all__ = ["c10d", "connect_store", "host_store", "scoped"]

#: torch.distributed without its annotations, which lack the stores and the process groups.
c10d: Any = dist


def host_store(host: str) -> tuple[Store, Endpoint]:
    """Open the run's store on a free port of an address, for the coordinator."""
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
    """Connect to the coordinator's store.

    Raises:
        CoordinatorLost: nothing listens at the endpoint, or nothing answers within `limit_s` seconds.
    """
    host, port = endpoint.host, endpoint.port
    try:
        # The store's client retries a refused connection until its limit; here it means that no store exists.
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
    """A part of the store under a prefix, such as that of one run or of one generation."""
    part: Store = c10d.PrefixStore(name, store)
    return part
