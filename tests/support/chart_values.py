"""Values that the chart must render well, each for a reason."""

from typing import Any

SEED_LISTENERS: dict[str, dict[str, int]] = {
    "logsCollector": {"ownMetrics": 2020},
    "logs": {"fluentForward": 24321},
    "metrics": {"ownMetrics": 24321, "prometheusRemoteWrite": 9888},
    "traces": {
        "otlpGrpc": 4317,
        "jaegerSampling": 5778,
        "jaegerThriftCompact": 6831,
        "jaegerThriftBinary": 6832,
        "zipkin": 9411,
        "jaegerGrpc": 14250,
        "jaegerThriftHttp": 14268,
        "opencensus": 55678,
        "otlpGrpcLegacy": 55680,
        "otlpHttpLegacy": 55681,
    },
}
"""Every port of the policies in "Security Best Practices", and Jaeger's 14250, which they leave out."""
SEED: dict[str, Any] = {
    # As "Security Best Practices" of the Sumo Logic Kubernetes Collection shows them.
    "metadata": {
        "securityContext": {"fsGroup": 999, "runAsNonRoot": True},
        "logs": {
            "enabled": True,
            "statefulset": {
                "containers": {
                    "otelcol": {
                        "securityContext": {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
                    }
                },
                "extraVolumeMounts": [{"mountPath": "/tmp/", "name": "tmp-volume-logs"}],
                "extraVolumes": [{"emptyDir": {}, "name": "tmp-volume-logs"}],
            },
        },
        "metrics": {
            "statefulset": {
                "initContainers": [
                    {
                        "name": "update-certificates",
                        "image": "odise/busybox-curl",
                        "command": ["sh", "-c", "cat /root/ca-cert/cert.pem >> /certs/ca-certificates.crt"],
                        "volumeMounts": [
                            {"name": "root-ca-cert", "mountPath": "/root/ca-cert/", "readOnly": True},
                            {"name": "certs", "mountPath": "/certs/", "readOnly": True},
                        ],
                    }
                ],
                "extraVolumes": [{"name": "root-ca-cert", "secret": {"secretName": "root-ca-cert"}}, {"name": "certs", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "certs", "mountPath": "/etc/ssl/certs/", "readOnly": True}],
            }
        },
    },
    "otelevents": {
        "statefulset": {"securityContext": {"fsGroup": 998}, "containers": {"otelcol": {"securityContext": {"runAsUser": 998}}}}
    },
    "otellogs": {"daemonset": {"securityContext": {"fsGroup": 0, "runAsUser": 0, "runAsGroup": 0}}},
    "sumologic": {"otelcolImage": {"addFipsSuffix": True}, "events": {"enabled": True}},
    "listeners": SEED_LISTENERS,
}
SEED_SECRET_OVER_CERTS: dict[str, Any] = {
    "metadata": {
        "metrics": {
            "extraVolumes": [{"name": "certs", "secret": {"secretName": "root-ca-cert"}}],
            "extraVolumeMounts": [{"name": "certs", "mountPath": "/etc/ssl/certs/", "readOnly": True}],
        }
    }
}
"""Keys that the Sumo Logic chart silently ignores."""


def _only(signal: str) -> dict[str, Any]:
    return {"sumologic": {each: {"enabled": each == signal} for each in ("logs", "metrics", "traces", "events")}}


_APPS = {"pods": {"app": "shop"}, "namespace": "shop"}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "seed": SEED,
    "seed-secret-over-certs": SEED_SECRET_OVER_CERTS,
    "only-logs": _only("logs"),
    "only-metrics": _only("metrics"),
    "only-traces": _only("traces"),
    "only-events": _only("events"),
    "events-in-memory": {"sumologic": {"events": {"persistence": {"enabled": False}}}},
    "events-as-told": {
        "sumologic": {
            "events": {
                "sourceName": "k8s",
                "sourceCategory": "ops/a-b",
                "sourceCategoryReplaceDash": "_",
                "persistence": {
                    "size": "2Gi",
                    "maxQueueSize": "1GiB",
                    "persistentVolume": {"storageClass": "fast", "accessMode": "ReadWriteMany", "pvcLabels": {"e": "5"}},
                },
            }
        },
        "otelevents": {
            "image": {"repository": "r/l", "tag": "7"},
            "statefulset": {
                "nodeSelector": {"disk": "ssd"},
                "priorityClassName": "high",
                "extraEnvVars": [{"name": "A", "value": "b"}],
                "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
                "extraVolumeMounts": [{"name": "ca", "mountPath": "/usr/local/share/ca-certificates", "readOnly": True}],
            },
        },
        "listeners": {"events": {"ownMetrics": 2020, "ledger": 0}},
    },
    "everybody-named": {
        "networkPolicy": {
            "scrapers": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}],
            "clients": {
                "logs": [{"pods": {"app": "fluent-bit"}, "namespaceLabels": {"team": "ops"}}],
                "metrics": [{"namespace": "*"}],
                "traces": [_APPS, {"cidrs": ["192.0.2.0/24"]}, {"pods": {"app": "here"}}],
            },
            "nodes": ["10.128.0.0/20"],
            "kubernetesApi": {"serviceCidrs": ["10.96.0.1/32"], "endpointCidrs": ["172.18.0.2/32", "172.18.0.3/32"], "endpointPort": 16443},
        }
    },
    "every-port": {
        "listeners": {
            "logs": {"otlpGrpc": 4317, "fluentForward": 24321, "ownMetrics": 2020},
            "metrics": {**SEED_LISTENERS["metrics"], "otlpGrpc": 4317},
            "traces": {**SEED_LISTENERS["traces"], "health": 13144},
        },
        "networkPolicy": {"clients": {"logs": [_APPS], "metrics": [_APPS], "traces": [_APPS]}},
    },
    "only-grpc": {
        "sumologic": {"logs": {"enabled": False}},
        "listeners": {"traces": {"otlpHttp": 0}},
        "networkPolicy": {"clients": {"traces": [_APPS]}},
    },
    "openshift": {"networkPolicy": {"dns": {"kind": "openshift"}}, "sumologic": {"scc": {"create": True}}},
    "nodelocal-dns": {"networkPolicy": {"dns": {"kind": "nodelocal", "nodelocalCidrs": ["169.254.20.10/32", "fd00::10/128"]}}},
    "backend-by-address": {"networkPolicy": {"backend": {"cidrs": ["203.0.113.0/24"]}}, "backend": {"port": 8443}},
    "backend-url": {"backend": {"url": "https://otlp.example.com:4318", "exporter": "otlphttp", "tokenKey": "token"}},
    "backend-url-with-address": {"backend": {"url": "http://203.0.113.10/receiver"}},
    "backend-url-with-address-6": {"backend": {"url": "https://[2001:db8::10]:8443/receiver"}},
    "backend-in-the-cluster": {"backend": {"url": "http://gateway.observability.svc.cluster.local:3000/receiver"}},
    "backend-next-door": {"backend": {"url": "http://gateway:3000/receiver"}},
    "backend-by-pods": {
        "backend": {"url": "http://gateway.observability.svc.cluster.local/receiver"},
        "networkPolicy": {"backend": {"pods": {"app": "gateway"}, "namespace": "observability", "ports": {"80": 3000}}},
    },
    "proxy": {"sumologic": {"httpsProxy": "http://proxy.example.com:3128"}},
    "proxy-by-address": {"sumologic": {"httpsProxy": "10.0.0.5:3128", "httpProxy": "http://10.0.0.6:3128"}},
    "proxy-with-known-addresses": {
        "sumologic": {"httpsProxy": "https://proxy.example.com"},
        "networkPolicy": {"backend": {"cidrs": ["10.0.0.5/32"]}},
    },
    "proxy-by-pods": {
        "sumologic": {"httpsProxy": "http://squid.infra.svc:3128"},
        "networkPolicy": {"backend": {"pods": {"app": "squid"}, "namespace": "infra"}},
    },
    "proxy-not-for-the-backend": {
        "backend": {"url": "https://otlp.corp.example"},
        "sumologic": {"httpsProxy": "http://proxy.example.com:3128", "noProxy": "localhost,.corp.example"},
    },
    "proxy-and-backend-in-the-cluster": {
        "backend": {"url": "http://gateway.observability.svc:3000"},
        "sumologic": {"httpProxy": "http://proxy.example.com:3128"},
    },
    "proxy-for-the-other-scheme": {"sumologic": {"httpProxy": "http://proxy.example.com:3128"}},
    "one-namespace": {"rbac": {"namespace": "shop"}},
    "node-labels": {"metadata": {"metrics": {"extractNodeLabels": True, "extractPodLabels": False}}},
    "journal": {"sumologic": {"logs": {"systemd": {"enabled": True, "units": ["kubelet"]}}}, "otellogs": {"journalGroup": 190}},
    "journal-alone": {"sumologic": {"logs": {"systemd": {"enabled": True}, "container": {"enabled": False}}}},
    "memory": {"metadata": {"persistence": {"enabled": False}}, "sumologic": {"autoscaling": {"enabled": False}}},
    "one-replica": {
        "sumologic": {"autoscaling": {"enabled": False}},
        "metadata": {"logs": {"statefulset": {"replicaCount": 1}}, "metrics": {"autoscaling": {"enabled": True}}},
    },
    "mutual-tls": {
        "mutualTls": {"enabled": True, "existingSecret": "ours"},
        "sumologic": {"logs": {"systemd": {"enabled": True}}},
        "listeners": SEED_LISTENERS,
        "networkPolicy": {"clients": {"metrics": [_APPS]}},
    },
    "no-otlp-to-secure": {
        "mutualTls": {"enabled": True},
        "sumologic": {"logs": {"container": {"enabled": False}}},
        "listeners": {"logs": {"otlpHttp": 0, "fluentForward": 24321}},
    },
    "ledger-elsewhere-or-off": {
        "listeners": {
            "logsCollector": {"health": 13134, "ledger": 13135},
            "logs": {"ledger": 13200},
            "metrics": {"ledger": 0},
            "events": {"ledger": 0},
        }
    },
    "rung-root": {"otellogs": {"privilege": "root", "state": {"type": "emptyDir"}, "dockerContainers": True}},
    "sandbox-required": {"sandbox": "require"},
    "rung-capability": {"otellogs": {"privilege": "capability"}},
    "one-namespace-for-all": {"otellogs": {"namespace": {"name": "sumo"}}, "fullnameOverride": "telemetry"},
    "ipv6": {
        "sumologic": {"ipv6mode": True},
        "listeners": SEED_LISTENERS,
        "networkPolicy": {"clients": {"traces": [_APPS], "metrics": [{"cidrs": ["2001:db8::/32"]}]}},
    },
    "one-number-for-both-protocols": {
        "listeners": {"traces": {"zipkin": 6831, "jaegerThriftCompact": 6831, "jaegerThriftHttp": 6832, "jaegerThriftBinary": 6832}},
        "networkPolicy": {"clients": {"traces": [_APPS]}},
    },
    "datagrams-alone": {
        "listeners": {"traces": {"otlpHttp": 0, "otlpGrpc": 0, "jaegerThriftCompact": 6831}},
        "networkPolicy": {"clients": {"traces": [_APPS]}},
    },
    "remote-write-alone": {
        "listeners": {"metrics": {"otlpHttp": 0, "prometheusRemoteWrite": 9888}},
        "networkPolicy": {"clients": {"metrics": [{"pods": {"app": "prometheus"}, "namespace": "monitoring"}]}},
    },
    "sampling": {
        "listeners": {"traces": {"jaegerSampling": 5778}},
        "samplingStrategies": {
            "default_strategy": {"param": 0.5, "operation_strategies": [{"operation": "/health", "type": "probabilistic", "param": 0}]},
            "service_strategies": [{"service": "checkout", "type": "ratelimiting", "param": 5}],
        },
        "networkPolicy": {"clients": {"traces": [_APPS]}},
    },
    "digest": {"sumologic": {"otelcolImage": {"repository": "images.example.com/lockgate", "digest": "sha256:" + "a" * 64}}},
    "sources": {
        "sumologic": {
            "clusterName": "prod$1",
            "logs": {
                "container": {
                    "sourceName": "%{namespace}.%{pod}.%{container}",
                    "sourceCategory": "%{namespace}/%{pod_name}",
                    "sourceHost": "%{node}",
                    "excludeNamespaceRegex": "^kube-.*$",
                    "excludePodRegex": "^(a|b)$",
                    "perContainerAnnotationsEnabled": True,
                    "perContainerAnnotationPrefixes": ["example.com/"],
                }
            },
        }
    },
    "everything-of-kubernetes": {
        "sumologic": {
            "podLabels": {"team": "ops", "app.kubernetes.io/name": "no"},
            "podAnnotations": {"a": "1"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "serviceAccount": {"annotations": {"role": "x"}},
            "pullSecrets": [{"name": "registry"}],
        },
        "metadata": {
            "podAnnotations": {"b": "2"},
            "serviceLabels": {"c": "3"},
            "serviceAnnotations": {"d": "4"},
            "trafficDistribution": "PreferClose",
            "persistence": {"storageClass": "fast", "pvcLabels": {"e": "5"}, "size": "20Gi", "maxQueueSize": "16GiB"},
            "logs": {
                "podDisruptionBudget": {"minAvailable": "50%"},
                "autoscaling": {"targetMemoryUtilizationPercentage": 70, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}}},
                "statefulset": {
                    "podAntiAffinity": "hard",
                    "priorityClassName": "high",
                    "topologySpreadConstraints": [
                        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
                    ],
                    "extraEnvVars": [{"name": "A", "value": "b"}],
                    "containers": {"otelcol": {"readinessProbe": {"periodSeconds": 7}}},
                },
            },
        },
        "otellogs": {
            "daemonset": {
                "labels": {"f": "6"},
                "annotations": {"g": "7"},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "20%"}},
                "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
                "extraVolumeMounts": [{"name": "ca", "mountPath": "/usr/local/share/ca-certificates", "readOnly": True}],
                "extraEnvVars": [{"name": "A", "value": "b"}],
            }
        },
    },
}
