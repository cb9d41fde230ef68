"""The cohort's checkpoint: every process writes its own part, then a manifest commits the checkpoint.

    checkpoints/step-00000660/small.pt          one part for each student, one for the coordinator
    checkpoints/step-00000660/coordinator.pt
    checkpoints/step-00000660/manifest.json     written last: names, sizes and SHA-256 of all parts

A folder without a manifest, or with a part that does not match the manifest, is no checkpoint. Parts hold
only tensors and plain values, and are read with `weights_only=True`: no code in them is executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdcl_dist.errors import CheckpointError, StorageError, one_line
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.files import check_stored

__all__ = [
    "InMemory",
    "Manifest",
    "Part",
    "commit",
    "copy_part",
    "has_committed",
    "latest",
    "pack",
    "part_of",
    "prune",
    "read_manifest",
    "read_part",
    "steps",
    "unpack",
    "whole",
    "write_content",
    "write_part",
]

FORMAT = 1
ROOT = "checkpoints"
#: Bytes of the largest manifest that is read; one has some hundred for each student.
MAX_MANIFEST_BYTES = 10_000_000
#: The part that every checkpoint of a cohort has.
REQUIRED = ("coordinator",)
#: What a part may be called: a student, the coordinator, or a part of the bank; never a path.
PART_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint.

    Attributes:
        sha256: digest of its content.
        bytes: its size.
        step: training steps that its student had done; None where that is the checkpoint's step. A part is
            older than its checkpoint if the student was absent.
    """

    sha256: str
    bytes: int
    step: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint.

    Attributes:
        step: training steps done.
        parts: by name: one for each student, and "coordinator".
        format: version of the manifest's format.
        epoch: in which training goes on, from 0, or the last where early stopping has ended it; 0 in
            checkpoints of 0.1.0.
    """

    step: int
    parts: dict[str, Part]
    format: int = FORMAT
    epoch: int = 0

    @property
    def folder(self) -> str:
        """The checkpoint's folder within the run folder."""
        return _folder(self.step)

    def step_of(self, student: str) -> int:
        """Training steps that a student had done."""
        step = self.parts[student].step
        return self.step if step is None else step


@dataclass(frozen=True)
class InMemory(Manifest):
    """A checkpoint in the memory of the cohort's processes; its parts are those of students.

    Attributes:
        generation: of the exchange group in which it was taken. On a GPU the same step of another one may
            have other bits.
    """

    generation: int = 0

    @property
    def key(self) -> str:
        """Its name among those in memory."""
        return f"{self.generation}/{self.step}"


_MANIFEST = TypeAdapter(Manifest)


def pack(state: Mapping[str, Any]) -> bytes:
    """The content of a part."""
    import torch  # not at the top: looking for checkpoints does not need torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def part_of(data: bytes) -> Part:
    """The part with this content."""
    return Part(hashlib.sha256(data).hexdigest(), len(data))


def unpack(data: bytes, what: str) -> dict[str, Any]:
    """The state in the content of a part, on the CPU.

    Args:
        data: the content.
        what: names it in an error.

    Raises:
        CheckpointError: it holds more than tensors and plain values, or is no mapping.
    """
    import torch

    try:
        check_stored(io.BytesIO(data))
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of damaged bytes raises nearly anything
        raise CheckpointError(f"{what} cannot be read: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{what} is no mapping, but {type(state).__name__}")
    return state


def write_part(run: Folder, step: int, name: str, state: Mapping[str, Any]) -> Part:
    """Write one process's part; a manifest must name it before it counts.

    Raises:
        CheckpointError: the part cannot be written.
    """
    return write_content(run, step, name, pack(state))


def write_content(run: Folder, step: int, name: str, data: bytes, of_step: int | None = None) -> Part:
    """As `write_part`, of the part's content, which may be that of an earlier step."""
    try:
        run.write(f"{_folder(step)}/{name}.pt", data)
    except StorageError as error:
        raise CheckpointError(f"{error.message}; the last checkpoint stays") from error
    return replace(part_of(data), step=of_step)


def copy_part(run: Folder, earlier: Manifest, step: int, name: str) -> Part:
    """Copy a part of an earlier checkpoint to a later one; errors as `write_part` and `read_part`."""
    return write_content(run, step, name, _verified(run, earlier, name), earlier.step_of(name))


def commit(run: Folder, manifest: Manifest) -> None:
    """Write the manifest, from which on the checkpoint counts; errors as `write_part`."""
    try:
        run.remove_partial(manifest.folder)
        run.write(f"{manifest.folder}/manifest.json", json.dumps(asdict(manifest), indent=1).encode())
    except StorageError as error:
        raise CheckpointError(f"{error.message}; the last checkpoint stays") from error


def latest(run: Folder, warn: Callable[[str], None], required: Collection[str] = REQUIRED) -> Manifest | None:
    """The latest complete and undamaged checkpoint.

    Args:
        run: the run folder.
        warn: takes a text for each checkpoint that is skipped.
        required: names of the parts without which a checkpoint is not complete.
    """
    for step in reversed(steps(run)):
        try:
            return whole(run, step, required)
        except CheckpointError as error:
            warn(f"checkpoint {_folder(step)} is skipped: {error.message}")
    return None


def whole(run: Folder, step: int, required: Collection[str] = REQUIRED) -> Manifest:
    """The manifest of one step's checkpoint, after a check of all parts; arguments as `latest`.

    Raises:
        CheckpointError: the checkpoint was never completed, is damaged, or has another format.
    """
    manifest = read_manifest(run, step)
    if missing := sorted(set(required) - manifest.parts.keys()):
        raise CheckpointError(f"its manifest has no part of the {missing[0]}")
    for name in manifest.parts:
        _verified(run, manifest, name)
    return manifest


def steps(run: Folder) -> list[int]:
    """The steps that have a checkpoint folder, ascending, complete or not."""
    found = (re.fullmatch(r"step-(\d+)", name) for name in run.names(ROOT))
    return sorted(int(match[1]) for match in found if match)


def has_committed(run: Folder) -> bool:
    """Whether any checkpoint was committed, damaged or not."""
    return any(_is_committed(run, step) for step in steps(run))


def read_part(run: Folder, manifest: Manifest, name: str) -> dict[str, Any]:
    """Read one part onto the CPU.

    Raises:
        CheckpointError: the part is missing, damaged, or holds more than tensors and plain values.
    """
    return unpack(_verified(run, manifest, name), f"{name}.pt of {manifest.folder}")


def prune(run: Folder, keep: int, kept_for: Callable[[int], Collection[int]] = lambda step: ()) -> None:
    """Keep the latest `keep` committed checkpoints, and delete all older folders, committed or not.

    Args:
        run: the run folder.
        keep: number of checkpoints.
        kept_for: gives the steps of older checkpoints that stay with the one of a step.

    Raises:
        StorageError: a folder could not be deleted; the next call tries again.
    """
    found = steps(run)
    newest = [step for step in found if _is_committed(run, step)][-keep:]
    stay = {older for step in newest for older in kept_for(step)}
    for step in found:
        if newest and step < newest[0] and step not in stay:
            # Manifest first: an interrupted deletion leaves no partial checkpoint that counts.
            run.delete_file(f"{_folder(step)}/manifest.json")
            run.delete(_folder(step))


def _folder(step: int) -> str:
    return f"{ROOT}/step-{step:08d}"


def _is_committed(run: Folder, step: int) -> bool:
    return run.exists(f"{_folder(step)}/manifest.json")


def read_manifest(run: Folder, step: int) -> Manifest:
    """The manifest of one step's checkpoint, without a check of the parts.

    Raises:
        CheckpointError: the checkpoint was never completed, or has another format.
    """
    try:
        data = run.read(f"{_folder(step)}/manifest.json", MAX_MANIFEST_BYTES)
        manifest = _MANIFEST.validate_json(data, strict=True)
    except FileNotFoundError:
        raise CheckpointError("it has no manifest, so it was never completed") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"its manifest cannot be read: {where or 'it'}: {first['msg']}") from None
    except ValueError as error:
        raise CheckpointError(f"its manifest cannot be read: {error}") from None
    if (manifest.step, manifest.format) != (step, FORMAT):
        raise CheckpointError(
            f"its manifest is of step {manifest.step}, format {manifest.format}; this version reads format "
            f"{FORMAT}"
        )
    for name in manifest.parts:
        if not re.fullmatch(PART_NAME, name):
            raise CheckpointError(f"its manifest has a part {name!r}, which no file of a checkpoint is named")
    return manifest


def _verified(run: Folder, manifest: Manifest, name: str) -> bytes:
    if (part := manifest.parts.get(name)) is None:
        raise CheckpointError(f"{manifest.folder} has no part of {name!r}")
    file = f"{manifest.folder}/{name}.pt"
    try:
        fits = run.size(file) in (part.bytes, -1)  # nothing is read of a file that does not; -1: no file
        data = run.read(file) if fits else b""
    except FileNotFoundError:
        raise CheckpointError(f"{name}.pt is missing") from None
    except ValueError as error:  # no regular file
        raise CheckpointError(str(error)) from None
    if not fits or (hashlib.sha256(data).hexdigest(), len(data)) != (part.sha256, part.bytes):
        raise CheckpointError(f"{name}.pt is damaged: it is not that of the manifest ({part.bytes} bytes)")
    return data
