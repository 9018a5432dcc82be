{{- /* Everything that is wrong with the values, at once, each with its key. Unknown keys first: what they were meant to say is not known. */ -}}
{{- define "lockgate.check" -}}
{{- if not (hasKey .Values "_checked") -}}
{{- $found := dict "unknown" list "moved" list "problems" list -}}
{{- include "lockgate.empties" (dict "value" .Values "schema" (fromYaml (.Files.Get "files/schema.yaml")) "path" "" "found" $found) -}}
{{- $values := deepCopy .Values -}}
{{- $_ := set .Values "_checked" true -}}
{{- include "lockgate.keys" (dict "value" $values "schema" (fromYaml (.Files.Get "files/schema.yaml")) "path" "" "moved" (fromYamlArray (.Files.Get "files/moved.yaml")) "found" $found) -}}
{{- $problems := $found.unknown -}}
{{- if not $problems -}}{{- include "lockgate.conflicts" (dict "root" . "found" $found) -}}{{- $problems = $found.problems -}}{{- end -}}
{{- if $problems -}}{{- printf "these values cannot be used:\n  %s" (join "\n  " $problems) | fail -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Helm takes the default of a key away whose value is null, as where all below it is commented out. A list, or a mapping with keys of its
own, is empty then; for anything else there is nothing to go by. Where a type allows null, a key has no default.
(dict "value" VALUE "schema" SCHEMA "path" PATH "found" DICT) */ -}}
{{- define "lockgate.empties" -}}
{{- $context := . -}}
{{- range $key, $below := .schema.properties -}}
{{- $path := $context.path | empty | ternary $key (printf "%s.%s" $context.path $key) -}}
{{- if hasKey $context.value $key -}}
{{- $value := get $context.value $key -}}
{{- if and (hasKey $below "properties") (kindIs "map" $value) -}}
{{- include "lockgate.empties" (dict "value" $value "schema" $below "path" $path "found" $context.found) -}}
{{- end -}}
{{- else if kindIs "slice" $below.type -}}
{{- else if eq (toString $below.type) "array" -}}
{{- $_ := set $context.value $key list -}}
{{- else if and (eq (toString $below.type) "object") (not (hasKey $below "properties")) -}}
{{- $_ := set $context.value $key dict -}}
{{- else -}}
{{- $_ := set $context.found "unknown" (append $context.found.unknown (printf "%s: empty, which takes the chart's default away; give it a value, or leave the key out" $path)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Walks values and schema together. (dict "value" VALUE "schema" SCHEMA "path" PATH "moved" GROUPS "found" DICT) */ -}}
{{- define "lockgate.keys" -}}
{{- $context := . -}}
{{- range $key, $value := .value -}}
{{- $path := $context.path | empty | ternary $key (printf "%s.%s" $context.path $key) -}}
{{- if hasKey $context.schema.properties $key -}}
{{- $below := get $context.schema.properties $key -}}
{{- if and (hasKey $below "properties") (kindIs "map" $value) -}}
{{- include "lockgate.keys" (dict "value" $value "schema" $below "path" $path "moved" $context.moved "found" $context.found) -}}
{{- end -}}
{{- else -}}
{{- $advice := "" -}}
{{- $leads := false -}}
{{- range $group := $context.moved -}}
{{- range $group.keys -}}
{{- if eq . $path }}{{ $advice = $group.advice }}{{ end -}}
{{- if hasPrefix (printf "%s." $path) . }}{{ $leads = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $advice -}}
{{- $_ := set $context.found "moved" (append $context.found.moved (dict "key" $path "advice" $advice)) -}}
{{- else if and $leads (kindIs "map" $value) -}}
{{- include "lockgate.keys" (dict "value" $value "schema" (dict "properties" dict) "path" $path "moved" $context.moved "found" $context.found) -}}
{{- else -}}
{{- $_ := set $context.found "unknown" (append $context.found.unknown (include "lockgate.unknown" (dict "key" $key "path" $path "context" $context))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lockgate.unknown" -}}
{{- $key := .key -}}
{{- $parent := .context.path -}}
{{- $known := keys .context.schema.properties -}}
{{- range $group := .context.moved -}}
{{- range $group.keys -}}
{{- $rest := $parent | empty | ternary . (trimPrefix (printf "%s." $parent) .) -}}
{{- if or (not $parent) (ne $rest .) }}{{ $known = append $known (first (splitList "." $rest)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $best := "" -}}
{{- $likeness := 0 -}}
{{- range $known | uniq | sortAlpha -}}
{{- $one := include "lockgate.likeness" (dict "a" $key "b" .) | int -}}
{{- if gt $one $likeness }}{{ $likeness = $one }}{{ $best = . }}{{ end -}}
{{- end -}}
{{- if ge $likeness 50 -}}
{{ .path }}: unknown key; did you mean {{ $parent | empty | ternary $best (printf "%s.%s" $parent $best) }}?
{{- else -}}
{{ .path }}: unknown key; {{ $parent | default "the chart" }} takes {{ keys .context.schema.properties | sortAlpha | join ", " }}
{{- end -}}
{{- end -}}

{{- /* How alike two words are, 0 to 100: their common pairs of letters (Dice's coefficient). */ -}}
{{- define "lockgate.likeness" -}}
{{- $pairs := list -}}
{{- range $word := list .a .b -}}
{{- $letters := splitList "" (printf "^%s$" (lower $word)) -}}
{{- $own := dict -}}
{{- range $index, $letter := initial $letters -}}
{{- $_ := set $own (printf "%s%s" $letter (index $letters (add1 $index))) true -}}
{{- end -}}
{{- $pairs = append $pairs $own -}}
{{- end -}}
{{- $common := 0 -}}
{{- range $pair, $_ := first $pairs }}{{ if hasKey (last $pairs) $pair }}{{ $common = add1 $common }}{{ end }}{{ end -}}
{{- div (mul 200 $common) (add (len (first $pairs)) (len (last $pairs))) -}}
{{- end -}}

{{- /* Volumes and mounts of a role that no pod can have beside the chart's own, as a YAML list of texts. (dict "root" $ "role" ROLE "own" VALUES) */ -}}
{{- define "lockgate.mountConflicts" -}}
{{- $values := .root.Values -}}
{{- $isCollector := eq .role.role "logsCollector" -}}
{{- $set := $isCollector | ternary .own.daemonset .own.statefulset -}}
{{- $where := printf "%s.%s" .role.values ($isCollector | ternary "daemonset" "statefulset") -}}
{{- $mounts := concat ($set.extraVolumeMounts | default list) (.own.extraVolumeMounts | default list) -}}
{{- $paths := dict "/etc/lockgate/configuration" "configuration" -}}
{{- if $isCollector -}}
{{- $_ := set $paths "/var/lib/lockgate" "state" -}}
{{- if $values.sumologic.logs.container.enabled }}{{ $_ := set $paths "/var/log/pods" "pods" }}{{ end -}}
{{- if $values.otellogs.dockerContainers }}{{ $_ := set $paths "/var/lib/docker/containers" "docker" }}{{ end -}}
{{- if $values.sumologic.logs.systemd.enabled }}{{ $_ := set $paths "/var/log/journal" "journal" }}{{ end -}}
{{- else -}}
{{- if (fromYaml (include "lockgate.shared" .)).persistence.enabled }}{{ $_ := set $paths "/var/lib/lockgate" "state" }}{{ end -}}
{{- if $values.backend.tokenKey }}{{ $_ := set $paths "/etc/lockgate/backend" "backend" }}{{ end -}}
{{- end -}}
{{- if include "lockgate.isMutual" . }}{{ $_ := set $paths (include "lockgate.mutualDirectory" .) "mutual-tls" }}{{ end -}}
{{- if not (include "lockgate.takesTmp" $mounts) }}{{ $_ := set $paths "/tmp" "tmp" }}{{ end -}}
{{- $names := dict -}}
{{- range $paths }}{{ $_ := set $names . "the chart's own" }}{{ end -}}
{{- $said := list -}}
{{- range concat ($set.extraVolumes | default list) (.own.extraVolumes | default list) -}}
{{- if hasKey $names .name }}{{ $said = append $said (printf "%s.extraVolumes: %s is the name of %s volume already; take another" $where .name (get $names .name)) }}{{ end -}}
{{- $_ := set $names .name "another" -}}
{{- end -}}
{{- range $mounts -}}
{{- $path := trimSuffix "/" .mountPath -}}
{{- if not (hasKey $names .name) }}{{ $said = append $said (printf "%s.extraVolumeMounts: no volume is called %s; name it in extraVolumes" $where .name) }}{{ end -}}
{{- if hasKey $paths $path }}{{ $said = append $said (printf "%s.extraVolumeMounts: the volume %s is mounted at %s already" $where (get $paths $path) $path) }}{{ end -}}
{{- $_ := set $paths $path .name -}}
{{- end -}}
{{- toYaml $said -}}
{{- end -}}

{{- /* What each key allows and both together do not. */ -}}
{{- define "lockgate.conflicts" -}}
{{- $root := .root -}}
{{- $found := .found -}}
{{- $values := $root.Values -}}
{{- $said := list -}}
{{- with $values.sumologic.otelcolImage -}}
{{- if not .repository }}{{ $said = append $said "sumologic.otelcolImage.repository: nothing says where the image is; push build/images/lockgate.tar (`make images`) to your registry and name it here" }}{{ end -}}
{{- if and .digest .addFipsSuffix }}{{ $said = append $said "sumologic.otelcolImage.addFipsSuffix: a digest names one image, so a suffix to the tag does nothing; set digest to that of the -fips image, or remove it" }}{{ end -}}
{{- end -}}
{{- $images := dict "sumologic.otelcolImage" $values.sumologic.otelcolImage "otellogs.image" $values.otellogs.image "metadata.image" $values.metadata.image "otelcolInstrumentation.statefulset.image" $values.otelcolInstrumentation.statefulset.image "otelevents.image" $values.otelevents.image -}}
{{- range $key, $image := $images -}}
{{- if contains "sumologic-otel-collector" ($image.repository | default "") }}{{ $said = append $said (printf "%s.repository: %s is another program's image; name where Lockgate's is, with its tag" $key $image.repository) }}{{ end -}}
{{- if regexMatch "[:@][^/]*$" ($image.repository | default "") }}{{ $said = append $said (printf "%s.repository: names a tag or digest as well; say that in %s" $key (eq $key "sumologic.otelcolImage" | ternary "sumologic.otelcolImage.tag or .digest" (printf "%s.tag" $key))) }}{{ end -}}
{{- end -}}
{{- /* Go's regular expressions are RE2's, as Lockgate's. `mustRegexMatch` would end the rendering without naming the key, `regexMatch` says false
of one that is none: all others match nothing at all behind an empty alternative. */ -}}
{{- $sources := dict "sumologic.logs.container" $values.sumologic.logs.container "sumologic.metrics" $values.sumologic.metrics "otelcolInstrumentation.sourceMetadata" $values.otelcolInstrumentation.sourceMetadata -}}
{{- range $where, $source := $sources -}}
{{- range $key, $value := $source -}}
{{- if hasSuffix "Regex" $key -}}
{{- if not (regexMatch (printf "|%s" $value) "") }}{{ $said = append $said (printf "%s.%s: %s is no regular expression that Go (RE2) knows; look-around and back-references are none of its" $where $key (quote $value)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $values.backend -}}
{{- if not (or .url .existingSecret) }}{{ $said = append $said "backend.existingSecret: nothing says where data goes; name a Secret that holds the URLs, or set backend.url" }}{{ end -}}
{{- if and .tokenKey (not .existingSecret) }}{{ $said = append $said "backend.tokenKey: names a key of a Secret, and backend.existingSecret names none" }}{{ end -}}
{{- end -}}
{{- if and $values.mutualTls.enabled (not $values.mutualTls.existingSecret) }}{{ $said = append $said "mutualTls.existingSecret: mutualTls.enabled needs certificates; name the Secret that holds tls.crt, tls.key and ca.crt" }}{{ end -}}
{{- with $values.networkPolicy -}}
{{- if and .backend.cidrs (or .backend.pods .backend.namespace) }}{{ $said = append $said "networkPolicy.backend.cidrs: the backend is named by its pods (networkPolicy.backend.pods, .namespace) as well; keep one of them" }}{{ end -}}
{{- if and .backend.ports (not (or .backend.pods .backend.namespace)) }}{{ $said = append $said "networkPolicy.backend.ports: says which ports the backend's pods have; name them in networkPolicy.backend.pods" }}{{ end -}}
{{- range $list, $peers := dict "scrapers" .scrapers "clients.logs" .clients.logs "clients.metrics" .clients.metrics "clients.traces" .clients.traces -}}
{{- range $index, $peer := $peers -}}
{{- if and $peer.cidrs (or $peer.pods $peer.namespace $peer.namespaceLabels) }}{{ $said = append $said (printf "networkPolicy.%s[%d]: a peer is either cidrs or pods; write two" $list $index) }}{{ end -}}
{{- if and $peer.namespace $peer.namespaceLabels }}{{ $said = append $said (printf "networkPolicy.%s[%d]: a namespace is chosen by its name or by its labels; keep one of them" $list $index) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.rbac.namespace $values.metadata.metrics.extractNodeLabels }}{{ $said = append $said "metadata.metrics.extractNodeLabels: nodes are in no namespace, and rbac.namespace allows nothing outside of one; remove either" }}{{ end -}}
{{- if and $values.rbac.namespace $values.sumologic.logs.systemd.enabled }}{{ $said = append $said "sumologic.logs.systemd.enabled: a node's journal is in no namespace, and rbac.namespace collects from one alone; remove either" }}{{ end -}}
{{- if and $values.sumologic.logs.enabled (not $values.metadata.logs.enabled) }}{{ $said = append $said "metadata.logs.enabled: the logs collector sends to logs metadata; set sumologic.logs.enabled: false to collect no logs" }}{{ end -}}
{{- $roles := fromYaml (include "lockgate.roleList" $root) -}}
{{- if hasKey $roles "logsCollector" -}}
{{- if and $values.sumologic.logs.container.enabled (not $values.listeners.logs.otlpHttp) }}{{ $said = append $said "listeners.logs.otlpHttp: the logs collector sends to it; give it a port" }}{{ end -}}
{{- if and $values.sumologic.logs.systemd.enabled (not $values.listeners.logs.systemd) }}{{ $said = append $said "listeners.logs.systemd: the logs collector sends the journal to it; give it a port" }}{{ end -}}
{{- $own := $values.otellogs -}}
{{- if and (eq $own.state.type "hostPath") (not (regexMatch "^/(opt|srv|mnt|home|data|var/(lib|mnt|opt))(/[^/.][^/]*)+/?$" $own.state.path) | or (regexMatch "^/var/lib/(cni|containerd|containers|crio|docker|etcd|kubelet|rancher)(/|$)" $own.state.path)) }}{{ $said = append $said (printf "otellogs.state.path: all of %s would be given to the logs collector; take a directory of its own, below /var/lib, /var/opt, /opt, /srv, /mnt, /data or /home" $own.state.path) }}{{ end -}}
{{- $pod := fromYaml (include "lockgate.over" (dict "default" (include "lockgate.podSecurity.collector" $root) "own" $own.daemonset.securityContext)) -}}
{{- if and $pod.runAsNonRoot (eq (int $pod.runAsUser) 0) }}{{ $said = append $said "otellogs.daemonset.securityContext.runAsNonRoot: the user is root (runAsUser 0, or otellogs.privilege); remove either" }}{{ end -}}
{{- if and (eq $own.privilege "capability") (ne (int $pod.runAsUser) 0) }}{{ $said = append $said "otellogs.privilege: a capability does nothing for a user other than root (otellogs.daemonset.securityContext.runAsUser); take the rung group" }}{{ end -}}
{{- end -}}
{{- range $role := $roles -}}
{{- $context := dict "root" $root "role" $role -}}
{{- $own := fromYaml (include "lockgate.settings" $context) -}}
{{- $_ := set $context "own" $own -}}
{{- range fromYamlArray (include "lockgate.mountConflicts" $context) }}{{ $said = append $said . }}{{ end -}}
{{- $mayBindLow := eq $role.role "logsCollector" | ternary (ne $values.otellogs.privilege "group") false -}}
{{- $listeners := get $values.listeners $role.role -}}
{{- $taken := dict -}}
{{- range $key, $port := $listeners -}}
{{- $where := printf "listeners.%s.%s" $role.role $key -}}
{{- if and $port (or (ne $key "systemd") $values.sumologic.logs.systemd.enabled) -}}
{{- if and (lt (int $port) 1024) (not $mayBindLow) }}{{ $said = append $said (printf "%s: a program without privileges cannot listen on port %d; take one from 1024 on" $where (int $port)) }}{{ end -}}
{{- with get $taken (toString (int $port)) }}{{ $said = append $said (printf "%s: port %d is that of %s already" $where (int $port) .) }}{{ end -}}
{{- $_ := set $taken (toString (int $port)) $where -}}
{{- else if has $key (list "health" "ownMetrics") }}{{ $said = append $said (printf "%s: 0 is no port that others could know; give one" $where) -}}
{{- end -}}
{{- end -}}
{{- if and $own.config.merge $own.config.override }}{{ $said = append $said (printf "%s.config.merge: config.override replaces the whole configuration, so there is nothing to merge into; keep one of them" $role.values) }}{{ end -}}
{{- if not (has $role.role (list "logsCollector" "events")) -}}
{{- if not (or $listeners.otlpHttp $listeners.otlpGrpc $listeners.fluentForward $listeners.otlpHttpLegacy $listeners.otlpGrpcLegacy) }}{{ $said = append $said (printf "listeners.%s: nothing is received; give otlpHttp a port, or set sumologic.%s.enabled: false" $role.role $role.signal) }}{{ end -}}
{{- $scales := kindIs "invalid" $own.autoscaling.enabled | ternary $values.sumologic.autoscaling.enabled $own.autoscaling.enabled -}}
{{- if and $scales (gt (int $own.autoscaling.minReplicas) (int $own.autoscaling.maxReplicas)) }}{{ $said = append $said (printf "%s.autoscaling.minReplicas: more than maxReplicas" $role.values) }}{{ end -}}
{{- if and $scales (not (or $own.autoscaling.targetCPUUtilizationPercentage $own.autoscaling.targetMemoryUtilizationPercentage)) }}{{ $said = append $said (printf "%s.autoscaling: nothing to scale by; set targetCPUUtilizationPercentage" $role.values) }}{{ end -}}
{{- $budget := $own.podDisruptionBudget -}}
{{- $replicas := int ($scales | ternary $own.autoscaling.minReplicas $own.statefulset.replicaCount) -}}
{{- if not (or (kindIs "invalid" $budget.minAvailable) (kindIs "invalid" $budget.maxUnavailable)) }}{{ $said = append $said (printf "%s.podDisruptionBudget.minAvailable: maxUnavailable is set as well; Kubernetes takes one of them" $role.values) }}{{ end -}}
{{- if and (or (kindIs "float64" $budget.minAvailable) (kindIs "int64" $budget.minAvailable) (kindIs "int" $budget.minAvailable)) (ge (int $budget.minAvailable) $replicas) }}{{ $said = append $said (printf "%s.podDisruptionBudget.minAvailable: with %d replicas no pod could ever be evicted, and no node drained; take less" $role.values $replicas) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $_ := set $found "problems" $said -}}
{{- end -}}
