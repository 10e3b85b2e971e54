"""Self-attention from the embeddings: the projections, the attention of every head and the output projection."""

import math

import numpy as np

from ._arithmetic import in_usual_arithmetic
from ._calls import explained, forwarding
from ._kernel import attention
from ._read import arithmetic, as_array, as_count, as_floats, cast, check_same_type, native, shown

# Signal handlers run between matrix products, so a long product is computed in blocks of rows. The work of a block is
# at most so many bytes of weights times rows, and its rows are a multiple of so many. Smaller blocks would cost speed.
_BLOCK_WORK = 2**35
_LEAST_ROWS = 256


# The contents of padded rows may overflow in a projection. This gives no warning, as in the attention.
@explained
@forwarding(attention, without=("key_scale", "value_scale", "layout", "out"))
@in_usual_arithmetic
def self_attention(
    x,
    w_query,
    w_key,
    w_value,
    w_output=None,
    *,
    b_query=None,
    b_key=None,
    b_value=None,
    b_output=None,
    num_heads=1,
    num_kv_heads=None,
    return_lse=False,
    **options,
):
    """Compute multi-head self-attention of a sequence of embeddings: one head, unless `num_heads` says how many.

    For each head, with the default scale, it computes::

        Q = x @ w_query + b_query,  K = x @ w_key + b_key,  V = x @ w_value + b_value
        context = softmax_rows(Q @ K.T / sqrt(D)) @ V

    The contexts of the heads are concatenated. If `w_output` is given, the result is multiplied by it. This is
    section 3.2 of Vaswani et al., "Attention Is All You Need" (2017), with optional biases.

    Parameters
    ----------
    x : array_like, shape (..., L, d_model)
        The embeddings of L tokens. float32 and float64 are computed in their own precision. int32 and int64
        count as float64. All arrays that take part in the projections must have one type.
    w_query : array_like, shape (d_model, num_heads * D)
        The projection to queries. Head h owns the columns h*D to (h+1)*D. The same holds for `w_key` and `w_value`.
    w_key : array_like, shape (d_model, num_kv_heads * D)
        The projection to keys.
    w_value : array_like, shape (d_model, num_kv_heads * Dv)
        The projection to values.
    w_output : array_like, shape (num_heads * Dv, d_out), optional
        The projection of the concatenated contexts to the output.
    b_query, b_key, b_value, b_output : array_like, 1-D, optional
        A number for each column of the projection of the same name, which is added to it.
    num_heads : int
        The number of query heads, 1 by default.
    num_kv_heads : int, optional
        The number of key/value heads. It must divide `num_heads`, which is the default. Query head h reads
        key/value head ``h // (num_heads // num_kv_heads)``.
    scale, causal, window, query_offset, key_range : optional
        As in `attention`, with L queries and L keys.
    query_lengths, key_lengths : int or int array over the axes before L, optional
        As in `attention`. For a padded batch, pass `key_lengths`.
    mask, bias : array_like, broadcastable to (..., num_heads, L, L), optional
        As in `attention`.
    alibi_slopes, softcap, sinks : optional
        As in `attention`.
    return_lse : bool
        Also return the logarithm of each row's softmax denominator.
    num_threads : int, optional
        The number of threads of the attention. NumPy computes the projections, with its own threads.

    Returns
    -------
    output : ndarray, shape (..., L, num_heads * Dv), or (..., L, d_out) with `w_output`
        It has the type of `x`. Rows at or past `query_lengths` have a context of zeros, to which `w_output` and
        `b_output` are still applied.
    lse : ndarray, shape (..., L, num_heads)
        It is returned only with `return_lse`. Its type is float64 for float64 inputs, else float32.

    Raises
    ------
    TypeError
        An array has a type that is not supported or differs from that of `x`; `num_heads` or `num_kv_heads` is not
        an integer; `b_output` comes without `w_output`.
    ValueError
        A shape does not fit, or the columns of a weight do not divide into the heads.

    See Also
    --------
    attention : Compute the step from query, key and value to the context.
    trace : Compute one head, and keep every matrix.

    Notes
    -----
    float16 and bfloat16 are storage types. The arrays are widened to float32, everything in between (query, key,
    value and context included) stays float32, and the result is rounded once, to the type of `x`. This is
    more accurate than storing the projections in 16 bits, and a float16 query cannot overflow.

    `torch.nn.MultiheadAttention` stores its weights transposed and the three projections stacked. Convert them so::

        w_query, w_key, w_value = (w.T for w in np.split(in_proj_weight, 3))
        b_query, b_key, b_value = np.split(in_proj_bias, 3)
        w_output, b_output = out_proj_weight.T, out_proj_bias

    The linear layers of a BERT layer likewise become ``weight.T`` and ``bias``. Transposed views are not copied.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((2, 5, 8), dtype=np.float32)
    >>> w_query, w_key, w_value, w_output = rng.standard_normal((4, 8, 8), dtype=np.float32)
    >>> cattn.self_attention(x, w_query, w_key, w_value, w_output, num_heads=2, causal=True).shape
    (2, 5, 8)
    """
    if w_output is None and b_output is not None:
        raise TypeError("b_output: expected None without w_output, got a bias")
    num_heads = as_count("num_heads", num_heads)
    num_kv_heads = num_heads if num_kv_heads is None else as_count("num_kv_heads", num_kv_heads, optional=True)
    if num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads: expected a divisor of num_heads={shown(num_heads)}, got {shown(num_kv_heads)}")

    optional = dict(w_output=w_output, b_query=b_query, b_key=b_key, b_value=b_value, b_output=b_output)
    arrays = float_arrays(
        x=x,
        w_query=w_query,
        w_key=w_key,
        w_value=w_value,
        **{name: array for name, array in optional.items() if array is not None},
    )
    check_shapes(arrays, num_heads, num_kv_heads)
    dtype = arrays["x"].dtype
    arrays = widened(arrays)
    x = arrays["x"]

    query, key, value = (
        split_heads(project(x, arrays[f"w_{name}"], arrays.get(f"b_{name}")), heads)
        for name, heads in (("query", num_heads), ("key", num_kv_heads), ("value", num_kv_heads))
    )
    output = attention(query, key, value, layout="blhd", return_lse=return_lse, **options)
    if return_lse:
        output, lse = output
    output = output.reshape(*x.shape[:-1], num_heads * value.shape[-1])
    if w_output is not None:
        output = project(output, arrays["w_output"], arrays.get("b_output"))
    output = output.astype(dtype, copy=False)
    return (output, lse) if return_lse else output


def float_arrays(**arguments):
    """Return the arguments as arrays of one floating type, in the machine's byte order."""
    given = {name: as_array(name, argument) for name, argument in arguments.items()}
    arrays = {name: as_floats(name, array) for name, array in given.items()}
    arrays = {name: array.astype(native(array.dtype), copy=False) for name, array in arrays.items()}
    for name, array in given.items():
        check_same_type(name, array.dtype, "x", given["x"].dtype)
    return arrays


def check_shapes(arrays, num_heads, num_kv_heads):
    """Raise ValueError where the shapes of x, the weights and the biases do not belong together."""
    x = arrays["x"]
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions (..., tokens, d_model), got shape {x.shape}")
    if x.ndim > 63:  # an array may have 64
        raise ValueError(f"x: expected at most 63 dimensions, because heads take one more, got {x.ndim}")
    _check_weight(arrays, "query", x.shape[-1], "the last axis of x", num_heads, "num_heads")
    _check_weight(arrays, "key", x.shape[-1], "the last axis of x", num_kv_heads, "num_kv_heads")
    _check_weight(arrays, "value", x.shape[-1], "the last axis of x", num_kv_heads, "num_kv_heads")

    w_query, w_key, w_value = arrays["w_query"], arrays["w_key"], arrays["w_value"]
    head_size, key_head_size = w_query.shape[1] // num_heads, w_key.shape[1] // num_kv_heads
    if key_head_size != head_size:
        raise ValueError(
            f"w_key: expected head size {head_size} like w_query, got {key_head_size} (shape {w_key.shape})"
        )
    if "w_output" in arrays:
        context_size = num_heads * (w_value.shape[1] // num_kv_heads)
        _check_weight(arrays, "output", context_size, "num_heads * value head size")


def _check_weight(arrays, name, rows, rows_like, heads=1, heads_name=None):
    weight, bias = arrays[f"w_{name}"], arrays.get(f"b_{name}")
    if weight.ndim != 2:
        raise ValueError(f"w_{name}: expected 2 dimensions (rows, columns), got shape {weight.shape}")
    if weight.shape[0] != rows:
        advice = f"; write w_{name}.T for a weight of torch.nn.Linear" if weight.shape[1] == rows else ""
        raise ValueError(
            f"w_{name}: expected {rows} rows like {rows_like}, got {weight.shape[0]} (shape {weight.shape}){advice}"
        )
    columns = weight.shape[1]
    if columns == 0 or columns % heads:
        multiple = "at least one column" if heads == 1 else f"a multiple of {heads_name}={shown(heads)} columns"
        raise ValueError(f"w_{name}: expected {multiple}, got {columns} (shape {weight.shape})")
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"b_{name}: expected shape ({columns},) like the columns of w_{name}, got {bias.shape}")


def widened(arrays):
    """Return the arrays in the type that is computed in: float64 stays, all others become or stay float32."""
    dtype = arithmetic(arrays["x"].dtype)
    return {name: array if array.dtype == dtype else cast(name, array, dtype) for name, array in arrays.items()}


def project(x, weight, bias=None):
    """Return x (..., rows) @ weight (rows, columns) + bias, as one matrix product for all leading dimensions."""
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), x.shape[-1])
    try:
        result = np.empty((len(rows), weight.shape[1]), x.dtype)
    except ValueError:  # NumPy raises it for more elements than any memory holds
        raise MemoryError(f"a projection of shape ({len(rows)}, {weight.shape[1]})") from None
    step = max(_LEAST_ROWS, _BLOCK_WORK // max(1, weight.nbytes) // _LEAST_ROWS * _LEAST_ROWS)
    for start in range(0, len(rows), step):
        block = result[start : start + step]
        np.matmul(rows[start : start + step], weight, out=block)
        if bias is not None:
            block += bias
    return result.reshape(*lead, weight.shape[1])


def split_heads(projection, heads):
    """Return a view of (..., L, heads * D) as (..., L, heads, D)."""
    *lead, columns = projection.shape
    return projection.reshape(*lead, heads, columns // heads)
