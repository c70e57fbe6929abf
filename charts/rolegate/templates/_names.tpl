{{/* Names and labels. */}}

{{- define "rolegate.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* The prefix of all names. */}}
{{- define "rolegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "rolegate.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "rolegate.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* The service account of a component: (list $ "agent"). */}}
{{- define "rolegate.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- include "rolegate.fullname" $root }}-{{ $component -}}
{{- else -}}
default
{{- end -}}
{{- end }}

{{/* The labels that select the pods of a component. They never change, since selectors are immutable. */}}
{{- define "rolegate.selector" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
app.kubernetes.io/name: {{ include "rolegate.name" $root }}-{{ $component }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- end }}

{{/* The labels of an object: (list $ "agent"), or without a component (list $ ""). */}}
{{- define "rolegate.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- if $component -}}
{{ include "rolegate.selector" . }}
app.kubernetes.io/component: {{ $component }}
{{- else -}}
app.kubernetes.io/name: {{ include "rolegate.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- end }}
app.kubernetes.io/part-of: rolegate
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels of a component's pods: without versions, so that a new version of the chart alone restarts no pod. */}}
{{- define "rolegate.podLabels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{ include "rolegate.selector" . }}
app.kubernetes.io/component: {{ $component }}
app.kubernetes.io/part-of: rolegate
{{- with merge (dict) (index $root.Values $component).podLabels $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rolegate.image" -}}
{{- $image := .Values.image -}}
{{- $repository := required "image.repository is required: no image is published yet; build one (docs/how-to/install.md), and add --set image.repository=REGISTRY/rolegate" $image.repository -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end }}{{ $repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* "true" if the controller is installed, otherwise nothing. */}}
{{- define "rolegate.controller" -}}
{{- $enabled := .Values.controller.enabled -}}
{{- if kindIs "bool" $enabled -}}
{{- if $enabled }}true{{ end -}}
{{- else if or .Values.admission.enabled .Values.broker.enabled .Values.nodeTaint.enabled -}}
true
{{- end -}}
{{- end }}

{{/* "true" if the chart's agents serve pods, otherwise nothing. */}}
{{- define "rolegate.agentRuns" -}}
{{- if and .Values.agent.enabled (eq .Values.agent.mode "run") }}true{{ end -}}
{{- end }}

{{/* Flags of names that differ from the program's defaults: a list of (list "--lease" NAME DEFAULT). */}}
{{- define "rolegate.nameFlags" -}}
{{- range . }}
{{- if ne (index . 1) (index . 2) }}
- {{ index . 0 }}={{ index . 1 }}
{{- end }}
{{- end }}
{{- end }}
