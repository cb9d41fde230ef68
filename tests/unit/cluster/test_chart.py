"""The Helm chart: what it renders is valid, of this version, and what its values say.

Rendering needs `helm`. Without it the values are held against the chart's own schema only.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from cohorts import ROOT
from commands import check
from kuberay import Claim, ClusterSpec, Manifest, Policy, RayCluster, RayJob
from pydantic import TypeAdapter, ValidationError

from kdcl_dist.version import __version__

CHART = ROOT / "cluster" / "helm"
CLOUDS = ("gke", "eks", "aks")
JOB = "kdcl train examples/digits.yaml --storage /mnt/shared/runs --name digits"
HELM = shutil.which("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="needs helm")


def load(name: str) -> Any:
    return yaml.safe_load((CHART / name).read_text())


@cache
def helm(cloud: str, *sets: str) -> subprocess.CompletedProcess[str]:
    options = [part for text in sets for part in ("--set", text)]
    command = [str(HELM), "template", "kdcl", str(CHART), "--values", str(CHART / f"{cloud}.yaml"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(cloud: str, *sets: str) -> list[Manifest]:
    done = helm(cloud, *sets)
    assert done.returncode == 0, done.stderr
    parts = [part for part in yaml.safe_load_all(done.stdout) if part]
    return [TypeAdapter[Manifest](Manifest).validate_python(part) for part in parts]


def cluster_of(manifests: list[Manifest]) -> ClusterSpec:
    for part in manifests:
        if isinstance(part, RayCluster):
            return part.spec
        if isinstance(part, RayJob):
            return part.spec.rayClusterSpec
    raise AssertionError(manifests)


# -- without helm ---------------------------------------------------------------------------------


def merged(base: Any, more: Any) -> Any:
    """Values as Helm merges them: mappings by key, all else replaced."""
    if not (isinstance(base, dict) and isinstance(more, dict)):
        return more
    return base | {key: merged(base.get(key), value) for key, value in more.items()}


def test_the_chart_has_the_version_of_the_package() -> None:
    chart, values = load("Chart.yaml"), load("values.yaml")
    assert chart["version"] == chart["appVersion"] == __version__
    assert values["image"].endswith(f":{__version__}")
    ray = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    assert values["rayVersion"] == ray[1]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_values_are_those_of_the_schema(cloud: str) -> None:
    schema, base = json.loads((CHART / "values.schema.json").read_text()), load("values.yaml")
    assert schema["properties"].keys() == base.keys()
    jsonschema.validate(merged(base, load(f"{cloud}.yaml")), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(base, schema)  # no type of GPU
    with pytest.raises(jsonschema.ValidationError, match="replicas"):
        jsonschema.validate(merged(base, {"gpuTypes": {"a": {"replicas": 1}}}), schema)


def test_the_secret_is_the_documented_one() -> None:
    name = load("values.yaml")["tokenSecret"]
    assert f"secret generic {name} --from-file=auth_token=" in (CHART.parent / "README.md").read_text()


# -- rendered -------------------------------------------------------------------------------------


@needs_helm
@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_cluster_and_a_job(cloud: str) -> None:
    manifests = render(cloud)
    assert {type(part) for part in manifests} == {RayCluster, Claim, Policy}
    in_job = render(cloud, f"job={JOB}", "storage.create=false")
    assert {type(part) for part in in_job} == {RayJob, Policy}
    cluster, job = cluster_of(manifests), next(part for part in in_job if isinstance(part, RayJob))
    assert job.spec.rayClusterSpec == cluster
    check(job.spec.entrypoint)
    assert cluster.enableInTreeAutoscaling
    assert cluster.headGroupSpec.rayStartParams.items() >= {"num-cpus": "0", "num-gpus": "0"}.items()
    assert {group.labels["ray.io/accelerator-type"] for group in cluster.workerGroupSpecs} == {"A100", "T4"}
    (policy,) = (part for part in manifests if isinstance(part, Policy))
    (claim,) = (part for part in manifests if isinstance(part, Claim))
    assert claim.metadata.annotations == {"helm.sh/resource-policy": "keep"}
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        assert group.template.metadata.labels == policy.spec.podSelector.matchLabels
        pod = group.template.spec
        is_head = group is cluster.headGroupSpec
        assert pod.automountServiceAccountToken == is_head
        (container,) = pod.containers
        assert container.image.endswith(f":{__version__}")
        assert container.resources.limits == container.resources.requests
        assert ("nvidia.com/gpu" in container.resources.limits) != is_head
        assert ("nvidia.com/gpu" in [each.key for each in pod.tolerations]) != is_head
        assert bool(pod.nodeSelector) != is_head
        assert {volume.name for volume in pod.volumes} == {mount.name for mount in container.volumeMounts}
        assert {mount.mountPath for mount in container.volumeMounts} == {"/dev/shm", "/mnt/shared"}
        claims = [each.persistentVolumeClaim for each in pod.volumes if each.persistentVolumeClaim]
        assert [each.claimName for each in claims] == [claim.metadata.name]


@needs_helm
def test_names_that_look_like_numbers_are_texts() -> None:
    sets = [f"gpuTypes.4090.{item}" for item in ("max=1", "cpu=4", "memory=8Gi")]
    cluster = cluster_of(render("gke", *sets))
    assert "4090" in [group.groupName for group in cluster.workerGroupSpecs]


@needs_helm
@pytest.mark.parametrize("cloud", CLOUDS)
def test_spot_workers_are_on_spot_nodes_only(cloud: str) -> None:
    spot = load(f"{cloud}.yaml")["spot"]
    for group in cluster_of(render(cloud)).workerGroupSpecs:
        is_spot = group.groupName == "t4"
        pod = group.template.spec
        assert (pod.nodeSelector.items() >= spot["nodeSelector"].items()) == is_spot
        tolerated = {each.key for each in pod.tolerations} - {"nvidia.com/gpu"}
        assert tolerated == ({each["key"] for each in spot.get("tolerations", [])} if is_spot else set())


@needs_helm
def test_a_queue_admits_all_workers_at_once() -> None:
    manifests = render("gke", "queue=research", "priorityClass=high", "gpuTypes.a100.min=1")
    (cluster,) = (part for part in manifests if isinstance(part, RayCluster))
    assert cluster.metadata.labels["kueue.x-k8s.io/queue-name"] == "research"
    assert not cluster.spec.enableInTreeAutoscaling
    assert cluster.spec.autoscalerOptions is None
    for group in cluster.spec.workerGroupSpecs:
        assert group.minReplicas == group.replicas == group.maxReplicas == 4
        assert group.template.spec.priorityClassName == "high"
    free = cluster_of(render("gke", "gpuTypes.a100.min=1")).workerGroupSpecs
    assert [(group.minReplicas, group.replicas, group.maxReplicas) for group in free] == [
        (1, 1, 4),
        (0, 0, 4),
    ]


@needs_helm
def test_runs_in_a_bucket_and_workers_without_gpu() -> None:
    manifests = render(
        "eks",
        "storage.claim=",
        "serviceAccount=trainer",
        "imagePullSecrets={mine}",
        "gpuTypes.t4=null",
        "gpuTypes.a100=null",
        "gpuTypes.cpus.cpu=8,gpuTypes.cpus.memory=16Gi,gpuTypes.cpus.max=2,gpuTypes.cpus.gpus=0",
    )
    assert {type(part) for part in manifests} == {RayCluster, Policy}
    spec = cluster_of(manifests)
    (group,) = spec.workerGroupSpecs
    assert (group.groupName, group.labels) == ("cpus", {})
    assert group.template.spec.containers[0].resources.limits == {"cpu": "8", "memory": "16Gi"}
    assert group.template.spec.tolerations == []
    for pod in (spec.headGroupSpec.template.spec, group.template.spec):
        assert pod.serviceAccountName == "trainer"
        assert [each.name for each in pod.imagePullSecrets] == ["mine"]
        assert [volume.name for volume in pod.volumes] == ["shm"]


@needs_helm
@pytest.mark.parametrize("wrong", ["gpuTypes.a100.maximum=3", "image=kdcl_dist", "queue=3", "imge=x:1"])
def test_a_wrong_value_is_refused(wrong: str) -> None:
    done = helm("gke", wrong)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr


@needs_helm
def test_an_unknown_field_in_a_manifest_is_found() -> None:
    (wrong,) = (part for part in render("gke") if isinstance(part, RayCluster))
    fields = wrong.model_dump(by_alias=True, exclude_unset=True)
    fields["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(ValidationError, match="livenesProbe"):
        RayCluster.model_validate(fields)
