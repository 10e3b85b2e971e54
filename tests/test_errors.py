"""Every wrong argument is refused by name: what was expected, what came; and `out` is left alone."""

import inspect
import time

import ml_dtypes
import numpy as np
import pytest
from helpers import zeros

import cattn


def read_only(array):
    array.flags.writeable = False
    return array


class Tensor:
    """A tensor of another library."""

    shape, dtype = (2, 1), "float32"

    def numpy(self):
        return zeros(2, 1)

    def __repr__(self):
        return "tensor([[0.1], [0.2]])"


class Stubborn:
    """Fail as PyTorch does for a tensor that requires a gradient, and others in ways of their own."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("not today")

    def __repr__(self):
        return "Stubborn()"


QUERY = zeros(2, 4, 5, 8)
KEY = zeros(2, 2, 7, 8)
VALUE = zeros(2, 2, 7, 3)
OUT_SHAPE = (2, 4, 5, 3)
FOUR_TYPES = "expected type float16, bfloat16, float32 or float64"
WINDOW = "window: expected (left, right), each None or -1 (no limit) or an integer of 0 or more, got "
WORDS = '"start" (query row 0 stands at key 0) or "end" (the last query row stands at the last key), or integers'
STRUCTURED = np.zeros(3, [("a", np.float32)])

# The beginning of the message, its type, and the arguments that differ from QUERY, KEY and VALUE.
CASES = [
    # inputs: types
    (f"query: {FOUR_TYPES}, got complex64", TypeError, {"query": QUERY.astype(np.complex64)}),
    (f"key: {FOUR_TYPES}, got object", TypeError, {"key": KEY.astype(object)}),
    ("value: expected an array, got None", TypeError, {"value": None}),
    (f"query: {FOUR_TYPES}, got strings", TypeError, {"query": [["a", "b"]]}),
    (f"query: {FOUR_TYPES}, got strings", TypeError, {"query": np.array([[b"ab"]])}),
    (f"query: {FOUR_TYPES}, got datetime64[s]", TypeError, {"query": QUERY.astype("M8[s]")}),
    (f"query: {FOUR_TYPES}, got void32", TypeError, {"query": np.zeros((5, 8), STRUCTURED.dtype)}),
    (f"query: {FOUR_TYPES}, got void16", TypeError, {"query": np.zeros((5, 8), "V2")}),
    (f"query: {FOUR_TYPES}, got float8_e5m2", TypeError, {"query": QUERY.astype(ml_dtypes.float8_e5m2)}),
    ("query: expected an array, got a masked array", TypeError, {"query": np.ma.array(QUERY)}),
    ("value: expected an array, got a masked array", TypeError, {"value": np.ma.array(VALUE)}),
    ("key: expected an array, got [[1, 2], [3]], which NumPy refuses: ", TypeError, {"key": [[1, 2], [3]]}),
    ("key: expected an array, got Stubborn(), which NumPy refuses: not today", TypeError, {"key": Stubborn()}),
    ("key: expected type float32 like query, float16 or bfloat16, got float64; write key.astype(np.float32)", TypeError,
     {"key": KEY.astype(np.float64)}),
    ("value: expected type float32 like query, got float16", TypeError, {"value": VALUE.astype(np.float16)}),
    ("value: expected type float16 like key, got float32; write value.astype(np.float16)", TypeError,
     {"key": KEY.astype(np.float16)}),
    ("value: expected type bfloat16 like key, got float16; write value.astype(ml_dtypes.bfloat16)", TypeError,
     {"key": KEY.astype(ml_dtypes.bfloat16), "value": VALUE.astype(np.float16)}),
    ("value: expected type float16 like key, got int64, which counts as float64; write value.astype(np.float16)",
     TypeError, {"key": KEY.astype(np.float16), "value": VALUE.astype(np.int64)}),
    ("key: expected type float64 like query, got float16; write key.astype(np.float64)", TypeError,
     {"query": QUERY.astype(np.float64), "key": KEY.astype(np.float16)}),
    ("key: expected type float16 like query, got bfloat16; write key.astype(np.float16)", TypeError,
     {"query": QUERY.astype(np.float16), "key": KEY.astype(ml_dtypes.bfloat16)}),
    ("key: expected type bfloat16 like query, got float32; write key.astype(ml_dtypes.bfloat16)", TypeError,
     {"query": QUERY.astype(ml_dtypes.bfloat16)}),
    ("key: expected type float32 like query, float16 or bfloat16, got int32, which counts as float64; "
     "write key.astype(np.float32)", TypeError, {"key": KEY.astype(np.int32)}),
    ("key: expected type float64 like query, got float32; int64 counts as float64: write query.astype(np.float32)",
     TypeError, {"query": QUERY.astype(np.int64)}),
    # inputs: integers that may stand for anything
    (f"query: {FOUR_TYPES}, got bool; write query.astype(np.float32) if True counts as 1", TypeError,
     {"query": QUERY.astype(bool)}),
    (f"key: {FOUR_TYPES}, got uint16; write key.view(ml_dtypes.bfloat16) for the bits of bfloat16, "
     "key.astype(np.float32) for numbers", TypeError, {"key": KEY.astype(np.uint16)}),
    ("value_scale: expected an array beside value of type int8, got None; write value.astype(np.float32) for integers",
     TypeError, {"value": VALUE.astype(np.int8)}),
    (f"value: {FOUR_TYPES}, got uint8; write value.astype(np.float32), and multiply", TypeError,
     {"value": VALUE.astype(np.uint8)}),
    (f"query: {FOUR_TYPES}, got int16; write query.astype(np.float32)", TypeError, {"query": QUERY.astype(np.int16)}),
    (f"query: {FOUR_TYPES}, got uint32; write query.astype(np.float64)", TypeError, {"query": QUERY.astype(np.uint32)}),
    (f"query: {FOUR_TYPES}, got uint64; write query.astype(np.float64)", TypeError, {"query": QUERY.astype(np.uint64)}),
    (f"bias: {FOUR_TYPES}, got int8; write bias.astype(np.float32)", TypeError, {"bias": zeros(5, 7, dtype=np.int8)}),
    (f"sinks: {FOUR_TYPES}, got uint16; write sinks.view", TypeError, {"sinks": zeros(4, dtype=np.uint16)}),
    (f"alibi_slopes: {FOUR_TYPES}, got bool; write", TypeError, {"alibi_slopes": zeros(4, dtype=bool)}),
    # inputs: shapes
    ("query: expected axes (..., heads, length, size), or (length, size), got shape (8,)", ValueError,
     {"query": zeros(8)}),
    ("value: expected axes (..., length, heads, size), or (length, size), got shape ()", ValueError,
     {"query": zeros(2, 5, 4, 8), "key": zeros(2, 7, 2, 8), "value": zeros(), "layout": "blhd"}),
    ("key: expected 3 axes or more (..., heads, length, size) like query of shape (2, 4, 5, 8), got shape (7, 8)",
     ValueError, {"key": zeros(7, 8)}),
    ("key: expected 2 axes (length, size) like query of shape (5, 8), got shape (2, 2, 7, 8)", ValueError,
     {"query": zeros(5, 8)}),
    ("query: expected a head size of 1 or more, got 0 (shape (2, 4, 5, 0))", ValueError,
     {"query": zeros(2, 4, 5, 0), "key": zeros(2, 2, 7, 0)}),
    ("key: expected head size 8 like query, got 9 (shape (2, 2, 7, 9))", ValueError, {"key": zeros(2, 2, 7, 9)}),
    ("key: expected a number of heads that divides the 4 of query, got 3 (shape (2, 3, 7, 8))", ValueError,
     {"key": zeros(2, 3, 7, 8)}),
    ("key: expected a number of heads that divides the 4 of query, got 8", ValueError, {"key": zeros(2, 8, 7, 8)}),
    ("key: expected a number of heads that divides the 4 of query, got 0", ValueError, {"key": zeros(2, 0, 7, 8)}),
    ("key: expected a number of heads that divides the 0 of query, got 2", ValueError, {"query": zeros(2, 0, 5, 8)}),
    ("key: expected a number of heads that divides the 5 of query, got 7 (shape (2, 2, 7, 8))", ValueError,
     {"layout": "blhd"}),
    ("key: expected a number of heads that divides the 4 of query, got 3 (shape (3, 7, 8)); 3 axes are read as (heads, "
     "length, size): for (batch, length, size) write query[:, None] and so on", ValueError,
     {"query": zeros(4, 5, 8), "key": zeros(3, 7, 8), "value": zeros(3, 7, 3)}),
    ("key: expected a number of heads that divides the 5 of query, got 7 (shape (4, 7, 8)); 3 axes are read as "
     "(length, heads, size): for (batch, length, size) write query[:, :, None] and so on", ValueError,
     {"query": zeros(4, 5, 8), "key": zeros(4, 7, 8), "value": zeros(4, 7, 3), "layout": "blhd"}),
    ("value: expected 4 heads like key, got 3 (shape (3, 7, 3)); 3 axes are read as (heads, length, size)", ValueError,
     {"query": zeros(4, 5, 8), "key": zeros(4, 7, 8), "value": zeros(3, 7, 3)}),
    ("value: expected 2 heads like key, got 4 (shape (2, 4, 7, 3))", ValueError, {"value": zeros(2, 4, 7, 3)}),
    ("value: expected 2 heads like key, got 1 (shape (2, 1, 7, 3))", ValueError, {"value": zeros(2, 1, 7, 3)}),
    ("value: expected length 7 like key, got 6 (shape (2, 2, 6, 3))", ValueError, {"value": zeros(2, 2, 6, 3)}),
    ("value: expected length 7 like key, got 1 (shape (2, 2, 1, 3))", ValueError, {"value": zeros(2, 2, 1, 3)}),
    ("key: expected leading axes that broadcast with (2,), got (3,) (shape (3, 2, 7, 8))", ValueError,
     {"key": zeros(3, 2, 7, 8)}),
    ("value: expected leading axes that broadcast with (5, 2), got (4, 1) (shape (4, 1, 2, 7, 3))", ValueError,
     {"key": zeros(5, 1, 2, 7, 8), "value": zeros(4, 1, 2, 7, 3)}),
    (f"key: expected leading axes that broadcast with {(2, *(1,) * 39)}, got {(3, *(1,) * 39)} (shape", ValueError,
     {"query": zeros(2, *(1,) * 39, 4, 5, 8), "key": zeros(3, *(1,) * 39, 2, 7, 8)}),
    ("layout: expected 'bhld' or 'blhd', got 'bshd'", ValueError, {"layout": "bshd"}),
    ("layout: expected 'bhld' or 'blhd', got None", ValueError, {"layout": None}),
    ("layout: expected 'bhld' or 'blhd', got ndarray of shape (2,)", ValueError, {"layout": np.zeros(2)}),
    # numbers
    ("scale: expected a finite number, got True", TypeError, {"scale": True}),
    ("scale: expected a finite number, got '1'", TypeError, {"scale": "1"}),
    ("scale: expected a finite number, got 1j", TypeError, {"scale": 1j}),
    ("scale: expected a finite number, got [1.0]", TypeError, {"scale": [1.0]}),
    ("scale: expected a finite number, got ndarray of shape (1,) and type float32", TypeError, {"scale": zeros(1)}),
    ("scale: expected a finite number, got nan", ValueError, {"scale": np.nan}),
    ("scale: expected a finite number, got -inf", ValueError, {"scale": -np.inf}),
    ("scale: expected a finite number, got 1000000", TypeError, {"scale": 10**400}),
    ("scale: expected a finite number, got a very long int", TypeError, {"scale": 10**5000}),
    ("softcap: expected a finite number above 0, got 0", ValueError, {"softcap": 0}),
    ("softcap: expected a finite number above 0, got -1.5", ValueError, {"softcap": -1.5}),
    ("softcap: expected a finite number above 0, got inf", ValueError, {"softcap": np.inf}),
    ("softcap: expected a finite number above 0, got False", TypeError, {"softcap": False}),
    # positions
    ("causal: expected True or False, got 1", TypeError, {"causal": 1}),
    ("causal: expected True or False, got None", TypeError, {"causal": None}),
    (f"{WINDOW}5; (5, 0) looks back only, (5, 5) both ways", TypeError, {"window": 5}),
    (f"{WINDOW}True", TypeError, {"window": True}),
    (f"{WINDOW}(1.5, 0)", TypeError, {"window": (1.5, 0)}),
    (f"{WINDOW}(0, True)", TypeError, {"window": (0, True)}),
    (f"{WINDOW}'ab'", TypeError, {"window": "ab"}),
    (f"{WINDOW}{{1, 2}}", TypeError, {"window": {1, 2}}),
    (f"{WINDOW}(1,)", ValueError, {"window": (1,)}),
    (f"{WINDOW}(1, 2, 3)", ValueError, {"window": (1, 2, 3)}),
    (f"{WINDOW}(-2, 0)", ValueError, {"window": (-2, 0)}),
    ((f"query_offset: expected {WORDS}, because causal is given and the lengths of query and key differ (5 and 7), "
     "got None"), ValueError, {"causal": True}),
    (f"query_offset: expected {WORDS}, because window is given", ValueError, {"window": (None, 3)}),
    (f"query_offset: expected {WORDS}, because window is given", ValueError, {"window": (3, -1)}),
    (f"query_offset: expected {WORDS}, because alibi_slopes is given", ValueError, {"alibi_slopes": [1, 2, 3, 4]}),
    (f"query_offset: expected {WORDS}, got 'left'", ValueError, {"query_offset": "left"}),
    ("query_offset: expected integers, got float64", TypeError, {"query_offset": 1.0}),
    ("query_offset: expected integers, got bool", TypeError, {"query_offset": True}),
    ("query_offset: expected a shape that broadcasts to (2,) (leading axes), got (3,)", ValueError,
     {"query_offset": [1, 2, 3]}),
    ("query_offset: expected a shape that broadcasts to () (leading axes), got (1,)", ValueError,
     {"query": QUERY[0], "key": KEY[0], "value": VALUE[0], "query_offset": [1]}),
    # lengths and ranges
    ("key_lengths: expected 0 to 7, the length of key, got 8", ValueError, {"key_lengths": [7, 8]}),
    ("key_lengths: expected 0 to 7, the length of key, got -1", ValueError, {"key_lengths": -1}),
    (f"key_lengths: expected 0 to 7, the length of key, got {2**70}", ValueError, {"key_lengths": 2**70}),
    (f"query_lengths: expected 0 to 5, the length of query, got {2**63}", ValueError,
     {"query_lengths": np.array([2**63, 0], np.uint64)}),
    ("query_lengths: expected integers, got float64", TypeError, {"query_lengths": [1.0, 2.0]}),
    ("query_lengths: expected integers, got bool", TypeError, {"query_lengths": True}),
    ("query_lengths: expected a shape that broadcasts to (2,) (leading axes), got (2, 1)", ValueError,
     {"query_lengths": [[1], [2]]}),
    ("key_lengths: expected an array, got a masked array", TypeError, {"key_lengths": np.ma.array([1, 2])}),
    ("key_range: expected (start, stop), each None or integers, got 5", TypeError, {"key_range": 5}),
    ("key_range: expected (start, stop), each None or integers, got (1,)", ValueError, {"key_range": (1,)}),
    ("key_range start: expected integers, got float32", TypeError, {"key_range": (zeros(5), None)}),
    ("key_range stop: expected integers, got bool", TypeError, {"key_range": (None, False)}),
    ("key_range stop: expected a shape that broadcasts to (2, 4, 5) (..., heads, query length), got (7,)", ValueError,
     {"key_range": (None, [1] * 7)}),
    ("key_range start: expected a shape that broadcasts to (5,) (query length), got (1, 5)", ValueError,
     {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0], "key_range": ([[1] * 5], None)}),
    # scores
    ("mask: expected type bool (True: may attend), got int8; write mask.astype(bool)", TypeError,
     {"mask": zeros(5, 7, dtype=np.int8)}),
    ("mask: expected type bool (True: may attend), got uint64; write mask.astype(bool)", TypeError,
     {"mask": zeros(5, 7, dtype=np.uint64)}),
    ("mask: expected type bool (True: may attend), got float32; what is added to the scores goes to bias=", TypeError,
     {"mask": zeros(5, 7)}),
    ("mask: expected type bool (True: may attend), got bfloat16; what is added", TypeError,
     {"mask": zeros(5, 7, dtype=ml_dtypes.bfloat16)}),
    ("mask: expected type bool (True: may attend), got object", TypeError, {"mask": zeros(5, 7, dtype=object)}),
    ("mask: expected an array, got a masked array", TypeError, {"mask": np.ma.ones((5, 7), bool)}),
    ("mask: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (5, 6)",
     ValueError, {"mask": zeros(5, 6, dtype=bool)}),
    ("mask: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (2, 5, 7); "
     "without an axis for heads, write mask[:, None]", ValueError, {"mask": zeros(2, 5, 7, dtype=bool)}),
    ("bias: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (2, 1, 7); "
     "without an axis for heads, write bias[:, None]", ValueError, {"bias": zeros(2, 1, 7)}),
    ("mask: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (2, 7); "
     "with axes for batch and keys only, write mask[:, None, None, :], or pass key_lengths= for padding at the end of "
     "the keys", ValueError, {"mask": zeros(2, 7, dtype=bool)}),
    ("bias: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (2, 7); "
     "with axes for batch and keys only, write bias[:, None, None, :]", ValueError, {"bias": zeros(2, 7)}),
    ("mask: expected a shape that broadcasts to (3, 2, 4, 5, 7) (..., heads, query length, key length), "
     "got (3, 2, 5, 7); without an axis for heads, write mask[..., None, :, :]", ValueError,
     {"query": zeros(3, *QUERY.shape), "mask": zeros(3, 2, 5, 7, dtype=bool)}),
    ("mask: expected a shape that broadcasts to (3, 2, 4, 5, 7) (..., heads, query length, key length), got (3, 1, 7); "
     "with axes for batch and keys only, write mask[..., None, None, :]", ValueError,
     {"query": zeros(3, *QUERY.shape), "mask": zeros(3, 1, 7, dtype=bool)}),
    ("mask: expected a shape that broadcasts to (1, 4, 5, 7) (..., heads, query length, key length), got (3, 1, 1, 1)",
     ValueError, {"query": QUERY[:1], "key": KEY[:1], "value": VALUE[:1], "mask": zeros(3, 1, 1, 1, dtype=bool)}),
    ("mask: expected a shape that broadcasts to (4, 5, 7) (..., heads, query length, key length), got (1, 4, 5, 7)",
     ValueError, {"query": QUERY[0], "key": KEY[0], "value": VALUE[0], "mask": zeros(1, 4, 5, 7, dtype=bool)}),
    ("mask: expected a shape that broadcasts to (5, 7) (query length, key length), got (1, 5, 7)", ValueError,
     {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0], "mask": zeros(1, 5, 7, dtype=bool)}),
    ("bias: expected type float16, bfloat16, float32 or float64, got bool; what may be attended to goes to mask=",
     TypeError, {"bias": zeros(5, 7, dtype=bool)}),
    (f"bias: {FOUR_TYPES}, got complex128", TypeError, {"bias": 1j}),
    ("bias: expected a shape that broadcasts to (2, 4, 5, 7) (..., heads, query length, key length), got (7, 5)",
     ValueError, {"bias": zeros(7, 5)}),
    # heads
    ("alibi_slopes: expected shape (4,), one number for each head of query, or one that broadcasts to (2, 4) (leading "
     "axes, heads), got (2,)", ValueError, {"alibi_slopes": [0.5, 0.25], "query_offset": 0}),
    ("alibi_slopes: expected shape (4,), one number for each head of query, or one that broadcasts to (2, 4) (leading "
     "axes, heads), got (3, 4)", ValueError, {"alibi_slopes": zeros(3, 4), "query_offset": 0}),
    ("alibi_slopes: expected shape (4,), one number for each head of query, or one that broadcasts to (2, 4) (leading "
     "axes, heads), got (2, 1)", ValueError, {"alibi_slopes": zeros(2, 1), "query_offset": 0}),
    ("alibi_slopes: expected shape (4,), one number for each head of query, or one that broadcasts to (2, 4) (leading "
     "axes, heads), got ()", ValueError, {"alibi_slopes": 0.5, "query_offset": 0}),
    ("alibi_slopes: expected shape (4,), one number for each head of query, got (1, 4)", ValueError,
     {"query": QUERY[0], "key": KEY[0], "value": VALUE[0], "alibi_slopes": zeros(1, 4), "query_offset": 0}),
    ("alibi_slopes: expected shape (1,), one number for each head of query, got (1, 1)", ValueError,
     {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0], "alibi_slopes": zeros(1, 1), "query_offset": 0}),
    (f"alibi_slopes: {FOUR_TYPES}, got complex128", TypeError, {"alibi_slopes": [1j] * 4}),
    ("sinks: expected shape (4,), one number for each head of query, got ()", ValueError, {"sinks": 0.5}),
    ("sinks: expected shape (4,), one number for each head of query, got (4, 1)", ValueError, {"sinks": zeros(4, 1)}),
    ("sinks: expected finite numbers, or -inf for none, got nan", ValueError, {"sinks": [0, np.nan, 0, 0]}),
    ("sinks: expected finite numbers, or -inf for none, got inf", ValueError, {"sinks": [0, 0, 0, np.inf]}),
    ("sinks: expected an array, got a masked array", TypeError, {"sinks": np.ma.zeros(4)}),
    ("query: expected an array, got a masked array", TypeError, {"query": [np.ma.zeros((5, 8))]}),
    # results
    ("return_lse: expected True or False, got 'no'", TypeError, {"return_lse": "no"}),
    ("out: expected a NumPy array, got list", TypeError, {"out": [0.0]}),
    ("out: expected a NumPy array, got numpy.ma", TypeError, {"out": np.ma.zeros(OUT_SHAPE)}),
    ("out: expected type float32, got float64", TypeError, {"out": np.zeros(OUT_SHAPE)}),
    ("out: expected type float32, got float16", TypeError, {"out": zeros(*OUT_SHAPE, dtype=np.float16)}),
    ("out: expected type float32, got float16", TypeError,
     {"key": KEY.astype(np.float16), "value": VALUE.astype(np.float16), "out": zeros(*OUT_SHAPE, dtype=np.float16)}),
    ("out: expected type float16 or float32, got float64", TypeError,
     {"query": QUERY.astype(np.float16), "key": KEY.astype(np.float16), "value": VALUE.astype(np.float16),
          "out": np.zeros(OUT_SHAPE)}),
    ("out: expected type bfloat16 or float32, got float16", TypeError,
     {"query": QUERY.astype(ml_dtypes.bfloat16), "key": KEY.astype(ml_dtypes.bfloat16),
          "value": VALUE.astype(ml_dtypes.bfloat16), "out": zeros(*OUT_SHAPE, dtype=np.float16)}),
    ("out: expected type bfloat16 or float32, got uint16", TypeError,
     {"query": QUERY.astype(ml_dtypes.bfloat16), "key": KEY.astype(ml_dtypes.bfloat16),
          "value": VALUE.astype(ml_dtypes.bfloat16), "out": np.zeros(OUT_SHAPE, np.uint16)}),
    ("out: expected type float32, got float32 with swapped bytes", TypeError,
     {"out": np.zeros(OUT_SHAPE, np.dtype(np.float32).newbyteorder("S"))}),
    ("out: expected shape (2, 4, 5, 3), got (2, 4, 5, 4)", ValueError, {"out": zeros(2, 4, 5, 4)}),
    ("out: expected shape (2, 4, 5, 3), got (4, 5, 3)", ValueError, {"out": zeros(4, 5, 3)}),
    ("out: expected shape (2, 5, 4, 3), got (2, 4, 5, 3)", ValueError,
     {"query": zeros(2, 5, 4, 8), "key": zeros(2, 7, 2, 8), "value": zeros(2, 7, 2, 3), "layout": "blhd",
          "out": zeros(*OUT_SHAPE)}),
    ("out: expected shape (5, 3), got (1, 5, 3)", ValueError,
     {"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0], "out": zeros(1, 5, 3)}),
    ("out: expected a writable array, got a read-only one", ValueError, {"out": read_only(zeros(*OUT_SHAPE))}),
    (("out: expected elements that do not overlap, got an array that overlaps itself "
     "(shape (2, 4, 5, 3), strides (240, 0, 12, 4))"), ValueError,
     {"out": np.lib.stride_tricks.as_strided(zeros(*OUT_SHAPE), OUT_SHAPE, (240, 0, 12, 4))}),
    # the process
    ("num_threads: ", ValueError, {"num_threads": 0}),
    ("num_threads: ", ValueError, {"num_threads": -1}),
    ("num_threads: ", TypeError, {"num_threads": 1.5}),
]  # fmt: skip


@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize(("message", "error", "arguments"), CASES, ids=[case[0][:60] for case in CASES])
def test_attention(message, error, arguments, with_out):
    arguments = {"query": QUERY, "key": KEY, "value": VALUE, **arguments}
    if with_out and "out" not in arguments:
        arguments["out"] = np.full(OUT_SHAPE, 7, np.float32)
    before = np.array(arguments.get("out"))
    with pytest.raises(error) as caught:
        cattn.attention(**arguments)
    assert str(caught.value).startswith(message)
    assert np.array_equal(np.array(arguments.get("out")), before)


def test_what_follows_a_message():
    """The tables look at beginnings: where there is no advice, there is an end."""
    for arguments, message in (
        ({"mask": zeros(5, 6, dtype=bool)}, "key length), got (5, 6)"),
        ({"key": zeros(2, 3, 7, 8)}, "got 3 (shape (2, 3, 7, 8))"),
        ({"out": [0.0]}, "got list"),
        ({"query": QUERY.astype(np.complex64)}, "got complex64"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            cattn.attention(**{"query": QUERY, "key": KEY, "value": VALUE, **arguments})
        assert str(caught.value).endswith(message)


def test_tensors_are_not_printed():
    with pytest.raises(TypeError) as caught:
        cattn.attention(QUERY, KEY, VALUE, out=Tensor())
    assert str(caught.value) == f"out: expected a NumPy array, got {__name__}.Tensor; write out.numpy()"
    for name in ("scale", "window", "causal"):
        with pytest.raises(TypeError, match=r"got Tensor of shape \(2, 1\) and type float32$"):
            cattn.attention(QUERY, KEY, VALUE, **{name: Tensor()})


# Whatever an argument is made of, its name begins the message: no error of NumPy or Python comes through bare.
RUBBISH = {
    "object": object(),
    "str": "rubbish",
    "bytes": b"rubbish",
    "complex": 1j,
    "ragged": [[1], [1, 2]],
    "dict": {"a": 1},
    "masked": np.ma.array([1.0], mask=[True]),
    "datetime": np.datetime64("2020-01-01"),
    "structured": STRUCTURED,
    "stubborn": Stubborn(),
    "strings": np.array(["a", "b"]),
    "objects": np.array([None, 1], object),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
@pytest.mark.parametrize("function", ["attention", "attention_weights", "attention_varlen"])
def test_rubbish(function, rubbish):
    function = getattr(cattn, function)
    good = {"query": QUERY, "key": KEY}
    if function is cattn.attention:
        good["value"] = VALUE
    if function is cattn.attention_varlen:
        good = dict(VARLEN)
    for name in inspect.signature(function).parameters:
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**{**good, name: rubbish})
        assert str(caught.value).startswith((f"{name}: ", f"{name} ")), name


@pytest.mark.skipif(np.dtype(np.longdouble) == np.float64, reason="longdouble is double")
@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "alibi_slopes", "sinks"])
def test_longdouble(name):
    arguments = {"query": QUERY, "key": KEY, "value": VALUE, "bias": zeros(7), "sinks": zeros(4),
                 "alibi_slopes": zeros(4), "query_offset": 0}  # fmt: skip
    arguments[name] = arguments[name].astype(np.longdouble)
    advice = rf"write {name}\.astype\(np\.float64\)"
    with pytest.raises(TypeError, match=f"^{name}: {FOUR_TYPES}, got {np.dtype(np.longdouble)}; {advice}$"):
        cattn.attention(**arguments)


def test_out_overlaps_an_input():
    memory = np.full(1000, 7, np.float32)
    out = memory[: 2 * 4 * 5 * 3].reshape(OUT_SHAPE)
    inside = memory[100:]  # the last 20 elements of out, and on
    arguments = {
        "query": inside[:320].reshape(QUERY.shape),
        "key": inside[:224].reshape(KEY.shape),
        "value": inside[:84].reshape(VALUE.shape),
        "mask": memory.view(bool)[476:511].reshape(5, 7),
        "bias": inside[:7],
    }
    for name, argument in arguments.items():
        with pytest.raises(ValueError, match=f"^out: expected memory of its own, got an array that overlaps {name}$"):
            cattn.attention(**{"query": QUERY, "key": KEY, "value": VALUE, "out": out, name: argument})
        assert (memory == 7).all()


def test_more_memory_than_there_are_addresses():
    long = np.broadcast_to(np.float32(0), (2**30, 1, 2**30, 1))
    with pytest.raises(MemoryError, match=r"^out: "):
        cattn.attention(long, zeros(1, 3, 1), zeros(1, 3, 2))


def test_weights_that_no_memory_holds():
    long = np.broadcast_to(np.float32(0), (1, 2**30, 1))
    advice = "with query_offset=i (more where it is given), and the same rows of mask, bias and key_range"
    for layout, given, shape, rows in (
        ("bhld", long, (1, 2**30, 2**30), "i:i + n, :"),
        ("blhd", long.reshape(2**30, 1, 1), (1, 2**30, 2**30), "i:i + n, :, :"),
        ("blhd", long[0], (2**30, 2**30), "i:i + n, :"),
    ):
        with pytest.raises(MemoryError) as caught:
            cattn.attention_weights(given, given, layout=layout)
        assert str(caught.value) == (
            f"out: cannot allocate {2**62} bytes, shape {shape} of type float32; go over the queries in pieces: "
            f"query[..., {rows}] {advice}"
        )


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_weights_in_pieces(layout):
    """The message advises what is right."""
    query, key = np.random.default_rng(0).standard_normal((2, 9, 9, 9), np.float32)
    whole = cattn.attention_weights(query, key, layout=layout, causal=True)
    for i in range(0, 9, 4):
        piece = query[..., i : i + 4, :] if layout == "bhld" else query[..., i : i + 4, :, :]
        given = cattn.attention_weights(piece, key, layout=layout, causal=True, query_offset=i)
        np.testing.assert_allclose(given, whole[..., i : i + 4, :], rtol=1e-5)


def test_an_overlap_that_takes_for_ever_to_find():
    """Strides for which NumPy looks at billions of pairs of elements (the example of np.shares_memory)."""
    memory = np.zeros(192163377, np.float16)  # never touched
    as_strided = np.lib.stride_tricks.as_strided
    shape = (1049, 1049, 1049)
    out = as_strided(memory, shape, (2 * 36674, 2 * 61119, 2 * 85569))
    bias = as_strided(memory[64023025:], (1049, 1049, 1), (2 * 12223, 2 * 12224, 2))
    query = np.broadcast_to(np.float16(0), (1049, 1049, 1))
    value = np.broadcast_to(np.float16(0), (1049, 1, 1049))
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        cattn.attention(query, query[:, :1], value, bias=bias, out=out)
    assert time.process_time() - start < 1
    assert str(caught.value) == (
        f"out: expected memory of its own, got strides {out.strides} of which it cannot be told in bounded time "
        "whether they overlap bias; pass a contiguous array"
    )


WEIGHTS_CASES = [
    ("stage: expected one of 'scores', 'softcapped', 'biased', 'weights', got 'softmax'", ValueError,
     {"stage": "softmax"}),
    ("stage: expected one of 'scores', 'softcapped', 'biased', 'weights', got None", ValueError, {"stage": None}),
    ("key: expected head size 8 like query, got 9 (shape (2, 2, 7, 9))", ValueError, {"key": zeros(2, 2, 7, 9)}),
    ("mask: expected type bool", TypeError, {"mask": zeros(5, 7)}),
    ("query_offset: expected", ValueError, {"causal": True}),
    ("layout: expected", ValueError, {"layout": 1}),
    ("num_threads: ", ValueError, {"num_threads": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "error", "arguments"), WEIGHTS_CASES, ids=[case[0][:60] for case in WEIGHTS_CASES])
def test_attention_weights(message, error, arguments):
    with pytest.raises(error) as caught:
        cattn.attention_weights(**{"query": QUERY, "key": KEY, **arguments})
    assert str(caught.value).startswith(message)


VARLEN = {
    "query": zeros(6, 4, 8),
    "key": zeros(9, 2, 8),
    "value": zeros(9, 2, 3),
    "query_indptr": [0, 2, 6],
    "key_indptr": [0, 2, 9],
}
VARLEN_CASES = [
    ("query: expected 3 axes (total length, heads, size), got shape (1, 6, 4, 8)", ValueError,
     {"query": zeros(1, 6, 4, 8)}),
    ("key: expected 3 axes (total length, heads, size), got shape (9, 8)", ValueError, {"key": zeros(9, 8)}),
    ("value: expected length 9 like key, got 8 (shape (8, 2, 3))", ValueError, {"value": zeros(8, 2, 3)}),
    ("key: expected a number of heads that divides the 4 of query, got 3 (shape (9, 3, 8))", ValueError,
     {"key": zeros(9, 3, 8)}),
    ("query_indptr: expected integers, got float64", TypeError, {"query_indptr": [0.0, 2.0, 6.0]}),
    ("query_indptr: expected shape (sequences + 1,), got ()", ValueError, {"query_indptr": 6}),
    ("query_indptr: expected shape (sequences + 1,), got (0,)", ValueError,
     {"query_indptr": np.zeros(0, np.int32)}),
    ("key_indptr: expected shape (sequences + 1,), got (1, 3)", ValueError, {"key_indptr": [[0, 2, 9]]}),
    ("key_indptr: expected to begin with 0, got 1", ValueError, {"key_indptr": [1, 2, 9]}),
    ("key_indptr: expected ascending values, got 5 before 4 (entry 2)", ValueError, {"key_indptr": [0, 5, 4, 9]}),
    ("key_indptr: expected to end with 9, the total length of key, got 8", ValueError, {"key_indptr": [0, 2, 8]}),
    ("query_indptr: expected to end with 6, the total length of query, got 7", ValueError,
     {"query_indptr": [0, 2, 7]}),
    ("key_indptr: expected 3 entries like query_indptr, one more than there are sequences, got 4", ValueError,
     {"key_indptr": [0, 2, 3, 9]}),
    ((f"query_offset: expected {WORDS}, because causal is given and the lengths of query and key differ "
     "(4 and 7 in sequence 1), got None"), ValueError, {"causal": True}),
    ("alibi_slopes: expected shape (4,), one number for each head of query, or one that broadcasts to (2, 4) "
     "(sequences, heads), got (3, 4)", ValueError, {"alibi_slopes": zeros(3, 4), "query_offset": 0}),
    ("query_offset: expected a shape that broadcasts to (2,) (sequences), got (3,)", ValueError,
     {"query_offset": [1, 2, 3]}),
    ("window: expected", TypeError, {"window": 2}),
    ("sinks: expected shape (4,)", ValueError, {"sinks": [1.0]}),
    ("out: expected shape (6, 4, 3), got (4, 6, 3)", ValueError, {"out": zeros(4, 6, 3)}),
    ("out: expected type float32, got float64", TypeError, {"out": np.zeros((6, 4, 3))}),
    ("return_lse: expected True or False, got 1", TypeError, {"return_lse": 1}),
    ("num_threads: ", ValueError, {"num_threads": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "error", "arguments"), VARLEN_CASES, ids=[case[0][:60] for case in VARLEN_CASES])
def test_attention_varlen(message, error, arguments):
    arguments = {**VARLEN, "out": np.full((6, 4, 3), 7, np.float32), **arguments}
    before = arguments["out"].copy()
    with pytest.raises(error) as caught:
        cattn.attention_varlen(**arguments)
    assert str(caught.value).startswith(message)
    assert np.array_equal(arguments["out"], before)


def test_varlen_out_overlaps_an_input():
    x = np.zeros((6, 4, 8), np.float32)
    for name in ("query", "key", "value"):
        given = {n: x.copy() for n in ("query", "key", "value")}
        with pytest.raises(ValueError, match=f"^out: expected memory of its own, got an array that overlaps {name}$"):
            cattn.attention_varlen(**given, query_indptr=[0, 6], key_indptr=[0, 6], out=given[name])


def test_memory_error_of_a_wide_value():
    x = np.ones((9, 4), np.float32)
    for size in (2**40 + 1, 2**41, 2**56):
        with pytest.raises(MemoryError):
            cattn.attention(x, x[:1], np.broadcast_to(np.float32(1), (1, size)))
    assert (cattn.attention(x, x, x) == 1).all()
