{{- /* R, the prefix of every name; short enough for what is put behind it. */ -}}
{{- define "lockgate.prefix" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $default := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $default | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "lockgate.nodeNamespace" -}}
{{- .Values.otellogs.namespace.name | default (printf "%s-nodes" .Release.Namespace) -}}
{{- end -}}

{{- /* The roles that are on, as YAML: role name -> name, namespace, signal, values (the key path of its settings). Whatever is rendered begins
here, so the values are checked here. */ -}}
{{- define "lockgate.roles" -}}
{{- include "lockgate.check" . -}}
{{- include "lockgate.roleList" . -}}
{{- end -}}

{{- define "lockgate.roleList" -}}
{{- $prefix := include "lockgate.prefix" . -}}
{{- with .Values -}}
{{- if and .sumologic.logs.enabled (or .sumologic.logs.container.enabled .sumologic.logs.systemd.enabled) }}
logsCollector: {role: logsCollector, signal: logs, name: {{ $prefix }}-logs-collector, component: logs-collector, namespace: {{ include "lockgate.nodeNamespace" $ | quote }}, values: otellogs}
{{- end }}
{{- if and .sumologic.logs.enabled .metadata.logs.enabled }}
logs: {role: logs, signal: logs, name: {{ $prefix }}-logs-metadata, component: logs-metadata, namespace: {{ $.Release.Namespace | quote }}, values: metadata.logs}
{{- end }}
{{- if and .sumologic.metrics.enabled .metadata.metrics.enabled }}
metrics: {role: metrics, signal: metrics, name: {{ $prefix }}-metrics-metadata, component: metrics-metadata, namespace: {{ $.Release.Namespace | quote }}, values: metadata.metrics}
{{- end }}
{{- if and .sumologic.traces.enabled .otelcolInstrumentation.enabled }}
traces: {role: traces, signal: traces, name: {{ $prefix }}-traces, component: traces, namespace: {{ $.Release.Namespace | quote }}, values: otelcolInstrumentation}
{{- end }}
{{- if .sumologic.events.enabled }}
events: {role: events, signal: events, name: {{ $prefix }}-events, component: events, namespace: {{ $.Release.Namespace | quote }}, values: otelevents}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "root" $ "role" ROLE); these never change, because selectors cannot. */ -}}
{{- define "lockgate.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role.component }}
{{- end -}}

{{- define "lockgate.labels" -}}
{{ include "lockgate.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* The address of a role's Service for others in the cluster. (dict "root" $ "name" NAME) */ -}}
{{- define "lockgate.serviceHost" -}}
{{ .name }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.sumologic.clusterDNSDomain }}
{{- end -}}

{{- /* The image of a role; `own` is the role's own image settings. (dict "root" $ "own" IMAGE) */ -}}
{{- define "lockgate.image" -}}
{{- $common := .root.Values.sumologic.otelcolImage -}}
{{- $own := .own | default dict -}}
{{- $repository := $own.repository | default $common.repository -}}
{{- $tag := $own.tag | default $common.tag | default .root.Chart.AppVersion -}}
{{- if and $common.digest (not $own.repository) (not $own.tag) -}}
{{ $repository }}@{{ $common.digest }}
{{- else -}}
{{ $repository }}:{{ $tag }}{{ if and $common.addFipsSuffix (not (hasSuffix "-fips" $tag)) }}-fips{{ end }}
{{- end -}}
{{- end -}}
