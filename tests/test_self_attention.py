"""self_attention is the projections, the attention of every head and the output projection, and nothing else."""

import numpy as np
import pytest

import cattn


def expected(
    x, w_query, w_key, w_value, w_output=None, *, b_query=0, b_key=0, b_value=0, b_output=0, heads=1, kv_heads=1
):
    """The formula, head by head, in float64."""
    x, w_query, w_key, w_value = (np.asarray(a, dtype=np.float64) for a in (x, w_query, w_key, w_value))
    queries = np.split(x @ w_query + b_query, heads, axis=-1)
    keys = np.split(x @ w_key + b_key, kv_heads, axis=-1)
    values = np.split(x @ w_value + b_value, kv_heads, axis=-1)
    contexts = []
    for head, query in enumerate(queries):
        key, value = keys[head * kv_heads // heads], values[head * kv_heads // heads]
        weights = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]))
        contexts.append(weights / weights.sum(axis=-1, keepdims=True) @ value)
    context = np.concatenate(contexts, axis=-1)
    return context if w_output is None else context @ np.asarray(w_output, dtype=np.float64) + b_output


def draw(rng, *shape, dtype=np.float64):
    return (rng.standard_normal(shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def inputs(rng):
    """x of 5 tokens with d_model 12, and three square weights."""
    return draw(rng, 5, 12), *(draw(rng, 12, 12) for _ in range(3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_bert_layer(rng, dtype, tolerance):
    # Linear layers keep (out, in): the weights are transposed views.
    batch, length, size, heads = 2, 17, 48, 4
    x = draw(rng, batch, length, size, dtype=dtype)
    w_query, w_key, w_value, w_output = (draw(rng, size, size, dtype=dtype).T for _ in range(4))
    b_query, b_key, b_value, b_output = (draw(rng, size, dtype=dtype) for _ in range(4))
    biases = dict(b_query=b_query, b_key=b_key, b_value=b_value, b_output=b_output)
    output = cattn.self_attention(x, w_query, w_key, w_value, w_output, num_heads=heads, **biases)
    assert output.dtype == dtype
    assert output.shape == (batch, length, size)
    reference = expected(x, w_query, w_key, w_value, w_output, heads=heads, kv_heads=heads, **biases)
    np.testing.assert_allclose(output, reference, rtol=0, atol=tolerance)


def test_multihead_attention_weights(rng):
    size, heads = 24, 3
    in_proj_weight, in_proj_bias = draw(rng, 3 * size, size), draw(rng, 3 * size)
    out_proj_weight, out_proj_bias = draw(rng, size, size), draw(rng, size)
    x = draw(rng, 9, 2, size).swapaxes(0, 1)  # (length, batch, size), as without batch_first
    w_query, w_key, w_value = (w.T for w in np.split(in_proj_weight, 3))
    b_query, b_key, b_value = np.split(in_proj_bias, 3)
    biases = dict(b_query=b_query, b_key=b_key, b_value=b_value, b_output=out_proj_bias)
    output = cattn.self_attention(x, w_query, w_key, w_value, out_proj_weight.T, num_heads=heads, **biases)
    reference = expected(x, w_query, w_key, w_value, out_proj_weight.T, heads=heads, kv_heads=heads, **biases)
    np.testing.assert_allclose(output, reference, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_torch(masked):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    torch.nn.init.normal_(module.in_proj_bias)
    torch.nn.init.normal_(module.out_proj.bias)
    x = torch.randn(3, 10, 32)
    lengths = np.array([10, 7, 1])
    padding = torch.from_numpy(np.arange(10) >= lengths[:, None]) if masked else None
    with torch.no_grad():
        wanted, _ = module(x, x, x, key_padding_mask=padding, need_weights=False)

    parameters = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    w_query, w_key, w_value = (w.T for w in np.split(parameters["in_proj_weight"], 3))
    b_query, b_key, b_value = np.split(parameters["in_proj_bias"], 3)
    output = cattn.self_attention(
        x.numpy(),
        w_query,
        w_key,
        w_value,
        parameters["out_proj.weight"].T,
        b_query=b_query,
        b_key=b_key,
        b_value=b_value,
        b_output=parameters["out_proj.bias"],
        num_heads=4,
        key_lengths=lengths if masked else None,
    )
    np.testing.assert_allclose(output, wanted.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_heads_of_different_sizes(rng, kv_heads):
    x = draw(rng, 2, 3, 7, 10)
    w_query, w_key, w_value = draw(rng, 10, 6 * 4), draw(rng, 10, kv_heads * 4), draw(rng, 10, kv_heads * 3)
    w_output = draw(rng, 6 * 3, 5)
    output = cattn.self_attention(x, w_query, w_key, w_value, w_output, num_heads=6, num_kv_heads=kv_heads)
    assert output.shape == (2, 3, 7, 5)
    reference = expected(x, w_query, w_key, w_value, w_output, heads=6, kv_heads=kv_heads)
    np.testing.assert_allclose(output, reference, rtol=0, atol=1e-13)


def test_one_head_without_output_projection(inputs):
    np.testing.assert_allclose(cattn.self_attention(*inputs), expected(*inputs), rtol=0, atol=1e-14)


@pytest.mark.parametrize("given", ["b_query", "b_key", "b_value", "b_output"])
def test_each_bias_alone(rng, inputs, given):
    bias, w_output = draw(rng, 12), np.eye(12)
    output = cattn.self_attention(*inputs, w_output, num_heads=2, **{given: bias})
    reference = expected(*inputs, w_output, heads=2, kv_heads=2, **{given: bias})
    np.testing.assert_allclose(output, reference, rtol=0, atol=1e-13)


def test_modifiers_are_those_of_attention(rng, inputs):
    x, w_query, w_key, w_value = inputs
    modifiers = dict(
        scale=0.3,
        causal=True,
        window=(3, None),
        query_offset=1,
        key_range=(np.array([0, 0, 1, 1, 2]), None),
        query_lengths=4,
        key_lengths=4,
        mask=rng.random((2, 5, 5)) < 0.8,
        bias=draw(rng, 5, 5),
        alibi_slopes=[0.5, 0.25],
        softcap=2.0,
        sinks=[0.1, -0.2],
        num_threads=1,
    )
    output, lse = cattn.self_attention(*inputs, num_heads=2, return_lse=True, **modifiers)
    heads = ((x @ w).reshape(5, 2, 6) for w in (w_query, w_key, w_value))
    context, wanted_lse = cattn.attention(*heads, layout="blhd", return_lse=True, **modifiers)
    np.testing.assert_allclose(output, context.reshape(5, 12), rtol=0, atol=1e-14)
    np.testing.assert_allclose(lse, wanted_lse, rtol=0, atol=1e-14)
    assert lse.shape == (5, 2)
    assert not output[4].any()

    for name, value in modifiers.items():
        if name in ("query_offset", "num_threads"):
            continue  # without causal or window, and in the number of threads, nothing depends on these
        alone = cattn.self_attention(*inputs, num_heads=2, **{name: value})
        assert not np.array_equal(alone, cattn.self_attention(*inputs, num_heads=2)), name


def test_padding_never_reaches_the_other_tokens(rng, inputs):
    x, *weights = inputs
    clean = cattn.self_attention(x, *weights, num_heads=3, key_lengths=3)
    for filling in (np.nan, np.inf, 1e308):
        x[3:] = filling
        np.testing.assert_array_equal(cattn.self_attention(x, *weights, num_heads=3, key_lengths=3)[:3], clean[:3])


@pytest.mark.parametrize(("name", "epsilon"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_half_types_are_rounded_once(rng, name, epsilon):
    dtype = np.dtype(name) if name == "float16" else np.dtype(getattr(pytest.importorskip("ml_dtypes"), name))
    x, *weights = (draw(rng, rows, 16).astype(dtype) for rows in (11, 16, 16, 16, 16))
    bias = draw(rng, 16).astype(dtype)
    output, lse = cattn.self_attention(x, *weights, b_output=bias, num_heads=2, return_lse=True)
    assert output.dtype == dtype
    assert lse.dtype == np.float32
    wanted = expected(x, *weights, b_output=bias.astype(np.float64), heads=2, kv_heads=2)
    # Half a unit in the last place, and a little for the float32 arithmetic: rounding anything in between is worse.
    error = np.abs(output.astype(np.float64) - wanted)
    assert (error <= 0.5 * epsilon * np.abs(wanted) + 1e-6).all()


def test_float16_projections_do_not_overflow():
    x, weight = np.full((3, 64), 60.0, np.float16), np.full((64, 64), 60.0, np.float16)
    identity = np.eye(64, dtype=np.float16)
    output = cattn.self_attention(x, weight, weight, identity)
    np.testing.assert_array_equal(output, x)


def test_types_and_byte_orders(inputs):
    wanted = cattn.self_attention(*inputs)
    swapped = [array.astype(array.dtype.newbyteorder()) for array in inputs]
    output = cattn.self_attention(*swapped)
    np.testing.assert_array_equal(output, wanted)
    assert output.dtype.isnative
    assert cattn.self_attention(*(array.astype(np.float32) for array in inputs)).dtype == np.float32
    integers = [[[1, 2], [3, 4]]] * 4
    assert cattn.self_attention(*integers).dtype == np.float64
    np.testing.assert_array_equal(cattn.self_attention(*integers), cattn.self_attention(*map(np.array, integers)))


def test_inputs_may_be_read_only_and_strided_and_stay_unchanged(rng, inputs):
    x = np.broadcast_to(inputs[0][::-1], (3, 5, 12))
    weights = [np.asfortranarray(weight) for weight in inputs[1:]]
    for array in (x, *weights):
        array.flags.writeable = False
    bias = np.zeros(12)
    output = cattn.self_attention(x, *weights, b_query=bias, num_heads=4)
    np.testing.assert_allclose(output, expected(x, *weights, heads=4, kv_heads=4), rtol=0, atol=1e-13)
    assert not bias.any()


@pytest.mark.parametrize("shape", [(0, 12), (0, 5, 12), (2, 0, 12)])
def test_empty(inputs, shape):
    x = np.zeros(shape)
    output = cattn.self_attention(x, *inputs[1:], np.ones((12, 3)), b_output=np.ones(3), num_heads=2)
    assert output.shape == (*shape[:-1], 3)


W = np.ones((8, 8))
X = np.ones((4, 8))
ERRORS = [
    (dict(x=np.ones(8)), ValueError, r"x: .*2 dimensions.*got shape \(8,\)"),
    (dict(x=np.ones((*[1] * 62, 4, 8))), ValueError, r"x: expected at most 63 dimensions, .*got 64$"),
    (dict(w_query=np.ones(8)), ValueError, r"w_query: .*2 dimensions.*got shape \(8,\)"),
    (dict(w_key=np.ones((1, 8, 8))), ValueError, r"w_key: .*2 dimensions.*got shape \(1, 8, 8\)"),
    (dict(w_value=np.ones((7, 8))), ValueError, r"w_value: expected 8 rows.*got 7 \(shape \(7, 8\)\)"),
    (dict(w_key=np.ones((4, 8))), ValueError, r"got 4 \(shape \(4, 8\)\); write w_key\.T for a weight of torch"),
    (dict(w_key=np.ones((4, 6))), ValueError, r"got 4 \(shape \(4, 6\)\)$"),
    (dict(num_heads=3), ValueError, r"w_query: .*multiple of num_heads=3.*got 8 \(shape \(8, 8\)\)"),
    (dict(num_heads=4, w_value=np.ones((8, 6))), ValueError, r"w_value: .*num_kv_heads=4.*got 6"),
    (dict(w_query=np.ones((8, 0))), ValueError, r"w_query: expected at least one column, got 0"),
    (dict(num_heads=2, w_key=np.ones((8, 6))), ValueError, r"w_key: expected head size 4 like w_query, got 3"),
    (dict(num_heads=4, num_kv_heads=3), ValueError, r"num_kv_heads: .*divisor of num_heads=4, got 3"),
    (dict(num_heads=0), ValueError, r"num_heads: expected an integer of 1 or more, got 0$"),
    (dict(num_heads=2.0), TypeError, r"num_heads: expected an integer of 1 or more, got 2\.0$"),
    (dict(num_heads=True), TypeError, r"num_heads: expected an integer of 1 or more, got True$"),
    (dict(num_kv_heads="1"), TypeError, r"num_kv_heads: expected an integer of 1 or more, or None, got '1'$"),
    (dict(w_output=np.ones((7, 3))), ValueError, r"w_output: expected 8 rows.*got 7 \(shape \(7, 3\)\)"),
    (dict(b_query=np.ones(7)), ValueError, r"b_query: expected shape \(8,\) .*w_query, got \(7,\)"),
    (dict(b_key=1.0), ValueError, r"b_key: expected shape \(8,\) .*w_key, got \(\)"),
    (dict(w_output=W, b_output=np.ones((1, 8))), ValueError, r"b_output: expected shape \(8,\).*got \(1, 8\)"),
    (dict(b_output=np.ones(8)), TypeError, r"b_output: .*without w_output"),
    (dict(w_key=W.astype(np.float32)), TypeError, r"w_key: .*float64 like x, got float32; write w_key\.astype\("),
    (dict(b_value=np.ones(8, np.float16)), TypeError, r"b_value: .*float64 like x, got float16"),
    (dict(x=X.astype(complex)), TypeError, r"x: .*got complex128"),
    (dict(x=X.astype(np.uint16)), TypeError, r"x: .*got uint16; write x\.view\(ml_dtypes\.bfloat16\) for the bits"),
    (dict(w_key=W.astype(np.int8)), TypeError, r"w_key: .*got int8; write w_key\.astype"),
    (dict(x=X.astype(int), w_key=W.astype(np.float32)), TypeError, r"int64 counts as float64: write x\.astype\("),
    (dict(w_value=W.astype(object)), TypeError, r"w_value: .*got object"),
    (dict(w_query=None), TypeError, r"w_query: .*got"),
    (dict(x=np.ma.array(X)), TypeError, r"x: .*masked array"),
    (dict(mask=np.ones((4, 4))), TypeError, r"mask: "),
    (dict(key_lengths=5), ValueError, r"key_lengths: "),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), ERRORS, ids=[message.split(":")[0] for *_, message in ERRORS])
def test_errors_name_the_argument(wrong, kind, message):
    with pytest.raises(kind, match=message):
        cattn.self_attention(**(dict(x=X, w_query=W, w_key=W, w_value=W) | wrong))


def test_nothing_beyond_the_contract():
    for name in ("layout", "out"):
        with pytest.raises(TypeError, match=name):
            cattn.self_attention(X, W, W, W, **{name: None})
