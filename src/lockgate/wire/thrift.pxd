# The C types of thrift.py, for its compiled form and the kernels that read with it. Locals not named have the types that follow from these.

cimport cython
from lockgate.wire.memory cimport Bytes, cut

cdef unsigned long long _UNSIGNED64


@cython.final
cdef class Reader:
    cdef readonly bytes data
    cdef Bytes src, kinds, widths
    cdef readonly Py_ssize_t size
    cdef public Py_ssize_t at
    cdef readonly int id, element
    cdef readonly bint compact
    cdef bint truth

    cpdef bytes message(self)
    @cython.locals(code=int, kind=int)
    cpdef int field(self, int last) except -1
    cpdef bint boolean(self) except -1
    @cython.locals(number="unsigned long long", width=int)
    cpdef unsigned long long integer(self, int kind) except? 987654321
    @cython.locals(number="unsigned long long", swapped="unsigned long long", _=int)
    cpdef unsigned long long double_bits(self) except? 987654321
    @cython.locals(size="unsigned long long")
    cpdef Py_ssize_t length(self) except -1
    @cython.locals(size=Py_ssize_t, start=Py_ssize_t)
    cpdef bytes text(self)
    @cython.locals(code=int, count="unsigned long long")
    cpdef Py_ssize_t elements(self) except -1
    @cython.locals(count=Py_ssize_t)
    cpdef Py_ssize_t structs(self) except -1
    cpdef int skip(self, int kind) except -1
    @cython.locals(last=int, inner=int, count=Py_ssize_t, size=Py_ssize_t)
    cdef int skip_value(self, int kind, int depth) except -1
    @cython.locals(code=int, key=int, value=int, count="unsigned long long")
    cdef int skip_map(self, int depth) except -1
    cdef int check_elements(self, unsigned long long count, int kind) except -1
    cdef int advance(self, unsigned long long size) except -1
    @cython.locals(at=Py_ssize_t, number="unsigned long long")
    cdef unsigned long long fixed(self, int width) except? 987654321
    @cython.locals(number="unsigned long long", byte="unsigned long long", shift=int)
    cdef unsigned long long varint(self) except? 987654321
