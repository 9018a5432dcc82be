{{- /* The rows of files/listeners.yaml that are on in a role, each with its port, as a YAML list. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.listening" -}}
{{- $values := .root.Values -}}
{{- $listeners := get $values.listeners .role.role -}}
{{- $on := list -}}
{{- range fromYamlArray (.root.Files.Get "files/listeners.yaml") -}}
{{- if and (get $listeners .key) (or (ne .key "systemd") $values.sumologic.logs.systemd.enabled) -}}
{{- $on = append $on (merge (dict "port" (get $listeners .key | int)) . (dict "transport" "TCP")) -}}
{{- end -}}
{{- end -}}
{{- toYaml $on -}}
{{- end -}}

{{- /* Every port that a role listens on: name, port, protocol, why, as a YAML list. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.ports" -}}
{{- $listeners := get .root.Values.listeners .role.role -}}
{{- range fromYamlArray (include "lockgate.listening" .) }}
- {name: {{ .name }}, port: {{ int .port }}, protocol: {{ .transport }}, why: "{{ .component }}{{ with .why }}, {{ . }}{{ end }}"}
{{- end }}
- {name: metrics, port: {{ int $listeners.ownMetrics }}, protocol: TCP, why: own metrics}
- {name: health, port: {{ int $listeners.health }}, protocol: TCP, why: a kubelet's probes}
{{- end -}}

{{- define "lockgate.containerPorts" -}}
{{- range fromYamlArray (include "lockgate.ports" .) }}
- {name: {{ .name }}, containerPort: {{ int .port }}, protocol: {{ .protocol }}}
{{- end }}
{{- end -}}
