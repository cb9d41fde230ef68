"""Ray's private interfaces: what is used of them is there, and what happens without them."""

from __future__ import annotations

import pytest
from ray._private import services, state, worker
from ray.train.v2._internal import callbacks

from kdcl_dist.launch.ray.private import (
    address_of_cluster,
    draining_nodes,
    set_title,
    spare_data_sets,
)


@pytest.mark.parametrize("has_ray_the_function", [True, False])
def test_the_address_in_the_environment_counts(
    has_ray_the_function: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_ray_the_function:
        monkeypatch.delattr(services, "get_ray_address_from_environment")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of_cluster() == "10.0.0.1:6379"


@pytest.mark.parametrize("address", ["", None])
def test_no_address_without_the_function(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(services, "get_ray_address_from_environment")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert address_of_cluster() is None


def test_draining_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.GlobalState, "get_draining_nodes", lambda self: {"node": 7})
    assert draining_nodes() == {"node"}
    monkeypatch.delattr(state.GlobalState, "get_draining_nodes")
    assert draining_nodes() is None
    monkeypatch.delattr(state, "state")
    assert draining_nodes() is None


def test_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        pass

    monkeypatch.setattr(worker, "global_worker", type("Worker", (), {"actors": {1: Actor()}}))
    set_title("run/a")
    assert Actor.__name__ == "kdcl:run/a"
    monkeypatch.delattr(worker, "global_worker")
    set_title("run/b")
    assert Actor.__name__ == "kdcl:run/a"


def test_trainers_without_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        def _create_default_callbacks(self) -> list[object]:
            made = [
                object.__new__(callbacks.DatasetsCallback),
                object.__new__(callbacks.BackendSetupCallback),
            ]
            return list[object](made)

    spared, without_private = Trainer(), Trainer()
    spare_data_sets(spared)
    (left,) = spared._create_default_callbacks()
    assert isinstance(left, callbacks.BackendSetupCallback)
    spare_data_sets(object())
    monkeypatch.delattr(callbacks, "DatasetsCallback")
    spare_data_sets(without_private)
    assert "_create_default_callbacks" not in vars(without_private)
