"""maxsim scores documents as the reference does, with the same bits in any company, and refuses what makes no sense."""

import ml_dtypes
import numpy as np
import pytest
from helpers import EVERY_TYPE, TWO_TABLES, assert_same_bits, normal, python
from test_invariance import in_another_memory

import cattn

ROWS = pytest.mark.parametrize("tokens", [1, 3, 8, 16, 17, 32, 50, 64, 65, 130])


def collection(dtype=np.float32, size=20, longest=60, count=9):
    """Return padded documents and their lengths, of which one is 0."""
    lengths = np.random.default_rng(count).integers(1, longest + 1, count)
    lengths[count // 2] = 0
    return normal(count, longest, size, dtype=dtype), lengths


def test_by_hand():
    query = np.array([[1, 0], [0, 2]], np.float32)
    document = np.array([[[3, 1], [-1, 4], [9, 9]], [[-1, -2], [-3, -1], [9, 9]]], np.float32)
    scores, index = cattn.maxsim(query, document, document_lengths=[2, 2], return_index=True)
    assert_same_bits(scores, np.array([3 + 8, -1 - 2], np.float32))
    np.testing.assert_array_equal(index, [[0, 1], [0, 1]])


@EVERY_TYPE
@ROWS
def test_a_score_is_that_of_the_pair_alone(dtype, tokens):
    """Padding, packing, other queries, other documents and threads change no bit."""
    document, lengths = collection(dtype)
    query = normal(4, tokens, 20, dtype=dtype)
    query_lengths = [tokens, tokens - 1, tokens, 1]
    scores, index = cattn.maxsim(
        query, document, document_lengths=lengths, query_lengths=query_lengths, return_index=True
    )
    for q, n in np.ndindex(scores.shape):
        pair = query[q, : query_lengths[q]], document[n, : lengths[n]][None]
        alone, winners = cattn.maxsim(*pair, return_index=True)
        assert_same_bits(alone, scores[q, n : n + 1])
        np.testing.assert_array_equal(winners[0], index[q, n, : query_lengths[q]])
        assert np.all(index[q, n, query_lengths[q] :] == -1)
        assert_same_bits(cattn.maxsim(*pair), alone)
    packed, indptr = cattn.unpad(document, lengths)
    assert_same_bits(cattn.maxsim(query, packed, document_indptr=indptr, query_lengths=query_lengths), scores)
    document[np.arange(60) >= lengths[:, None]] = np.nan
    assert_same_bits(cattn.maxsim(query, document, document_lengths=lengths, query_lengths=query_lengths), scores)


@EVERY_TYPE
def test_threads(dtype):
    query, document = normal(3, 40, 64, dtype=dtype), normal(50, 100, 64, dtype=dtype)
    one = cattn.maxsim(query, document, return_index=True, num_threads=1)
    for threads in (2, 5):
        assert_same_bits(cattn.maxsim(query, document, return_index=True, num_threads=threads), one)


@pytest.mark.parametrize("threads", [1, 3])
def test_queries_that_no_workspace_holds_at_once(threads):
    """A long query goes in several passes, and many queries in several spans. Documents are longer than a block."""
    query, document = normal(3, 2500, 256), normal(4, 700, 256)
    scores, index = cattn.maxsim(query, document, return_index=True, num_threads=threads)
    for q in range(3):
        products = query[q] @ document.swapaxes(1, 2)
        np.testing.assert_allclose(scores[q], products.max(axis=2).sum(axis=1), rtol=1e-5)
        assert np.mean(index[q] == products.argmax(axis=2)) > 0.99
        assert_same_bits(cattn.maxsim(query[q], document, num_threads=threads), scores[q])
    short = query.reshape(100, 75, 256)
    many = cattn.maxsim(short, document, num_threads=threads)
    for q in (0, 50, 99):
        assert_same_bits(cattn.maxsim(short[q], document), many[q])


@EVERY_TYPE
@pytest.mark.parametrize("which", ["query", "document"])
def test_memory_layouts(dtype, which):
    document, lengths = collection(dtype)
    case = {"query": normal(2, 11, 20, dtype=dtype), "document": document}
    expected = cattn.maxsim(**case, document_lengths=lengths)
    for other in in_another_memory(case[which]):
        assert_same_bits(cattn.maxsim(**(case | {which: other}), document_lengths=lengths), expected)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_half_documents_beside_a_float32_query(half):
    query, (document, lengths) = normal(11, 20), collection(half)
    scores = cattn.maxsim(query, document, document_lengths=lengths)
    assert_same_bits(scores, cattn.maxsim(query, document.astype(np.float32), document_lengths=lengths))


@EVERY_TYPE
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tokens", [2, 20, 40])
def test_what_is_not_finite_shows_where_it_counts(dtype, bad, tokens):
    query, (document, lengths) = np.abs(normal(tokens, 20)).astype(dtype), collection(dtype)
    plain = cattn.maxsim(query, document, document_lengths=lengths)
    document[1, lengths[1] - 1, 7] = bad
    document[2, lengths[2] :, :] = bad
    scores, index = cattn.maxsim(query, document, document_lengths=lengths, return_index=True)
    assert_same_bits(cattn.maxsim(query, document, document_lengths=lengths), scores)
    expected = np.where(np.arange(len(document)) == 1, bad, plain)
    if bad == -np.inf:
        assert np.isfinite(scores[1])
        expected[1] = scores[1]
    np.testing.assert_array_equal(scores, expected)
    if bad != -np.inf:
        assert np.all(index[1] == lengths[1] - 1)


def test_infinities_of_both_signs_are_no_nan():
    """They add up to one, which a quick look for a NaN must not take for one."""
    query, document = np.ones((1, 1), np.float32), np.array([[[np.inf], [-np.inf], [3]]], np.float32)
    scores, index = cattn.maxsim(query, document, return_index=True)
    assert scores[0] == np.inf and index[0, 0] == 0
    assert cattn.maxsim(query, document)[0] == np.inf


@EVERY_TYPE
def test_the_first_of_equal_tokens_wins(dtype):
    document = np.ones((1, 300, 3), dtype)
    document[0, :4] = 0
    _, index = cattn.maxsim(np.ones((33, 3), dtype), document, return_index=True)
    assert np.all(index == 4)
    document[...] = -np.inf
    scores, index = cattn.maxsim(np.ones((33, 3), dtype), document, return_index=True)
    assert scores[0] == -np.inf and np.all(index == 0)
    document[0, 7:9] = np.nan
    _, index = cattn.maxsim(np.ones((33, 3), dtype), document, return_index=True)
    assert np.all(index == 7)


@pytest.mark.parametrize("return_index", [False, True])
def test_nothing_to_compare(return_index):
    def scores(query, document, **given):
        result = cattn.maxsim(np.ones(query), np.ones(document), return_index=return_index, **given)
        if return_index:
            assert np.all(result[1] == -1)
            return result[0]
        return result

    np.testing.assert_array_equal(scores((3, 2), (2, 0, 2)), [-np.inf] * 2)
    np.testing.assert_array_equal(scores((0, 2), (2, 3, 2)), [0, 0])
    np.testing.assert_array_equal(scores((0, 2), (2, 0, 2)), [0, 0])
    np.testing.assert_array_equal(scores((2, 3, 2), (1, 0, 2), query_lengths=[0, 1]), [[0], [-np.inf]])
    np.testing.assert_array_equal(scores((3, 2), (0, 2), document_indptr=[0, 0]), [-np.inf])
    assert scores((3, 2), (0, 2), document_indptr=[0]).shape == (0,)
    assert scores((0, 3, 2), (4, 5, 2)).shape == (0, 4)


def test_sums_beyond_the_largest_float():
    query = np.full((8, 1), 1e38, np.float32)
    assert cattn.maxsim(query, np.ones((1, 1, 1), np.float32))[0] == np.inf


TABLE = """
import numpy as np
from registry import FUNCTIONS
from registry_own import check_maxsim_bound
import cattn
function = FUNCTIONS["maxsim"]
for seed in range(150):
    arguments = function.arguments(seed)
    function.check(arguments, function.call(**arguments))
random = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for size in (16, 128, 1000, 4096, 16384):
        for rows, x, y in [(5, 0.1, 0.7), *((rows, *random.uniform(0.5, 1, 2)) for rows in 3 * (1, 5, 40))]:
            case = {"query": np.full((rows, size), x, dtype), "document": np.full((1, 3, size), y, dtype)}
            check_maxsim_bound(cattn.maxsim(**case), case)
    query, document = (random.standard_normal(shape).astype(dtype) for shape in ((3, 40, 24), (6, 90, 24)))
    together = cattn.maxsim(query, document, num_threads=3)
    for q, n in np.ndindex(together.shape):
        assert cattn.maxsim(query[q], document[n : n + 1])[0] == together[q, n]
print("well")
"""


@TWO_TABLES
def test_every_table(isa):
    """Scores are as exact as is promised, equal terms included, and do not depend on what is around them."""
    assert python(TABLE, CATTN_ISA=isa) == "well\n"


PLAIN = {"query": np.ones((3, 4), np.float32), "document": np.ones((5, 6, 4), np.float32)}
PACKED = {"query": np.ones((3, 4), np.float32), "document": np.ones((6, 4), np.float32)}
OVERLAPPING = np.zeros(200, np.float32)


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        (PLAIN | {"query": np.ones(4)}, ValueError, r"query: expected axes \(tokens, size\) or .*got shape \(4,\)"),
        (PLAIN | {"document": np.ones(4)}, ValueError, r"document: expected axes .*got shape \(4,\)"),
        (PLAIN | {"query": np.ones((3, 5), np.float32)}, ValueError, "document: expected tokens of size 5 like query"),
        (PLAIN | {"query": np.ones((3, 0), np.float32)}, ValueError, "query: expected tokens of size 1 or more"),
        (PLAIN | {"query": np.ones((3, 4))}, TypeError, "document: expected type float64 like query, got float32"),
        (PLAIN | {"query": np.ones((3, 4), np.int16)}, TypeError, "query: expected type float16, .*got int16"),
        (PLAIN | {"document": [np.ones((2, 4)), np.ones((3, 4))]}, TypeError, r"pack them: np\.concatenate"),
        (PLAIN | {"query": np.ones((3, 4), complex)}, TypeError, "query: expected type .*got complex128"),
        (PLAIN | {"document_lengths": [1, 2, 3, 4]}, ValueError, r"document_lengths: expected shape \(5,\)"),
        (PLAIN | {"document_lengths": np.ones((5, 6), int)}, ValueError, r"pass its sum\(axis=1\)"),
        (PLAIN | {"document_lengths": [1, 2, 3, 4, 7]}, ValueError, "document_lengths: expected 0 to 6, .*got 7"),
        (PLAIN | {"document_lengths": [1, 2, 3, 4, -1]}, ValueError, "document_lengths: expected 0 to 6, .*got -1"),
        (PLAIN | {"document_lengths": [1.0] * 5}, TypeError, "document_lengths: expected integers, got float64"),
        (PLAIN | {"query_lengths": [4]}, ValueError, "query_lengths: expected 0 to 3, .*got 4"),
        (PLAIN | {"document_indptr": [0, 6]}, ValueError, "document_indptr: expected None for padded documents"),
        (PACKED, ValueError, "document_indptr: expected the numbers .*got None"),
        (PACKED | {"document_lengths": [6]}, ValueError, "document_lengths: expected None for packed documents"),
        (PACKED | {"document_indptr": [0, 4, 3, 6]}, ValueError, "document_indptr: expected ascending values"),
        (PACKED | {"document_indptr": [0, 4]}, ValueError, "document_indptr: expected to end with 6"),
        (PACKED | {"document_indptr": [1, 6]}, ValueError, "document_indptr: expected to begin with 0"),
        (PLAIN | {"return_index": 1}, TypeError, "return_index: expected True or False"),
        (PLAIN | {"out": np.ones(5)}, TypeError, "out: expected type float32, got float64"),
        (PLAIN | {"out": np.ones(4, np.float32)}, ValueError, r"out: expected shape \(5,\), got \(4,\)"),
        (
            PLAIN | {"query": OVERLAPPING[:12].reshape(3, 4), "out": OVERLAPPING[8:13]},
            ValueError,
            "out: expected memory of its own, got an array that overlaps query",
        ),
        (PLAIN | {"num_threads": 0}, ValueError, "num_threads: expected an integer of 1 or more"),
        (PLAIN | {"lengths": 1}, TypeError, "lengths: not an argument of maxsim"),
    ],
)
def test_errors(case, error, message):
    with pytest.raises(error, match=message):
        cattn.maxsim(**case)


def test_out():
    out = np.full((5, 2), 7, np.float32)[:, 1]
    assert cattn.maxsim(**PLAIN, out=out) is out and np.all(out == 12)
