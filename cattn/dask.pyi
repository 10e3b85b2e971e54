from typing import Any, Literal, SupportsIndex, TypeAlias, overload

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["attention"]

_Array: TypeAlias = ArrayLike
_Chunked: TypeAlias = da.Array | ArrayLike
_Flag: TypeAlias = bool | np.bool_
_Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
_Integer: TypeAlias = int | np.integer[Any]
_Integers: TypeAlias = _Integer | NDArray[np.integer[Any]] | list[int]
_Side: TypeAlias = _Integer | None
_Window: TypeAlias = tuple[_Side, _Side] | list[_Side]
_Offset: TypeAlias = Literal["start", "end"] | _Integers

@overload
def attention(
    query: _Chunked,
    key: da.Array,
    value: da.Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_lengths: _Integers | None = None,
    mask: _Chunked | None = None,
    bias: _Chunked | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = 1,
    kernel_table: str | None = None,
) -> da.Array: ...
@overload
def attention(
    query: _Chunked,
    key: da.Array,
    value: da.Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_lengths: _Integers | None = None,
    mask: _Chunked | None = None,
    bias: _Chunked | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = 1,
    kernel_table: str | None = None,
) -> tuple[da.Array, da.Array]: ...
@overload
def attention(
    query: _Chunked,
    key: da.Array,
    value: da.Array,
    *,
    scale: _Number | None = None,
    causal: _Flag = False,
    window: _Window | None = None,
    query_offset: _Offset | None = None,
    key_lengths: _Integers | None = None,
    mask: _Chunked | None = None,
    bias: _Chunked | None = None,
    alibi_slopes: _Array | None = None,
    softcap: _Number | None = None,
    sinks: _Array | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = 1,
    kernel_table: str | None = None,
) -> da.Array | tuple[da.Array, da.Array]: ...
