from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reference as reference
from ._plan import Plan as Plan
from ._version import __version__ as __version__

__all__ = [
    "AttentionTrace",
    "Plan",
    "__version__",
    "attention",
    "attention_varlen",
    "attention_weights",
    "get_include",
    "get_num_threads",
    "merge_attention",
    "plan",
    "reference",
    "self_attention",
    "set_num_threads",
    "show_config",
    "trace",
]

_Flag: TypeAlias = bool | np.bool_
_Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
_Integer: TypeAlias = int | np.integer[Any]
_Integers: TypeAlias = _Integer | NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]]
_Side: TypeAlias = _Integer | None
_Window: TypeAlias = tuple[_Side, _Side] | list[_Side]
_Offset: TypeAlias = Literal["start", "end"] | _Integers
_KeyRange: TypeAlias = tuple[_Integers | None, _Integers | None] | list[_Integers | None]
_Layout: TypeAlias = Literal["bhld", "blhd"]

@dataclass(frozen=True, eq=False, repr=False)
class AttentionTrace:
    x: NDArray[Any]
    query: NDArray[Any]
    key: NDArray[Any]
    value: NDArray[Any]
    scores: NDArray[Any]
    scaled_scores: NDArray[Any]
    final_scores: NDArray[Any]
    weights: NDArray[Any]
    context: NDArray[Any]
    scale: float
    tokens: tuple[str, ...] | None = None
    def plot(self, ax: Any = None) -> Any: ...

@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]: ...
def attention_weights(
    query: ArrayLike,
    key: ArrayLike,
    *,
    stage: Literal["scores", "softcapped", "biased", "weights"] = "weights",
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    layout: _Layout = "bhld",
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]: ...
def merge_attention(outputs: Iterable[ArrayLike], lses: Iterable[ArrayLike]) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def self_attention(
    x: ArrayLike,
    w_query: ArrayLike,
    w_key: ArrayLike,
    w_value: ArrayLike,
    w_output: ArrayLike | None = None,
    *,
    b_query: ArrayLike | None = None,
    b_key: ArrayLike | None = None,
    b_value: ArrayLike | None = None,
    b_output: ArrayLike | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def self_attention(
    x: ArrayLike,
    w_query: ArrayLike,
    w_key: ArrayLike,
    w_value: ArrayLike,
    w_output: ArrayLike | None = None,
    *,
    b_query: ArrayLike | None = None,
    b_key: ArrayLike | None = None,
    b_value: ArrayLike | None = None,
    b_output: ArrayLike | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
@overload
def self_attention(
    x: ArrayLike,
    w_query: ArrayLike,
    w_key: ArrayLike,
    w_value: ArrayLike,
    w_output: ArrayLike | None = None,
    *,
    b_query: ArrayLike | None = None,
    b_key: ArrayLike | None = None,
    b_value: ArrayLike | None = None,
    b_output: ArrayLike | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]: ...
def trace(
    x: ArrayLike,
    w_query: ArrayLike,
    w_key: ArrayLike,
    w_value: ArrayLike,
    *,
    tokens: Iterable[object] | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
) -> AttentionTrace: ...
def plan(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    softcap: _Number | None = None,
    sinks: ArrayLike | None = None,
    layout: _Layout = "bhld",
    out: NDArray[Any] | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> Plan: ...
def set_num_threads(n: SupportsIndex | None) -> None: ...
def get_include() -> str: ...
def get_num_threads() -> int: ...
def show_config() -> None: ...
