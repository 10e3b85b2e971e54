"""A user's program, for type checkers: each public name in right use, and what comes back. It runs, too."""

import typing
from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import cattn
from cattn import reference

Floating = np.floating[Any]  # float32 or float64: checkers cannot tell which

x16 = np.ones((2, 3, 4), np.float16)
x32 = np.ones((2, 3, 4), np.float32)
x64 = np.ones((2, 3, 4), np.float64)
integers = np.ones((2, 3, 4), np.int64)
lists = [[1.0, 2.0], [3.0, 4.0]]
unknown: NDArray[Any] = x32
flag: bool = bool(x32.all())


def check(array: NDArray[Any], dtype: type[Floating]) -> None:
    assert array.dtype == dtype


# float16 in, float16 out, and so on; the lse is float32 or float64.
half = cattn.attention(x16, x16, x16)
assert_type(half, NDArray[np.float16])
check(half, np.float16)
single = cattn.attention(x32, x32, x32, causal=True)
assert_type(single, NDArray[np.float32])
check(single, np.float32)
double, double_lse = cattn.attention(x64, x64, x64, return_lse=True)
assert_type(double, NDArray[np.float64])
assert_type(double_lse, NDArray[Floating])
check(double, np.float64)
check(double_lse, np.float64)
mixed = cattn.attention(x32, x16, x16)
assert_type(mixed, NDArray[np.float32])
check(mixed, np.float32)
written = np.empty_like(x32)
assert_type(cattn.attention(x32, x32, x32, out=written), NDArray[np.float32])

# What is neither is an array of Any, and nobody is told a wrong type.
assert_type(cattn.attention(lists, lists, lists), NDArray[Any])
assert_type(cattn.attention(integers, integers, integers), NDArray[Any])
assert_type(cattn.attention(unknown, unknown, unknown), NDArray[Any])
assert_type(cattn.attention(lists, lists, lists, return_lse=True), tuple[NDArray[Any], NDArray[Floating]])
unrounded: NDArray[Any] = cattn.attention(x16, x16, x16, out=written)
check(unrounded, np.float32)
either = cattn.attention(unknown, x32, x32, return_lse=flag)
assert_type(either, NDArray[Any] | tuple[NDArray[Any], NDArray[Floating]])


class Tensor:
    """Another house's array, with no more than JAX's has."""

    def __len__(self) -> int:
        return len(x32)

    def __getitem__(self, index: Any, /) -> "Tensor":
        raise NotImplementedError

    def __iter__(self) -> Iterator["Tensor"]:
        raise NotImplementedError

    def __float__(self) -> float:
        raise NotImplementedError

    def __index__(self) -> int:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return x32


tensor = Tensor()
assert_type(cattn.attention(tensor, tensor, tensor, bias=[[0, 0.5, np.float32(1)]]), NDArray[Any])
cattn.attention(x32, x32, x32, mask=x32[..., :3] > 0 if flag else [[True, False, np.bool_(True)]])
cattn.attention(x32, x32, x32, bias=[x32[0, :, :3], x32[1, :, :3]])

# Modifiers: Python's numbers, NumPy's, lists, arrays.
cattn.attention(
    x32,
    x32,
    x32,
    scale=np.float32(0.5),
    causal=np.bool_(True),
    window=(np.int64(2), None),
    query_offset=0,
    key_range=([[0, 0, 0], [1, 1, 1]], np.full((2, 3), 3)),
    query_lengths=np.int32(3),
    key_lengths=np.array(2),
    mask=np.ones((3, 3), np.bool_),
    bias=[[0.0, 1.0, 2.0]] * 3,
    alibi_slopes=[0.5, np.float64(0.25)],
    softcap=30,
    sinks=np.zeros(2),
    layout="bhld",
    num_threads=np.int64(1),
)
batch = np.ones((2, 2, 3, 4), np.float32)
cattn.attention(batch, batch, batch, key_lengths=[2, 3], query_offset=range(2), window=(1, 1))
cattn.attention(batch, batch[..., :2, :], batch[..., :2, :], causal=True, query_offset="end", layout="bhld")

assert_type(cattn.attention_weights(x32, x32), NDArray[np.float32])
assert_type(cattn.attention_weights(x64, x64, stage="biased", mask=[[True, False, True]] * 3), NDArray[np.float64])
assert_type(cattn.attention_weights(x16, x16, stage="scores"), NDArray[Floating])

assert_type(cattn.attention_varlen(x32, x32, x32, [0, 2], np.array([0, 2])), NDArray[np.float32])
assert_type(
    cattn.attention_varlen(x32, x32, x32, (0, 1, 2), (0, 1, 2), query_offset=[0, 1], causal=True, return_lse=True),
    tuple[NDArray[np.float32], NDArray[Floating]],
)

parts = [cattn.attention(x32, x32, x32, return_lse=True) for _ in range(2)]
outputs, lses = [out for out, _ in parts], [lse for _, lse in parts]
assert_type(cattn.merge_attention(outputs, lses), tuple[NDArray[np.float32], NDArray[Floating]])
assert_type(cattn.merge_attention([lists], [[1.0, 2.0]]), tuple[NDArray[Any], NDArray[Floating]])

packed, indptr = cattn.unpad(x32, [2, 3])
assert_type(packed, NDArray[np.float32])
assert_type(indptr, NDArray[np.int64])
assert_type(cattn.pad(packed, indptr), NDArray[np.float32])
assert_type(cattn.pad(indptr, [0, 3], 5), NDArray[np.int64])
assert_type(cattn.pad(cattn.unpad([[1, 2], [3, 0]], np.array([2, 1]))[0], (0, 2, 3)), NDArray[Any])

weight = np.ones((4, 4), np.float32)
assert_type(cattn.self_attention(x32, weight, weight, weight, weight, num_heads=2), NDArray[np.float32])
assert_type(
    cattn.self_attention(x32, weight, weight, weight, b_query=weight[0], key_lengths=[2, 3], return_lse=True),
    tuple[NDArray[np.float32], NDArray[Floating]],
)

steps = cattn.trace(x64[0], np.eye(4), np.eye(4), np.eye(4), tokens=["The", "cat", "sat"], causal=True)
assert_type(steps, cattn.AttentionTrace)
assert_type(steps.weights, NDArray[Any])
assert_type(steps.tokens, tuple[str, ...] | None)
assert_type(steps.scale, float)
if typing.TYPE_CHECKING:  # without matplotlib it cannot run
    steps.plot(ax=None).figure.savefig("weights.png")

cache = cattn.KVCache(2, np.int64(1), 4, value_size=4, dtype=np.float32, window=None, capacity=8)
assert_type(cache.append(x32[:, None], x32[:, None], lengths=[3, 2]), None)
assert_type(cache.lengths, NDArray[np.int64])
assert_type(cache.starts, NDArray[np.int64])
assert_type(cache.key, NDArray[Any])
assert_type(cache.value, NDArray[Any])
assert_type(cache.nbytes, int)
heads = x32[:, None, -2:]
assert_type(cache.attend(heads, query_lengths=[2, 2], softcap=3.0), NDArray[np.float32])
assert_type(cache.attend(heads, return_lse=True), tuple[NDArray[np.float32], NDArray[Floating]])
cache.truncate(2)
cache.reorder([1, 1, 0])

plan = cattn.plan(x32, x32, x32, return_lse=True, num_threads=1)
assert_type(plan, cattn.Plan)
assert_type(plan.strategy, str)
assert_type(plan.workspace_bytes, int)

assert_type(reference.attention(x32, x32, x32, causal=True), NDArray[Floating])
assert_type(reference.attention(lists, lists, lists, return_lse=True), tuple[NDArray[Floating], NDArray[Floating]])
assert_type(cattn.reference.attention_weights(x32, x32, dtype=np.longdouble), NDArray[Floating])
assert_type(reference.attention_varlen(x32, x32, x32, [0, 2], [0, 2], softcap=3.0), NDArray[Floating])
assert_type(reference.error_bound(x32, x32, x32, causal=True), NDArray[Floating])
assert_type(reference.error_bound(x32, x32, x32, return_lse=True), tuple[NDArray[Floating], NDArray[Floating]])
assert_type(reference.maxsim_error_bound(x32, x32), NDArray[Floating])

cattn.set_num_threads(2)
assert_type(cattn.get_num_threads(), int)
cattn.set_num_threads(None)
with cattn.num_threads(2):
    cattn.attention(x32, x32, x32)
cattn.show_config()
assert_type(cattn.__version__, str)
