"""The cases that cattn is measured at. A `Case` is a problem as data."""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SOFTCAP = 30.0
WINDOW = 256
DTYPES = ("float32", "float64", "float16", "bfloat16")
HALF_TYPES = ("bfloat16", "float16")

Modifier = Literal["causal", "window", "mask", "bias", "alibi", "softcap", "sinks"]
MODIFIERS: tuple[Modifier, ...] = ("causal", "window", "mask", "bias", "alibi", "softcap", "sinks")


@dataclass(frozen=True)
class Case:
    """One problem: (batch, heads, queries, head_size) against (batch, kv_heads, keys, head_size).

    `name` does not tell the type, `title` does. `lengths` are the key lengths of the batch entries, or the sequence
    lengths where `kind` is "packed".
    A "window" is causal and lets a query see the last `WINDOW` keys, its own included.
    """

    name: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    dtype: str = "float32"
    modifiers: frozenset[Modifier] = frozenset()
    lengths: tuple[int, ...] = ()
    kind: Literal["attention", "packed", "self_attention"] = "attention"

    @property
    def title(self) -> str:
        return self.name if self.dtype == "float32" else f"{self.name}-{self.dtype}"

    @property
    def shape(self) -> str:
        """What `case_of_shape` reads."""
        return f"{self.batch},{self.heads}/{self.kv_heads},{self.queries},{self.keys},{self.head_size}"

    @property
    def scale(self) -> float:
        return self.head_size**-0.5

    @property
    def causal(self) -> bool:
        return bool(self.modifiers & {"causal", "window"})

    @property
    def is_plain(self) -> bool:
        """Plain attention over whole arrays, at most causal: what every engine has an operation for."""
        return self.kind == "attention" and not self.lengths and self.modifiers <= {"causal"}

    @property
    def pairs(self) -> int:
        """The (query, key) pairs that attend, over all heads; half of all when causal."""
        if self.kind == "packed":
            return self.heads * sum(length * length for length in self.lengths)
        if self.lengths:
            return self.heads * self.queries * sum(self.lengths)
        if "window" in self.modifiers:
            return self.batch * self.heads * sum(min(row + 1, WINDOW) for row in range(self.queries))
        pairs = self.batch * self.heads * self.queries * self.keys
        return pairs // 2 if self.causal else pairs

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products; exponentials are not counted."""
        flops = 4 * self.pairs * self.head_size
        if self.kind == "self_attention":
            flops += 4 * 2 * self.batch * self.queries * (self.heads * self.head_size) ** 2
        return flops

    @property
    def counts_time(self) -> bool:
        """Whether people ask for its time rather than its rate: tiny problems and decoding."""
        return self.queries == 1 or self.flops < 1_000_000


def _case(name: str, batch: int, heads: str, queries: int, keys: int, head_size: int, *modifiers: Modifier, **fields):
    query_heads, kv_heads = map(int, heads.split("/"))
    return Case(name, batch, query_heads, kv_heads, queries, keys, head_size, modifiers=frozenset(modifiers), **fields)


def _seeded_lengths(count: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Seeded lengths; the longest one is there."""
    lengths = np.random.default_rng(count).integers(shortest, longest + 1, count)
    return (*map(int, lengths[1:]), longest)


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
    _case("long-2k-d128-causal", 1, "8/8", 2048, 2048, 128, "causal"),
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


def core_cases(dtype: str) -> list[Case]:
    """The cases that stand for a type."""
    return [replace(case, dtype=dtype) for case in CORE_CASES if dtype not in HALF_TYPES or case.name in HALF_NAMES]


EXTRA_CASES = (
    *core_cases("bfloat16"),
    *core_cases("float16"),
    *(replace(case, dtype="float64") for case in CORE_CASES if case.name in ("bert-128", "bert-512")),
    _case("decode-batch-128", 16, "32/8", 1, 128, 128),
    _case("decode-batch-512", 16, "32/8", 1, 512, 128),
    _case("decode-batch-ragged", 16, "32/8", 1, 512, 128, lengths=_seeded_lengths(16, 128, 512)),
    _case("packed", 64, "12/12", 128, 128, 64, lengths=_seeded_lengths(64, 8, 128), kind="packed"),
    _case("self-attention", 1, "12/12", 128, 128, 64, kind="self_attention"),
    *(
        _case(f"{name}-{modifier}", 1, heads, length, length, head_size, modifier)
        for (name, heads, length, head_size), modifier in itertools.product(
            (("minilm", "12/12", 32, 32), ("bert-512", "12/12", 512, 64), ("long-2k-d64", "8/8", 2048, 64)), MODIFIERS
        )
    ),
    _case("long-16k-window", 1, "1/1", 16384, 16384, 64, "window"),
)

CASES: Mapping[str, Case] = {case.title: case for case in CORE_CASES + EXTRA_CASES}


def find_cases(names: Iterable[str], dtypes: Iterable[str] = ()) -> list[Case]:
    """The cases of these names, each in all of these types, or in its own where none is given.

    "core" are the cases that stand for a type, "all" are all. ValueError where there is no such case.
    """
    found: list[Case] = []
    for dtype in tuple(dtypes) or (None,):
        for name in names:
            if name == "core":
                found += core_cases(dtype or "float32")
            elif name in CASES or name == "all":
                cases = CASES.values() if name == "all" else [CASES[name]]
                found += [replace(case, dtype=dtype or case.dtype) for case in cases]
            else:
                close = difflib.get_close_matches(name, CASES, n=1) or ["bert-128"]
                raise ValueError(f"expected core, all or the name of a case, such as {close[0]}; got {name!r}")
    return list(dict.fromkeys(found))


def case_of_shape(text: str, dtype: str = "float32", causal: bool = False) -> Case:
    """The case of a shape B,Hq/Hkv,Lq,Lk,D. ValueError where the text is none."""
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
    modifiers: frozenset[Modifier] = frozenset({"causal"} if causal else ())
    case = Case("", batch, heads, kv_heads, queries, keys, head_size, dtype, modifiers)
    return replace(case, name=f"{case.shape}-causal" if causal else case.shape)
