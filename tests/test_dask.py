"""Attention on dask arrays: the result of one call, whatever the chunks; which tasks there are; memory and errors."""

import doctest
import math
import sys

import cases
import numpy as np
import pytest
from helpers import assert_same_bits, normal, problem, python
from kappa import Yardstick

import cattn

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")
import cattn.dask  # noqa: E402
from cattn.dask import attention  # noqa: E402

MODIFIERS = cases.taken_by("dask.attention")


def cut(random, length):
    """Chunks along an axis, some of them empty."""
    if length == 1:
        return (1,)
    edges = np.sort(random.integers(0, length + 1, random.integers(0, 4)))
    return tuple(int(n) for n in np.diff([0, *edges, length]))


def chunked(case, seed):
    """The arrays of a case as dask arrays in random chunks that meet; and the number of chunks of keys."""
    random = np.random.default_rng(seed)
    query, key, value = (case[name] for name in ("query", "key", "value"))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    chunks = [cut(random, n) for n in batch]
    if query.ndim > 2:
        key_heads = cut(random, key.shape[-3])
        group = query.shape[-3] // key.shape[-3]
        query_heads = tuple(group * n for n in key_heads)
    else:
        key_heads = query_heads = (1,)
    rows, keys = cut(random, query.shape[-2]), cut(random, key.shape[-2])
    of_numpy = {name for name in ("query", "mask", "bias") if random.random() < 0.3}
    if "query" in of_numpy:
        chunks, rows = [(n,) for n in batch], (query.shape[-2],)
    axes = {
        "query": (*chunks, query_heads, rows, (query.shape[-1],)),
        "key": (*chunks, key_heads, keys, (key.shape[-1],)),
        "value": (*chunks, key_heads, keys, (value.shape[-1],)),
        "mask": (*chunks, query_heads, rows, keys),
        "bias": (*chunks, query_heads, rows, keys),
    }
    result = dict(case)
    for name, expected in axes.items():
        x = case.get(name)
        if x is None or name in of_numpy:
            continue
        last = expected[len(expected) - x.ndim :]
        result[name] = da.from_array(x, tuple((1,) if n == 1 else own for n, own in zip(x.shape, last, strict=True)))
    return result, len(keys)


def computed(case, **options):
    """out and lse of a case of dask arrays, in this thread."""
    return dask.compute(*attention(**case, **options, return_lse=True), scheduler="sync")


def check(out, lse, case, levels):
    """The bound that is promised for parts that met on so many levels."""
    yardstick = Yardstick(case)
    if yardstick.stored.name == "bfloat16":
        yardstick.rounded_weights = 2 * yardstick.rounded_weights
    assert out.dtype == yardstick.stored and lse.dtype == yardstick.arithmetic
    found, bound = yardstick.kappa(out), yardstick.bound + levels
    assert found <= bound, f"κ {found:.3g} exceeds {bound:.3g}"
    found, bound = yardstick.kappa_lse(lse), yardstick.lse_bound + levels
    assert found <= bound, f"κ {found:.3g} of lse exceeds {bound:.3g}"


@pytest.mark.parametrize("seeds", [range(n, n + 50) for n in range(0, 200, 50)], ids=str)
def test_any_chunks_give_what_one_call_gives(seeds):
    for seed in seeds:
        case = cases.case(seed, modifiers=MODIFIERS, work=100_000)
        given, chunks = chunked(case, seed)
        out, lse = computed(given)
        try:
            check(out, lse, case, levels=math.ceil(math.log(chunks, 4)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n{cases.describe(given)}") from error


def test_many_chunks():
    """Three levels, the last parts of which have nobody to meet at first."""
    random = np.random.default_rng(0)
    case = problem(70, 530, batch=(), size=16, value_size=16)
    case |= {"causal": True, "query_offset": "end", "sinks": random.standard_normal(4)}
    given = case | {name: da.from_array(case[name], (1, 10, -1)) for name in ("key", "value")}
    given["query"] = da.from_array(case["query"], (2, 70, -1))
    check(*computed(given), case, levels=3)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64, np.float32])
def test_types_of_results(dtype):
    case = problem(5, 12, dtype)
    out, lse = attention(**case | dask_parts(case, 5), return_lse=True)
    assert (out.dtype, lse.dtype) == (out.compute().dtype, lse.compute().dtype)
    assert out.dtype == cattn.attention(**case).dtype


def dask_parts(case, *lengths):
    """key and value in chunks along their length."""
    axes = (*(-1,) * (case["key"].ndim - 2), lengths if len(lengths) > 1 else lengths[0], -1)
    return {name: da.from_array(case[name], axes) for name in ("key", "value")}


def test_mixed_types_and_two_dimensions():
    case = {"query": normal(7, 5), "key": normal(40, 5, dtype=np.float16), "value": normal(40, 3, dtype=np.float16)}
    mask = np.random.default_rng(0).random((7, 40)) < 0.5
    given = case | dask_parts(case, 9) | {"mask": da.from_array(mask, (7, 9))}
    out, lse = attention(**given, return_lse=True)
    assert out.shape == (7, 3) and lse.shape == (7,)
    check(*dask.compute(out, lse), case | {"mask": mask}, levels=2)


def test_one_chunk_is_one_call():
    case = problem(9, 50) | {"window": (20, 3), "query_offset": "end", "sinks": [1.0, 2.0, 3.0, -np.inf]}
    assert_same_bits(computed(case | dask_parts(case, 50)), cattn.attention(**case, return_lse=True))


def test_values_that_are_equal_stay():
    """bfloat16's rounded weights are divided by their own sum in each part, and meet by exact ones."""
    bfloat16 = cases.TYPES["bfloat16"]
    case = problem(9, 500, bfloat16) | {"value": np.full((2, 2, 500, 3), 3.14, bfloat16)}
    out, _ = computed(case | dask_parts(case, 60))
    np.testing.assert_array_equal(out, case["value"][0, 0, 0, 0])


def test_half_types_are_rounded_once():
    """Sums of many small parts: roundings between them would be seen."""
    float16 = cases.TYPES["float16"]
    case = problem(9, 500, float16)
    out, lse = computed(case | dask_parts(case, 5))
    wide = {name: case[name].astype(np.float32) for name in ("query", "key", "value")}
    expected, expected_lse = computed(wide | dask_parts(wide, 5))
    assert_same_bits(out, expected.astype(float16))
    assert_same_bits(lse, expected_lse)


# What is not finite, and what is not there


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_as_many_axes_as_there_are(dtype):
    """A task may add none."""
    query, key, value = (normal(*[1] * 60, 2, 1, n, 4, dtype=dtype) for n in (3, 10, 10))
    chunks = (*[1] * 62, 4, 4)
    found = attention(*(da.from_array(x, chunks) for x in (query, key, value))).compute(scheduler="sync")
    assert_same_bits(
        found[(0,) * 60],
        attention(*(da.from_array(x[(0,) * 60], chunks[60:]) for x in (query, key, value))).compute(scheduler="sync"),
    )


def test_masked_chunks_never_reach_the_result():
    case = problem(9, 50)
    case["mask"] = np.arange(50) < 20
    expected = computed(case | dask_parts(case, 10))
    for name in ("key", "value"):
        case[name][..., 20:, :] = np.nan
    assert_same_bits(computed(case | dask_parts(case, 10)), expected)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_attended_values_that_are_not_finite(special):
    """Even in a part whose weight underflows."""
    case = problem(3, 40, batch=())
    case["bias"] = np.where(np.arange(40) < 10, np.float32(-1e4), 0)
    case["value"][:, 3, 1] = special
    out, _ = computed(case | dask_parts(case, 10))
    np.testing.assert_array_equal(out[..., 1], special)
    assert np.isfinite(out[..., [0, 2]]).all()


def test_rows_that_attend_to_nothing():
    case = problem(6, 20) | {"causal": True, "query_offset": -4}
    out, lse = computed(case | dask_parts(case, 3))
    assert np.all(out[..., :4, :] == 0) and np.all(lse[..., :4] == -np.inf)
    assert np.all(out[..., 4:, :] != 0)
    sinks = [1.0, -np.inf, 3.0, 4.0]
    out, lse = computed(case | dask_parts(case, 3) | {"query_offset": -10, "sinks": sinks})
    assert np.all(out == 0) and np.all(lse == np.array(sinks)[:, None])


@pytest.mark.parametrize(("rows", "keys", "batch"), [(0, 5, (2,)), (5, 0, (2,)), (5, 5, (0,)), (0, 0, (0, 3))])
def test_nothing_at_all(rows, keys, batch):
    case = problem(rows, keys, batch=batch) | {"causal": True, "query_offset": "end"}
    given = {name: da.from_array(x) if isinstance(x, np.ndarray) else x for name, x in case.items()}
    assert_same_bits(computed(given), cattn.attention(**case, return_lse=True))


# Structure: which tasks there are


def forbidden(case, chunks):
    """key and value in chunks of 10, of which these may not be computed."""

    def read(x, block_info):
        number = block_info[0]["chunk-location"][-2]
        if number in chunks:
            raise AssertionError(f"chunk {number} was read")
        return x

    return {name: x.map_blocks(read, dtype=x.dtype) for name, x in dask_parts(case, 10).items()}


ALL = set(range(5))


@pytest.mark.parametrize(
    ("modifiers", "seen"),
    [
        ({}, ALL),
        ({"causal": True, "query_offset": "start"}, {0, 1}),
        ({"causal": True, "query_offset": "end"}, ALL),
        ({"causal": True, "query_offset": 8}, {0, 1}),
        ({"causal": True, "query_offset": 9}, {0, 1, 2}),
        ({"window": (5, 0), "query_offset": "end"}, {3, 4}),
        ({"window": (None, 3), "query_offset": "start"}, {0, 1}),
        ({"window": (0, 0), "query_offset": 20}, {2, 3}),
        ({"window": (3, 3), "query_offset": [-1, 30]}, {0, 1, 2, 3, 4}),
        ({"window": (3, 3), "query_offset": [-1, 40]}, {0, 1, 3, 4}),
        ({"key_lengths": 30}, {0, 1, 2}),
        ({"key_lengths": [7, 11]}, {0, 1}),
        ({"key_lengths": 30, "window": (5, 0), "query_offset": "end"}, {1, 2}),
        ({"key_lengths": 0, "sinks": [1, 2, 3, 4]}, set()),
        ({"causal": True, "query_offset": -12}, set()),
        ({"window": (3, 3), "query_offset": 53}, set()),
    ],
)
def test_chunks_that_nobody_attends_to_have_no_task(modifiers, seen):
    case = problem(12, 50) | modifiers
    out, lse = computed(case | forbidden(case, ALL - seen))
    assert_same_bits((out, lse), computed(case | dask_parts(case, 10)))
    for chunk in seen:
        with pytest.raises(AssertionError, match="was read"):
            computed(case | forbidden(case, {chunk}))


def test_tasks_of_causal_attention():
    """Half of the chunks, and those on the diagonal."""
    x = da.zeros((1, 64, 8), chunks=(1, 8, 8))
    out = attention(x, x, x, causal=True)
    parts = [key for key in dict(out.dask) if key[0].startswith("attention-part") and key[3] == 0]
    assert len(parts) == 8 * 9 // 2


def test_nothing_is_computed_at_the_call():
    case = problem(12, 50)
    given = case | forbidden(case, ALL)
    given["mask"] = given["key"][:, :1, None, :, 0] > 0
    out, lse = attention(**given, return_lse=True)
    assert out.shape == (2, 4, 12, 3) and lse.shape == (2, 4, 12)
    with pytest.raises(AssertionError, match="was read"):
        out.compute(scheduler="sync")


@pytest.mark.parametrize("dtype", [np.float32, np.int64], ids=str)
def test_sizes_cost_nothing_at_the_call(dtype):
    keys = da.zeros((8, 2**40, 64), chunks=(8, 2**36, 64), dtype=dtype)
    mask = da.ones((1, 2**40), chunks=(1, 2**36), dtype=bool)
    assert attention(np.zeros((8, 3, 64), dtype), keys, keys, mask=mask, bias=mask.astype(dtype)).shape == (8, 3, 64)


def test_parts_of_a_result_need_their_own_tasks_only():
    case = problem(12, 50)
    given = case | forbidden(case, {2, 3, 4}) | {"query": da.from_array(case["query"], (2, 4, 4, -1))}
    first = attention(**given, causal=True, query_offset="start")[:, :, :4]
    expected, _ = computed(given | dask_parts(case, 10) | {"causal": True, "query_offset": "start"})
    assert_same_bits(first.compute(scheduler="sync"), expected[:, :, :4])


def test_the_same_call_is_the_same_array():
    """dask shares what has the same name."""
    case = problem(5, 20)
    given = case | dask_parts(case, 5)
    names = {attention(**given, **more).name for more in ({}, {}, {"scale": 2.0}, {"sinks": [1, 2, 3, 4]})}
    assert len(names) == 3


# Memory


class Recorder:
    """An array in a file, say, of which parts are asked for."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.ndim, self.asked = x, x.shape, x.dtype, x.ndim, []

    def __getitem__(self, index):
        part = self.x[index]
        if part.size:  # dask looks at an empty one for its type
            self.asked.append(part.shape)
        return part


def test_chunks_are_read_one_by_one():
    case = problem(5, 400)
    files = {name: Recorder(case[name]) for name in ("key", "value")}
    keys = {name: da.from_array(file, (1, 1, 30, -1), name=False) for name, file in files.items()}
    assert all(file.asked == [] for file in files.values())
    check(*computed(case | keys), case, levels=2)
    for file in files.values():
        assert len(file.asked) == 4 * 14 and max(shape[-2] for shape in file.asked) == 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits private memory alone")
def test_memory_maps_are_not_loaded(tmp_path):
    """256 MiB of keys and values in a process that may take 100 MiB more than it has."""
    code = """
import resource
import sys
import dask
import dask.array as da
import numpy as np
from cattn.dask import attention
file = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (2, 2**19, 64))
file[:, ::4096] = 1
file.flush()
del file
x = np.load(sys.argv[1], mmap_mode="r")
x = da.from_array(x, (2, 2**15, 64), name=False)
query = np.ones((2, 4, 64), np.float32)
with dask.config.set(scheduler="threads", num_workers=2):
    attention(query, x[:, :8], x[:, :8]).compute()
    with open("/proc/self/status") as status:
        (taken,) = [int(line.split()[1]) for line in status if line.startswith("VmData")]
    resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + 100 * 2**20,) * 2)
    print(attention(query, x, x, scale=1).compute()[0, 0, 0])
    try:
        np.asarray(x)
    except MemoryError:
        print("too large")
"""
    assert python(code, tmp_path / "keys.npy") == "1.0\ntoo large\n"


# Errors, and what is missing


def arrays(**changes):
    x = {"query": (2, 4, 6, 8), "key": (2, 2, 10, 8), "value": (2, 2, 10, 5)}
    chunks = {"query": (1, 2, 3, 8), "key": (1, 1, 5, 8), "value": (1, 1, 5, 5)}
    given = {name: da.zeros(shape, chunks=chunks[name], dtype=np.float32) for name, shape in x.items()}
    return given | changes


def zeros(*shape, chunks=-1, dtype=np.float32):
    return da.zeros(shape, chunks=chunks, dtype=dtype)


UNKNOWN = da.zeros((10, 8), chunks=5, dtype=np.float32)
UNKNOWN = UNKNOWN[UNKNOWN[:, 0] == 0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key": normal(2, 2, 10, 8)}, TypeError, r"key: expected a dask array, got numpy.ndarray; write dask.array"),
        ({"value": None}, TypeError, r"value: expected a dask array, got NoneType"),
        ({"query": None}, TypeError, r"query: expected an array, got None"),
        ({"value": da.ma.masked_array(zeros(2, 2, 10, 8, chunks=(1, 1, 5, 8)))}, TypeError,
         "value: expected an array, got a masked array"),
        ({"query": dask.delayed(3)}, TypeError, r"query: expected a dask array, got dask.delayed.Delayed"),
        ({"query": UNKNOWN, "key": UNKNOWN, "value": UNKNOWN}, ValueError,
         r"query: expected chunks of known sizes, got .*nan.*; write query.compute_chunk_sizes\(\)"),
        ({"value": zeros(2, 2, 10, 5, chunks=(1, 1, 4, 5))}, ValueError,
         r"value: expected chunks \(5, 5\) along axis -2, got \(4, 4, 2\); "
         r"write value.rechunk\({-2: key.chunks\[-2\]}\)"),
        ({"value": zeros(2, 2, 10, 5)}, ValueError,
         r"value: .* write value.rechunk\({-4: key.chunks\[-4\], -3: key.chunks\[-3\], -2: key.chunks\[-2\]}\)"),
        ({"query": zeros(2, 4, 6, 8, chunks=(1, 1, 3, 8))}, ValueError,
         r"query: expected chunks \(2, 2\) along axis -3, got \(1, 1, 1, 1\); "
         r"write query.rechunk\({-3: tuple\(2 \* n for n in key.chunks\[-3\]\)}\)"),
        ({"key": zeros(2, 2, 10, 8, chunks=(1, 1, 5, 4))}, ValueError,
         r"key: expected chunks \(8,\) along axis -1, got \(4, 4\); write key.rechunk\({-1: -1}\)"),
        ({"mask": zeros(6, 10, dtype=bool)}, ValueError,
         r"mask: .* write mask.rechunk\({-2: query.chunks\[-2\], -1: key.chunks\[-2\]}\)"),
        ({"bias": zeros(2, 1, 1, 10)}, ValueError, r"bias: .* write bias.rechunk\({-4: key.chunks\[-4\], -1: key.*}\)"),
        ({"mask": zeros(6, 9, dtype=bool)}, ValueError, r"mask: expected a shape that broadcasts to \(2, 4, 6, 10\)"),
        ({"mask": zeros(6, 10, dtype=int)}, TypeError, r"mask: expected type bool .*int64; write mask.astype\(bool\)"),
        ({"bias": zeros(6, 10, dtype=bool)}, TypeError, r"bias: expected type .*bool; .*mask="),
        ({"query": zeros(2, 4, 6, 8, chunks=(1, 2, 3, 8), dtype=float)}, TypeError, "key: expected type float64 like"),
        ({"key": zeros(2, 2, 10, 8, dtype=np.uint16)}, TypeError, r"key: .*; write key.view\(ml_dtypes.bfloat16\)"),
        ({"query": zeros(6, 8)}, ValueError, "key: expected 2 axes"),
        ({"query": zeros(2, 3, 6, 8)}, ValueError, "key: expected a number of heads that divides the 3 of query"),
        ({"query": zeros(2, 4, 6, 7)}, ValueError, "key: expected head size 7 like query, got 8"),
        ({"causal": True}, ValueError, r"query_offset: expected .* because causal is given .*\(6 and 10\)"),
        ({"causal": 1}, TypeError, "causal: expected True or False"),
        ({"window": 3}, TypeError, "window: expected"),
        ({"key_lengths": [3, 11]}, ValueError, "key_lengths: expected 0 to 10"),
        ({"key_lengths": zeros(2, dtype=int)}, TypeError, r"key_lengths: .* dask.array.* key_lengths.compute\(\)"),
        ({"sinks": zeros(4)}, TypeError, r"sinks: expected .* got dask.array.*; write sinks.compute\(\)"),
        ({"sinks": [1.0]}, ValueError, r"sinks: expected shape \(4,\)"),
        ({"softcap": 0}, ValueError, "softcap: expected a finite number above 0"),
        ({"scale": np.inf}, ValueError, "scale: expected a finite number"),
        ({"return_lse": "yes"}, TypeError, "return_lse: expected True or False"),
        ({"num_threads": 0}, ValueError, "num_threads: expected an integer of 1 or more"),
        ({"kernel_table": 3}, TypeError, "kernel_table: expected the name of a kernel table"),
        ({"is_causal": True}, TypeError, "is_causal: not an argument of attention; write causal="),
        ({"layout": "blhd"}, TypeError, "layout: not an argument of attention; expected one of query, key"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(changes, error, message):
    with pytest.raises(error, match=message):
        attention(**arrays(**changes))


def test_what_to_write_is_right():
    attention(**arrays())
    key = arrays()["key"]
    for name, x in {
        "query": zeros(2, 4, 6, 8),
        "value": zeros(2, 2, 10, 5, chunks=(2, 2, 4, 3)),
        "mask": zeros(2, 4, 6, 10, dtype=bool),
        "bias": zeros(4, 1, 10),
    }.items():
        with pytest.raises(ValueError, match=f"; write {name}.rechunk") as caught:
            attention(**arrays(**{name: x}))
        _, advice = str(caught.value).split("; write ")
        attention(**arrays(**{name: eval(advice, {name: x, "key": key, "query": arrays()["query"]})}))


def test_one_head_beside_a_chunk_of_none():
    """NumPy's query is cut as key is. What is cut otherwise is refused."""
    query, array = normal(1, 3, 8), normal(1, 10, 8)
    key = da.from_array(array, chunks=((1, 0), (5, 5), (8,)))
    expected = cattn.attention(query, array, array)
    np.testing.assert_allclose(attention(query, key, key).compute(scheduler="sync"), expected, rtol=0, atol=1e-6)
    query, value = da.from_array(query), da.from_array(array, chunks=(1, 5, 8))
    for name, given in {"query": (query, key, key), "value": (query.rechunk({-3: (1, 0)}), key, value)}.items():
        expected = rf"^{name}: expected chunks \(1, 0\) along axis -3, got \(1,\); write {name}.rechunk\({{-3: key"
        with pytest.raises(ValueError, match=expected):
            attention(*given)


def test_the_example_of_the_docstring():
    found = doctest.testmod(cattn.dask)
    assert found.failed == 0 and found.attempted


def test_without_dask():
    code = """
import sys
import cattn
print([name for name in sys.modules if name.partition(".")[0] in ("dask", "distributed")])
sys.modules["dask"] = None
try:
    import cattn.dask
except ImportError as error:
    print(error)
"""
    assert python(code) == "[]\ncattn.dask needs dask with its arrays: pip install 'cattn[dask]'\n"


def test_query_planning_is_refused():
    """Older versions of dask refuse it themselves, where a package is missing."""
    code = """
try:
    import cattn.dask
except ImportError as error:
    print(error)
"""
    said = python(code, DASK_ARRAY__QUERY_PLANNING="True")
    assert said.startswith("cattn.dask needs dask")


def test_more_axes_than_numpy_broadcasts_at_once():
    query, key, value = np.random.default_rng(0).standard_normal((3, *[1] * 40, 2, 5, 4)).astype(np.float16)
    arrays = [da.from_array(x, chunks=(*[1] * 40, 2, 5, 4)) for x in (query, key, value)]
    found = cattn.dask.attention(*arrays).compute(scheduler="sync")
    np.testing.assert_array_equal(found, cattn.attention(query, key, value))
