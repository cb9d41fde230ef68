"""A claim on a run's name: of all starts that want one name, one at a time looks at it and takes it.

pyarrow has no conditional write, on object stores or elsewhere. So starts exclude each other by files, with
the one-bit algorithm of Burns and Lamport (L. Lamport, "The mutual exclusion problem: part II", 1986). It is
right on every storage where a listing shows all files whose writing ended before the listing began: local
disks, NFS, S3, Google Cloud Storage. A start deletes no claim but its own.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator

from kdcl_dist.errors import RunFolderError, StorageError
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import is_dead, this_process

__all__ = ["claimed"]

#: Beginning of a claim's file name, in the folder of runs.
PREFIX = ".claim-"
#: Seconds for which a start waits for others; a start holds its claim for some requests to the storage.
LIMIT_S = 120.0
#: Seconds of the first and of the longest pause between two looks at the claims.
PAUSES_S = (0.02, 1.0)
#: Bytes of the largest claim that is read.
MAX_BYTES = 1000


@contextlib.contextmanager
def claimed(root: Folder, name: str, check: Callable[[], object]) -> Iterator[None]:
    """Within the block this start is the only one that holds the claim on a name.

    Args:
        root: the folder of runs.
        name: of the run.
        check: called before each look at the other claims; it raises what ends the wait.

    Raises:
        RunFolderError: another start has held its claim for `LIMIT_S`.
        StorageError: the storage refuses or does not answer.
    """
    own = f"{PREFIX}{name}-{uuid.uuid4().hex[:12]}"
    claims = _Claims(root, name, own, check)
    try:
        claims.enter()
        yield
    finally:
        with contextlib.suppress(StorageError):  # the block's own end counts more
            root.delete_file(own)


class _Claims:
    """The claims on a name, seen by one of its starts; the lower claim of two goes first."""

    def __init__(self, root: Folder, name: str, own: str, check: Callable[[], object]) -> None:
        self.root, self.name, self.own, self.check = root, name, own, check
        self.deadline = time.monotonic() + LIMIT_S

    def enter(self) -> None:
        """Wait until no other start can be within its block, and none can enter."""
        while True:
            self.check()
            self.root.write(self.own, this_process().encode())
            if not self._lower():
                break
            self.root.delete_file(self.own)
            self._await_none(self._lower)
        self._await_none(self._higher)

    def _await_none(self, rivals: Callable[[], list[str]]) -> None:
        pause_s = PAUSES_S[0]
        while found := rivals():
            self.check()
            if time.monotonic() > self.deadline:
                raise RunFolderError(
                    f"run {self.name!r}: another start has held the name for {LIMIT_S:g} s: give another "
                    f"--name; if no other start runs, delete {found[0]} in {self.root}"
                )
            time.sleep(pause_s * random.Random().uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, PAUSES_S[1])

    def _lower(self) -> list[str]:
        return [claim for claim in self._rivals() if claim < self.own]

    def _higher(self) -> list[str]:
        return [claim for claim in self._rivals() if claim > self.own]

    def _rivals(self) -> list[str]:
        """The others' claims, without those of processes that are known to have died."""
        pattern = re.escape(f"{PREFIX}{self.name}-") + "[0-9a-f]{12}"
        found = [claim for claim in self.root.names() if re.fullmatch(pattern, claim) and claim != self.own]
        return [claim for claim in found if not self._is_dead(claim)]

    def _is_dead(self, claim: str) -> bool:
        try:
            return is_dead(self.root.read(claim, MAX_BYTES).decode())
        except FileNotFoundError:  # it was given up meanwhile
            return True
        except ValueError:  # no claim of this program
            return False
