"""A student's states in memory: copies that stay, and whose they are after a death."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, assert_same

from kdcl_dist.errors import SilentCorruption
from kdcl_dist.membership.tcp_store import RunStore, connect_store, host_store, shelf_of
from kdcl_dist.run.checkpoint import InMemory, pack, part_of, read_part, write_part
from kdcl_dist.run.run import Run
from kdcl_dist.student import keeper as module
from kdcl_dist.student.keeper import StateKeeper, on_host
from kdcl_dist.student.student import Student

MONITOR: Any = SimpleNamespace(name="a", client=SimpleNamespace(call=lambda operation, limit_s: operation()))


@pytest.fixture
def student(make_recipe: MakeRecipe) -> Student:
    student = Student(
        make_recipe("students.a.model=nets:Plain", "students.a.ema={decay: 0.5}"),
        0,
        classes=4,
        channels=1,
        device=torch.device("cpu"),
    )
    take_step(student)
    return student


def take_step(student: Student) -> None:
    logits_BC = student.forward(torch.rand(8, 1, 8, 8), 0)
    student.learn(logits_BC.square().mean(), 0.1)


@pytest.fixture
def store() -> Iterator[RunStore]:
    hosted, endpoint = host_store("127.0.0.1")
    shelf_of(hosted).retain("0/1")
    member = connect_store(endpoint, 10)
    member.hosted = hosted  # type: ignore[attr-defined]
    return member


def kept_by(student: Student, store: RunStore) -> tuple[StateKeeper, InMemory]:
    """A keeper with a state, and the checkpoint that it makes."""
    keeper = StateKeeper(store, MONITOR, "a", 10)
    keeper.keep("0/1", student)
    keeper.close()
    return keeper, InMemory(1, shelf_of(store.hosted).parts("0/1"))  # type: ignore[attr-defined]


def test_a_state_has_the_content_of_a_part(
    student: Student, store: RunStore, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    """And it is that of its moment: later steps do not change it."""
    run = make_run(make_recipe())
    manifest = InMemory(1, {"a": write_part(run.folder, 1, "a", student.state_dict())})
    keeper, start = kept_by(student, store)
    take_step(student)
    found, expected = keeper.state(start), read_part(run.folder, manifest, "a")
    assert found.keys() == expected.keys() == {"model", "optimizer", "scaler", "ema"}
    assert pack(found) == pack(expected)
    assert found["model"]._metadata == student.model.state_dict()._metadata
    student.load_state_dict(found)
    assert_same(student.model.state_dict(), expected["model"])


def test_a_state_is_sent_again_where_a_connection_fails(
    student: Student, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator asks for no other state until it has this one."""
    sent, put = list[str](), module.put_state

    def once(store: RunStore, checkpoint: str, name: str, data: bytes) -> None:
        sent.append(checkpoint)
        if len(sent) == 1:
            raise ConnectionResetError
        put(store, checkpoint, name, data)

    monkeypatch.setattr(module, "put_state", once)
    monkeypatch.setattr(module, "AGAIN_S", (0.0, 0.01, 0.01))
    monkeypatch.setattr(module, "END_S", 60.0)
    assert kept_by(student, store)[1].parts.keys() == {"a"}
    assert sent == ["0/1"] * 2


def test_whoever_has_no_copy_takes_that_of_the_coordinator(student: Student, store: RunStore) -> None:
    keeper, start = kept_by(student, store)
    replacement = StateKeeper(store, MONITOR, "a", 10)
    assert pack(replacement.state(start)) == pack(keeper.state(start))
    keeper.states["0/1"] = b"other bits"
    assert pack(keeper.state(start)) == pack(replacement.state(start))


def test_a_state_with_other_bits_is_not_taken(student: Student, store: RunStore) -> None:
    start = kept_by(student, store)[1]
    other = InMemory(1, {"a": part_of(b"what was kept")})
    with pytest.raises(SilentCorruption, match="its state of step 1 in memory has other bits"):
        StateKeeper(store, MONITOR, "a", 10).state(other)
    assert start.parts["a"] != other.parts["a"]


def test_the_last_two_are_kept_and_the_next_waits_for_its_turn(
    student: Student, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, leaves, sent = StateKeeper(store, MONITOR, "a", 10), threading.Event(), list[str]()

    def put(store: RunStore, checkpoint: str, name: str, data: bytes) -> None:
        sent.append(checkpoint)
        assert leaves.wait(20)
        raise ConnectionError("the coordinator is gone")

    monkeypatch.setattr(module, "put_state", put)
    monkeypatch.setattr(module, "AGAIN_S", (0.0,))
    monkeypatch.setattr(module, "END_S", 60.0)
    keeper.keep("0/1", student)
    keeper.keep("0/2", student)
    assert "0/2" not in sent, "the coordinator has given up what is on its way, and waits for this one"
    leaves.set()
    for checkpoint in ("0/3", "0/4", "0/5"):
        keeper.close()
        keeper.keep(checkpoint, student)
    keeper.close()
    assert sent == ["0/1", "0/2", "0/3", "0/4", "0/5"]
    assert [*keeper.states] == ["0/4", "0/5"]


def test_a_copy_shares_nothing() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    state = {"a": [tensor, (1, 2.5)], "b": {"c": [None]}}
    found = on_host(state)
    tensor.zero_()
    state["b"]["c"].append(1)  # type: ignore[call-overload]
    assert found["a"][0].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert found["a"][0].stride() == tensor.stride()
    assert (found["a"][1], found["b"]) == ((1, 2.5), {"c": [None]})
