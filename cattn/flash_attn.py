"""Attention on CPUs with the names and semantics of the package flash_attn, 2.x.

The functions take NumPy arrays, which need nothing else to be installed, and PyTorch's CPU tensors, which have
gradients. Not affiliated with, nor endorsed by, the authors of FlashAttention.
"""

import sys

import numpy as np

import cattn

from ._calls import renamed
from ._modifiers import FAR, names_in
from ._read import as_array, as_flag, as_floats, as_index, as_integers, as_items, as_number, check_same_type, shown

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]

_UNLIMITED = (-1, -1)
_INPUTS = ("q", "k", "v")
# The words of cattn's errors, and flash_attn's. The colons keep a name apart from the same word in a sentence.
_WORDS = {"query": "q", "key": "k", "value": "v", "query_indptr": "cu_seqlens_q", "key_indptr": "cu_seqlens_k"}
_WORDS |= {f"{name}:": f"{theirs}:" for name, theirs in names_in("flash_attn").items()}


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=_UNLIMITED, softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, *, return_lse=False,
):  # fmt: skip
    """Compute attention over a batch of sequences of one length.

    Not affiliated with, nor endorsed by, the authors of FlashAttention.

    Parameters
    ----------
    q : Tensor or ndarray, shape (batch, Lq, H, D)
        The inputs are CPU tensors, or arrays, of float16, bfloat16, float32 or float64, with any strides. They are not
        copied.
    k : Tensor or ndarray, shape (batch, Lk, Hk, D)
        H must be a multiple of Hk. Head h of q reads head ``h // (H // Hk)``.
    v : Tensor or ndarray, shape (batch, Lk, Hk, Dv)
        It has the heads of k.
    dropout_p : float
        It must be 0, in training too, since cattn has no dropout.
    softmax_scale : float, optional
        The factor of the scores. The default is ``1 / sqrt(D)``.
    causal : bool
        If True, row i attends only to keys ``j <= p_i``, where ``p_i = i + Lk - Lq`` is its position (the bottom right
        corner).
    window_size : (left, right)
        Row i attends only to keys ``p_i - left <= j <= p_i + right``. -1 means no limit on that side. It may be a
        tuple, list, array or tensor of two integers.
    softcap : float
        Scores become ``softcap * tanh(score / softcap)``. 0 leaves them as they are.
    alibi_slopes : Tensor or ndarray, shape (H,) or (batch, H), optional
        The slopes of ALiBi, which adds ``-slope * |p_i - j|`` to the scores.
    deterministic : bool
        It has no effect. Results and gradients always have the same bits here.
    return_attn_probs : bool
        Return (out, lse, None). flash_attn returns three results, the third of which serves its tests of dropout. For
        the weights, call `cattn.attention_weights`.
    return_lse : bool
        Return (out, lse).

    Returns
    -------
    out : Tensor or ndarray, shape (batch, Lq, H, Dv), type of q
        Rows that may attend to nothing are zeros.
    lse : Tensor or ndarray, shape (batch, H, Lq)
        The logarithms of the softmax's denominators, which are returned only with return_lse or return_attn_probs. The
        type is float64 for float64 inputs, else float32. As in flash_attn, rows that may attend to nothing have
        **+inf**, where `cattn.attention` and `cattn.merge_attention` have -inf.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong. The message names it, what was expected and what was given.
    NotImplementedError
        A gradient is needed within a transform of torch.func or in forward mode, or, in a backward pass, the derivative
        of a gradient.

    Notes
    -----
    Tensors have gradients: those of q, k, v and alibi_slopes, and those of lse as well as of out. `attention_backward`
    of cattn computes them.

    The function follows Dao 2024, "FlashAttention-2", https://arxiv.org/abs/2307.08691, and the documentation of
    flash_attn, version 2.8.

    For tensors, the number of threads is that of `torch.get_num_threads`, unless `cattn.num_threads`,
    `cattn.set_num_threads` or CATTN_NUM_THREADS says another.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.flash_attn import flash_attn_func
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 128, 12, 64), np.float32)
    >>> flash_attn_func(q, k, v, causal=True).shape
    (1, 128, 12, 64)
    """
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
    house = _house(q)
    found = house.uncompiled(_batched, house, q, k, v, *given)
    return (*found, None) if return_attn_probs else found


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=_UNLIMITED, softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None, *, return_lse=False,
):  # fmt: skip
    """Compute attention over packed sequences: sequence n owns rows ``cu_seqlens[n]`` to ``cu_seqlens[n + 1]``.

    Not affiliated with, nor endorsed by, the authors of FlashAttention.

    Parameters
    ----------
    q : Tensor or ndarray, shape (total queries, H, D)
        The queries of all sequences, one sequence after the other.
    k : Tensor or ndarray, shape (total keys, Hk, D)
        The keys of all sequences.
    v : Tensor or ndarray, shape (total keys, Hk, Dv)
        The values of all sequences.
    cu_seqlens_q, cu_seqlens_k : Tensor or ndarray, shape (batch + 1,), of int32 or int64
        The row at which each sequence begins, and then the total number of rows. The numbers ascend from 0.
    max_seqlen_q, max_seqlen_k : int
        They must be at least the length of the longest sequence. The result does not depend on them.
    block_table
        It must be None, since cattn has no paged cache.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, return_lse
        As in `flash_attn_func`, with the lengths of each sequence.

    Returns
    -------
    out : Tensor or ndarray, shape (total queries, H, Dv)
        The rows of all sequences, as `flash_attn_func` gives them for each sequence alone.
    lse : Tensor or ndarray, shape (H, total queries)
        It is returned only with return_lse or return_attn_probs.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        They have the same causes as in `flash_attn_func`.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.flash_attn import flash_attn_varlen_func
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 128, 12, 64), np.float32)
    >>> indptr = np.array([0, 50, 51, 128], np.int32)
    >>> flash_attn_varlen_func(q, k, v, indptr, indptr, 77, 77, causal=True).shape
    (128, 12, 64)
    """
    if block_table is not None:
        raise ValueError(f"block_table: expected None, since cattn has no paged cache, got {shown(block_table)}")
    given = dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
    lengths = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    house = _house(q)
    found = house.uncompiled(_packed, house, q, k, v, *lengths, *given)
    return (*found, None) if return_attn_probs else found


def _batched(house, q, k, v, *given):
    house = _recording(house, q, k, v, *given)
    arrays = _read_inputs(house, 4, "(batch, length, heads, size)", q, k, v)
    options = _options(house, *given)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        options["query_offset"] = "end"
    return _attend(house, "attention", *arrays, layout="blhd", **options)


def _packed(house, q, k, v, cu_seqlens, max_seqlens, *given):
    house = _recording(house, q, k, v, *given)
    arrays = _read_inputs(house, 3, "(total length, heads, size)", q, k, v)
    for side, argument, most in zip("qk", cu_seqlens, max_seqlens, strict=True):
        indptr = as_integers(f"cu_seqlens_{side}", house.read(f"cu_seqlens_{side}", argument), -FAR, FAR)
        if indptr.ndim == 1:
            _check_longest(side, most, indptr)
        arrays.append(indptr)
    return _attend(house, "attention_varlen", *arrays, query_offset="end", **_options(house, *given))


class _Arrays:
    """Do for arrays what the module _tensors does for tensors."""

    read = staticmethod(as_array)

    @staticmethod
    def read_inputs(names, *given):
        arrays = [as_floats(name, argument) for name, argument in zip(names, given, strict=True)]
        for name, array in zip(names, arrays, strict=True):
            if array.dtype != arrays[0].dtype:
                check_same_type(name, array.dtype, names[0], arrays[0].dtype)
        return arrays

    @staticmethod
    def uncompiled(function, *given):
        return function(*given)

    @staticmethod
    def num_threads():
        return None

    @staticmethod
    def to_tensor(array):
        return array


def _house(q):
    """Return what reads the caller's arguments: the module _tensors for tensors, _Arrays for all others."""
    torch = sys.modules.get("torch")
    if not isinstance(q, getattr(torch, "Tensor", ())):
        return _Arrays
    from . import _tensors

    return _tensors


def _recording(house, *given):
    """Return the module _autograd if a gradient of something that was given is wanted, else the house itself."""
    if house is _Arrays or not house.is_recorded(*given):
        return house
    from . import _autograd

    return _autograd


def _read_inputs(house, ndim, axes, *given):
    arrays = [*house.read_inputs(_INPUTS, *given)]
    for name, array in zip(_INPUTS, arrays, strict=True):
        if array.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} axes {axes}, got shape {tuple(array.shape)}")
    return arrays


def _options(
    house, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_attn_probs, return_lse
):
    """Return flash_attn's options as the arguments of `cattn.attention`."""
    if _number("dropout_p", dropout_p) != 0:
        raise ValueError(f"dropout_p: expected 0, since cattn has no dropout, got {shown(dropout_p)}")
    options = {
        "scale": softmax_scale,
        "causal": causal,
        "return_lse": return_lse,
        "num_threads": house.num_threads(),
    }
    if return_attn_probs is not False:
        options["return_lse"] = as_flag("return_attn_probs", return_attn_probs) | as_flag("return_lse", return_lse)
    if window_size is not _UNLIMITED:  # what else is given may be an array, which == would compare by elements
        options["window"] = _window(window_size)
    softcap = _number("softcap", softcap)
    if softcap != 0:
        options["softcap"] = softcap
    if alibi_slopes is not None:
        options["alibi_slopes"] = house.read("alibi_slopes", alibi_slopes)
    return options


def _number(name, argument):
    """Return a float as it is, NaN included, and quickly. Anything else goes through `as_number`."""
    return argument if type(argument) is float else as_number(name, argument)


def _window(window_size):
    """Return a tuple of Python's numbers, whatever holds them. cattn.attention says whether they are a window."""

    def unpacked(argument):
        return as_array("window_size", argument).tolist() if hasattr(argument, "dtype") else argument

    window = unpacked(window_size)
    sides = as_items(window)
    return window if sides is None else tuple(map(unpacked, sides))


def _attend(house, name, *arrays, **options):
    function = getattr(house, name, None) or getattr(cattn, name)  # _autograd has functions of its own
    try:
        found = function(*arrays, **options)
    except (TypeError, ValueError) as error:
        raise renamed(error, _WORDS) from None
    if not options["return_lse"]:
        return house.to_tensor(found)
    out, lse = found
    return house.to_tensor(out), house.to_tensor(_as_theirs(lse.swapaxes(-1, -2)))


def _as_theirs(lse):
    if not isinstance(lse, np.ndarray):
        return lse.contiguous().masked_fill(lse == -np.inf, np.inf)
    lse = np.ascontiguousarray(lse)
    lse[lse == -np.inf] = np.inf
    return lse


def _check_longest(side, most, indptr):
    longest = int((indptr[1:] - indptr[:-1]).max(initial=0))
    expected = f"an integer of {longest} or more, the length of a sequence in cu_seqlens_{side}"
    as_index(f"max_seqlen_{side}: expected {expected}", most, longest)
