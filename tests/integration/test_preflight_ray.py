"""The checks before a run on a Ray cluster of two hosts, and the wait for an autoscaler."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cohorts import MakeRecipe, write_images
from rays import start_ray

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.launch.preflight.checks import Check
from kdcl_dist.launch.preflight.placement import ACCELERATOR
from kdcl_dist.run.storage import Folder


def only(check: Check) -> str:
    """The one failure or warning of a check."""
    (line,) = check.failures + check.warnings
    assert "\n" not in line
    return line


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A Ray cluster of two nodes with addresses of their own, on this machine.

    The second has the label of an A100, and a GPU that only Ray believes in.
    """
    import ray
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("hosts")
    one, two = (str(write_images(folder / f"{number}.arrow", 60, seed=number)) for number in (1, 2))
    addresses = ["127.0.0.2", "127.0.0.3"]
    patch, cluster = pytest.MonkeyPatch(), Cluster()
    try:
        patch.setenv("KDCL_TEST_DATA", one)
        patch.delenv("CUDA_VISIBLE_DEVICES")  # else Ray refuses to believe in a GPU
        head = {"num_cpus": 1, "node_ip_address": addresses[0], "include_dashboard": False}
        start_ray(lambda: cluster.add_node(**head))
        other = {"labels": {ACCELERATOR: "A100"}, "env_vars": {"KDCL_TEST_DATA": two}}
        other |= {"num_cpus": 2, "num_gpus": 1, "node_ip_address": addresses[1]}
        start_ray(lambda: cluster.add_node(**other))
        ray.init(address=cluster.address, log_to_driver=False, _node_ip_address=addresses[0])
        yield addresses
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()


def on(recipe: Recipe, folder: Folder, *, rehearse: bool = False) -> dict[str, Check]:
    from kdcl_dist.launch.ray.preflight import run_checks

    return {check.name: check for check in run_checks(recipe, folder, print, rehearse=rehearse)}


def test_two_hosts_that_are_ready(hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    checks = on(make_recipe("students.b.accelerator=A100"), Folder(str(tmp_path)))
    assert [line for check in checks.values() for line in check.failures] == []
    assert checks["answers"].figure == "2 of 2 hosts"
    assert checks["network"].figure.startswith("2 connections")
    assert checks["addresses"].figure == ", ".join(hosts)
    assert not list(tmp_path.iterdir())


def test_two_hosts_with_everything_wrong(hosts: list[str], make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.train=nets:data_of_host", "students.a.accelerator=H100")
    checks = on(recipe, Folder("mock:///runs"))  # lives in each process's memory
    assert "'a': no host offers CPU 1 on a host with H100" in only(checks["placement"])
    assert f"host {hosts[1]}: data.train is not the data set of {hosts[0]}" in only(checks["data"])
    assert {line.split(" does not")[0] for line in checks["storage"].failures} == {f"host {h}" for h in hosts}


def test_a_host_whose_worker_dies_is_named(hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    checks = on(make_recipe("data.train=nets:exits"), Folder(str(tmp_path)))
    assert all("cannot run a worker" in line for line in checks["answers"].failures)
    assert {line.split()[1] for line in checks["answers"].failures} == {hosts[1]}
    assert "rehearsal" not in checks, "a run begins without: its students rehearse themselves"


def test_students_are_rehearsed_where_they_may_be_placed(
    hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Student "a" may be placed on both hosts, "b" only on the second."""
    models = ["students.a.model=nets:killed_on_two", "students.b.model=nets:broken"]
    on_cpu = ["students.a.resources.gpu=0", "students.b.resources.gpu=0"]
    recipe = make_recipe(*models, *on_cpu, "students.b.accelerator=A100")
    checks = on(recipe, Folder(str(tmp_path)), rehearse=True)
    died, broken = checks["rehearsal"].failures
    assert died.startswith(f"student 'a', host {hosts[1]}: its process died (killed by SIGKILL")
    assert broken.startswith(f"student 'b', host {hosts[1]}: model 'nets:broken' cannot be built: RuntimeE")
    assert checks["rehearsal"].figure == "3 made on 2 hosts"
    assert {check.name for check in checks.values() if check.failures} == {"rehearsal"}


def test_a_rehearsal_takes_a_gpu_that_is_free(hosts: list[str], make_recipe: MakeRecipe) -> None:
    import ray
    import torch

    from kdcl_dist.launch.preflight.placement import needs_of
    from kdcl_dist.launch.ray import preflight
    from kdcl_dist.launch.ray.rehearsal import rehearse_on

    @ray.remote(num_gpus=1)
    class Holder:
        def holds(self) -> bool:
            return True

    recipe = make_recipe("students.b=null", "students.a.resources.gpu=1", "limits.startup_s=2")
    nodes = {node.id: node.host for node in preflight._nodes()}
    holder = Holder.remote()
    assert ray.get(holder.holds.remote())
    needs = needs_of(recipe, list(nodes.values()))
    (found,) = rehearse_on(recipe, needs, nodes)
    assert (found.student, found.host, found.problem) == ("a", hosts[1], None)
    assert "no worker started there within 2 s (limits.startup_s); GPU 1 may be taken" in (
        found.skipped or ""
    )
    ray.kill(holder)
    (found,) = rehearse_on(make_recipe("students.b=null", "students.a.resources.gpu=1"), needs, nodes)
    assert found.skipped is None
    assert (found.problem is None) == torch.cuda.is_available(), "it is tried on its device"


def test_a_run_begins_with_the_checks(hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(make_recipe()))
    options = ["--storage", str(tmp_path / "runs"), "--set", "students.a.accelerator=H100"]
    result = CliRunner().invoke(kdcl, ["train", str(recipe), *options])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("kdcl: ")]
    assert len(lines) == 1
    assert lines[0].startswith("kdcl: error: placement: student 'a': no host offers CPU 1")
    assert "epoch" not in result.output


def test_an_autoscaler_is_waited_for(
    hosts: list[str], make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util import placement_group_table

    from kdcl_dist.launch.ray import preflight

    assert not preflight.may_grow()
    monkeypatch.setattr(preflight, "may_grow", lambda: True)
    notes: list[str] = []
    began = time.monotonic()
    nodes = preflight.await_capacity(make_recipe("students.a.accelerator=H100"), began + 2, notes.append)
    assert 2 < time.monotonic() - began < 60
    assert "waiting for the autoscaler" in notes[0]
    assert len(nodes) == 2
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        preflight.await_capacity(make_recipe("students.a.accelerator=H100"), began + 600, notes.append, stop)
    table = placement_group_table().values()
    assert {group["state"] for group in table} <= {"REMOVED"}, "nothing is asked of the cluster any more"
