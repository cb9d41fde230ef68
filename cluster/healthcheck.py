"""Whether this host's Ray answers; a container that runs no Ray is healthy. For the image's HEALTHCHECK."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

URL = "http://127.0.0.1:52365/api/local_raylet_healthz"
TIMEOUT_S = 4.0


def runs_ray() -> bool:
    """Whether a raylet is among the processes."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text().strip() == "raylet":
                return True
        except OSError:  # the process has ended meanwhile
            continue
    return False


def main() -> int:
    """Ask Ray's agent, which answers this without a token; the exit code."""
    if not runs_ray():
        return 0
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
