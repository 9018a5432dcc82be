# The C types of opencensus_spans.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, equal, move, new_buffer, put


@cython.final
cdef class _Translation:
    # The input.
    cdef bytes message, words
    cdef Bytes src, known
    cdef Py_ssize_t size
    cdef bint is_apart
    cdef unsigned long long low, latest
    # The output.
    cdef bytearray buffer
    cdef unsigned char* out
    cdef Py_ssize_t capacity, o, where, apart, node, node_size, resource, resource_size
    cdef int reason
    # The field that was read last.
    cdef unsigned long long number, tag
    cdef Py_ssize_t content
    # The text and the attribute that were read last.
    cdef Py_ssize_t text, text_size, key, key_size
    cdef unsigned long long kind, value
    # The span's attributes that are none.
    cdef unsigned long long kind_said, status_code
    cdef bint status_said, drops_kind, drops_status

    cdef int allocate(self, Py_ssize_t capacity) except -1
    cdef Py_ssize_t fail(self, int reason, Py_ssize_t where) noexcept nogil
    @cython.locals(number="unsigned long long", byte="unsigned long long", shift=int)
    cdef Py_ssize_t varint(self, Py_ssize_t at, Py_ssize_t end, int longest) noexcept nogil
    @cython.locals(wire=int, size=Py_ssize_t, start=Py_ssize_t)
    cdef Py_ssize_t field(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef void string(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(seconds="unsigned long long", nanos="unsigned long long")
    cdef unsigned long long timestamp(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(inner=Py_ssize_t)
    cdef void entry(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef bint is_word(self, Py_ssize_t start, Py_ssize_t size, Py_ssize_t word, Py_ssize_t word_size) noexcept nogil
    cdef void look_for_special(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef bint room(self, Py_ssize_t size) noexcept nogil
    @cython.locals(o=Py_ssize_t)
    cdef void length(self, unsigned long long number) noexcept nogil
    cdef void put_number(self, int tag, unsigned long long number) noexcept nogil
    @cython.locals(o=Py_ssize_t, i=int)
    cdef void put_time(self, int tag, unsigned long long time) noexcept nogil
    cdef void put_text(self, int tag, Py_ssize_t start, Py_ssize_t size) noexcept nogil
    @cython.locals(o=Py_ssize_t)
    cdef void put_id(self, int tag, Py_ssize_t start, Py_ssize_t size, Py_ssize_t wanted) noexcept nogil
    cdef void put_word(self, int tag, const char* word) noexcept nogil
    cdef Py_ssize_t open(self, int tag) noexcept nogil
    @cython.locals(size=Py_ssize_t, end=Py_ssize_t, extra=Py_ssize_t)
    cdef void close(self, Py_ssize_t mark) noexcept nogil
    @cython.locals(mark=Py_ssize_t, value=Py_ssize_t)
    cdef void put_attribute(self, int tag) noexcept nogil
    @cython.locals(mark=Py_ssize_t, inner=Py_ssize_t)
    cdef void put_own(self, int tag, const char* key, int value_tag, unsigned long long value) noexcept nogil
    @cython.locals(dropped="unsigned long long")
    cdef void attributes(self, Py_ssize_t at, Py_ssize_t end, int tag, int dropped_tag, bint is_spans) noexcept nogil
    @cython.locals(mark=Py_ssize_t, inner=Py_ssize_t)
    cdef void tracestate(self, Py_ssize_t at, Py_ssize_t end, int tag) noexcept nogil
    @cython.locals(mark=Py_ssize_t, value=Py_ssize_t, value_end=Py_ssize_t, kind=int)
    cdef void event(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(mark=Py_ssize_t, inner=Py_ssize_t, kind="unsigned long long", id="unsigned long long", size="unsigned long long", compressed_size="unsigned long long")
    cdef void message_event(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(annotations="unsigned long long", messages="unsigned long long", dropped="unsigned long long")
    cdef void events(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(mark=Py_ssize_t, inner=Py_ssize_t, dropped="unsigned long long")
    cdef void links(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(at=Py_ssize_t, mark=Py_ssize_t, inner=Py_ssize_t, status=Py_ssize_t, status_size=Py_ssize_t, has_resource=bint, has_status=bint, has_same=bint, kind="unsigned long long", code="unsigned long long", same="unsigned long long")
    cdef void span(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    @cython.locals(at=Py_ssize_t)
    cdef void each_span(self) noexcept nogil
