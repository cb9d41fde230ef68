"""Where Ray is not installed: one line for what needs it.

tests/integration/test_gpu_parts.py trains without it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cohorts import ROOT

#: Each command in one process, in which importing Ray fails as if it were not there.
CODE = """
import sys
sys.modules["ray"] = None
from kdcl_dist.cli import kdcl
recipe = "examples/digits.yaml"
for command in (
    ["train", recipe, "--storage", sys.argv[1]],
    ["train", recipe, "--dry-run=1", "--storage", sys.argv[1]],
    ["preflight", recipe, "--storage", sys.argv[1]],
    ["submit", recipe, "--address", "http://127.0.0.1:8265", "--storage", "s3://x/y"],
    ["compare", "examples/paper/digits/table2.yaml", "--storage", sys.argv[1]],
):
    try:
        kdcl.main(command)
    except SystemExit as end:
        print("exit", command[0], end.code, file=sys.stderr)
"""


def test_a_missing_ray_is_one_line(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(storage)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    lines = done.stderr.splitlines()
    ends = [line for line in lines if line.startswith("exit")]
    assert [line.split()[2] for line in ends] == ["2"] * 5, done.stderr
    assert sum("Ray is not installed here: pip install" in line for line in lines) == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert not storage.exists()
