"""Late interaction in float64."""

import itertools

import numpy as np

from ._forward import arithmetic_type


def maxsim(
    query, document, *, document_lengths=None, document_indptr=None, query_lengths=None, return_index=False, dtype=None
):
    r"""Compute late interaction scores, :math:`\sum_i \max_j q_i \cdot d_j`.

    Parameters
    ----------
    query : array_like, (Lq, D) or (Q, Lq, D)
        The token embeddings of one query, or of several.
    document : array_like, (N, Ld, D) or (all tokens, D)
        The token embeddings of N documents, padded or packed.
    document_lengths : int array, (N,), optional
        The number of tokens of each padded document.
    document_indptr : int array, (N + 1,), optional
        Packed document n owns rows ``document_indptr[n]:document_indptr[n + 1]``.
    query_lengths : int array, (Q,), optional
        The number of tokens of each query.
    return_index : bool
        Also return the first token of a document that has the largest product, for each token of a query.
    dtype : dtype, optional
        The type to compute in and to return. The default is float64, or longdouble if an input has that type.

    Returns
    -------
    scores : ndarray, (N,) or (Q, N)
        An empty document scores -inf, and an empty query 0.
    index : ndarray of int64, (N, Lq) or (Q, N, Lq)
        It is returned only with `return_index`. It is -1 for empty documents, and past the length of a query.

    See Also
    --------
    attention : Compute a weighted sum in the place of the maximum.
    maxsim_error_bound : Compute how far `cattn.maxsim` may be from this.

    Notes
    -----
    This is the late interaction of ColBERT [1]_. A score of `cattn.maxsim` differs from this one by at most the
    `maxsim_error_bound`. Where products come that close, another token may win than here.

    References
    ----------
    .. [1] Khattab, Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over
       BERT", 2020, section 3.2. https://arxiv.org/abs/2004.12832

    Examples
    --------
    >>> import numpy as np
    >>> import cattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> cattn.reference.maxsim(query, [[[0.5, 0.0], [0.0, 0.25]]])
    array([0.75])
    """
    dtype = arithmetic_type(dtype, query, document)
    with np.errstate(all="ignore"):
        query, document = np.asarray(query).astype(dtype), np.asarray(document).astype(dtype)
        queries = query if query.ndim == 3 else query[None]
        if document_indptr is not None:
            documents = [document[start:stop] for start, stop in itertools.pairwise(document_indptr)]
        else:
            lengths = np.broadcast_to(
                document.shape[1] if document_lengths is None else document_lengths, len(document)
            )
            documents = [tokens[:length] for tokens, length in zip(document, lengths, strict=True)]
        scores = np.zeros((len(queries), len(documents)), dtype)
        index = np.full((*scores.shape, queries.shape[1]), -1)
        lengths = np.broadcast_to(queries.shape[1] if query_lengths is None else query_lengths, len(queries))
        for q, length in enumerate(lengths):
            for n, tokens in enumerate(documents):
                products = queries[q, :length] @ tokens.T
                scores[q, n] = products.max(axis=1, initial=-np.inf).sum()
                if len(tokens):
                    index[q, n, :length] = products.argmax(axis=1)
    if query.ndim == 2:
        scores, index = scores[0], index[0]
    return (scores, index) if return_index else scores
