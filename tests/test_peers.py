"""Where the semantics of PyTorch's and JAX's attention are ours, their answers are ours, to what rounding excuses.

Neither is among the requirements of the tests: `.ci/run` installs both in an environment of their own, by hand it takes
`pip install torch jax`.
"""

import functools
import importlib.util
import pickle
import sys

import numpy as np
import pytest
from helpers import problem, run_python
from kappa import Yardstick

import cattn


def cases(dtype):
    """The arguments of `attention`, by name."""
    rng = np.random.default_rng(0)
    mask = rng.random((2, 6, 50, 70)) < 0.5
    bias = rng.standard_normal((1, 6, 50, 70))

    def case(queries=50, keys=70, heads=6, kv_heads=6, **modifiers):
        arrays = problem(queries, keys, dtype, heads=heads, key_heads=kv_heads, size=40, value_size=40)
        return arrays | modifiers

    return {
        "plain": case(),
        "scale": case(scale=0.7),
        "causal": case(queries=70, causal=True),
        "causal, top left": case(causal=True, query_offset="start"),
        "mask": case(mask=mask),
        "bias": case(bias=bias.astype(dtype)),
        "bias that masks": case(bias=np.where(mask, bias, -np.inf).astype(dtype)),
        "grouped heads, causal": case(kv_heads=2, queries=70, causal=True),
        "grouped heads, one query": case(kv_heads=2, queries=1, mask=mask[:, :1, :1]),
        "window": case(queries=70, window=(9, 4)),
        "key lengths": case(key_lengths=np.array([70, 33], np.int32)),
    }


def torch_attention(query, key, value, scale=None, causal=False, query_offset=None, mask=None, bias=None):
    import torch

    given = (query, key, value, mask if bias is None else bias)
    out = torch.nn.functional.scaled_dot_product_attention(
        *(None if x is None else torch.from_numpy(x) for x in given), is_causal=causal, scale=scale, enable_gqa=True
    )
    return out.numpy()


def jax_attention(query, key, value, scale=None, causal=False, query_offset=None, mask=None, bias=None, window=None,
                  key_lengths=None):  # fmt: skip
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # Compiling is what takes the time.
    function = functools.partial(jax.nn.dot_product_attention, scale=scale, is_causal=causal, local_window_size=window)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    out = jax.jit(function)(query, key, value, bias=bias, mask=mask, key_value_seq_lengths=key_lengths)
    return np.asarray(out).swapaxes(1, 2)


PEERS = {"torch": torch_attention, "jax": jax_attention}
COMPARED = [
    (peer, dtype, name)
    for peer, dtype in [("torch", "float32"), ("torch", "float64"), ("jax", "float32")]  # JAX's softmax is in float32.
    for name in cases(dtype)
    if peer == "jax" or name not in ("window", "key lengths")  # PyTorch has no such arguments.
]


@functools.cache
def answers(peer):
    """Asked in a process of its own: a peer's threads, and what it does at a fork, would disturb other tests."""
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"no {peer} here")
    done = run_python(__file__, peer, encoding=None)
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)


@pytest.mark.parametrize("peer, dtype, name", COMPARED)
def test_same_answer(peer, dtype, name):
    case = cases(dtype)[name]
    theirs, ours = answers(peer)[dtype, name], cattn.attention(**case)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    yardstick = Yardstick(case)
    assert yardstick.kappa(ours) <= yardstick.bound
    assert np.max(np.abs(ours - theirs) / yardstick.unit) <= 2 * yardstick.bound


if __name__ == "__main__":
    asked = [(dtype, name) for peer, dtype, name in COMPARED if peer == sys.argv[1]]
    found = {(dtype, name): PEERS[sys.argv[1]](**cases(dtype)[name]) for dtype, name in asked}
    sys.stdout.buffer.write(pickle.dumps(found))
