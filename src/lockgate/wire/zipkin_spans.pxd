# The C types of zipkin_spans.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, new_buffer


@cython.final
cdef class Reader:
    cdef bytes data
    cdef Bytes src
    cdef Py_ssize_t size, at, start
    cdef unsigned long long number

    cpdef object span(self)
    @cython.locals(tag="unsigned long long", kind="unsigned long long", timestamp="unsigned long long", duration="unsigned long long", tags=dict, annotations=list)
    cdef object read_span(self, Py_ssize_t end)
    @cython.locals(tag="unsigned long long")
    cdef int read_tag(self, Py_ssize_t end, dict tags) except -1
    @cython.locals(tag="unsigned long long", timestamp="unsigned long long")
    cdef object read_annotation(self, Py_ssize_t end)
    @cython.locals(tag="unsigned long long")
    cdef int read_endpoint(self, Py_ssize_t end, list endpoint) except -1
    cdef object text(self)
    @cython.locals(tag="unsigned long long", size="unsigned long long", wire=int)
    cdef unsigned long long field(self, Py_ssize_t end) except 0
    @cython.locals(number="unsigned long long", shift=int)
    cdef int fixed(self, Py_ssize_t end, int width) except -1
    @cython.locals(number="unsigned long long", shift=int, byte="unsigned char")
    cdef unsigned long long varint(self, Py_ssize_t end) except? 987654321
    cdef inline unsigned long long wide(self, unsigned char byte) noexcept


@cython.locals(text_size=Py_ssize_t, inner=Py_ssize_t, o=Py_ssize_t, text=bytes, buffer=bytearray, out="unsigned char*", text_bytes=Bytes)
cpdef bytearray event(unsigned long long nanoseconds, str name)
@cython.locals(size=Py_ssize_t, inner=Py_ssize_t, o=Py_ssize_t, key_size=Py_ssize_t, value_size=Py_ssize_t, number=Py_ssize_t, texts=list, text=bytes, key_text=bytes, value_text=bytes, id=bytes, buffer=bytearray, source_array=bytearray, out="unsigned char*", target="unsigned char*", source=Bytes)
cpdef bytearray span(tuple ids, str name, int kind, unsigned long long start, unsigned long long end, dict tags, list pieces)
@cython.locals(place=int)
cdef Py_ssize_t _fixed(unsigned char* out, Py_ssize_t o, unsigned char tag, unsigned long long number) noexcept nogil
@cython.locals(width=Py_ssize_t)
cdef Py_ssize_t _width(Py_ssize_t number) noexcept nogil
cdef Py_ssize_t _put(unsigned char* out, Py_ssize_t o, unsigned char tag, Py_ssize_t number) noexcept nogil
