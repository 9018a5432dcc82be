"""Bytes <-> OTLP, CRI and the other formats. No I/O, no configuration, no settings: bytes and integers in, bytes and integers out.

The kernels (listed in setup.py) are Cython's pure-Python mode: compiled at install time, importable uncompiled, and held equal to a plain
twin by their tests. Their `compiled` says how they run. How they are written: pointers are only ever indexed, never moved, so that bytes
and bytearrays stand in for them; what C does better stands in an `if cython.compiled`.
"""
