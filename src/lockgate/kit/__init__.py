"""Ground floor: strict settings with positions, durations and sizes, backoff, clock, counters.

Could be a library of its own: nothing in here knows telemetry, Kubernetes or a protocol, and nothing of that may enter.
"""
