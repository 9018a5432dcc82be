# What memory.py says, for the compiled kernels: inlined into each.

from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memchr, memcmp, memcpy, memmove, strlen

ctypedef const unsigned char* Bytes


cdef inline bytearray new_buffer(Py_ssize_t size):
    return PyByteArray_FromStringAndSize(NULL, size)  # not zeroed, as bytearray(size) would be: that costs a third of the kernel


cdef inline Py_ssize_t copy(unsigned char* out, Py_ssize_t o, Bytes src, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    memcpy(out + o, src + start, size)
    return o + size


cdef inline void move(unsigned char* out, Py_ssize_t o, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    memmove(out + o, out + start, size)


cdef inline Py_ssize_t put(unsigned char* out, Py_ssize_t o, const char* word) noexcept nogil:
    return copy(out, o, <Bytes>word, 0, strlen(word))


cdef inline Py_ssize_t find(Bytes src, Py_ssize_t start, Py_ssize_t end, int byte) noexcept nogil:
    cdef Bytes at = <Bytes>memchr(src + start, byte, end - start)
    return -1 if at == NULL else at - src


cdef inline Py_ssize_t count(Bytes src, Py_ssize_t size, int byte) noexcept nogil:
    cdef Py_ssize_t found = 0, i
    for i in range(size):  # the compiler makes vectors of it, where bytes.count costs a fifth of the kernel
        found += src[i] == byte
    return found


cdef inline bint same(Bytes src, Py_ssize_t a, Py_ssize_t b, Py_ssize_t size) noexcept nogil:
    return memcmp(src + a, src + b, size) == 0


cdef inline bint equal(Bytes one, Py_ssize_t a, Bytes other, Py_ssize_t b, Py_ssize_t size) noexcept nogil:
    return memcmp(one + a, other + b, size) == 0


cdef inline unsigned long long mixed(unsigned long long key, Bytes src, Py_ssize_t start, Py_ssize_t size) noexcept nogil:
    # As MurmurHash64A: each word is mixed downwards before it goes in, so that texts which differ in their last byte differ in the low bits.
    cdef unsigned long long word, factor = 0xC6A4A7935BD1E995ULL
    cdef Py_ssize_t at = start, end = start + size
    key ^= <unsigned long long>size * factor
    while at < end:
        word = 0
        memcpy(&word, src + at, 8 if end - at >= 8 else end - at)
        word *= factor
        key = (key ^ (word ^ word >> 47) * factor) * factor
        at += 8
    key = (key ^ key >> 47) * factor
    return key ^ key >> 47


cdef inline bint starts(Bytes src, Py_ssize_t p, Py_ssize_t end, const char* word) noexcept nogil:
    cdef Py_ssize_t size = strlen(word)  # a constant, where this is inlined
    return end - p >= size and memcmp(src + p, word, size) == 0


cdef inline bint is_utf8(Bytes src, Py_ssize_t p, Py_ssize_t end) noexcept nogil:
    cdef unsigned long long word
    cdef unsigned char a, b
    while p < end:
        if end - p >= 8:
            memcpy(&word, src + p, 8)
            if not word & 0x8080808080808080ULL:
                p += 8
                continue
        a = src[p]
        if a < 0x80:
            p += 1
            continue
        if a < 0xC2 or a > 0xF4 or end - p < 2:
            return False
        b = src[p + 1]
        if b & 0xC0 != 0x80:
            return False
        if a < 0xE0:
            p += 2
            continue
        if end - p < 3 or src[p + 2] & 0xC0 != 0x80:
            return False
        if a < 0xF0:
            if (a == 0xE0 and b < 0xA0) or (a == 0xED and b > 0x9F):
                return False
            p += 3
            continue
        if end - p < 4 or src[p + 3] & 0xC0 != 0x80 or (a == 0xF0 and b < 0x90) or (a == 0xF4 and b > 0x8F):
            return False
        p += 4
    return True


cdef inline bytes cut(Bytes src, Py_ssize_t start, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char*>src + start, size)  # a slice of bytes takes three objects


cdef inline bytes big64(unsigned long long number):
    cdef unsigned char out[8]
    cdef int place
    for place in range(8):
        out[7 - place] = <unsigned char>(number >> 8 * place)
    return PyBytes_FromStringAndSize(<char*>out, 8)


cdef inline bytes fixed64(int tag, unsigned long long number):
    cdef unsigned char out[9]
    cdef int place
    out[0] = tag
    for place in range(8):
        out[place + 1] = <unsigned char>(number >> 8 * place)
    return PyBytes_FromStringAndSize(<char*>out, 9)


cdef inline Py_ssize_t put_varint(unsigned char* out, Py_ssize_t o, unsigned long long number) noexcept nogil:
    while number > 127:
        out[o] = number & 127 | 128
        number >>= 7
        o += 1
    out[o] = <unsigned char>number
    return o + 1


cdef inline Py_ssize_t varint_size(unsigned long long number) noexcept nogil:
    cdef Py_ssize_t size = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


cdef inline bytes varint(int tag, unsigned long long number):
    cdef unsigned char out[11]
    out[0] = tag
    return PyBytes_FromStringAndSize(<char*>out, put_varint(out, 1, number))


cdef inline bytes field(int tag, bytes body):
    cdef Py_ssize_t size = len(body), o
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, 1 + varint_size(size) + size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(whole)
    out[0] = tag
    o = put_varint(out, 1, size)
    memcpy(out + o, PyBytes_AS_STRING(body), size)
    return whole


cdef inline bytes attribute(int tag, bytes key, bytes value):
    cdef Py_ssize_t keys = len(key), values = len(value), o
    cdef Py_ssize_t size = 2 + varint_size(keys) + keys + varint_size(values) + values
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, 1 + varint_size(size) + size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(whole)
    out[0] = tag
    o = put_varint(out, 1, size)
    out[o] = 0x0A
    o = put_varint(out, o + 1, keys)
    memcpy(out + o, PyBytes_AS_STRING(key), keys)
    o += keys
    out[o] = 0x12
    o = put_varint(out, o + 1, values)
    memcpy(out + o, PyBytes_AS_STRING(value), values)
    return whole
