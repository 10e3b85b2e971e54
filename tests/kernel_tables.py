"""The kernel tables of the built module, and what src/tiles/tiles.h declares, for ctypes."""

import ctypes
import functools

import ml_dtypes
import numpy as np

from cattn import _kernel

MAX_LANES, FEW_ROWS, ALIGNMENT = 64, 8, 64
VECTOR_NUMBERS = ALIGNMENT // 2  # of bfloat16
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
INT8 = 6
TYPES = [np.dtype(type) for type in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
MANY, FEW = range(2)
integer, count_of, pointer = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_void_p


def fields(type, names):
    return [(name, type) for name in names.split()]


class ScoreMod(ctypes.Structure):
    _fields_ = [
        ("softcap", ctypes.c_double),
        ("bias", pointer * MAX_LANES),
        *fields(ctypes.c_double * MAX_LANES, "slope distance"),
        ("mask", pointer * MAX_LANES),
        *fields(count_of * MAX_LANES, "start stop"),
        *fields(integer, "has_bias has_alibi has_mask has_interval adds"),
    ]


class Softmax(ctypes.Structure):
    _fields_ = fields(pointer, "row_max row_sum lse_sum output")


class Total(ctypes.Structure):
    _fields_ = [("softmax", Softmax), *fields(pointer, "row_sum_carry lse_sum_carry output_carry")]


class RowTile(ctypes.Structure):
    _fields_ = [
        *fields(count_of, "rows lanes pitch output_pitch"),
        ("scale", ctypes.c_double),
        ("score_mod", pointer),
        *fields(pointer, "queries scores attn_bias attended block_max row_scale block_output"),
        ("softmax", Softmax),
        *fields(integer, "layout is_new"),
    ]


class KeyBlock(ctypes.Structure):
    _fields_ = [
        ("data", pointer),
        *fields(count_of, "stride count size"),
        ("type", integer),
        *fields(pointer, "prefetch scales list"),
    ]


class Maxima(ctypes.Structure):
    _fields_ = [
        *fields(pointer, "largest index"),
        ("first", ctypes.c_int64),
        ("ahead", pointer),
        ("ahead_stride", count_of),
        ("asks_within", integer),
    ]


class GradientTile(ctypes.Structure):
    _fields_ = [
        *fields(count_of, "rows keys"),
        *fields(pointer, "score_mod lse delta weights gradients bias_gradients slope_gradient"),
    ]


tile_pointer, softmax_pointer, rows_pointer = map(ctypes.POINTER, (RowTile, Softmax, pointer))
Step = ctypes.CFUNCTYPE(integer, pointer, tile_pointer, ctypes.POINTER(KeyBlock))
FUNCTIONS = {
    "load": ctypes.CFUNCTYPE(None, pointer, tile_pointer, rows_pointer, count_of),
    "reset": ctypes.CFUNCTYPE(None, softmax_pointer, tile_pointer, pointer),
    **dict.fromkeys(["scores", "mark_attended", "exponentials", "values"], Step),
    "merge": ctypes.CFUNCTYPE(None, ctypes.POINTER(Total), softmax_pointer, tile_pointer, count_of, integer),
    "store": ctypes.CFUNCTYPE(integer, pointer, pointer, tile_pointer, rows_pointer, count_of),
    "logsumexp": ctypes.CFUNCTYPE(None, softmax_pointer, tile_pointer, rows_pointer),
    "maxima": ctypes.CFUNCTYPE(None, ctypes.POINTER(Maxima), tile_pointer, ctypes.POINTER(KeyBlock)),
    "differentiate": ctypes.CFUNCTYPE(None, ctypes.POINTER(GradientTile)),
    "query_gradients": ctypes.CFUNCTYPE(None, pointer, count_of, pointer, count_of, ctypes.POINTER(KeyBlock), integer),
    "join": ctypes.CFUNCTYPE(None, pointer, pointer, pointer, count_of),
    "dots": ctypes.CFUNCTYPE(None, pointer, ctypes.POINTER(KeyBlock), ctypes.POINTER(KeyBlock)),
}
OF_MANY = ("maxima", "differentiate", "query_gradients", "join", "dots")  # few rows have none of these


class Kernels(ctypes.Structure):
    _fields_ = [
        ("layout", integer),
        *fields(count_of, "lanes half itemsize run"),
        ("type", integer),
        ("reads", ctypes.c_uint),
        ("takes_lists", count_of),
        *fields(integer, "rounds_weights scales_late"),
        ("interleaves", count_of),
        *fields(count_of, "most least bytes step chunk_blocks least_chunk most_chunk"),
        *FUNCTIONS.items(),
    ]


def contents(kernels):
    """Return the bytes of each field, without those that lie between fields."""
    data, places = bytes(kernels), [getattr(Kernels, name) for name, _ in Kernels._fields_]
    return [data[place.offset : place.offset + place.size] for place in places]


class Table(ctypes.Structure):
    Converter = ctypes.CFUNCTYPE(None, pointer, pointer, integer, count_of)
    Rounder = ctypes.CFUNCTYPE(None, pointer, pointer, count_of)
    Multiplier = ctypes.CFUNCTYPE(None, pointer, pointer, *[count_of] * 2)
    Interleaver = ctypes.CFUNCTYPE(None, pointer, pointer, *[count_of] * 2)
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kernels", Kernels * 2 * 4),
        *fields(Converter, "widen narrow"),
        ("round_to_float", Rounder),
        ("multiply", Multiplier),
        ("interleave", Interleaver),
    ]


@functools.cache
def table_of(isa):
    return Table.from_address(_kernel.table_address(isa))


def own_types(isa):
    """Return the types that a table has kernels of its own for. The others share float32's."""
    return [type for type in range(4) if table_of(isa).kernels[type][MANY].type == type]
