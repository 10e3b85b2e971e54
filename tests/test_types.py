"""Half types beside float32: queries of float32 over keys and values at half the bytes."""

import itertools

import cases
import numpy as np
import pytest
from c_interface_calls import DONE, Call, capsule
from helpers import assert_same_bits, normal, problem
from kappa import Yardstick, assert_accurate

import cattn
from cattn import _arguments, reference
from cattn._read import KEY_TYPES_BESIDE

HALF_TYPE = pytest.mark.parametrize("half", [cases.TYPES["float16"], cases.TYPES["bfloat16"]], ids=str)
MANY_AND_FEW = pytest.mark.parametrize("rows", [1, 2, 4, 20, 70])


def mixed(rows, keys, half, **sizes):
    """A float32 query with keys and values of a half type."""
    case = problem(rows, keys, **sizes)
    return case | {name: case[name].astype(half) for name in ("key", "value")}


def modifiers(rows, keys):
    """One after the other, and all at once."""
    random = np.random.default_rng([rows, keys])
    start = random.integers(0, keys, (2, 4, rows))
    each = {
        "query_offset": [keys // 2, keys - rows],
        "causal": True,
        "window": (keys // 3, 2),
        "key_range": (start // 4, start + 9),
        "key_lengths": [keys, keys - 2],
        "query_lengths": [rows, rows // 2],
        "mask": random.random((rows, keys)) < 0.7,
        "bias": random.standard_normal((4, rows, keys)).astype(np.float16),
        "alibi_slopes": [0.1, 0.01, 0.0, -0.001],
        "softcap": 2.0,
        "sinks": [0.5, -3.0, 4.0, -np.inf],
    }
    for name, value in each.items():
        yield {name: value, "query_offset": each["query_offset"]}
    yield each


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("keys", [9, 100, 2049, 4100])
def test_float32_queries(half, rows, keys):
    """Over one chunk of keys and more: float32's bound, in float32."""
    case = mixed(rows, keys, half)
    out, lse = cattn.attention(**case, return_lse=True)
    assert out.dtype == lse.dtype == np.float32
    assert_accurate(out, case, lse)


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("keys", [9, 100])
def test_float32_queries_with_every_modifier(half, rows, keys):
    case = mixed(rows, keys, half)
    for given in modifiers(rows, keys):
        out, lse = cattn.attention(**case, **given, return_lse=True)
        assert_accurate(out, case | given, lse)


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("stage", ["scores", "softcapped", "biased", "weights"])
def test_weights_of_float32_queries(half, rows, stage):
    case = mixed(rows, 50, half)
    del case["value"]
    for given in modifiers(rows, 50):
        found = cattn.attention_weights(**case, **given, stage=stage)
        expected = reference.attention_weights(**case, **given, stage=stage)
        assert found.dtype == np.float32 and expected.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@HALF_TYPE
def test_packed_sequences_of_float32_queries(half):
    query_indptr, key_indptr = [0, 3, 3, 20, 60], [0, 5, 9, 26, 100]
    arrays = normal(60, 4, 9), normal(100, 2, 9, seed=1).astype(half), normal(100, 2, 5, seed=2).astype(half)
    options = {"causal": True, "query_offset": "end", "softcap": 3.0, "return_lse": True}
    out, lse = cattn.attention_varlen(*arrays, query_indptr, key_indptr, **options)
    expected, _ = reference.attention_varlen(*arrays, query_indptr, key_indptr, **options)
    assert out.dtype == lse.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for n in range(4):
        rows, keys = slice(*query_indptr[n : n + 2]), slice(*key_indptr[n : n + 2])
        alone = cattn.attention(arrays[0][rows], arrays[1][keys], arrays[2][keys], **options, layout="blhd")
        assert_same_bits(alone, (out[rows], lse[rows]))


@HALF_TYPE
@MANY_AND_FEW
def test_merged_parts_of_float32_queries(half, rows):
    case = mixed(rows, 60, half)
    parts = [case | {name: case[name][..., keys, :] for name in ("key", "value")}
             for keys in (slice(20), slice(20, 37), slice(37, 60))]  # fmt: skip
    results = [cattn.attention(**part, return_lse=True) for part in parts]
    out, lse = cattn.merge_attention(*zip(*results, strict=True))
    yardstick = Yardstick(case)
    assert out.dtype == lse.dtype == np.float32
    assert yardstick.kappa(out) <= 4 and yardstick.kappa_lse(lse) <= 4


@HALF_TYPE
@MANY_AND_FEW
def test_plan_of_float32_queries(half, rows):
    """The workspace is as that of float32 arrays. Arrays that are not read in place take memory."""
    found = cattn.plan(**mixed(rows, 5000, half))
    expected = cattn.plan(**problem(rows, 5000))
    assert found.workspace_bytes >= expected.workspace_bytes
    names = ("strategy", "lanes", "key_block", "chunk", "tasks", "partial_bytes")
    assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]


def in_other_memory(x):
    """Return the same numbers, misaligned: nothing that the compiled function takes by itself."""
    copy = np.ndarray(x.shape, x.dtype, np.zeros(x.nbytes + 1, np.uint8)[1:])
    copy[...] = x
    return copy


@pytest.fixture
def plain_only(monkeypatch):
    """Whatever is not plain fails."""

    def refuse(*_, **__):
        raise AssertionError("not plain")

    monkeypatch.setattr(_arguments, "attention", refuse)
    with pytest.raises(AssertionError, match="not plain"):
        cattn.attention(*(in_other_memory(normal(2, 3)) for _ in range(3)))


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
@pytest.mark.parametrize("given", [{}, {"scale": 0.3}, {"key_lengths": 41}], ids=str)
def test_plain_float32_queries(half, rows, layout, given, request):
    """Plain arrays are read by the compiled function itself, misaligned ones by Python code: both mean the same."""
    case = mixed(rows, 60, half)
    if layout == "blhd":
        case = {name: np.ascontiguousarray(x.swapaxes(1, 2)) for name, x in case.items()}
    others = {name: in_other_memory(x) for name, x in case.items()}
    expected = cattn.attention(**others, **given, layout=layout, return_lse=True)
    request.getfixturevalue("plain_only")
    found = cattn.attention(**case, **given, layout=layout, return_lse=True)
    assert_same_bits(found, expected)
    out = np.zeros_like(found[0])
    if "key_lengths" not in given:
        assert cattn.attention(**case, **given, layout=layout, out=out) is out
        assert_same_bits(out, found[0])


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("keys", [9, 100, 4100])
def test_float32_out(half, rows, keys):
    """Not rounded: what the usual output is rounded from; in float16, whose weights are float32, the bits of a float32
    query that holds the same numbers."""
    case = problem(rows, keys, half)
    expected, expected_lse = cattn.attention(**case, return_lse=True)
    out = np.full(expected.shape, np.nan, np.float32)
    found, lse = cattn.attention(**case, out=out, return_lse=True)
    assert found is out
    assert_same_bits((out.astype(half), lse), (expected, expected_lse))
    if half == np.float16:
        wide = cattn.attention(**case | {"query": case["query"].astype(np.float32)}, return_lse=True)
        assert_same_bits((out, lse), wide)


@HALF_TYPE
@MANY_AND_FEW
def test_float32_out_with_every_modifier(half, rows):
    case = problem(rows, 100, half)
    for given in modifiers(rows, 100):
        expected = cattn.attention(**case, **given)
        wide = np.full((*expected.shape[:-1], 7), 9, np.float32)
        out = wide[..., 5::-2]
        assert cattn.attention(**case, **given, out=out) is out
        assert_same_bits(out.astype(half), expected)
        assert np.all(wide[..., ::2] == 9)


@HALF_TYPE
def test_float32_out_of_packed_sequences(half):
    arrays = [x.astype(half) for x in (normal(60, 4, 9), normal(100, 2, 9, seed=1), normal(100, 2, 5, seed=2))]
    expected = cattn.attention_varlen(*arrays, [0, 3, 60], [0, 26, 100])
    out = np.full(expected.shape, np.nan, np.float32)
    assert cattn.attention_varlen(*arrays, [0, 3, 60], [0, 26, 100], out=out) is out
    assert_same_bits(out.astype(half), expected)


@HALF_TYPE
@MANY_AND_FEW
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_plain_float32_out(half, rows, layout, request):
    case = problem(rows, 60, half)
    if layout == "blhd":
        case = {name: np.ascontiguousarray(x.swapaxes(1, 2)) for name, x in case.items()}
    others = {name: in_other_memory(x) for name, x in case.items()}
    out = np.zeros((*case["query"].shape[:-1], 3), np.float32)
    expected, expected_lse = cattn.attention(**others, layout=layout, out=out.copy(), return_lse=True)
    request.getfixturevalue("plain_only")
    found, lse = cattn.attention(**case, layout=layout, out=out, return_lse=True)
    assert found is out
    assert_same_bits((out, lse), (expected, expected_lse))


def taken(call, *types):
    """Return the triples of types of query, key and value that a call does not refuse, by their names."""
    found = set()
    for names in itertools.product(types, repeat=3):
        try:
            call(*(normal(2, 3, 4).astype(cases.TYPES[name]) for name in names))
        except (TypeError, AssertionError):
            continue
        found.add(names)
    return found


EXPECTED = {
    (query, key, key)
    for query, key in itertools.product(cases.TYPES, repeat=2)
    if key == query or key in KEY_TYPES_BESIDE.get(query, ())
}


def test_types_that_may_meet():
    assert taken(lambda *given: cattn.attention(*map(in_other_memory, given)), *cases.TYPES) == EXPECTED


@pytest.mark.usefixtures("plain_only")
def test_types_that_may_meet_in_plain_calls():
    assert taken(cattn.attention, *cases.TYPES) == EXPECTED


def test_types_that_may_meet_in_c():
    def attend(query, key, value):
        call = Call(query=query, key=key, value=value)
        status, explanation = capsule(call.arguments)
        if status != DONE:
            raise TypeError(explanation)

    assert taken(attend, *cases.TYPES) == EXPECTED


def test_types_that_may_meet_as_tensors():
    pytest.importorskip("torch")
    import cattn.torch
    from cattn._tensors import to_tensor

    def attend(*given):
        return cattn.torch.scaled_dot_product_attention(*map(to_tensor, given))

    assert taken(attend, *cases.TYPES) == EXPECTED
