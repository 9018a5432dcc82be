# The C types of columns.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, equal, new_buffer, put

cdef Py_ssize_t _MOST_BYTES
cdef int _MOST_MEMBERS, _DEPTH, _NUMBER, _COLUMNS
cdef int _SEVERITY, _BODY, _ATTRIBUTES, _TRACE_ID, _SPAN_ID, _EVENT_NAME, _SCOPE
cdef unsigned long long _ALL, _LATEST


@cython.final
cdef class _Work:
    # The input.
    cdef bytes payload
    cdef Bytes src
    cdef Py_ssize_t size
    # The field that was looked at last.
    cdef Py_ssize_t content
    cdef unsigned long long number
    # Where the records are: of each scope the first's start, the last's end, its name's start and end.
    cdef list resources
    cdef object places
    cdef long long[::1] spots
    cdef Py_ssize_t records, scopes
    # The next record, and why it could not be written.
    cdef Py_ssize_t scope, row, at, lacks
    # The output.
    cdef bytearray none
    cdef list buffers
    cdef unsigned char* outs[7]
    cdef Py_ssize_t fills[7]
    cdef Py_ssize_t rooms[7]
    cdef object ends, bits, times, numbers
    cdef int[::1] end_of
    cdef unsigned char[::1] bit_of
    cdef long long[::1] time_of
    cdef unsigned char[::1] number_of
    # Columns that the record has a value in, as bits.
    cdef int present
    # The attributes that were written last: as they stand in the input, and as JSON.
    cdef Py_ssize_t json_from, json_of, json_at, json_size

    @cython.locals(tag=int, wire=int, width=int, value="unsigned long long", byte="unsigned long long", size="unsigned long long", shift=int, i=int)
    cdef Py_ssize_t field(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(at=Py_ssize_t, stop=Py_ssize_t, start=Py_ssize_t, before=Py_ssize_t, has_resource=bint)
    cdef bint frames(self) except -1
    @cython.locals(first=Py_ssize_t, last=Py_ssize_t, name=Py_ssize_t, name_end=Py_ssize_t, count=Py_ssize_t, has_scope=bint, start=Py_ssize_t, inner=Py_ssize_t, begin=Py_ssize_t)
    cdef bint scope_logs(self, Py_ssize_t at, Py_ssize_t end) except -1
    cdef int allocate(self) except -1
    @cython.locals(column=int, needed=Py_ssize_t, fill=Py_ssize_t, size=Py_ssize_t, larger=bytearray)
    cdef int grow(self) except -1
    cdef Py_ssize_t need(self, int column, Py_ssize_t size) noexcept nogil
    @cython.locals(column=int, lacks=bint)
    cdef bint has_room(self, Py_ssize_t size) noexcept nogil
    @cython.locals(start=Py_ssize_t, byte=int)
    cdef Py_ssize_t text(self, unsigned char* out, Py_ssize_t o, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(tag=int, stop=Py_ssize_t, start=Py_ssize_t, begin=Py_ssize_t)
    cdef Py_ssize_t value(self, unsigned char* out, Py_ssize_t o, Py_ssize_t at, Py_ssize_t end, int depth) noexcept nogil
    @cython.locals(stop=Py_ssize_t, start=Py_ssize_t)
    cdef Py_ssize_t key(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(count=int, at=Py_ssize_t, begin=Py_ssize_t, start=Py_ssize_t, size="unsigned long long", value=Py_ssize_t, other=Py_ssize_t, following=Py_ssize_t, there=Py_ssize_t, stop=Py_ssize_t)
    cdef Py_ssize_t members(self, unsigned char* out, Py_ssize_t o, Py_ssize_t first, Py_ssize_t end, int tag, int depth) noexcept nogil
    @cython.locals(o=Py_ssize_t, size=Py_ssize_t, stop=Py_ssize_t)
    cdef bint attributes(self, Py_ssize_t first, Py_ssize_t last) noexcept nogil
    @cython.locals(o=Py_ssize_t)
    cdef bint body(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(o=Py_ssize_t, byte=int)
    cdef void hexadecimal(self, int column, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef void keep(self, int column, Py_ssize_t fill) noexcept nogil
    @cython.locals(time="unsigned long long", observed="unsigned long long", number=int, attributes=Py_ssize_t, attributes_end=Py_ssize_t, severity=Py_ssize_t, severity_end=Py_ssize_t, seen=int, start=Py_ssize_t, tag=int, content=Py_ssize_t)
    cdef bint record(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(row=Py_ssize_t, each=Py_ssize_t, width=Py_ssize_t, column=int)
    cdef void end_row(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    @cython.locals(last=Py_ssize_t, name=Py_ssize_t, name_end=Py_ssize_t, stop=Py_ssize_t, start=Py_ssize_t, column=int)
    cdef bint each_record(self) noexcept nogil
    cdef int take(self, object describe) except -1
    cdef object valid(self, int column)
    cdef object columns(self)


cdef int _hex_digit(int value) noexcept nogil
cdef Py_ssize_t _put_level(unsigned char* out, Py_ssize_t o, int level) noexcept nogil
@cython.locals(digits=int, i=int, rest="unsigned long long")
cdef Py_ssize_t _decimal(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil
