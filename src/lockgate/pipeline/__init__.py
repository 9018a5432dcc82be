"""The contract between components and the graph that runs it: component, consume, errors, needs, status.

Knows no protocol, no file, no component. What two components need to agree on stands here; what one of them does, does not.
"""
