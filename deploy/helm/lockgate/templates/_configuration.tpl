{{- /* What a role runs, after the user's config.merge and config.override. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.configuration" -}}
{{- $own := (include "lockgate.settings" . | fromYaml).config -}}
{{- if $own.override -}}
{{- toYaml $own.override -}}
{{- else -}}
{{- $built := fromYaml (include (printf "lockgate.configuration.%s" (get (dict "logsCollector" "collector" "events" "events") .role.role | default "metadata")) .) -}}
{{- mergeOverwrite $built (deepCopy $own.merge) | toYaml -}}
{{- end -}}
{{- end -}}

{{- /* A role's part of the values, as YAML. */ -}}
{{- define "lockgate.settings" -}}
{{- $found := .root.Values -}}
{{- range splitList "." .role.values -}}{{- $found = get $found . -}}{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- /* What a role that delivers has in common with others like it, as YAML: the metadata roles and traces share it, events has its own. */ -}}
{{- define "lockgate.shared" -}}
{{- if eq .role.role "events" -}}
{{- $own := .root.Values.otelevents -}}
{{- $persistence := .root.Values.sumologic.events.persistence -}}
{{- $none := dict "podLabels" dict "podAnnotations" dict "serviceLabels" dict "serviceAnnotations" dict -}}
{{- merge (dict "image" $own.image "securityContext" $own.statefulset.securityContext "persistence" (merge (omit $persistence "persistentVolume") $persistence.persistentVolume)) $none | toYaml -}}
{{- else -}}
{{- omit .root.Values.metadata "logs" "metrics" | toYaml -}}
{{- end -}}
{{- end -}}

{{- /* Text of a user in a configuration: a dollar sign is no reference there. */ -}}
{{- define "lockgate.text" -}}
{{ . | replace "$" "$$" | toJson }}
{{- end -}}

{{- /* A source template, with the short names of the Sumo Logic Kubernetes Collection as the attributes that they mean. */ -}}
{{- define "lockgate.template" -}}
{{- $text := . -}}
{{- $names := dict "namespace" "k8s.namespace.name" "pod" "k8s.pod.name" "pod_name" "k8s.pod.pod_name" "pod_id" "k8s.pod.uid" "container" "k8s.container.name" "node" "k8s.node.name" "host" "k8s.node.name" "deployment" "k8s.deployment.name" "statefulset" "k8s.statefulset.name" "daemonset" "k8s.daemonset.name" -}}
{{- range $short, $long := $names -}}
{{- $text = $text | replace (printf "%%{%s}" $short) (printf "%%{%s}" $long) -}}
{{- end -}}
{{ include "lockgate.text" $text }}
{{- end -}}

{{- define "lockgate.listen" -}}
{{ .root.Values.sumologic.ipv6mode | ternary "[::]" "0.0.0.0" }}:{{ int .port }}
{{- end -}}

{{- define "lockgate.configuration.service" -}}
{{- if ne .root.Values.sandbox "best-effort" }}
sandbox: {{ .root.Values.sandbox | quote }}
{{- end }}
telemetry:
  logs: {level: {{ .level }}, encoding: json}
  metrics:
    readers:
      - pull: {exporter: {prometheus: {host: {{ .root.Values.sumologic.ipv6mode | ternary "::" "0.0.0.0" | quote }}, port: {{ int .listeners.ownMetrics }}}}}
{{- end -}}

{{- /* What is acknowledged is on disk until the next tier has it; bytes bound it, not requests. */ -}}
{{- define "lockgate.configuration.queue" -}}
sending_queue:
  storage: file_storage
  queue_size: 1000000
  max_disk_bytes: {{ . }}
{{- end -}}

{{- /* What connects this role to the next, as YAML: component -> true. Traces come from applications. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.connections" -}}
{{- $logs := .root.Values.sumologic.logs -}}
{{- if eq .role.role "logsCollector" -}}
{{- if $logs.container.enabled }}
exporters/otlphttp: true
{{- end }}
{{- if $logs.systemd.enabled }}
exporters/otlphttp/journald: true
{{- end }}
{{- else if ne .role.role "traces" -}}
{{- $found := dict -}}
{{- range fromYamlArray (include "lockgate.listening" .) }}{{ if .isMutual }}{{ $_ := set $found .component true }}{{ end }}{{ end -}}
{{- with $found }}{{ toYaml . }}{{ end -}}
{{- end -}}
{{- end -}}

{{- define "lockgate.configuration.trust" -}}
{{- with fromYaml (include "lockgate.connections" .) -}}
trust: {mutual_tls: {directory: "${env:LOCKGATE_MUTUAL_TLS:-}", components: {{ toJson . }}}}
{{- end -}}
{{- end -}}

{{- define "lockgate.configuration.collector" -}}
{{- $values := .root.Values -}}
{{- $logs := $values.sumologic.logs -}}
{{- $listeners := $values.listeners.logsCollector -}}
{{- $metadata := include "lockgate.serviceHost" (dict "root" .root "name" (printf "%s-logs-metadata" (include "lockgate.prefix" .root))) -}}
{{- /* In an emptyDir a queue would be lost with the pod: there positions move on only when the next tier has the lines. */ -}}
{{- $queue := eq $values.otellogs.state.type "hostPath" | ternary (include "lockgate.configuration.queue" $values.otellogs.state.maxQueueSize) "" -}}
receivers:
  {{- if $logs.container.enabled }}
  filelog:
    include: [/var/log/pods/{{ $values.rbac.namespace | empty | ternary "*" (printf "%s_*" $values.rbac.namespace) }}/*/*.log]
    symlink_roots: {{ ternary (list "/var/log/pods" "/var/lib/docker/containers") (list "/var/log/pods") $values.otellogs.dockerContainers | toJson }}
    include_file_path: true
    include_file_name: false
    start_at: beginning
    storage: file_storage
    operators:
      - type: container
  {{- end }}
  {{- if $logs.systemd.enabled }}
  journald:
    directory: /var/log/journal
    storage: file_storage
    units: {{ toJson $logs.systemd.units }}
    resource:
      k8s.node.name: ${env:LOCKGATE_NODE}
  {{- end }}
exporters:
  {{- if $logs.container.enabled }}
  otlphttp:
    endpoint: http://{{ $metadata }}:{{ int $values.listeners.logs.otlpHttp }}
    compression: gzip
    {{- $queue | nindent 4 }}
  {{- end }}
  {{- if $logs.systemd.enabled }}
  otlphttp/journald:
    endpoint: http://{{ $metadata }}:{{ int $values.listeners.logs.systemd }}
    compression: gzip
    {{- $queue | nindent 4 }}
  {{- end }}
extensions:
  health_check:
    endpoint: {{ include "lockgate.listen" (dict "root" .root "port" $listeners.health) | quote }}
  {{- with $listeners.ledger }}
  ledger: {endpoint: "127.0.0.1:{{ int . }}", state_directory: /var/lib/lockgate/storage}
  {{- end }}
  file_storage:
    directory: /var/lib/lockgate/storage
    create_directory: true
service:
  extensions: [health_check{{ if $listeners.ledger }}, ledger{{ end }}, file_storage]
  {{- include "lockgate.configuration.trust" . | nindent 2 }}
  pipelines:
    {{- if $logs.container.enabled }}
    logs: {receivers: [filelog], exporters: [otlphttp]}
    {{- end }}
    {{- if $logs.systemd.enabled }}
    logs/journald: {receivers: [journald], exporters: [otlphttp/journald]}
    {{- end }}
  {{- include "lockgate.configuration.service" (dict "root" .root "listeners" $listeners "level" $values.otellogs.logLevel) | nindent 2 }}
{{- end -}}

{{- /* The receivers of a metadata role that are on, with their settings, as YAML. */ -}}
{{- define "lockgate.receivers" -}}
{{- $root := .root -}}
{{- $found := dict -}}
{{- range fromYamlArray (include "lockgate.listening" .) -}}
{{- $endpoint := dict "endpoint" (include "lockgate.listen" (dict "root" $root "port" .port)) -}}
{{- $id := trimPrefix "receivers/" .component -}}
{{- if eq $id .component }}{{/* an extension */}}
{{- else if .protocol -}}
{{- $settings := get $found $id | default (dict "protocols" dict) -}}
{{- $_ := set $settings.protocols .protocol $endpoint -}}
{{- $_ := set $found $id $settings -}}
{{- else -}}
{{- $_ := set $found $id $endpoint -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- define "lockgate.configuration.metadata" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $settings := fromYaml (include "lockgate.settings" .) -}}
{{- $listeners := get $values.listeners .role.role -}}
{{- $receivers := fromYaml (include "lockgate.receivers" .) -}}
{{- $exporter := $values.backend.exporter -}}
{{- $cluster := include "lockgate.text" $values.sumologic.clusterName -}}
{{- $source := dict -}}
{{- if eq .role.role "logs" }}{{ $source = $values.sumologic.logs.container }}{{ end -}}
{{- if eq .role.role "traces" }}{{ $source = $values.otelcolInstrumentation.sourceMetadata }}{{ end -}}
{{- if eq .role.role "metrics" }}{{ $source = dict "excludeNamespaceRegex" $values.sumologic.metrics.excludeNamespaceRegex }}{{ end -}}
receivers: {{- toYaml $receivers | nindent 2 }}
processors:
  memory_limiter:
    check_interval: 5s
    limit_percentage: 75
    spike_limit_percentage: 20
  k8sattributes:
    auth_type: serviceAccount
    {{- with $values.rbac.namespace }}
    filter: {namespace: {{ . | quote }}}
    {{- end }}
    extract:
      metadata:
        - k8s.namespace.name
        - k8s.pod.name
        - k8s.pod.uid
        - k8s.pod.start_time
        - k8s.node.name
        - k8s.deployment.name
        - k8s.statefulset.name
        - k8s.daemonset.name
        - k8s.replicaset.name
      labels:
        {{- if and (hasKey $settings "extractPodLabels") (not $settings.extractPodLabels) }}
        - {from: pod, key: pod-template-hash, tag_name: k8s.pod.label.pod-template-hash}
        {{- else }}
        - {from: pod, key_regex: (.*), tag_name: k8s.pod.label.$$1}
        {{- end }}
        {{- if $settings.extractNodeLabels }}
        - {from: node, key_regex: (.*), tag_name: k8s.node.label.$$1}
        {{- end }}
      annotations:
        - {from: pod, key_regex: (.*), tag_name: k8s.pod.annotation.$$1}
        {{- if not $values.rbac.namespace }}
        - {from: namespace, key_regex: (.*), tag_name: k8s.namespace.annotation.$$1}
        {{- end }}
    pod_association:
      - sources: [{from: resource_attribute, name: k8s.pod.uid}]
      - sources: [{from: resource_attribute, name: k8s.pod.name}, {from: resource_attribute, name: k8s.namespace.name}]
      - sources: [{from: connection}]
    wait_for_metadata: {{ $settings.waitForMetadata }}
    wait_for_metadata_timeout: {{ $settings.waitForMetadataTimeout }}
  resource:
    attributes:
      - {action: upsert, key: cluster, value: {{ $cluster }}}
  source:
    collector: {{ $cluster }}
    {{- range $key, $name := dict "sourceHost" "source_host" "sourceName" "source_name" "sourceCategory" "source_category" "sourceCategoryPrefix" "source_category_prefix" "sourceCategoryReplaceDash" "source_category_replace_dash" }}
    {{- if and (hasKey $source $key) (or (ne $key "sourceHost") (get $source $key)) }}
    {{ $name }}: {{ include "lockgate.template" (get $source $key) }}
    {{- end }}
    {{- end }}
    {{- $exclude := dict }}
    {{- range $key, $attribute := dict "excludeContainerRegex" "k8s.container.name" "excludeHostRegex" "_sourceHost" "excludeNamespaceRegex" "k8s.namespace.name" "excludePodRegex" "k8s.pod.name" }}
    {{- with get $source $key }}{{ $_ := set $exclude $attribute (replace "$" "$$" .) }}{{ end }}
    {{- end }}
    {{- with $exclude }}
    exclude: {{ toJson . }}
    {{- end }}
    {{- if $source.perContainerAnnotationsEnabled }}
    container_annotations: {enabled: true{{ with $source.perContainerAnnotationPrefixes }}, prefixes: {{ toJson . }}{{ end }}}
    {{- end }}
  {{- if hasKey $receivers "otlp/journald" }}
  {{- $systemd := $values.sumologic.logs.systemd }}
  source/journald:
    collector: {{ $cluster }}
    source_host: "%{k8s.node.name}"
    source_name: {{ $systemd.sourceName | replace "%{_sourceName}" "journald" | include "lockgate.template" }}
    source_category: {{ include "lockgate.template" $systemd.sourceCategory }}
    source_category_prefix: {{ include "lockgate.template" $systemd.sourceCategoryPrefix }}
    source_category_replace_dash: {{ include "lockgate.template" $systemd.sourceCategoryReplaceDash }}
  {{- end }}
{{- include "lockgate.configuration.delivery" . | nindent 0 }}
service:
  extensions: {{ include "lockgate.configuration.extensions" . }}
  {{- include "lockgate.configuration.trust" . | nindent 2 }}
  pipelines:
    {{- $own := omit $receivers "otlp/journald" | keys | sortAlpha }}
    {{ .role.signal }}: {receivers: {{ toJson $own }}, processors: [memory_limiter, k8sattributes, resource, source], exporters: [{{ $exporter }}]}
    {{- if hasKey $receivers "otlp/journald" }}
    logs/journald: {receivers: [otlp/journald], processors: [memory_limiter, resource, source/journald], exporters: [{{ $exporter }}]}
    {{- end }}
  {{- include "lockgate.configuration.service" (dict "root" $root "listeners" $listeners "level" $settings.logLevel) | nindent 2 }}
{{- end -}}

{{- /* Where what a role reads goes: exporters and extensions. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.configuration.delivery" -}}
{{- $values := .root.Values -}}
{{- $shared := fromYaml (include "lockgate.shared" .) -}}
{{- $listeners := get $values.listeners .role.role -}}
exporters:
  {{ $values.backend.exporter }}:
    endpoint: {{ if $values.backend.url }}{{ include "lockgate.text" $values.backend.url }}{{ else }}${env:LOCKGATE_BACKEND_URL}{{ end }}
    {{- if eq $values.backend.exporter "sumologic" }}
    log_format: otlp
    metric_format: otlp
    {{- end }}
    {{- if $values.backend.tokenKey }}
    auth: {authenticator: bearertokenauth}
    {{- end }}
    {{- if $shared.persistence.enabled }}
    {{- include "lockgate.configuration.queue" $shared.persistence.maxQueueSize | nindent 4 }}
    {{- end }}
extensions:
  health_check:
    endpoint: {{ include "lockgate.listen" (dict "root" .root "port" $listeners.health) | quote }}
  {{- if $values.backend.tokenKey }}
  bearertokenauth: {filename: /etc/lockgate/backend/token}
  {{- end }}
  {{- with $listeners.ledger }}
  ledger: {endpoint: "127.0.0.1:{{ int . }}", state_directory: {{ include "lockgate.state" $ }}}
  {{- end }}
  {{- with $listeners.jaegerSampling }}
  jaegerremotesampling:
    http: {endpoint: {{ include "lockgate.listen" (dict "root" $.root "port" .) | quote }}}
    source: {file: /etc/lockgate/configuration/sampling_strategies.json}
  {{- end }}
  {{- if $shared.persistence.enabled }}
  file_storage:
    directory: /var/lib/lockgate/storage
    create_directory: true
  {{- end }}
{{- end -}}

{{- define "lockgate.configuration.extensions" -}}
{{- $values := .root.Values -}}
{{- $shared := fromYaml (include "lockgate.shared" .) -}}
{{- $listeners := get $values.listeners .role.role -}}
[health_check{{ if $listeners.ledger }}, ledger{{ end }}{{ if $listeners.jaegerSampling }}, jaegerremotesampling{{ end }}{{ if $values.backend.tokenKey }}, bearertokenauth{{ end }}{{ if $shared.persistence.enabled }}, file_storage{{ end }}]
{{- end -}}

{{- define "lockgate.configuration.events" -}}
{{- $values := .root.Values -}}
{{- $events := $values.sumologic.events -}}
{{- $cluster := include "lockgate.text" $values.sumologic.clusterName -}}
receivers:
  raw_k8s_events:
    auth_type: serviceAccount
    {{- with $values.rbac.namespace }}
    namespaces: [{{ . | quote }}]
    {{- end }}
    {{- if $events.persistence.enabled }}
    storage: file_storage
    {{- end }}
processors:
  memory_limiter:
    check_interval: 5s
    limit_percentage: 75
    spike_limit_percentage: 20
  resource:
    attributes:
      - {action: upsert, key: cluster, value: {{ $cluster }}}
  source:
    collector: {{ $cluster }}
    source_host: ""
    source_name: {{ include "lockgate.template" $events.sourceName }}
    source_category: {{ $events.sourceCategory | default (printf "%s/events" $values.sumologic.clusterName) | include "lockgate.template" }}
    source_category_prefix: ""
    source_category_replace_dash: {{ include "lockgate.template" $events.sourceCategoryReplaceDash }}
{{- include "lockgate.configuration.delivery" . | nindent 0 }}
service:
  extensions: {{ include "lockgate.configuration.extensions" . }}
  pipelines:
    logs/events: {receivers: [raw_k8s_events], processors: [memory_limiter, resource, source], exporters: [{{ $values.backend.exporter }}]}
  {{- include "lockgate.configuration.service" (dict "root" .root "listeners" (get $values.listeners .role.role) "level" $values.otelevents.logLevel) | nindent 2 }}
{{- end -}}
