"""A student's process under one coordinator after another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.errors import CoordinatorLost
from kdcl_dist.exchange.member import Member
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.membership.tcp_store import host_store
from kdcl_dist.run.run import Run
from kdcl_dist.student import runtime
from kdcl_dist.student.runtime import run_student


def test_a_student_rehearses_once_whatever_becomes_of_the_coordinator(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, rehearsed = list[WorkerInfo](), list[int]()
    rehearse = runtime.dry_run

    def dry_run(student: object, data: object, index: int) -> int:
        rehearsed.append(index)
        return rehearse(student, data, index)  # type: ignore[arg-type]

    def participate(member: Member) -> bool:
        member.prepare()
        told.append(member.describe())
        if len(told) < 3:
            raise CoordinatorLost("it died")
        return True

    monkeypatch.setattr(runtime, "dry_run", dry_run)
    monkeypatch.setattr(Member, "participate", participate)
    _, endpoint = host_store("127.0.0.1")
    run = make_run(make_recipe("failure.max_failures=2"))
    here, cpu = "127.0.0.1", torch.device("cpu")
    assert run_student(run, 1, lambda lost: endpoint, host=here, device=cpu, stop=lambda: False)
    assert rehearsed == [1]
    assert told == [told[0]] * 3
