"""Arguments that lie about themselves, and that change while a call looks at them: it goes by what there is, once."""

import sysconfig

import numpy as np
import pytest
from helpers import problem, python

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
    [("float32", "out", {"softcap": 50.0}, (1, 192)), ("bfloat16", "query", {}, (48, 4))],
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
