"""Wrong uses, for type checkers: each statement after the imports is one, and fails when it runs."""

# ruff: noqa: B018

import numpy as np

import cattn

x = np.ones((2, 3, 4), np.float32)
weight = np.ones((4, 4), np.float32)

# Names and numbers of arguments.
cattn.attention(x, x, x, casual=True)
cattn.attention(x, x)
cattn.attention(x, x, x, 0.5)
cattn.attention(x, x, x, is_causal=True)
cattn.attention_weights(x, x, return_lse=True)
cattn.attention_varlen(x, x, x, [0, 2], [0, 2], mask=x)
cattn.self_attention(x, weight, weight, weight, layout="bhld")
cattn.trace(x[0], weight, weight, weight, num_threads=1)
cattn.plan(x, x, x, stage="scores")
cattn.atention(x, x, x)

# Arrays.
cattn.attention(None, x, x)
cattn.attention("query", x, x)
cattn.attention(x, [["a", "b"]], x)
cattn.attention(x, 3.0, x)
cattn.attention(x, x, {1.0, 2.0})
cattn.attention(x, x, x, out=[[0.0]])
cattn.merge_attention(3, [x])
cattn.merge_attention([3], [x])
cattn.self_attention(x, weight, weight, None)
cattn.unpad(x, 0.5)
cattn.unpad("text", [1])
cattn.pad(x, [0, 1], "end")
cattn.pad(x)

# Modifiers.
cattn.attention(x, x, x, scale="0.5")
cattn.attention(x, x, x, scale=x)
cattn.attention(x, x, x, softcap=1j)
cattn.attention(x, x, x, causal=1)
cattn.attention(x, x, x, causal="yes")
cattn.attention(x, x, x, window=5)
cattn.attention(x, x, x, window=(1, 2, 3))
cattn.attention(x, x, x, window=(0.5, 1))
cattn.attention(x, x, x, query_offset="bottom-right")
cattn.attention(x, x, x, key_range=(0, 1, 2))
cattn.attention(x, x, x, key_range=5)
cattn.attention(x, x, x, key_lengths=np.float32(2))
cattn.attention(x, x, x, key_lengths="2")
cattn.attention(x, x, x, mask="causal")
cattn.attention(x, x, x, layout="lbhd")
cattn.attention(x, x, x, return_lse=None)
cattn.attention(x, x, x, num_threads=1.5)
cattn.attention_weights(x, x, stage="softmax")
cattn.attention_varlen(x, x, x, None, [0, 2])
cattn.set_num_threads("2")
cattn.set_num_threads()
cattn.num_threads(None)
cattn.trace(x[0], weight, weight, weight, tokens=3)

# A cache.
cattn.KVCache(1, 2)
cattn.KVCache(1, 2, 4, window=(3, 0))
cattn.KVCache(1, 2, 4, size=4)
cattn.KVCache(2, 1, 4).append(x)
cattn.KVCache(2, 1, 4).append(x[:, None], x[:, None], "all")
cattn.KVCache(2, 1, 4).truncate(0.5)
cattn.KVCache(2, 1, 4).capacity

# Results.
cattn.attention(x, x, x, return_lse=True).shape
cattn.attention(x, x, x).lse
cattn.trace(x[0], weight, weight, weight).output
cattn.plan(x, x, x).threads
