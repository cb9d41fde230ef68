"""Several hosts on one machine: each has its own network, host name, processes, /tmp/ray and home.

A host is a set of kernel namespaces held by one process; all end with that process, and it ends with the
test process, however that ends. The network among them lives in a further namespace, so that nothing
of it is ever seen from outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

#: What a host has under these paths of the root is its own.
OWN = ("tmp/ray", "dev/shm")
#: The host that shares this machine's processes: from there the others can be entered, as if by ssh.
VISITOR = "laptop"
#: A first process that waits for the orphans it is given; `ray stop` would take them for alive.
INIT = ("bash", "-c", "sleep infinity & wait")


def why_not(gigabytes: float) -> str | None:
    """Why this machine cannot hold such hosts, if it cannot."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = ("ip", "unshare", "nsenter", "setpriv", "mount", "bash")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux)"
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    if available < gigabytes * 2**30:
        return f"needs {gigabytes:g} GB of free memory, there are {available / 2**30:.1f}"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], check=False)
    return "the kernel refuses new namespaces here" if tried.returncode else None


@dataclass
class Host:
    """One host, while its first process lives."""

    name: str
    address: str
    home: Path
    pid: int
    own_processes: bool
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with to run on the host."""
        kinds = ["--mount", "--uts", "--net", *(["--pid"] if self.own_processes else [])]
        return ["nsenter", f"--target={self.pid}", *kinds]

    def start(self, command: Sequence[str], folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a command there, in a session of its own; what it writes goes into one pipe."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        # A test runner in the background ignores SIGINT, and so would all that it starts.
        options = ["--ignore-environment", "--default-signal=INT", f"--chdir={folder or self.home}"]
        line = [*self.prefix, "env", *options, *variables]
        process = subprocess.Popen(
            [*line, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(
        self, command: Sequence[str], folder: Path | None = None, limit_s: float = 900
    ) -> tuple[int, str]:
        """Run a command there; its exit code and all that it wrote."""
        process = self.start(command, folder)
        try:
            written, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            written, _ = process.communicate()
            raise AssertionError(f"{command} takes longer than {limit_s} s; so far: {written}") from None
        return process.returncode, written


@contextmanager
def hosts(
    folder: Path, names: Mapping[str, str], environment: Mapping[str, str]
) -> Iterator[dict[str, Host]]:
    """Hosts that reach each other, and nothing else; the own name of each resolves to 127.0.0.1.

    Args:
        folder: where their homes and own folders are made; `mnt` below it is every host's /mnt.
        names: of the hosts, with their addresses.
        environment: variables that commands have on all of them, besides HOME.
    """
    (folder / "mnt" / "shared").mkdir(parents=True)
    holders: list[subprocess.Popen[bytes]] = []
    made: dict[str, Host] = {}
    try:
        switch = _hold(["--net"], holders)
        _in(switch, "ip link add switch type bridge && ip link set switch up")
        made |= {
            name: _host(folder / name, name, address, switch, holders, environment)
            for name, address in names.items()
        }
        yield made
    finally:
        for process in (process for host in made.values() for process in host.started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for holder in reversed(holders):
            holder.kill()  # the kernel ends all processes of the host with it
            holder.wait()


def _host(
    own: Path,
    name: str,
    address: str,
    switch: int,
    holders: list[subprocess.Popen[bytes]],
    environment: Mapping[str, str],
) -> Host:
    home = own / "home"
    home.mkdir(parents=True)
    (own / "etc_hosts").write_text(f"127.0.0.1 localhost {name}\n")
    own_processes = name != VISITOR
    processes = ["--pid", "--mount-proc"] if own_processes else []
    pid = _hold(["--net", "--uts", "--mount", *processes], holders)
    port = address.replace(".", "-")
    link = f"type veth peer name eth0 netns {pid}"
    _in(switch, f"ip link add p{port} {link} && ip link set p{port} master switch up")
    for path in OWN:
        (own / path).mkdir(parents=True)
        Path("/", path).mkdir(exist_ok=True)
        _in(pid, f"mount --bind {own / path} /{path}")
    _in(pid, f"mount --bind {own.parent / 'mnt'} /mnt")
    _in(pid, f"mount --bind {own / 'etc_hosts'} /etc/hosts && hostname {name}")
    _in(pid, f"ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up")
    return Host(name, address, home, pid, own_processes, {**environment, "HOME": str(home)})


def _hold(namespaces: Sequence[str], holders: list[subprocess.Popen[bytes]]) -> int:
    """Start the process that holds the namespaces; the process id of the first one within."""
    waits = INIT if "--pid" in namespaces else ("sleep", "infinity")
    unshare = ["unshare", *namespaces, "--fork", "--kill-child"]
    holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *unshare, *waits])
    holders.append(holder)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in children.read_text().split():
            # The namespaces and the mount of /proc are there once it is no longer a copy of `unshare`.
            if Path(f"/proc/{pid}/comm").read_text().strip() == waits[0]:
                return int(pid)
        time.sleep(0.02)
    raise AssertionError("the namespaces were not made within 60 s")


def _in(pid: int, script: str) -> None:
    command = ["nsenter", f"--target={pid}", "--mount", "--uts", "--net", "bash", "-ec", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"
