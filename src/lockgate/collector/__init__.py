"""The program: YAML -> components -> graph; start, stop; its own telemetry. components.py lists every built-in component."""
