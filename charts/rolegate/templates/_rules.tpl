{{/* The rules' settings as flags, and checks of the values. */}}

{{/* The mode of layer rego: without namespaces of policies there is nothing to evaluate. */}}
{{- define "rolegate.regoMode" -}}
{{- if .Values.config.rego.namespaces }}{{ .Values.config.layers.rego }}{{ else }}off{{ end -}}
{{- end }}

{{/* The arguments about rules of a component: (list $ "agent"). */}}
{{- define "rolegate.ruleArgs" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $config := $root.Values.config -}}
{{- $detects := has $component (list "agent" "broker") -}}
{{- if eq $config.source "flags" }}
- --cluster-config=off
{{- else if has $config.source (list "object" "external") }}
- --cluster-config=required
{{- end }}
{{- if and $config.baseRoleArn (ne $config.source "object") }}
- --base-role-arn={{ $config.baseRoleArn }}
{{- else if and $detects (not $config.baseRoleArn) }}
- --auto-discover-base-arn
{{- end }}
{{- if has $config.source (list "flags" "auto") }}
{{- with $config.defaultRole }}
- --default-role={{ . }}
{{- end }}
{{- range $config.reservedRoles }}
- --reserved-role={{ . }}
{{- end }}
{{- $layers := dict "namespace" $config.layers.namespace "grants" $config.layers.grants "rego" (include "rolegate.regoMode" $root) }}
{{- range $layer := list "namespace" "grants" "rego" }}
{{- if ne (get $layers $layer) "off" }}
- --layer={{ $layer }}={{ get $layers $layer }}
{{- end }}
{{- end }}
{{- if ne $config.layers.namespace "off" }}
- --namespace-restrictions-default={{ $config.namespaceRestrictionsDefault }}
{{- end }}
{{- if ne $config.namespaceRestrictionFormat "glob" }}
- --namespace-restriction-format={{ $config.namespaceRestrictionFormat }}
{{- end }}
{{- if ne (get $layers "rego") "off" }}
{{- range $config.rego.namespaces }}
- --policy-namespaces={{ . }}
{{- end }}
{{- if ne $config.rego.label "openpolicyagent.org/policy=rego" }}
- --policy-label={{ $config.rego.label }}
{{- end }}
{{- range $config.rego.replicate }}
- --replicate={{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- with $config.annotationKeys.role }}
- --iam-role-key={{ . }}
{{- end }}
{{- with $config.annotationKeys.externalId }}
- --iam-external-id={{ . }}
{{- end }}
{{- with $config.annotationKeys.namespace }}
- --namespace-key={{ . }}
{{- end }}
{{- end }}

{{/* Refuses combinations of values that cannot work, each with a remedy. */}}
{{- define "rolegate.validate" -}}
{{- $values := .Values -}}
{{- $config := $values.config -}}
{{- $controller := include "rolegate.controller" . -}}
{{- if not (or $values.agent.enabled $values.broker.enabled $values.admission.enabled $controller $values.crds.install $values.namespace.create $values.rbac.view) }}
{{- fail "nothing is installed: set agent.enabled, broker.enabled or admission.enabled to true" }}
{{- end }}
{{- if and (eq $config.layers.rego "enforce") (not $config.rego.namespaces) }}
{{- fail "config.layers.rego=enforce requires config.rego.namespaces, the namespaces of the policies' ConfigMaps: without policies the layer would be off" }}
{{- end }}
{{- range $field := list "layers" "reservedRoles" "namespaceRestrictionsDefault" "baseRoleArn" }}
{{- if hasKey $config.extraSpec $field }}
{{- fail (printf "config.extraSpec.%s would override config.%s: set config.%s only" $field $field $field) }}
{{- end }}
{{- end }}
{{- if and $values.broker.enabled $values.agent.enabled (eq (include "rolegate.serviceAccount" (list . "agent")) (include "rolegate.serviceAccount" (list . "broker"))) }}
{{- fail "agents and brokers have the same service account, so every node would have the brokers' AWS rights: set broker.serviceAccount.name or create to differ from those of agent.serviceAccount" }}
{{- end }}
{{- if and $config.extraSpec (ne $config.source "object") }}
{{- fail "config.extraSpec has no effect: flags cannot express it; set config.source=object once the CRDs are installed" }}
{{- end }}
{{- if and $values.admission.enabled (not $config.baseRoleArn) (ne $config.source "external") }}
{{- fail "admission.enabled requires config.baseRoleArn, such as arn:aws:iam::123456789012:role/, because the webhook cannot detect it and would refuse every role that is written as a name" }}
{{- end }}
{{- if and $values.admission.enabled (not $controller) (eq $values.certificates.source "controller") }}
{{- fail "admission.enabled requires the controller, which issues the certificate: set controller.enabled to auto" }}
{{- end }}
{{- if and $values.broker.enabled (not $controller) (eq $values.certificates.source "controller") }}
{{- fail "broker.enabled requires the controller, which issues the certificate: set controller.enabled to auto, or certificates.source to cert-manager" }}
{{- end }}
{{- if and $values.nodeTaint.enabled (not $controller) }}
{{- fail "nodeTaint.enabled requires the controller, which removes the taint: set controller.enabled to auto" }}
{{- end }}
{{- if and $values.nodeTaint.enabled (not (include "rolegate.agentRuns" .)) }}
{{- fail "nodeTaint.enabled requires agents: the taint would stay on every node; set agent.enabled=true and agent.mode=run" }}
{{- end }}
{{- if and (eq $values.certificates.source "cert-manager") (or $values.admission.enabled $values.broker.enabled) (not $values.certificates.issuerRef.name) }}
{{- fail "certificates.source=cert-manager requires certificates.issuerRef.name" }}
{{- end }}
{{- end }}
