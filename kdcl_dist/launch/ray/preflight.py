"""Asking the hosts of a Ray cluster whether they are ready for a run.

On a cluster of one host this process looks by itself: no worker is started. Else one small actor a host
looks, reads what the others wrote, and listens for them.
"""

from __future__ import annotations

import contextlib
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
from kdcl_dist.launch.preflight import checks as judge
from kdcl_dist.launch.preflight.checks import Check
from kdcl_dist.launch.preflight.host_report import Listener, Report, connect, enter, look, unread
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Host, lacks, needs_of
from kdcl_dist.run.storage import Folder

__all__ = ["run_checks"]

#: What must be the same everywhere besides `kdcl_dist.run.run.versions`.
VERSION = {"ray": ray.__version__}
#: Seconds for one connection between two hosts.
CONNECT_S = 5.0
#: Seconds between two looks at a cluster that may grow.
POLL_S = 1.0


@dataclass(frozen=True)
class _Node:
    id: str
    host: Host


def run_checks(recipe: Recipe, folder: Folder, notify: Callable[[str], None]) -> list[Check]:
    """All checks of a run on the connected cluster.

    Args:
        recipe: the run.
        folder: the folder that holds runs, or the run's own.
        notify: hears what is waited for.
    """
    deadline = time.monotonic() + recipe.limits.startup_s
    nodes = await_room(recipe, deadline, notify)
    placement = judge.placement(needs_of(recipe), [node.host for node in nodes])
    here = ray.get_runtime_context().get_node_id()
    used = [n for n in nodes if n.id == here or any(n.host.suits(need) for need in needs_of(recipe))]
    if [node.id for node in used] in ([here], []):
        return [placement, *judge.check_here(recipe, folder, ray.util.get_node_ip_address(), VERSION)]
    return [placement, *_Inquiry(recipe, folder, used, deadline).checks()]


def _nodes() -> list[_Node]:
    """The hosts that are up, this process's first: the others are compared with it. Ray names no order."""
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


def await_room(recipe: Recipe, deadline: float, notify: Callable[[str], None]) -> list[_Node]:
    """The hosts, as soon as there is room for the cohort; where there is an autoscaler it is asked for it."""
    needs = needs_of(recipe)
    nodes = _nodes()
    if not lacks(needs, [node.host for node in nodes]) or not may_grow():
        return nodes
    from ray.autoscaler.sdk import request_resources

    notify(
        f"waiting for the autoscaler to make room, at most {recipe.limits.startup_s:g} s (limits.startup_s)"
    )
    bundles = [{"CPU": need.cpu} | ({"GPU": need.gpu} if need.gpu else {}) for need in needs]
    selectors = [{ACCELERATOR: need.accelerator} if need.accelerator else {} for need in needs]
    request_resources(bundles=bundles, bundle_label_selectors=selectors)
    try:
        while lacks(needs, [node.host for node in nodes]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            nodes = _nodes()
    finally:
        request_resources(bundles=[])  # Ray Train asks for itself what it places
    return nodes


def may_grow() -> bool:
    """Whether an autoscaler looks after the cluster: hosts that it started know their type's name."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # an old cluster, or one whose head is busy: then nothing is waited for
        return False
    found = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name not in ("", f"node_{node.node_id}") for node in found)


class _Inquiry:
    """One round of questions to several hosts."""

    def __init__(self, recipe: Recipe, folder: Folder, nodes: Sequence[_Node], deadline: float) -> None:
        self.recipe, self.folder, self.nodes, self.deadline = recipe, folder, nodes, deadline
        self.marks = f".kdcl-preflight-{uuid.uuid4().hex[:8]}"
        self.silent: list[str] = []
        self.answered: dict[str, float] = {}
        self.actors = {
            node.id: _Scout.options(  # type: ignore[attr-defined]
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(str(Path.cwd()))
            for node in nodes
        }

    def checks(self) -> list[Check]:
        """Ask, judge, clean up."""
        try:
            return self._checks()
        finally:
            with contextlib.suppress(Exception):
                ray.get(
                    [actor.clean.remote(self.folder, self.marks) for actor in self.actors.values()],
                    timeout=10,
                )
            for actor in self.actors.values():
                ray.kill(actor)

    def _checks(self) -> list[Check]:
        asked = time.time()
        marks = {node.id: f"{self.marks}/{number}" for number, node in enumerate(self.nodes)}
        found = self._ask(lambda n, a: a.look.remote(self.recipe, self.folder, marks[n.id], n.host.address))
        answered = dict(self.answered)
        checks = (
            []
            if not found
            else [
                *judge.judge(
                    self.recipe,
                    self.folder,
                    [report for report, _ in found.values()],
                    self._unseen({n: marks[n] for n, (r, _) in found.items() if "storage" not in r.problems}),
                    asked,
                    answered,
                ),
                judge.network(len(found), self._unreached({node: end for node, (_, end) in found.items()})),
            ]
        )
        return [Check("answers", f"{len(found)} of {len(self.nodes)} hosts", self.silent), *checks]

    def _unseen(self, marks: Mapping[str, str]) -> dict[str, list[str]]:
        """For each host that could write, whose file it does not see."""
        address = {node.id: node.host.address for node in self.nodes}
        writer = {mark: address[node] for node, mark in marks.items()}
        missing = self._ask(lambda n, a: a.unread.remote(self.folder, list(writer)), marks)
        found: dict[str, list[str]] = {address[node]: [] for node in missing}
        for node, names in missing.items():  # two nodes may share an address
            found[address[node]] += [writer[name] for name in names]
        return found

    def _unreached(self, ends: Mapping[str, tuple[str, int]]) -> dict[str, dict[str, str]]:
        """For each host, which others it cannot reach, and why."""
        others = {node: [end for other, end in ends.items() if other != node] for node in ends}
        failed = self._ask(lambda n, a: a.connect.remote(others[n.id], CONNECT_S), ends)
        found: dict[str, dict[str, str]] = {node.host.address: {} for node in self.nodes}
        for node in self.nodes:
            found[node.host.address] |= failed.get(node.id, {})
        return found

    def _ask(
        self, question: Callable[[_Node, Any], Any], among: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Put a question to all hosts at once; their answers by node, without those that fail to."""
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
                    self._is_silent(node, one_line(getattr(error, "cause", None) or error))
        for ref in waiting:
            self._is_silent(
                refs[ref], f"no answer within {self.recipe.limits.startup_s:g} s, limits.startup_s"
            )
        return {node.id: answers[node.id] for node in nodes if node.id in answers}

    def _is_silent(self, node: _Node, why: str) -> None:
        self.silent.append(
            f"host {node.host.address} cannot run a worker ({why}); see that kdcl_dist is installed there, "
            "and Ray's logs of that host"
        )


@ray.remote
class _Scout:
    """Looks around on one host."""

    def __init__(self, root: str) -> None:
        self.root = root
        enter(root)

    def look(self, recipe: Recipe, folder: Folder, mark: str, address: str) -> tuple[Report, tuple[str, int]]:
        """What is found here, and where this host listens."""
        self.listener = Listener(address)
        return look(recipe, folder, mark, address, VERSION), self.listener.endpoint

    def unread(self, folder: Folder, marks: list[str]) -> list[str]:
        """See `kdcl_dist.launch.preflight.host_report.unread`."""
        return unread(folder, marks)

    def connect(self, endpoints: list[tuple[str, int]], limit_s: float) -> dict[str, str]:
        """See `kdcl_dist.launch.preflight.host_report.connect`."""
        return connect(endpoints, limit_s)

    def clean(self, folder: Folder, marks: str) -> None:
        """Delete what the hosts wrote, as far as it is seen here."""
        folder.delete(marks)
