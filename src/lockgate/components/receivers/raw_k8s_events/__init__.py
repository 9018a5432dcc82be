"""Kubernetes events as log records, raw: what the collection's events role reads (sumologic-otel-collector, rawk8seventsreceiver)."""

from lockgate.components.receivers.raw_k8s_events.receiver import RawK8sEventsReceiver

__all__ = ["RawK8sEventsReceiver"]
