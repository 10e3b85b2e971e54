"""Turn the arguments of one call of `maxsim` into arrays that need no further check."""

from typing import NamedTuple

import numpy as np

from ._arguments import LARGEST_HEAD, as_indptr, as_lengths, empty, result, threads
from ._read import arithmetic, as_array, as_even, as_flag, as_floats, check_type_beside


class Problem(NamedTuple):
    """Hold one checked call as data."""

    query: np.ndarray  # (queries, tokens, size)
    document: np.ndarray  # (documents, tokens, size), or (all tokens, size) if packed
    out: np.ndarray  # (queries, documents)
    index: np.ndarray | None  # (queries, documents, tokens), int64
    query_lengths: np.ndarray | None  # (queries,), int64
    document_lengths: np.ndarray | None  # (documents,), int64
    document_indptr: np.ndarray | None  # (documents + 1,), contiguous int64
    num_threads: int  # 0: not given


def maxsim(query, document, *, document_lengths, document_indptr, query_lengths, return_index, out, num_threads):
    """Return (Problem, out, index or None) for a call of `cattn.maxsim`."""
    return_index = as_flag("return_index", return_index)
    query = as_array("query", query)
    document = as_even(
        "document", document, "if documents have different lengths, pack them: np.concatenate(document) with "
        "document_indptr=np.cumsum([0, *map(len, document)])",
    )  # fmt: skip
    came = query.dtype, document.dtype
    query, document = as_floats("query", query), as_floats("document", document)
    if query.ndim not in (2, 3):
        raise ValueError(f"query: expected axes (tokens, size) or (queries, tokens, size), got shape {query.shape}")
    if document.ndim not in (2, 3):
        raise ValueError(
            "document: expected axes (documents, tokens, size), or (all tokens, size) with document_indptr, "
            f"got shape {document.shape}"
        )
    check_type_beside("document", came[1], "query", came[0])
    _check_sizes(query, document)
    queries = query if query.ndim == 3 else query[None]
    query_lengths = _lengths("query_lengths", query_lengths, queries, "query")
    if document.ndim == 2:
        indptr = _indptr(document_indptr, document_lengths, document)
        document_lengths, count = None, len(indptr) - 1
    elif document_indptr is not None:
        raise ValueError(
            "document_indptr: expected None for padded documents (documents, tokens, size), got both; "
            f"write document.reshape(-1, {document.shape[2]}) if they are packed"
        )
    else:
        indptr, count = None, len(document)
        document_lengths = _lengths("document_lengths", document_lengths, document, "document")
    number = threads(num_threads)

    read = {
        "query": query,
        "document": document,
        "query_lengths": query_lengths,
        "document_lengths": document_lengths,
        "document_indptr": indptr,
    }
    shape = (*query.shape[:-2], count)
    out, written = result(out, shape, arithmetic(query.dtype), read)
    index = empty("index", (*shape, query.shape[-2]), np.dtype(np.int64)) if return_index else None
    problem = Problem(
        queries,
        document,
        written if query.ndim == 3 else written[None],
        index if index is None or query.ndim == 3 else index[None],
        query_lengths,
        document_lengths,
        indptr,
        number,
    )
    return problem, out, index


def _check_sizes(query, document):
    size = query.shape[-1]
    if size == 0:
        raise ValueError(f"query: expected tokens of size 1 or more, got 0 (shape {query.shape})")
    if size > LARGEST_HEAD:
        raise ValueError(f"query: expected tokens of size {LARGEST_HEAD} at most, got {size} (shape {query.shape})")
    if document.shape[-1] != size:
        raise ValueError(
            f"document: expected tokens of size {size} like query, got {document.shape[-1]} (shape {document.shape})"
        )


def _lengths(name, argument, array, of):
    """Return checked lengths, one for each entry of the array, or None. A single number is that of all."""
    if argument is None:
        return None
    given = as_array(name, argument)
    if given.ndim == 0:
        given = np.broadcast_to(given, len(array))
    return as_lengths(name, given, *array.shape[:2], of, of)


def _indptr(indptr, lengths, document):
    """Return the checked numbers at which packed documents begin and end."""
    if lengths is not None:
        raise ValueError(
            "document_lengths: expected None for packed documents (all tokens, size), got lengths; write "
            "document_indptr=np.cumsum([0, *lengths])"
        )
    if indptr is None:
        raise ValueError(
            f"document_indptr: expected the numbers at which packed documents (all tokens, size) begin and end, "
            f"got None beside document of shape {document.shape}; a single document is document[None]"
        )
    return as_indptr("document_indptr", indptr, "document", len(document))
