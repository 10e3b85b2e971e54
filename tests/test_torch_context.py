"""cattn.torch.sdpa, and what cattn.torch leaves to PyTorch: dropout, torch.func, other classes."""

import contextlib
import functools
import threading
import warnings

import pytest

pytest.importorskip("ml_dtypes")
pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch_tensors import EYE, FUNCTION_AND_OPERATOR, K, Q, V, inputs, normal, seen_calls, wanted

import cattn.torch
from cattn.torch import scaled_dot_product_attention, sdpa


@pytest.fixture
def calls(monkeypatch):
    return seen_calls(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """Each test begins as a new process does, in which every warning is yet to come."""
    monkeypatch.setattr(cattn.torch, "_warned", set())


# What PyTorch computes

SAID = "cattn.torch leaves this to PyTorch: "
FUNCTION_AND_CONTEXT = pytest.mark.parametrize(
    "attention, within",
    [(scaled_dot_product_attention, contextlib.nullcontext), (F.scaled_dot_product_attention, sdpa)],
    ids=["function", "context"],
)


@contextlib.contextmanager
def warnings_of():
    """The texts of cattn's warnings."""
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [text for warning in caught if (text := str(warning.message)).startswith("cattn")]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


@FUNCTION_AND_OPERATOR
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_gradients(context, attention, calls):
    with context():
        assert torch.equal(attention(*map(wanted, (Q, K, V, EYE))), attention(Q, K, V, EYE))
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own use of it
@FUNCTION_AND_OPERATOR
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", range(3))
def test_gradients_of_functions(place, dtype, attention):
    """PyTorch computes those within torch.func. Forward mode is refused by PyTorch itself."""
    tensors = inputs(dtype)

    def loss(x, attention=attention):
        return attention(*tensors[:place], x, *tensors[place + 1 :]).sum()

    def theirs(x):
        return loss(x, F.scaled_dot_product_attention)

    x = tensors[place]
    name = ("query", "key", "value")[place]
    with pytest.warns(UserWarning, match=f"^{SAID}{name}: expected a tensor that needs no gradient"):
        assert torch.equal(torch.func.grad(loss)(x), torch.func.grad(theirs)(x))
    for function in (loss, theirs):
        with warnings_of(), pytest.raises(NotImplementedError, match="forward AD"):
            torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(attention(*tensors), attention(*inputs(dtype)))


@FUNCTION_AND_CONTEXT
def test_dropout_is_pytorchs(attention, within):
    def attend(attention):
        torch.manual_seed(0)
        return [attention(Q, K, V, dropout_p=0.5) for _ in range(2)]

    with warnings_of() as texts, within():
        found = attend(attention)
    reason = "dropout_p: expected 0, since cattn has no dropout, got 0.5; write dropout_p=0, or model.eval()"
    assert texts == [SAID + reason]
    assert_equal(found, attend(F.scaled_dot_product_attention))


@FUNCTION_AND_CONTEXT
def test_a_filter_makes_it_an_error(attention, within):
    """In each call, not the first alone."""
    with warnings.catch_warnings(), within():
        warnings.filterwarnings("error", "cattn")
        for _ in range(3):
            with pytest.raises(UserWarning, match=f"^{SAID}"):
                attention(Q, K, V, dropout_p=0.5)


@FUNCTION_AND_CONTEXT
def test_the_warning_names_the_place(attention, within):
    with pytest.warns(UserWarning) as caught, within():
        attention(Q, K, V, dropout_p=0.5)
    [warning] = caught
    assert warning.filename == __file__


# The context


def test_within_the_context(calls):
    expected = F.scaled_dot_product_attention(Q, K, V, is_causal=True)
    assert not calls
    with sdpa():
        found = F.scaled_dot_product_attention(Q, K, V, is_causal=True)
        assert len(calls) == 1
        by_name = torch.nn.functional.scaled_dot_product_attention(value=V, query=Q, is_causal=True, key=K)
        assert len(calls) == 2
    F.scaled_dot_product_attention(Q, K, V)
    assert len(calls) == 2
    assert torch.equal(found, by_name)
    torch.testing.assert_close(found, expected)


NOT_SERVED = {
    "dropout": ((Q, K, V), {"dropout_p": 0.5}, "dropout_p: expected 0, since cattn has no dropout, got 0.5"),
    "mask and causal": ((Q, K, V, EYE), {"is_causal": True}, "attn_mask: expected None beside is_causal=True"),
    "scale": ((Q, K, V), {"scale": float("inf")}, "scale: expected a finite number, got inf"),
}


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_is_not_served_goes_to_pytorch(name):
    """With one warning."""
    tensors, options, reason = NOT_SERVED[name]
    torch.manual_seed(0)
    expected = [F.scaled_dot_product_attention(*tensors, **options) for _ in range(2)]
    torch.manual_seed(0)
    with warnings_of() as texts, sdpa():
        found = [F.scaled_dot_product_attention(*tensors, **options) for _ in range(2)]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    [text] = texts
    assert text.startswith(f"{SAID}{reason}")


def test_what_pytorch_refuses_is_refused(calls):
    """Mixed types too, some of which cattn would take, unless they are cast."""
    for key, value in ((K.double(), V), (K.half(), V.half())):
        with pytest.raises(RuntimeError, match="dtype"), sdpa():
            F.scaled_dot_product_attention(Q, key, value)
    with sdpa(), torch.autocast("cpu", torch.bfloat16):
        assert F.scaled_dot_product_attention(Q, K.half(), V.half()).dtype is torch.bfloat16
    assert len(calls) == 1


def test_other_devices_go_to_pytorch_silently():
    with sdpa():
        assert F.scaled_dot_product_attention(*(x.to("meta") for x in (Q, K, V))).is_meta


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_classes_with_functions_of_their_own_go_to_pytorch():
    def call():
        return F.scaled_dot_product_attention(*[jagged.transpose(1, 2)] * 3).transpose(1, 2).values()

    jagged = torch.nested.as_nested_tensor([Q[0].transpose(0, 1), K[0, :, :3].transpose(0, 1)], layout=torch.jagged)
    expected = call()
    with warnings_of() as texts, sdpa():
        assert torch.equal(call(), expected)
    assert texts == [f"{SAID}NestedTensor: expected plain tensors, got a class with functions of its own"]


@pytest.mark.parametrize("kind", ["upper_left", "lower_right"])
@pytest.mark.parametrize("compiler", [lambda f: f, functools.partial(torch.compile, fullgraph=True, backend="eager")])
def test_causal_biases(compiler, kind, calls):
    from torch.nn.attention import bias

    tensors = Q[:, :, :3], K, V, getattr(bias, f"causal_{kind}")(3, 5)
    expected = F.scaled_dot_product_attention(*tensors)
    torch._dynamo.reset()
    with sdpa():
        found = compiler(lambda *given: F.scaled_dot_product_attention(*given))(*tensors)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected)


def test_other_threads_are_not_reached(calls):
    thread = threading.Thread(target=F.scaled_dot_product_attention, args=(Q, K, V))
    with sdpa():
        thread.start()
        thread.join()
        assert not calls
        F.scaled_dot_product_attention(Q, K, V)
    assert len(calls) == 1


PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(6)


@pytest.mark.parametrize(
    "options", [{}, {"key_padding_mask": PADDING}, {"attn_mask": CAUSAL, "is_causal": True}, {"attn_mask": CAUSAL}]
)
def test_multi_head_attention(options, calls):
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = normal(2, 6, 32)
    with torch.no_grad():
        expected, _ = module(x, x, x, need_weights=False, **options)
        with sdpa():
            found, _ = module(x, x, x, need_weights=False, **options)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("given", [{}, {"need_weights": True}])
def test_multi_head_attention_with_weights(given, calls):
    """PyTorch multiplies matrices for them. The warning says what to write."""
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    x = normal(2, 6, 32)
    expected = module(x, x, x, **given)
    with warnings_of() as texts, sdpa():
        assert_equal(module(x, x, x, **given), expected)
        assert_equal(module(x, x, x, **given), expected)
    assert texts == [f"{SAID}need_weights: expected False, got True, the default; write need_weights=False"]
    assert not calls


def test_multi_head_attention_by_position(calls):
    weight, bias, out_weight, out_bias = normal(24, 8), normal(24), normal(8, 8), normal(8)
    x = normal(6, 2, 8)
    given = (x, x, x, 8, 2, weight, bias, None, None, False, 0.0, out_weight, out_bias, False, None)
    for need_weights in (False, True):
        expected = F.multi_head_attention_forward(*given, need_weights)
        with warnings_of() as texts, sdpa():
            found = F.multi_head_attention_forward(*given, need_weights)
        torch.testing.assert_close(found[0], expected[0])
        assert (len(texts), len(calls), found[1] is not None) == (int(need_weights), 1, need_weights)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("padding", [None, PADDING])
def test_transformer_layers(padding, calls):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2).eval()
    decoder = torch.nn.TransformerDecoderLayer(32, 4, 64, batch_first=True).eval()
    x = normal(2, 6, 32)

    def run():
        memory = encoder(x, src_key_padding_mask=padding)[:, :4]
        return memory, decoder(x, memory)

    with torch.no_grad():
        expected = run()
        with sdpa():
            found = run()
    assert len(calls) == 4
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("inside", [True, False], ids=["context compiled", "compiled in context"])
def test_the_context_and_the_compiler(inside, backend, calls):
    torch._dynamo.reset()

    def attend(x):
        with sdpa() if inside else contextlib.nullcontext():
            return F.scaled_dot_product_attention(2 * x, K, V)

    with contextlib.nullcontext() if inside else sdpa():
        found = torch.compile(attend, backend=backend)(Q)
    assert len(calls) == 1
    assert torch.equal(found, scaled_dot_product_attention(2 * Q, K, V))
