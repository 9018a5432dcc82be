"""Lockdown is a function of the configuration: from its needs follow network policies, RBAC rules and the process's own sandbox.

Lists nothing of its own: a port, a path or a verb that stands here and in no component's `needs()` is a mistake. What the interpreter
opens by itself is in `interpreter.py`, and in the table of `lockgate needs` like the rest.
"""
