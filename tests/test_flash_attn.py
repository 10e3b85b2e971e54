"""cattn.flash_attn: the functions of flash_attn, after their documentation, on arrays and on tensors."""

import inspect

import cases
import numpy as np
import pytest
from helpers import EVERY_TYPE, assert_same_bits, normal, python, run_python

import cattn
from cattn import reference
from cattn.flash_attn import flash_attn_func, flash_attn_varlen_func

INF = np.inf
CLOSE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


def formula(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None):
    """One sequence, (length, heads, size), in float64, score by score as the documentation of flash_attn has it; and
    the logarithms of the sums, (heads, length)."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    (queries, heads, size), keys = q.shape, len(k)
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    out, lse = np.zeros((queries, heads, v.shape[-1])), np.full((heads, queries), INF)
    for head in range(heads):
        for i in range(queries):
            at = i + keys - queries
            scores = k[:, head] @ q[i, head] * (size**-0.5 if softmax_scale is None else softmax_scale)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            j = np.arange(keys)
            if alibi_slopes is not None:
                scores = scores - alibi_slopes[head] * np.abs(at - j)
            left, right = window_size
            seen = np.full(keys, True)
            if causal:
                seen &= j <= at
            if left >= 0:
                seen &= j >= at - left
            if right >= 0:
                seen &= j <= at + right
            if seen.any():
                weights = np.exp(scores[seen])
                out[i, head] = weights @ v[seen, head] / weights.sum()
                lse[head, i] = np.log(weights.sum())
    return out, lse


OPTIONS = {
    "plain": {},
    "scale": {"softmax_scale": 0.3},
    "causal": {"causal": True},
    "window": {"window_size": (3, 1)},
    "left": {"window_size": (2, -1)},
    "right": {"window_size": (-1, 0)},
    "causal window": {"causal": True, "window_size": (2, 5)},
    "softcap": {"softcap": 0.7},
    "alibi": {"alibi_slopes": np.array([0.5, 0.1, 0.0, 0.3], np.float32)},
    "alibi of each": {"alibi_slopes": np.arange(8, dtype=np.float32).reshape(2, 4) / 20, "causal": True},
    "all": {
        "softmax_scale": -0.4,
        "causal": True,
        "window_size": (4, -1),
        "softcap": 1.5,
        "alibi_slopes": np.array([0.5, 0.1, 0.0, 0.3], np.float32),
    },
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
LENGTHS = pytest.mark.parametrize("queries, keys", [(5, 5), (3, 8), (8, 3), (1, 6), (6, 1)])


def batch(queries, keys, dtype=np.float32):
    shapes = (2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 6)
    return [normal(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def of_entry(n, options):
    slopes = options.get("alibi_slopes")
    return options if slopes is None or slopes.ndim == 1 else options | {"alibi_slopes": slopes[n]}


@EVERY_TYPE
@EVERY_OPTION
@LENGTHS
def test_batches(queries, keys, options, dtype):
    q, k, v = batch(queries, keys, dtype)
    out, lse = flash_attn_func(q, k, v, **options, return_lse=True)
    assert (out.shape, out.dtype) == ((2, queries, 4, 6), q.dtype)
    assert (lse.shape, lse.dtype) == ((2, 4, queries), np.float64 if dtype == np.float64 else np.float32)
    assert_same_bits(flash_attn_func(q, k, v, **options), out)
    for n in range(2):
        expected, expected_lse = formula(q[n], k[n], v[n], **of_entry(n, options))
        np.testing.assert_allclose(out[n].astype(np.float64), expected, rtol=0, atol=CLOSE[q.dtype.name])
        np.testing.assert_allclose(lse[n], expected_lse, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(out[n][lse[n].T == INF], 0)


@EVERY_OPTION
@LENGTHS
def test_batches_as_the_reference_has_them(queries, keys, options):
    arrays = batch(queries, keys, np.float64)
    names = {"softmax_scale": "scale", "window_size": "window"}
    modifiers = {names.get(name, name): value for name, value in options.items()}
    expected = reference.attention(*arrays, layout="blhd", query_offset="end", **modifiers)
    np.testing.assert_allclose(flash_attn_func(*arrays, **options), expected, rtol=0, atol=1e-12)


QUERIES, KEYS = np.array([0, 3, 3, 20, 21, 24], np.int32), np.array([0, 5, 9, 16, 16, 40], np.int32)


def packed(dtype=np.float32):
    return [normal(*shape, dtype=dtype) for shape in ((24, 4, 8), (40, 2, 8), (40, 2, 6))]


@EVERY_TYPE
@EVERY_OPTION
def test_packed_sequences(options, dtype):
    """Each as if it were alone: fewer and more queries than keys, none of either."""
    if np.ndim(options.get("alibi_slopes")) == 2:
        options = options | {"alibi_slopes": np.arange(20, dtype=np.float32).reshape(5, 4) / 20}
    q, k, v = packed(dtype)
    out, lse = flash_attn_varlen_func(q, k, v, QUERIES, KEYS, 17, 24, **options, return_lse=True)
    assert (out.shape, out.dtype, lse.shape) == ((24, 4, 6), q.dtype, (4, 24))
    assert_same_bits(flash_attn_varlen_func(q, k, v, QUERIES, KEYS, 17, 24, **options), out)
    for n in range(5):
        rows, keys = slice(*QUERIES[n : n + 2]), slice(*KEYS[n : n + 2])
        expected, expected_lse = formula(q[rows], k[keys], v[keys], **of_entry(n, options))
        np.testing.assert_allclose(out[rows].astype(np.float64), expected, rtol=0, atol=CLOSE[q.dtype.name])
        np.testing.assert_allclose(lse[:, rows], expected_lse, rtol=0, atol=1e-5)
        alone = flash_attn_func(q[None, rows], k[None, keys], v[None, keys], **of_entry(n, options), return_lse=True)
        assert_same_bits((out[rows], lse[:, rows]), (alone[0][0], alone[1][0]))


@pytest.mark.parametrize("queries, keys, rows", [(2, 5, ["11110", "11111"]), (5, 2, ["00", "00", "00", "10", "11"])])
def test_the_causal_masks_of_the_documentation(queries, keys, rows):
    q, k = normal(1, queries, 1, 4), normal(1, keys, 1, 4)
    out = flash_attn_func(q, k, np.eye(keys, dtype=np.float32)[None, :, None], causal=True)
    assert ["".join("01"[int(weight > 0)] for weight in row) for row in out[0, :, 0]] == rows


def test_rows_that_may_attend_to_nothing():
    """Zeros, and an lse of +inf: what that package gives, and cattn.attention does not."""
    arrays = batch(8, 3)
    out, lse = flash_attn_func(*arrays, causal=True, return_lse=True)
    assert np.all(out[:, :5] == 0) and np.all(out[:, 5:] != 0)
    assert np.all(lse[..., :5] == INF) and np.all(np.isfinite(lse[..., 5:]))
    _, ours = cattn.attention(*arrays, causal=True, query_offset="end", layout="blhd", return_lse=True)
    assert np.all(ours[:, :5] == -INF)


def test_parameters():
    """Names, order and defaults of flash_attn 2.8, and one more by name."""

    def found(function):
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    none = inspect.Parameter.empty
    options = [
        ("dropout_p", 0.0),
        ("softmax_scale", None),
        ("causal", False),
        ("window_size", (-1, -1)),
        ("softcap", 0.0),
        ("alibi_slopes", None),
        ("deterministic", False),
        ("return_attn_probs", False),
    ]
    tensors = [("q", none), ("k", none), ("v", none)]
    lengths = [(name, none) for name in ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")]
    ours = [("return_lse", False)]
    assert found(flash_attn_func) == tensors + options + ours
    assert found(flash_attn_varlen_func) == tensors + lengths + options + [("block_table", None)] + ours
    assert inspect.signature(flash_attn_func).parameters["return_lse"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("function", [flash_attn_func, flash_attn_varlen_func])
def test_the_docstrings_say_whose_they_are(function):
    assert "Not affiliated with, nor endorsed by, the authors of FlashAttention." in inspect.getdoc(function)


def test_what_changes_nothing():
    arrays = batch(5, 5)
    expected = flash_attn_func(*arrays)
    for same in (
        {"deterministic": True},
        {"window_size": [-1, -1]},
        {"window_size": np.array([-1, -1])},
        {"softcap": 0},
        {"softcap": np.zeros(())},
        {"dropout_p": 0},
        {"dropout_p": np.float32(0)},
    ):
        assert_same_bits(flash_attn_func(*arrays, **same), expected)
    expected = flash_attn_varlen_func(*packed(), QUERIES, KEYS, 17, 24)
    found = flash_attn_varlen_func(*packed(), QUERIES.astype(np.int64), KEYS, np.int32(1000), 24)
    assert_same_bits(found, expected)


# Arrays and tensors


class Arrays:
    """Return the arrays as NumPy has them."""

    float64, bfloat16 = np.float64, cases.TYPES["bfloat16"]

    @staticmethod
    def of(x):
        return x

    @staticmethod
    def cast(x, dtype):
        return x.astype(dtype)


class Tensors:
    """Return the same arrays as tensors of PyTorch."""

    def __init__(self):
        pytest.importorskip("ml_dtypes")
        self.torch = pytest.importorskip("torch")
        self.float64, self.bfloat16 = self.torch.float64, self.torch.bfloat16

    def of(self, x):
        if x.dtype.name == "bfloat16":
            return self.torch.from_numpy(x.view(np.uint16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(x)

    @staticmethod
    def cast(x, dtype):
        return x.to(dtype)


class Recorded(Tensors):
    """Draw tensors that need gradients. Where numbers are wrong, they are float64, and need none."""

    def of(self, x):
        tensor = super().of(x)
        return tensor.requires_grad_(tensor.is_floating_point() and tensor.dtype is not self.float64)


@pytest.fixture(params=[Arrays, Tensors])
def house(request):
    return request.param()


@pytest.fixture(params=[Arrays, Tensors, Recorded])
def every_house(request):
    return request.param()


@pytest.fixture
def tensors():
    return Tensors()


def as_array(x):
    return x.view(Tensors().torch.uint16).numpy() if x.element_size() == 2 else x.numpy()


@EVERY_TYPE
@EVERY_OPTION
def test_tensors_of_a_batch(options, dtype, tensors):
    """The bits of the arrays, in tensors of the same type."""
    arrays = batch(3, 8, dtype)
    expected, expected_lse = flash_attn_func(*arrays, **options, return_lse=True)
    options = {name: tensors.of(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    given = [tensors.of(x) for x in arrays]
    out, lse = flash_attn_func(*given, **options, return_lse=True)
    assert out.dtype is given[0].dtype
    np.testing.assert_array_equal(as_array(out), as_array(tensors.of(expected)))
    assert_same_bits(lse.numpy(), expected_lse)
    assert tensors.torch.equal(flash_attn_func(*given, **options), out)


@EVERY_TYPE
def test_tensors_of_packed_sequences(dtype, tensors):
    expected, expected_lse = flash_attn_varlen_func(*packed(dtype), QUERIES, KEYS, 17, 24, causal=True, return_lse=True)
    given = [tensors.of(x) for x in (*packed(dtype), QUERIES, KEYS)]
    out, lse = flash_attn_varlen_func(*given, 17, 24, causal=True, return_lse=True)
    assert out.dtype is given[0].dtype
    np.testing.assert_array_equal(as_array(out), as_array(tensors.of(expected)))
    assert_same_bits(lse.numpy(), expected_lse)


@EVERY_TYPE
def test_nothing_is_copied(dtype, house, monkeypatch):
    """Not even what is not contiguous."""
    seen = []
    real = cattn.attention
    monkeypatch.setattr(cattn, "attention", lambda *given, **options: seen.extend(given) or real(*given, **options))
    whole = [house.of(x) for x in batch(6, 6, dtype)]
    flash_attn_func(*(x[:, ::2, :, 1:] for x in whole[:2]), whole[2][:, ::2])
    for start, tensor, array in zip((1, 1, 0), whole, seen, strict=True):
        address = tensor.data_ptr() if hasattr(tensor, "data_ptr") else tensor.ctypes.data
        assert array.ctypes.data == address + start * array.dtype.itemsize


def test_threads(tensors, monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    seen = []
    real = cattn.attention
    monkeypatch.setattr(
        cattn, "attention", lambda *a, **options: seen.append(options["num_threads"]) or real(*a, **options)
    )
    cattn.set_num_threads(None)
    before = tensors.torch.get_num_threads()
    try:
        tensors.torch.set_num_threads(3)
        flash_attn_func(*batch(5, 5))
        flash_attn_func(*map(tensors.of, batch(5, 5)))
        cattn.set_num_threads(2)
        flash_attn_func(*map(tensors.of, batch(5, 5)))
    finally:
        tensors.torch.set_num_threads(before)
        cattn.set_num_threads(None)
    assert seen == [None, 3, 2]


WINDOWS = {
    "list": lambda house, left, right: [left, right],
    "integers of NumPy": lambda house, left, right: (np.int64(left), np.int32(right)),
    "array": lambda house, left, right: np.array([left, right], np.int32),
    "of the house": lambda house, left, right: house.of(np.array([left, right])),
    "tuple of the house": lambda house, left, right: tuple(house.of(np.array([left, right]))),
}


@pytest.mark.parametrize("window", [(2, 1), (-1, 3), (0, -1), (-1, -1)])
@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_of_other_types(kind, window, house):
    given = [house.of(x) for x in batch(5, 7)]
    expected = np.asarray(flash_attn_func(*given, window_size=window))
    found = flash_attn_func(*given, window_size=WINDOWS[kind](house, *window))
    assert_same_bits(np.asarray(found), expected)


@pytest.mark.parametrize("return_lse", [False, True])
def test_lse_as_the_package_returns_it(return_lse, house):
    arrays = [house.of(x) for x in batch(8, 3)]
    sequences = [house.of(x) for x in (*packed(), QUERIES, KEYS)]
    for function, given in ((flash_attn_func, arrays), (flash_attn_varlen_func, (*sequences, 17, 24))):
        expected = function(*given, causal=True, return_lse=True)
        *found, nothing = function(*given, causal=True, return_attn_probs=True, return_lse=return_lse)
        assert nothing is None
        assert_same_bits([np.asarray(x) for x in found], [np.asarray(x) for x in expected])


# Errors

Q, K, V = batch(5, 7)
REFUSED = {
    "dropout": ({"dropout_p": 0.1}, ValueError, "dropout_p: expected 0, since cattn has no dropout, got 0.1$"),
    "dropouts": ({"dropout_p": np.zeros(2)}, TypeError, r"dropout_p: expected a finite number, got (nd|T)"),
    "probabilities": ({"return_attn_probs": np.ones(2)}, TypeError, "return_attn_probs: expected True or False, got "),
    "axes of q": ({"q": Q[0]}, ValueError, r"q: expected 4 axes \(batch, length, heads, size\), got shape \(5, 4, 8\)"),
    "axes of k": ({"k": K[None]}, ValueError, r"k: expected 4 axes .* got shape \(1, 2, 7, 2, 8\)$"),
    "head size": ({"k": K[..., 1:]}, ValueError, r"k: expected head size 8 like q, got 7 \(shape \(2, 7, 2, 7\)\)$"),
    "length": ({"v": V[:, 1:]}, ValueError, r"v: expected length 7 like k, got 6 \(shape \(2, 6, 2, 6\)\)$"),
    "batch": ({"k": normal(3, 7, 2, 8)}, ValueError, r"k: expected leading axes that broadcast with \(2,\), got"),
    "heads": ({"k": normal(2, 7, 3, 8)}, ValueError, "k: expected a number of heads that divides the 4 of q, got 3"),
    "heads of v": ({"v": V[:, :, :1]}, ValueError, "v: expected 2 heads like k, got 1"),
    "scale": ({"softmax_scale": INF}, ValueError, "softmax_scale: expected a finite number, got inf$"),
    "tiny scale": ({"softmax_scale": 1e-300}, ValueError, "softmax_scale: expected 0 or a number that float32 holds"),
    "causal": ({"causal": "yes"}, TypeError, "causal: expected True or False, got 'yes'$"),
    "window": ({"window_size": 3}, TypeError, r"window_size: expected \(left, right\), .* got 3; \(3, 0\) looks back"),
    "window of 3": ({"window_size": (1, 2, 3)}, ValueError, r"window_size: expected \(left, right\), .* got \(1,"),
    "floating window": ({"window_size": np.ones(2)}, TypeError, r"window_size: expected .* got \(1.0, 1.0\)$"),
    "windows": ({"window_size": KEYS.reshape(2, 3)}, TypeError, r"window_size: expected .* got \(\[0, 5, 9\], "),
    "softcaps": ({"softcap": np.zeros(2)}, TypeError, r"softcap: expected a finite number, got (ndarray|Tensor) of"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap: expected a finite number above 0, got -1.0$"),
    "slopes": ({"alibi_slopes": np.ones(3)}, ValueError, r"alibi_slopes: expected shape \(4,\), one number for each head of q, .* got \(3,\)$"),  # noqa: E501
    "return_lse": ({"return_lse": 1}, TypeError, "return_lse: expected True or False, got 1$"),
    "none": ({"k": None}, TypeError, "k: expected an? (array|tensor), got None"),
}  # fmt: skip
LONG = {
    "axes": ({"q": Q}, ValueError, r"q: expected 3 axes \(total length, heads, size\), got shape \(2, 5, 4, 8\)$"),
    "pages": ({"block_table": KEYS}, ValueError, "block_table: expected None, got "),
    "dropout": ({"dropout_p": 0.1}, ValueError, "dropout_p: expected 0, since cattn has no dropout, got 0.1$"),
    "scalar": ({"cu_seqlens_q": QUERIES[0:1].reshape(())}, ValueError, r"cu_seqlens_q: expected shape \(sequences \+ 1,\), got \(\)"),  # noqa: E501
    "begin": ({"cu_seqlens_q": QUERIES + 1}, ValueError, "cu_seqlens_q: expected to begin with 0, got 1$"),
    "end": ({"cu_seqlens_k": KEYS[:-1]}, ValueError, "cu_seqlens_k: expected to end with 40, the total length of k, got 16$"),  # noqa: E501
    "falls": ({"cu_seqlens_q": QUERIES[[0, 2, 3, 1, 4, 5]], "max_seqlen_q": 18}, ValueError, r"cu_seqlens_q: expected ascending values, got 20 before 3 \(entry 3\)$"),  # noqa: E501
    "number": ({"cu_seqlens_k": KEYS[[0, 1, 5]], "max_seqlen_k": 40}, ValueError, "cu_seqlens_k: expected 6 entries like cu_seqlens_q, .* got 3$"),  # noqa: E501
    "floats": ({"cu_seqlens_q": QUERIES.astype(np.float64)}, TypeError, "cu_seqlens_q: expected integers, got float64"),
    "longest q": ({"max_seqlen_q": 16}, ValueError, "max_seqlen_q: expected an integer of 17 or more, the length of a sequence in cu_seqlens_q, got 16$"),  # noqa: E501
    "longest k": ({"max_seqlen_k": 2}, ValueError, "max_seqlen_k: expected an integer of 24 .*cu_seqlens_k, got 2$"),
    "longest": ({"max_seqlen_k": 24.5}, TypeError, "max_seqlen_k: expected an integer of 24 .*, got 24.5$"),
    "longest flag": ({"max_seqlen_k": True}, TypeError, "max_seqlen_k: expected an integer of 24 .*, got True$"),
}  # fmt: skip


def with_arrays_of(house, given):
    return {name: house.of(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, every_house):
    given, error, message = REFUSED[name]
    with pytest.raises(error, match=f"^{message}"):
        flash_attn_func(**with_arrays_of(every_house, {"q": Q, "k": K, "v": V} | given))


@pytest.mark.parametrize("name", LONG)
def test_packed_refused(name, every_house):
    given, error, message = LONG[name]
    arrays = dict(zip("qkv", packed(), strict=True))
    lengths = {"cu_seqlens_q": QUERIES, "cu_seqlens_k": KEYS, "max_seqlen_q": 17, "max_seqlen_k": 24}
    with pytest.raises(error, match=f"^{message}"):
        flash_attn_varlen_func(**with_arrays_of(every_house, arrays | lengths | given))


@pytest.mark.parametrize("name", "kv")
def test_mixed_types_are_refused(name, every_house):
    given = with_arrays_of(every_house, {"q": Q, "k": K, "v": V})
    given[name] = every_house.cast(given[name], every_house.float64)
    with pytest.raises(TypeError, match=f"^{name}: expected type .*float32 like q, got .*float64; write {name}"):
        flash_attn_func(**given)
    given = with_arrays_of(every_house, {"q": Q, "k": K, "v": V})
    for other in "kv":
        given[other] = every_house.cast(given[other], every_house.bfloat16)
    with pytest.raises(TypeError, match=r"^k: expected type .*float32 like q, got .*bfloat16; write k"):
        flash_attn_func(**given)


def test_numbers_that_are_no_floats_are_refused(house):
    given = [house.of((10 * x).astype(np.int8)) for x in (Q, K, V)]
    with pytest.raises(
        TypeError, match=r"^q: expected type float16, bfloat16, float32 or float64, got .*int8; write q"
    ):
        flash_attn_func(*given)


@pytest.mark.parametrize("name", ["k", "v", "alibi_slopes"])
def test_arrays_beside_tensors_are_refused(name, tensors):
    given = {"q": Q, "k": K, "v": V, "alibi_slopes": np.ones(4, np.float32)}
    given = {other: x if other == name else tensors.of(x) for other, x in given.items()}
    with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got numpy.ndarray$"):
        flash_attn_func(**given)


@pytest.mark.parametrize("name", ["q", "k", "v", "alibi_slopes"])
def test_other_devices_are_refused(name, tensors):
    given = with_arrays_of(tensors, {"q": Q, "k": K, "v": V, "alibi_slopes": np.ones(4, np.float32)})
    for wanted in (False, True):
        given["q"] = given["q"].clone().requires_grad_(wanted)
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor on the CPU, got one on meta$"):
            flash_attn_func(**given | {name: given[name].to("meta")})


# Gradients


def gradients(tensors, function, arrays, *others, **options):
    """Return the gradients of Σ out·dO + Σ lse·dlse, and dO, dlse and lse, as arrays. The results must be those without
    gradients."""
    given = [tensors.of(x).requires_grad_() for x in arrays]
    options = with_arrays_of(tensors, options)
    slopes = [options["alibi_slopes"].requires_grad_()] if "alibi_slopes" in options else []
    out, lse = function(*given, *others, **options, return_lse=True)
    with tensors.torch.no_grad():
        expected = function(*given, *others, **options, return_lse=True)
    assert tensors.torch.equal(out, expected[0]) and tensors.torch.equal(lse, expected[1])
    random = tensors.torch.Generator().manual_seed(5)
    grads = [tensors.torch.randn(x.shape, generator=random).to(x.dtype) for x in (out, lse)]
    found = tensors.torch.autograd.grad((out, lse), [*given, *slopes], grads)
    return [as_array(x) for x in found], *(as_array(x) for x in (*grads, lse.detach()))


def reference_gradients(grad_out, grad_lse, q, k, v, softmax_scale=None, window_size=(-1, -1), **options):
    """Return the reference's gradients of one sequence, (length, heads, size), or of a batch."""
    options |= {"scale": softmax_scale, "window": window_size, "query_offset": "end", "layout": "blhd"}
    found = reference.attention_backward(grad_out, q, k, v, grad_lse=grad_lse.swapaxes(-1, -2), **options)
    return [x for x in found if x is not None]


@EVERY_OPTION
@pytest.mark.parametrize("queries, keys", [(5, 5), (3, 8), (8, 3)])
def test_gradients(queries, keys, options, tensors):
    """lse has gradients as well. A row that attends to nothing has none, though its lse is +inf."""
    arrays = batch(queries, keys)
    found, grad_out, grad_lse, lse = gradients(tensors, flash_attn_func, arrays, **options)
    expected = reference_gradients(grad_out, grad_lse, *arrays, **options)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[0].swapaxes(1, 2)[lse == INF], 0)


@EVERY_OPTION
def test_gradients_of_packed_sequences(options, tensors):
    if np.ndim(options.get("alibi_slopes")) == 2:
        options = options | {"alibi_slopes": np.arange(20, dtype=np.float32).reshape(5, 4) / 20}
    arrays, ends = packed(), [tensors.of(QUERIES), tensors.of(KEYS)]
    found, grad_out, grad_lse, _ = gradients(tensors, flash_attn_varlen_func, arrays, *ends, 17, 24, **options)
    total = 0
    for n in range(5):
        rows, keys = slice(*QUERIES[n : n + 2]), slice(*KEYS[n : n + 2])
        sequence = arrays[0][rows], arrays[1][keys], arrays[2][keys]
        expected = reference_gradients(grad_out[rows], grad_lse[:, rows], *sequence, **of_entry(n, options))
        for x, y in zip((found[0][rows], found[1][keys], found[2][keys]), expected, strict=False):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
        if len(expected) == 4 and found[3].ndim == 2:
            np.testing.assert_allclose(found[3][n], expected[3], rtol=1e-5, atol=1e-5)
        total += expected[-1] if len(expected) == 4 else 0
    if len(found) == 4 and found[3].ndim == 1:
        np.testing.assert_allclose(found[3], total, rtol=1e-5, atol=1e-5)


@EVERY_TYPE
def test_types_of_gradients(dtype, tensors):
    given = [tensors.of(x).requires_grad_() for x in batch(5, 5, dtype)]
    flash_attn_func(*given, causal=True).sum().backward()
    wide = [tensors.of(x).double().requires_grad_() for x in batch(5, 5, dtype)]
    flash_attn_func(*wide, causal=True).sum().backward()
    for x, y in zip(given, wide, strict=True):
        assert x.grad.dtype is x.dtype
        tensors.torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=8 * CLOSE[dtype.name])


def test_no_sequences_in_training(tensors):
    ends = tensors.of(np.zeros(1, np.int32))
    given = [tensors.of(x[:0]).requires_grad_() for x in packed()]
    out = flash_attn_varlen_func(*given, ends, ends, 0, 0)
    out.sum().backward()
    assert out.shape == (0, 4, 6) and given[0].grad.shape == (0, 4, 8)


def test_transforms_are_refused(tensors):
    q, k, v = (tensors.of(x) for x in batch(5, 5))
    with pytest.raises(NotImplementedError, match=r"^q: expected a tensor that needs no gradient, .* torch.func"):
        tensors.torch.func.grad(lambda q: flash_attn_func(q, k, v).sum())(q)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's compiler looks at it
@pytest.mark.parametrize("dtype", [np.float32, cases.TYPES["bfloat16"]], ids=["float32", "bfloat16"])
def test_compiled_callers(dtype, tensors):
    """torch.compile goes around it."""
    torch = tensors.torch
    torch._dynamo.reset()
    given = [tensors.of(x) for x in batch(3, 8, dtype)]

    def attend(q, k, v):
        return 2 * flash_attn_func(q, k, v, causal=True)

    compiled = torch.compile(attend, backend="aot_eager")
    assert torch.equal(compiled(*given), attend(*given))
    given = [x.requires_grad_() for x in given]
    found, expected = (torch.autograd.grad(function(*given).sum(), given) for function in (compiled, attend))
    assert all(map(torch.equal, found, expected))


# What needs to be installed

USE = """
import numpy as np
import cattn.flash_attn
x = np.ones((1, 2, 1, 4), np.float32)
print(cattn.flash_attn.flash_attn_func(x, x, x, causal=True).sum())
"""


def test_arrays_need_nothing_else():
    """And nothing is imported for them, whatever there is."""
    assert python(USE + "import sys; print('torch' in sys.modules)").split() == ["8.0", "False"]
    hidden = "import sys; sys.modules |= dict.fromkeys(['torch', 'ml_dtypes'])\n"
    assert python(hidden + USE).split() == ["8.0"]


@pytest.mark.parametrize("missing", ["torch", "ml_dtypes"])
def test_what_is_missing_is_said(missing):
    if missing == "ml_dtypes":
        pytest.importorskip("torch")
    done = run_python("-c", f"import sys; sys.modules['{missing}'] = None; import cattn.torch")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: cattn: tensors need PyTorch and ml_dtypes, and {missing} is not installed: "
        "pip install 'cattn[torch]'"
    )
