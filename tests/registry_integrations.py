"""Calls of the modules that serve other libraries, for registry.py. Each function has a generator of
arguments, a call that converts them, and a check of its result."""

import types

import cases
import numpy as np
from kappa import assert_accurate
from registry_own import (
    SMALL,
    SMALLER,
    check_attention,
    check_attention_varlen,
    draw_attention_varlen,
    draw_case,
    draw_maxsim,
)

from cattn._modifiers import names_in

# flash_attn

FLASH = names_in("flash_attn")


def draw_flash_attn(seed, types=tuple(cases.TYPES), work=SMALL):
    """Draw arguments in any of the types. FlashAttention is mostly used with float16."""
    case = draw_case(seed, types, FLASH, work=work)
    given = {short: _batch_first(case[name]) for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    # The batches are products of axes, and may differ.
    size = min((len(x) for x in given.values() if len(x) != 1), default=1)
    given = {short: np.broadcast_to(x[:size], (size, *x.shape[1:])) for short, x in given.items()}
    given |= {"causal": "causal" in case, "return_lse": True}
    if "scale" in case:
        given["softmax_scale"] = case["scale"]
    if "softcap" in case:
        given["softcap"] = case["softcap"]
    if "window" in case:
        given["window_size"] = tuple(-1 if side is None or side < 0 else side for side in case["window"])
    if "alibi_slopes" in case:
        given["alibi_slopes"] = np.resize(case["alibi_slopes"], given["q"].shape[2])
    return given


def _batch_first(x):
    """Return (..., heads, length, size) as (batch, length, heads, size)."""
    x = x if x.ndim > 2 else x[None]
    return x.reshape(int(np.prod(x.shape[:-3])), *x.shape[-3:]).swapaxes(1, 2)


def check_flash_attn(arguments, result):
    out, lse = result[:2]
    check_attention(_flash_case(arguments) | {"return_lse": True}, (out, _own_lse(lse).swapaxes(-1, -2)))


def _own_lse(lse):
    """Return an lse with cattn's -inf where a row attends to nothing. FlashAttention has infinity there."""
    return np.where(lse == np.inf, -lse, lse)


def _flash_case(arguments):
    case = {name: arguments[short] for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    case |= {"layout": "blhd", "query_offset": "end", "causal": arguments["causal"]}
    if "softmax_scale" in arguments:
        case["scale"] = arguments["softmax_scale"]
    if "softcap" in arguments:
        case["softcap"] = arguments["softcap"]
    if "window_size" in arguments:
        case["window"] = tuple(None if side < 0 else side for side in arguments["window_size"])
    if "alibi_slopes" in arguments:
        case["alibi_slopes"] = arguments["alibi_slopes"]
    return case


def draw_flash_attn_varlen(seed, types=tuple(cases.TYPES), work=SMALLER):
    case = draw_attention_varlen(2 * seed + 1, types, work)
    given = {short: case[name] for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    for short, name in (("q", "query"), ("k", "key")):
        given["cu_seqlens_" + short] = case[name + "_indptr"].astype(np.int32)
        given["max_seqlen_" + short] = int(np.diff(case[name + "_indptr"]).max(initial=0))
    return given | {"causal": seed % 2 == 1, "return_lse": True}


def check_flash_attn_varlen(arguments, result):
    out, lse = result[:2]
    case = {name: arguments[short] for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    case |= {"query_indptr": arguments["cu_seqlens_q"], "key_indptr": arguments["cu_seqlens_k"], "return_lse": True}
    case |= {"causal": arguments["causal"], "query_offset": "end"}
    if "alibi_slopes" in arguments:
        case["alibi_slopes"] = arguments["alibi_slopes"]
    check_attention_varlen(case, (out, _own_lse(lse).T))


def call_flash_attn(name):
    def call(num_threads=None, **arguments):
        import cattn.flash_attn

        return getattr(cattn.flash_attn, name)(**arguments)

    return call


def draw_flash_attn_cache(seed, types=tuple(cases.TYPES), work=SMALL):
    """Draw a cache in one piece or in pages, with new tokens or without."""
    random = np.random.default_rng([seed, 31])
    case = draw_flash_attn(seed, types, work)
    key, value = case.pop("k"), case.pop("v")
    case["q"] = np.resize(case["q"], (len(key) if len(key) else 1, *case["q"].shape[1:]))
    batch, slots, heads, _ = key.shape
    value = np.resize(value, (batch, slots, heads, value.shape[-1]))
    new = int(random.integers(0, min(slots, 5) + 1)) if seed % 2 else 0
    del case["return_lse"]
    case |= {"k_cache": key, "v_cache": value, "return_softmax_lse": True}
    case["q"] = case["q"][:batch]
    if new or seed % 3:
        case["cache_seqlens"] = random.integers(0, slots - new + 1, batch).astype(np.int32)
    if new:
        case |= {name: random.standard_normal((batch, new, heads, x.shape[-1])).astype(x.dtype)
                 for name, x in (("k", key), ("v", value))}  # fmt: skip
    if random.random() < 0.4 and slots:
        size = int(random.choice([1, 3, 16]))
        pages = -(-slots // size)
        case["block_table"] = random.permutation(batch * pages).reshape(batch, pages).astype(np.int32)
        for name, x in (("k_cache", key), ("v_cache", value)):
            cache = np.zeros((batch * pages, size, *x.shape[2:]), x.dtype)
            case[name] = cache
            for entry, numbers in zip(x, case["block_table"], strict=True):
                for position, page in enumerate(numbers):
                    some = entry[position * size : (position + 1) * size]
                    cache[page, : len(some)] = some
        if "cache_seqlens" not in case:
            case["cache_seqlens"] = np.full(batch, slots)
    elif random.random() < 0.4 and "cache_seqlens" in case:
        case["cache_leftpad"] = np.minimum(case["cache_seqlens"], random.integers(0, 4, batch)).astype(np.int32)
    if "alibi_slopes" in case:
        case["alibi_slopes"] = np.resize(case["alibi_slopes"], case["q"].shape[2])
    return case


def call_flash_attn_cache(num_threads=None, **arguments):
    """Write new tokens into copies of the caches, so that the arguments stay as they are."""
    import cattn.flash_attn

    if "k" in arguments:
        caches = {name: arguments[name] for name in ("k_cache", "v_cache")}
        kept = np.ma.MaskedArray  # which is refused
        arguments |= {name: x if isinstance(x, kept) else np.array(x, order="K") for name, x in caches.items()}
    return cattn.flash_attn.flash_attn_with_kvcache(**arguments)


def check_flash_attn_cache(arguments, result):
    out, lse = result
    case = dict(arguments)
    caches = [case.pop(name) for name in ("k_cache", "v_cache")]
    if "block_table" in case:
        table = case.pop("block_table")
        caches = [x[table].reshape(len(table), -1, *x.shape[2:]) for x in caches]
    before = case.pop("cache_seqlens", np.full(len(caches[0]), caches[0].shape[1]))
    leftpad = case.pop("cache_leftpad", np.zeros(len(before), int))
    new, slopes = [case.pop(name, None) for name in ("k", "v")], case.pop("alibi_slopes", None)
    for n, (start, length) in enumerate(zip(leftpad, before, strict=True)):
        parts = [[x[n, start:length]] + ([] if y is None else [y[n]]) for x, y in zip(caches, new, strict=True)]
        alone = case | {"q": case["q"][n : n + 1], "k": np.concatenate(parts[0])[None]}
        alone |= {"v": np.concatenate(parts[1])[None]} | ({} if slopes is None else {"alibi_slopes": slopes})
        del alone["return_softmax_lse"]
        check_flash_attn(alone, (out[n : n + 1], lse[n : n + 1]))


# PyTorch and transformers


def draw_torch(seed, types=tuple(cases.TYPES), work=SMALL):
    case = draw_case(seed, types, names_in("torch"), work=work)
    given = {name: case[name] for name in ("query", "key", "value")} | {"enable_gqa": True}
    if case["query"].ndim == 2:
        given["enable_gqa"] = False
    if "scale" in case:
        given["scale"] = case["scale"]
    if "mask" in case:
        given["attn_mask"] = case["mask"]
    elif "bias" in case and case["bias"].dtype in (case["query"].dtype, np.float32):
        given["attn_mask"] = case["bias"]
    elif "causal" in case:
        given["is_causal"] = True
    if "attn_mask" in given and given["attn_mask"].ndim < 2:
        given["attn_mask"] = np.atleast_2d(given["attn_mask"])
    return cases.with_int8(given, seed) if seed % 6 == 4 else given


def to_tensor(x):
    """Return a tensor on the memory of an array, or of its copy if no tensor can have such memory."""
    import torch

    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if min(x.strides, default=0) < 0 or any(n % x.itemsize for n in x.strides) or not x.flags.writeable:
        x = x.copy()
    return (
        torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)
    )


def to_array(tensor):
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(cases.TYPES["bfloat16"])
    return tensor.numpy()


def call_torch(num_threads=None, **arguments):
    import cattn.torch

    tensors = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    return to_array(cattn.torch.scaled_dot_product_attention(**tensors))


def check_torch(arguments, out):
    names = ("query", "key", "value", "key_scale", "value_scale", "scale")
    case = {name: arguments[name] for name in names if name in arguments}
    if (mask := arguments.get("attn_mask")) is not None:
        case["mask" if mask.dtype == bool else "bias"] = mask
    if arguments.get("is_causal"):
        case |= {"causal": True, "query_offset": "start"}
    assert_accurate(out, case)


def draw_transformers(seed, types=tuple(cases.TYPES), work=SMALL):
    case = draw_case(seed, types, names_in("transformers").keys() - {"bias"}, work=work)
    given = {name: _batch_first(case[name]).swapaxes(1, 2) for name in ("query", "key", "value")}
    size = min(len(x) for x in given.values())
    given = {name: x[:size] for name, x in given.items()}
    given |= {"is_causal": "causal" in case and given["query"].shape[2] > 1, "scaling": case.get("scale")}
    given |= {"softcap": case.get("softcap"), "s_aux": case.get("sinks")}
    if "mask" in case and not given["is_causal"]:
        rows, keys = given["query"].shape[2], given["key"].shape[2]
        given["attention_mask"] = np.random.default_rng(seed).random((size, 1, rows, keys)) < 0.7
    return given


def call_transformers(num_threads=None, attention_mask=None, **arguments):
    import transformers

    import cattn.transformers

    cattn.transformers.register()
    tensors = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    mask = None if attention_mask is None else to_tensor(attention_mask)
    attention = transformers.AttentionInterface()["cattn"]
    return to_array(attention(types.SimpleNamespace(is_causal=False), attention_mask=mask, **tensors)[0])


def check_transformers(arguments, out):
    case = {name: arguments[name] for name in ("query", "key", "value")}
    names = {"scale": "scaling", "softcap": "softcap", "sinks": "s_aux", "mask": "attention_mask"}
    case |= {name: arguments[other] for name, other in names.items() if arguments.get(other) is not None}
    if arguments["is_causal"]:
        case |= {"causal": True, "query_offset": "start"}
    assert_accurate(out.swapaxes(1, 2), case)


# Dask


def draw_dask(seed, types=tuple(cases.TYPES), work=SMALLER):
    return draw_case(seed, types, cases.taken_by("dask.attention"), work=work)


def call_dask(num_threads=1, **arguments):
    import dask.array as da

    import cattn.dask

    for name in ("query", "key", "value"):
        x = arguments[name]
        chunks = [max(1, -(-n // 2)) if axis == x.ndim - 2 else -1 for axis, n in enumerate(x.shape)]
        arguments[name] = da.from_array(x, chunks)
    return cattn.dask.attention(**arguments, num_threads=num_threads).compute(scheduler="sync")


def draw_torch_maxsim(seed, types=tuple(cases.TYPES), work=SMALL):
    case = draw_maxsim(seed, types, work)
    return {name: x for name, x in case.items() if name != "out"}


def call_torch_maxsim(num_threads=None, **arguments):
    import cattn.torch

    tensors = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    result = cattn.torch.maxsim(**tensors)
    return tuple(map(to_array, result)) if isinstance(result, tuple) else to_array(result)
