# Storage types in typed loops: widened to float32, and the half types narrowed back.

from libc.stdint cimport int8_t, int32_t, uint16_t, uint32_t

from problem cimport cattn_type, CATTN_FLOAT16, CATTN_INT8
from tiles.portable_float cimport FloatBits


cdef inline float widen_half(int32_t half) noexcept nogil:
    """Return a float16 as a float32, without a branch, so that compilers take many at a time.

    The exponent's bias grows from 15 to 128 first. That makes a number twice as large. It makes one of exponent 0
    normal, because tasks take subnormal numbers for 0, and 2^-14 too large. The smaller of both ways back is the right
    one. The largest exponent becomes the largest.
    """
    cdef int32_t magnitude = (half & 0x7fff) << 13
    cdef FloatBits twice, result
    cdef float normal, subnormal
    twice.bits = magnitude + (113 << 23)
    normal = twice.value * <float>0.5
    subnormal = twice.value - <float>6.103515625e-05
    result.value = normal if normal < subnormal else subnormal
    result.bits |= (0x7f800000 if magnitude >= 31 << 23 else 0) | <uint32_t>(half & 0x8000) << 16
    return result.value


cdef inline uint16_t narrow_half(float value) noexcept nogil:
    """Return a float32 as a float16, rounded to nearest, ties to even."""
    cdef FloatBits x, rounded
    cdef uint16_t sign
    x.value = value
    sign = <uint16_t>((x.bits >> 16) & 0x8000)
    x.bits &= 0x7fffffff
    if x.bits > 0x7f800000:
        return sign | 0x7e00
    if x.bits >= 0x477ff000:   # 65520, halfway between the largest float16 and the next step
        return sign | 0x7c00
    if x.bits < 0x38800000:   # 2^-14: adding 1/2 leaves the integer multiple of 2^-24, rounded, in the last bits
        rounded.value = x.value + <float>0.5
        return sign | <uint16_t>(rounded.bits - 0x3f000000)
    x.bits += 0xfff + ((x.bits >> 13) & 1)
    return sign | <uint16_t>((x.bits - 0x38000000) >> 13)


cdef inline uint16_t narrow_brain(float value) noexcept nogil:
    """Return a float32 as a bfloat16, rounded to nearest, ties to even."""
    cdef FloatBits x
    x.value = value
    if value != value:
        return <uint16_t>((x.bits >> 16) | 0x40)
    return <uint16_t>((x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16)


cdef inline void widen(void *to, const char *source, cattn_type type, Py_ssize_t count) noexcept nogil:
    cdef const uint16_t *halves = <const uint16_t *>source
    cdef float *wide = <float *>to
    cdef FloatBits x
    cdef Py_ssize_t i
    if type == CATTN_FLOAT16:
        for i in range(count):
            wide[i] = widen_half(halves[i])
    elif type == CATTN_INT8:
        for i in range(count):
            wide[i] = (<const int8_t *>source)[i]
    else:
        for i in range(count):
            x.bits = <uint32_t>halves[i] << 16
            wide[i] = x.value


cdef inline void narrow(char *to, const void *source, cattn_type type, Py_ssize_t count) noexcept nogil:
    cdef const float *values = <const float *>source
    cdef Py_ssize_t i
    for i in range(count):
        (<uint16_t *>to)[i] = narrow_half(values[i]) if type == CATTN_FLOAT16 else narrow_brain(values[i])


cdef inline void multiply(void *x, const float *factors, Py_ssize_t step, Py_ssize_t count) noexcept nogil:
    cdef float *numbers = <float *>x
    cdef Py_ssize_t i
    if step == 0:
        for i in range(count):
            numbers[i] *= factors[0]
    else:
        for i in range(count):
            numbers[i] *= factors[i]
