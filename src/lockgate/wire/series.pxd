# The C types of series.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, copy, equal, is_utf8, mixed, new_buffer, starts

cdef unsigned long long _LATEST_MS, _ALL
cdef int _MOST_PROBES, _ROW


@cython.final
cdef class Scan:
    # What Python sees of it.
    cdef readonly object rows
    cdef readonly list resources, metrics, metadata, refused
    cdef readonly Py_ssize_t series, first_refused
    cdef readonly long long accepted, lost_exemplars
    cdef readonly int version, first_reason
    # The input.
    cdef bytes payload
    cdef Bytes src
    cdef Py_ssize_t size
    # The field that was looked at last.
    cdef unsigned long long tag, number
    cdef int wire
    cdef Py_ssize_t content, where
    # The symbols of 2.0: where each is, and its size (-1 where it is not UTF-8).
    cdef Py_ssize_t symbols
    cdef int[::1] symbol_at, symbol_size
    # The series that is looked at: its labels, and what is special among them.
    cdef Py_ssize_t labels_from, labels_to, attributes_size
    cdef int count, name, job, instance, flags, kind, help, unit
    cdef int[::1] key, key_size, text, text_size
    cdef long long points, late, histograms, exemplars, messages
    cdef unsigned long long created
    cdef bint is_astray, is_large, is_valid  # the last: as far as series are not refused, their labels are known to be UTF-8
    # The sample.
    cdef unsigned long long time, start
    cdef Py_ssize_t value
    cdef bint stale
    # All series, resources and metrics, and the hash tables of these.
    cdef int[::1] row, resource_table, metric_table, resource_at, metric_at
    cdef long long[::1] refusals
    cdef Py_ssize_t resource_count, metric_count
    cdef unsigned long long mask

    @cython.locals(tag="unsigned long long", byte="unsigned long long", shift=int, wire=int, size="unsigned long long")
    cdef Py_ssize_t field(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(value="unsigned long long", byte="unsigned long long", shift=int)
    cdef Py_ssize_t varint(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(at=Py_ssize_t)
    cdef bint frames(self) except -1
    cdef int allocate(self) except -1
    cdef Py_ssize_t symbol(self, unsigned long long reference) noexcept nogil
    cdef int label(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef int reference(self, unsigned long long reference) noexcept nogil
    @cython.locals(refused=int, why=int, exemplar_tag="unsigned long long", histogram_tag="unsigned long long", inner=Py_ssize_t, stop=Py_ssize_t, start=Py_ssize_t)
    cdef int labels(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef bint described(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    cdef bint named(self, int n, const char* name, int size) noexcept nogil
    @cython.locals(is_sorted=bint, size=Py_ssize_t, n=int, m=int, key=int, entry=Py_ssize_t)
    cdef int check(self) noexcept nogil
    @cython.locals(i=int)
    cdef bint follows(self, int n) noexcept nogil
    @cython.locals(value=Py_ssize_t)
    cdef Py_ssize_t entry_size(self, int n) noexcept nogil
    cdef int sample(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(total=Py_ssize_t, size=Py_ssize_t, stop=Py_ssize_t)
    cdef Py_ssize_t samples(self, Py_ssize_t at, Py_ssize_t end) noexcept nogil
    @cython.locals(key="unsigned long long", place="unsigned long long", job=int, job_size=int, instance=int, instance_size=int, i=Py_ssize_t, found=Py_ssize_t, probe=int)
    cdef Py_ssize_t resource(self) noexcept nogil
    @cython.locals(key="unsigned long long", place="unsigned long long", name=int, size=int, i=Py_ssize_t, found=Py_ssize_t, probe=int)
    cdef Py_ssize_t metric(self) noexcept nogil
    @cython.locals(n=Py_ssize_t, at=Py_ssize_t)
    cdef void each_symbol(self) noexcept nogil
    @cython.locals(series_tag="unsigned long long", at=Py_ssize_t, row=Py_ssize_t, stop=Py_ssize_t, begin=Py_ssize_t, why=int, size=Py_ssize_t)
    cdef bint each_series(self) noexcept nogil
    cdef int name_all(self) except -1
    cpdef bytes text_of(self, Py_ssize_t symbol)
    cpdef bytes attributes(self, Py_ssize_t series, int field, Py_ssize_t limit)
    @cython.locals(n=int, size=Py_ssize_t, value=Py_ssize_t)
    cdef Py_ssize_t put_attributes(self, unsigned char* out, Py_ssize_t o, int tag) noexcept nogil
    @cython.locals(written=Py_ssize_t, at=Py_ssize_t, stop=Py_ssize_t, size=Py_ssize_t)
    cdef Py_ssize_t put_points(self, Py_ssize_t begin, Py_ssize_t end, unsigned char* out, Py_ssize_t o) noexcept nogil


@cython.final
cdef class _Layout:
    cdef Scan scan
    cdef bytes skip, is_sum, resources, metrics
    cdef Bytes skips, sums, resource_bytes, metric_bytes
    cdef int[::1] resource_end, metric_end, table, home_of, home_resource, home_metric
    cdef long long[::1] home_size, fill, resource_size, resource_fill
    cdef Py_ssize_t homes

    @cython.locals(key="unsigned long long", place="unsigned long long", found=Py_ssize_t, probe=int)
    cdef Py_ssize_t home(self, Py_ssize_t resource, Py_ssize_t metric) noexcept nogil
    cdef Py_ssize_t body(self, Py_ssize_t home) noexcept nogil
    cdef Py_ssize_t metric_size(self, Py_ssize_t home) noexcept nogil
    @cython.locals(i=Py_ssize_t, row=Py_ssize_t, home=Py_ssize_t, size=Py_ssize_t, total=Py_ssize_t, resource=Py_ssize_t, scope=Py_ssize_t)
    cdef Py_ssize_t measure(self, Py_ssize_t resources) noexcept nogil
    @cython.locals(i=Py_ssize_t, home=Py_ssize_t, resource=Py_ssize_t, metric=Py_ssize_t, scope=Py_ssize_t, head=Py_ssize_t, o=Py_ssize_t)
    cdef void put(self, Py_ssize_t resources, unsigned char* out) noexcept nogil


cdef int width(unsigned long long number) noexcept nogil
cdef Py_ssize_t put_varint(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil
@cython.locals(i=int)
cdef Py_ssize_t put_fixed64(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil
cdef Py_ssize_t copy_within(unsigned char* out, Py_ssize_t o, Py_ssize_t start, Py_ssize_t size) noexcept nogil
