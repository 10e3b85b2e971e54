"""Tensors that need gradients: cattn.torch computes these as well, and PyTorch records them."""

import contextlib
import functools
import warnings

import numpy as np
import pytest

pytest.importorskip("ml_dtypes")
pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torch_tensors import CLOSE, EVERY_TYPE, EYE, FUNCTION_AND_OPERATOR, SHAPE, K, Q, V, inputs, normal, wanted

import cattn
from cattn.torch import scaled_dot_product_attention, sdpa


@pytest.fixture(autouse=True)
def nothing_is_left_to_pytorch():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "cattn")
        yield


@pytest.fixture
def calls(monkeypatch):
    """Record the arguments and the results of cattn.attention_backward."""
    seen = []

    def spy(*arrays, **options):
        seen.append((arrays, options, real(*arrays, **options)))
        return seen[-1][-1]

    real = cattn.attention_backward
    monkeypatch.setattr(cattn, "attention_backward", spy)
    return seen


def with_gradients(attention, given, names):
    """Return the result, and the gradients of the tensors of these names."""
    given = given | {name: wanted(given[name]) for name in names}
    out = attention(**given)
    out.square().sum().backward()
    return [out.detach(), *(given[name].grad for name in names)]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def small(*shape, seed=0):
    return normal(*shape, dtype=torch.float64, seed=seed).requires_grad_()


def within(x):
    """Return the same numbers with the heads within the positions, which is the layout (B, L, H, E) in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


INPUTS = [small(2, 4, 3, 2), small(2, 4, 5, 2, seed=1), small(2, 4, 5, 3, seed=2)]
EMPTY_ROW = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
# The inputs, and the options, of which some need a gradient too.
CASES = {
    "plain": (INPUTS, {}),
    "causal": (INPUTS, {"is_causal": True}),
    "scale": (INPUTS, {"scale": -0.4}),
    "mask": (INPUTS, {"attn_mask": EMPTY_ROW}),
    "bias": (INPUTS, {"attn_mask": small(3, 5)}),
    "bias for each head": (INPUTS, {"attn_mask": small(4, 1, 5)}),
    "bias for each entry": (INPUTS, {"attn_mask": small(2, 1, 3, 1)}),
    "bias without a gradient": (INPUTS, {"attn_mask": EMPTY_ROW.double().log()}),
    "grouped heads": ([INPUTS[0], small(2, 2, 5, 2), small(2, 2, 5, 3)], {"enable_gqa": True}),
    "one head of keys": ([INPUTS[0], small(2, 1, 5, 2), small(2, 1, 5, 3)], {}),
    "one head of values": ([*INPUTS[:2], small(2, 1, 5, 3)], {}),
    "one batch of keys": ([INPUTS[0], small(4, 5, 2), small(1, 4, 5, 3)], {}),
    "no heads": ([small(3, 2), small(5, 2), small(5, 3)], {"is_causal": True}),
    "five axes": ([small(2, 1, 2, 3, 2), small(1, 2, 2, 5, 2), small(2, 5, 3)], {"is_causal": True}),
    "no queries": ([small(2, 4, 0, 2), *INPUTS[1:]], {}),
    "no keys": ([INPUTS[0], small(2, 4, 0, 2), small(2, 4, 0, 3)], {}),
    "a head size of 0": ([small(2, 3, 0), small(2, 5, 0), small(2, 5, 3)], {}),
    "heads within positions": ([wanted(within(x.detach())) for x in INPUTS], {"is_causal": True}),
    "keys with heads within positions": ([INPUTS[0], *(wanted(within(x.detach())) for x in INPUTS[1:])], {}),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


@EVERY_CASE
def test_gradcheck(name):
    """The gradients are slopes."""
    tensors, options = CASES[name]
    mask = options.get("attn_mask")
    if mask is not None and mask.requires_grad:
        assert torch.autograd.gradcheck(scaled_dot_product_attention, (*tensors, mask))
    else:
        assert torch.autograd.gradcheck(functools.partial(scaled_dot_product_attention, **options), tensors)


# PyTorch's compiler itself looks at .grad.
NOT_A_LEAF = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@NOT_A_LEAF
@EVERY_CASE
def test_opcheck(name):
    tensors, options = CASES[name]
    torch.library.opcheck(torch.ops.cattn.attention.default, tensors, options)


@FUNCTION_AND_OPERATOR
@EVERY_TYPE
@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": EYE}])
def test_types(options, dtype, attention, calls):
    """Each gradient has its input's type and strides. The output is saved before it is rounded to a half type, and is
    the same as without gradients."""
    given = dict(zip(("query", "key", "value"), inputs(dtype), strict=True)) | options
    names = [name for name, x in given.items() if name != "is_causal"]
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    expected = with_gradients(F.scaled_dot_product_attention, wide, names)
    found = with_gradients(attention, given, names)
    assert torch.equal(found[0], attention(**given))
    for name, x, y in zip(["out", *names], found, expected, strict=True):
        assert x.dtype is (dtype if name == "out" else given[name].dtype)
        torch.testing.assert_close(x.double(), y, rtol=0, atol=8 * max(CLOSE[dtype], CLOSE[x.dtype]))
    [(arrays, _, _)] = calls
    assert arrays[4].dtype == (np.float64 if dtype is torch.float64 else np.float32)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_float32_queries_over_half_keys_and_values(half):
    """Gradients of half types are those of float32 keys and values, rounded."""
    given = {"query": Q, "key": K.to(half), "value": V.to(half)}
    found = with_gradients(scaled_dot_product_attention, given, [*given])
    wide = with_gradients(scaled_dot_product_attention, {name: x.float() for name, x in given.items()}, [*given])
    assert [x.dtype for x in found] == [torch.float32, torch.float32, half, half]
    for x, y in zip(found, wide, strict=True):
        torch.testing.assert_close(x, y.to(x.dtype))


def test_what_is_not_wanted_is_not_computed(calls):
    """The gradient of a mask, which is as large as the scores, is computed only if it is wanted."""
    for names in (["query"], ["attn_mask"], ["value", "attn_mask"]):
        with_gradients(scaled_dot_product_attention, {"query": Q, "key": K, "value": V, "attn_mask": EYE}, names)
        assert calls[-1][1]["bias_grad"] is ("attn_mask" in names)
        assert (calls[-1][2].bias is not None) is ("attn_mask" in names)


def test_memory_of_gradients():
    """Gradients lie in memory as inputs do, so that PyTorch copies nothing where heads were split from positions."""
    x = normal(2, 5, 4, 8)
    q, k, v = (wanted(x).transpose(1, 2) for _ in range(3))
    gradients = torch.autograd.grad(scaled_dot_product_attention(q, k, v).square().sum(), (q, k, v))
    assert all(gradient.transpose(1, 2).is_contiguous() for gradient in gradients)


def test_threads(calls):
    """The number of threads is PyTorch's, in the backward pass too."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with_gradients(scaled_dot_product_attention, {"query": Q, "key": K, "value": V}, ["query"])
    finally:
        torch.set_num_threads(before)
    assert calls[0][1]["num_threads"] == 3


def test_expanded_gradients():
    """The gradient of a sum has no memory of its own for each element."""
    query = wanted(Q)
    scaled_dot_product_attention(query, K, V).sum().backward()
    other = wanted(Q)
    F.scaled_dot_product_attention(other, K, V).sum().backward()
    torch.testing.assert_close(query.grad, other.grad)


def test_second_derivatives_are_refused():
    query = wanted(Q)
    (gradient,) = torch.autograd.grad(scaled_dot_product_attention(query, K, V).sum(), query, create_graph=True)
    with pytest.raises(
        NotImplementedError, match=r"^attention: expected first derivatives only, .* call PyTorch's own"
    ):
        gradient.sum().backward()


def test_checkpoints():
    """The output is computed again in the backward pass."""
    given = {"query": Q, "key": K, "value": V}
    attention = functools.partial(checkpoint, scaled_dot_product_attention, use_reentrant=False)
    expected = with_gradients(scaled_dot_product_attention, given, [*given])
    assert_equal(with_gradients(attention, given, [*given]), expected)


@pytest.mark.parametrize(
    "options",
    [{"key": K[..., :3]}, {"value": V[:, :, :4]}, {"attn_mask": EYE[:3]}, {"attn_mask": EYE.int()}, {"key": K.double()},
     {"key": K[:, :2], "value": V[:, :2]}, {"attn_mask": EYE, "is_causal": True}, {"scale": float("inf")},
     {"attn_mask": EYE.to("meta")}],
    ids=["key size", "value length", "mask rows", "integers", "key type", "heads", "two masks", "scale", "device"],
)  # fmt: skip
def test_errors(options):
    """Errors are those of calls without gradients."""
    given = {"query": Q, "key": K, "value": V} | options
    for order in (lambda x: x, within):
        given["query"] = order(Q)
        with pytest.raises((ValueError, TypeError, RuntimeError)) as expected:
            scaled_dot_product_attention(**given)
        with pytest.raises(expected.type) as found:
            scaled_dot_product_attention(**given | {"query": order(wanted(Q))})
        assert str(found.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own use of it
@FUNCTION_AND_OPERATOR
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, backend, attention, calls):
    """In one graph, with the same bits, and none are computed where none are wanted."""
    torch._dynamo.reset()
    given = {"query": Q, "key": K, "value": V, "attn_mask": EYE}
    compiled = torch.compile(lambda **given: 2 * attention(**given), backend=backend, fullgraph=True, dynamic=dynamic)
    expected = with_gradients(lambda **given: 2 * attention(**given), given, [*given])
    assert_equal(with_gradients(compiled, given, [*given]), expected)
    assert len(calls) == 2
    with torch.no_grad():
        assert torch.equal(compiled(**given | {"query": wanted(Q)}), expected[0])
    shorter = {"query": Q[:, :, :3], "key": K, "value": V, "attn_mask": EYE[:3]}
    expected = with_gradients(lambda **given: 2 * attention(**given), shorter, [*shorter])
    assert_equal(with_gradients(compiled, shorter, [*shorter]), expected)


@pytest.mark.parametrize("kind", ["upper_left", "lower_right"])
@pytest.mark.parametrize("compiler", [lambda f: f, functools.partial(torch.compile, fullgraph=True, backend="eager")])
def test_causal_biases(compiler, kind):
    from torch.nn.attention import bias

    given = {"query": Q[:, :, :3], "key": K, "value": V, "attn_mask": getattr(bias, f"causal_{kind}")(3, 5)}
    names = ["query", "key", "value"]
    torch._dynamo.reset()
    found = with_gradients(compiler(scaled_dot_product_attention), given, names)
    for x, y in zip(found, with_gradients(F.scaled_dot_product_attention, given, names), strict=True):
        torch.testing.assert_close(x, y)


def test_within_the_context(calls):
    given = {"query": Q, "key": K, "value": V}
    expected = with_gradients(F.scaled_dot_product_attention, given, [*given])
    with sdpa():
        found = with_gradients(F.scaled_dot_product_attention, given, [*given])
    assert len(calls) == 1
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_autocast():
    """The gradients of tensors that were cast have the types from before the cast."""
    given = {"query": Q, "key": K, "value": V}
    with torch.autocast("cpu", torch.bfloat16):
        out, *found = with_gradients(scaled_dot_product_attention, given, [*given])
        _, *expected = with_gradients(F.scaled_dot_product_attention, given, [*given])
    assert out.dtype is torch.bfloat16
    for x, y in zip(found, expected, strict=True):
        assert x.dtype is torch.float32
        torch.testing.assert_close(x, y, rtol=0, atol=8 * CLOSE[torch.bfloat16])


def test_training(calls):
    """A layer of PyTorch has the same gradients within the context and without."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0, batch_first=True)
    x = normal(2, 6, 32)
    gradients = []
    for context in (contextlib.nullcontext, sdpa):
        layer.zero_grad()
        with context():
            layer(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in layer.named_parameters()})
    assert len(calls) == 1
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name])


# The operators below, which other integrations call as well


ARGUMENTS = {
    "bias": normal(4, 5, 5),
    "alibi_slopes": torch.tensor([0.5, 0.25, 0, -0.1]),
    "sinks": normal(4),
    "mask": torch.ones(5, 5, dtype=torch.bool).tril(3),
    "key_start": torch.tensor([0, 1, 2, 3, 5]),
    "key_stop": torch.tensor([5, 4, 5, 5, 5]),
    "window_left": 3,
    "window_right": 1,
    "query_offset": 1,
    "scale": 0.3,
    "softcap": 1.5,
}


@NOT_A_LEAF
@pytest.mark.parametrize("order", [lambda x: x, within], ids=["heads first", "heads within"])
@EVERY_TYPE
def test_opcheck_of_operators(dtype, order):
    tensors = [order(x) for x in inputs(dtype)]
    for options in (ARGUMENTS, dict.fromkeys(ARGUMENTS)):
        given = (*map(wanted, tensors), *options.values())
        torch.library.opcheck(torch.ops.cattn.attention_forward.default, given)
        given = (*tensors, *options.values())
        out, lse = torch.ops.cattn.attention_forward(*given)
        for grad_lse in (None, lse):
            torch.library.opcheck(
                torch.ops.cattn.attention_backward.default,
                (out, grad_lse, out, lse, options["bias"] is not None, *given),
                test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
            )


def test_gradcheck_of_all_modifiers():
    """Gradients are slopes with a gradient of lse, alone and beside that of the output."""
    from cattn._autograd import attention

    options = ARGUMENTS | {"key_range": (ARGUMENTS["key_start"], ARGUMENTS["key_stop"]), "window": (3, 1)}
    options = {name: x for name, x in options.items() if not name.startswith(("key_st", "window_"))}
    names = ["bias", "alibi_slopes", "sinks"]
    tensors = [wanted(x) for x in (*inputs(torch.float64, (1, 4, 5, 3)), *(options[name].double() for name in names))]

    def attend(query, key, value, *others):
        named = options | dict(zip(names, others, strict=True))
        out, lse = attention(query, key, value, **named, return_lse=True)
        return out, torch.where(lse.isinf(), 0, lse)

    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradcheck(lambda *given: attend(*given)[1], tensors)


def test_the_modifiers_gradients():
    """Gradients are those of the reference, from the options as the operator passes them on."""
    given = {"query": Q, "key": K, "value": V} | ARGUMENTS
    tensors = [wanted(x) if i < 6 else x for i, x in enumerate(given.values())]
    out, lse = torch.ops.cattn.attention_forward(*tensors)
    grad_out = normal(*SHAPE, seed=3)
    found = torch.autograd.grad((out * grad_out).sum() + 2 * lse.exp().sum(), tensors[:6])
    named = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in ARGUMENTS.items()}
    key_range = named.pop("key_start"), named.pop("key_stop")
    window = named.pop("window_left"), named.pop("window_right")
    expected = cattn.reference.attention_backward(
        grad_out.numpy(), Q.numpy(), K.numpy(), V.numpy(), grad_lse=2 * lse.detach().exp().numpy(),
        key_range=key_range, window=window, bias_grad=True, **named,
    )  # fmt: skip
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x.numpy(), y, rtol=1e-5, atol=2e-5)
