"""Problems of extreme numbers, the results of every kernel table, and the one rule of what these may be.

    python extremes.py 0 1000 RESULTS

computes the problems 0 to 999 on this process's kernel table (CATTN_ISA), and writes the results to a file.
"""

import functools
import pickle
import sys

import cases
import numpy as np
from helpers import same_bits

import cattn
from cattn import reference
from cattn.reference._bounds import LSE_KAPPA, ROUNDED_WEIGHTS, allowed

ml_dtypes = cases.ml_dtypes
HAS_LONGDOUBLE = np.finfo(np.longdouble).maxexp > 1024
BFLOAT16_UNITS = ("avx512bf16", "amx")
STAGES = ("scores", "softcapped", "biased", "weights")

# Problems


def problem(seed):
    """Arguments of `attention` from a seed: (heads, length, size)."""
    random = np.random.default_rng([seed, 38])
    types = [name for name in cases.TYPES if name != "float64" or HAS_LONGDOUBLE]
    name = str(random.choice(types, p=weights_of(types)))
    dtype = cases.TYPES[name]
    key_dtype = dtype
    if name == "float32" and random.random() < 0.2:
        key_dtype = cases.TYPES[str(random.choice(["float16", "bfloat16"]))]
    key_heads, group = int(random.choice([1, 1, 2])), int(random.choice([1, 1, 2, 3]))
    heads = key_heads * group
    if seed % 16 == 15:  # more work than one thread is given alone
        key_heads, heads, rows, keys, size, value_size = 2, 4, 40, 290, 33, 33
    else:
        rows, keys = (
            int(random.choice([1, 2, 5, 8, 9, 17, 33, 70])),
            int(random.choice([1, 2, 3, 8, 20, 33, 65, 100, 257])),
        )
        size, value_size = int(random.choice([1, 2, 3, 4, 8, 17, 33])), int(random.choice([1, 2, 3, 8, 17]))
    case = {
        "query": fill(random, (heads, rows, size), dtype),
        "key": fill(random, (key_heads, keys, size), key_dtype),
        "value": fill(random, (key_heads, keys, value_size), key_dtype),
    }
    if random.random() < 0.4:
        aim(random, case)
    modify(random, case, heads, rows, keys, dtype)
    if random.random() < 0.25:
        poison(random, case)
    if "mask" in case and random.random() < 0.5:
        poison_masked(random, case)
    return case


def weights_of(types):
    shares = np.array([{"float32": 4, "bfloat16": 3, "float16": 2, "float64": 2}[name] for name in types])
    return shares / shares.sum()


def pick(random, choices):
    return choices[int(random.integers(len(choices)))]


def fill(random, shape, dtype):
    """Numbers of one kind, of either sign."""
    limits = ml_dtypes.finfo(dtype)
    largest, tiny, least = (np.float64(x) for x in (limits.max, limits.smallest_normal, limits.smallest_subnormal))
    kind = pick(random, ["normal"] * 4 + ["scaled", "mixed", "largest", "large", "smallest", "zeros", "one", "ends"])
    x = random.standard_normal(shape)
    low, high = np.log10(least) if least > 0 else -323, np.log10(largest)
    if kind == "scaled":
        x *= 10.0 ** random.uniform(low, high - 1)
    elif kind == "mixed":
        x = np.sign(x) * 10.0 ** random.uniform(low, high, shape)
    elif kind == "largest":
        x = np.sign(x) * largest
    elif kind == "large":
        x = np.sign(x) * largest / 10.0 ** random.uniform(0, 4, shape)
    elif kind == "smallest":
        x = np.sign(x) * tiny * pick(random, [1, 1.5, 0.5, 2, 1e-3]) * random.uniform(0.5, 1.5, shape)
    elif kind == "zeros":
        x = np.copysign(0.0, x)
    elif kind == "one":
        x[...] = 0
        x.reshape(-1)[: 1 if x.size else 0] = 1
    elif kind == "ends":
        choices = np.array([largest, tiny, least, 0.0, 1.0, largest / 2, 2 * tiny])
        x = np.sign(x) * random.choice(choices, shape)
    with np.errstate(all="ignore"):
        return np.clip(x, -largest, largest).astype(dtype)


def aim(random, case):
    """Scale query so that the largest score is about so much."""
    target = pick(random, [1e-40, 1e-7, 1.0, 20.0, 80.0, 88.7, 104.0, 700.0, 745.0, 1e4, 1e30, 1e38, 3e38])
    wide = np.longdouble if case["query"].dtype == np.float64 else np.float64
    query, key = (np.abs(case[name]).astype(wide).max() for name in ("query", "key"))
    size = case["query"].shape[-1]
    with np.errstate(all="ignore"):
        factor = target / (query * key * np.sqrt(wide(size)))
        if np.isfinite(factor) and factor > 0:
            limit = ml_dtypes.finfo(case["query"].dtype).max.astype(wide)
            case["query"] = np.clip(case["query"].astype(wide) * factor, -limit, limit).astype(case["query"].dtype)


def modify(random, case, heads, rows, keys, dtype):
    wide = dtype == np.float64
    largest = float(np.finfo(np.float64 if wide else np.float32).max)
    tiny = float(np.finfo(np.float64 if wide else np.float32).smallest_normal)
    density = pick(random, [0, 0.1, 0.3, 0.5])

    def wants():
        return random.random() < density

    if random.random() < 0.4:
        case["scale"] = pick(random, [0.0, 1.0, -1.0, tiny, -tiny, 1e-20, 1e20, 1e37, largest, -largest, 1 / 3])
    if wants():
        case["softcap"] = pick(random, [5e-324, 1e-300, 1e-45, tiny, 1e-30, 1e-3, 0.5, 30.0, 1e4, 1e30, largest, 1e300])
    if wants():
        case["causal"] = True
    if wants():
        case["window"] = pick(random, [(0, 0), (3, None), (2, 5), (2**62, 2**62)])
    if wants():
        slopes = [0.0, 0.5, 1.0, -1.0, 1e-45, 1e30, -1e30, 1e38, largest, -largest, 1e300]
        case["alibi_slopes"] = np.array([pick(random, slopes) for _ in range(heads)])
    if {"causal", "window", "alibi_slopes"} & case.keys() and rows != keys:
        case["query_offset"] = pick(random, ["start", "end", 2, -1, 10**6, -(10**6), 2**40, 2**59])
    if wants():
        case["key_lengths"] = int(random.integers(0, keys + 1))
    if wants():
        case["mask"] = random.random((rows, keys)) < pick(random, [0.02, 0.5, 0.9])
    if wants():
        bias = fill(random, pick(random, [(rows, keys), (heads, rows, keys), (keys,), (rows, 1)]),
                    cases.TYPES[pick(random, [*cases.TYPES])])  # fmt: skip
        for number in (np.inf, -np.inf, -largest, largest, -1e38):
            if random.random() < 0.2:
                with np.errstate(all="ignore"):
                    bias[random.random(bias.shape) < pick(random, [0.02, 0.5, 1.0])] = number
        case["bias"] = bias
    if wants():
        sinks = [-np.inf, 0.0, 3.0, 88.0, 1e30, -1e30, largest, -largest, 1e300, -1e300, 1e-45]
        case["sinks"] = np.array([pick(random, sinks) for _ in range(heads)])


def poison(random, case):
    """Infinities and NaN of any payload in some places."""
    for _ in range(int(random.integers(1, 4))):
        name = pick(random, ["query", "key", "value", "value", *(x for x in ("bias",) if x in case)])
        x = case[name] = case[name].copy()
        at = tuple(int(random.integers(n)) for n in x.shape)
        if random.random() < 0.5:
            x[at] = pick(random, [np.inf, -np.inf])
        else:
            bits = x.view(f"u{x.itemsize}")
            exponent = int(np.array(np.inf, x.dtype).view(bits.dtype))
            payload = int(random.integers(1, int(np.array(ml_dtypes.finfo(x.dtype).eps).itemsize * 8)))
            bits[at] = exponent | payload | (int(random.integers(2)) << (8 * x.itemsize - 1))


def poison_masked(random, case):
    """Poison every place that a mask hides too: none of it may reach a result."""
    special = pick(random, [np.nan, np.inf, -np.inf])
    for name in ("key", "value"):
        case[name] = case[name].copy()
        case[name][:, ~case["mask"].any(axis=0)] = special
    if case.get("bias") is not None and case["bias"].shape[-2:] == case["mask"].shape:
        case["bias"] = np.where(case["mask"], case["bias"], np.array(special, case["bias"].dtype))


# Results


def results(case):
    """out and lse, and the matrix at one stage; with any number of threads the same."""
    found = cattn.attention(**case, return_lse=True, num_threads=1)
    if case["query"].dtype.itemsize == 2:
        plain = cattn.attention(**case, out=np.empty(found[0].shape, np.float32))
        with np.errstate(invalid="ignore"):  # a signalling NaN
            rounded = plain.astype(found[0].dtype)
        assert np.array_equal(rounded, found[0], equal_nan=True), "other numbers than with a float32 out"
    for threads in (2, 7):
        for one, other in zip(found, cattn.attention(**case, return_lse=True, num_threads=threads), strict=True):
            assert same_bits(one, other), f"other bits with {threads} threads"
    return *found, cattn.attention_weights(**stage_of(case))


def without_value(case):
    return {name: x for name, x in case.items() if name != "value"}


def stage_of(case):
    """The arguments of `attention_weights` for the same problem."""
    return without_value(case) | {"stage": STAGES[case["query"].size % 4]}


# The rule


def wrong(seed, found, isa):
    """Return what is wrong with the results of a problem on this kernel table, or None."""
    if isinstance(found, str):
        return found
    rule, (out, lse, matrix) = rule_of(seed, isa in BFLOAT16_UNITS), found
    return rule.wrong_out(out) or rule.wrong_lse(lse) or rule.wrong_matrix(matrix)


@functools.lru_cache(1000)
def rule_of(seed, has_units):
    case = problem(seed)
    if has_units and case["query"].dtype.name != "bfloat16":
        return rule_of(seed, False)
    return Rule(case, has_units)


class Rule:
    """Return what the results of a case may be, as docs/trust.md and docs/guide/types.md say it.

    NaN where the reference has it, infinity where that has one, and else a number as near to the reference's as is
    promised. Excused are, and nothing else:

    - a sum of weighted values, where values are beyond the largest number / Lk: it is not finite, or right;
    - a row that attends to a score whose terms add up to more than the largest number: keys may have lost their
      weights, or the output is not finite;
    - what is below the smallest normal number: it counts as 0, or as it is;
    - numbers of a wider type beyond the largest number, and a softcap beyond 2¹⁰⁰ (2⁹⁰⁰): they count as those.
    """

    def __init__(self, case, has_units):
        self.case = case
        self.stored = case["query"].dtype
        self.arithmetic = np.dtype(np.float64 if self.stored == np.float64 else np.float32)
        limits = np.finfo(self.arithmetic)
        self.wide = np.longdouble if self.arithmetic == np.float64 else np.float64
        self.largest, self.tiny, self.eps = (self.wide(x) for x in (limits.max, limits.smallest_normal, limits.eps))
        self.has_units = has_units
        with np.errstate(all="ignore"):
            self.yardsticks = [Yardstick(self, case)]
            if (counted := self.counted(case)) is not None:
                self.yardsticks.append(Yardstick(self, counted))

    def counted(self, case):
        """The case with zeros for what is below the smallest normal number, and the largest number for what is above
        it; None where there is neither."""
        scale = (
            1 / np.sqrt(self.wide(case["query"].shape[-1])) if case.get("scale") is None else self.wide(case["scale"])
        )
        result = dict(case)
        for name, factor in (("query", scale), ("key", 1), ("value", 1)):
            x = case[name]
            wide = np.abs(x.astype(self.wide))
            lost = (wide != 0) & ((wide < self.tiny) | (wide * abs(factor) < self.tiny))
            if lost.any():
                result[name] = np.where(lost, np.zeros((), x.dtype), x)
        for name in ("bias", "alibi_slopes", "sinks"):
            if case.get(name) is not None and case[name].dtype == np.float64 != self.arithmetic:
                x = case[name]
                result[name] = np.where(np.isfinite(x), np.clip(x, -float(self.largest), float(self.largest)), x)
        most = 2.0**100 if self.arithmetic == np.float32 else 2.0**900
        if case.get("softcap") is not None and case["softcap"] > most:
            result["softcap"] = most
        return result if any(result[name] is not case[name] for name in result) else None

    def wrong_out(self, out):
        if out.dtype != self.stored:
            return f"type {out.dtype}"
        with np.errstate(all="ignore"):
            fine = np.logical_or.reduce([x.allows(out) for x in self.yardsticks])
        return None if fine.all() else self.told("out", out, fine, [x.out for x in self.yardsticks])

    def wrong_lse(self, lse):
        if lse.dtype != self.arithmetic:
            return f"lse of type {lse.dtype}"
        with np.errstate(all="ignore"):
            fine = np.logical_or.reduce([x.allows_lse(lse) for x in self.yardsticks])
        return None if fine.all() else self.told("lse", lse, fine, [x.lse for x in self.yardsticks])

    def wrong_matrix(self, matrix):
        with np.errstate(all="ignore"):
            fine = np.logical_or.reduce([x.allows_matrix(matrix) for x in self.yardsticks])
        return None if fine.all() else self.told(
            stage_of(self.case)["stage"], matrix, fine, [x.matrix for x in self.yardsticks])  # fmt: skip

    @staticmethod
    def told(name, found, fine, expected):
        at = tuple(int(n) for n in np.argwhere(~fine)[0])
        return (
            f"{name}{list(at)} is {found[at]}, not {' or '.join(str(x[at]) for x in expected)} ({(~fine).sum()} such)"
        )


class Yardstick:
    def __init__(self, rule, case):
        self.rule, self.case, wide = rule, case, rule.wide
        self.out, self.lse = reference.attention(**case, dtype=wide, return_lse=True)
        self.narrow = reference.attention(**case, dtype=rule.arithmetic, return_lse=True)
        self.scores = reference.attention_weights(**without_value(case), dtype=wide, stage="biased")
        self.weights = reference.attention_weights(**without_value(case), dtype=wide)
        self.attended = self.scores != -np.inf
        self.matrix = reference.attention_weights(**stage_of(case), dtype=wide)
        self.narrow_matrix = reference.attention_weights(**stage_of(case), dtype=rule.arithmetic)
        self.measure(case)

    def measure(self, case):
        """Return what the terms of each score add up to without signs, and which scores may overflow or lose terms."""
        rule = self.rule
        query, key = (np.abs(case[name].astype(rule.wide)) for name in ("query", "key"))
        group = query.shape[0] // key.shape[0]
        key, self.values = np.repeat(key, group, 0), np.repeat(case["value"].astype(rule.wide), group, 0)
        size = query.shape[-1]
        scale = 1 / np.sqrt(rule.wide(size)) if case.get("scale") is None else abs(rule.wide(case["scale"]))
        finite_query, finite_key = (np.where(np.isfinite(x), x, 0) for x in (query, key))
        raw = finite_query @ finite_key.swapaxes(-1, -2)
        self.terms = raw * scale
        over = self.terms > rule.largest
        over |= (scale * finite_query).max(axis=-1, initial=0)[..., None] > rule.largest
        if rule.has_units:
            over |= raw > rule.largest
        if rule.has_units:
            products = finite_query[..., None, :] * finite_key[:, None]
            lost = np.where((products < rule.tiny) | (finite_query < rule.tiny)[..., None, :]
                            | (finite_key < rule.tiny)[:, None], products, 0).sum(axis=-1)  # fmt: skip
            any_product = (products > 0).any(axis=-1)
            lost = np.where(any_product, lost + size * rule.tiny, 0) * scale
        else:
            lost = np.zeros(raw.shape, rule.wide)
        total = self.terms
        if case.get("softcap") is not None:
            total = np.minimum(total, rule.wide(case["softcap"]))
        if case.get("bias") is not None:
            bias = np.abs(case["bias"].astype(rule.wide))
            total = total + np.where(np.isfinite(bias), bias, 0)
        if case.get("alibi_slopes") is not None:
            only = {name: x for name, x in case.items() if name in ("alibi_slopes", "query_offset", "key_lengths")}
            distances = reference.attention_weights(
                0 * finite_query, 0 * np.abs(finite_key), **only, stage="biased", dtype=rule.wide
            )
            total = total + np.where(np.isnan(distances), 0, np.abs(distances))
        self.total = np.broadcast_to(total, self.scores.shape)
        over |= self.total > rule.largest
        self.over = np.broadcast_to(over, self.scores.shape)
        nothing = {name: np.zeros_like(case[name]) for name in ("query", "key")}
        visible = (
            reference.attention_weights(**without_value(case) | nothing, stage="biased", dtype=rule.wide) != -np.inf
        )
        self.over_rows = (self.over & visible).any(axis=-1)
        self.lost_rows = (np.where(self.attended, lost, 0) > rule.eps).any(axis=-1)
        self.lost = lost
        counts = self.weights >= rule.tiny
        self.condition = np.where(counts, self.total, 0).max(axis=-1, initial=0)
        if case.get("sinks") is not None:
            sinks = np.abs(np.asarray(case["sinks"], rule.wide))
            self.condition = np.maximum(self.condition, np.where(np.isfinite(sinks), sinks, 0)[:, None])
            self.over_rows |= (np.where(np.isfinite(sinks), sinks, 0) > rule.largest)[:, None]

    def sums(self, term):
        """Σ_j term(p_j, v_j) over the keys of weight, for each output; what has none adds nothing."""
        result = np.zeros(self.out.shape, self.out.dtype)
        for column in range(result.shape[-1]):
            value = self.values[..., None, :, column]
            found = term(self.weights, value, self.out[..., column, None])
            result[..., column] = np.where((self.weights > 0) & np.isfinite(value), found, 0).sum(axis=-1)
        return result

    def allows(self, out):
        rule = self.rule
        found = out.astype(rule.wide)
        magnitude = self.sums(lambda p, v, _: p * np.abs(v))
        unit = rule.eps * magnitude * (1 + self.condition[..., None]) + rule.tiny
        if np.isfinite(self.narrow[0]).any():
            error = np.abs(self.narrow[0].astype(rule.wide) - self.out) / unit
            bound = allowed(float(np.where(np.isfinite(error), error, 0).max(initial=0)))
        else:
            bound = allowed(0)
        tolerance = bound * unit + self.sums(
            lambda p, v, _: np.where((p < rule.tiny) | (p * np.abs(v) < rule.tiny), p * np.abs(v), 0))  # fmt: skip
        if rule.stored.itemsize == 2:
            tolerance = tolerance + np.abs(np.spacing(self.out.astype(rule.stored)).astype(rule.wide))
        if rule.stored.name == "bfloat16":
            tolerance = tolerance + ROUNDED_WEIGHTS * self.sums(lambda p, v, out: p * np.abs(v - out))
        near = np.abs(found - self.out) <= tolerance
        same = (found == self.out) | (np.isnan(found) & np.isnan(self.out))
        empty = ~self.attended.any(axis=-1)
        fine = np.where(np.isfinite(self.out), near & np.isfinite(found), same)
        fine = np.where(empty[..., None], found == 0, fine)
        # Excused:
        largest = np.where(
            self.attended[..., None] & np.isfinite(self.values[:, None]), np.abs(self.values[:, None]), 0
        )
        overflows = largest.max(axis=-2, initial=0) > rule.largest / self.values.shape[-2]
        fine |= overflows & ~np.isfinite(found)
        # Between the smallest and the largest value that is attended to, or 0.
        values = np.where(self.attended[..., None], self.values[:, None], 0)
        low, high = (f.reduce(values, axis=-2, initial=0) for f in (np.fmin, np.fmax))
        slack = 2.0**-7 * np.maximum(np.abs(low), np.abs(high)) + rule.tiny
        within = (found >= low - slack) & (found <= high + slack)
        fine |= self.lost_rows[..., None] & within
        return fine | (self.over_rows[..., None] & (within | ~np.isfinite(found)))

    def allows_lse(self, lse):
        rule, found = self.rule, lse.astype(self.rule.wide)
        unit = rule.eps * (1 + self.condition + np.where(np.isfinite(self.lse), np.abs(self.lse), 0))
        error = np.abs(self.narrow[1].astype(rule.wide) - self.lse) / unit
        bound = allowed(float(np.where(np.isfinite(error), error, 0).max(initial=0)), LSE_KAPPA)
        same = (found == self.lse) | (np.isnan(found) & np.isnan(self.lse))
        fine = np.where(np.isfinite(self.lse), np.abs(found - self.lse) <= bound * unit, same)
        return fine | self.over_rows | (self.lost_rows & np.isfinite(found))

    def allows_matrix(self, matrix):
        rule, found, stage = self.rule, matrix.astype(self.rule.wide), stage_of(self.case)["stage"]
        if stage == "weights":
            unit = rule.eps * self.matrix * (1 + self.condition[..., None]) + rule.tiny
            excused = (self.over_rows | self.lost_rows)[..., None]
        else:
            unit = rule.eps * (1 + (self.total if stage == "biased" else self.terms))
            excused = self.over | (self.lost > rule.eps)
        error = np.abs(self.narrow_matrix.astype(rule.wide) - self.matrix) / unit
        bound = allowed(float(np.where(np.isfinite(error), error, 0).max(initial=0)), LSE_KAPPA)
        same = (found == self.matrix) | (np.isnan(found) & np.isnan(self.matrix))
        return np.where(np.isfinite(self.matrix), np.abs(found - self.matrix) <= bound * unit, same) | excused


if __name__ == "__main__":
    start, stop = map(int, sys.argv[1:3])
    found = []
    for seed in range(start, stop):
        try:
            found.append(results(problem(seed)))
        except Exception as error:
            found.append(f"seed {seed}: {type(error).__name__}: {error}")
    with open(sys.argv[3], "wb") as file:
        pickle.dump(found, file)
