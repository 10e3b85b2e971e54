"""The gradients of `attention_backward`: accuracy, exact zeros, NaN and infinity, bits, errors."""

import itertools
import os

import cases
import numpy as np
import pytest
from helpers import EVERY_TABLE, EVERY_TYPE, TWO_TABLES, assert_same_bits, normal, problem, python, run_python
from kappa import USUAL
from registry_own import check_attention_backward, draw_attention_backward
from test_modifiers import EXAMPLES

import cattn
from cattn import _kernel, reference
from cattn.reference import _bounds
from cattn.reference._bounds import KAPPA, allowed


def backward(
    query, key, value, *, seed=0, grad_out=None, grad_lse=None, num_threads=None, bias_grad=False, **modifiers
):
    """Return the arguments of a call of `attention_backward`, and its result."""
    out, lse = cattn.attention(query, key, value, return_lse=True, num_threads=num_threads, **modifiers)
    if grad_out is None:
        grad_out = normal(*out.shape, dtype=out.dtype, seed=seed + 7)
    arguments = {"grad_out": grad_out, "query": query, "key": key, "value": value, "out": out, "lse": lse}
    arguments |= {"grad_lse": grad_lse, **modifiers}
    return arguments, cattn.attention_backward(**arguments, num_threads=num_threads, bias_grad=bias_grad)


def kappas(arguments, result):
    """Return the largest κ of each gradient, and that of plain NumPy in the same precision."""
    yardstick = _bounds.GradientYardstick(**arguments)
    numpy = reference.attention_backward(**arguments, bias_grad=True, dtype=yardstick.arithmetic)
    return {
        name: (_bounds.largest_kappa(found), _bounds.largest_kappa(numpys))
        for name, found, numpys in zip(result._fields, yardstick.kappas(result), yardstick.kappas(numpy), strict=True)
        if found is not None
    }


def assert_accurate(arguments, result, least=USUAL):
    for name, (found, numpys) in kappas(arguments, result).items():
        assert found <= allowed(numpys, least), f"κ {found:.3g} of {name} exceeds {allowed(numpys, least):.3g}"


def on_table(isa, code):
    """Run code of this file with this kernel table. Another one than ours needs a process of its own."""
    if isa == _kernel.isa():
        exec(code)
        return
    done = run_python("-W", "error", "-c", f"from test_gradients import *\n{code}", CATTN_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


# Accuracy


def check_seeds(start, stop):
    for seed in range(start, stop):
        arguments = draw_attention_backward(seed)
        try:
            check_attention_backward(arguments, cattn.attention_backward(**arguments))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@TWO_TABLES
def test_generated_cases(isa):
    on_table(isa, "check_seeds(1000, 1200)")


def longer(share, rest):
    """Parametrize a test with the seeds of -m slow and with those of -m exhaustive."""
    marked = [pytest.param(share, marks=pytest.mark.slow), pytest.param(rest, marks=pytest.mark.exhaustive)]
    return pytest.mark.parametrize("seeds", marked, ids=str)


@longer((2000, 2200), (2200, 5000))
@EVERY_TABLE
def test_many_generated_cases(isa, seeds):
    on_table(isa, f"check_seeds{seeds}")


def flat_case(seed):
    """Return a call whose terms are alike, so that they may round the same way each time."""
    random = np.random.default_rng([seed, 31])
    dtype = (np.float32, np.float64)[seed % 2]
    rows, keys = (int(20 * 75 ** random.random()) for _ in range(2))
    heads, size, value_size = int(random.integers(1, 3)), *random.choice([1, 2, 8, 33, 64], 2)
    kind = str(random.choice(["equal", "positive", "normal"]))

    def draw(length, size):
        if kind == "normal":
            return random.standard_normal((heads, length, size)).astype(dtype)
        shape = (heads, 1 if kind == "equal" else length, size)
        return np.broadcast_to(random.uniform(0.5, 1, shape), (heads, length, size)).astype(dtype)

    arrays = draw(rows, size), draw(keys, size), draw(keys, value_size)
    return arrays, {"grad_out": draw(rows, value_size), "scale": float(random.choice([0, 1e-3, 1 / size]))}


def check_flat(start, stop):
    for seed in range(start, stop):
        arrays, more = flat_case(seed)
        assert_accurate(*backward(*arrays, **more), least=KAPPA)


@TWO_TABLES
def test_flat_rows(isa):
    on_table(isa, "check_flat(0, 30)")


@longer((30, 70), (70, 600))
@EVERY_TABLE
def test_many_flat_rows(isa, seeds):
    on_table(isa, f"check_flat{seeds}")


def test_rows_and_keys_of_many_chunks():
    """Sums over rows and over keys are joined with carries beyond the first chunks and splits."""
    arrays = [np.full((1, length, 1), 0.7, np.float32) for length in (3900, 2600, 2600)]
    assert_accurate(*backward(*arrays, grad_out=np.full((1, 3900, 1), 0.7, np.float32), scale=0.0), least=KAPPA)


PAIRS = [(one,) for one in EXAMPLES] + list(itertools.combinations(EXAMPLES, 2))


@EVERY_TYPE
def test_modifiers_alone_and_in_pairs(dtype):
    query, key, value = (normal(2, 9, 6, dtype=dtype, seed=seed) for seed in range(3))
    for names in PAIRS:
        modifiers = {}
        for name in names:
            modifiers |= EXAMPLES[name]
        for name in {"alibi_slopes", "sinks"} & modifiers.keys():
            modifiers[name] = np.array([*modifiers[name], 0.3])
        arguments, result = backward(query, key, value, bias_grad="bias" in modifiers, **modifiers)
        try:
            assert_accurate(arguments, result)
        except AssertionError as error:
            raise AssertionError(f"{names}: {error}") from error


AWKWARD = [1, 2, 3, 15, 16, 17, 31, 33, 59, 60, 61, 63, 64, 65, 121, 255, 256, 257]


def check_awkward():
    random = np.random.default_rng(0)
    pairs = [
        *zip(AWKWARD, random.permutation(AWKWARD), strict=True),
        *zip(random.permutation(AWKWARD), AWKWARD, strict=True),
    ]
    for number, (rows, keys) in enumerate(pairs):
        sizes = {"size": int(random.choice(cases.HEAD_SIZES)), "value_size": int(random.choice(cases.HEAD_SIZES))}
        dtype = (np.float32, np.float64)[number % 2]
        arrays = problem(rows, keys, dtype, batch=(), heads=2, key_heads=1 + number % 2, **sizes)
        modifiers = {"causal": True, "query_offset": "end"} if number % 3 == 0 else {}
        assert_accurate(*backward(**arrays, **modifiers))


@TWO_TABLES
def test_awkward_sizes(isa):
    on_table(isa, "check_awkward()")


@pytest.mark.parametrize("size, value_size", [(1, 300), (300, 1), (700, 700), (1500, 8), (16384, 2)])
def test_large_heads(size, value_size):
    arrays = problem(70, 90, batch=(), heads=1, key_heads=1, size=size, value_size=value_size)
    assert_accurate(*backward(**arrays))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_rounded_once(dtype):
    """The gradients of half types are those of the same numbers in float32, rounded."""
    arrays = problem(70, 90, cases.TYPES[dtype])
    wide = {name: x.astype(np.float32) for name, x in arrays.items()}
    out, lse = cattn.attention(**wide, return_lse=True)
    grad_out = normal(*out.shape).astype(cases.TYPES[dtype])
    bias, slopes = normal(70, 90).astype(cases.TYPES[dtype]), np.full(4, 0.25, cases.TYPES[dtype])
    for grad, given in ((grad_out, bias), (grad_out.astype(np.float32), bias)):
        modifiers = {"bias": given, "alibi_slopes": slopes, "query_offset": "end", "bias_grad": True}
        halves = cattn.attention_backward(grad, **arrays, out=out, lse=lse, **modifiers)
        floats = cattn.attention_backward(grad_out.astype(np.float32), **wide, out=out, lse=lse,
                                          **modifiers | {"bias": given.astype(np.float32)})  # fmt: skip
        for found, expected in zip(halves[:4], floats[:4], strict=True):
            assert_same_bits(found, expected.astype(cases.TYPES[dtype]))


def test_keys_of_half_types_beside_float32():
    arrays = problem(20, 30)
    arrays |= {name: arrays[name].astype(np.float16) for name in ("key", "value")}
    arguments, result = backward(**arrays)
    assert (result.query.dtype, result.key.dtype, result.value.dtype) == (np.float32, np.float16, np.float16)
    assert_accurate(arguments, result)


def test_inputs_that_are_broadcast():
    query, key, value = normal(3, 1, 4, 9, 6), normal(5, 2, 9, 6), normal(1, 1, 2, 9, 6)
    arguments, result = backward(query, key, value)
    assert [x.shape for x in result[:3]] == [query.shape, key.shape, value.shape]
    assert_accurate(arguments, result)


BIASES = [
    (2, 4, 30, 70),
    (1, 4, 30, 70),
    (2, 1, 30, 70),
    (30, 70),
    (4, 30, 1),
    (4, 1, 70),
    (2, 1, 1, 1),
    (70,),
    (1,),
    (),
]


@EVERY_TYPE
@pytest.mark.parametrize("shape", BIASES, ids=str)
def test_biases_of_every_shape(shape, dtype):
    arrays = problem(30, 70, np.float64 if dtype == np.float64 else np.float32)
    arguments, result = backward(**arrays, bias=normal(*shape).astype(dtype), bias_grad=True)
    assert result.bias.shape == shape and result.bias.dtype == dtype
    assert_accurate(arguments, result)


@EVERY_TYPE
@pytest.mark.parametrize("batch", [2, 9, 40])
def test_biases_that_entries_share(batch, dtype):
    """The gradients of few entries are added up in another way than those of many. Whether the splits of the keys are
    tasks, or the bias lies in a strange order, changes no bit."""
    arrays = problem(30, 300, np.float64 if dtype == np.float64 else np.float32, batch=(batch,), heads=2, key_heads=1)
    bias = normal(2, 30, 300).astype(dtype)
    arguments, result = backward(**arrays, bias=bias, bias_grad=True, num_threads=1)
    assert_accurate(arguments, result)
    for threads, given in ((3, bias), (1, np.asfortranarray(bias))):
        _, other = backward(**arrays, bias=given, bias_grad=True, num_threads=threads)
        assert_same_bits(result.bias, other.bias)


# What is masked


def garbage(shape, dtype, seed=0):
    return np.random.default_rng(seed).choice([np.nan, np.inf, -np.inf], shape).astype(dtype)


def finite(result):
    return all(np.isfinite(np.asarray(x, np.float64)).all() for x in result if x is not None)


@EVERY_TYPE
def test_masked_garbage_reaches_nothing(dtype):
    """Keys and values that nobody attends to, and rows that attend to nothing, may hold anything."""
    arrays = problem(70, 90, dtype)
    masks = {
        "key_lengths": {"key_lengths": 50, "query_lengths": 40},
        "mask": {"mask": (np.arange(70) < 40)[:, None] & (np.arange(90) < 50)},
        "bias": {"bias": np.where((np.arange(70) < 40)[:, None] & (np.arange(90) < 50), 0.5, -np.inf)},
        "key_range": {"key_range": (np.zeros(70, int), np.where(np.arange(70) < 40, 50, 0))},
    }
    for name, mask in masks.items():
        arguments, clean = backward(**arrays, sinks=np.array([0.1, -np.inf, 1, 2]), **mask)
        wild = {key: x.copy() for key, x in arguments.items() if key in ("grad_out", "query", "key", "value")}
        wild["query"][..., 40:, :] = garbage(wild["query"][..., 40:, :].shape, dtype)
        wild["grad_out"][..., 40:, :] = garbage(wild["grad_out"][..., 40:, :].shape, dtype, 1)
        for key in ("key", "value"):
            wild[key][..., 50:, :] = garbage(wild[key][..., 50:, :].shape, dtype, 2)
        result = cattn.attention_backward(**arguments | wild)
        assert finite(result), name
        assert_same_bits([x for x in result if x is not None], [x for x in clean if x is not None])
        assert not result.query[..., 40:, :].any() and not result.key[..., 50:, :].any()
        assert not result.value[..., 50:, :].any()


@TWO_TABLES
def test_masked_garbage_in_the_midst(isa):
    on_table(isa, "check_garbage_in_the_midst()")


def check_garbage_in_the_midst():
    """Under a causal mask, whatever later keys and earlier rows hold reaches only those who attend."""
    for dtype, special in itertools.product((np.float32, np.float64, np.float16), (np.nan, np.inf)):
        clean = problem(70, 70, dtype, batch=(), heads=2, key_heads=1)
        arguments, before = backward(**clean, causal=True)
        for name, row in (("key", 50), ("value", 50), ("query", 30), ("grad_out", 30)):
            changed = arguments[name].copy()
            changed[..., row, 1] = special
            out, lse = cattn.attention(
                **{x: changed if x == name else arguments[x] for x in clean}, causal=True, return_lse=True
            )
            given = arguments | {name: changed, "out": out, "lse": lse}
            result = cattn.attention_backward(**given)
            expected = reference.attention_backward(**given)
            for found, wanted in zip(result[:3], expected[:3], strict=True):
                np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted), f"{special} in {name}, {dtype}")
            assert not finite(result[:3])
            if name in ("key", "value"):  # rows before the key have not seen it
                assert_same_bits(result.query[:, :row], before.query[:, :row])
            else:  # keys behind the row have not been seen by it
                assert_same_bits((result.key[:, row + 1 :], result.value[:, row + 1 :]),
                                 (before.key[:, row + 1 :], before.value[:, row + 1 :]))  # fmt: skip


def test_rows_that_attend_to_nothing_give_zeros():
    query, key, value = (normal(2, 9, 6, seed=seed) for seed in range(3))
    mask = np.ones((9, 9), bool)
    mask[3] = False
    _, result = backward(query, key, value, mask=mask, bias=normal(9, 9), bias_grad=True)
    assert not result.query[:, 3].any() and not result.bias[3].any() and finite(result)
    _, result = backward(query, key, value, mask=np.zeros((9, 9), bool), sinks=np.ones(2))
    assert not any(x.any() for x in result[:3]) and not result.sinks.any()


def test_the_gradient_of_a_sink_alone():
    """A row that attends to nothing has the sink as its lse."""
    query, key, value = (normal(1, 4, 6, seed=seed) for seed in range(3))
    out, lse = cattn.attention(query, key, value, key_lengths=0, sinks=[0.25], return_lse=True)
    result = cattn.attention_backward(
        np.full_like(out, np.nan), query, key, value, out, lse, grad_lse=np.arange(4, dtype=np.float32)[None],
        key_lengths=0, sinks=[0.25],
    )  # fmt: skip
    assert result.sinks == [6.0] and not result.query.any()


@pytest.mark.parametrize("rows, keys", [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_do(rows, keys):
    arguments, result = backward(**problem(rows, keys), sinks=np.zeros(4), alibi_slopes=np.ones(4), query_offset=0)
    for name in ("query", "key", "value", "alibi_slopes", "sinks"):
        assert getattr(result, name).shape == arguments[name].shape and not getattr(result, name).any()


# Bits


def check_bits():
    for dtype, (rows, keys), modifiers in itertools.product(
        (np.float32, np.float64),
        ((130, 2700), (500, 130)),
        (
            {},
            {"causal": True, "query_offset": "end", "alibi_slopes": np.array([0.1, 0])},
            {"bias": "full"},
            {"bias": "shared"},
            {"bias": "keys"},
            {"bias": "rows", "sinks": np.ones(2)},
        ),
    ):
        arrays = problem(rows, keys, dtype, heads=2, key_heads=1, size=9, value_size=5)
        shapes = {"full": (2, 2, rows, keys), "shared": (rows, keys), "keys": (2, 1, keys), "rows": (1, rows, 1)}
        if "bias" in modifiers:
            modifiers = modifiers | {"bias": normal(*shapes[modifiers["bias"]], dtype=dtype), "bias_grad": True}
        arguments, one = backward(**arrays, **modifiers, num_threads=1)
        arguments["bias_grad"] = modifiers.get("bias_grad", False)
        expected = [x for x in one if x is not None]
        for threads in (2, 5, 16):
            result = cattn.attention_backward(**arguments, num_threads=threads)
            assert_same_bits([x for x in result if x is not None], expected)
        if modifiers:
            continue
        entry = {name: x[1] for name, x in arguments.items() if isinstance(x, np.ndarray)}
        alone = cattn.attention_backward(**entry, num_threads=1)
        assert_same_bits(alone[:3], [x[1] for x in one[:3]])
        for padding in (1, 70, 3000):
            longer = {
                name: np.concatenate([arrays[name], garbage((2, 1, padding, arrays[name].shape[-1]), dtype)], axis=2)
                for name in ("key", "value")
            }
            mask = np.arange(keys + padding) < keys
            for masked in ({"key_lengths": keys}, {"mask": mask}, {"bias": np.where(mask, 0, -np.inf)}):
                padded = cattn.attention_backward(**arguments | longer | masked, num_threads=3)
                shorter = padded.query, padded.key[:, :, :keys], padded.value[:, :, :keys]
                assert_same_bits(shorter, one[:3])
                assert not padded.key[:, :, keys:].any() and not padded.value[:, :, keys:].any()


@TWO_TABLES
def test_bits(isa):
    """Neither the number of threads, nor the batch, nor padding behind the keys changes a bit."""
    on_table(isa, "check_bits()")


def test_layouts_and_strides_change_no_bit():
    arguments, result = backward(**problem(70, 130, size=20, value_size=12))
    swapped = {name: x.swapaxes(1, 2) for name, x in arguments.items() if x is not None}
    other = cattn.attention_backward(**swapped, layout="blhd")
    assert_same_bits([x.swapaxes(1, 2) for x in other[:3]], result[:3])
    for x, given in zip(other[:3], (swapped[name] for name in ("query", "key", "value")), strict=True):
        assert x.shape == given.shape and x.flags.c_contiguous
    doubled = {name: np.repeat(x, 2, axis=-1)[..., ::2] for name, x in arguments.items() if x is not None}
    assert_same_bits(cattn.attention_backward(**doubled)[:3], result[:3])
    bytes_swapped = {name: x.astype(x.dtype.newbyteorder("S")) for name, x in arguments.items() if x is not None}
    assert_same_bits(cattn.attention_backward(**bytes_swapped)[:3], result[:3])


def test_without_a_head_axis():
    query, key, value = normal(9, 6), normal(12, 6, seed=1), normal(12, 5, seed=2)
    arguments, result = backward(query, key, value, bias=normal(9, 12), bias_grad=True, sinks=[1.0])
    headed = {name: x[None] for name, x in arguments.items() if isinstance(x, np.ndarray) and name != "bias"}
    other = cattn.attention_backward(**headed, bias=arguments["bias"], sinks=[1.0], bias_grad=True)
    assert_same_bits(result[:3], [x[0] for x in other[:3]])
    assert_same_bits(result.bias, other.bias)
    assert result.sinks.shape == (1,)


# Errors

ERRORS = {
    "grad_out: expected shape (2, 4, 5, 3) like the output of attention, got (2, 4, 5, 2)": {
        "grad_out": np.zeros((2, 4, 5, 2), np.float32)
    },
    "out: expected shape (2, 4, 5, 3) like the output of attention, got (4, 5, 3)": {
        "out": np.zeros((4, 5, 3), np.float32)
    },
    "out: expected type float32, got float64; write out.astype(np.float32)": {"out": np.zeros((2, 4, 5, 3))},
    "lse: expected shape (2, 4, 5) like the lse of attention, got (2, 5, 4)": {"lse": np.zeros((2, 5, 4), np.float32)},
    "lse: expected type float32, got float64; write lse.astype(np.float32)": {"lse": np.zeros((2, 4, 5))},
    "grad_lse: expected shape (2, 4, 5) like the lse of attention, got (1,)": {"grad_lse": np.zeros(1, np.float32)},
    "grad_lse: expected type float32, got int64; write grad_lse.astype(np.float32)": {
        "grad_lse": np.zeros((2, 4, 5), np.int64)
    },
    "grad_out: expected type float32, got float64; write grad_out.astype(np.float32)": {
        "grad_out": np.zeros((2, 4, 5, 3))
    },
    "query: expected type float16, bfloat16, float32 or float64, got int64; write query.astype(np.float64)": {
        "query": np.zeros((2, 4, 5, 6), np.int64)
    },
    "value: expected type float16, bfloat16, float32 or float64, got int8; write value.astype(np.float32), and "
    "multiply quantised numbers by their scale": {"value": np.zeros((2, 2, 5, 3), np.int8)},
    "bias_grad: expected False without a bias, got True": {"bias_grad": True},
    "out: expected an array, got None": {"out": None},
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    arguments, _ = backward(**problem())
    with pytest.raises((TypeError, ValueError)) as error:
        cattn.attention_backward(**arguments | ERRORS[message])
    assert str(error.value) == message


def test_values_that_are_too_wide():
    wide = np.lib.stride_tricks.as_strided(np.zeros(16385, np.float32), (1, 2, 16385), (0, 0, 4))
    with pytest.raises(ValueError, match="value: expected a size of at most 16384 for gradients, got 16385"):
        cattn.attention_backward(wide, normal(1, 2, 3), normal(1, 2, 3), wide, wide, normal(1, 2))


def test_a_wrong_name_gets_advice():
    arguments, _ = backward(**problem())
    with pytest.raises(TypeError, match="dropout"):
        cattn.attention_backward(**arguments, dropout=0.1)


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_computes_the_same():
    code = """
import os
import numpy as np
from test_gradients import *
arrays = problem(400, 3000, batch=(), heads=2, key_heads=1, size=32, value_size=32)
arguments, before = backward(**arrays, num_threads=3)
if (child := os.fork()) == 0:
    after = cattn.attention_backward(**arguments, num_threads=3)
    os._exit(0 if all(np.array_equal(x, y) for x, y in zip(before[:3], after[:3])) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert python(code) == "0\n"
