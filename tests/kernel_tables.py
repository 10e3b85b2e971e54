"""Kernel tables, called function by function: what src/tiles/tiles.h declares, and memory that notices stray
accesses."""

import copy
import ctypes
import functools
import math
import mmap

import ml_dtypes
import numpy as np

from cattn import _kernel

MAX_LANES, FEW_ROWS, ALIGNMENT = 64, 8, 64
VECTOR_NUMBERS = ALIGNMENT // 2  # of bfloat16
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
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
    _fields_ = [("rows", pointer), *fields(count_of, "stride count size"), ("type", integer), ("prefetch", pointer)]


tile_pointer, softmax_pointer, rows_pointer = map(ctypes.POINTER, (RowTile, Softmax, pointer))
Step = ctypes.CFUNCTYPE(integer, pointer, tile_pointer, ctypes.POINTER(KeyBlock))
FUNCTIONS = {
    "load": ctypes.CFUNCTYPE(None, pointer, tile_pointer, rows_pointer, count_of),
    "reset": ctypes.CFUNCTYPE(None, softmax_pointer, tile_pointer, pointer),
    **dict.fromkeys(["scores", "mark_attended", "exponentials", "values"], Step),
    "merge": ctypes.CFUNCTYPE(None, ctypes.POINTER(Total), softmax_pointer, tile_pointer, count_of, integer),
    "store": ctypes.CFUNCTYPE(integer, pointer, pointer, tile_pointer, rows_pointer, count_of),
    "logsumexp": ctypes.CFUNCTYPE(None, softmax_pointer, tile_pointer, rows_pointer),
}


class Kernels(ctypes.Structure):
    _fields_ = [
        ("layout", integer),
        *fields(count_of, "lanes half itemsize run"),
        ("type", integer),
        ("reads", ctypes.c_uint),
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
    Interleaver = ctypes.CFUNCTYPE(None, pointer, pointer, *[count_of] * 3)
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("kernels", Kernels * 2 * 4),
        *fields(Converter, "widen narrow"),
        ("round_to_float", Rounder),
        ("interleave", Interleaver),
    ]


@functools.cache
def table_of(isa):
    return Table.from_address(_kernel.table_address(isa))


def own_types(isa):
    """The types that a table has sets of kernels of its own for: the others share float32's."""
    return [type for type in range(4) if table_of(isa).kernels[type][MANY].type == type]


# Memory.


@functools.cache
def mprotect():
    """The system's, or None."""
    try:
        return ctypes.CDLL(None).mprotect
    except (AttributeError, OSError, TypeError):
        return None


AROUND = 256  # bytes


class Fence:
    """Slots of memory between pages that cannot be read, or, where the system has no mprotect, must not be written.

    What is not in use is full of bytes 0xFF, a NaN in every type, and must stay so."""

    def __init__(self, slots, size):
        page = mmap.PAGESIZE
        self.size = round_up(size, page)
        self.pitch = self.size + page
        self.map = mmap.mmap(-1, slots * self.pitch + page)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.bytes[:] = 0xFF
        self.address = self.bytes.ctypes.data
        self.used = []
        self.protected = mprotect() is not None
        for slot in range(slots + 1 if self.protected else 0):
            address = ctypes.c_void_p(self.address + slot * self.pitch)
            assert mprotect()(address, ctypes.c_size_t(page), 0) == 0

    def room(self, slot, shape, dtype, at_end, *, alignment=1):
        """An array at the end of a slot, or at its beginning."""
        dtype = np.dtype(dtype)
        bytes = math.prod(shape) * dtype.itemsize
        whole = round_up(bytes, alignment)
        assert whole <= self.size
        low = mmap.PAGESIZE + slot * self.pitch
        start = low + self.size - whole if at_end else low
        self.used.append((start, whole, low, None))
        return self.bytes[start : start + bytes].view(dtype).reshape(shape)

    def keep(self, last=1):
        """What the last arrays hold must stay so."""
        for n in range(len(self.used) - last, len(self.used)):
            start, bytes, low, _ = self.used[n]
            self.used[n] = start, bytes, low, self.map[start : start + bytes]

    def put(self, slot, data, at_end):
        array = self.room(slot, data.shape, data.dtype, at_end)
        array[...] = data
        self.keep()
        return array

    def settle(self):
        """Whether all around the arrays, and all that was put, is unchanged; forgets them."""
        for start, bytes, low, data in self.used:
            stop, high = start + bytes, low + self.size
            if not self.protected:
                low, high = low - mmap.PAGESIZE, high + mmap.PAGESIZE
            before, behind = self.map[max(low, start - AROUND) : start], self.map[stop : min(high, stop + AROUND)]
            clean = not before.strip(b"\xff") and not behind.strip(b"\xff")
            unchanged = data is None or self.map[start:stop] == data
            self.map[start:stop] = b"\xff" * bytes
            assert clean, "memory beside an array was written to"
            assert unchanged, "an input was written to"
        self.used.clear()


class Memory:
    """Where the arrays of a call lie: a slot for each row, each key, or each array of a tile."""

    LARGEST = 512  # keys, and columns

    def __init__(self):
        self.source, self.bias, self.mask, self.destination = (Fence(MAX_LANES, self.LARGEST * 8) for _ in range(4))
        self.apart = Fence(self.LARGEST, self.LARGEST * 8)
        self.span, self.converted = (Fence(1, self.LARGEST * (self.LARGEST + 3) * 8) for _ in range(2))
        self.tile = Fence(len(Tile.MATRICES) + len(Tile.VECTORS), MAX_LANES * self.LARGEST * 8)

    def settle(self, *, all=True):
        """Or all but the tiles."""
        for name, fence in vars(self).items():
            if all or name != "tile":
                fence.settle()

    def block(self, data, type, placement, at_end):
        """Rows of keys or values. Apart, each has pages of its own on both sides."""
        backwards = placement.endswith("backwards")
        lying = data[::-1] if backwards else data
        count, size = data.shape
        if placement.startswith("apart"):
            rows = [self.apart.put(slot, row, at_end) for slot, row in enumerate(lying)]
            stride = self.apart.pitch
        else:
            stride = {"gaps": size + 3, "repeated": 0}.get(placement, size) * data.itemsize
            room = self.span.room(0, [(count - 1) * stride + size * data.itemsize], np.uint8, at_end)
            rows = np.ndarray(data.shape, data.dtype, room, strides=(stride, data.itemsize))
            rows[...] = lying
            self.span.keep()
        first = address(rows[-1 if backwards else 0])
        return KeyBlock(first, -stride if backwards else stride, count, size, type)


PLACEMENTS = ["contiguous", "gaps", "backwards", "apart", "apart, backwards", "repeated"]


def round_up(number, multiple):
    return -(-number // multiple) * multiple


def pack(numbers, words):
    """Rows of bfloat16 as so many words of float32's size, which hold pairs: 0 behind the last ones."""
    padded = np.zeros((len(numbers), 2 * words), TYPES[BFLOAT16])
    padded[:, : numbers.shape[1]] = numbers
    return padded.view(np.float32)


def unpack(words):
    return np.ascontiguousarray(words).view(TYPES[BFLOAT16])


def address(array):
    return array.ctypes.data


def pointers(arrays):
    """For all lanes: those without a row read what the first row reads."""
    addresses = [address(array) for array in arrays]
    return (pointer * MAX_LANES)(*addresses, *[addresses[0]] * (MAX_LANES - len(addresses)))


# Where weights are not rounded, these two are one.
SHARED = {"lse_sum": "row_sum", "lse_sum_carry": "row_sum_carry", "total_lse_sum": "total_sum"}


class Tile:
    """The arrays of a tile, as large as src/workspace.pxd makes them, and calls of its kernels.

    `tile.scores` and so on are views of what the rows have: (rows, n), or (rows,). A half of a tile of many rows must
    leave the lanes of the other as they are, and few rows what lies between them."""

    MATRICES = (
        *("queries", "scores", "attn_bias", "attended"),
        *("output", "block_output", "output_carry", "total_output"),
    )
    VECTORS = (
        *("block_max", "row_scale", "row_max", "row_sum", "lse_sum", "row_sum_carry", "lse_sum_carry"),
        *("total_max", "total_sum", "total_lse_sum"),
    )

    def __init__(self, memory, case, *, rows=None, pitch=0, start=0, beyond=0):
        rows = case.rows if rows is None else rows
        self.kernels, self.few, self.real, self.at_end = case.kernels, case.few, case.real, case.at_end
        self.pairs, self.count = case.pairs, case.count
        self.lanes = rows if self.few else self.kernels.lanes
        self.start, pitch, output_pitch = start, max(pitch, round_up(case.count, 64)), start + case.size + beyond
        self.lying, self.columns = {}, {}
        for slot, name in enumerate(self.MATRICES + self.VECTORS):
            if name in SHARED and not self.pairs:
                self.lying[name] = self.lying[SHARED[name]]
                continue
            dtype = np.dtype(np.uint8) if name == "attended" else self.real
            first, count, row = 0, case.size, output_pitch
            if name == "queries":
                if self.pairs:
                    whole = VECTOR_NUMBERS if self.few else case.kernels.interleaves
                    count = round_up(case.size, whole) // 2
                row = count
            elif name in ("scores", "attended", "attn_bias"):
                count, row = case.count, pitch
            elif name != "block_output":
                first = start if self.few else 0
            if name in self.VECTORS:
                shape = [MAX_LANES]
            elif (name == "attn_bias" and self.few) or (
                name == "block_output" and (self.few or case.count <= self.kernels.run)
            ):
                shape = [0, 0]
            else:
                shape = [rows, row] if self.few else [count, self.lanes]
            self.lying[name] = memory.tile.room(slot, shape, dtype, case.at_end, alignment=ALIGNMENT)
            self.columns[name] = slice(first, first + count)
        self.struct = RowTile(lanes=self.lanes, layout=self.kernels.layout, pitch=pitch, output_pitch=output_pitch)
        self.point(0, rows)
        if case.half is not None:
            self.point(case.half, rows)
            self.is_half = True

    is_half = False

    def point(self, half, rows):
        self.rows, self.first = rows, half * self.kernels.half
        mine, at = slice(self.first, self.first + rows), {}
        for name, lying in self.lying.items():
            if lying.ndim == 1:
                view = lying[mine]
            else:
                view = lying[:, self.columns[name]] if self.few else lying[self.columns[name], mine].T
            setattr(self, name, view)
            at[name] = address(lying) + self.first * lying.itemsize
        for name in ("output", "output_carry", "total_output") if self.few else ():
            at[name] += self.start * self.real.itemsize
        self.at, struct = at, self.struct
        struct.rows = rows
        for name in ["queries", "scores", "attn_bias", "attended", "block_max", "row_scale", "block_output"]:
            setattr(struct, name, at[name])
        struct.softmax = Softmax(*(at[name] for name in ("row_max", "row_sum", "lse_sum", "output")))
        total = Softmax(*(at[name] for name in ("total_max", "total_sum", "total_lse_sum", "total_output")))
        self.total = Total(total, *(at[name] for name in ("row_sum_carry", "lse_sum_carry", "output_carry")))

    @property
    def weights(self):
        """What `exponentials` makes of the scores, and what it leaves behind an odd last one of pairs."""
        return unpack(self.scores)[:, : round_up(self.count, 2)] if self.pairs else self.scores

    @weights.setter
    def weights(self, numbers):
        if self.pairs:
            numbers = pack(numbers, round_up(self.count, 2) // 2)
        self.scores[:, : numbers.shape[1]] = numbers

    def half(self, number, rows):
        other = copy.copy(self)
        other.struct = RowTile.from_buffer_copy(self.struct)
        other.point(number, rows)
        other.is_half = True
        return other

    def beside(self, kernel):
        """The bytes of all that it must leave alone. Rounded weights of few rows end in a whole vector."""
        parts = []
        for name, lying in self.lying.items():
            if self.is_half:
                parts += [lying[..., : self.first], lying[..., self.first + self.kernels.half :]]
            elif self.few and lying.ndim == 2:
                columns = self.columns[name]
                rounding = self.pairs and (kernel, name) == ("exponentials", "scores")
                stop = max(columns.stop, VECTOR_NUMBERS // 2) if rounding else columns.stop
                parts += [lying[:, : columns.start], lying[:, stop:]]
        return [part.tobytes() for part in parts]

    def call(self, kernel, *arguments):
        before = self.beside(kernel)
        answer = getattr(self.kernels, kernel)(*arguments)
        assert self.beside(kernel) == before, f"{kernel} wrote to what is not this tile's"
        return answer

    def step(self, kernel, block, *, first=0):
        """`first` is the element of the output that the kernel `values` is given as its first one."""
        array = self.at["output" if kernel == "values" else "scores"] + first * self.kernels.itemsize
        return self.call(kernel, array, self.struct, block)

    def load(self, rows):
        self.call("load", self.at["queries"], self.struct, pointers(rows), len(rows[0]))

    def reset(self, sinks=None):
        self.call("reset", self.struct.softmax, self.struct, None if sinks is None else address(sinks))

    def merge(self, selecting):
        self.call("merge", self.total, self.struct.softmax, self.struct, self.output.shape[1], selecting)

    def store(self, softmax, destination, *, divided=True):
        row_sum = softmax.row_sum if divided else None
        rows = pointers(destination)
        return self.call("store", softmax.output, row_sum, self.struct, rows, len(destination[0]))

    def logsumexp(self, softmax, destination):
        self.call("logsumexp", softmax, self.struct, pointers(destination))
