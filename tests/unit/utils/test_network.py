"""The interface of an address."""

from __future__ import annotations

import fcntl
import socket
from typing import Any

import pytest

from kdcl_dist.utils import network
from kdcl_dist.utils.network import interface_of


def test_the_loopback_interface() -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert interface_of("127.0.0.1") in names


@pytest.mark.parametrize("address", ["192.0.2.1", "", "::1", "localhost"])
def test_no_interface_has_the_address(address: str) -> None:
    assert interface_of(address) is None


def test_interfaces_without_an_address_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {b"eth1": "192.0.2.7", b"a-name-of-15-ch": "192.0.2.8"}

    def ioctl(query: socket.socket, request: int, argument: bytes) -> bytes:
        assert request == network.SIOCGIFADDR
        name = argument[:16].rstrip(b"\0")
        if name not in own:
            raise OSError(99, "no address")
        return bytes(20) + socket.inet_aton(own[name]) + bytes(232)

    names: list[Any] = [(1, "eth0"), (2, "eth1"), (3, "a-name-of-15-ch")]
    monkeypatch.setattr(socket, "if_nameindex", lambda: names)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert interface_of("192.0.2.7") == "eth1"
    assert interface_of("192.0.2.8") == "a-name-of-15-ch"
    assert interface_of("127.0.0.1") is None
