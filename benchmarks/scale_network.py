"""Check of the model's bandwidth on hosts whose links have a known rate.

    unshare --net python -m benchmarks.scale_network --out docs/results/scale-network.md

The check needs root, ip, tc and nsenter. Every rank has a network namespace with one link to a common switch;
a token bucket shapes the link to the same rate in both directions. The namespaces end with the processes.
Nothing is fitted: the prediction is the volume of the model divided by the rate.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.scale import LARGE, MEDIUM, WAYS, Point, measure_from
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import host_store
from kdcl_dist.planning.processes import run_in_processes

__all__ = ["MBIT", "PAYLOAD", "SWITCH", "make_host", "make_switch"]

RANKS, ROUNDS = (3, 5, 9), 3
MBIT = 200
SWITCH = "10.9.0.254"
CLONE_NEWNET = 0x40000000
#: Share of the payload in a full Ethernet frame, by the token bucket's count of bytes.
PAYLOAD = 1448 / 1514


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def make_switch() -> None:
    """Make a switch of this process's network namespace."""
    if [line for line in Path("/proc/net/dev").read_text().splitlines()[2:] if "lo:" not in line]:
        sys.exit("this changes the network: run it in a network of its own, by `unshare --net`")
    for command in (
        "ip link set lo up",
        "ip link add switch type bridge",
        f"ip address add {SWITCH}/24 dev switch",
        "ip link set switch up",
    ):
        _run(command)


def make_host(process: int, hub: int) -> str:
    """Give this process a network namespace with a shaped link to the switch; returns its address."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no new network")
    address, bucket = f"10.9.0.{process + 1}", f"root tbf rate {MBIT}mbit burst 16kb latency 1s"
    there = f"nsenter --target {hub} --net"
    for command in (
        f"ip link add eth0 type veth peer name h{process} netns {hub}",
        f"ip address add {address}/24 dev eth0",
        "ip link set lo up",
        "ip link set eth0 up",
        f"tc qdisc add dev eth0 {bucket}",
        f"{there} ip link set h{process} master switch up",
        f"{there} tc qdisc add dev h{process} {bucket}",
    ):
        _run(command)
    return address


def _measure(endpoint: Endpoint, process: int, cases: list[Point], hub: int) -> list[float]:
    return measure_from(endpoint, process, cases, ROUNDS, host=make_host(process, hub))


def main() -> None:
    """Measure, compare, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    make_switch()
    cases = [Point(way, ranks, size, size) for way in WAYS for ranks in RANKS for size in (MEDIUM, LARGE)]
    store, endpoint = host_store(SWITCH)
    measured = run_in_processes(
        _measure, [(endpoint, process, cases, os.getpid()) for process in range(max(RANKS))]
    )[0]
    del store
    lines = [
        "# The exchange over links of a known rate",
        "",
        *conditions(
            "scale_network",
            f"{MBIT} Mbit/s a link each way, {ROUNDS} alternating rounds, medians; answers like messages",
        ),
        "",
        "| way | ranks | message KB | measured ms | volume / rate ms | ratio |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for case, seconds in zip(cases, measured, strict=True):
        predicted = 8 * case.traffic.volume / (1e6 * MBIT * PAYLOAD)
        times = f"{1e3 * seconds:.1f} | {1e3 * predicted:.1f} | {seconds / predicted:.2f}"
        lines.append(f"| {case.way} | {case.ranks} | {case.message.nbytes / 1e3:,.0f} | {times} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
