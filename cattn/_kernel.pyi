"""The compiled functions. Their docstrings are copies of those in the module, by tools/copy_docstrings.py: editors read
nothing else. The types of arguments stand here too, named so that an error of a type checker stays short."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ._plan import Plan

class _Array(Protocol):
    """What np.asarray makes an array of numbers of: arrays, tensors of others, lists and tuples, however deep."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def __iter__(self) -> Iterator[SupportsFloat | _Row]: ...

class _Row(Protocol):
    """A list or an array inside a list; no text, which has another __contains__."""

    def __contains__(self, element: object, /) -> bool: ...
    def __iter__(self) -> Iterator[SupportsFloat | _Row]: ...

class _IntLists(Protocol):
    """Lists and tuples, however deep; no array has an `index`."""

    def __contains__(self, element: object, /) -> bool: ...
    def __iter__(self) -> Iterator[SupportsIndex | _IntLists]: ...
    def index(self, element: Any, /) -> int: ...

class _Number(Protocol):
    """float, int and the scalars of NumPy; arrays cannot be rounded this way."""

    def __float__(self) -> float: ...
    def __round__(self) -> int: ...

_T = TypeVar("_T", bound=np.floating[Any])  # bfloat16, which NumPy does not know, is only Any
_Exact = TypeVar("_Exact", np.float32, np.float64)
_Flag: TypeAlias = bool | np.bool_
_Integers: TypeAlias = SupportsIndex | _IntLists  # an array of integers is the first, to checkers
_Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None]
_Offset: TypeAlias = Literal["start", "end"] | _Integers
_KeyRange: TypeAlias = tuple[_Integers | None, _Integers | None]
_Layout: TypeAlias = Literal["bhld", "blhd"]
_Stage: TypeAlias = Literal["scores", "softcapped", "biased", "weights"]

__test__: dict[str, str]  # for doctest, by Cython

@overload
def attention(
    query: NDArray[_T],
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
    out: NDArray[_T] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]:
    """Exact scaled dot-product attention: softmax(scale · query · keyᵀ) · value, fused, row by row stable.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
        Hq heads of Lq queries. 3-D is (H, L, D); if all three inputs are 2-D there is one head, and no axis for it.
        float32 and float64 compute in their own precision; float16 and bfloat16 are read and written, and float32 is
        computed. Any strides and byte order; int32 and int64 count as float64.
    key : array_like, shape (..., Hkv, Lk, D)
        Hq is a multiple of Hkv, and query head h reads key/value head ``h // (Hq // Hkv)``. Leading axes broadcast.
        Of the type of query; beside float32 queries also float16 or bfloat16.
    value : array_like, shape (..., Hkv, Lk, Dv)
        Of the type of key.
    scale : float, optional
        Factor of each q·k. Default ``1 / sqrt(D)``.
    causal : bool
        Query i attends to keys ``j <= p_i`` only, where its position is ``p_i = query_offset + i``.
    window : (left, right), optional
        ``p_i - left <= j <= p_i + right`` only; None or -1 is no limit on that side.
    query_offset : {"start", "end"}, int, or int array over the leading axes, optional
        Where query 0 stands among the keys. "start" is 0; "end" is key length - query length, as a cache of keys wants
        it. Must be given where positions matter (causal, window, alibi_slopes) and the lengths differ.
    key_range : (start, stop), optional
        Integer arrays (or None) that broadcast to (..., Hq, Lq): row i attends to ``start <= j < stop`` only.
    query_lengths, key_lengths : int or int array over the leading axes, optional
        What lies at or past them does not exist: keys are not seen, queries give zeros and an lse of -inf.
    mask : bool array_like, broadcastable to (..., Hq, Lq, Lk), optional
        True where a query may attend to a key.
    bias : array_like, broadcastable to (..., Hq, Lq, Lk), optional
        Added to the scores. -inf masks; a finite bias never does.
    alibi_slopes : array_like, shape (Hq,), or (..., Hq) over the leading axes, optional
        Adds ``-slope · |p_i - j|`` (Press et al. 2022, section 3).
    softcap : float, optional
        Scores become ``softcap · tanh(score / softcap)`` before bias and ALiBi (Gemma 2, section 2).
    sinks : array_like, shape (Hq,), optional
        One more logit a head, which takes weight and carries no value; -inf is none.
    layout : {"bhld", "blhd"}
        "blhd": query, key, value and out are (..., L, H, D), lse is (..., L, H). Modifiers keep their shapes.
    out : ndarray, optional
        Where to write the output: its shape and type, no overlap with an input or with itself. For float16 and bfloat16
        queries it may be float32: the result is not rounded then, as parts that are to be merged want it.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    num_threads : int, optional
        Beats `set_num_threads`. The result is the same, bit for bit, for any number.

    Returns
    -------
    out : ndarray, shape (..., Hq, Lq, Dv), type of query, unless `out` was given
        Zeros in rows that may attend to nothing.
    lse : ndarray, shape ``out.shape[:-1]``
        Only with return_lse; float64 for float64 inputs, else float32; -inf in rows that may attend to nothing.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came. Nothing has been written then.
    MemoryError
        There is no memory for the output or the workspace.

    See Also
    --------
    attention_varlen : Packed sequences, without padding.
    attention_weights : The matrix of weights or scores, which `attention` never holds.
    merge_attention : Join the results of disjoint sets of keys.
    self_attention : The whole line from embeddings, projections included.

    Notes
    -----
    Vaswani et al. 2017, section 3.2.1, with the online softmax of Milakov and Gimelshein 2018. No array of size
    Lq × Lk exists at any time. What is masked never reaches the output, NaN and infinity included.

    Whatever is below the smallest normal number counts as 0: weights, values, and their products. Weighted values are
    summed before the division by the sum of weights, which is at most Lk: values beyond the type's largest number / Lk
    may give infinity.

    How accurate the result is, is written in `cattn.reference.attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 1, 12, 128, 64), dtype=np.float32)
    >>> context = cattn.attention(query, key, value, causal=True)
    >>> context.shape, context.dtype
    ((1, 12, 128, 64), dtype('float32'))

    Decoding: one query stands at the end of a cache of keys.

    >>> newest = cattn.attention(query[:, :, -1:], key, value, causal=True, query_offset="end")
    >>> np.allclose(newest, context[:, :, -1:], atol=1e-6)
    True

    A padded batch, of which the second entry has 77 keys:

    >>> batch = [np.concatenate([x, x]) for x in (query, key, value)]
    >>> padded = cattn.attention(*batch, key_lengths=[128, 77])
    >>> np.array_equal(padded[1], cattn.attention(query, key[:, :, :77], value[:, :, :77])[0])
    True
    """

@overload
def attention(
    query: NDArray[_T],
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
    out: NDArray[_T] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
@overload
def attention_weights(
    query: NDArray[_Exact],
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
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Exact]:
    """The scores of attention at one stage, or its weights: what `attention` never holds at once.

    Parameters
    ----------
    query : array_like, shape (..., Hq, Lq, D)
        As in `attention`.
    key : array_like, shape (..., Hkv, Lk, D)
        As in `attention`.
    stage : {"weights", "scores", "softcapped", "biased"}
        "scores" are scale · q·k; "softcapped" follow the softcap; "biased" are final, -inf where masked; "weights" are
        their softmax by row.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`. A stage does not need what comes after it.
    mask, bias, alibi_slopes, softcap, sinks : optional
        As in `attention`.
    layout : {"bhld", "blhd"}
        Of query and key.
    num_threads : int, optional
        As in `attention`.

    Returns
    -------
    ndarray, shape (..., Hq, Lq, Lk), in either layout
        float64 for float64 inputs, else float32. Rows of weights sum to 1, less what a sink takes; rows that may attend
        to nothing are zeros.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.

    See Also
    --------
    attention : The weighted sums of values, without this matrix.
    trace : Every matrix of one head, from the embeddings on.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    >>> cattn.attention_weights(x, x, causal=True).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.056, 0.944, 0.   ],
           [0.198, 0.401, 0.401]])
    >>> cattn.attention_weights(x, x, stage="scores", scale=1.0)
    array([[1., 0., 1.],
           [0., 4., 2.],
           [1., 2., 2.]])
    """

@overload
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
    num_threads: SupportsIndex | None = None,
) -> NDArray[np.floating[Any]]: ...
@overload
def attention_varlen(
    query: NDArray[_T],
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
    out: NDArray[_T] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_T]:
    """Attention over packed sequences: sequence n owns rows ``indptr[n]:indptr[n + 1]`` of each array.

    Parameters
    ----------
    query : array_like, shape (total queries, Hq, D)
        The queries of all sequences, one after the other.
    key : array_like, shape (total keys, Hkv, D)
        Their keys, whose numbers may differ from those of the queries.
    value : array_like, shape (total keys, Hkv, Dv)
        Their values.
    query_indptr, key_indptr : int array_like, shape (sequences + 1,)
        Ascending, from 0 to the total.
    scale, causal, window : optional
        As in `attention`.
    query_offset : {"start", "end"}, int, or int array of shape (sequences,), optional
        Where query 0 of each sequence stands among its keys, as in `attention`.
    alibi_slopes : array_like, shape (Hq,), or (sequences, Hq), optional
        As in `attention`.
    softcap, sinks, out, return_lse, num_threads : optional
        As in `attention`.

    Returns
    -------
    out : ndarray, shape (total queries, Hq, Dv)
        The bits that `attention` gives for each sequence by itself.
    lse : ndarray, shape (total queries, Hq)
        Only with return_lse.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.

    See Also
    --------
    attention : Arrays with an axis for the batch.

    Examples
    --------
    Sequences of 2, 1 and 3 tokens:

    >>> import numpy as np
    >>> import cattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 6, 4, 8))  # (total, heads, head size)
    >>> indptr = [0, 2, 3, 6]
    >>> context = cattn.attention_varlen(query, key, value, indptr, indptr, causal=True)
    >>> context.shape
    (6, 4, 8)
    >>> alone = cattn.attention(query[3:], key[3:], value[3:], layout="blhd", causal=True)
    >>> np.array_equal(context[3:], alone)
    True
    """

@overload
def attention_varlen(
    query: NDArray[_T],
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
    out: NDArray[_T] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[_T], NDArray[np.floating[Any]]]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: Literal[False] = False,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: Literal[True],
    num_threads: SupportsIndex | None = None,
) -> tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
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
    out: NDArray[Any] | None = None,
    return_lse: _Flag,
    num_threads: SupportsIndex | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.floating[Any]]]: ...
def plan(
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
    out: NDArray[Any] | None = None,
    return_lse: _Flag = False,
    num_threads: SupportsIndex | None = None,
) -> Plan:
    """How `attention` would go about a call with the same arguments: strategy, tiles, tasks, workspace.

    Parameters
    ----------
    query, key, value : array_like
        As in `attention`.
    scale, causal, window, query_offset, key_range, query_lengths, key_lengths : optional
        As in `attention`.
    mask, bias, alibi_slopes, softcap, sinks, layout, out, return_lse, num_threads : optional
        As in `attention`. Nothing is computed, and `out` is not written.

    Returns
    -------
    Plan
        It follows from shapes, types and the machine, not from data.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `attention` does.

    See Also
    --------
    attention : The call itself.
    show_config : What is known of the machine.

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> x = np.ones((1, 12, 128, 64), np.float32)
    >>> cattn.plan(x, x, x).strategy
    'many rows'
    >>> cattn.plan(x[:, :, :1], x, x).strategy  # decoding: one query a head
    'few rows'
    """

def isa() -> str:
    """Name of the kernel table in use."""

def runnable_isas() -> list[str]:
    """Names of the kernel tables that this build has and this processor runs, best first."""

def table_address(name: str) -> int:
    """Where a kernel table of this name lies, complete, for tests that call its kernels one by one. It stays there."""

def l2_bytes() -> int:
    """The second-level cache of one core that plans are made for."""

c_api: object
