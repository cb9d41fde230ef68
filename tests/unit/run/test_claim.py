"""A claim on a name: whatever the order of the storage's operations, one start at a time holds it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcl_dist.errors import RunFolderError
from kdcl_dist.run import claim
from kdcl_dist.run.claim import claimed
from kdcl_dist.run.storage import Folder


class Killed(BaseException):
    """The end of a process by a signal: nothing that it would clean up is cleaned up."""


class Taken(Exception):
    """The name belongs to another run."""


@dataclass
class Start:
    """A start's process, one storage operation at a time; `storage` is shared by all starts.

    Attributes:
        kill_at: the operation before which the process is killed, or None.
        own: names of the files that it wrote.
    """

    name: str
    storage: Storage
    kill_at: int | None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    rest: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    own: set[str] = field(default_factory=set)
    operations: int = 0
    clock_s: float = 0.0
    end: BaseException | None = None
    over: bool = False

    def wait(self) -> None:
        """Let others go on until this start's next turn."""
        self.rest.release()
        assert self.turn.acquire(timeout=120)
        self.operations += 1
        if self.kill_at is not None and self.operations >= self.kill_at:
            self.storage.dead.add(self.name)
            raise Killed

    def write(self, name: str, data: bytes) -> None:
        self.wait()
        self.storage.files[name] = data
        self.own.add(name)

    def names(self) -> list[str]:
        """Two pages, each as the storage is at its own time."""
        pages = []
        for page in range(2):
            self.wait()
            pages += [name for name in self.storage.files if int(name[-1], 16) % 2 == page]
        return pages

    def read(self, name: str, limit: int) -> bytes:
        self.wait()
        if name not in self.storage.files:
            raise FileNotFoundError(name)
        return self.storage.files[name]

    def delete_file(self, name: str) -> None:
        self.wait()
        assert name in self.own or name not in self.storage.files, f"{self.name} deletes another's {name}"
        self.storage.files.pop(name, None)

    def sleep(self, pause_s: float) -> None:
        self.clock_s += 2.0
        self.wait()


@dataclass
class Storage:
    """Files, and which processes are dead; `taken` names the starts that took the name, in order."""

    files: dict[str, bytes] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    within: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)


def begin(start: Start, rounds: int) -> None:
    """What a start does with its name: look whether it is free, and take it."""
    storage = start.storage

    def check() -> None:
        start.wait()
        if storage.taken:
            raise Taken

    try:
        with claimed(start, "r", check):  # type: ignore[arg-type]
            storage.within.append(start.name)
            check()
            for _ in range(rounds):
                start.wait()
                assert storage.within == [start.name]
            storage.taken.append(start.name)
            storage.within.remove(start.name)
    except BaseException as error:
        start.end = error
        if start.name in storage.within:
            storage.within.remove(start.name)
    start.over = True
    start.rest.release()


def play(
    order: list[int],
    ranks: list[int],
    kills: list[int | None],
    is_dead: Callable[[Storage, str], bool] = lambda storage, name: False,
) -> tuple[Storage, list[Start]]:
    """Let the starts go on by one operation each in the given order, then in turn until all have ended.

    Args:
        order: numbers of the starts that go on.
        ranks: the order of the starts' claims.
        kills: for each start the operation before which it is killed, or None.
        is_dead: whether a process is known to have died.
    """
    storage = Storage()
    starts = [Start(f"s{i}", storage, kill) for i, kill in enumerate(kills)]
    local = threading.local()
    threads = []
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(
            sleep=lambda pause_s: local.start.sleep(pause_s), monotonic=lambda: local.start.clock_s
        )
        patch.setattr(claim, "time", clock)
        draw = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{ranks[int(local.start.name[1:])]:012x}"))
        patch.setattr(claim, "uuid", draw)
        patch.setattr(claim, "this_process", lambda: local.start.name)
        patch.setattr(claim, "is_dead", lambda name: is_dead(storage, name))

        def work(start: Start) -> None:
            local.start = start
            begin(start, 2)

        for start in starts:
            threads.append(threading.Thread(target=work, args=(start,), daemon=True))
            threads[-1].start()
            assert start.rest.acquire(timeout=120)
        turns = iter(order)
        for count in range(20_000):
            alive = [start for start in starts if not start.over]
            if not alive:
                break
            start = alive[next(turns, count) % len(alive)]
            start.turn.release()
            assert start.rest.acquire(timeout=120)
        for thread in threads:
            thread.join(120)
    assert all(start.over for start in starts), "a start waits for ever"
    for start in starts:
        assert start.end is None or isinstance(start.end, (Taken, Killed, RunFolderError)), start.end
    return storage, starts


ORDERS = st.lists(st.integers(0, 3), max_size=80)
RANKS = st.permutations(range(4))


@settings(max_examples=300)
@given(order=ORDERS, ranks=RANKS, count=st.integers(2, 4))
def test_of_several_starts_exactly_one_takes_the_name(order: list[int], ranks: list[int], count: int) -> None:
    storage, starts = play(order, ranks, [None] * count)
    assert len(storage.taken) == 1
    for start in starts:
        assert (start.end is None) == (start.name in storage.taken)
        assert start.end is None or isinstance(start.end, Taken)
    assert not storage.files  # each has deleted its own claim


@settings(max_examples=150)
@given(order=ORDERS, ranks=RANKS, kill=st.integers(1, 14), known=st.booleans())
def test_a_start_that_is_killed_gives_the_name_to_one_or_to_none(
    order: list[int], ranks: list[int], kill: int, known: bool
) -> None:
    """Where its death is known, one of the others takes the name; else they end with a line."""
    storage, starts = play(
        order, ranks, [kill, None, None], lambda storage, name: known and name in storage.dead
    )
    assert len(storage.taken) <= 1
    if known:
        assert len(storage.taken) == 1
    elif not storage.taken:
        assert all(isinstance(start.end, RunFolderError) for start in starts[1:])
        assert re.fullmatch(
            r"run 'r': another start has held the name for 120 s: give another --name; if no other start "
            r"runs, delete \.claim-r-[0-9a-f]{12} in .*",
            str(starts[1].end),
        )


def test_other_names_and_other_files_are_no_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LIMIT_S", 0.0)
    root = Folder(str(tmp_path))
    for name in (".claim-r2-0123456789ab", ".claim-r-0123456789ab-0123456789ab", ".claim-r-0123.tmp", "r"):
        root.write(name, b"")
    with claimed(root, "r", lambda: None):
        assert len(root.names()) == 5
    assert len(root.names()) == 4


@pytest.mark.parametrize("content", [b"", b"\xff", b"x" * 2000, b"a b 1 2", b"- - - -"])
def test_a_claim_that_says_nothing_counts(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "LIMIT_S", 0.0)
    (tmp_path / ".claim-r-0123456789ab").write_bytes(content)
    line = r"delete \.claim-r-0123456789ab in"
    with pytest.raises(RunFolderError, match=line), claimed(Folder(str(tmp_path)), "r", lambda: None):
        pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == [".claim-r-0123456789ab"]


def test_the_end_of_a_block_is_its_own_error(tmp_path: Path) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), claimed(Folder(str(tmp_path)), "r", lambda: None):
        fail()
    assert not list(tmp_path.iterdir())
