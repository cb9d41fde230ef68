"""No code in the file of an export is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import assert_one_line
from exporting import run

from kdcl_dist.export import formats
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
