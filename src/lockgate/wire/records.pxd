# The C types of records.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, equal, mixed, new_buffer

cdef Py_ssize_t _MOST, _FEW, _MOST_KEYS, _MOST_PROBES


@cython.final
cdef class Index:
    # What Python sees of it.
    cdef readonly list entries, scopes, groups
    # The input.
    cdef bytes payload, joined
    cdef Bytes src, names
    cdef Py_ssize_t size
    cdef int keys
    cdef int[::1] name_ends
    # The field, and the run of fields, that was looked at last.
    cdef Py_ssize_t content, first, last
    cdef Py_ssize_t count
    # The records: (start, end, group) each; the attributes found in them: (start, end) each, in order; where each scope has its records.
    cdef Py_ssize_t records, cut
    cdef int[::1] places, rows, cuts
    # The groups: (start, size) of each one's values, and their hash table.
    cdef Py_ssize_t most, found
    cdef unsigned long long mask
    cdef int[::1] table, values, scope_of, count_of, size_of, hits_of
    cdef unsigned long long[::1] hashes

    @cython.locals(size=Py_ssize_t, shift=int, byte=Py_ssize_t, tag=int, wire=int)
    cdef Py_ssize_t field(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef bint run(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(at=Py_ssize_t, total=Py_ssize_t, size=Py_ssize_t, start=Py_ssize_t, last=Py_ssize_t, stop=Py_ssize_t, inner=Py_ssize_t, begin=Py_ssize_t)
    cdef bint frames(self) except -1
    cdef int allocate(self) except -1
    cdef bint record(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(name=Py_ssize_t)
    cdef bint attribute(self, Py_ssize_t values, Py_ssize_t start, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(i=Py_ssize_t)
    cdef bint alike(self, Py_ssize_t group, Py_ssize_t scope) noexcept nogil
    @cython.locals(i=Py_ssize_t, key="unsigned long long", group=Py_ssize_t)
    cdef Py_ssize_t group(self, Py_ssize_t scope) noexcept nogil
    @cython.locals(row=Py_ssize_t, group=Py_ssize_t)
    cdef bint each_record(self, Py_ssize_t scopes) noexcept nogil
    cdef int name_groups(self) except -1
    @cython.locals(row=Py_ssize_t, cut=Py_ssize_t, i=Py_ssize_t, group=Py_ssize_t)
    cdef void copy_records(self, int[::1] homes, int[::1] fill, unsigned char* out, bint remove) noexcept nogil
