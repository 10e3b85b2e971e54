"""Every public function of cattn that computes something, with a generator of its arguments and with its reference.

`FUNCTIONS` maps a name, as users write it, to a `Function`. The suites about memory, threads, processes, signals and
hostile arguments go over it, so that a new function is tested by all of them once it is written down here. Arguments
are NumPy arrays and plain Python objects, also where the function takes tensors, C structs or dask arrays:
`Function.call` converts them.
"""

import dataclasses
import importlib.util
import math
import types
from collections.abc import Callable
from typing import Any

import cases
import numpy as np
from helpers import bits, work
from kappa import assert_accurate

import cattn
from cattn import reference
from cattn._accuracy import allowed

OUTPUTS = ("out", "lse")  # the arguments that a call writes to
INTEGERS = {"key_lengths", "query_lengths", "lengths", "indptr", "query_indptr", "key_indptr", "key_range"}
# Public names that compute nothing.
SETTINGS = {"get_include", "get_num_threads", "num_threads", "set_num_threads", "show_config"}
TYPES_OF_RESULTS = {"AttentionTrace", "Plan"}


@dataclasses.dataclass(frozen=True)
class Function:
    """A public function.

    name : what a user writes.
    arguments : takes a seed, and optionally the types to draw from and `work`, about how many multiplications the call
        takes at least and at most, and returns arguments by name.
    call : takes the arguments by name and returns NumPy arrays, or a tuple of them.
    check : takes the arguments and the result, and fails unless the result is right.
    needs : the module without which the function cannot be imported.
    """

    name: str
    arguments: Callable[..., dict[str, Any]]
    call: Callable[..., Any]
    check: Callable[[dict[str, Any], Any], None]
    needs: str | None = None

    @property
    def is_there(self):
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def arrays_of(arguments):
    """The arrays among the arguments as ((name, or name and index), array), those in tuples and lists included."""
    for name, given in arguments.items():
        if isinstance(given, np.ndarray):
            yield (name,), given
        elif isinstance(given, (tuple, list)):
            yield from (((name, n), x) for n, x in enumerate(given) if isinstance(x, np.ndarray))


def with_arrays(arguments, arrays):
    """The arguments with other arrays in some places, which are named as `arrays_of` names them."""
    result = dict(arguments)
    for (name, *index), array in arrays.items():
        if index:
            result[name] = [*result[name]]
            result[name][index[0]] = array
            if isinstance(arguments[name], tuple):
                result[name] = tuple(result[name])
        else:
            result[name] = array
    return result


def copied(arguments):
    """The same arguments in memory of their own, as plain arrays."""
    return with_arrays(arguments, {place: np.array(x, order="C", subok=False) for place, x in arrays_of(arguments)})


def results_of(result):
    """A result as a list of arrays. NaNs and zeros of either sign can then be compared by their `bits`."""
    if isinstance(result, cattn.AttentionTrace):
        result = tuple(x for x in vars(result).values() if isinstance(x, np.ndarray))
    return [np.asarray(x) for x in (result if isinstance(result, (tuple, list)) else (result,))]


def fingerprint(result):
    """What two results have in common if and only if they have the same types, shapes and bits."""
    if isinstance(result, cattn.Plan):
        return result.strategy  # the rest may depend on how arrays lie in memory
    return [(x.dtype.name, x.shape, bits(x).tobytes()) for x in results_of(result)]


def large(name):
    """More arguments for some functions: more work than one thread is given alone. A list, which may be empty."""
    found = []
    for dtype in (cases.TYPES[x] for x in ("float32", "bfloat16")):
        arrays = dict(zip(("query", "key", "value"), work(dtype=dtype), strict=True))
        if name == "attention_varlen":
            arrays = {name: np.ascontiguousarray(x.swapaxes(0, 1)) for name, x in arrays.items()}
            arrays |= {"query_indptr": np.array([0, 100, 150]), "key_indptr": np.array([0, 100, 150])}
        elif name == "attention_weights":
            del arrays["value"]
        elif name == "cattn.h":
            from c_interface_calls import Call

            call = Call(**arrays, alibi_slopes=np.ones(3), causal=True, key_lengths=np.array(150), query_offset="end")
            arrays = call.arrays | call.numbers
        elif name != "attention":
            return []
        found.append(arrays | {"num_threads": 3})
    return found


# NumPy


SMALL, SMALLER = (0, 50_000), (0, 20_000)  # multiplications


def _draw(seed, types, modifiers=cases.MODIFIERS, work=SMALL):
    least, most = work
    return cases.case(seed, modifiers=modifiers, types=types, work=most, least_work=least)


def _attention(seed, types=tuple(cases.TYPES), work=SMALL):
    case = _draw(seed, types, work=work)
    if seed % 8 == 7:
        case["value"] = case["value"][..., :0]
    if seed % 2:
        case["return_lse"] = True
    if seed % 3 == 0:
        case["out"] = _new_out(case)
    return case


def _new_out(case):
    query, value = case["query"], case["value"]
    batch = np.broadcast_shapes(*(case[name].shape[:-3] for name in ("query", "key", "value")))
    return np.full((*batch, *query.shape[-3:-1], value.shape[-1]), 7, query.dtype.newbyteorder("="))


def _check_attention(arguments, result):
    out, lse = result if arguments.get("return_lse") else (result, None)
    if arguments.get("out") is not None:
        assert out is arguments["out"]
    case = {name: x for name, x in arguments.items() if name not in ("out", "return_lse", "num_threads")}
    assert_accurate(out, case, lse)


def _attention_weights(seed, types=tuple(cases.TYPES), work=SMALLER):
    case = _draw(seed, types, work=work)
    query, batch = case["query"], case.pop("value").shape[:-3]
    if query.ndim > 2:  # the modifiers are made for the batch of all three
        batch = np.broadcast_shapes(query.shape[:-3], case["key"].shape[:-3], batch)
        case["query"] = np.broadcast_to(query, (*batch, *query.shape[-3:]))
    return case | {"stage": ("weights", "scores", "softcapped", "biased")[seed % 4]}


def _check_attention_weights(arguments, weights):
    arguments = {name: x for name, x in arguments.items() if name != "num_threads"}
    query, key = arguments["query"], arguments["key"]
    arithmetic = np.dtype(np.float64 if query.dtype.newbyteorder("=") == np.float64 else np.float32)
    assert weights.dtype == arithmetic
    wider = np.longdouble if arithmetic == np.float64 else np.float64
    expected = reference.attention_weights(**arguments, dtype=wider)
    plain = reference.attention_weights(**arguments, dtype=arithmetic)
    assert weights.shape == expected.shape
    # What the terms of a score add up to without their signs, which is what rounding is measured by.
    magnitudes = {"bias": np.abs, "alibi_slopes": lambda x: -np.abs(x), "scale": abs}
    sums = {"query": np.abs(query).astype(wider), "key": np.abs(key).astype(wider), "stage": "biased"}
    added = ("bias", "alibi_slopes") if arguments["stage"] in ("biased", "weights") else ()
    for name in ("scale", "layout", "query_offset", *added):
        if (given := arguments.get(name)) is not None:
            sums[name] = magnitudes.get(name, lambda x: x)(given)
    with np.errstate(all="ignore"):
        unit = np.finfo(arithmetic).eps * (1 + reference.attention_weights(**sums, dtype=wider))
        if arguments["stage"] == "weights":
            tiny = np.finfo(arithmetic).smallest_normal
            counts = np.where((expected >= tiny) & np.isfinite(unit), unit, 0)
            unit = counts.max(axis=-1, keepdims=True, initial=0) * expected + tiny
            if arguments.get("sinks") is not None:
                unit = unit * (
                    1 + np.abs(np.nan_to_num(np.asarray(arguments["sinks"], wider), neginf=0))[:, None, None]
                )
        equal = weights == expected
        errors = [np.where(equal | (x == expected), 0, np.abs(x - expected) / unit) for x in (weights, plain)]
    found, of_numpy = (np.inf if np.isnan(x).any() else x.max(initial=0) for x in errors)
    assert found <= allowed(of_numpy), f"{found:.3g} exceeds {allowed(of_numpy):.3g}"


PACKED = cases.MODIFIERS - {"key_range", "query_lengths", "key_lengths", "mask", "bias", "layout"}


def _attention_varlen(seed, types=tuple(cases.TYPES), work=SMALLER):
    random = np.random.default_rng([seed, 5])
    sequences = int(random.integers(0, 5))
    case = _draw(seed, types, PACKED - {"query_offset"}, work=work)
    query, key, value = (_packed(case[name]) for name in ("query", "key", "value"))
    if len(key) != len(value):
        value = np.resize(value, (len(key), *value.shape[1:]))
    case |= {"query": query, "key": key, "value": value}
    for name, x in (("query_indptr", query), ("key_indptr", key)):
        edges = np.sort(random.integers(0, len(x) + 1, max(sequences - 1, 0)))
        case[name] = np.array([0, *edges, len(x)], random.choice([np.int32, np.int64]))
    if "alibi_slopes" in case:
        case["alibi_slopes"] = np.resize(case["alibi_slopes"], query.shape[1])
    if {"causal", "window", "alibi_slopes"} & case.keys():
        case["query_offset"] = ("end", "start", int(random.integers(-3, 4)))[int(random.integers(3))]
    return case | ({"return_lse": True} if seed % 2 else {})


def _packed(x):
    """(..., heads, length, size) as (tokens, heads, size)."""
    x = x if x.ndim > 2 else x[None]
    return (
        np.concatenate(x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2), axis=0)
        if x.size
        else x.reshape(0, x.shape[-3], x.shape[-1])
    )


def _check_attention_varlen(arguments, result):
    out, lse = result if arguments.get("return_lse") else (result, None)
    edges = {name: arguments[name + "_indptr"] for name in ("query", "key")}
    others = ("query", "key", "value", "query_indptr", "key_indptr", "return_lse", "out", "num_threads")
    modifiers = {name: x for name, x in arguments.items() if name not in others}
    for n in range(len(edges["query"]) - 1):
        rows, keys = (slice(int(x[n]), int(x[n + 1])) for x in edges.values())
        case = {"query": arguments["query"][rows], "key": arguments["key"][keys], "value": arguments["value"][keys]}
        case |= modifiers | {"layout": "blhd"}
        for name, shared in (("query_offset", 0), ("alibi_slopes", 1)):  # or one for each sequence
            if isinstance(given := modifiers.get(name), np.ndarray) and given.ndim > shared:
                case[name] = given[n % len(given)]
        assert_accurate(out[rows], case, None if lse is None else lse[rows])


def _merge_attention(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    random = np.random.default_rng([seed, 6])
    dtype = cases.TYPES[str(random.choice(list(types)))]
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    shape = tuple(int(random.integers(0, 6)) for _ in range(random.integers(1, 4)))
    parts = int(random.integers(1, 5))
    outputs = [random.standard_normal((*shape, 1 + seed % 7)).astype(dtype) for _ in range(parts)]
    lses = [np.asarray(3 * random.standard_normal(shape)).astype(arithmetic) for _ in range(parts)]
    for lse in lses:
        lse[random.random(shape) < 0.2] = -np.inf
    for output, lse in zip(outputs, lses, strict=True):
        output[lse == -np.inf] = 0
    return {"outputs": outputs, "lses": lses}


def _check_merge_attention(arguments, result):
    outputs, lses = (np.stack([np.asarray(x, np.float64) for x in arguments[name]]) for name in ("outputs", "lses"))
    out, lse = result
    stored = arguments["outputs"][0].dtype
    assert out.dtype == stored and lse.dtype == arguments["lses"][0].dtype
    largest = lses.max(axis=0)
    shares = np.exp(lses - np.where(largest == -np.inf, 0, largest))
    total = shares.sum(axis=0)
    with np.errstate(divide="ignore"):
        expected = largest + np.log(total)
    np.testing.assert_allclose(lse, expected, rtol=8 * np.finfo(lse.dtype).eps, atol=8 * np.finfo(lse.dtype).eps)
    shares = shares / np.where(total == 0, 1, total)
    expected = (shares[..., None] * outputs).sum(axis=0)
    unit = (shares[..., None] * np.abs(outputs)).sum(axis=0)
    eps = max(float(cases.ml_dtypes.finfo(stored).eps), 8 * np.finfo(lse.dtype).eps)
    assert np.all(np.abs(out.astype(np.float64) - expected) <= eps * unit)


WEIGHTS = ("w_query", "w_key", "w_value", "w_output")


def _self_attention(seed, types=("float32", "float64"), work=SMALL):
    random = np.random.default_rng([seed, 7])
    types = [name for name in types if name in ("float32", "float64")] or ["float32"]
    dtype = cases.TYPES[str(random.choice(types))]
    kv_heads, group = int(random.integers(1, 3)), int(random.integers(1, 3))
    heads, size, width = kv_heads * group, int(random.choice([1, 3, 8, 17])), int(random.integers(1, 24))
    length, batch = (
        int(random.integers(0, 40 * _times_as_long(work))),
        tuple(random.integers(0, 3, random.integers(0, 3)).tolist()),
    )

    def normal(*shape):
        return (random.standard_normal(shape) / np.sqrt(max(1, shape[-2] if len(shape) > 1 else 1))).astype(dtype)

    case = {"x": random.standard_normal((*batch, length, width)).astype(dtype)}
    case |= {"w_query": normal(width, heads * size), "w_key": normal(width, kv_heads * size)}
    case |= {"w_value": normal(width, kv_heads * size), "num_heads": heads, "num_kv_heads": kv_heads}
    if random.random() < 0.5:
        case["w_output"] = normal(heads * size, 5)
    for name in WEIGHTS:
        if name in case and random.random() < 0.3:
            case["b" + name[1:]] = normal(case[name].shape[-1])
    if random.random() < 0.5:
        case["causal"] = True
    if random.random() < 0.3:
        case["mask"] = random.random((length, length)) < 0.8
    return case


def _check_self_attention(arguments, result):
    expected, unit = _project_and_attend(arguments)
    assert result.dtype == arguments["x"].dtype.newbyteorder("=") and result.shape == expected.shape
    eps = np.finfo(result.dtype).eps
    assert np.all(np.abs(result - expected) <= 64 * eps * unit), np.max(np.abs(result - expected) / unit) / eps


def _project_and_attend(arguments):
    """The output in float64, and the largest that any of its terms could make it."""
    given = {name: np.asarray(x, np.float64) for name, x in arguments.items() if isinstance(x, np.ndarray)}
    heads, kv_heads = arguments.get("num_heads", 1), arguments.get("num_kv_heads") or arguments.get("num_heads", 1)

    def projected(name, count):
        y = given["x"] @ given["w_" + name] + given.get("b_" + name, 0)
        return y.reshape(*y.shape[:-1], count, y.shape[-1] // count)

    query, key, value = projected("query", heads), projected("key", kv_heads), projected("value", kv_heads)
    modifiers = {name: arguments[name] for name in ("causal", "mask") if name in arguments}
    out = reference.attention(query, key, value, layout="blhd", **modifiers)
    out = out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1])
    logits = np.abs(query).max(initial=0) * np.abs(key).max(initial=0) * np.sqrt(query.shape[-1])
    unit = (1 + logits) * (1 + np.abs(value).max(initial=0)) * (1 + np.abs(given["x"]).max(initial=0))
    if "w_output" in given:
        unit = unit * (1 + np.abs(given["w_output"]).sum(axis=0).max(initial=0))
        out = out @ given["w_output"] + given.get("b_output", 0)
    return out, unit


def _times_as_long(work):
    """Return how many times the default length a sequence may have, where `work` grows with its square."""
    return max(1, math.isqrt(work[1] // SMALL[1]))


def _trace(seed, types=("float32", "float64"), work=SMALL):
    case = _self_attention(seed, types, work)
    x = case["x"].reshape(-1, case["x"].shape[-1])[: 20 * _times_as_long(work)]
    case = {"x": x, **{name: case[name] for name in WEIGHTS[:3]}}
    size = case["w_key"].shape[-1]
    case["w_query"] = np.resize(case["w_query"], (x.shape[-1], size))
    return case | ({"causal": True} if seed % 2 else {})


def _check_trace(arguments, trace):
    expected, unit = _project_and_attend(arguments)
    assert np.all(np.abs(trace.context - expected) <= 64 * np.finfo(trace.context.dtype).eps * unit)
    assert str(trace)


def _unpad(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    random = np.random.default_rng([seed, 8])
    shape = tuple(random.integers(0, 6, random.integers(2, 5)).tolist())
    x = (10 * random.standard_normal(shape)).astype(cases.TYPES[str(random.choice(list(types)))])
    return {"x": x, "lengths": random.integers(0, shape[1] + 1, shape[0])}


def _check_unpad(arguments, result):
    x, lengths = arguments["x"], arguments["lengths"]
    packed, indptr = result
    expected = [entry[:length] for entry, length in zip(x, lengths, strict=True)]
    assert np.array_equal(indptr, np.cumsum([0, *lengths]))
    assert packed.dtype == x.dtype and packed.tobytes() == b"".join(part.tobytes() for part in expected)


def _pad(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    packed, indptr = cattn.unpad(**_unpad(seed, types))
    return {"packed": packed, "indptr": indptr} | ({"length": 9} if seed % 2 else {})


def _check_pad(arguments, result):
    packed, indptr = arguments["packed"], arguments["indptr"]
    lengths = np.diff(indptr)
    assert result.shape == (len(lengths), arguments.get("length") or lengths.max(initial=0), *packed.shape[1:])
    for entry, start, length in zip(result, indptr, lengths, strict=False):
        assert np.array_equal(entry[:length], packed[start : start + length]) and not np.any(entry[length:])


def _check_plan(arguments, plan):
    assert plan == cattn.plan(**arguments)


# C


def _c_attention(seed, types=tuple(cases.TYPES), work=SMALL):
    from c_interface_calls import Call

    call = Call(**_draw(seed, types, work=work), with_lse=seed % 2 == 1)
    return call.arrays | call.numbers | {"num_threads": 1 + seed % 2}


def _call_c(**arguments):
    from c_interface_calls import ARRAYS, DONE, capsule, described

    fields = {name: x for name, x in arguments.items() if name not in ARRAYS}
    alive = []
    for name in ARRAYS:
        if name in arguments:
            fields[name], memory = described(arguments[name])
            alive.append(memory)
    status, message = capsule(fields)
    if status == 2:
        raise MemoryError(message)
    if status != DONE:
        raise ValueError(message)
    return tuple(arguments[name] for name in OUTPUTS if name in arguments)


def _check_c(arguments, result):
    from c_interface_calls import CAUSAL, HAS_SCALE, HAS_WINDOW, OFFSET_END, OFFSET_START

    flags = arguments["flags"]
    same = (
        "query",
        "key",
        "value",
        "query_lengths",
        "key_lengths",
        "query_offset",
        "mask",
        "bias",
        "alibi_slopes",
        "sinks",
    )
    case = {name: arguments[name] for name in same if name in arguments}
    if flags & CAUSAL:
        case["causal"] = True
    if flags & HAS_SCALE:
        case["scale"] = arguments["scale"]
    if flags & HAS_WINDOW:
        sides = arguments["window_left"], arguments["window_right"]
        case["window"] = tuple(None if side < 0 else side for side in sides)
    for flag, word in ((OFFSET_START, "start"), (OFFSET_END, "end")):
        if flags & flag:
            case["query_offset"] = word
    if arguments["softcap"]:
        case["softcap"] = arguments["softcap"]
    if "key_start" in arguments or "key_stop" in arguments:
        case["key_range"] = arguments.get("key_start"), arguments.get("key_stop")
    assert_accurate(result[0], case, *result[1:])


# flash_attn's names

FLASH = frozenset({"scale", "causal", "window", "softcap"})


def _flash_attn(seed, types=tuple(cases.TYPES), work=SMALL):
    """In float16, the type in which FlashAttention is used most, and the others."""
    case = _draw(seed, types, FLASH, work=work)
    given = {short: _batch_first(case[name]) for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    size = min((len(x) for x in given.values() if len(x) != 1), default=1)  # of products of axes that may differ
    given = {short: np.broadcast_to(x[:size], (size, *x.shape[1:])) for short, x in given.items()}
    given |= {"causal": "causal" in case, "return_lse": True}
    if "scale" in case:
        given["softmax_scale"] = case["scale"]
    if "softcap" in case:
        given["softcap"] = case["softcap"]
    if "window" in case:
        given["window_size"] = tuple(-1 if side is None or side < 0 else side for side in case["window"])
    return given


def _batch_first(x):
    """(..., heads, length, size) as (batch, length, heads, size)."""
    x = x if x.ndim > 2 else x[None]
    return x.reshape(int(np.prod(x.shape[:-3])), *x.shape[-3:]).swapaxes(1, 2)


def _check_flash_attn(arguments, result):
    out, lse = result[:2]
    _check_attention(_flash_case(arguments) | {"return_lse": True}, (out, _own_lse(lse).swapaxes(-1, -2)))


def _own_lse(lse):
    """FlashAttention has infinity where a row attends to nothing."""
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
    return case


def _flash_attn_varlen(seed, types=tuple(cases.TYPES), work=SMALLER):
    case = _attention_varlen(2 * seed + 1, types, work)
    given = {short: case[name] for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    for short, name in (("q", "query"), ("k", "key")):
        given["cu_seqlens_" + short] = case[name + "_indptr"].astype(np.int32)
        given["max_seqlen_" + short] = int(np.diff(case[name + "_indptr"]).max(initial=0))
    return given | {"causal": seed % 2 == 1, "return_lse": True}


def _check_flash_attn_varlen(arguments, result):
    out, lse = result[:2]
    case = {name: arguments[short] for short, name in zip("qkv", ("query", "key", "value"), strict=True)}
    case |= {"query_indptr": arguments["cu_seqlens_q"], "key_indptr": arguments["cu_seqlens_k"], "return_lse": True}
    case |= {"causal": arguments["causal"], "query_offset": "end"}
    _check_attention_varlen(case, (out, _own_lse(lse).T))


def _call_flash_attn(name):
    def call(num_threads=None, **arguments):
        import cattn.flash_attn

        return getattr(cattn.flash_attn, name)(**arguments)

    return call


# PyTorch and transformers


def _torch(seed, types=tuple(cases.TYPES), work=SMALL):
    case = _draw(seed, types, frozenset({"scale", "causal", "mask", "bias"}), work=work)
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
    return given


def to_tensor(x):
    """A tensor on an array's memory, or on that of a copy where tensors cannot have such memory."""
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


def _call_torch(num_threads=None, **arguments):
    import cattn.torch

    tensors = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    return to_array(cattn.torch.scaled_dot_product_attention(**tensors))


def _check_torch(arguments, out):
    case = {name: arguments[name] for name in ("query", "key", "value", "scale") if name in arguments}
    if (mask := arguments.get("attn_mask")) is not None:
        case["mask" if mask.dtype == bool else "bias"] = mask
    if arguments.get("is_causal"):
        case |= {"causal": True, "query_offset": "start"}
    assert_accurate(out, case)


def _transformers(seed, types=tuple(cases.TYPES), work=SMALL):
    case = _draw(seed, types, frozenset({"scale", "causal", "mask", "softcap", "sinks"}), work=work)
    given = {name: _batch_first(case[name]).swapaxes(1, 2) for name in ("query", "key", "value")}
    size = min(len(x) for x in given.values())
    given = {name: x[:size] for name, x in given.items()}
    given |= {"is_causal": "causal" in case and given["query"].shape[2] > 1, "scaling": case.get("scale")}
    given |= {"softcap": case.get("softcap"), "s_aux": case.get("sinks")}
    if "mask" in case and not given["is_causal"]:
        rows, keys = given["query"].shape[2], given["key"].shape[2]
        given["attention_mask"] = np.random.default_rng(seed).random((size, 1, rows, keys)) < 0.7
    return given


def _call_transformers(num_threads=None, attention_mask=None, **arguments):
    import transformers

    import cattn.transformers

    cattn.transformers.register()
    tensors = {name: to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    mask = None if attention_mask is None else to_tensor(attention_mask)
    attention = transformers.AttentionInterface()["cattn"]
    return to_array(attention(types.SimpleNamespace(is_causal=False), attention_mask=mask, **tensors)[0])


def _check_transformers(arguments, out):
    case = {name: arguments[name] for name in ("query", "key", "value")}
    names = {"scale": "scaling", "softcap": "softcap", "sinks": "s_aux", "mask": "attention_mask"}
    case |= {name: arguments[other] for name, other in names.items() if arguments.get(other) is not None}
    if arguments["is_causal"]:
        case |= {"causal": True, "query_offset": "start"}
    assert_accurate(out.swapaxes(1, 2), case)


# Dask


def _dask(seed, types=tuple(cases.TYPES), work=SMALLER):
    return _draw(seed, types, cases.MODIFIERS - {"layout", "key_range", "query_lengths"}, work=work)


def _call_dask(num_threads=1, **arguments):
    import dask.array as da

    import cattn.dask

    for name in ("query", "key", "value"):
        x = arguments[name]
        chunks = [max(1, -(-n // 2)) if axis == x.ndim - 2 else -1 for axis, n in enumerate(x.shape)]
        arguments[name] = da.from_array(x, chunks)
    return cattn.dask.attention(**arguments, num_threads=num_threads).compute(scheduler="sync")


def _all(*functions):
    return {function.name: function for function in functions}


FUNCTIONS = _all(
    Function("attention", _attention, cattn.attention, _check_attention),
    Function("attention_weights", _attention_weights, cattn.attention_weights, _check_attention_weights),
    Function("attention_varlen", _attention_varlen, cattn.attention_varlen, _check_attention_varlen),
    Function("merge_attention", _merge_attention, cattn.merge_attention, _check_merge_attention),
    Function("self_attention", _self_attention, cattn.self_attention, _check_self_attention),
    Function("trace", _trace, cattn.trace, _check_trace),
    Function("unpad", _unpad, cattn.unpad, _check_unpad),
    Function("pad", _pad, cattn.pad, _check_pad),
    Function("plan", _attention, cattn.plan, _check_plan),
    Function("cattn.h", _c_attention, _call_c, _check_c),
    Function("flash_attn.flash_attn_func", _flash_attn, _call_flash_attn("flash_attn_func"), _check_flash_attn),
    Function(
        "flash_attn.flash_attn_varlen_func",
        _flash_attn_varlen,
        _call_flash_attn("flash_attn_varlen_func"),
        _check_flash_attn_varlen,
    ),
    Function("torch.scaled_dot_product_attention", _torch, _call_torch, _check_torch, "torch"),
    Function("transformers.register", _transformers, _call_transformers, _check_transformers, "transformers"),
    Function("dask.attention", _dask, _call_dask, _check_attention, "dask"),
)
# These import libraries that take seconds to import.
IMPORT_MORE = [name for name, function in FUNCTIONS.items() if function.needs]
