# The C types of jaeger.py, for its compiled form. Locals not named have the types that follow from these (infer_types).

cimport cython
from lockgate.wire.memory cimport Bytes, attribute, big64, cut, field, fixed64, is_utf8, varint
from lockgate.wire.thrift cimport Reader

cdef unsigned long long _UNSIGNED64
cdef Py_ssize_t _MOST, _MOST_VALUES
cdef dict _KINDS, _CODES
cdef bytes _CHILD_OF, _FOLLOWS_FROM, _NO_SERVICE


@cython.locals(reader=Reader, kind=int, last=int)
cpdef bytes from_agent(bytes datagram, bint compact)


@cython.final
cdef class _Span:
    cdef unsigned long long high, low, id, parent, start, end
    cdef bytes name
    cdef dict tags
    cdef list references, events

    @cython.locals(tags=dict, out=list, kind=int, type="unsigned long long", high="unsigned long long", low="unsigned long long", id="unsigned long long")
    cdef bytes encoded(self)
    @cython.locals(followed="unsigned long long", is_followed=bint, type="unsigned long long", high="unsigned long long", low="unsigned long long", id="unsigned long long")
    cdef unsigned long long inferred_parent(self) except? 987654321
    @cython.locals(tags=dict, code=int, is_given=bint, out=bytes)
    cdef bytes status(self, int kind)


@cython.final
cdef class _Thrift:
    cdef Reader reader
    cdef Py_ssize_t values

    @cython.locals(reader=Reader, seen=int, kind=int, last=int, count=Py_ssize_t, resource=bytes)
    cdef bytes batch(self)
    @cython.locals(reader=Reader, seen=int, kind=int, last=int, tags=dict, service=bytes)
    cdef bytes process(self)
    @cython.locals(reader=Reader, seen=int, kind=int, last=int, count=Py_ssize_t, span=_Span, is_blank=bint, number="unsigned long long", duration="unsigned long long", flags="unsigned long long")
    cdef bytes span(self)
    @cython.locals(reader=Reader, seen=int, kind=int, last=int, number="unsigned long long", type="unsigned long long", high="unsigned long long", low="unsigned long long", id="unsigned long long")
    cdef int reference(self, _Span span) except -1
    @cython.locals(reader=Reader, seen=int, kind=int, last=int, time="unsigned long long", fields=dict)
    cdef bytes log(self)
    @cython.locals(found=dict, count=Py_ssize_t)
    cdef dict tags(self)
    @cython.locals(reader=Reader, seen=int, kind=int, last=int, key=bytes, text=bytes, binary=bytes, type="unsigned long long", bits="unsigned long long", number="unsigned long long", truth=bint)
    cdef int tag(self, dict found) except -1
    @cython.locals(count=Py_ssize_t)
    cdef Py_ssize_t count(self) except -1


@cython.final
cdef class _Protobuf:
    cdef bytes data, process_raw
    cdef Bytes src
    cdef Py_ssize_t size, at, values, scopes
    cdef unsigned long long low
    cdef bint has_process
    cdef dict groups

    @cython.locals(tag="unsigned long long")
    cdef bytes request(self)
    @cython.locals(tag="unsigned long long")
    cdef int batch(self, Py_ssize_t end) except -1
    @cython.locals(tag="unsigned long long", service=bytes, tags=dict)
    cdef bytes process(self)
    @cython.locals(tag="unsigned long long", span=_Span, is_blank=bint, duration="unsigned long long")
    cdef int span(self, Py_ssize_t end) except -1
    @cython.locals(scope=bytes, key=bytes, tags=dict, encoded=bytes, group=dict)
    cdef int add(self, _Span span, bytes process) except -1
    @cython.locals(tag="unsigned long long", type="unsigned long long", high="unsigned long long", low="unsigned long long", id="unsigned long long")
    cdef int reference(self, _Span span, Py_ssize_t end) except -1
    @cython.locals(tag="unsigned long long", time="unsigned long long", fields=dict)
    cdef bytes log(self, Py_ssize_t end)
    @cython.locals(tag="unsigned long long", key=bytes, text=bytes, binary=bytes, type="unsigned long long", bits="unsigned long long", number="unsigned long long", truth="unsigned long long")
    cdef int tag(self, dict found, Py_ssize_t end) except -1
    @cython.locals(tag="unsigned long long", seconds="unsigned long long", nanos="unsigned long long")
    cdef unsigned long long time(self, Py_ssize_t end, unsigned long long least, unsigned long long most) except? 987654321
    @cython.locals(stop=Py_ssize_t, high="unsigned long long")
    cdef unsigned long long trace_id(self, Py_ssize_t end) except? 987654321
    @cython.locals(stop=Py_ssize_t)
    cdef unsigned long long span_id(self, Py_ssize_t end) except? 987654321
    @cython.locals(number="unsigned long long", _=int)
    cdef unsigned long long big(self)
    @cython.locals(number="unsigned long long", byte="unsigned long long", shift=int)
    cdef unsigned long long fixed64(self, Py_ssize_t end) except? 987654321
    @cython.locals(start=Py_ssize_t, stop=Py_ssize_t)
    cdef bytes content(self, Py_ssize_t end)
    @cython.locals(size="unsigned long long")
    cdef Py_ssize_t stop(self, Py_ssize_t end) except -1
    @cython.locals(wire=int)
    cdef int skip(self, unsigned long long tag, Py_ssize_t end) except -1
    @cython.locals(number="unsigned long long", byte="unsigned long long", shift=int)
    cdef unsigned long long varint(self, Py_ssize_t end) except? 987654321
    cdef int value(self) except -1


cdef bytes _resource(bytes service, dict tags)
@cython.locals(out=bytes)
cdef bytes _event(unsigned long long time, dict fields)
@cython.locals(key=bytes, value=bytes)
cdef bytes _attributes(int tag, dict found)
@cython.locals(text=bytes, digits=bytes, number="unsigned long long", byte="unsigned long long", shift=int)
cdef int _http_status(bytes value, int kind) except -1
@cython.locals(start=Py_ssize_t, text=bytes)
cdef bytes _string(int tag, bytes value)
cdef bytes _text(bytes raw)
cdef bytes _name(bytes raw)
@cython.locals(out=bytes)
cdef bytes _ids(bytes trace, bytes span, unsigned long long high, unsigned long long low, unsigned long long id)
