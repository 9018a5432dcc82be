{{- /* What is accepted, but does less than one may think, as a YAML list of texts. */ -}}
{{- define "lockgate.warnings" -}}
{{- $values := .Values -}}
{{- $roles := fromYaml (include "lockgate.roles" .) -}}
{{- $found := dict "unknown" list "moved" list -}}
{{- include "lockgate.keys" (dict "value" (omit $values "_checked") "schema" (fromYaml (.Files.Get "files/schema.yaml")) "path" "" "moved" (fromYamlArray (.Files.Get "files/moved.yaml")) "found" $found) -}}
{{- $groups := dict -}}
{{- range $found.moved }}{{ $_ := set $groups .advice (append (get $groups .advice | default list) .key) }}{{ end -}}
{{- $said := list -}}
{{- range $advice, $keys := $groups }}{{ $said = append $said (printf "%s: no effect here; %s" (join ", " $keys) $advice) }}{{ end -}}
{{- with $values.sumologic.otelcolImage -}}
{{- if eq .repository "lockgate" }}{{ $said = append $said "sumologic.otelcolImage.repository: not set; nodes find an image of this name where build/images/lockgate.tar has been loaded into them; otherwise push it to your registry and name it here" }}{{ end -}}
{{- if .addFipsSuffix }}{{ $said = append $said "sumologic.otelcolImage.addFipsSuffix: adds -fips to the tag and does no more; `make images` makes no image of that name" }}{{ end -}}
{{- end -}}
{{- if $values.mutualTls.enabled -}}
{{- if $values.listeners.logs.fluentForward }}{{ $said = append $said "listeners.logs.fluentForward: mutualTls does not secure it; it takes logs from whoever reaches it" }}{{ end -}}
{{- if hasKey $roles "traces" }}{{ $said = append $said "listeners.traces: mutualTls does not secure these; they take spans from whoever reaches them" }}{{ end -}}
{{- range $role := list "logs" "metrics" -}}
{{- if and (hasKey $roles $role) (get $values.networkPolicy.clients $role) }}{{ $said = append $said (printf "networkPolicy.clients.%s: with mutualTls these need a certificate of its authority to send OTLP%s" $role (get (get $values.listeners $role) "prometheusRemoteWrite" | empty | ternary "" " or remote write")) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $datagrams := list -}}
{{- range $role := $roles -}}
{{- range fromYamlArray (include "lockgate.listening" (dict "root" $ "role" $role)) -}}
{{- if and (eq .transport "UDP") (eq .component "receivers/jaeger") }}{{ $datagrams = append $datagrams (printf "listeners.%s.%s" $role.role .key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with $datagrams }}{{ $said = append $said (printf "%s: datagrams, so what is lost on the way, or comes while no pod is ready, is lost; where senders can, let them take jaegerThriftHttp, jaegerGrpc or OTLP" (sortAlpha . | join ", ")) }}{{ end -}}
{{- if $values.networkPolicy.enabled -}}
{{- $metadata := omit $roles "logsCollector" -}}
{{- if $metadata -}}
{{- range $key := list "serviceCidrs" "endpointCidrs" -}}
{{- if not (get $values.networkPolicy.kubernetesApi $key) }}{{ $said = append $said (printf "networkPolicy.kubernetesApi.%s: empty, so any address is allowed on the API server's port; see kubectl get service,endpoints kubernetes" $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $roles (not $values.networkPolicy.scrapers) }}{{ $said = append $said "networkPolicy.scrapers: empty, so nobody may read own metrics" }}{{ end -}}
{{- range $role := list "metrics" "traces" -}}
{{- if and (hasKey $roles $role) (not (get $values.networkPolicy.clients $role)) }}{{ $said = append $said (printf "networkPolicy.clients.%s: empty, so nobody may send %s; name the pods that do" $role $role) }}{{ end -}}
{{- end -}}
{{- range $role := $roles -}}
{{- $own := fromYaml (include "lockgate.settings" (dict "root" $ "role" $role)) -}}
{{- range $key, $value := $own.config -}}
{{- if $value }}{{ $said = append $said (printf "%s.config.%s: network policies and roles follow from the other values; compare `lockgate netpol` and `lockgate rbac`, and say the rest in networkPolicy.extra.%s" $role.values $key $role.role) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $contexts := dict -}}
{{- range $role := omit $roles "logsCollector" -}}
{{- $where := eq $role.role "events" | ternary "otelevents.statefulset.securityContext" "metadata.securityContext" -}}
{{- $_ := set $contexts $where (fromYaml (include "lockgate.shared" (dict "root" $ "role" $role))).securityContext -}}
{{- end -}}
{{- range $where, $own := $contexts -}}
{{- if not (fromYaml (include "lockgate.over" (dict "default" (include "lockgate.podSecurity.restricted" $) "own" $own))).runAsNonRoot }}{{ $said = append $said (printf "%s: as root these pods are refused where Pod Security restricted is enforced, and need no root" $where) }}{{ end -}}
{{- end -}}
{{- if hasKey $roles "logsCollector" -}}
{{- if eq $values.otellogs.state.type "emptyDir" }}{{ $said = append $said "otellogs.state.type: with emptyDir positions go with the pod; the next one reads the files that are there from their beginning, and what was rotated away meanwhile is lost" }}{{ end -}}
{{- if and $values.sumologic.logs.systemd.enabled (eq $values.otellogs.privilege "group") (kindIs "invalid" $values.otellogs.journalGroup) }}{{ $said = append $said "otellogs.journalGroup: not set; where the journal belongs to a group of its own (systemd-journal), its number is needed, or otellogs.privilege: root" }}{{ end -}}
{{- if eq (include "lockgate.nodeNamespace" .) .Release.Namespace }}{{ $said = append $said "otellogs.namespace.name: the logs collector needs hostPath, so this namespace cannot enforce Pod Security baseline or restricted for the others in it" }}{{ end -}}
{{- end -}}
{{- if and (hasKey $roles "events") (not $values.sumologic.events.persistence.enabled) }}{{ $said = append $said "sumologic.events.persistence.enabled: without it the position goes with the pod; the next one reads the events of the last minute again, and what happened while there was none is lost" }}{{ end -}}
{{- range $role := omit $roles "logsCollector" -}}
{{- $own := fromYaml (include "lockgate.settings" (dict "root" $ "role" $role)) -}}
{{- $emptyDirs := list -}}
{{- range concat ($own.statefulset.extraVolumes | default list) ($own.extraVolumes | default list) }}{{ if hasKey . "emptyDir" }}{{ $emptyDirs = append $emptyDirs .name }}{{ end }}{{ end -}}
{{- range $container := concat ($own.statefulset.initContainers | default list) ($own.initContainers | default list) -}}
{{- range $container.volumeMounts -}}
{{- if and .readOnly (has .name $emptyDirs) }}{{ $said = append $said (printf "%s.statefulset.initContainers: %s mounts the emptyDir %s read-only and could not fill it; it is mounted writable there" $role.values $container.name .name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $said -}}
{{- end -}}
