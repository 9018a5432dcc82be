"""Adds what Kubernetes knows of a pod to its telemetry.

`settings` is what a user writes, `extraction` makes attributes of objects, `processor` finds the pod.
"""

from lockgate.components.processors.k8sattributes.processor import K8sAttributesProcessor

__all__ = ["K8sAttributesProcessor"]
