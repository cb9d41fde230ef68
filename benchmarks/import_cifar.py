"""Duration of an import of CIFAR-10 relative to a copy of the same files.

    python -m benchmarks.import_cifar

A temporary folder holds 50,000 + 10,000 random images in the official format. Copies and imports alternate;
each ends with a flush of the files to the disk. Each import is a process of its own, which times itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.cifar_files import write_cifar10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--import-one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.import_one:
        import_one(*map(Path, arguments.import_one))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inner = write_cifar10(folder, 10_000)
        archive = folder / "cifar-10-python.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(inner, inner.name)
        flush(folder)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {size(inner) / 1e6:.0f} MB")
        report_parts(inner)
        for source in (inner, archive):
            compare(source, folder, arguments.rounds)


def compare(source: Path, folder: Path, rounds: int) -> None:
    """Copy and import in alternation; print the medians and their ratio."""
    copies, imports, peaks = [], [], []
    for _ in range(rounds):
        target = folder / "copy"
        started = time.perf_counter()
        target.mkdir()
        for file in [source] if source.is_file() else sorted(source.iterdir()):
            shutil.copyfile(file, target / file.name)
        flush(target)
        copies.append(time.perf_counter() - started)
        shutil.rmtree(target)
        command = [sys.executable, "-m", "benchmarks.import_cifar", "--import-one", str(source), str(target)]
        seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        imports.append(seconds)
        peaks.append(peak)
        shutil.rmtree(target)
    copy, own = statistics.median(copies), statistics.median(imports)
    spread = f"{min(copies):.2f} to {max(copies):.2f}, {min(imports):.2f} to {max(imports):.2f}"
    print(
        f"{source.name}: copy {copy:.2f} s, import {own:.2f} s ({spread}); throughput {copy / own:.0%} of "
        f"the copy's; own memory {max(peaks) / 1e6:.0f} MB"
    )


def import_one(source: Path, target: Path) -> None:
    """Import in this process; print the seconds and the bytes of private memory."""
    from kdcl_dist.data.importers import cifar

    known = cifar.LAYOUTS["cifar10"]
    files = [source] if source.is_file() else sorted(source.iterdir())
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in files}
    own = {"archive_md5": sums[source.name]} if source.is_file() else {"md5": sums}
    cifar.LAYOUTS["cifar10"] = replace(known, **own)
    with OwnMemory() as memory:
        started = time.perf_counter()
        cifar.import_cifar("cifar10", source, target)
        flush(target)
        seconds = time.perf_counter() - started
    print(json.dumps([seconds, memory.peak]))


class OwnMemory:
    """The largest growth of this process's private memory; pages of mapped files do not count."""

    def __init__(self) -> None:
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> OwnMemory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        start = self._now()
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self._now() - start)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def report_parts(inner: Path) -> None:
    """Print the duration of each necessary part of an import, on one core."""
    from kdcl_dist.data.importers.inert_pickle import read_pickle

    data = [file.read_bytes() for file in sorted(inner.iterdir())]
    parts: dict[str, Callable[[bytes], object]] = {
        "MD5 of all bytes (the official sums)": hashlib.md5,
        "SHA-256 of all bytes (done twice: of what is written and of what is read back)": hashlib.sha256,
        "taking the pickles apart": lambda block: read_pickle(block, ""),
    }
    for name, work in parts.items():
        started = time.perf_counter()
        for block in data:
            work(block)
        print(f"{name}: {time.perf_counter() - started:.2f} s")


def flush(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
