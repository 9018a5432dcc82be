"""A Kubernetes node in miniature, for `lockgate up` and tests: pods as
real processes, their logs in a runtime's format, a kubelet's rotation.

Knows no component and no server. Whoever collects here cannot tell it from a node by looking at its /var/log/pods.
"""
