"""A run outlives the reader of its output, and the disk to which that goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Prints twice, the second time after the stream broke, and ends by itself.
PRINTS = """
from kdcl_dist.cli.lasting_output import lasting_console
from kdcl_dist.cli.training_display import display
from kdcl_dist.run.events import Note
with display(lasting_console(stderr={stderr})) as shown:
    for _ in range(3):
        shown.handle(Note("text"))
print("the end")
open({done!r}, "w").close()
"""


@pytest.mark.parametrize("stderr", [False, True])
@pytest.mark.parametrize("broken", ["pipe", "full", "closed"])
def test_a_broken_stream_ends_nothing(broken: str, stderr: bool, tmp_path: Path) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    target = os.open("/dev/full", os.O_WRONLY) if broken == "full" else pipe
    done = f"{tmp_path}/done"
    redirect = f"{2 if stderr else 1}>&{'-' if broken == 'closed' else target}"
    command = f'exec "$0" -c "$1" {redirect}'
    code = PRINTS.format(stderr=stderr, done=done)
    found = subprocess.run(
        ["bash", "-c", command, sys.executable, code],
        pass_fds=[target],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0
    assert Path(done).exists()
    assert "Traceback" not in found.stderr
    assert found.stdout == ("the end\n" if stderr else "")
