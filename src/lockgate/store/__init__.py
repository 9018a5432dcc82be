"""The embedded backend's tables and queries, in one DuckDB file: one machine is enough to try everything.

Knows batches, tables and SQL; no HTTP, no settings, no component may enter. Everything here blocks: callers use threads.
"""
