"""What a configuration's needs become: the process's own sandbox.

Knows needs and the kernel; no component, no telemetry and no configuration file may enter. Whatever is granted here must be a row of
`lockgate needs`.
"""
