"""Arguments that lie about themselves, and that change while a call looks at them: it goes by what there is, once."""

import sysconfig
import unittest.mock

import numpy as np
import pytest
from helpers import problem, python, slow

import cattn


class Flags:
    writeable = c_contiguous = aligned = True


def lies(**attributes):
    """A subclass of ndarray whose attributes and conversions are these, whatever there is in memory."""

    def convert(self, *_, **__):
        return np.zeros((3, 4), np.float32)

    attributes |= {"__array__": convert, "view": convert, "astype": convert}
    return type("Lies", (np.ndarray,), attributes)


def test_out_that_lies():
    query = np.ones((3, 4), np.float32)
    memory = bytes(48)
    for out, error, message in (
        (np.frombuffer(memory, np.float32).reshape(3, 4).view(lies(flags=Flags())), ValueError, "read-only"),
        (np.zeros((3, 3), np.float32).view(lies(shape=(3, 4))), ValueError, r"expected shape \(3, 4\), got \(3, 3\)"),
        (np.zeros((3, 4), np.float16).view(lies(dtype=np.dtype(np.float32))), TypeError, "got float16"),
        (np.broadcast_to(np.zeros(4, np.float32), (3, 4)).view(lies(flags=Flags())), ValueError, "read-only"),
    ):
        with pytest.raises(error, match=f"^out: .*{message}"):
            cattn.attention(query, query, query, out=out)
    assert memory == bytes(48)
    with pytest.raises(ValueError, match=r"^out: .*overlaps query$"):
        cattn.attention(query, query, query, out=query.view(lies(strides=(0, 0), __array_interface__={})))
    out = np.zeros((3, 4), np.float32).view(lies(shape=(1,), dtype=np.dtype(bool), flags=None, strides=None))
    assert cattn.attention(query, query, query, out=out) is out
    assert (np.ndarray.view(out, np.ndarray) == 1).all()


RESHAPED = """
import itertools, sys, threading, time, warnings
import ml_dtypes, numpy as np
import cattn
warnings.simplefilter("ignore")  # NumPy would rather have nobody set a shape
sys.setswitchinterval(1e-6)
dtype, name, arguments, other = sys.argv[1], sys.argv[2], eval(sys.argv[3]), eval(sys.argv[4])
random = np.random.default_rng(0)
memory = random.standard_normal((4, 20, 192)).astype(dtype)
query, key, value, out = memory[:, 1].reshape(4, 4, 6, 8)
expected = cattn.attention(query, key, value, **arguments)
if name == "out":
    arguments["out"] = out
    memory[3] = 0
before = memory.copy()
reshaped = {"query": query, "out": out}[name]
done = threading.Event()
def reshape():
    for shape in itertools.cycle([other, (4, 6, 8)]):
        reshaped.shape = shape
        if done.is_set():
            break
thread = threading.Thread(target=reshape)
thread.start()
right = wrong = 0
end = time.monotonic() + 1.5
while time.monotonic() < end and not wrong:
    try:
        result = cattn.attention(query, key, value, **arguments)
    except ValueError:
        continue
    right += np.array_equal(result.ravel(), expected.ravel())
    wrong += not np.array_equal(result.ravel(), expected.ravel())
    before[3, 1] = memory[3, 1]
    wrong += not np.array_equal(before, memory)
done.set()
thread.join()
print(right > 0, wrong)
"""


@pytest.mark.parametrize(
    ("dtype", "name", "arguments", "other"),
    [("float32", "out", {"softcap": 50.0}, (1, 192)), slow("bfloat16", "query", {}, (48, 4))],
)
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="no GIL guards the shapes of arrays")
def test_a_thread_that_reshapes_an_array_meanwhile(dtype, name, arguments, other):
    """Each call sees one of its shapes: it is refused, or right."""
    assert python(RESHAPED, dtype, name, repr(arguments), repr(other)) == "True 0\n"


@pytest.mark.parametrize("name", ["num_threads", "mask"])
@pytest.mark.parametrize("plain", [True, False])
def test_an_argument_that_reshapes_another(plain, name):
    """Arguments are converted by anyone's code: what has been looked at by then stays as it was."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32)
    query = query.copy()
    if not plain:
        value = value[..., ::-1]

    class Reshaping:
        def convert(self, *_, **__):
            query.resize((1, 256), refcheck=False)
            return np.ones((8, 8), bool) if name == "mask" else 1

        __array__ = __index__ = convert

    expected = cattn.attention(query.copy(), key, value)
    out = cattn.attention(query, key, value, **{name: Reshaping()})
    assert query.shape == (1, 256)
    np.testing.assert_array_equal(out, expected)


class Hostile(str):
    """Equal to everything, whatever it says."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __str__(self):
        return "weights"

    __hash__ = str.__hash__


@pytest.mark.parametrize("name", ["stage", "layout", "query_offset"])
def test_words_of_a_subclass(name):
    query, key, _ = problem(5, 7).values()
    with pytest.raises(ValueError, match=f"^{name}: expected .*got 'rubbish'$"):
        cattn.attention_weights(query, key, **{name: Hostile("rubbish")})
    word = {"stage": "scores", "layout": "bhld", "query_offset": "end"}[name]
    given = cattn.attention_weights(query, key, causal=name == "query_offset", **{name: Hostile(word)})
    expected = cattn.attention_weights(query, key, causal=name == "query_offset", **{name: word})
    np.testing.assert_array_equal(given, expected)


LONG = 10**5000  # Python prints no integer of so many digits
VERY_LONG = "a very long int"


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        ("attention", "window", f"{VERY_LONG}; ({VERY_LONG}, 0) looks back only, ({VERY_LONG}, {VERY_LONG}) both ways"),
        ("attention", "key_lengths", f"0 to 4, the length of key, got {VERY_LONG}"),
        ("attention", "softcap", VERY_LONG),
        ("self_attention", "num_heads", f"a multiple of num_heads={VERY_LONG} columns, got 4 (shape (4, 4))"),
        ("self_attention", "num_kv_heads", f"a divisor of num_heads=1, got {VERY_LONG}"),
        ("trace", "tokens", f"a sequence of token names, got {VERY_LONG}"),
    ],
)
def test_integers_of_more_digits_than_python_prints(function, name, message):
    square = np.ones((4, 4), np.float32)
    arguments = [square] * (3 if function == "attention" else 4)
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(cattn, function)(*arguments, **{name: LONG})
    named = "w_query" if name == "num_heads" else name
    assert str(caught.value).startswith(f"{named}: expected ") and str(caught.value).endswith(message)


def test_a_longest_sequence_of_more_digits_than_python_prints():
    from cattn.flash_attn import flash_attn_varlen_func

    x = np.ones((4, 1, 4), np.float32)
    with pytest.raises(ValueError, match=rf"^max_seqlen_q: expected an integer of 4 or more, .*got {VERY_LONG}$"):
        flash_attn_varlen_func(x, x, x, [0, 4], [0, 4], -LONG, 4)


def test_a_token_of_more_digits_than_python_prints():
    square = np.ones((2, 2))
    assert cattn.trace(square, square, square, square, tokens=["a", LONG]).tokens == ("a", VERY_LONG)


class Broken:
    """Has the attributes of an array, and no method that works."""

    shape, dtype = 5, "float32"

    def __array__(self, *_, **__):
        return 5

    __index__ = __float__ = __bool__ = __iter__ = __len__ = __repr__ = __array__


NAMESAKE = type("array", (), {})  # reprlib takes it for the standard library's
SUBCLASSES = [type(f"Broken{kind.__name__}", (kind,), dict(vars(Broken))) for kind in (list, tuple, dict)]


@pytest.mark.parametrize("made", [Broken, NAMESAKE, *SUBCLASSES, unittest.mock.MagicMock])
@pytest.mark.parametrize("name", ["query", "scale", "causal", "window", "key_range", "mask", "layout", "out"])
def test_objects_that_cannot_be_shown(made, name):
    square = np.ones((4, 4), np.float32)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
        cattn.attention(**{"query": square, "key": square, "value": square, name: made()})


def test_an_object_that_says_it_is_a_number():
    """An argument counts as what it is, not as what it claims to be."""
    square = np.ones((4, 4), np.float32)
    for name, kind in (("causal", bool), ("return_lse", bool), ("window", int), ("scale", float), ("layout", str)):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
            cattn.attention(square, square, square, **{name: unittest.mock.NonCallableMock(spec=kind)})


def test_parts_that_lie_about_their_number():
    for length in (-1, 2**70):
        parts = type("Parts", (), {"__len__": lambda _, n=length: n, "__iter__": lambda _: iter([])})()
        with pytest.raises((TypeError, ValueError), match=r"^outputs: expected "):
            cattn.merge_attention(parts, [])


def test_as_many_axes_as_an_array_can_have():
    square, x = np.ones((4, 4)), np.ones((*[1] * 63, 4))
    with pytest.raises(ValueError, match=r"^x: expected at most 63 dimensions, .* got 64$"):
        cattn.self_attention(x, square, square, square)
    assert cattn.self_attention(x[0], square, square, square).shape == x[0].shape
    with pytest.raises(ValueError, match=r"^packed: expected at most 63 axes, .* got 64$"):
        cattn.pad(x, [0, 1])
    assert cattn.pad(x[0], [0, 1]).shape == x.shape


def test_integers_that_no_memory_holds_as_wider_ones():
    """There are fewer addresses than their bytes would be."""
    square = np.ones((1, 4, 4))

    def many(dtype, *shape):
        return np.lib.stride_tricks.as_strided(np.ones((), dtype), shape, [0] * len(shape))

    with pytest.raises(MemoryError, match=rf"^key_lengths: cannot allocate {2**61} numbers of type int64$"):
        cattn.attention(square, square, square, key_lengths=many(np.int8, 2**61))
    with pytest.raises(MemoryError, match=rf"^query: cannot allocate {2**60} numbers of type float64$"):
        cattn.attention(many(np.int32, 1, 2**60, 1), square[..., :1], square)
    with pytest.raises(MemoryError, match=rf"^x: cannot allocate {2**61} numbers of type float32$"):
        half = np.ones((4, 4), np.float16)
        cattn.self_attention(many(np.float16, 2**59, 4), half, half, half)
