{{/* The template of a pod of the head or of a worker: root, group (its values), name of the container, gpus. */}}
{{- define "kdcl.pod" -}}
{{- $values := .root.Values }}
{{- $isHead := eq .name "ray-head" }}
{{- $spot := .group.spot | default false | ternary $values.spot dict }}
{{- $nodes := merge dict (.group.nodeSelector | default dict) ($spot.nodeSelector | default dict) }}
{{- $tolerations := concat (.group.tolerations | default list) ($spot.tolerations | default list) }}
{{- if .gpus }}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
{{- end -}}
metadata:
  labels: {{- include "kdcl.labels" .root | nindent 4 }}
spec:
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    fsGroup: 1000
    seccompProfile: {type: RuntimeDefault}
  automountServiceAccountToken: {{ $isHead }}{{ if $isHead }}  # the autoscaler asks the API server for pods{{ end }}
  {{- with $values.serviceAccount }}
  serviceAccountName: {{ . | quote }}
  {{- end }}
  {{- with $values.priorityClass }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with $values.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  terminationGracePeriodSeconds: 60
  {{- with $nodes }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ $values.image | quote }}
      securityContext:
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      {{- if $isHead }}
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
      {{- end }}
      resources:
        {{- range list "limits" "requests" }}
        {{ . }}:
          cpu: {{ $.group.cpu | quote }}
          memory: {{ $.group.memory | quote }}
          {{- if $.gpus }}
          nvidia.com/gpu: {{ $.gpus }}
          {{- end }}
        {{- end }}
      {{- $answers := $isHead | ternary "/api/gcs_healthz, port: 8265" "/api/local_raylet_healthz, port: 52365" }}
      readinessProbe:
        httpGet: {path: {{ $answers }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      livenessProbe:
        httpGet: {path: {{ $answers }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 12
        initialDelaySeconds: 30
      volumeMounts:
        - {name: shm, mountPath: /dev/shm}
        {{- if $values.storage.claim }}
        - {name: shared, mountPath: {{ $values.storage.path | quote }}}
        {{- end }}
  volumes:
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: 2Gi}
    {{- with $values.storage.claim }}
    - name: shared
      persistentVolumeClaim: {claimName: {{ . | quote }}}
    {{- end }}
{{- end }}

{{/* Labels of the pods, by which the network policy finds them. */}}
{{- define "kdcl.labels" -}}
app.kubernetes.io/part-of: kdcl
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The metadata of the cluster or job. */}}
{{- define "kdcl.metadata" -}}
name: {{ .Release.Name }}
labels:
  {{- include "kdcl.labels" . | nindent 2 }}
  {{- with .Values.queue }}
  kueue.x-k8s.io/queue-name: {{ . | quote }}
  {{- end }}
{{- end }}
