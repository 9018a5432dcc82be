"""Bytes <-> OTLP, CRI and the other formats. No I/O, no configuration, no settings: bytes and integers in, bytes and integers out.

The kernels (listed in setup.py) are plain Python that Cython compiles at install time where there is a C compiler, with the C types that
the .pxd file beside each gives; uncompiled they do the same, slower, and both forms are held equal to a plain twin by their tests. Their
`compiled` says how they run. How they are written: pointers are only ever indexed, never moved, so that bytes and bytearrays stand in for
them; what C does better stands in `memory`, in both forms.
"""
