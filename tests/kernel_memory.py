"""Memory that notices stray accesses, and in it the arrays of a kernel's call."""

import copy
import ctypes
import functools
import math
import mmap

import numpy as np
from kernel_tables import (
    ALIGNMENT,
    BFLOAT16,
    MAX_LANES,
    TYPES,
    VECTOR_NUMBERS,
    KeyBlock,
    RowTile,
    Softmax,
    Total,
    pointer,
)


@functools.cache
def mprotect():
    """Return the system's function, or None if it has none."""
    try:
        return ctypes.CDLL(None).mprotect
    except (AttributeError, OSError, TypeError):
        return None


AROUND = 256  # bytes on each side of an array that are looked at


class Fence:
    """Slots of memory between pages that cannot be read, or, if the system has no mprotect, must not be written.

    Memory that is not in use is full of bytes 0xFF, a NaN in every type, and must stay so."""

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

    def allocate(self, slot, shape, dtype, at_end, *, alignment=1):
        """Return an array at the end of a slot, or at its beginning."""
        dtype = np.dtype(dtype)
        bytes = math.prod(shape) * dtype.itemsize
        whole = round_up(bytes, alignment)
        assert whole <= self.size
        low = mmap.PAGESIZE + slot * self.pitch
        start = low + self.size - whole if at_end else low
        self.used.append((start, whole, low, None))
        return np.ndarray(shape, dtype, self.bytes, start)

    def freeze(self, last=1):
        """Demand that the last arrays keep what they hold."""
        for n in range(len(self.used) - last, len(self.used)):
            start, bytes, low, _ = self.used[n]
            self.used[n] = start, bytes, low, self.map[start : start + bytes]

    def place(self, slot, data, at_end):
        """Return a copy of the data in a slot, which must not be written to."""
        array = self.allocate(slot, data.shape, data.dtype, at_end)
        array[...] = data
        self.freeze()
        return array

    def check(self):
        """Check that nothing around the arrays, nor any frozen array, was written to, and forget them."""
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
    """Hold the memory in which the arrays of a call lie: a slot for each row, each key, or each array of a tile."""

    LARGEST = 512  # keys, and columns

    def __init__(self):
        self.source, self.bias, self.mask, self.destination = (Fence(MAX_LANES, self.LARGEST * 8) for _ in range(4))
        self.apart = Fence(self.LARGEST, self.LARGEST * 8)
        self.span, self.converted = (Fence(1, self.LARGEST * (self.LARGEST + 3) * 8) for _ in range(2))
        self.tile = Fence(len(Tile.MATRICES) + len(Tile.VECTORS), MAX_LANES * self.LARGEST * 8)

    def check(self, *, tiles=True):
        """Check all memory, or all but that of tiles."""
        for name, fence in vars(self).items():
            if tiles or name != "tile":
                fence.check()

    def block(self, data, type, placement, at_end):
        """Place rows of keys or values. If they lie apart, each has unreadable pages of its own on both sides."""
        backwards = placement.endswith("backwards")
        in_memory = data[::-1] if backwards else data
        count, size = data.shape
        if placement.startswith("apart"):
            rows = [self.apart.place(slot, row, at_end) for slot, row in enumerate(in_memory)]
            stride = self.apart.pitch
        else:
            stride = {"gaps": size + 3, "repeated": 0}.get(placement, size) * data.itemsize
            room = self.span.allocate(0, [(count - 1) * stride + size * data.itemsize], np.uint8, at_end)
            rows = np.ndarray(data.shape, data.dtype, room, strides=(stride, data.itemsize))
            rows[...] = in_memory
            self.span.freeze()
        first = address(rows[-1 if backwards else 0])
        return KeyBlock(first, -stride if backwards else stride, count, size, type)


PLACEMENTS = ["contiguous", "gaps", "backwards", "apart", "apart, backwards", "repeated"]


def round_up(number, multiple):
    return -(-number // multiple) * multiple


def pack(numbers, words):
    """Return rows of bfloat16 as so many words of float32's size, which hold pairs, with 0 behind the last ones."""
    padded = np.zeros((len(numbers), 2 * words), TYPES[BFLOAT16])
    padded[:, : numbers.shape[1]] = numbers
    return padded.view(np.float32)


def unpack(words):
    return np.ascontiguousarray(words).view(TYPES[BFLOAT16])


def address(array):
    return array.__array_interface__["data"][0]  # array.ctypes would make objects that nobody needs


def pointers(arrays):
    """Return the arrays' addresses for all lanes. Lanes without a row get that of the first row."""
    addresses = [address(array) for array in arrays]
    return (pointer * MAX_LANES)(*addresses, *[addresses[0]] * (MAX_LANES - len(addresses)))


# If weights are not rounded, the two of each pair are one array.
SHARED = {"lse_sum": "row_sum", "lse_sum_carry": "row_sum_carry", "total_lse_sum": "total_sum"}


class Tile:
    """The arrays of a tile, no larger than the kernels may need, and calls of its kernels.

    `arrays` holds whole arrays, and `tile.scores` and so on are views of what the rows have: (rows, n), or (rows,). No
    kernel may write to the rest: with many rows that is the other half, with few rows what lies between the rows."""

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
        self.arrays, self.column_ranges = {}, {}  # the second: of each array, the columns that the rows have
        for slot, name in enumerate(self.MATRICES + self.VECTORS):
            if name in SHARED and not self.pairs:
                self.arrays[name] = self.arrays[SHARED[name]]
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
            self.arrays[name] = memory.tile.allocate(slot, shape, dtype, case.at_end, alignment=ALIGNMENT)
            self.column_ranges[name] = slice(first, first + count)
        self.struct = RowTile(lanes=self.lanes, layout=self.kernels.layout, pitch=pitch, output_pitch=output_pitch)
        self.select_rows(0, rows)
        if case.half is not None:
            self.select_rows(case.half, rows)
            self.is_half = True

    is_half = False

    def select_rows(self, half, rows):
        self.rows, self.first = rows, half * self.kernels.half
        mine, at = slice(self.first, self.first + rows), {}
        for name, array in self.arrays.items():
            if array.ndim == 1:
                view = array[mine]
            else:
                view = array[:, self.column_ranges[name]] if self.few else array[self.column_ranges[name], mine].T
            setattr(self, name, view)
            at[name] = address(array) + self.first * array.itemsize
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
        """Return what `exponentials` makes of the scores, and what it leaves behind an odd last one of pairs."""
        return unpack(self.scores)[:, : round_up(self.count, 2)] if self.pairs else self.scores

    @weights.setter
    def weights(self, numbers):
        if self.pairs:
            numbers = pack(numbers, round_up(self.count, 2) // 2)
        self.scores[:, : numbers.shape[1]] = numbers

    def half(self, number, rows):
        """Return a half of the tile, which has so many rows."""
        other = copy.copy(self)
        other.struct = RowTile.from_buffer_copy(self.struct)
        other.select_rows(number, rows)
        other.is_half = True
        return other

    def bytes_outside(self, kernel):
        """Return the bytes that a kernel must leave alone. Rounded weights of few rows end in a whole vector."""
        parts = []
        for name, array in self.arrays.items() if self.is_half or self.few else ():
            if self.is_half:
                parts += [array[..., : self.first], array[..., self.first + self.kernels.half :]]
            elif array.ndim == 2:
                columns = self.column_ranges[name]
                rounding = self.pairs and (kernel, name) == ("exponentials", "scores")
                stop = max(columns.stop, VECTOR_NUMBERS // 2) if rounding else columns.stop
                parts += [array[:, : columns.start], array[:, stop:]]
        return [part.tobytes() for part in parts]

    def call(self, kernel, *arguments):
        """Call a kernel, and check that it wrote to this tile alone."""
        before = self.bytes_outside(kernel)
        answer = getattr(self.kernels, kernel)(*arguments)
        assert self.bytes_outside(kernel) == before, f"{kernel} wrote to what is not this tile's"
        return answer

    def step(self, kernel, block, *, first=0):
        """Take one of the steps that read a block. `first` is the element of the output that `values` begins with."""
        array = self.at["output" if kernel == "values" else "scores"] + first * self.kernels.itemsize
        return self.call(kernel, array, self.struct, block)

    def load(self, rows):
        """Load these queries."""
        self.call("load", self.at["queries"], self.struct, pointers(rows), len(rows[0]))

    def reset(self, sinks=None):
        """Begin the softmax, with one sink for each row or without any."""
        self.call("reset", self.struct.softmax, self.struct, None if sinks is None else address(sinks))

    def merge(self, exact):
        """Merge the tile's softmax into its total."""
        self.call("merge", self.total, self.struct.softmax, self.struct, self.output.shape[1], exact)

    def store(self, softmax, destination, *, divided=True):
        """Store a softmax's output, and return what the kernel answers."""
        row_sum = softmax.row_sum if divided else None
        rows = pointers(destination)
        return self.call("store", softmax.output, row_sum, self.struct, rows, len(destination[0]))

    def logsumexp(self, softmax, destination):
        """Store the logarithms of a softmax's sums."""
        self.call("logsumexp", softmax, self.struct, pointers(destination))


def value_block(memory, case, values):
    """Return the values as the kernels take them: interleaved groups of keys lie one behind the other."""
    bundle = case.kernels.interleaves
    if bundle == 1:
        return memory.block(values, case.type, case.placement, case.at_end)
    padded = np.pad(values, ((0, -len(values) % bundle), (0, 0)), mode="edge")
    block = memory.block(interleaved(padded, bundle), case.type, "contiguous", case.at_end)
    block.count, block.stride, block.size = len(values), block.stride // bundle, values.shape[1]
    return block


def interleaved(rows, bundle):
    """Return the rows with those of each bundle of keys as one, column by column."""
    return rows.reshape(-1, bundle, rows.shape[1]).swapaxes(1, 2).reshape(len(rows) // bundle, -1)


def listed(block, order=None):
    """Return these keys, by default in their order, as a list of addresses; and this list, which must live as long."""
    order = range(block.count) if order is None else order
    addresses = np.array([block.data + int(j) * block.stride for j in order], np.uintp)
    first = int(addresses[0])
    return KeyBlock(first, block.stride, block.count, block.size, block.type, None, None, address(addresses)), addresses


def tile_with_gaps(memory, case, random):
    """Return a tile whose output may have columns beside those of the call, and a pitch that is larger than needed."""
    beside = case.few and random.random() < 0.5
    pitch = round_up(case.count, 64) + 64 * int(random.integers(3))
    start, beyond = (ALIGNMENT // case.real.itemsize, int(random.integers(1, 9))) if beside else (0, 0)
    return Tile(memory, case, pitch=pitch, start=start, beyond=beyond)


def set_total(tile, total, carries=(0, 0, 0)):
    tile.total_max[...], tile.total_sum[...], tile.total_lse_sum[...], tile.total_output[...] = total
    tile.row_sum_carry[...], tile.lse_sum_carry[...], tile.output_carry[...] = carries
