{{/* Parts of pods. */}}

{{/* The fields of a pod that come from values: (list $ "broker"). */}}
{{- define "rolegate.podFields" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
serviceAccountName: {{ include "rolegate.serviceAccount" . }}
# Variables of Services named rolegate-… would look like variables of flags.
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Node selector and tolerations. */}}
{{- define "rolegate.placement" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- $tolerations := $values.tolerations -}}
{{- if and (eq $component "controller") $root.Values.nodeTaint.enabled -}}
{{- $tolerations = append $tolerations (dict "key" $root.Values.nodeTaint.key "operator" "Exists" "effect" "NoSchedule") -}}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
{{- if eq $component "agent" }}
# Pods on a node without the agent get no credentials, so the agent tolerates all taints.
{{- end }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The spread of a Deployment's replicas: (list $ "broker" REQUIRED). */}}
{{- define "rolegate.spread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- $selector := include "rolegate.selector" (list $root $component) -}}
affinity:
  {{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
  {{- else if index . 2 }}
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- $selector | nindent 12 }}
  {{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
  {{- end }}
topologySpreadConstraints:
  {{- if $values.topologySpreadConstraints }}
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - topologyKey: topology.kubernetes.io/zone
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
  {{- end }}
{{- end }}

{{/* The security of a pod that needs no rights on its node: Pod Security level restricted. */}}
{{- define "rolegate.restrictedPod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "rolegate.restrictedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The probes: (list PORT), or on loopback of the host's network (list PORT "127.0.0.1"). */}}
{{- define "rolegate.probes" -}}
readinessProbe:
  httpGet:
    path: /readyz
    {{- if gt (len .) 1 }}
    host: {{ index . 1 }}
    {{- end }}
    port: {{ index . 0 }}
  periodSeconds: 5
livenessProbe:
  httpGet:
    path: /healthz
    {{- if gt (len .) 1 }}
    host: {{ index . 1 }}
    {{- end }}
    port: {{ index . 0 }}
  periodSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* The image of a container. */}}
{{- define "rolegate.containerImage" -}}
image: {{ include "rolegate.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{/* A service account: (list $ "broker"). Agents with a broker have no token for the API server. */}}
{{- define "rolegate.serviceAccountObject" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- if $account.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "rolegate.serviceAccount" . }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "rolegate.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end }}

{{/* A binding: (dict "root" $ "kind" "ClusterRole" "role" NAME "namespace" NAMESPACE "components" LIST). */}}
{{- define "rolegate.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .role }}
  {{- if eq .kind "Role" }}
  namespace: {{ .namespace | default .root.Release.Namespace }}
  {{- end }}
  labels:
    {{- include "rolegate.labels" (list .root (.component | default "")) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .role }}
subjects:
  {{- range .components }}
  - kind: ServiceAccount
    name: {{ include "rolegate.serviceAccount" (list $.root .) }}
    namespace: {{ $.root.Release.Namespace }}
  {{- end }}
{{- end }}

{{/* A disruption budget: (list $ "broker"). With one replica it would block every drain of its node. */}}
{{- define "rolegate.podDisruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- if and $values.podDisruptionBudget.enabled (gt (int $values.replicas) 1) -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "rolegate.fullname" $root }}-{{ $component }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "rolegate.labels" . | nindent 4 }}
spec:
  minAvailable: {{ $values.podDisruptionBudget.minAvailable }}
  selector:
    matchLabels:
      {{- include "rolegate.selector" . | nindent 6 }}
{{- end -}}
{{- end }}
