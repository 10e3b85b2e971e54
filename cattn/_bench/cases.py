"""The cases that cattn is measured at. A `Case` is a problem as data, which makes its arrays and knows their answer."""

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cattn.reference import _bounds

DTYPES = ("float32", "float64", "float16", "bfloat16")
HALF_TYPES = ("bfloat16", "float16")
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


@dataclass(frozen=True)
class Inputs:
    """Describe a call of cattn: the name of the function, its arrays, and its other arguments by name."""

    arrays: tuple[np.ndarray, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    function: str = "attention"


@dataclass(frozen=True)
class Check:
    """Say how far a result is from the answer, at the output that is furthest from it."""

    error: float  # in units of eps · Σ p|v|, with eps of the type that the inputs are stored in
    kappa: float | None  # the κ of `cattn.reference.error_bound`; None in half types, whose own rounding is larger
    wrong: bool  # more than the type explains


@dataclass(frozen=True)
class Answer:
    """Hold the right result of a case, and the units of its errors."""

    dtype: str
    out: np.ndarray
    size: np.ndarray  # Σ p|v|
    unit: np.ndarray  # that of κ

    def check(self, result: np.ndarray) -> Check:
        """Compare a result with the answer."""
        wide = np.asarray(result).astype(self.out.dtype)
        if wide.shape != self.out.shape or not np.isfinite(wide).all():
            return Check(np.inf, np.inf, True)
        error, is_half = np.abs(wide - self.out), self.dtype in HALF_TYPES
        # In a half type an engine may round scores and weights, too, and may compute float16 in bfloat16.
        limit = self.size / 16 if is_half else 32 * self.unit
        return Check(
            error=float(np.max(error / (EPS[self.dtype] * self.size))),
            kappa=None if is_half else float(np.max(error / self.unit)),
            wrong=bool(np.any(error > limit)),
        )


@dataclass(frozen=True)
class Case:
    """Describe one problem: (batch, heads, queries, head_size) against (batch, kv_heads, keys, head_size).

    `name` does not tell the type, `title` does.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    dtype: str = "float32"
    causal: bool = False

    @property
    def title(self) -> str:
        """Return the name, with the type unless that is float32."""
        return self.name if self.dtype == "float32" else f"{self.name}-{self.dtype}"

    @property
    def shape(self) -> str:
        """Return the text that `case_of_shape` reads."""
        return f"{self.batch},{self.heads}/{self.kv_heads},{self.queries},{self.keys},{self.head_size}"

    @property
    def pairs(self) -> int:
        """Return the number of (query, key) pairs that attend, over all heads. When causal, it is half of all."""
        pairs = self.batch * self.heads * self.queries * self.keys
        return pairs // 2 if self.causal else pairs

    @property
    def flops(self) -> int:
        """Return the floating-point operations of the matrix products. Exponentials are not counted."""
        return 4 * self.pairs * self.head_size

    @property
    def counts_time(self) -> bool:
        """Return whether people ask for its time rather than its rate, as with tiny problems and decoding."""
        return self.queries == 1 or self.flops < 1_000_000

    def make_inputs(self) -> Inputs:
        """Return standard normal arrays, the same each time."""
        rng = np.random.default_rng(0)
        query = normal(rng, self.dtype, self.batch, self.heads, self.queries, self.head_size)
        shape = self.batch, self.kv_heads, self.keys, self.head_size
        return Inputs((query, normal(rng, self.dtype, *shape), normal(rng, self.dtype, *shape)), self.make_options(rng))

    def make_options(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the other arguments of `attention`."""
        return {"causal": True} if self.causal else {}

    def answer(self, inputs: Inputs) -> Answer:
        """Compute the answer."""
        return answer_of(self.dtype, *inputs.arrays, self.part)

    def part(self, entry: int, heads: slice, rows: slice) -> tuple[slice, dict[str, Any]]:
        """Return the keys that these rows may attend to, and the arguments of `attention` for rows and keys alone."""
        if self.causal:
            return slice(0, rows.stop), {"causal": True, "query_offset": rows.start}
        return slice(0, self.keys), {}


def normal(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Return standard normal numbers, in a type by its name."""
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype
    return rng.standard_normal(shape, np.float32).astype(dtype, copy=False)


def widened(array: np.ndarray) -> np.ndarray:
    """Return the array, in float32 if it is of a half type."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def answer_of(dtype: str, query: np.ndarray, key: np.ndarray, value: np.ndarray, part: Callable) -> Answer:
    """Compute the answer for arrays (B, H, L, D), in blocks of rows, as the reference holds whole matrices of scores.

    `part` says which keys and which arguments a block of rows has, as `Case.part` does.
    """
    query, key, value = map(widened, (query, key, value))
    wide = np.longdouble if dtype == "float64" else np.float64
    answer = Answer(dtype, *(np.empty(query.shape, wide) for _ in range(3)))
    (batch, heads, length, _), (_, kv_heads, keys, _) = query.shape, key.shape
    group, step = heads // kv_heads, max(1, min(512, 2**24 // keys))
    for entry, head, start in itertools.product(range(batch), range(kv_heads), range(0, length, step)):
        place = entry, slice(group * head, group * (head + 1)), slice(start, min(start + step, length))
        seen, options = part(*place)
        with np.errstate(all="ignore"):
            found = _bounds.Yardstick(query[place], *(x[entry, head, seen][None] for x in (key, value)), **options)
        answer.out[place], answer.size[place], answer.unit[place] = found.out, found.magnitude, found.unit
    return answer


def _case(name: str, batch: int, heads: str, queries: int, keys: int, head_size: int, causal: bool = False) -> Case:
    query_heads, kv_heads = map(int, heads.split("/"))
    return Case(name, batch, query_heads, kv_heads, queries, keys, head_size, causal=causal)


CORE_CASES = (
    _case("seed", 1, "1/1", 3, 3, 3),
    _case("tiny", 1, "1/1", 16, 16, 64),
    _case("minilm", 1, "12/12", 32, 32, 32),
    _case("bert-128", 1, "12/12", 128, 128, 64),
    _case("vit", 1, "12/12", 197, 197, 64),
    _case("batch", 8, "12/12", 128, 128, 64),
    _case("bert-512", 1, "12/12", 512, 512, 64),
    _case("long-2k-d64", 1, "8/8", 2048, 2048, 64),
    _case("long-2k-d128", 1, "8/8", 2048, 2048, 128),
    _case("long-2k-d128-causal", 1, "8/8", 2048, 2048, 128, causal=True),
    _case("long-8k", 1, "1/1", 8192, 8192, 64),
    _case("odd", 2, "5/5", 77, 333, 80),
    _case("decode-4k", 1, "32/32", 1, 4096, 128),
    _case("decode-gqa-4k", 1, "32/8", 1, 4096, 128),
    _case("decode-gqa-32k", 1, "32/8", 1, 32768, 128),
    _case("cross", 1, "8/8", 1, 1500, 64),
)

# What half types are compared at.
HALF_NAMES = (
    "bert-128",
    "bert-512",
    "long-2k-d64",
    "long-2k-d128",
    "long-2k-d128-causal",
    "decode-4k",
    "decode-gqa-32k",
)


def core_cases(dtype: str = "float32") -> list[Case]:
    """Return the cases that stand for a type."""
    return [replace(case, dtype=dtype) for case in CORE_CASES if dtype not in HALF_TYPES or case.name in HALF_NAMES]


CASES: Mapping[str, Case] = {case.title: case for dtype in DTYPES for case in core_cases(dtype)}


def find_cases(names: Iterable[str], dtypes: Iterable[str] = (), known: Mapping[str, Case] = CASES) -> list[Case]:
    """Return the cases of these names, each in all of these types, or in its own if none is given.

    "core" are the cases that stand for a type. "all" are all that are `known`. ValueError: there is no such case.
    """
    found: list[Case] = []
    for dtype in tuple(dtypes) or (None,):
        for name in names:
            if name == "core":
                found += core_cases(dtype or "float32")
            elif name in known or name == "all":
                cases = known.values() if name == "all" else [known[name]]
                found += [replace(case, dtype=dtype or case.dtype) for case in cases]
            else:
                close = difflib.get_close_matches(name, known, n=1) or ["bert-128"]
                raise ValueError(f"expected core, all or the name of a case, such as {close[0]}; got {name!r}")
    return list(dict.fromkeys(found))


def case_of_shape(text: str, dtype: str = "float32", causal: bool = False) -> Case:
    """Return the case of a shape B,Hq/Hkv,Lq,Lk,D. ValueError: the text is none."""
    sizes = re.fullmatch(r"(\d+),(\d+)(?:/(\d+))?,(\d+),(\d+),(\d+)", "".join(text.split()))
    if sizes is None:
        raise ValueError(f"expected B,Hq/Hkv,Lq,Lk,D, such as 1,32/8,1,4096,128; got {text!r}")
    batch, heads, kv_heads, queries, keys, head_size = (int(size) for size in sizes.groups(default=sizes[2]))
    if not all((batch, heads, kv_heads, queries, keys, head_size)):
        raise ValueError(f"expected sizes of at least 1, got {text!r}")
    if heads % kv_heads:
        raise ValueError(f"expected Hq to be a multiple of Hkv, got {heads} and {kv_heads}")
    if causal and queries != keys:
        raise ValueError(
            f"expected as many queries as keys where it is causal, since engines place the queries differently "
            f"otherwise; got {queries} and {keys}"
        )
    case = Case("", batch, heads, kv_heads, queries, keys, head_size, dtype, causal)
    return replace(case, name=f"{case.shape}-causal" if causal else case.shape)
