"""The checks of a run on a Ray cluster.

On a cluster of one host this process inspects the host itself: no worker is started. Else one small actor on
each host inspects it, reads the others' files, and listens for their connections.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import one_line
from kdcl_dist.launch.preflight.checks import (
    Check,
    answers,
    check_here,
    evaluate_reports,
    network,
    placement,
)
from kdcl_dist.launch.preflight.host_report import (
    HostReport,
    Listener,
    inspect_host,
    missing_files,
    unreachable,
)
from kdcl_dist.launch.preflight.placement import Host, lacks, needs_of, reserved, with_spares
from kdcl_dist.launch.preflight.rehearsal import opens_data, rehearsal
from kdcl_dist.launch.ray.rehearsal import rehearse_on
from kdcl_dist.launch.ray.room import room_asked
from kdcl_dist.run.process import use_root
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.objects import Objects, carry, known

__all__ = ["hosts", "may_grow", "run_checks"]

#: Versions that must be the same on every host besides those of `kdcl_dist.run.run.versions`.
VERSION = {"ray": ray.__version__}
#: Seconds for one connection between two hosts.
CONNECT_S = 5.0
#: Seconds between two polls of a cluster that may grow.
POLL_S = 1.0


@dataclass(frozen=True)
class _Node:
    id: str
    host: Host


def run_checks(
    recipe: Recipe,
    folder: Folder,
    notify: Callable[[str], None],
    *,
    rehearse: bool = False,
    stop_requested: threading.Event | None = None,
) -> list[Check]:
    """All checks of a run on the connected cluster.

    Args:
        recipe: the run.
        folder: the folder that holds runs, or the run's own.
        notify: called with a line when the cluster has to grow first.
        rehearse: rehearse the students too, on the hosts that have the data.
        stop_requested: set to give up while the cluster grows; raises KeyboardInterrupt.
    """
    grown_by = time.monotonic() + recipe.limits.startup_s
    nodes = await_capacity(recipe, grown_by, notify, stop_requested)
    deadline = time.monotonic() + recipe.limits.startup_s  # hosts that have just come start slowly
    found = [node.host for node in nodes]
    needs = needs_of(recipe, found)
    first = placement(with_spares(recipe, needs), found)
    here = ray.get_runtime_context().get_node_id()
    used = [node for node in nodes if node.id == here or any(node.host.suits(need) for need in needs)]
    if [node.id for node in used] in ([here], []):
        address = ray.util.get_node_ip_address()
        checks = check_here(recipe, folder, address, VERSION, apart=rehearse)
        ready = used if opens_data(checks) else []
    else:
        inspection = _Inspection(recipe, folder, used, deadline)
        checks, ready = inspection.checks(), inspection.ready
    if rehearse:
        checks.append(rehearsal(rehearse_on(recipe, needs, {node.id: node.host for node in ready})))
    return [first, *checks]


def hosts() -> list[Host]:
    """What the hosts of the connected cluster offer, whatever is taken of it at present."""
    return [node.host for node in _nodes()]


def _nodes() -> list[_Node]:
    """The hosts that are up, this process's host first: the others are compared with it."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        _Node(
            node["NodeID"],
            Host(
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
                dict(node.get("Labels") or {}),
            ),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.id != here, node.host.address, node.id))


def await_capacity(
    recipe: Recipe,
    deadline: float,
    notify: Callable[[str], None],
    stop_requested: threading.Event | None = None,
) -> list[_Node]:
    """The hosts, as soon as they have the capacity for the cohort and its spares.

    Only an autoscaler can add what lacks: without one the hosts are returned at once.

    Args:
        recipe: the run.
        deadline: by `time.monotonic`; then the hosts are returned as they are.
        notify: called with a line when the autoscaler is asked for hosts.
        stop_requested: set to give up; raises KeyboardInterrupt.
    """
    nodes = _nodes()
    needs = reserved(recipe, [node.host for node in nodes])
    if not lacks(needs, [node.host for node in nodes]) or not may_grow():
        return nodes
    notify(
        f"waiting for the autoscaler to add hosts, at most {recipe.limits.startup_s:g} s (limits.startup_s)"
    )
    stop = threading.Event() if stop_requested is None else stop_requested
    with room_asked(needs):  # only for the wait: Ray Train asks for the resources of its workers itself
        while lacks(needs, [node.host for node in nodes]) and time.monotonic() < deadline:
            if stop.wait(POLL_S):
                raise KeyboardInterrupt
            nodes = _nodes()
    return nodes


def may_grow() -> bool:
    """Whether the cluster has an autoscaler: hosts that it started have the name of a node type."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # an old cluster, or one with a busy head, counts as one without an autoscaler
        return False
    found = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name not in ("", f"node_{node.node_id}") for node in found)


class _Inspection:
    """The inspection of several hosts.

    Attributes:
        probes: the folder of the files that the hosts write for each other.
        silent: a line for each host that did not answer.
        answered: this host's clock at each host's latest answer, by address.
        ready: the hosts that have the data.
    """

    def __init__(self, recipe: Recipe, folder: Folder, nodes: Sequence[_Node], deadline: float) -> None:
        self.recipe, self.folder, self.nodes, self.deadline = recipe, folder, nodes, deadline
        self.probes = f".kdcl-preflight-{uuid.uuid4().hex[:8]}"
        self.silent: list[str] = []
        self.ready: list[_Node] = []
        self.answered: dict[str, float] = {}
        self.actors = {
            node.id: _Inspector.options(  # type: ignore[attr-defined]
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(str(Path.cwd()), known())
            for node in nodes
        }

    def checks(self) -> list[Check]:
        """Inspect the hosts, evaluate their reports, and remove the files and actors."""
        try:
            return self._checks()
        finally:
            with contextlib.suppress(Exception):
                ray.get(
                    [actor.clean.remote(self.folder, self.probes) for actor in self.actors.values()],
                    timeout=10,
                )
            for actor in self.actors.values():
                ray.kill(actor)

    def _checks(self) -> list[Check]:
        asked = time.time()
        probes = {node.id: f"{self.probes}/{number}" for number, node in enumerate(self.nodes)}
        found: dict[str, tuple[HostReport, tuple[str, int]]] = self._ask(
            lambda node, actor: actor.inspect.remote(
                self.recipe, self.folder, probes[node.id], node.host.address
            )
        )
        self.ready = [node for node in self.nodes if node.id in found and found[node.id][0].has_data]
        checks = self._evaluate(found, probes, asked) if found else []
        return [answers(len(found), len(self.nodes), self.silent), *checks]

    def _evaluate(
        self,
        answers: Mapping[str, tuple[HostReport, tuple[str, int]]],
        probes: Mapping[str, str],
        asked: float,
    ) -> list[Check]:
        reports, answered = [report for report, _ in answers.values()], dict(self.answered)
        unseen = self._unseen(
            {node: probes[node] for node, (report, _) in answers.items() if "storage" not in report.problems}
        )
        failed = self._failed_connections({node: endpoint for node, (_, endpoint) in answers.items()})
        return [
            *evaluate_reports(self.recipe, self.folder, reports, unseen, asked, answered),
            network(len(answers), failed),
        ]

    def _unseen(self, written: Mapping[str, str]) -> dict[str, list[str]]:
        """For the address of each host that could write, the hosts whose file it does not see."""
        address = {node.id: node.host.address for node in self.nodes}
        writer = {probe: address[node] for node, probe in written.items()}
        missing = self._ask(lambda _, actor: actor.missing_files.remote(self.folder, list(writer)), written)
        found: dict[str, list[str]] = {address[node]: [] for node in missing}
        for node, probes in missing.items():  # two nodes may share an address
            found[address[node]] += [writer[probe] for probe in probes]
        return found

    def _failed_connections(self, endpoints: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, str]]:
        """For each host's address, why it cannot reach another, by the other's address."""
        others = {node: [e for other, e in endpoints.items() if other != node] for node in endpoints}
        failed = self._ask(
            lambda node, actor: actor.unreachable.remote(others[node.id], CONNECT_S), endpoints
        )
        found: dict[str, dict[str, str]] = {node.host.address: {} for node in self.nodes}
        for node in self.nodes:
            found[node.host.address] |= failed.get(node.id, {})
        return found

    def _ask(
        self, question: Callable[[_Node, Any], Any], among: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answers of all hosts, or of those `among`, by node; without the hosts that fail to answer."""
        nodes = [node for node in self.nodes if among is None or node.id in among]
        refs = {question(node, self.actors[node.id]): node for node in nodes}
        answers: dict[str, Any] = {}
        waiting = list(refs)
        while waiting and (left_s := self.deadline - time.monotonic()) > 0:
            ready, waiting = ray.wait(waiting, timeout=left_s)
            for ref in ready:
                node = refs[ref]
                try:
                    answers[node.id] = ray.get(ref)
                    self.answered[node.host.address] = time.time()
                except RayError as error:
                    self._note_silent(node, one_line(getattr(error, "cause", None) or error))
        limit = f"no answer within {self.recipe.limits.startup_s:g} s, limits.startup_s"
        for ref in waiting:
            self._note_silent(refs[ref], limit)
        return {node.id: answers[node.id] for node in nodes if node.id in answers}

    def _note_silent(self, node: _Node, why: str) -> None:
        self.silent.append(
            f"host {node.host.address} cannot run a worker ({why}); see that kdcl_dist is installed there, "
            "and Ray's logs of that host (/tmp/ray/session_latest/logs by default)"
        )


@ray.remote
class _Inspector:
    """Inspects one host."""

    def __init__(self, root: str, objects: Objects) -> None:
        use_root(root)
        carry(objects)

    def inspect(
        self, recipe: Recipe, folder: Folder, probe: str, address: str
    ) -> tuple[HostReport, tuple[str, int]]:
        """The host's report, and where the host listens."""
        self.listener = Listener(address)
        return inspect_host(recipe, folder, probe, address, VERSION), self.listener.endpoint

    def missing_files(self, folder: Folder, names: list[str]) -> list[str]:
        """See `kdcl_dist.launch.preflight.host_report.missing_files`."""
        return missing_files(folder, names)

    def unreachable(self, endpoints: list[tuple[str, int]], limit_s: float) -> dict[str, str]:
        """See `kdcl_dist.launch.preflight.host_report.unreachable`."""
        return unreachable(endpoints, limit_s)

    def clean(self, folder: Folder, probes: str) -> None:
        """Delete the hosts' files, as far as this host sees them."""
        folder.delete(probes)
