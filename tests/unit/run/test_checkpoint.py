"""Checkpoints: complete or absent, and recognised when damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from kdcl_dist.errors import CheckpointError
from kdcl_dist.run import checkpoint as C
from kdcl_dist.run.storage import Folder


def save(folder: Folder, step: int) -> C.Manifest:
    parts = {
        name: C.write_part(folder, step, name, {"value": torch.tensor(step)}) for name in ("a", "coordinator")
    }
    manifest = C.Manifest(step, parts)
    C.commit(folder, manifest)
    return manifest


def test_round_trip_and_retention(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for step in (3, 10, 200):
        save(folder, step)
    assert C.latest(folder, print).step == 200
    assert C.read_part(folder, C.latest(folder, print), "a")["value"] == 200
    C.prune(folder, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000200"]


@pytest.mark.parametrize("part", ["a.pt", "coordinator.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_a_damaged_one_is_skipped_for_the_one_before(tmp_path: Path, part: str, damage: str) -> None:
    folder = Folder(str(tmp_path))
    save(folder, 1)
    save(folder, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / part
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-5], "flip": flipped, "empty": b""}[damage])
    notes: list[str] = []
    assert C.latest(folder, notes.append).step == 1
    assert len(notes) == 1
    assert "step-00000002" in notes[0]


def test_a_crash_at_any_byte_leaves_the_one_before(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    save(folder, 1)
    save(folder, 2)
    for name in ("manifest.json", "coordinator.pt", "a.pt"):  # as they are written, the last first
        path = tmp_path / "checkpoints" / "step-00000002" / name
        content = path.read_bytes()
        for cut in range(0, len(content), 1 if name == "manifest.json" else 37):
            path.write_bytes(content[:cut])
            assert C.latest(folder, lambda text: None).step == 1, f"{name}, {cut} bytes"
        path.unlink()
        assert C.latest(folder, lambda text: None).step == 1


def test_what_is_half_deleted_is_no_checkpoint_and_the_last_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    for step in (1, 2, 3):
        save(folder, step)

    def dies(self: Folder, path: str) -> None:
        raise OSError("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", dies)
        with pytest.raises(OSError, match="ends here"):
            C.prune(folder, keep=1)
    assert not (tmp_path / "checkpoints/step-00000001/manifest.json").exists()
    assert C.latest(folder, print).step == 3
    C.prune(folder, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_part_is_carried_over_with_its_own_step(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    manifest = save(folder, 1)
    for step in (2, 3):
        part = C.copy_part(folder, manifest, step, "a")
        own = C.write_part(folder, step, "coordinator", {})
        manifest = C.Manifest(step, {"a": part, "coordinator": own})
        C.commit(folder, manifest)
        assert C.latest(folder, print) == manifest
        assert (part.step, C.read_part(folder, manifest, "a")["value"]) == (1, 1)


def test_parts_without_manifest_do_not_count(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    C.write_part(folder, 5, "a", {})
    assert C.latest(folder, lambda text: None) is None


def test_nothing_in_a_part_is_executed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (ran,)

    manifest = save(folder, 1)
    path = tmp_path / manifest.folder / "a.pt"
    torch.save({"model": Hostile()}, path)
    content = path.read_bytes()
    part = C.Part(hashlib.sha256(content).hexdigest(), len(content))
    C.commit(folder, C.Manifest(1, {**manifest.parts, "a": part}))
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        C.read_part(folder, C.latest(folder, print), "a")
    assert not ran.exists()


def test_older_checkpoints_stay_with_those_that_need_them(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    needs = {3: {1}, 4: {1, 2}, 5: {2}}
    left = []
    for step in range(1, 6):
        save(folder, step)
        C.prune(folder, 2, lambda step: needs.get(step, ()))
        left.append(C.steps(folder))
    assert left == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 4, 5]]
