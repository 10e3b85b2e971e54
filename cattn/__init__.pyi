from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import reference as reference
from ._argument_types import (
    _T,
    _Array,
    _Flag,
    _Integers,
    _KeyRange,
    _Number,
    _Offset,
    _Window,
)
from ._gradients import Gradients as Gradients
from ._kernel import attention as attention
from ._kernel import attention_backward as attention_backward
from ._kernel import attention_paged as attention_paged
from ._kernel import attention_varlen as attention_varlen
from ._kernel import attention_weights as attention_weights
from ._kernel import maxsim as maxsim
from ._kernel import plan as plan
from ._plan import Plan as Plan
from ._version import __version__ as __version__

__all__ = [
    "AttentionTrace",
    "Gradients",
    "KVCache",
    "Plan",
    "__version__",
    "attention",
    "attention_backward",
    "attention_paged",
    "attention_varlen",
    "attention_weights",
    "get_include",
    "get_num_threads",
    "maxsim",
    "merge_attention",
    "num_threads",
    "pad",
    "plan",
    "quantize",
    "reference",
    "self_attention",
    "set_num_threads",
    "show_config",
    "trace",
    "unpad",
]

_S = TypeVar("_S", bound=np.generic)  # arrays of any type, not of floats alone

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
    modifiers: tuple[str, ...] = ()
    def plot(self, ax: Any = None) -> Any: ...

class KVCache:
    def __init__(
        self,
        batch: SupportsIndex,
        num_kv_heads: SupportsIndex,
        head_size: SupportsIndex,
        *,
        value_size: SupportsIndex | None = None,
        dtype: DTypeLike = "float32",
        window: SupportsIndex | None = None,
        capacity: SupportsIndex = 0,
    ) -> None: ...
    @property
    def lengths(self) -> NDArray[np.int64]: ...
    @property
    def starts(self) -> NDArray[np.int64]: ...
    @property
    def key(self) -> NDArray[Any]: ...
    @property
    def value(self) -> NDArray[Any]: ...
    @property
    def key_scale(self) -> NDArray[np.float32] | None: ...
    @property
    def value_scale(self) -> NDArray[np.float32] | None: ...
    @property
    def nbytes(self) -> int: ...
    def append(self, key: _Array, value: _Array, lengths: _Integers | None = None) -> None: ...
    @overload
    def attend(
        self,
        query: NDArray[_T],
        query_lengths: _Integers | None = None,
        *,
        return_lse: Literal[False] = False,
        **modifiers: Any,
    ) -> NDArray[_T]: ...
    @overload
    def attend(
        self,
        query: NDArray[_T],
        query_lengths: _Integers | None = None,
        *,
        return_lse: Literal[True],
        **modifiers: Any,
    ) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
    @overload
    def attend(self, query: _Array, query_lengths: _Integers | None = None, **modifiers: Any) -> Any: ...
    def truncate(self, lengths: _Integers) -> None: ...
    def reorder(self, index: _Integers) -> None: ...

@overload
def merge_attention(
    outputs: Iterable[NDArray[_T]], lses: Iterable[_Array]
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
@overload
def merge_attention(
    outputs: Iterable[_Array], lses: Iterable[_Array]
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def pad(packed: NDArray[_S], indptr: _Integers, length: SupportsIndex | None = None) -> NDArray[_S]: ...
@overload
def pad(packed: _Array, indptr: _Integers, length: SupportsIndex | None = None) -> NDArray[Any]: ...
def quantize(x: _Array, *, axis: SupportsIndex) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
@overload
def self_attention(
    x: NDArray[_T],
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    w_output: _Array | None = None,
    *,
    b_query: _Array | None = None,
    b_key: _Array | None = None,
    b_value: _Array | None = None,
    b_output: _Array | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]: ...
@overload
def self_attention(
    x: NDArray[_T],
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    w_output: _Array | None = None,
    *,
    b_query: _Array | None = None,
    b_key: _Array | None = None,
    b_value: _Array | None = None,
    b_output: _Array | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
@overload
def self_attention(
    x: _Array,
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    w_output: _Array | None = None,
    *,
    b_query: _Array | None = None,
    b_key: _Array | None = None,
    b_value: _Array | None = None,
    b_output: _Array | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
@overload
def self_attention(
    x: _Array,
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    w_output: _Array | None = None,
    *,
    b_query: _Array | None = None,
    b_key: _Array | None = None,
    b_value: _Array | None = None,
    b_output: _Array | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def self_attention(
    x: _Array,
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    w_output: _Array | None = None,
    *,
    b_query: _Array | None = None,
    b_key: _Array | None = None,
    b_value: _Array | None = None,
    b_output: _Array | None = None,
    num_heads: SupportsIndex = 1,
    num_kv_heads: SupportsIndex | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
def trace(
    x: _Array,
    w_query: _Array,
    w_key: _Array,
    w_value: _Array,
    *,
    tokens: Iterable[object] | None = None,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_range: _KeyRange | None = None,
    query_lengths: _Integers | None = None,
    key_lengths: _Integers | None = None,
    mask: _Array | None = None,
    bias: _Array | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
) -> AttentionTrace: ...
@overload
def unpad(x: NDArray[_S], lengths: _Integers) -> tuple[NDArray[_S], NDArray[np.int64]]: ...
@overload
def unpad(x: _Array, lengths: _Integers) -> tuple[NDArray[Any], NDArray[np.int64]]: ...
def set_num_threads(n: SupportsIndex | None) -> None: ...
def num_threads(n: SupportsIndex) -> AbstractContextManager[None]: ...
def get_include() -> str: ...
def get_num_threads() -> int: ...
def show_config() -> None: ...
