"""No code in the file of an export is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import assert_one_line
from exporting import run

from kdcl_dist.errors import ExportError
from kdcl_dist.export import formats, pt2_check
from kdcl_dist.export.preprocessing import digest


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def rewritten(source: Path, change: Callable[[str, bytes], bytes]) -> bytes:
    """A zip archive with its parts changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(made := io.BytesIO(), "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return made.getvalue()


@pytest.mark.parametrize(
    "what", ["state_dict", "inputs", "pickled weight", "operator", "size", "guards", "part"]
)
def test_nothing_in_an_export_is_executed(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, what: str
) -> None:
    trap = tmp_path / "executed"
    torch.save((Trap(trap),), code := io.BytesIO())
    kind = "state_dict" if what == "state_dict" else "torch_export"
    folder = tmp_path / "x"
    shutil.copytree(exports[kind], folder)
    path = folder / formats.FORMATS[kind].file  # type: ignore[index]

    def change(name: str, data: bytes) -> bytes:
        text = data.decode() if name.endswith(".json") else ""
        if what == "inputs" and "sample_inputs" in name:
            return code.getvalue()
        if what == "pickled weight" and name.endswith("weight_0"):
            return code.getvalue()
        if what == "pickled weight":
            return text.replace('"use_pickle": false', '"use_pickle": true').encode() or data
        if what == "operator":
            return text.replace("torch.ops.aten.relu_.default", "torch.hub.load").encode() or data
        if what == "size":
            evil = f"__import__('os').mkdir('{trap}')"
            return re.sub(r"Symbol\('(\w+)'[^)]*\)", evil, text).encode() or data
        if what == "guards":
            return text.replace('"guards_code": []', '"guards_code": ["print(1)"]').encode() or data
        return data

    if what == "state_dict":
        path.write_bytes(code.getvalue())
    else:
        old = path.read_bytes()
        path.write_bytes(rewritten(path, change))
        if what == "part":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Trap(trap)))
        assert path.read_bytes() != old
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps(content | {"sha256": digest(path)}))
    words = "more than tensors" if what == "state_dict" else "could run code"
    assert_one_line(run("predict", folder, pictures / "files"), path.name, words)
    assert not trap.exists()


def test_a_plain_archive_passes_unchanged(exports: dict[str, Path], tmp_path: Path) -> None:
    """What the test above changes is what it is refused for."""
    folder = tmp_path / "x"
    shutil.copytree(exports["torch_export"], folder)
    path = folder / "model.pt2"
    path.write_bytes(rewritten(path, lambda name, data: data))
    formats.check_archive(path)


def deflated(source: Path, target: Path, part: str, data: bytes) -> None:
    """A copy of an archive in which the data, compressed, stands before the last bytes of a part."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            more = data if entry.filename.endswith(part) else b""
            new.writestr(entry.filename, more + old.read(entry))


@pytest.mark.parametrize(("kind", "part"), [("torch_export", "models/model.json"), ("state_dict", "data/0")])
def test_an_archive_unpacks_to_no_more_than_its_size(
    exports: dict[str, Path], pictures: Path, tmp_path: Path, kind: formats.Kind, part: str
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(exports[kind], folder)
    path = folder / formats.FORMATS[kind].file
    deflated(exports[kind] / path.name, path, part, b" " * 60_000_000)
    content = json.loads((folder / "preprocessing.json").read_text())
    (folder / "preprocessing.json").write_text(json.dumps(content | {"sha256": digest(path)}))
    tracemalloc.start()
    assert_one_line(run("predict", folder, pictures / "files"), path.name, "it unpacks to 60,")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_json_has_a_largest_size_and_depth(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = exports["torch_export"] / "model.pt2", tmp_path / "model.pt2"
    nested = b"[" * 100_000 + b"]" * 100_000
    path.write_bytes(
        rewritten(source, lambda name, data: nested if name.endswith("models/model.json") else data)
    )
    with pytest.raises(ExportError, match="RecursionError"):
        formats.check_archive(path)
    monkeypatch.setattr(pt2_check, "MAX_JSON_BYTES", 1000)
    with pytest.raises(ExportError, match=r"json' is larger than 1,000 bytes"):
        formats.check_archive(source)


def test_files_of_an_export_are_regular_and_small(
    exports: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    for name in ("preprocessing.json", "model.pt"):
        folder = tmp_path / f"no {name}"
        shutil.copytree(exports["state_dict"], folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert_one_line(run("predict", folder, pictures / "files"), name, "not a regular file")
    with (tmp_path / "preprocessing.json").open("wb") as file:
        file.truncate(1 << 34)
    assert_one_line(run("predict", tmp_path, pictures / "files"), "larger than 10,000,000 bytes")
    nested = "[" * 100_000 + "]" * 100_000
    (tmp_path / "preprocessing.json").write_text(nested)
    assert_one_line(run("predict", tmp_path, pictures / "files"), "preprocessing.json")
