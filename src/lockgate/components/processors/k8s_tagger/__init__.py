"""Tags telemetry with what Kubernetes knows of its pod, as Sumo Logic's collector does.

`settings` is what a user writes, `processor` finds the pod.

Behaviour: the `k8s_tagger` processor of Sumo Logic's OpenTelemetry collector, with these differences, each to the user's good:
- a pod's services are those of its name and namespace (the original goes by the name alone: every `web-0` of a cluster shares services);
- owners are taken from the pod's own references, so that only ReplicaSets (for `deploymentName`) and Jobs (for `cronJobName`) are watched,
  and the pods' filters do not apply to them;
- changes of a namespace's labels are seen at once; an IP never finds a deleted pod, one that has ended, or one on its node's network;
- the annotation `opentelemetry.io/k8s-processor/ignore: "true"` always counts (the original reads it only where annotations are extracted);
- `containerId` is that of the container that `containerName` names (the original takes the first of each list; they are ordered
  differently), and filters by `exists` and `does-not-exist` work.
"""

from lockgate.components.processors.k8s_tagger.processor import K8sTaggerProcessor

__all__ = ["K8sTaggerProcessor"]
