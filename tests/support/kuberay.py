"""What KubeRay 1.7 and Kubernetes take in the manifests of the chart; an unknown field is an error.

Only what the chart renders is described; `kubectl apply --dry-run=server` asks an API server for the rest.
The fields, types and choices are those of the CRDs of KubeRay 1.7.0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Claim", "Manifest", "Policy", "RayCluster", "RayJob"]

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Port = Annotated[int, Field(ge=1, le=65535)]
Labels = dict[str, str]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Closed):
    name: DnsName
    labels: Labels = {}
    annotations: Labels = {}


class HttpGet(Closed):
    path: str
    port: Port


class Probe(Closed):
    httpGet: HttpGet
    periodSeconds: int
    timeoutSeconds: int
    failureThreshold: int
    initialDelaySeconds: int = 0


class Capabilities(Closed):
    drop: list[str]


class ContainerSecurity(Closed):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Seccomp(Closed):
    type: Literal["RuntimeDefault"]


class PodSecurity(Closed):
    runAsNonRoot: Literal[True]
    runAsUser: int
    fsGroup: int
    seccompProfile: Seccomp


class Resources(Closed):
    limits: dict[str, Quantity | int]
    requests: dict[str, Quantity | int]


class Mount(Closed):
    name: str
    mountPath: str


class ContainerPort(Closed):
    name: str
    containerPort: Port


class Container(Closed):
    name: DnsName
    image: str
    securityContext: ContainerSecurity
    ports: list[ContainerPort] = []
    resources: Resources
    readinessProbe: Probe
    livenessProbe: Probe
    volumeMounts: list[Mount]


class EmptyDir(Closed):
    medium: Literal["Memory"]
    sizeLimit: Quantity


class ClaimOfPod(Closed):
    claimName: DnsName


class Volume(Closed):
    name: str
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: ClaimOfPod | None = None


class Toleration(Closed):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Reference(Closed):
    name: DnsName


class Pod(Closed):
    securityContext: PodSecurity
    automountServiceAccountToken: bool
    serviceAccountName: DnsName | None = None
    priorityClassName: DnsName | None = None
    imagePullSecrets: list[Reference] = []
    containers: list[Container]
    volumes: list[Volume]
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30


class TemplateMetadata(Closed):
    labels: Labels


class Template(Closed):
    metadata: TemplateMetadata
    spec: Pod


class Head(Closed):
    rayStartParams: dict[str, str]
    template: Template


class Workers(Head):
    groupName: DnsName
    replicas: int
    minReplicas: int
    maxReplicas: int
    labels: Labels = {}


class Auth(Closed):
    mode: Literal["token"]
    secretName: DnsName


class Autoscaler(Closed):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int


class ClusterSpec(Closed):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


class RayCluster(Closed):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Closed):
    entrypoint: str
    runtimeEnvYAML: str
    submissionMode: Literal["HTTPMode"]
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    rayClusterSpec: ClusterSpec


class RayJob(Closed):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class ClaimResources(Closed):
    requests: dict[str, Quantity]


class ClaimSpec(Closed):
    accessModes: list[Literal["ReadWriteMany"]]
    storageClassName: DnsName | None = None
    resources: ClaimResources


class Claim(Closed):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class Selector(Closed):
    matchLabels: Labels = {}


class Peer(Closed):
    podSelector: Selector
    namespaceSelector: Selector | None = None


class PolicyPort(Closed):
    protocol: Literal["TCP"]
    port: Port


class Rule(Closed):
    peers: Annotated[list[Peer], Field(alias="from")]
    ports: list[PolicyPort] = []


class PolicySpec(Closed):
    podSelector: Selector
    policyTypes: list[Literal["Ingress"]]
    ingress: list[Rule]


class Policy(Closed):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


Manifest = RayCluster | RayJob | Claim | Policy
