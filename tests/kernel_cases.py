"""The calls that test_kernels.py makes: their sizes, arrays and modifiers, and how exact an answer must be.

Tolerances are counts of roundings: u · (the longest chain of additions) · Σ |terms|."""

import copy
import ctypes
import dataclasses
import itertools
import math
import zlib

import numpy as np
from kernel_memory import PLACEMENTS, Memory, pointers
from kernel_tables import (
    ALIGNMENT,
    BFLOAT16,
    FEW,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MANY,
    MAX_LANES,
    OF_MANY,
    TYPES,
    ScoreMod,
    contents,
    own_types,
    table_of,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold what differs between two calls of a function. `number` seeds the rest."""

    function: str
    isa: str
    own: int  # the type that the set of kernels is for
    few: bool
    rows: int
    count: int
    size: int
    type: int  # that keys and values are stored in
    half: int | None = None
    placement: str = "contiguous"
    at_end: bool = True
    modifiers: tuple = ()
    special: bool = False
    number: int = 0

    @property
    def kernels(self):
        return table_of(self.isa).kernels[self.own][FEW if self.few else MANY]

    @property
    def real(self):
        return TYPES[FLOAT64 if self.own == FLOAT64 else FLOAT32]

    @property
    def pairs(self):
        """Return whether queries, keys, weights and values meet as pairs of bfloat16."""
        return bool(self.kernels.rounds_weights)

    def scales_late(self, scale):
        """Return whether scores come without this scale, so that `exponentials` applies it."""
        return bool(self.kernels.scales_late) and scale > 0 and not {"softcap", "bias", "alibi"} & {*self.modifiers}

    def __str__(self):
        layout = "few" if self.few else "many" if self.half is None else f"half {self.half} of many"
        return (
            f"{self.function} {self.isa} {TYPES[self.own]}, {layout} "
            f"rows={self.rows} count={self.count} size={self.size} "
            f"type={self.type} keys={self.placement} pages={'behind' if self.at_end else 'before'} "
            f"modifiers={'+'.join(self.modifiers) or None} special={self.special} number={self.number}"
        )


# Each function that is checked, and the numbers of a case that it depends on.
AXES = {
    "load": "rows size",
    "reset": "rows",
    "scores": "rows count size",
    "maxima": "rows count size",
    "differentiate": "rows count",
    "query_gradients": "rows count size",
    "join": "size",
    "dots": "count size",
    "mark_attended": "rows count",
    "exponentials": "rows count",
    "values": "rows count size",
    "merge": "rows size",
    "merges": "rows",
    "store": "rows size",
    "logsumexp": "rows",
    "rows": "rows count size",
    "widen": "size",
    "narrow": "size",
    "multiply": "size",
    "round_to_float": "size",
    "interleave": "count size",
}
STORED = {"scores", "maxima", "mark_attended", "values", "rows"}  # read half types, too
HALVES = {"scores", "mark_attended", "exponentials", "values"}
MOST_WORK = 1 << 17  # rows · keys · columns
MODIFIERS = ["softcap", "bias", "alibi", "mask", "interval"]


def edges(most, *units):
    """Return numbers up to `most`: small ones, primes, round ones, and those around multiples of the units."""
    around = {i * unit + step for unit in units for i in (1, 2, 4) for step in (-1, 0, 1)}
    numbers = {*range(1, 10), 11, 13, 23, 37, 48, 64, 80, 97, 128, 257, most - 1, most} | around
    return sorted(number for number in numbers if 0 < number <= most)


def kernel_sets(function, isa, others=()):
    """Return the sets of kernels that have a function, as pairs (type, few), without those that another table has."""
    every = [
        pair
        for pair in itertools.product(own_types(isa), [False, True])
        if all(identity(function, isa, *pair) != identity(function, other, *pair) for other in others)
    ]
    interleaves = [(own, few) for own, few in every if table_of(isa).kernels[own][FEW if few else MANY].interleaves > 1]
    if function in OF_MANY:  # bfloat16 has gradients in float32
        return [(own, few) for own, few in every if not few and (function == "maxima" or own != BFLOAT16)]
    return interleaves if function == "interleave" else every


def identity(function, isa, own, few):
    """Return what is equal for two tables where a function and all that it works with are the same."""
    table = table_of(isa)
    if hasattr(table, function):  # it is one for all types
        return ctypes.cast(getattr(table, function), ctypes.c_void_p).value
    return contents(table.kernels[own][FEW if few else MANY])


def cases(function, isa, rounds, others=()):
    """Yield every awkward number of rows, of keys and of columns, each with some number of the others.

    A case of `rows` is half a dozen calls of all kernels. In a single round, float32 and float64 take the numbers in
    turns.
    """
    random = np.random.default_rng(zlib.crc32(f"{function} {isa}".encode()))
    number = itertools.count()
    for _, (own, few) in itertools.product(range(rounds), kernel_sets(function, isa, others)):
        kernels = table_of(isa).kernels[own][FEW if few else MANY]
        width = ALIGNMENT // TYPES[own].itemsize
        axes = {
            "rows": edges(kernels.lanes, kernels.lanes // 4, kernels.half),
            "count": edges(kernels.most, *([12, 48, 64] if few else [kernels.run, 6, 12])),
            "size": edges(Memory.LARGEST if few else 129, width, 6, 12, min(16 * width, 256) if few else 16),
        }
        types = [type for type in range(4) if kernels.reads >> type & 1]
        step = 2 if function == "rows" and rounds == 1 and own != BFLOAT16 else 1
        for axis in AXES[function].split():
            for value in axes[axis][(own + few) % step :: step]:
                chosen = {axis: value}
                while len(chosen) < 3 or math.prod(chosen.values()) > MOST_WORK:
                    chosen = {name: int(random.choice(values)) for name, values in axes.items()} | {axis: value}
                half = None
                if kernels.half < kernels.lanes and function in HALVES and random.random() < 0.5:
                    half = int(random.integers(2))
                    chosen["rows"] = min(chosen["rows"], kernels.half)
                yield Case(
                    function,
                    isa,
                    own,
                    few,
                    **chosen,
                    type=int(random.choice(types)) if function in STORED else own,
                    half=half,
                    placement=str(random.choice(PLACEMENTS)),
                    at_end=bool(random.random() < 0.6),
                    modifiers=tuple(name for name in MODIFIERS if random.random() < 0.4),
                    special=bool(random.random() < 0.4),
                    number=next(number),
                )


# What is expected.


def wide(real):
    return np.float64 if real.itemsize == 4 else np.longdouble


def unit(real):
    return np.finfo(real).eps / 2


def tiny(real):
    return np.finfo(real).tiny


def chain(case, n):
    """Return the roundings on the longest way through the sum of n terms. Chains have 20 terms, or 16 if their number
    grows with n, and few sums are joined behind them. Chains of pairs have the 80 keys of a block."""
    return (84 if case.pairs else 24) + n / 16


def sum_tolerance(case, n, sizes):
    """Return the tolerance of a sum of n products whose sizes add up to `sizes`, and of the expected sum."""
    return (chain(case, n) * unit(case.real) + n * np.finfo(wide(case.real)).eps) * sizes + tiny(case.real)


def exponential_tolerance(real, x, power):
    """Return the tolerance of power = exp(x). What rounding takes from the difference that x is, from its product with
    log2(e), and from that number adds up to 4 u · |x|. On top come the polynomial and its steps, which are off by 4 eps
    at most, and what is below the smallest normal number."""
    with np.errstate(invalid="ignore"):
        return np.where(power == 0, 0, (4 * np.abs(x) + 8) * unit(real) * power) + tiny(real)


def rounded(number, tolerance):
    """Return what a number so close to a positive one is in bfloat16, and how far from that it may be. What is below
    the smallest normal number may become 0."""
    least, most = (
        np.maximum(x, 0).astype(TYPES[BFLOAT16]).astype(np.float64) for x in (number - tolerance, number + tolerance)
    )
    return (least + most) / 2, (most - least) / 2


def assert_close(what, got, expected, tolerance):
    """Assert that each number is as close to the expected one as its tolerance says."""
    got, expected, tolerance = np.broadcast_arrays(got, expected, tolerance)
    with np.errstate(invalid="ignore"):
        good = (got == expected) | (np.isnan(got) & np.isnan(expected)) | (np.abs(got - expected) <= tolerance)
    if not good.all():
        at = tuple(np.argwhere(~good)[0].tolist())
        raise AssertionError(
            f"{what}{list(at)}: expected {expected[at]!r} ± {float(tolerance[at]):.3g}, got {got[at]!r}"
        )


def assert_same(what, got, expected):
    """Assert that two arrays are equal bit for bit, but for what kind of NaN a NaN is."""
    got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    bits = f"u{got.itemsize}"
    good = (got.view(bits) == expected.view(bits)) | (np.isnan(got) & np.isnan(expected))
    if not good.all():
        at = tuple(np.argwhere(~good)[0].tolist())
        raise AssertionError(f"{what}{list(at)}: expected exactly {expected[at]!r}, got {got[at]!r}")


def products(x, y, real):
    """Return x @ y and Σ |terms|. Columns of y that are not finite are multiplied row by row."""
    x, y = x.astype(wide(real)), y.astype(wide(real))
    finite = np.isfinite(y).all(axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        tame = np.where(finite, y, 0)
        result = x @ tame
        for column in np.flatnonzero(~finite):
            result[:, column] = (x * y[:, column]).sum(axis=1)
        return result, np.abs(x) @ np.abs(tame)


def stored(random, shape, case):
    """Return random rows of keys or values: as they are stored, and the numbers that they are."""
    numbers = random.standard_normal(shape)
    if case.placement == "repeated":
        numbers[:] = numbers[0]
    elif case.special:
        for special in (np.nan, np.inf, -np.inf):
            if random.random() < 0.7:
                numbers[random.integers(shape[0]), random.integers(shape[1])] = special
    numbers = numbers.astype(TYPES[case.type])
    return numbers.view(np.uint16) if case.type in (FLOAT16, BFLOAT16) else numbers, numbers.astype(case.real)


class Modifiers:
    """Hold what a case asks to be done to scores, for some rows."""

    def __init__(self, case, random):
        shape = case.rows, case.count
        self.case, self.kinds, self.count = case, set(case.modifiers), case.count
        self.softcap = float(random.choice([0.5, 2.0, 30.0]))
        self.bias = random.standard_normal(shape).astype(case.real)
        self.bias[random.random(shape) < 0.1] = -np.inf
        if case.special:
            self.bias[random.random(shape) < 0.02] = np.nan
            self.bias[random.random(shape) < 0.02] = np.inf
        self.slope = random.choice([0, 0.25, 1 / 3, 2.0], case.rows)
        self.distance = random.integers(-case.count, 2 * case.count + 1, case.rows).astype(float)
        self.mask = random.choice([0, 1, 1, 255], shape).astype(np.uint8)
        self.start = np.where(random.random(case.rows) < 0.1, -(2**40), random.integers(-2, case.count + 2, case.rows))
        self.stop = np.where(random.random(case.rows) < 0.1, 2**40, random.integers(-2, case.count + 3, case.rows))

    def of(self, rows, extra):
        """Return the modifiers of some rows, with so many masked keys behind the last one."""
        other = copy.copy(self)
        for name in ["bias", "mask", "slope", "distance", "start", "stop"]:
            setattr(other, name, getattr(self, name)[rows])
        if extra > 0:
            other.kinds = self.kinds | {"interval"}
            other.count = self.count + extra
            if "interval" not in self.kinds:
                other.start, other.stop = np.full(len(rows), -1), np.full(len(rows), self.count)
            other.stop = np.minimum(other.stop, self.count)
            other.bias, other.mask = (
                np.pad(x, ((0, 0), (0, extra)), constant_values=1) for x in (other.bias, other.mask)
            )
        return other

    def pass_to(self, tile, memory):
        """Point the tile to them."""
        if not self.kinds:
            tile.struct.score_mod = None
            return
        none = [0.0] * (MAX_LANES - len(self.bias))
        tile.score_mod = mod = ScoreMod(softcap=self.softcap if "softcap" in self.kinds else 0)
        for name in MODIFIERS[1:]:
            setattr(mod, f"has_{name}", name in self.kinds)
            mod.adds |= name in self.kinds
        for name in {"bias", "mask"} & self.kinds:
            fence = getattr(memory, name)
            rows = [fence.place(slot, row, self.case.at_end) for slot, row in enumerate(getattr(self, name))]
            setattr(mod, name, pointers(rows))
        if "alibi" in self.kinds:
            mod.slope[:], mod.distance[:] = self.slope.tolist() + none, self.distance.tolist() + none
        if "interval" in self.kinds:
            mod.start[:] = self.start.tolist() + [0] * len(none)
            mod.stop[:] = self.stop.tolist() + [self.count] * len(none)
        tile.struct.score_mod = ctypes.addressof(mod)

    def expect(self, scores, tolerance):
        """Return what becomes of scores, whether each is masked, and the tolerance. Each step rounds once or twice. The
        quotient of the softcap, and the exponential in it, round a few times more."""
        kinds, real = self.kinds, self.case.real
        key = np.arange(self.case.count)
        masked = np.zeros(scores.shape, bool)
        sizes = np.zeros(scores.shape, scores.dtype)
        with np.errstate(invalid="ignore"):
            if "softcap" in kinds:
                scores = self.softcap * np.tanh(scores / self.softcap)
                tolerance = tolerance + 16 * unit(real) * np.abs(scores)
            sizes += np.abs(scores)
            if "bias" in kinds:
                scores = scores + self.bias
                masked |= self.bias == -np.inf
                sizes += np.abs(self.bias)
            if "alibi" in kinds:
                added = self.slope[:, None] * np.abs(self.distance[:, None] - key)
                scores = scores - added
                sizes += added
            if "mask" in kinds:
                masked |= self.mask == 0
            if "interval" in kinds:
                masked |= (key < self.start[:, None]) | (key >= self.stop[:, None])
            tolerance = tolerance + 6 * unit(real) * np.where(np.isfinite(sizes), sizes, 0)
        return scores, masked, tolerance
