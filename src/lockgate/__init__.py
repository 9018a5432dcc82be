"""Kubernetes telemetry collection for locked-down clusters. The floors of this package are drawn in docs/architecture.md."""
