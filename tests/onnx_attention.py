"""The ONNX operator Attention (opsets 23, 24 and 25) in terms of cattn, for onnx's evaluator of models:

    onnx.reference.ReferenceEvaluator(model, new_ops=[Attention])

Comments say where the operator's text differs from cattn's own semantics.
"""

import numpy as np
from onnx import TensorProto
from onnx.reference.op_run import OpRun

import cattn

# What the fourth output is, by qk_matmul_output_mode. (In mode 0, onnx's own NumPy code applies the softcap too. The
# operator's text, its function body and ONNX Runtime do not.)
STAGES = ("scores", "softcapped", "biased", "weights")


class Attention(OpRun):
    def _run(self, query, key, value, attn_mask=None, past_key=None, past_value=None, nonpad_kv_seqlen=None, *,
             scale=None, is_causal=0, left_window_size=-1, right_window_size=-1, softcap=0, softmax_precision=None,
             q_num_heads=None, kv_num_heads=None, qk_matmul_output_mode=0):  # fmt: skip
        # Inputs of rank 3 are (batch, length, heads · size). Caches and the fourth output always have rank 4.
        packed = query.ndim == 3
        if packed:
            query, key, value = split(query, q_num_heads), split(key, kv_num_heads), split(value, kv_num_heads)

        # The operator appends to its cache, and query 0 stands at the first new key. A cache that the caller fills
        # is all of key and value: its valid part ends with the queries. Without either, query 0 stands at key 0.
        query_offset = 0 if nonpad_kv_seqlen is None else "end"
        if past_key is not None:
            query_offset = past_key.shape[2]
            key, value = np.concatenate([past_key, key], axis=2), np.concatenate([past_value, value], axis=2)

        # One input is mask or bias, by its type. Keys beyond its end are masked.
        mask = bias = None
        if attn_mask is not None:
            missing = [(0, 0)] * (attn_mask.ndim - 1) + [(0, key.shape[2] - attn_mask.shape[-1])]
            if attn_mask.dtype == np.bool_:
                mask = np.pad(attn_mask, missing, constant_values=False)
            else:
                bias = np.pad(attn_mask.astype(np.float64), missing, constant_values=-np.inf)

        # Values may have a type of their own. cattn computes in float32 at least, the operator in the type of query
        # unless softmax_precision says otherwise: of its values only DOUBLE may ask for more.
        types = {query.dtype, value.dtype}
        if softmax_precision == TensorProto.DOUBLE or np.dtype(np.float64) in types:
            computed = np.float64
        else:
            computed = query.dtype if len(types) == 1 else np.float32
        q, k, v = (x.astype(computed, copy=False) for x in (query, key, value))

        modifiers = {
            "scale": scale,
            "causal": bool(is_causal),
            "window": (left_window_size, right_window_size),
            "query_offset": query_offset,
            "key_lengths": nonpad_kv_seqlen,
            "mask": mask,
            "bias": bias,
            "softcap": softcap or None,
        }
        out = cattn.attention(q, k, v, **modifiers).astype(query.dtype, copy=False)
        scores = cattn.attention_weights(q, k, stage=STAGES[qk_matmul_output_mode], **modifiers).astype(query.dtype)
        if packed:
            out = out.swapaxes(1, 2).reshape(*out.shape[:3:2], -1)
        return out, key, value, scores


def split(x, heads):
    """(batch, length, heads · size) → (batch, heads, length, size)"""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
