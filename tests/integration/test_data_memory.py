"""Memory of imports and of open data sets, which does not grow with the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cohorts import ROOT
from importing import encoded

from kdcl_dist.data.dataset import Info
from kdcl_dist.data.writer import write_dataset

MEMORY = """
import sys
from pathlib import Path
from kdcl_dist.data.dataset import ArrowDataset

def own_bytes():
    # What no other process can share, unlike clean pages of a mapped file.
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))

small, large = sys.argv[1:]
ArrowDataset(small).image(0)  # whatever is allocated once
before = own_bytes()
found = ArrowDataset(large)
assert sum(int(found.image(i).sum()) for i in range(len(found))) == 0
assert "big.arrow" in Path("/proc/self/maps").read_text()
print(own_bytes() - before)
"""


def test_all_processes_share_one_mapping(tmp_path: Path) -> None:
    """Opening and reading a data set takes no memory of its own: the kernel's pages are used."""
    side = 256
    info = Info(("x",), "raw", 1, (1, side, side), (0.5,), (0.5,))
    for name, count in (("small", 1), ("big", 2400)):
        write_dataset(tmp_path / f"{name}.arrow", ((0, bytes(side * side)) for _ in range(count)), info)
    size = (tmp_path / "big.arrow").stat().st_size
    assert size > 150e6
    with (tmp_path / "big.arrow").open("rb") as file:
        os.fsync(file.fileno())  # pages that wait to be written would count as a process's own
    command = [sys.executable, "-c", MEMORY, *(str(tmp_path / f"{n}.arrow") for n in ("small", "big"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 0.05 * size


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A table of 300 MB takes less than 150 MB more than one of 60 MB; mapped files are not counted."""
    noise = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
    image = encoded("PNG") + noise  # what follows the end of a PNG is not looked at

    def peak(rows: int) -> int:
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        path = tmp_path / f"{rows}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, rows, 10):
                count = min(10, rows - start)
                writer.write_table(pa.table({"image": [image] * count, "label": [0] * count}, schema))
        script = (
            "import sys\n"
            "from pathlib import Path\n"
            "from kdcl_dist.data.importers.images import import_images\n"
            "from kdcl_dist.data.importers.table import Table\n"
            "source = Table(Path(sys.argv[1]), image='image', label='label')\n"
            "seen = []\n"
            "def own(*_):\n"
            "    lines = Path('/proc/self/status').read_text().splitlines()\n"
            "    seen.append(next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')))\n"
            "import_images(source, Path(sys.argv[2]), workers=0, on_progress=own, shard_mb=1000)\n"
            "print(max(seen))\n"
        )
        command = [sys.executable, "-c", script, str(path), str(tmp_path / f"out{rows}")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        return int(done.stdout) * 1024

    assert peak(300) - peak(60) < 150e6
