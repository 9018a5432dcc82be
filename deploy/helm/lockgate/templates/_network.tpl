{{- /* The same flows that `lockgate netpol` derives from the configuration; a test holds the two equal. */ -}}

{{- /* Adds a flow; flows with the same peers are one. (dict "to" DICT "peers" LIST "ports" (list "TCP 53") "why" TEXT) */ -}}
{{- define "lockgate.flow" -}}
{{- $key := toJson .peers -}}
{{- $flow := get .to $key | default (dict "peers" .peers "ports" dict "why" list) -}}
{{- range .ports }}{{ $_ := set $flow.ports . true }}{{ end -}}
{{- $_ := set $flow "why" (append $flow.why .why | uniq) -}}
{{- $_ := set .to $key $flow -}}
{{- end -}}

{{- /* NetworkPolicyPeers for one peer of the values. */ -}}
{{- define "lockgate.peers" -}}
{{- if .cidrs -}}
{{- range .cidrs }}
- ipBlock: {cidr: {{ . | quote }}}
{{- end -}}
{{- else -}}
{{- $selector := dict -}}
{{- if .namespaceLabels -}}
{{- $_ := set $selector "namespaceSelector" (dict "matchLabels" .namespaceLabels) -}}
{{- else if eq (.namespace | default "") "*" -}}
{{- $_ := set $selector "namespaceSelector" dict -}}
{{- else if .namespace -}}
{{- $_ := set $selector "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .namespace)) -}}
{{- end -}}
{{- if or .pods (not $selector) -}}
{{- $_ := set $selector "podSelector" (.pods | empty | ternary dict (dict "matchLabels" .pods)) -}}
{{- end -}}
{{- list $selector | toYaml -}}
{{- end -}}
{{- end -}}

{{- define "lockgate.anywhere" -}}
- ipBlock: {cidr: 0.0.0.0/0}
- ipBlock: {cidr: "::/0"}
{{- end -}}

{{- /* Not this host, private, shared, link-local (the cloud's metadata service among it), multicast, reserved (RFC 6890). */ -}}
{{- define "lockgate.internet" -}}
- ipBlock:
    cidr: 0.0.0.0/0
    except: [0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4]
- ipBlock:
    cidr: "::/0"
    except: ["::/128", "::1/128", "64:ff9b::/96", "fc00::/7", "fe80::/10", "ff00::/8"]
{{- end -}}

{{- define "lockgate.flows.dns" -}}
{{- $dns := .root.Values.networkPolicy.dns -}}
{{- $ports := list "TCP 53" "UDP 53" -}}
{{- if eq $dns.kind "openshift" -}}
{{- include "lockgate.flow" (dict "to" .to "peers" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "openshift-dns")) "podSelector" (dict "matchLabels" (dict "dns.operator.openshift.io/daemonset-dns" "default")))) "ports" (list "TCP 5353" "UDP 5353") "why" "names, from OpenShift's DNS") -}}
{{- else -}}
{{- if eq $dns.kind "nodelocal" -}}
{{- include "lockgate.flow" (dict "to" .to "peers" (fromYamlArray (include "lockgate.peers" (dict "cidrs" $dns.nodelocalCidrs))) "ports" $ports "why" "names, from the node's DNS cache") -}}
{{- end -}}
{{- include "lockgate.flow" (dict "to" .to "peers" (list (dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) "podSelector" (dict "matchLabels" (dict "k8s-app" "kube-dns")))) "ports" $ports "why" "names, from CoreDNS") -}}
{{- end -}}
{{- end -}}

{{- /* Whether a policy sees the Service's address or the endpoint's is not defined, so both are allowed. */ -}}
{{- define "lockgate.flows.api" -}}
{{- $api := .root.Values.networkPolicy.kubernetesApi -}}
{{- $to := .to -}}
{{- $why := eq .role.role "events" | ternary "receivers/raw_k8s_events reads events" "processors/k8sattributes follows pods" -}}
{{- range $cidrs, $port := dict "serviceCidrs" $api.servicePort "endpointCidrs" $api.endpointPort -}}
{{- $peers := get $api $cidrs | empty | ternary (include "lockgate.anywhere" $) (include "lockgate.peers" (dict "cidrs" (get $api $cidrs))) | fromYamlArray -}}
{{- include "lockgate.flow" (dict "to" $to "peers" $peers "ports" (list (printf "TCP %d" (int $port))) "why" (printf "%s at the API server (networkPolicy.kubernetesApi.%s)" $why $cidrs)) -}}
{{- end -}}
{{- end -}}

{{- /* Where requests for the backend really go: host, port, isProxy, as YAML. */ -}}
{{- define "lockgate.backendTarget" -}}
{{- $values := .Values -}}
{{- $secure := $values.backend.url | empty | ternary true (hasPrefix "https:" $values.backend.url) -}}
{{- $target := $values.backend.url -}}
{{- $isProxy := false -}}
{{- $host := $target | empty | ternary "" (get (urlParse ($target | default "http://none")) "hostname") -}}
{{- $direct := false -}}
{{- range printf ".svc,.%s,%s" $values.sumologic.clusterDNSDomain $values.sumologic.noProxy | splitList "," -}}
{{- $entry := trim . | trimPrefix "*" -}}
{{- if and $entry $host (or (eq $entry "") (eq (trim .) "*") (eq $host $entry) (hasSuffix (hasPrefix "." $entry | ternary $entry (printf ".%s" $entry)) $host)) }}{{ $direct = true }}{{ end -}}
{{- end -}}
{{- $proxy := $secure | ternary $values.sumologic.httpsProxy $values.sumologic.httpProxy -}}
{{- if and $proxy (not $direct) -}}
{{- $target = contains "://" $proxy | ternary $proxy (printf "http://%s" $proxy) -}}
{{- $isProxy = true -}}
{{- end -}}
{{- if $target -}}
{{- $url := urlParse $target -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "https" | ternary "443" "80") -}}
host: {{ $url.hostname | quote }}
port: {{ $port }}
isProxy: {{ $isProxy }}
{{- else -}}
host: backend.invalid
port: {{ int $values.backend.port }}
isProxy: false
{{- end -}}
{{- end -}}

{{- define "lockgate.flows.backend" -}}
{{- $own := .root.Values.networkPolicy.backend -}}
{{- $target := fromYaml (include "lockgate.backendTarget" .root) -}}
{{- $port := int $target.port -}}
{{- $parts := splitList "." (trimSuffix "." $target.host) -}}
{{- $why := $target.isProxy | ternary "delivery, through the proxy" "delivery" -}}
{{- $peers := "" -}}
{{- if or $own.pods $own.namespace -}}
{{- $peers = include "lockgate.peers" (dict "pods" $own.pods "namespace" $own.namespace) -}}
{{- $port = get $own.ports (toString $port) | default $port | int -}}
{{- else if contains ":" $target.host -}}
{{- $peers = include "lockgate.peers" (dict "cidrs" (list (printf "%s/128" $target.host))) -}}
{{- else if regexMatch "^[0-9.]+$" $target.host -}}
{{- $peers = include "lockgate.peers" (dict "cidrs" (list (printf "%s/32" $target.host))) -}}
{{- else if eq (len $parts) 1 -}}
{{- $peers = include "lockgate.peers" dict -}}
{{- else if and (gt (len $parts) 2) (eq (index $parts 2) "svc") -}}
{{- $peers = include "lockgate.peers" (dict "namespace" (index $parts 1)) -}}
{{- else if $own.cidrs -}}
{{- $peers = include "lockgate.peers" (dict "cidrs" $own.cidrs) -}}
{{- else if $target.isProxy -}}
{{- $peers = include "lockgate.anywhere" .root -}}
{{- else -}}
{{- $peers = include "lockgate.internet" .root -}}
{{- end -}}
{{- include "lockgate.flow" (dict "to" .to "peers" (fromYamlArray $peers) "ports" (list (printf "TCP %d" $port)) "why" $why) -}}
{{- end -}}

{{- /* Who may connect to a port of a role, as a YAML list of peers. (dict "root" $ "role" ROLE "port" PORT "roles" ROLES) */ -}}
{{- define "lockgate.clients" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $found := list -}}
{{- if eq .port.name "metrics" -}}
{{- $found = $policy.scrapers -}}
{{- else if eq .port.name "health" -}}
{{- if $policy.nodes }}{{ $found = list (dict "cidrs" $policy.nodes) }}{{ end -}}
{{- else -}}
{{- $collector := get .roles "logsCollector" -}}
{{- $logs := .root.Values.sumologic.logs -}}
{{- if and $collector (eq .role.role "logs") (or (and $logs.container.enabled (eq .port.name "otlp-http")) (eq .port.name "otlp-http-sys")) -}}
{{- $found = append $found (dict "namespace" $collector.namespace "pods" (fromYaml (include "lockgate.selectorLabels" (dict "root" .root "role" $collector)))) -}}
{{- end -}}
{{- if ne .port.name "otlp-http-sys" }}{{ $found = concat $found (get $policy.clients .role.role) }}{{ end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}
