{{/* The webhook's arguments about the injection of credentials. */}}
{{- define "rolegate.injectionArgs" -}}
{{- with .Values.endpoints.webIdentity }}
{{- if .enabled }}
- --inject
- --inject-assigned={{ .assigned }}
{{- if ne .require "off" }}
- --require-injection={{ .require }}
{{- end }}
{{- if ne .audience "sts.amazonaws.com" }}
- --inject-audience={{ .audience }}
{{- end }}
{{- if ne (int .expirationSeconds) 86400 }}
- --inject-expiration={{ int .expirationSeconds }}
{{- end }}
{{- with .region }}
- --inject-region={{ . }}
{{- end }}
{{- if .regionalSts }}
- --inject-regional-sts
{{- end }}
{{- if .configMap }}
- --inject-config-map
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The controller's arguments that are not about rules. */}}
{{- define "rolegate.controllerArgs" -}}
{{- $fullname := include "rolegate.fullname" . -}}
{{- include "rolegate.nameFlags" (list (list "--lease" (printf "%s-controller" $fullname) "rolegate-controller")) }}
{{- if .Values.admission.enabled }}
{{- include "rolegate.nameFlags" (list
  (list "--service" (printf "%s-admission" $fullname) "rolegate-admission")
  (list "--tls-secret" (printf "%s-admission-tls" $fullname) "rolegate-admission-tls")) }}
{{- if eq .Values.certificates.source "cert-manager" }}
- --certificate=cert-manager
{{- end }}
{{- with .Values.endpoints.webIdentity }}
{{- if .enabled }}
- --inject
{{- if ne .failurePolicy "Fail" }}
- --inject-failure-policy={{ lower .failurePolicy }}
{{- end }}
{{- if ne .require "off" }}
- --require-injection={{ .require }}
{{- end }}
{{- end }}
{{- end }}
{{- else }}
# Without the webhook, its certificate is not issued and it is not registered.
- --certificate=cert-manager
- --webhook-registration=update
{{- end }}
{{- if and .Values.broker.enabled (eq .Values.certificates.source "controller") }}
{{- include "rolegate.nameFlags" (list
  (list "--broker-service" (printf "%s-broker" $fullname) "rolegate-broker")
  (list "--broker-tls-secret" (printf "%s-broker-tls" $fullname) "rolegate-broker-tls")
  (list "--broker-ca-configmap" (printf "%s-broker-ca" $fullname) "rolegate-broker-ca")) }}
{{- else if .Values.broker.enabled }}
- --broker-certificate=cert-manager
{{- end }}
{{- if .Values.nodeTaint.enabled }}
- --startup-taint={{ .Values.nodeTaint.key }}
- --agent-selector=app.kubernetes.io/name={{ include "rolegate.name" . }}-agent,app.kubernetes.io/instance={{ .Release.Name }}
{{- end }}
{{- end }}
