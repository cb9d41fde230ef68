"""Images in files, and the command that imports them."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from kdcl_dist.cli import kdcl


def encoded(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 16), seed: int = 0) -> bytes:
    """A random image in a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def jpegs(*modes: str) -> list[bytes]:
    """JPEGs of several sizes and subsamplings, progressive or not; every other one with EXIF and restarts."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for number, (mode, subsampling, progressive, size) in enumerate(
        itertools.product(modes or ("L", "RGB"), (0, 1, 2), (False, True), ((1, 1), (17, 33), (64, 48)))
    ):
        more = {"exif": exif, "restart_marker_rows": 1} if number % 2 else {}
        image, buffer = Image.open(io.BytesIO(encoded("PNG", mode, (9, 7), number))), io.BytesIO()
        image.resize(size).save(buffer, "JPEG", subsampling=subsampling, progressive=progressive, **more)
        found.append(buffer.getvalue())
    return found


def png16(value: int, channels: int = 1) -> bytes:
    """A 16-bit PNG of one value, 4 x 4, written chunk by chunk."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = zlib.compress((b"\0" + struct.pack(">H", value) * 4 * channels) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def claimed(kind: str, width: int, height: int) -> bytes:
    """A small image whose header claims another size."""
    data = bytearray(encoded(kind))
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(kdcl, ["data", "import", *map(str, arguments)])


def imported(kind: str, source: Path, *more: str) -> Path:
    target = source.parent / "out"
    result = run(kind, source, target, "--workers", "0", *more)
    assert result.exit_code == 0, result.output
    assert not list(target.rglob("*.jsonl"))
    assert not list(target.parent.glob("*.part"))
    return target


def refused(kind: str, source: Path, words: str, *more: str) -> None:
    result = run(kind, source, source.parent / "refused", "--workers", "0", *more)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("kdcl: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in result.output


def make_special(path: Path, kind: str) -> None:
    """Make a "fifo", a "folder" or a "socket", or a link to a "device" that never ends."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        # By its folder's file descriptor: the path of a socket has at most 107 bytes.
        folder = os.open(path.parent, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def write_idx(path: Path, values: np.ndarray, magic: tuple[int, ...] | None = None) -> Path:
    """An IDX file, byte by byte; packed if the name ends in .gz."""
    header = bytes(magic or (0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
