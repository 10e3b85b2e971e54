"""cattn.torch: PyTorch's function, served by cattn."""

import warnings

import helpers
import numpy as np
import pytest

pytest.importorskip("ml_dtypes")
pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch_tensors import (
    CLOSE,
    EVERY_TYPE,
    EYE,
    FUNCTION_AND_OPERATOR,
    SHAPE,
    K,
    Q,
    V,
    inputs,
    normal,
    seen_calls,
)

import cattn
from cattn import _tensors
from cattn.torch import scaled_dot_product_attention


@pytest.fixture
def calls(monkeypatch):
    return seen_calls(monkeypatch)


def assert_like_pytorch(out, query, key, value, attn_mask=None, **options):
    """To what rounding excuses, where PyTorch computes in float64."""
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.double()
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask, **options)
    assert (out.dtype, out.shape) == (query.dtype, expected.shape)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=CLOSE[out.dtype])


# What it computes


def case(seed, dtype):
    """Tensors and options that PyTorch takes, of all kinds."""
    random = np.random.default_rng(seed)

    def maybe(size):
        return int(random.choice([1, size]))

    length, keys, size, value_size = random.integers(1, 12, 4).tolist()
    groups, heads = random.integers(1, 4, 2).tolist()
    leading = random.integers(1, 4, random.integers(0, 3)).tolist()
    options = {"enable_gqa": bool(random.random() < 0.4)}
    if options["enable_gqa"]:
        query_heads, key_heads, value_heads = groups * heads, heads, heads
    else:
        query_heads, key_heads, value_heads = (maybe(heads) for _ in range(3))
    tensors = []
    for axes in ((query_heads, length, size), (key_heads, keys, size), (value_heads, keys, value_size)):
        shape = [*(maybe(axis) for axis in leading), *axes]
        shape = shape[random.integers(0, len(leading) + 1) :]  # axes that are missing in front
        if random.random() < 0.5:
            tensor = torch.from_numpy(random.standard_normal(shape))
        else:  # heads within positions
            shape[-3:-1] = shape[-2:-4:-1]
            tensor = torch.from_numpy(random.standard_normal(shape)).transpose(-2, -3)
        tensors.append(tensor.to(dtype))
    if random.random() < 0.3:
        options["scale"] = float(random.uniform(-1, 1))
    kind = random.choice(["none", "causal", "bool", "added"])
    if kind == "causal":
        options["is_causal"] = True
    elif kind != "none":
        query, key, _ = tensors  # PyTorch adds a mask to scores, whose shape it has to fit
        batch = np.broadcast_shapes(query.shape[:-3], key.shape[:-3])
        shape = (*batch, max(query.shape[-3], key.shape[-3]), length, keys)
        shape = [maybe(axis) for axis in shape][random.integers(0, len(shape) - 1) :]
        mask = torch.from_numpy(random.standard_normal(shape))
        options["attn_mask"] = mask > -0.5 if kind == "bool" else mask.to(random.choice([dtype, torch.float32]))
    return tensors, options


@EVERY_TYPE
@pytest.mark.parametrize("seed", range(60))
def test_like_pytorch(seed, dtype):
    tensors, options = case(seed, dtype)
    out = scaled_dot_product_attention(*tensors, **options)
    assert_like_pytorch(out, *tensors, **options)
    assert torch.equal(torch.ops.cattn.attention(*tensors, **options), out)


@EVERY_TYPE
def test_two_axes(dtype):
    query, key, value = (x[0, 0] for x in inputs(dtype))
    for options in ({}, {"is_causal": True}, {"attn_mask": torch.eye(5, dtype=torch.bool)}):
        out = scaled_dot_product_attention(query, key, value, **options)
        assert_like_pytorch(out, query, key, value, **options)


@EVERY_TYPE
@pytest.mark.parametrize("queries, keys", [(5, 5), (3, 7), (7, 3), (1, 4)])
def test_causal_starts_at_the_top_left(dtype, queries, keys):
    query, key, value = normal(1, 1, queries, 4, dtype=dtype), normal(1, 1, keys, 4, dtype=dtype), torch.eye(keys)
    out = scaled_dot_product_attention(query, key, value.to(dtype)[None, None], is_causal=True)
    assert torch.equal(out[0, 0] > 0, torch.ones(queries, keys, dtype=torch.bool).tril())


@EVERY_TYPE
def test_rows_that_may_attend_to_nothing(dtype):
    """Zeros, as in PyTorch since version 2.5, whichever kind the mask is."""
    tensors = inputs(dtype)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    added = torch.zeros(5, 5, dtype=dtype).masked_fill(~mask, -torch.inf)
    for attn_mask in (mask, added):
        out = scaled_dot_product_attention(*tensors, attn_mask)
        assert torch.all(out[:, :, 2] == 0) and torch.all(out[:, :, 3] != 0)
        assert_like_pytorch(out, *tensors, attn_mask)
    assert torch.equal(scaled_dot_product_attention(*(x[:, :, :s] for x, s in zip(tensors, (5, 0, 0), strict=True))),
                       torch.zeros(SHAPE, dtype=dtype))  # fmt: skip


def test_no_rows():
    query, key, value = inputs()
    assert scaled_dot_product_attention(query[:, :, :0], key, value).shape == (2, 4, 0, 8)
    assert scaled_dot_product_attention(query[:0], key[:0], value[:0]).shape == (0, 4, 5, 8)
    assert scaled_dot_product_attention(query, key, value[..., :0]).shape == (2, 4, 5, 0)


@EVERY_TYPE
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": torch.eye(5)}, {"attn_mask": torch.eye(5) > 0}, {"scale": 2.0}]
)
def test_no_head_size(options, transposed, dtype):
    """All scores are 0 then, before a mask is added."""
    query, key, value = inputs(dtype)
    query, key = (x[..., :0].transpose(1, 2).contiguous().transpose(1, 2) if transposed else x[..., :0]
                  for x in (query, key))  # fmt: skip
    out = scaled_dot_product_attention(query, key, value, **options)
    assert_like_pytorch(out, query, key, value, **options)
    torch.library.opcheck(torch.ops.cattn.attention.default, (query, key, value), options)
    nothing = scaled_dot_product_attention(query, key, torch.zeros_like(value), **options)
    assert torch.equal(nothing, torch.zeros(SHAPE, dtype=dtype))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_float32_queries_over_half_keys_and_values(half, calls):
    """The result is that of float32 keys and values, and no copy of them is made."""
    key, value = K.to(half), V.to(half)
    out = scaled_dot_product_attention(Q, key, value, is_causal=True)
    assert_like_pytorch(out, Q, key.float(), value.float(), is_causal=True)
    assert [address(array) for array in calls[0][0]] == [address(x) for x in (Q, key, value)]


@pytest.mark.parametrize("offset", [-2, 2])
def test_the_operators_offset(offset):
    """query_offset counts for equal lengths, too."""
    out = torch.ops.cattn.attention(Q, K, V, is_causal=True, query_offset=offset)
    assert_like_pytorch(out, Q, K, V, torch.ones(5, 5, dtype=torch.bool).tril(offset))


def test_added_masks_are_added_in_full():
    """A mask of float32 beside half types is not rounded to them: their numbers around 256 are 2 or 0.25 apart."""
    for dtype in (torch.bfloat16, torch.float16):
        tensors = inputs(dtype)
        mask = 256 + torch.linspace(0, 3, 25).reshape(5, 5)
        assert_like_pytorch(scaled_dot_product_attention(*tensors, mask), *tensors, mask)


def test_autocast():
    tensors = inputs()
    mask = normal(5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (f(*tensors, mask) for f in (scaled_dot_product_attention, F.scaled_dot_product_attention))
        mixed = scaled_dot_product_attention(tensors[0], tensors[1].bfloat16(), tensors[2].half())
        wide = scaled_dot_product_attention(*(x.double() for x in tensors))
    assert found.dtype == expected.dtype == mixed.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    halves = [x.bfloat16() for x in tensors]
    assert torch.equal(found, scaled_dot_product_attention(*halves, mask.bfloat16()))


# Memory


def address(x):
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.__array_interface__["data"][0]


@EVERY_TYPE
@pytest.mark.parametrize("view", ["plain", "transposed", "sliced", "expanded"])
def test_nothing_is_copied(dtype, view, calls):
    tensors = inputs(dtype)
    mask = torch.ones(5, 5, dtype=torch.bool)
    if view == "transposed":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    elif view == "sliced":
        tensors = [x[:, 1:, ::2, 2:] for x in tensors]
        mask = mask[:3, 1:4]
    elif view == "expanded":
        tensors = [x[:1, :1].expand(SHAPE) for x in tensors]
    out = scaled_dot_product_attention(*tensors, mask)
    [(arrays, options, result)] = calls
    for tensor, array in zip([*tensors, mask], [*arrays, options["mask"]], strict=True):
        assert address(array) == address(tensor)
        assert array.dtype.itemsize == tensor.dtype.itemsize
    assert address(out) == address(result)
    assert_like_pytorch(out, *tensors, mask)


@EVERY_TYPE
def test_parameters(dtype):
    """Weights of a model require a gradient, and are read where none is computed."""
    query, key, value = (torch.nn.Parameter(x) for x in inputs(dtype))
    with torch.no_grad():
        out = scaled_dot_product_attention(query, key, value)
    assert not out.requires_grad
    assert torch.equal(out, scaled_dot_product_attention(*inputs(dtype)))


@EVERY_TYPE
def test_what_is_negated_when_it_is_read(dtype):
    query, key, value = inputs(dtype)
    negated = torch._neg_view(key)  # as x.conj().imag is of a complex x
    assert negated.is_neg()
    expected = scaled_dot_product_attention(query, -key, value)
    assert torch.equal(scaled_dot_product_attention(query, negated, value), expected)


@EVERY_TYPE
def test_the_result_lies_as_query_does(dtype):
    """As PyTorch's CPU kernel has it: heads within positions are joined without a copy."""
    tensors = inputs(dtype)
    assert scaled_dot_product_attention(*tensors).is_contiguous()
    query = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
    for others in (tensors[1:], [x[:1] for x in tensors[1:]], [x[:, :1] for x in tensors[1:]]):
        out = scaled_dot_product_attention(query, *others)
        assert out.transpose(1, 2).is_contiguous() and not out.is_contiguous()
        assert torch.equal(out, scaled_dot_product_attention(tensors[0], *others))
        assert out.stride() == F.scaled_dot_product_attention(query, *tensors[1:]).stride()


# Threads


@pytest.fixture
def nothing_set(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    cattn.set_num_threads(None)
    yield monkeypatch
    monkeypatch.undo()
    cattn.set_num_threads(None)
    torch.set_num_threads(before)


def test_threads(nothing_set, calls):
    def threads():
        scaled_dot_product_attention(*inputs())
        return calls[-1][1]["num_threads"]

    torch.set_num_threads(3)
    assert threads() == 3
    torch.set_num_threads(2)
    assert threads() == 2
    cattn.set_num_threads(5)
    assert threads() == 5
    with cattn.num_threads(6):
        assert threads() == 6
    assert threads() == 5
    nothing_set.setenv("CATTN_NUM_THREADS", "4")
    assert threads() == 5
    cattn.set_num_threads(None)
    assert threads() == 4
    nothing_set.delenv("CATTN_NUM_THREADS")
    cattn.set_num_threads(None)
    assert threads() == 2


def test_a_wrong_number_of_threads(nothing_set):
    nothing_set.setenv("CATTN_NUM_THREADS", "many")
    with pytest.raises(ValueError, match=r"^CATTN_NUM_THREADS: expected an integer of 1 or more, got 'many'$"):
        scaled_dot_product_attention(*inputs())


# Errors

REFUSED = {
    "query, 1 axis": ((Q[0, 0, 0], K, V), {}, RuntimeError, r"query: expected axes .* got shape \(8,\)"),
    "key, 1 axis": ((Q, K[0, 0, 0], V), {}, RuntimeError, r"key: expected axes .* got shape \(8,\)"),
    "head size": ((Q, K[..., 1:], V), {}, ValueError, r"key: expected head size 8 like query, got 7 \(shape \(2, 4, 5, 7\)\)"),  # noqa: E501
    "head size, transposed": ((Q.transpose(1, 2).contiguous().transpose(1, 2), K[..., 1:], V), {}, ValueError,
                              r"key: expected head size 8 like query, got 7 \(shape \(2, 4, 5, 7\)\)"),
    "length": ((Q, K, V[:, :, 1:]), {}, ValueError, r"value: expected length 5 like key, got 4 \(shape \(2, 4, 4, 8\)\)"),  # noqa: E501
    "batch": ((Q, torch.cat([K, K[:1]]), V), {}, ValueError, r"key: expected leading axes that broadcast with \(2,\), got \(3,\)"),  # noqa: E501
    "heads": ((Q, K[:, :2], V[:, :2]), {}, ValueError, r"key: expected 4 heads, or one, got 2 \(shape \(2, 2, 5, 8\)\); .*enable_gqa=True"),  # noqa: E501
    "grouped heads": ((Q, K[:, :3], V[:, :3]), {"enable_gqa": True}, ValueError, "key: expected a number of heads that divides the 4 of query, got 3"),  # noqa: E501
    "heads of value": ((Q, K[:, :2], V[:, :1]), {"enable_gqa": True}, ValueError, "value: expected 2 heads like key, got 1"),  # noqa: E501
    "no head size": ((Q, K[..., :0], V), {}, ValueError, "key: expected head size 8 like query, got 0"),
    "type of key": ((Q, K.double(), V), {}, TypeError, r"key: expected type torch.float32 like query, torch.float16 or torch.bfloat16, got torch.float64; write key.to\(torch.float32\)$"),  # noqa: E501
    "type of key, half": ((Q.half(), K, V), {}, TypeError, "key: expected type torch.float16 like query, got torch.float32"),  # noqa: E501
    "type of value": ((Q, K, V.double()), {}, TypeError, "value: expected type torch.float32 like query, got torch.float64"),  # noqa: E501
    "type of value, half": ((Q, K.half(), V.bfloat16()), {}, TypeError, r"value: expected type torch.float16 like key, got torch.bfloat16; write value.to\(torch.float16\)$"),  # noqa: E501
    "integers": ((Q.long(), K.long(), V.long()), {}, TypeError, "query: expected type float16, bfloat16, float32 or float64, got torch.int64"),  # noqa: E501
    "complex": ((Q + 1j, K + 1j, V + 1j), {}, TypeError, "query: expected type .* got torch.complex64"),
    "mask and causal": ((Q, K, V, EYE), {"is_causal": True}, RuntimeError, "attn_mask: expected None beside is_causal=True"),  # noqa: E501
    "type of mask": ((Q, K, V, EYE.double()), {}, TypeError, r"attn_mask: expected type bool \(True: may attend\), or torch.float32 like query \(added to the scores\), got torch.float64"),  # noqa: E501
    "type of mask, half": ((Q.half(), K.half(), V.half(), EYE.double()), {}, TypeError, r"attn_mask: .* or torch.float16 like query or torch.float32 \(added"),  # noqa: E501
    "integer mask": ((Q, K, V, EYE.int()), {}, TypeError, "attn_mask: expected type bool .* got torch.int32"),
    "shape of mask": ((Q, K, V, EYE[:4]), {}, ValueError, r"attn_mask: expected a shape that broadcasts to \(2, 4, 5, 5\) .* got \(4, 5\)$"),  # noqa: E501
    "mask by batch": ((Q, K, V, EYE[:2] > 0), {}, ValueError, r"attn_mask: expected .* got \(2, 5\); with axes for batch and keys only, write attn_mask\[:, None, None, :\]$"),  # noqa: E501
    "mask without heads": ((Q, K, V, EYE.expand(2, 5, 5)), {}, ValueError, r"attn_mask: .* without an axis for heads, write attn_mask\[:, None\]$"),  # noqa: E501
    "larger mask": ((Q, K, V, EYE.expand(3, 1, 1, 5, 5)), {}, ValueError, "attn_mask: expected a shape that broadcasts to"),  # noqa: E501
    "scale": ((Q, K, V), {"scale": float("nan")}, ValueError, "scale: expected a finite number, got nan"),
    "meta query": ((Q.to("meta"), K, V), {}, ValueError, "query: expected a tensor on the CPU, got one on meta"),
    "meta key": ((Q, K.to("meta"), V), {}, ValueError, "key: expected a tensor on the CPU, got one on meta"),
    "meta mask": ((Q, K, V, EYE.to("meta")), {}, ValueError, "attn_mask: expected a tensor on the CPU, got one on"),
    "sparse": ((Q, K.to_sparse(), V), {}, TypeError, "key: expected a dense tensor, got one of layout torch"),
}  # fmt: skip


@FUNCTION_AND_OPERATOR
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, attention):
    tensors, options, error, message = REFUSED[name]
    with pytest.raises(error, match=f"^{message}"):
        attention(*tensors, **options)


@pytest.mark.parametrize("dropout_p", [-1, 1.5, float("nan")])
def test_no_share_is_refused(dropout_p):
    with pytest.raises(ValueError, match=rf"^dropout_p: expected a (finite number|number .*), got {dropout_p}$"):
        scaled_dot_product_attention(Q, K, V, dropout_p=dropout_p)


@pytest.mark.parametrize("name", ["query", "key", "value", "attn_mask"])
def test_arrays_are_refused(name):
    given = {"query": Q, "key": K, "value": V, "attn_mask": None}
    with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got numpy.ndarray; arrays go to cattn"):
        scaled_dot_product_attention(**given | {name: Q.numpy()})


def test_what_the_schema_of_the_operator_refuses():
    for options, message in {
        ("scale", "1"): "scale: expected a finite number, got '1'",
        ("scale", 1j): "scale: expected a finite number, got 1j",
        ("is_causal", "yes"): "is_causal: expected True or False, got 'yes'",
        ("enable_gqa", "no"): "enable_gqa: expected True or False, got 'no'",
        ("dropout_p", "0.5"): "dropout_p: expected a finite number, got '0.5'",
    }.items():
        with pytest.raises(TypeError, match=f"^{message}$"):
            scaled_dot_product_attention(Q, K, V, **dict([options]))


# Causal biases


def bias(kind, queries, keys):
    """The mask is PyTorch's own, which warns of rows that may attend to nothing."""
    from torch.nn.attention import bias

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(bias, f"causal_{kind}")(queries, keys)


EVERY_BIAS = pytest.mark.parametrize("kind", ["upper_left", "lower_right"])


@EVERY_TYPE
@EVERY_BIAS
@pytest.mark.parametrize("queries, keys", [(5, 5), (3, 7), (7, 3), (1, 4)])
def test_causal_biases(queries, keys, kind, dtype, calls):
    """They say where the queries stand, and no mask is made."""
    query = normal(2, 4, queries, 8, dtype=dtype)
    key, value = (normal(2, 4, keys, 8, dtype=dtype, seed=seed) for seed in (1, 2))
    out = scaled_dot_product_attention(query, key, value, bias(kind, queries, keys))
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if kind == "lower_right" else 0)
    assert_like_pytorch(out, query, key, value, mask)
    [(_, options, _)] = calls
    assert "mask" not in options
    assert torch.all(out[:, :, ~mask.any(1)] == 0)


@EVERY_BIAS
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_causal_biases(dynamic, backend, kind, calls):
    """In one graph."""
    torch._dynamo.reset()
    tensors = Q[:, :, :3], K, V, bias(kind, 3, 5)
    compiled = torch.compile(lambda *given: 2 * scaled_dot_product_attention(*given), backend=backend, fullgraph=True)
    assert torch.equal(compiled(*tensors), 2 * scaled_dot_product_attention(*tensors))
    assert len(calls) == 2


def test_causal_biases_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^attn_mask: expected a CausalBias of 5 queries and 5 keys, got one of 3 q"):
        scaled_dot_product_attention(Q, K, V, bias("upper_left", 3, 5))
    with pytest.raises(ValueError, match=r"^attn_mask: expected None beside is_causal=True, got a CausalBias$"):
        scaled_dot_product_attention(Q, K, V, bias("upper_left", 5, 5), is_causal=True)
    with pytest.raises(RuntimeError, match=r"^query: expected axes"):
        scaled_dot_product_attention(Q[0, 0, 0], K, V, bias("upper_left", 5, 5))
    with pytest.raises(TypeError, match=r"^attn_mask: expected a plain tensor, got torch\.nn.*CausalBias$"):
        torch.ops.cattn.attention(Q, K, V, bias("upper_left", 5, 5))


# The operator


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_opcheck(seed, dtype):
    """Schema, fake kernel and its strides, with sizes known and unknown."""
    tensors, options = case(seed, dtype)
    torch.library.opcheck(torch.ops.cattn.attention.default, tensors, options)
    if options.get("is_causal"):
        torch.library.opcheck(torch.ops.cattn.attention.default, tensors, options | {"query_offset": 2})


@EVERY_TYPE
@pytest.mark.parametrize("seed", range(60))
def test_fake_results(seed, dtype):
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors, options = case(seed, dtype)
    real = torch.ops.cattn.attention(*tensors, **options)
    with FakeTensorMode() as mode:
        options = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        fake = torch.ops.cattn.attention(*map(mode.from_tensor, tensors), **options)
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
    assert [n for n, size in zip(fake.stride(), fake.shape, strict=True) if size > 1] == \
           [n for n, size in zip(real.stride(), real.shape, strict=True) if size > 1]  # fmt: skip


class Model(torch.nn.Module):
    def forward(self, query, key, value):
        out = scaled_dot_product_attention(2 * query, key, value, is_causal=True)
        return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1) + 1


def transposed(batch, length, dtype=torch.float32):
    return [x.transpose(1, 2) for x in inputs(dtype, (batch, length, 4, 8))]


def operators(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend, dtype, calls):
    """In one graph, and for other lengths too."""
    torch._dynamo.reset()
    compiled = torch.compile(Model(), backend=backend, fullgraph=True)
    for batch, length in ((2, 5), (3, 7), (1, 9)):
        tensors = transposed(batch, length, dtype)
        calls.clear()
        found = compiled(*tensors)
        assert len(calls) == 1
        assert torch.equal(found, Model()(*tensors))


def test_the_compiler_sees_one_operator():
    graphs = []
    torch._dynamo.reset()

    def backend(graph, _):
        graphs.append(graph.graph)
        return graph

    torch.compile(Model(), backend=backend)(*transposed(2, 5))
    assert operators(*graphs).count("cattn.attention.default") == 1


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of PyTorch's own code
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}
    program = torch.export.export(Model(), (*transposed(2, 5),), dynamic_shapes=(sizes,) * 3, strict=strict)
    assert operators(program.graph).count("cattn.attention.default") == 1
    assert operators(program.run_decompositions().graph).count("cattn.attention.default") == 1
    for batch, length in ((2, 5), (3, 7)):
        tensors = transposed(batch, length)
        assert torch.equal(program.module()(*tensors), Model()(*tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8(dtype):
    """Keys and values of int8 with scales have the bits of the same call on arrays."""
    query = torch.from_numpy(helpers.normal(2, 4, 5, 16)).to(dtype)
    given = ((16, -1), (7, -2))
    arrays = [cattn.quantize(helpers.normal(2, 2, 33, size, seed=size), axis=axis) for size, axis in given]
    (key, key_scale), (value, value_scale) = [[torch.from_numpy(x) for x in pair] for pair in arrays]
    mask = torch.from_numpy(np.random.default_rng(0).random((5, 33)) < 0.7)
    scales = {"key_scale": key_scale, "value_scale": value_scale}
    for options, same in (
        ({}, {}), ({"attn_mask": mask}, {"mask": mask.numpy()}),
        ({"is_causal": True}, {"causal": True, "query_offset": "start"}), ({"scale": 0.3}, {"scale": 0.3}),
    ):  # fmt: skip
        out = cattn.torch.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options, **scales)
        (small_key, array_scale), (small_value, other_scale) = arrays
        expected = cattn.attention(
            _tensors.to_numpy(query), small_key, small_value, key_scale=array_scale, value_scale=other_scale, **same
        )
        assert out.dtype is dtype
        helpers.assert_same_bits(_tensors.to_numpy(out), expected)
    compiled = torch.compile(cattn.torch.scaled_dot_product_attention, backend="eager")
    assert torch.equal(compiled(query, key, value, enable_gqa=True, scale=0.3, **scales), out)
    with pytest.raises(TypeError, match=r"^value_scale: expected a tensor .* write value\.to\(torch\.float32\) "):
        cattn.torch.scaled_dot_product_attention(query, key, value, enable_gqa=True, key_scale=key_scale)
    with pytest.raises(TypeError, match=r"^key_scale: expected None beside key of type float32, got tensor of"):
        cattn.torch.scaled_dot_product_attention(query, key.float(), value.float(), enable_gqa=True, **scales)
    with pytest.raises(ValueError, match=r"^dropout_p: expected 0 beside key and value of int8"):
        cattn.torch.scaled_dot_product_attention(query, key, value, dropout_p=0.5, **scales)
    with pytest.raises(NotImplementedError, match=r"^query: expected a tensor that needs no gradient"):
        cattn.torch.scaled_dot_product_attention(query.requires_grad_(), key, value, enable_gqa=True, **scales)
