# The C types of otlp.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, is_utf8, same


@cython.final
cdef class _Request:
    cdef bytes payload, kinds
    cdef Bytes src, table
    cdef unsigned long long number
    cdef long long records, messages
    cdef int reason, message, key_value
    cdef long long[::1] seen
    cdef Py_ssize_t where

    @cython.locals(byte="unsigned long long", shift=int)
    cdef Py_ssize_t varint(self, Py_ssize_t at, Py_ssize_t end, int longest) noexcept nogil
    cdef bint fail(self, int reason, Py_ssize_t where, int message) noexcept nogil
    @cython.locals(tag="unsigned long long", size="long long", stop=Py_ssize_t, kind=int, wire=int, inner=int, slot=Py_ssize_t, before="long long")
    cdef bint walk(self, Py_ssize_t at, Py_ssize_t end, int message, int depth) noexcept nogil
