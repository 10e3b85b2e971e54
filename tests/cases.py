"""Random problems from a seed: `case(seed)` is a dict of the arguments of `attention`.

Lengths and head sizes crowd around the edges of tiles and include primes, arrays come in all kinds of memory, and any
modifier may stand beside any other. Nothing in a case is NaN, and only a bias or a sink is infinite.
"""

import math

import ml_dtypes
import numpy as np

from cattn import _modifiers

TYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CORE = frozenset({"scale", "causal", "query_offset", "key_range", "mask", "layout"})
MODIFIERS = frozenset(_modifiers.MODIFIERS) | {"layout"}

EDGES = [tile + step for tile in (6, 8, 16, 32, 48, 64, 96, 128, 192) for step in (-1, 0, 1)]
PRIMES = [2, 3, 5, 7, 11, 13, 19, 29, 37, 53, 71, 101, 149, 197, 251, 293]
HEAD_SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 47, 63, 64, 65, 80, 96, 127, 128, 129, 130]


def case(seed, *, modifiers=MODIFIERS, types=tuple(TYPES), key_type=None, work=500_000, least_work=0):
    """Return a problem with any of `modifiers` and one of `types`, of `least_work` to `work` multiplications or so.

    Key and value have query's type, or `key_type`.
    """
    return _Draw(seed, modifiers, types, key_type).case(work, least_work)


def with_int8(case, seed):
    """Return a problem with int8 keys and values of the same shapes, and scales that vary along either axis, or none.

    One of float64 stays as it is, because float64 queries stand beside no int8.
    """
    if case["query"].dtype.newbyteorder("=") == np.float64:
        return case
    draw = _Draw([seed, 8], frozenset(), ("float32",), None)
    result = dict(case)
    for name in ("key", "value"):
        if name not in case:
            continue
        shape = case[name].shape
        keys = len(shape) - (3 if case.get("layout") == "blhd" else 2)
        result[name] = draw.store(draw.random.integers(-128, 128, shape).astype(np.int8))
        sizes = list(shape)
        for axis in draw.one_of([(keys,), (len(shape) - 1,), (keys, len(shape) - 1)]):
            sizes[axis] = 1
        largest = 0 if name == "key" else 2 if case["query"].dtype.itemsize == 2 else 3  # float16 ends at 65504
        scale = 10 ** draw.random.uniform(-6, largest, sizes) * draw.one_of([-1, 1])
        scale[draw.random.random(sizes) < draw.one_of([0, 0, 0.2])] = 0
        dtype = TYPES[draw.one_of(["float32", "float32", "float64", "bfloat16"])]
        result[f"{name}_scale"] = draw.store(scale.astype(dtype))
    return result


def taken_by(function):
    """Return the modifiers that a function takes."""
    return frozenset(name for name, row in _modifiers.MODIFIERS.items() if function not in row.without)


def flat_case(seed, dtype, work=8_000_000):
    """Return a problem with nearly equal weights over 300 to 20,000 keys, and the kind of its values.

    Rounding errors of sums add up there. The kind is "equal" (in each column), "positive" or "normal".
    """
    random = np.random.default_rng([seed, 300])
    while True:
        keys = int(300 * (20_000 / 300) ** random.random())
        rows = int(random.integers(1, 9) if random.random() < 0.4 else random.integers(9, 80))
        heads = int(random.integers(1, 4))
        size, value_size = random.choice([1, 2, 3, 8, 16, 33, 64, 80, 128, 256], 2)
        if heads * rows * keys * (size + value_size) <= work:
            break
    sigma = 0 if random.random() < 0.4 else random.random()
    kind = str(random.choice(["equal", "positive", "normal"]))
    shape = (heads, 1 if kind == "equal" else keys, value_size)
    lowest = random.choice([0, 0.5, 0.9])
    value = random.standard_normal(shape) if kind == "normal" else random.uniform(lowest, 1, shape)
    result = {
        "query": (sigma * random.standard_normal((heads, rows, size))).astype(dtype),
        "key": random.standard_normal((heads, keys, size)).astype(dtype),
        "value": np.broadcast_to(value, (heads, keys, value_size)).astype(dtype),
    }
    modifier = random.choice(["none", "causal", "mask", "key_lengths", "sinks"], p=[0.3, 0.25, 0.25, 0.1, 0.1])
    if modifier == "causal":
        result |= {"causal": True, "query_offset": "end"}
    elif modifier == "mask":
        result["mask"] = random.random((rows, keys)) < random.choice([0.5, 0.9, 0.99])
    elif modifier == "key_lengths":
        result["key_lengths"] = int(random.integers(keys // 2, keys + 1))
    elif modifier == "sinks":
        result["sinks"] = random.uniform(0, 3, heads)
    return result, kind


def alike_case(seed, dtype, entries):
    """Return a batch of small heads with nearly flat weights, over one to four runs of keys and a rest, or few keys.

    In columns whose values have one sign, the terms of the sum are alike, and may round the same way each time. No
    other cases came nearer to the bound. Other heads have values of either sign.
    """
    random = np.random.default_rng([seed, 20])
    rows = int(random.integers(1, 9) if random.random() < 0.3 else random.integers(9, 33))
    runs = 20 * int(random.integers(1, 5)) + int(random.integers(-2, 6))
    attended = runs if random.random() < 0.7 else int(random.integers(2, 120))
    how = random.choice(["all keys", "window", "key_range"])
    keys = attended if how == "all keys" else attended + int(random.integers(60))
    size, value_size = int(random.choice([1, 2, 4])), int(random.choice([1, 2, 3, 8, 16]))
    sigma = random.choice([0, 0.003, 0.01, 0.03, 0.1, 0.3]) * random.uniform(0.3, 1)
    lowest = random.choice([-1, 0, 0.5, 0.9, 0.99, 1])
    value = random.uniform(lowest, 1, (entries, 1, keys, value_size))
    if lowest < 0 and random.random() < 0.5:
        value = random.standard_normal(value.shape)
    result = {
        "query": (sigma * random.standard_normal((entries, 1, rows, size))).astype(dtype),
        "key": random.standard_normal((entries, 1, keys, size)).astype(dtype),
        "value": (value * random.uniform(0.5, 1, (entries, 1, 1, value_size))).astype(dtype),
    }
    if how == "window":
        result |= {"window": (attended - 1, 0), "query_offset": int(random.integers(-3, keys))}
    elif how == "key_range":
        start = random.integers(0, keys - attended + 1, (entries, 1, rows))
        result["key_range"] = (start, start + attended)
    return result


def describe(case):
    """Return a case in one line, for the message of a failing test."""

    def short(x):
        if isinstance(x, tuple):
            return f"({', '.join(map(short, x))})"
        return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) and x.ndim else repr(x)

    return ", ".join(f"{name}={short(x)}" for name, x in case.items())


class _Draw:
    def __init__(self, seed, modifiers, types, key_type):
        self.random = np.random.default_rng(seed)
        self.apart = np.random.default_rng(np.append(seed, 1))  # for what no other choice depends on
        self.modifiers = modifiers
        self.dtype = TYPES[self.one_of(types, p=[4 if name == "float32" else 1 for name in types])]
        self.key_dtype = self.dtype if key_type is None else TYPES[key_type]
        self.density = self.one_of([0, 0.1, 0.2, 0.5])
        self.arithmetic = TYPES["float64"] if self.dtype == np.float64 else TYPES["float32"]

    def chance(self, probability):
        return self.random.random() < probability

    def one_of(self, choices, p=None):
        p = None if p is None else np.array(p) / np.sum(p)
        return choices[self.random.choice(len(choices), p=p)]

    def wants(self, modifier):
        return modifier in self.modifiers and self.chance(self.density)

    def length(self):
        kind = self.one_of(["zero", "one", "few", "edge", "prime", "any"], p=[2, 10, 33, 30, 15, 10])
        if kind == "zero":
            return 0
        if kind == "one":
            return 1
        if kind == "few":
            return int(self.random.integers(2, 24))
        if kind == "edge":
            return self.one_of(EDGES)
        return self.one_of(PRIMES) if kind == "prime" else int(self.random.integers(1, 301))

    def case(self, work, least_work):
        ndim = self.one_of([2, 3, 4, 5], p=[2, 3, 4, 1])
        self.shapes(ndim, work, least_work)
        result = self.tensors(ndim)
        result |= self.positions()
        result |= self.keys()
        result |= self.scores()
        if "layout" in self.modifiers and ndim > 2 and self.chance(0.3):
            for name in ("query", "key", "value"):
                result[name] = result[name].swapaxes(-2, -3)
                if self.chance(0.7):
                    result[name] = np.ascontiguousarray(result[name])
            result["layout"] = "blhd"
        return result

    def shapes(self, ndim, work, least_work):
        """Draw shapes until the work fits."""
        while True:
            key_heads = 1 if ndim == 2 else self.one_of([1, 2, 3, 5], p=[5, 3, 1, 1])
            group = 1 if ndim == 2 else self.one_of([1, 2, 3, 4, 8], p=[5, 2, 1, 1, 1])
            lengths = self.length(), self.length()
            if self.chance(0.3):
                lengths = lengths[0], lengths[0]
            elif self.chance(0.25):
                lengths = self.one_of([1, 2, 3, 7, 8]), lengths[1]
            sizes = self.one_of(HEAD_SIZES), self.one_of(HEAD_SIZES)
            if self.chance(0.5):
                sizes = sizes[0], sizes[0]
            batch = tuple(self.one_of([0, 1, 2, 3], p=[1, 19, 30, 10]) for _ in range(ndim - 3))
            if least_work <= math.prod(batch) * key_heads * group * math.prod(lengths) * sum(sizes) <= work:
                break
        self.heads, self.key_heads = key_heads * group, key_heads
        self.rows, self.keys_count = lengths
        self.size, self.value_size = sizes
        self.batch = batch

    def tensors(self, ndim):
        sigma = self.one_of([0.1, 1, 4, 16, 100, 3000], p=[2, 10, 5, 3, 1, 1])
        result = {}
        for name, heads, length, size in (
            ("query", self.heads, self.rows, self.size),
            ("key", self.key_heads, self.keys_count, self.size),
            ("value", self.key_heads, self.keys_count, self.value_size),
        ):
            shape = (length, size) if ndim == 2 else (*self.some_batch(), heads, length, size)
            kind = self.one_of(["normal", "constant", "equal rows", "offset", "zero"], p=[80, 6, 6, 6, 2])
            x = self.random.standard_normal(shape)
            if kind == "constant":
                x[...] = self.random.standard_normal()
            elif kind == "equal rows":
                x[...] = x[..., :1, :]
            elif kind == "offset":
                x += 10 * self.random.standard_normal()
            elif kind == "zero":
                x[...] = 0
            if name == "query":
                x *= min(sigma, 3000 / max(1, np.abs(x).max(initial=0)))
            result[name] = self.store(x.astype(self.dtype if name == "query" else self.key_dtype))
        self.batch = np.broadcast_shapes(*(x.shape[:-3] for x in result.values()))
        self.row_shape = (self.rows,) if ndim == 2 else (*self.batch, self.heads, self.rows)
        return result

    def some_batch(self):
        """Return the batch's shape, or one that broadcasts to it."""
        batch = tuple(1 if self.chance(0.15) else n for n in self.batch)
        return batch[1:] if batch and batch[0] == 1 and self.chance(0.5) else batch

    def positions(self):
        result = {}
        if "scale" in self.modifiers and self.chance(0.3):
            result["scale"] = self.one_of([1.0, 0.1, -0.3, 0.0, 1 / self.size])
        if self.wants("causal"):
            result["causal"] = True
        if self.wants("window"):
            result["window"] = (self.side(), self.side())
        if self.wants("alibi_slopes"):
            slopes = 2.0 ** -self.random.uniform(0, 8, self.heads) * self.one_of([1, 1, 1, -0.01, 0])
            if self.batch and self.apart.random() < 0.5:
                entries = [1 if self.apart.random() < 0.2 else n for n in self.batch]
                slopes = slopes * self.apart.uniform(0.3, 1, (*entries, 1))
            result["alibi_slopes"] = slopes.astype(self.some_type())
        placed = "causal" in result or "window" in result or "alibi_slopes" in result
        if self.wants("query_offset") or (placed and self.rows != self.keys_count):
            kind = self.one_of(["start", "end", "number", "array"])
            low, high = -self.rows // 3 - 1, self.keys_count + 3
            result["query_offset"] = kind if kind in ("start", "end") else self.per_entry(low, high, kind == "number")
        return result

    def side(self):
        near, far = self.random.integers(1, 9), self.random.integers(0, self.keys_count + 2)
        return self.one_of([None, -1, 0, int(near), int(far)])

    def keys(self):
        result = {}
        if self.wants("key_lengths"):
            low = self.one_of([0, self.keys_count // 2])
            result["key_lengths"] = self.per_entry(low, self.keys_count + 1, self.chance(0.3))
        if self.wants("query_lengths"):
            low = self.one_of([0, self.rows // 2])
            result["query_lengths"] = self.per_entry(low, self.rows + 1, self.chance(0.3))
        if self.wants("key_range"):
            shape = self.some_of(self.row_shape)
            start = self.random.integers(-5, self.keys_count // 2 + 1, shape)
            stop = self.random.integers(self.keys_count // 3, self.keys_count + 6, shape)
            pair = [x.astype(self.one_of([np.int32, np.int64])) for x in (start, stop)]
            if self.chance(0.3):
                pair[self.random.integers(2)] = None
            result["key_range"] = tuple(pair)
        if self.wants("mask"):
            mask = self.random.random(self.score_shape()) < self.one_of([0.02, 0.5, 0.9, 0.99])
            if mask.ndim > 1 and mask.shape[-2] > 1:
                mask[self.random.random(mask.shape[:-1]) < 0.1] = False
            result["mask"] = self.store(mask)
        return result

    def scores(self):
        result = {}
        if self.wants("bias"):
            dtype = self.some_type()
            bias = self.random.standard_normal(self.score_shape()) * self.one_of([1, 10])
            lowest = max(float(ml_dtypes.finfo(x).min) for x in (dtype, self.arithmetic))
            if self.chance(0.4):
                bias[self.random.random(bias.shape) < 0.3] = -np.inf
            if self.chance(0.3):
                bias[self.random.random(bias.shape[:-1]) < 0.5] = lowest
            result["bias"] = self.store(bias.astype(dtype))
        if self.wants("softcap"):
            result["softcap"] = self.one_of([0.5, 5.0, 30.0, 50])
        if self.wants("sinks"):
            sinks = 3 * self.random.standard_normal(self.heads)
            sinks[self.random.random(self.heads) < 0.2] = -np.inf
            result["sinks"] = sinks.astype(self.some_type())
        return result

    def some_type(self):
        """Return a type for a bias, slopes or sinks, mostly the arithmetic one."""
        return self.arithmetic if self.chance(0.6) else self.one_of(list(TYPES.values()))

    def per_entry(self, low, high, scalar):
        shape = () if scalar or not self.batch else self.some_of(self.batch)
        x = self.random.integers(low, high, shape)
        return int(x) if scalar else np.asarray(x).astype(self.one_of([np.int32, np.int64]))

    def score_shape(self):
        return self.some_of((*self.row_shape, self.keys_count))

    def some_of(self, shape):
        """Return `shape` or one that broadcasts to it."""
        shape = tuple(1 if self.chance(0.2) else n for n in shape)
        drop = self.random.integers(0, len(shape)) if self.chance(0.3) else 0
        return shape[drop:]

    def store(self, x):
        """Return the same numbers in another kind of memory."""
        ndim = x.ndim
        for kind in ("broadcast", "reversed", "sliced", "permuted", "swapped", "misaligned", "read-only"):
            if not self.chance(0.08):
                continue
            axis = self.random.integers(ndim)
            if kind == "broadcast" and x.shape[axis] > 1:
                x = np.broadcast_to(x.take([0], axis), x.shape)
            elif kind == "reversed":
                x = np.flip(np.ascontiguousarray(np.flip(x, axis)), axis)
            elif kind == "sliced":
                wide = np.zeros((*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]), x.dtype)
                part = (*[slice(None)] * axis, slice(1, None, 2))
                wide[part] = x
                x = wide[part]
            elif kind == "permuted":
                axes = self.random.permutation(ndim)
                x = np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))
            elif kind == "swapped" and x.dtype.kind == "f":
                x = x.astype(x.dtype.newbyteorder("S"))
            elif kind == "misaligned":
                buffer = np.zeros(x.nbytes + 1, np.uint8)[1:]
                copy = np.ndarray(x.shape, x.dtype, buffer)
                copy[...] = x
                x = copy
            elif kind == "read-only":
                x = x.view()
                x.flags.writeable = False
        return x
