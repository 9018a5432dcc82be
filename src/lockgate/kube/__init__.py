"""The Kubernetes API: list, watch, and caches of pods and their owners."""
