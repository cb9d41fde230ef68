"""Records what `kdcl train` prints while a node of its Ray cluster dies, in `node-dies.svg` beside this file.

The nodes are Ray's, all on this machine: a head without CPUs, and nodes of one CPU, each with a student.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ray.cluster_utils import Cluster
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
COMMAND = "kdcl train examples/digits.yaml --name nodes --set students.mlp=null"


def main() -> None:
    """Train on two nodes, kill one after the third epoch, add another, and write the recording."""
    console = Console(record=True, width=120)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        say(console, f"$ {COMMAND} | grep '^20' | grep -v ' epoch '", "bold green")
        with tempfile.TemporaryDirectory() as folder:
            for line in lines(cluster.address, folder):
                if line.startswith("20") and " epoch " not in line:  # Ray writes of its own beside the lines
                    say(console, line)
                if " epoch epoch=3/" in line:
                    say(console, "# a node is killed, with all its processes", "bold red")
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                if " wait " in line and len(nodes) == 1:
                    say(console, "# another node joins", "bold green")
                    nodes.append(cluster.add_node(num_cpus=1))
    finally:
        cluster.shutdown()
    svg = console.export_svg(title="a node dies")
    # Pages that show the picture load nothing from elsewhere.
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)
    Path(__file__).with_name("node-dies.svg").write_text(svg)


def lines(address: str, folder: str) -> Iterator[str]:
    """What the command prints, line by line, without the temporary folder in which it runs."""
    command = [str(Path(sys.executable).parent / "kdcl"), *COMMAND.split()[1:]]
    environment = {**os.environ, "RAY_ADDRESS": address}
    Path(folder, "examples").symlink_to(ROOT / "examples")
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield from (line.rstrip("\n").replace(f"{folder}/", "") for line in process.stdout)


def say(console: Console, line: str, style: str = "") -> None:
    """Print and record a line."""
    console.print(Text(line, style=style))


if __name__ == "__main__":
    main()
