{{/* The RayCluster's spec: a head without GPU, and a group of workers for each of gpuTypes. */}}
{{- define "kdcl.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
authOptions:
  mode: token
  secretName: {{ .Values.tokenSecret | quote }}
enableInTreeAutoscaling: {{ empty .Values.queue }}
{{- if not .Values.queue }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ .Values.idleSeconds }}
{{- end }}
headGroupSpec:
  rayStartParams: {num-cpus: "0", num-gpus: "0", disable-usage-stats: "true"}
  template:
    {{- include "kdcl.pod" (dict "root" . "group" .Values.head "name" "ray-head" "gpus" 0) | nindent 4 }}
workerGroupSpecs:
{{- range $name, $type := .Values.gpuTypes }}
{{- if $type }}
{{- $start := empty $.Values.queue | ternary ($type.min | default 0) $type.max }}
  - groupName: {{ $name | quote }}
    minReplicas: {{ $start }}
    replicas: {{ $start }}
    maxReplicas: {{ $type.max }}
    {{- with $type.accelerator }}
    labels: {ray.io/accelerator-type: {{ . | quote }}}
    {{- end }}
    rayStartParams: {disable-usage-stats: "true"}
    template:
      {{- $gpus := hasKey $type "gpus" | ternary $type.gpus 1 }}
      {{- include "kdcl.pod" (dict "root" $ "group" $type "name" "ray-worker" "gpus" $gpus) | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
