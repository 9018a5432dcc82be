# The C types of cri.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, count, find, is_utf8, new_buffer, put, same, starts


@cython.final
cdef class _Chunk:
    # The input.
    cdef tuple kept
    cdef Bytes src, head
    cdef Bytes attributes[4]
    cdef Py_ssize_t sizes[4]
    cdef Py_ssize_t size, head_size, max_record_bytes
    cdef long long max_records
    cdef unsigned long long observed
    cdef bint flush_groups, flush_line, trim_leading, trim_trailing, is_text
    # The output.
    cdef bytearray buffer
    cdef unsigned char* out
    cdef Py_ssize_t begin, o
    cdef long long records, lines, joined, empty, malformed, truncated, partial, consumed, pending
    cdef int left
    # The line.
    cdef unsigned long long time
    cdef Py_ssize_t tag, tag_end, start, end, time_start, time_end
    cdef int stream
    cdef bint is_part, is_escaped
    # The last line whose date was parsed.
    cdef Py_ssize_t second_at
    cdef long long second
    # The last JSON string.
    cdef Py_ssize_t escape
    cdef bint escaped_before
    # The groups, by stream.
    cdef Py_ssize_t room
    cdef Py_ssize_t area[2]
    cdef Py_ssize_t fill[2]
    cdef Py_ssize_t opened[2]
    cdef Py_ssize_t tags[2]
    cdef Py_ssize_t tag_ends[2]
    cdef long long parts[2]
    cdef unsigned long long times[2]
    cdef (Py_ssize_t, Py_ssize_t, long long, long long, long long, long long, long long, long long) undo

    cdef bint cri(self, Py_ssize_t p, Py_ssize_t end) noexcept nogil
    @cython.locals(total="long long", fraction="long long", scale="long long", latest="long long")
    cdef Py_ssize_t timestamp(self, Py_ssize_t p, Py_ssize_t end) noexcept nogil
    cdef bint docker(self, Py_ssize_t p, Py_ssize_t end) noexcept nogil
    cdef bint member(self, Py_ssize_t key, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef Py_ssize_t value(self, Py_ssize_t p, Py_ssize_t end, int depth) noexcept nogil
    @cython.locals(escape=Py_ssize_t, before=Py_ssize_t)
    cdef Py_ssize_t string(self, Py_ssize_t p, Py_ssize_t end) noexcept nogil
    cdef void each_line(self, int line_format) noexcept nogil
    cdef void plain(self, Py_ssize_t start, Py_ssize_t end) noexcept nogil
    cdef void entry(self, Py_ssize_t p) noexcept nogil
    cdef void close(self, int stream, bint flagged) noexcept nogil
    cdef void record(self, int stream, Bytes body, Py_ssize_t start, Py_ssize_t end, bint flagged) noexcept nogil
    cdef void frame(self) noexcept nogil
    cdef void each_span(self, const long long[::1] spans) noexcept nogil


cdef int _at(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef int _two(Bytes src, Py_ssize_t p) noexcept nogil
@cython.locals(days="long long")
cdef long long _seconds(Bytes src, Py_ssize_t p) noexcept nogil
cdef int _hex4(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t _digits(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t _number(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t _blanks(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t _trimmed(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil
cdef Py_ssize_t _unescape(Bytes src, Py_ssize_t p, Py_ssize_t end, unsigned char* out, Py_ssize_t o, Py_ssize_t limit) noexcept nogil
cdef Py_ssize_t _cut(Bytes body, Py_ssize_t start, Py_ssize_t end, Py_ssize_t limit) noexcept nogil
cdef Py_ssize_t _varint_size(unsigned long long number) noexcept nogil
cdef Py_ssize_t _put_varint(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil
cdef Py_ssize_t _put_fixed64(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil
