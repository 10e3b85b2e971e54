"""Greedy decoding beside a long prompt whose keys and values lie in files, in chunks that worker processes share.

    pip install 'cattn[dask]' && python examples/dask_decoder.py

A small decoder with random weights reads a prompt and writes its keys and values, chunk by chunk, to a folder. Two
worker processes then attend to them for each new token: each opens the chunks that it computes with, and (out, lse) of
a chunk is all that travels. The same tokens come out as with everything in one process, which is checked at the end.
"""

import argparse
import tempfile

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import cattn
import cattn.dask

LAYERS, HEADS, KV_HEADS, SIZE, VOCABULARY = 2, 8, 2, 64, 1000
WIDTH = HEADS * SIZE


def random_weights(rng):
    def matrix(rows, columns, factor=1):
        return (factor * rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

    layers = [
        {
            "q": matrix(WIDTH, HEADS * SIZE, factor=2),  # or each token would attend to all of them alike
            "k": matrix(WIDTH, KV_HEADS * SIZE),
            "v": matrix(WIDTH, KV_HEADS * SIZE),
            "o": matrix(HEADS * SIZE, WIDTH, factor=8),
        }
        for _ in range(LAYERS)
    ]
    return matrix(VOCABULARY, WIDTH), layers, matrix(WIDTH, VOCABULARY)


def normalised(x):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True))


def heads(x, weights):
    """(length, width) to (heads, length, head size)."""
    return (x @ weights).reshape(len(x), -1, SIZE).swapaxes(0, 1)


def decode(tokens, model, attend):
    """The next token. `attend(layer, query, key, value)` knows the keys and values of all tokens before these."""
    embeddings, layers, w_vocabulary = model
    x = embeddings[tokens]
    for number, weights in enumerate(layers):
        query, key, value = (heads(normalised(x), weights[name]) for name in "qkv")
        context = attend(number, query, key, value)
        x = x + context.swapaxes(0, 1).reshape(len(x), WIDTH) @ weights["o"]
    return int(np.argmax(normalised(x[-1]) @ w_vocabulary))


def generate(token, steps, model, attend):
    tokens = [token]
    for _ in range(steps):
        tokens.append(decode(tokens[-1:], model, attend))
    return tokens


class MemoryCache:
    """Keys and values of each layer in arrays of this process."""

    def __init__(self):
        self.layers = [None] * LAYERS

    def attend(self, layer, *new):
        query, *new = new
        old = self.layers[layer]
        self.layers[layer] = (
            new if old is None else [np.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]
        )
        return cattn.attention(query, *self.layers[layer], causal=True, query_offset="end")


class ShardedCache:
    """Keys and values of the prompt in files, those of new tokens in one more chunk."""

    def __init__(self, folder, prompt, chunk):
        self.prompt, self.new = [], [None] * LAYERS
        for number, arrays in enumerate(prompt):
            folders = [f"{folder}/{number}-{name}" for name in ("keys", "values")]
            for path, array in zip(folders, arrays, strict=True):
                da.to_npy_stack(path, da.from_array(array, (-1, chunk, -1)), axis=1)
            self.prompt.append([da.from_npy_stack(path) for path in folders])

    def attend(self, layer, query, *new):
        old = self.new[layer]
        self.new[layer] = new if old is None else [np.concatenate(pair, axis=1) for pair in zip(old, new, strict=True)]
        key, value = (
            da.concatenate([stored, da.from_array(tail, -1)], axis=1)
            for stored, tail in zip(self.prompt[layer], self.new[layer], strict=True)
        )
        return cattn.dask.attention(query, key, value, causal=True, query_offset="end").compute()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompt", type=int, default=8192, help="tokens of the prompt")
    parser.add_argument("--chunk", type=int, default=1024, help="keys of a chunk")
    parser.add_argument("--steps", type=int, default=8, help="tokens to decode")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    model = random_weights(rng)
    memory = MemoryCache()
    first = decode(rng.integers(0, VOCABULARY, options.prompt), model, memory.attend)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        sharded = ShardedCache(folder, memory.layers, options.chunk)
        found = generate(first, options.steps, model, sharded.attend)
    expected = generate(first, options.steps, model, memory.attend)
    print(f"after {options.prompt} tokens in chunks of {options.chunk}, over two worker processes:", *found)
    print("the same in one process:", "yes" if found == expected else f"no: {expected}")


if __name__ == "__main__":
    main()
