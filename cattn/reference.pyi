from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._kernel import (
    _Array,
    _Flag,
    _Integers,
    _KeyRange,
    _Layout,
    _Number,
    _Offset,
    _Stage,
    _Window,
)

__all__ = ["attention", "attention_varlen", "attention_weights", "error_bound"]

_Result: TypeAlias = NDArray[np.floating[Any]]  # float64, or longdouble

class _Modifiers(TypedDict, total=False):
    scale: _Number | None
    causal: _Flag
    window: _Window | None
    query_offset: _Offset | None
    key_range: _KeyRange | None
    query_lengths: _Integers | None
    key_lengths: _Integers | None
    mask: _Array | None
    bias: _Array | None
    alibi_slopes: _Array | None
    softcap: _Number | None
    sinks: _Array | None
    layout: _Layout

@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
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
    layout: _Layout = "bhld",
    return_lse: Literal[False] = False,
    dtype: DTypeLike | None = None,
) -> _Result: ...
@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
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
    layout: _Layout = "bhld",
    return_lse: Literal[True],
    dtype: DTypeLike | None = None,
) -> tuple[_Result, _Result]: ...
@overload
def attention(
    query: _Array,
    key: _Array,
    value: _Array,
    *,
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
    layout: _Layout = "bhld",
    return_lse: _Flag,
    dtype: DTypeLike | None = None,
) -> _Result | tuple[_Result, _Result]: ...
def attention_weights(
    query: _Array,
    key: _Array,
    *,
    stage: _Stage = "weights",
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
    layout: _Layout = "bhld",
    dtype: DTypeLike | None = None,
) -> _Result: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[False] = False,
    dtype: DTypeLike | None = None,
) -> _Result: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[True],
    dtype: DTypeLike | None = None,
) -> tuple[_Result, _Result]: ...
@overload
def attention_varlen(
    query: _Array,
    key: _Array,
    value: _Array,
    query_indptr: _Integers,
    key_indptr: _Integers,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: _Flag,
    dtype: DTypeLike | None = None,
) -> _Result | tuple[_Result, _Result]: ...
@overload
def error_bound(
    query: _Array, key: _Array, value: _Array, *, return_lse: Literal[False] = False, **modifiers: Unpack[_Modifiers]
) -> _Result: ...
@overload
def error_bound(
    query: _Array, key: _Array, value: _Array, *, return_lse: Literal[True], **modifiers: Unpack[_Modifiers]
) -> tuple[_Result, _Result]: ...
@overload
def error_bound(
    query: _Array, key: _Array, value: _Array, *, return_lse: _Flag, **modifiers: Unpack[_Modifiers]
) -> _Result | tuple[_Result, _Result]: ...
