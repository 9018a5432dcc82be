{{- /* Every port that a role listens on: name, port, protocol, why, as a YAML list. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.ports" -}}
{{- $listeners := get .root.Values.listeners .role.role -}}
{{- if ne .role.role "logsCollector" }}
{{- $suffixes := dict "otlp" "" "otlp/legacy" "-old" "otlp/journald" "-sys" }}
{{- range $id, $protocols := fromYaml (include "lockgate.otlpReceivers" .) }}
{{- range $protocol, $port := $protocols }}
- {name: otlp-{{ $protocol }}{{ get $suffixes $id }}, port: {{ int $port }}, protocol: TCP, why: "receivers/{{ $id }}"}
{{- end }}
{{- end }}
{{- with $listeners.fluentForward }}
- {name: fluent, port: {{ int . }}, protocol: TCP, why: receivers/fluentforward}
- {name: fluent-udp, port: {{ int . }}, protocol: UDP, why: "receivers/fluentforward, heartbeats"}
{{- end }}
{{- end }}
- {name: metrics, port: {{ int $listeners.ownMetrics }}, protocol: TCP, why: own metrics}
- {name: health, port: {{ int $listeners.health }}, protocol: TCP, why: a kubelet's probes}
{{- end -}}

{{- define "lockgate.containerPorts" -}}
{{- range fromYamlArray (include "lockgate.ports" .) }}
- {name: {{ .name }}, containerPort: {{ int .port }}, protocol: {{ .protocol }}}
{{- end }}
{{- end -}}
