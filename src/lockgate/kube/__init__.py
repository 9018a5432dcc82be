"""The Kubernetes API: list, watch, caches of pods and their owners, feeds of changes."""
