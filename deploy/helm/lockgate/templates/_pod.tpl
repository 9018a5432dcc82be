{{- /* The security context of every pod but the logs collector's: what Pod Security `restricted` asks for, and the user's over it. */ -}}
{{- define "lockgate.podSecurity.restricted" -}}
runAsNonRoot: true
{{- if not .Values.sumologic.scc.create }}{{/* OpenShift's restricted-v2 gives each namespace ids of its own, and refuses others. */}}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lockgate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The rungs of the logs collector's ladder; fsGroup would do nothing to a hostPath. */ -}}
{{- define "lockgate.podSecurity.collector" -}}
{{- $own := .Values.otellogs -}}
{{- if eq $own.privilege "group" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
supplementalGroups: {{ ternary (list 0 $own.journalGroup) (list 0) (not (kindIs "invalid" $own.journalGroup)) | toJson }}
{{- else -}}
runAsNonRoot: false
runAsUser: 0
runAsGroup: 0
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* The user's context over the default; uid 0 there means runAsNonRoot: false. (dict "default" TEXT "own" DICT) */ -}}
{{- define "lockgate.over" -}}
{{- $merged := mergeOverwrite (fromYaml .default) (deepCopy (.own | default dict)) -}}
{{- if and (hasKey $merged "runAsUser") (eq (int $merged.runAsUser) 0) (not (hasKey (.own | default dict) "runAsNonRoot")) -}}
{{- $_ := set $merged "runAsNonRoot" false -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{- /* Probes ask health_check: a backend that is down makes a pod not ready, never dead. (dict "own" PROBE "path" PATH) */ -}}
{{- define "lockgate.probe" -}}
{{- mergeOverwrite (dict "httpGet" (dict "path" .path "port" "health")) (deepCopy (.own | default dict)) | toYaml -}}
{{- end -}}

{{- /* A role's environment, if it delivers. (dict "root" $ "role" ROLE "extra" LIST) */ -}}
{{- define "lockgate.environment" -}}
{{- $values := .root.Values -}}
{{- if not $values.backend.url }}
- name: LOCKGATE_BACKEND_URL
  valueFrom:
    secretKeyRef: {name: {{ $values.backend.existingSecret | quote }}, key: {{ get $values.backend.keys .role.signal | quote }}}
{{- end }}
{{- include "lockgate.proxyEnvironment" $values.sumologic }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lockgate.proxyEnvironment" -}}
{{- if or .httpProxy .httpsProxy }}
{{- with .httpProxy }}
- {name: HTTP_PROXY, value: {{ . | quote }}}
{{- end }}
{{- with .httpsProxy }}
- {name: HTTPS_PROXY, value: {{ . | quote }}}
{{- end }}
- {name: NO_PROXY, value: {{ printf "$(KUBERNETES_SERVICE_HOST),.svc,.%s%s" .clusterDNSDomain (.noProxy | empty | ternary "" (printf ",%s" .noProxy)) | quote }}}
{{- end }}
{{- end -}}

{{- /* Whether a role's certificates are mounted, and its configuration told. (dict "root" $ "role" ROLE) */ -}}
{{- define "lockgate.isMutual" -}}
{{- if and .root.Values.mutualTls.enabled (include "lockgate.connections" . | trim) }}yes{{ end -}}
{{- end -}}

{{- define "lockgate.mutualDirectory" }}/etc/lockgate/mutual-tls{{ end -}}

{{- /* Whether a user's mounts take /tmp: then the chart's is left out, as one path can be mounted once. */ -}}
{{- define "lockgate.takesTmp" -}}
{{- range . }}{{ if eq (trimSuffix "/" .mountPath) "/tmp" }}yes{{ end }}{{ end -}}
{{- end -}}

{{- /* Where the pods of a role stand: the user's affinity, and apart from each other. */ -}}
{{- define "lockgate.affinity" -}}
{{- $affinity := deepCopy (.set.affinity | default .root.Values.sumologic.affinity) -}}
{{- if not (hasKey $affinity "podAntiAffinity") -}}
{{- $term := dict "labelSelector" (dict "matchLabels" (include "lockgate.selectorLabels" . | fromYaml)) "topologyKey" "kubernetes.io/hostname" -}}
{{- if eq .set.podAntiAffinity "hard" -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $term)) -}}
{{- else -}}
{{- $_ := set $affinity "podAntiAffinity" (dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 1 "podAffinityTerm" $term))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $affinity -}}
{{- end -}}

{{- /* A user's init containers, hardened where they say nothing else. Documentation mounts the emptyDir that such a container fills read-only,
which cannot work: it is mounted so that it can be filled. (dict "containers" LIST "volumes" LIST "resources" DICT) */ -}}
{{- define "lockgate.initContainers" -}}
{{- $emptyDirs := list -}}
{{- range .volumes }}{{ if hasKey . "emptyDir" }}{{ $emptyDirs = append $emptyDirs .name }}{{ end }}{{ end -}}
{{- $resources := .resources -}}
{{- $found := list -}}
{{- range .containers -}}
{{- $container := deepCopy . -}}
{{- $_ := set $container "securityContext" (include "lockgate.over" (dict "default" (include "lockgate.containerSecurity" $) "own" .securityContext) | fromYaml) -}}
{{- if not .resources }}{{ $_ := set $container "resources" $resources }}{{ end -}}
{{- range $container.volumeMounts -}}
{{- if and .readOnly (has .name $emptyDirs) }}{{ $_ := unset . "readOnly" }}{{ end -}}
{{- end -}}
{{- $found = append $found $container -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- /* Where a role keeps its state; without a volume of its own that is gone with the pod, and `lockgate where` is told there. */ -}}
{{- define "lockgate.state" -}}
{{ ternary "/var/lib/lockgate/storage" "/tmp" (fromYaml (include "lockgate.shared" .)).persistence.enabled }}
{{- end }}
