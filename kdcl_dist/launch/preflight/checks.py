"""The checks before a run: each has a line with a figure, and each of its failures names a remedy.

All checks are functions of plain values (see `host_report` and `placement`). The launcher asks the hosts for
these values.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError, PreflightError, StorageError
from kdcl_dist.launch.preflight.host_report import HostReport, inspect_host, missing_files
from kdcl_dist.launch.preflight.own_process import run_apart
from kdcl_dist.launch.preflight.placement import Host, Need, lacks
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.text import shown

__all__ = [
    "Check",
    "addresses",
    "answers",
    "bank",
    "check_here",
    "clocks",
    "data",
    "evaluate_reports",
    "logits",
    "network",
    "placement",
    "record",
    "require",
    "shared_memory",
    "storage",
    "versions",
]

#: Seconds by which clocks may differ; a larger difference misleads readers of several hosts' logs.
SKEW_S = 5.0
#: Bytes of /dev/shm below which loader workers are likely to die of "bus error".
SHM_BYTES = 256 << 20


@dataclass(frozen=True)
class Check:
    """One check: its name, the figure found, and failures and warnings, a line each with a remedy."""

    name: str
    figure: str
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def require(checks: Sequence[Check], warn: Callable[[str], None]) -> None:
    """Require that no check failed.

    Args:
        checks: all checks.
        warn: called with each warning.

    Raises:
        PreflightError: a check failed; the message has a line for each failure.
    """
    for check in checks:
        for warning in check.warnings:
            warn(f"{check.name}: {warning}")
    if failures := [shown(f"{check.name}: {failure}") for check in checks for failure in check.failures]:
        raise PreflightError("\n".join(failures))


def check_here(
    recipe: Recipe, folder: Folder, address: str, extra_versions: Mapping[str, str], *, apart: bool = False
) -> list[Check]:
    """The checks of a run whose processes are all on this host.

    Args:
        recipe, folder, address, extra_versions: as of `inspect_host`.
        apart: inspect the host in a process of its own, within limits.startup_s.
    """
    probes = f".kdcl-preflight-{uuid.uuid4().hex[:8]}"
    asked = time.time()
    arguments = (recipe, folder, f"{probes}/0", address, extra_versions)
    try:
        in_time = recipe.limits.startup_s
        report = (
            run_apart(in_time, "preflight", inspect_host, *arguments) if apart else inspect_host(*arguments)
        )
    except KdclError as error:
        return [answers(0, 1, [f"host {address} cannot be inspected, data included: {error.message}"])]
    missing = [] if "storage" in report.problems else missing_files(folder, [f"{probes}/0"])
    with contextlib.suppress(StorageError):
        folder.delete(probes)
    unseen = {address: [address] * len(missing)}
    return evaluate_reports(recipe, folder, [report], unseen, asked, {address: time.time()})


def evaluate_reports(
    recipe: Recipe,
    folder: Folder,
    reports: Sequence[HostReport],
    unseen: Mapping[str, Sequence[str]],
    asked: float,
    answered: Mapping[str, float],
) -> list[Check]:
    """The checks below that need no more than the hosts' reports; arguments as theirs."""
    return [
        versions(reports),
        data(reports),
        storage(folder, reports, unseen),
        addresses(reports),
        clocks(reports, asked, answered),
        shared_memory(recipe, reports),
        *bank(reports),
        *record(reports),
        *logits(recipe, reports),
    ]


def placement(needs: Sequence[Need], hosts: Sequence[Host]) -> Check:
    """Capacity for every worker, and every spare."""
    spares = sum(need.is_spare for need in needs)
    workers = f"{len(needs) - spares} workers" + f" and {spares} spares" * bool(spares)
    figure = f"{workers}, {len(hosts)} hosts ({'; '.join(map(str, hosts))})"
    return Check("placement", figure, lacks(needs, hosts))


def answers(count: int, hosts: int, silent: Sequence[str]) -> Check:
    """Hosts that answer.

    Args:
        count: those that did.
        hosts: those that were asked.
        silent: a line for each that did not.
    """
    return Check("answers", f"{count} of {hosts} hosts", list(silent))


def data(reports: Sequence[HostReport]) -> Check:
    """The same data sets on every host."""
    failures = [
        f"host {report.address}: data.{name}: {report.problems[name]}; copy the data set to that host, or "
        "give a path that all hosts share"
        for report in reports
        for name in ("train", "test", "val")
        if name in report.problems
    ]
    for name in ("train", "test", "val"):
        having = [report for report in reports if name in report.data]
        for report in having[1:]:
            if report.data[name] != having[0].data[name]:
                failures.append(
                    f"host {report.address}: data.{name} is not the data set of {having[0].address} "
                    f"(fingerprint {report.data[name][:12]}, not {having[0].data[name][:12]}); copy it again"
                )
    prints = [f"{name} {print_[:12]}" for name, print_ in (reports[0].data if reports else {}).items()]
    return Check("data", f"{_hosts(reports)}, {', '.join(prints) or 'none'}", failures)


def versions(reports: Sequence[HostReport]) -> Check:
    """The same versions on every host; Python's patch release may differ."""
    failures = []
    first = reports[0]
    for report in reports[1:]:
        for name in sorted(first.versions.keys() | report.versions.keys()):
            found, expected = report.versions.get(name, "none"), first.versions.get(name, "none")
            if found != expected:
                failures.append(
                    f"host {report.address} has {name} {found}, {first.address} has {expected}; install the "
                    "same version on every host"
                )
    shown = [
        f"{n} {first.versions[n]}" for n in ("kdcl_dist", "torch", "ray", "python") if n in first.versions
    ]
    return Check("versions", ", ".join(shown), failures)


def storage(folder: Folder, reports: Sequence[HostReport], unseen: Mapping[str, Sequence[str]]) -> Check:
    """Storage that every host can write, and in which each host reads the others' files.

    Args:
        folder: the folder of runs.
        reports: the hosts.
        unseen: for each host's address, the addresses of the hosts whose files it does not see.
    """
    failures = [
        f"host {report.address}: {report.problems['storage']}; mend it there, or choose another --storage"
        for report in reports
        if "storage" in report.problems
    ]
    failures += [
        f"host {reader} does not see in {folder} what {', '.join(writers)} wrote there: each host has a disk "
        "of its own; choose a shared file system (NFS) or an object store with --storage"
        for reader, writers in unseen.items()
        if writers
    ]
    how = "written and read" if len(reports) < 2 else f"written by each and read by all of {_hosts(reports)}"
    return Check("storage", f"{folder} {how}", failures)


def addresses(reports: Sequence[HostReport]) -> Check:
    """Addresses by which the hosts can reach each other."""
    several = len({report.hostname for report in reports}) > 1
    failures = [
        f"host {report.hostname} is known as {report.address}, by which no other host can reach it; start "
        "Ray there with `ray start --node-ip-address=` and its address in the cluster's network"
        for report in reports
        if several and _is_loopback(report.address)
    ]
    return Check("addresses", ", ".join(sorted({report.address for report in reports})), failures)


def network(hosts: int, failed: Mapping[str, Mapping[str, str]]) -> Check:
    """Connections between all hosts on fresh TCP ports.

    Args:
        hosts: their number.
        failed: for each host's address, why it cannot reach another, by the other's address.
    """
    failures = [
        f"host {origin} cannot reach {target} ({reason}); open all TCP ports between the hosts of the "
        "cluster, in firewalls and security groups"
        for origin, reasons in failed.items()
        for target, reason in reasons.items()
    ]
    return Check("network", f"{hosts * (hosts - 1)} connections on fresh TCP ports", failures)


def clocks(reports: Sequence[HostReport], asked: float, answered: Mapping[str, float]) -> Check:
    """Clocks that agree.

    The difference of a clock is known to within the time that the host took to answer.

    Args:
        reports: the hosts.
        asked: this host's clock before the question, in seconds since 1970.
        answered: this host's clock at each answer, by the address of the host that answered.
    """
    off = {r.address: max(asked - r.clock, r.clock - answered[r.address], 0.0) for r in reports}
    warnings = [
        f"the clock of host {address} is off by {skew_s:.0f} s or more; let it follow a time server (NTP)"
        for address, skew_s in off.items()
        if skew_s > SKEW_S
    ]
    return Check("clocks", f"within {max(off.values(), default=0.0):.1f} s", warnings=warnings)


def shared_memory(recipe: Recipe, reports: Sequence[HostReport]) -> Check:
    """Space in /dev/shm, through which loader workers pass their batches."""
    sizes = {report.address: report.shm_bytes or 0 for report in reports}
    warnings = [
        f"host {address} has {size >> 20} MB free in /dev/shm, which {recipe.data.loader_workers} loader "
        f"workers a student may overflow; give it {SHM_BYTES >> 20} MB or more (docker --shm-size, an "
        "emptyDir of medium Memory), or set data.loader_workers to 0"
        for address, size in sizes.items()
        if recipe.data.loader_workers and size < SHM_BYTES
    ]
    return Check("/dev/shm", f"{min(sizes.values(), default=0) >> 20} MB free", warnings=warnings)


def bank(reports: Sequence[HostReport]) -> list[Check]:
    """Memory for the bank of logits, where the run has one, on the first host, the coordinator's."""
    memory = reports[0].bank_memory if reports else None
    return [] if memory is None else [Check("bank", str(memory), [memory.lack] if memory.lack else [])]


def record(reports: Sequence[HostReport]) -> list[Check]:
    """Memory for the record of training logits, where the run has one, on the coordinator's host."""
    memory = reports[0].record_memory if reports else None
    return [] if memory is None else [Check("record", str(memory), [memory.lack] if memory.lack else [])]


def logits(recipe: Recipe, reports: Sequence[HostReport]) -> list[Check]:
    """Files of stored logits that fit, where the run has members of such, on the coordinator's host."""
    if not recipe.stored or not reports or not reports[0].has_data:
        return []
    lack = reports[0].problems.get("logits")
    return [Check("logits", "; ".join(reports[0].stored) or "not usable", [] if lack is None else [lack])]


def _hosts(reports: Sequence[HostReport]) -> str:
    return f"{len(reports)} host" + "s" * (len(reports) != 1)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
