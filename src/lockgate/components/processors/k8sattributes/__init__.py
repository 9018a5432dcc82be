"""Adds what Kubernetes knows of a pod to its telemetry. settings: what users write; extraction: objects to attributes; processor: how."""

from lockgate.components.processors.k8sattributes.processor import K8sAttributesProcessor

__all__ = ["K8sAttributesProcessor"]
