"""A gloo group whose members have shown that they have the token of the run."""

from __future__ import annotations

import hmac
import json
import threading
from datetime import timedelta
from typing import Any

import torch

from kdcl_dist.membership.tcp_store import RunStore, c10d
from kdcl_dist.utils.listeners import Link, links, listeners, refuse_newcomers

__all__ = ["find_links", "form_gloo"]

#: Tag of the proofs, the first messages of a group.
PROOF = 0
#: Held from before a device opens its socket until the socket is found: threads may form groups together.
_OPENING = threading.Lock()


def form_gloo(store: RunStore, rank: int, size: int, *, host: str, limit: timedelta) -> Any:
    """Form a group through a part of the store of its own; torch has no public way to form such a group.

    gloo takes for a peer whoever connects first and names its number. So the first message of each member to
    each other is a proof, and then the socket on which gloo listens accepts nobody.

    Args:
        store: the group's part of the store, which no other group has used.
        rank: of this process.
        size: processes of the group.
        host: address of this process, to which the others connect.
        limit: of the forming, and of transfers without a limit of their own.

    Raises:
        RuntimeError: the group did not form, or a connection is not of a member of the run.
    """
    with _OPENING:
        before = listeners()
        device = c10d.ProcessGroupGloo.create_device(hostname=host)
        opened = listeners() - before
    if len(opened) == 1:  # else another thread has opened a socket meanwhile
        store.set(_address_key(rank), json.dumps(next(iter(opened)).own))
    options = c10d.ProcessGroupGloo._Options()
    options._devices, options._timeout = [device], limit
    group = c10d.ProcessGroupGloo(store, rank, size, options)
    _prove(group, store, rank, size, limit)
    refuse_newcomers(opened)
    return group


def find_links(store: RunStore, rank: int, size: int) -> set[Link]:
    """The connections of a group that has formed: gloo takes 10 ms to close each, one after the other.

    None where they cannot be told from others: without /proc, or where members are threads of one process.

    Args:
        store, rank, size: as of `form_gloo`.
    """
    found = store.lookup([_address_key(peer) for peer in range(size)])
    addresses = [tuple(json.loads(each)) for each in found if each is not None]
    here = {listener.own for listener in listeners()}
    if len(addresses) < size or len(here.intersection(addresses)) > 1:
        return set()
    return {link for link in links() if link.own == addresses[rank] or link.other in addresses}


def _address_key(rank: int) -> str:
    return f"listens/{rank}"


def _prove(group: Any, store: RunStore, rank: int, size: int, limit: timedelta) -> None:
    """Send each other rank this one's proof, and require its own."""
    peers = [peer for peer in range(size) if peer != rank]
    proofs = [torch.tensor(list(store.sign(f"{rank} to {peer}")), dtype=torch.uint8) for peer in peers]
    found = [torch.zeros_like(proof) for proof in proofs]
    works = [group.send([proof], peer, PROOF) for peer, proof in zip(peers, proofs, strict=True)]
    works += [group.recv([proof], peer, PROOF) for peer, proof in zip(peers, found, strict=True)]
    for work in works:
        work.wait(limit)
    for peer, proof in zip(peers, found, strict=True):
        if not hmac.compare_digest(bytes(proof.tolist()), store.sign(f"{peer} to {rank}")):
            raise RuntimeError(
                f"the connection to rank {peer} of the gloo group is not of a member of the run: a program "
                "without the run's token connected to this host while the group formed"
            )
