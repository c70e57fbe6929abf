{{/* Parts of the agent's DaemonSet. */}}

{{- define "rolegate.agentArgs" -}}
{{- $agent := .Values.agent -}}
{{- $fullname := include "rolegate.fullname" . -}}
{{- $config := .Values.config -}}
{{- if and (not .Values.broker.enabled) (eq $config.source "auto") (eq $config.layers.namespace "off") (eq $config.layers.grants "off") -}}
# Decide this first. As shipped no layer of rules is enforced: any pod may have any role that
# trusts the node's role. Either of these closes that, before pods rely on it; a RolegateConfig
# (deploy/examples/rolegateconfig.yaml) overrides both.
# - --namespace-restrictions # only roles that the pod's namespace allows by its annotations
# - --layer=grants=enforce # only roles that a RoleGrant gives to the pod
{{ end -}}
- --redirect={{ $agent.redirect }}
{{- if and $agent.hostInterface (ne $agent.redirect "none") }}
{{- if eq $agent.hostInterface "auto" }}
# The interfaces on which pods' packets arrive, found from the CNI configuration. To name
# them: eni+ for the AWS VPC CNI, cali+ for Calico, "!eth0" for all but eth0.
{{- end }}
- {{ printf "--host-interface=%s" $agent.hostInterface }}
{{- if and (eq $agent.hostInterface "auto") (ne $agent.cniConfDir "/etc/cni/net.d") }}
- --cni-conf-dir={{ $agent.cniConfDir }}
{{- end }}
{{- end }}
{{- if .Values.broker.enabled }}
- --broker=https://{{ $fullname }}-broker.{{ .Release.Namespace }}.svc:9443
{{- else }}
{{- include "rolegate.ruleArgs" (list . "agent") }}
{{- end }}
- --node=$(NODE_NAME)
- --host-ip=$(HOST_IP)
{{- if ne (int $agent.appPort) 8181 }}
- --app-port={{ $agent.appPort }}
{{- end }}
{{- if ne $agent.cniResultsDir "/var/lib/cni/results" }}
- --cni-results-dir={{ $agent.cniResultsDir }}
{{- end }}
{{- with .Values.endpoints.containerCredentials }}
{{- if .enabled }}
{{- if $.Values.broker.enabled }}
{{- fail "endpoints.containerCredentials.enabled: agents with brokers (broker.enabled) don't serve container credentials" }}
{{- end }}
- --container-credentials
{{- if ne (int .port) 80 }}
- --container-credentials-port={{ .port }}
{{- end }}
{{- if ne .audience "pods.eks.amazonaws.com" }}
- --container-credentials-audience={{ .audience }}
{{- end }}
{{- end }}
{{- end }}
{{- if not $agent.selfTest }}
# Tests from inside pods' network namespaces need SYS_ADMIN.
- --redirect-check-dir=
{{- end }}
{{- if $agent.metrics.public }}
# Pods can reach this port.
- --metrics-port={{ $agent.metrics.port }}
{{- else }}
# Metrics and health listen on loopback, where pods cannot reach them. For a Prometheus that
# scrapes the node: --metrics-port=9090 listens on all its addresses, which pods can reach.
- --metrics-address=127.0.0.1:{{ $agent.metrics.port }}
{{- end }}
{{- range $agent.extraArgs }}
- {{ . }}
{{- end }}
{{- end }}

{{- define "rolegate.agentSecurity" -}}
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      - NET_ADMIN # redirect and drop rules, connection tracking
      {{- if .Values.endpoints.containerCredentials.enabled }}
      - NET_BIND_SERVICE # port 80 of 169.254.170.23
      {{- end }}
      {{- if and .Values.agent.selfTest (include "rolegate.agentRuns" .) }}
      - SYS_ADMIN # entering a pod's network namespace to test that the rules hold
      {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "rolegate.agentVolumes" -}}
{{- if .Values.broker.enabled -}}
# The authority of the brokers' certificates, published by `rolegate controller`. Optional, so
# that the redirect is in place before the authority exists.
- name: broker-ca
  configMap:
    name: {{ include "rolegate.fullname" . }}-broker-ca
    optional: true
# Bound to this pod, which is on this node: the broker authenticates the agent by it.
- name: broker-token
  projected:
    sources:
      - serviceAccountToken:
          audience: rolegate
          expirationSeconds: 3600
          path: token
{{ end -}}
# An agent hands its sockets to the next one here.
- name: runtime
  hostPath:
    path: /run/rolegate
    type: DirectoryOrCreate
- name: netns
  hostPath:
    path: /run/netns
    type: DirectoryOrCreate
{{- if eq .Values.agent.hostInterface "auto" }}
# For --host-interface=auto.
- name: cni-configuration
  hostPath:
    path: {{ .Values.agent.cniConfDir }}
    type: DirectoryOrCreate
{{- end }}
# The container runtime's record of pods' addresses: on a bridge nothing else identifies pods.
# The agent uses it for bridges only.
- name: cni-results
  hostPath:
    path: {{ .Values.agent.cniResultsDir }}
    type: DirectoryOrCreate
- name: xtables-lock
  hostPath:
    path: /run/xtables.lock
    type: FileOrCreate
{{- end }}
