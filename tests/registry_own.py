"""Calls of cattn's own functions, from Python and from C, for registry.py. Each function has a generator of arguments
and a check of its result."""

import math

import cases
import numpy as np
from kappa import USUAL, allowed, assert_accurate

import cattn
from cattn import reference
from cattn._modifiers import MODIFIERS
from cattn.reference import _bounds

OUTPUTS = ("out", "lse")  # the arguments that a call writes to

SMALL, SMALLER = (0, 50_000), (0, 20_000)  # the least and the most multiplications of a call


def draw_case(seed, types, modifiers=cases.MODIFIERS, work=SMALL):
    least, most = work
    return cases.case(seed, modifiers=modifiers, types=types, work=most, least_work=least)


def draw_attention(seed, types=tuple(cases.TYPES), work=SMALL):
    case = draw_case(seed, types, work=work)
    if seed % 8 == 7:
        case["value"] = case["value"][..., :0]
    if seed % 6 == 4:
        case = cases.with_int8(case, seed)
    if seed % 2:
        case["return_lse"] = True
    if seed % 3 == 0:
        case["out"] = _new_out(case)
    return case


def _new_out(case):
    query, value = case["query"], case["value"]
    batch = np.broadcast_shapes(*(case[name].shape[:-3] for name in ("query", "key", "value")))
    return np.full((*batch, *query.shape[-3:-1], value.shape[-1]), 7, query.dtype.newbyteorder("="))


def check_attention(arguments, result):
    out, lse = result if arguments.get("return_lse") else (result, None)
    if arguments.get("out") is not None:
        assert out is arguments["out"]
    case = {name: x for name, x in arguments.items() if name not in ("out", "return_lse", "num_threads")}
    assert_accurate(out, case, lse)


def draw_attention_weights(seed, types=tuple(cases.TYPES), work=SMALLER):
    case = draw_case(seed, types, work=work)
    query, batch = case["query"], case.pop("value").shape[:-3]
    if query.ndim > 2:  # the modifiers are made for the batch of all three
        batch = np.broadcast_shapes(query.shape[:-3], case["key"].shape[:-3], batch)
        case["query"] = np.broadcast_to(query, (*batch, *query.shape[-3:]))
    if seed % 6 == 4:
        case = cases.with_int8(case, seed)
    return case | {"stage": ("weights", "scores", "softcapped", "biased")[seed % 4]}


def check_attention_weights(arguments, weights):
    arguments = {name: x for name, x in arguments.items() if name != "num_threads"}
    if (scale := arguments.pop("key_scale", None)) is not None:
        arguments["key"] = arguments["key"] * scale.astype(np.float64)
    query, key = arguments["query"], arguments["key"]
    arithmetic = np.dtype(np.float64 if query.dtype.newbyteorder("=") == np.float64 else np.float32)
    assert weights.dtype == arithmetic
    wider = np.longdouble if arithmetic == np.float64 else np.float64
    expected = reference.attention_weights(**arguments, dtype=wider)
    plain = reference.attention_weights(**arguments, dtype=arithmetic)
    assert weights.shape == expected.shape
    # Rounding is measured by what the terms of a score add up to without their signs.
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


def draw_attention_backward(seed, types=tuple(cases.TYPES), work=SMALLER):
    case = draw_case(seed, types, work=work)
    random = np.random.default_rng([seed, 31])
    if seed % 8 == 7:
        case["value"] = case["value"][..., :0]
    out = _new_out(case)
    if out.dtype.itemsize == 2 and seed % 2:
        out = out.astype(np.float32)
    out, lse = cattn.attention(**case, out=out, return_lse=True)
    case |= {"grad_out": random.standard_normal(out.shape).astype(out.dtype), "out": out, "lse": lse}
    if seed % 3 == 1:
        case["grad_lse"] = np.asarray(random.standard_normal(lse.shape)).astype(lse.dtype)
    if "bias" in case and seed % 4:
        case["bias_grad"] = True
    return case


def check_attention_backward(arguments, result):
    arguments = {name: x for name, x in arguments.items() if name != "num_threads"}
    with_bias = arguments.pop("bias_grad", False)
    yardstick = _bounds.GradientYardstick(**arguments)
    plain = reference.attention_backward(**arguments, bias_grad=True, dtype=yardstick.arithmetic)
    of_numpy = yardstick.kappas(plain)
    for name, found in result._asdict().items():
        if found is None:
            assert arguments.get(name) is None or (name == "bias" and not with_bias)
            continue
        given = np.asarray(arguments[name])
        assert found.shape == given.shape and found.dtype == given.dtype.newbyteorder("=")
        kappa, numpys = (_bounds.largest_kappa(getattr(x, name)) for x in (yardstick.kappas(result), of_numpy))
        assert kappa <= allowed(numpys, USUAL), f"κ {kappa:.3g} of {name} exceeds {allowed(numpys, USUAL):.3g}"


PACKED = cases.taken_by("attention_varlen")


def draw_attention_varlen(seed, types=tuple(cases.TYPES), work=SMALLER):
    random = np.random.default_rng([seed, 5])
    sequences = int(random.integers(0, 5))
    case = draw_case(seed, types, PACKED - {"query_offset"}, work=work)
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
    if seed % 6 == 4:
        case = cases.with_int8(case | {"layout": "blhd"}, seed)
        del case["layout"]
    return case | ({"return_lse": True} if seed % 2 else {})


def _packed(x):
    """Return (..., heads, length, size) as (tokens, heads, size)."""
    x = x if x.ndim > 2 else x[None]
    return (
        np.concatenate(x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2), axis=0)
        if x.size
        else x.reshape(0, x.shape[-3], x.shape[-1])
    )


def check_attention_varlen(arguments, result):
    out, lse = result if arguments.get("return_lse") else (result, None)
    edges = {name: arguments[name + "_indptr"] for name in ("query", "key")}
    others = ("query", "key", "value", "query_indptr", "key_indptr", "return_lse", "out", "num_threads")
    others += ("key_scale", "value_scale")
    modifiers = {name: x for name, x in arguments.items() if name not in others}
    for n in range(len(edges["query"]) - 1):
        rows, keys = (slice(int(x[n]), int(x[n + 1])) for x in edges.values())
        case = {"query": arguments["query"][rows], "key": arguments["key"][keys], "value": arguments["value"][keys]}
        for name in ("key", "value"):
            if (scale := arguments.get(f"{name}_scale")) is not None:
                scale = np.array(scale, ndmin=3)
                case[f"{name}_scale"] = scale if len(scale) == 1 else scale[keys]
        case |= modifiers | {"layout": "blhd"}
        for name, shared in (("query_offset", 0), ("alibi_slopes", 1)):  # each sequence may have its own
            if isinstance(given := modifiers.get(name), np.ndarray) and given.ndim > shared:
                case[name] = given[n % len(given)]
        assert_accurate(out[rows], case, None if lse is None else lse[rows])


def draw_attention_paged(seed, types=tuple(cases.TYPES), work=SMALLER):
    """Return packed sequences whose keys are copied to pages in any order. Sequences may share pages."""
    random = np.random.default_rng([seed, 30])
    case = draw_attention_varlen(seed, types, work)
    size = int(random.choice([1, 2, 3, 16, 17, 64, 256]))
    edges = {name: case[name + "_indptr"] for name in ("query", "key")}
    queries, keys = (x[1:] - x[:-1] for x in edges.values())
    # No sequence has more queries than keys: those that would be are left out.
    queries = np.minimum(queries, keys)
    rows = [np.arange(start, start + n) for start, n in zip(edges["query"], queries, strict=False)]
    case["query"] = case["query"][np.concatenate([np.zeros(0, np.int64), *rows])]
    counts = -(-keys // size)
    pages, most = int(counts.sum()) + 2, int(counts.max(initial=0)) + int(random.integers(0, 3))
    order, table = random.permutation(pages), random.integers(-9, 10**9, (len(keys), most))
    for name in ("key", "value", "key_scale", "value_scale"):
        if name not in case:
            continue
        x, taken = case.pop(name), iter(order)
        if name.endswith("_scale") and len(x) == 1:
            case[name] = x[None]
            continue
        cache = np.full((pages, size, *x.shape[1:]), 77 if x.dtype == np.int8 else np.nan, x.dtype)
        for n, (start, count) in enumerate(zip(edges["key"], keys, strict=False)):
            for position in range(counts[n]):
                page = next(taken)
                table[n, position] = page
                some = x[start + position * size : start + min((position + 1) * size, count)]
                cache[page, : len(some)] = some
        case[name if name.endswith("_scale") else name + "_cache"] = cache
    if len(keys) > 1 and counts.min() > 1 and random.random() < 0.5:  # a shared prefix
        table[1:, 0] = table[0, 0]
    case |= {"block_table": table.astype(edges["key"].dtype), "key_lengths": keys}
    del case["key_indptr"]
    case["query_indptr"] = np.cumsum([0, *queries])
    return case


def check_attention_paged(arguments, result):
    case = dict(arguments)
    table, lengths = case.pop("block_table"), case.pop("key_lengths")
    for name, given in (("key", "key_cache"), ("value", "value_cache"), ("key_scale",) * 2, ("value_scale",) * 2):
        cache = case.pop(given, None)
        if cache is None:
            continue
        if given == name:
            cache = np.array(cache, ndmin=4)
            if cache.shape[:2] == (1, 1):
                case[name] = cache[0]
                continue
            cache = np.broadcast_to(cache, (*arguments[f"{name[:-6]}_cache"].shape[:2], *cache.shape[2:]))
        if cache.size:
            pages = [cache.take(numbers, axis=0, mode="clip") for numbers in table]
            whole = [x.reshape(-1, *cache.shape[2:])[:n] for x, n in zip(pages, lengths, strict=True)]
        else:  # there are no columns, or no keys
            whole = [np.zeros((n, *cache.shape[2:]), cache.dtype) for n in lengths]
        case[name] = np.concatenate([np.zeros((0, *cache.shape[2:]), cache.dtype), *whole])
    case["key_indptr"] = np.cumsum([0, *lengths])
    case.setdefault("query_indptr", np.arange(len(table) + 1))
    check_attention_varlen(case, result)


def draw_merge_attention(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
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


def check_merge_attention(arguments, result):
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
    kept = cases.ml_dtypes.finfo(stored)
    eps = max(float(kept.eps), 8 * np.finfo(lse.dtype).eps)
    # Near 0 the error is absolute: half types round to their subnormal numbers, and the arithmetic may lose its own.
    least = float(kept.smallest_subnormal) / 2 + np.finfo(lse.dtype).smallest_normal
    assert np.all(np.abs(out.astype(np.float64) - expected) <= eps * unit + least)


WEIGHTS = ("w_query", "w_key", "w_value", "w_output")


def draw_self_attention(seed, types=("float32", "float64"), work=SMALL):
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


def check_self_attention(arguments, result):
    expected, unit = _project_and_attend(arguments)
    assert result.dtype == arguments["x"].dtype.newbyteorder("=") and result.shape == expected.shape
    eps = np.finfo(result.dtype).eps
    assert np.all(np.abs(result - expected) <= 64 * eps * unit), np.max(np.abs(result - expected) / unit) / eps


def _project_and_attend(arguments):
    """Return the output in float64, and the largest that any of its terms could make it."""
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


def draw_trace(seed, types=("float32", "float64"), work=SMALL):
    case = draw_self_attention(seed, types, work)
    x = case["x"].reshape(-1, case["x"].shape[-1])[: 20 * _times_as_long(work)]
    case = {"x": x, **{name: case[name] for name in WEIGHTS[:3]}}
    size = case["w_key"].shape[-1]
    case["w_query"] = np.resize(case["w_query"], (x.shape[-1], size))
    return case | ({"causal": True} if seed % 2 else {})


def check_trace(arguments, trace):
    expected, unit = _project_and_attend(arguments)
    assert np.all(np.abs(trace.context - expected) <= 64 * np.finfo(trace.context.dtype).eps * unit)
    assert str(trace)


def draw_quantize(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    random = np.random.default_rng([seed, 31])
    shape = tuple(random.integers(0, 9, random.integers(2, 5)).tolist())
    x = (10.0 ** random.uniform(-3, 3) * random.standard_normal(shape)).astype(
        cases.TYPES[str(random.choice(list(types)))]
    )
    x[random.random(shape) < random.choice([0, 0.9])] = 0
    return {"x": x, "axis": -1 - seed % 2}


def check_quantize(arguments, result):
    x = arguments["x"].astype(np.float64)
    quantised, scale = result
    assert quantised.dtype == np.int8 and scale.dtype == np.float32 and quantised.shape == x.shape
    largest = np.abs(x).max(axis=arguments["axis"], keepdims=True, initial=0)
    least = np.finfo(np.float32).smallest_normal
    np.testing.assert_allclose(scale, np.where(largest / 127 < least, 0, largest / 127), rtol=2.0**-23)
    assert np.all(np.abs(quantised.astype(int)) <= np.where(scale == 0, 0, 127))
    bound = np.where(scale == 0, 127 * least, (0.5 + 2.0**-16) * scale)
    assert np.all(np.abs(quantised * scale.astype(np.float64) - x) <= bound)


def draw_unpad(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    random = np.random.default_rng([seed, 8])
    shape = tuple(random.integers(0, 6, random.integers(2, 5)).tolist())
    x = (10 * random.standard_normal(shape)).astype(cases.TYPES[str(random.choice(list(types)))])
    return {"x": x, "lengths": random.integers(0, shape[1] + 1, shape[0])}


def check_unpad(arguments, result):
    x, lengths = arguments["x"], arguments["lengths"]
    packed, indptr = result
    expected = [entry[:length] for entry, length in zip(x, lengths, strict=True)]
    assert np.array_equal(indptr, np.cumsum([0, *lengths]))
    assert packed.dtype == x.dtype and packed.tobytes() == b"".join(part.tobytes() for part in expected)


def draw_pad(seed, types=tuple(cases.TYPES), work=SMALLER):  # it multiplies no matrices
    packed, indptr = cattn.unpad(**draw_unpad(seed, types))
    return {"packed": packed, "indptr": indptr} | ({"length": 9} if seed % 2 else {})


def check_pad(arguments, result):
    packed, indptr = arguments["packed"], arguments["indptr"]
    lengths = np.diff(indptr)
    assert result.shape == (len(lengths), arguments.get("length") or lengths.max(initial=0), *packed.shape[1:])
    for entry, start, length in zip(result, indptr, lengths, strict=False):
        assert np.array_equal(entry[:length], packed[start : start + length]) and not np.any(entry[length:])


OF_CACHE = ("batch", "num_kv_heads", "head_size", "value_size", "dtype", "window")


def draw_cache(seed, types=tuple(cases.TYPES), work=SMALL):
    random = np.random.default_rng([seed, 9])
    case = draw_case(seed, types, {"scale", "softcap", "sinks"}, work=work)
    shapes = {name: (1, 1, 1, *case[name].shape)[-4:] for name in ("query", "key", "value")}
    batch = max(1, min(shape[0] for shape in shapes.values()))
    queries = min(shapes["query"][2], shapes["key"][2])
    for name, (_, *rest) in shapes.items():
        case[name] = np.resize(case[name], (batch, *rest))[:, :, : queries if name == "query" else None]
    _, heads, _, size = case["key"].shape
    case |= {"batch": batch, "num_kv_heads": heads, "head_size": size, "value_size": case["value"].shape[-1]}
    kept = "int8" if seed % 4 == 2 and case["query"].dtype.itemsize < 8 else case["key"].dtype.name
    case |= {"dtype": kept, "return_lse": True}
    return case | ({"window": int(random.integers(1, 20))} if seed % 2 else {})


def call_cache(
    query, key, value, *, batch, num_kv_heads, head_size, value_size=None, dtype="float32", window=None, scale=None,
    softcap=None, sinks=None, return_lse=False, num_threads=None,
):  # fmt: skip
    cache = cattn.KVCache(batch, num_kv_heads, head_size, value_size=value_size, dtype=dtype, window=window)
    cache.append(key, value)
    modifiers = {"scale": scale, "softcap": softcap, "sinks": sinks}
    return cache.attend(query, **modifiers, return_lse=return_lse, num_threads=num_threads)


def check_cache(arguments, result):
    case = {name: x for name, x in arguments.items() if name not in OF_CACHE}
    case |= {"causal": True, "query_offset": "end"}
    dtype = arguments.get("dtype", "float32")
    for name in ("key", "value"):
        if dtype == "int8":
            case[name], case[f"{name}_scale"] = cattn.quantize(case[name], axis=-1)
        else:
            case[name] = case[name].astype(cases.TYPES[dtype])
    if arguments.get("window") is not None:
        case["window"] = (arguments["window"] - 1, 0)
    check_attention(case, result)


def draw_maxsim(seed, types=tuple(cases.TYPES), work=SMALL):
    random = np.random.default_rng([seed, 29])
    name = str(random.choice(list(types)))
    dtype, of_document = cases.TYPES[name], cases.TYPES[name]
    if name == "float32" and "float16" in types and random.random() < 0.3:
        of_document = cases.TYPES["float16"]
    queries, length = int(random.integers(1, 4)), int(random.choice([0, 1, 2, 7, 8, 16, 17, 32, 33, 70]))
    size, count = int(random.choice(cases.HEAD_SIZES)), int(random.integers(0, 6))
    tokens = int(random.integers(0, 40))
    while queries * length * size * count * tokens > work[1] and tokens > 1:
        tokens //= 2
    if queries * length * size * count * tokens < work[0]:
        queries, length, size, count = 2, 32, 64, 4
        tokens = work[0] // (queries * length * size * count) + 1
    query = random.standard_normal((queries, length, size)).astype(dtype)
    document = random.standard_normal((count, tokens, size)).astype(of_document)
    case = {"query": query, "document": document}
    if seed % 2:
        case["document_lengths"] = random.integers(tokens // 2, tokens + 1, count)
        if seed % 4 == 3:
            lengths = case.pop("document_lengths")
            case["document"], case["document_indptr"] = cattn.unpad(document, lengths)
    if seed % 3 == 1:
        case["query_lengths"] = random.integers(length // 2, length + 1, queries)
    elif seed % 3 == 2:
        case["query"] = query[0]
    if seed % 5 == 0:
        case["return_index"] = True
    if seed % 7 == 0:
        shape = (*case["query"].shape[:-2], count)
        case["out"] = np.full(shape, 7, np.float64 if name == "float64" else np.float32)
    return case


def check_maxsim(arguments, result):
    case = {name: x for name, x in arguments.items() if name not in ("out", "num_threads")}
    with_index = case.pop("return_index", False)
    scores, index = result if with_index else (result, None)
    if arguments.get("out") is not None:
        assert scores is arguments["out"]
    assert scores.dtype == (np.float64 if case["query"].dtype.newbyteorder("=") == np.float64 else np.float32)
    check_maxsim_bound(scores, case)
    if with_index:
        _, expected_index = reference.maxsim(**case, return_index=True)
        assert index.dtype == np.int64 and index.shape == expected_index.shape
        assert np.array_equal(index < 0, expected_index < 0)


def check_maxsim_bound(scores, case):
    """Check scores against the specification, within its bound."""
    wide = np.longdouble if case["query"].dtype.newbyteorder("=") == np.float64 else np.float64
    expected = reference.maxsim(**case, dtype=wide)
    bound = reference.maxsim_error_bound(**case)
    assert scores.shape == expected.shape == bound.shape
    with np.errstate(all="ignore"):
        same = (scores == expected) | (np.isnan(scores) & np.isnan(expected))
        assert np.all(same | (np.abs(scores - expected) <= bound))


def check_plan(arguments, plan):
    assert plan == cattn.plan(**arguments)


# C


def draw_c_attention(seed, types=tuple(cases.TYPES), work=SMALL):
    from c_interface_calls import Call

    case = draw_case(seed, types, work=work)
    if seed % 6 == 4:
        case = cases.with_int8(case, seed)
    call = Call(**case, with_lse=seed % 2 == 1)
    return call.arrays | call.numbers | {"num_threads": 1 + seed % 2}


def call_c(**arguments):
    from c_interface_calls import ARRAYS, DONE, SCALES, capsule, described

    arrays, alive = ARRAYS + SCALES, []
    fields = {name: x for name, x in arguments.items() if name not in arrays}
    for name in arrays:
        if name in arguments:
            fields[name], memory = described(arguments[name])
            alive.append(memory)
    status, message = capsule(fields)
    if status == 2:
        raise MemoryError(message)
    if status != DONE:
        raise ValueError(message)
    return tuple(arguments[name] for name in OUTPUTS if name in arguments)


def check_c(arguments, result):
    from c_interface_calls import CAUSAL, HAS_SCALE, HAS_WINDOW, OFFSET_END, OFFSET_START, SCALES

    flags = arguments["flags"]
    same = ["query", "key", "value", *SCALES]
    same += [name for name, row in MODIFIERS.items() if row.shape and row.fields == (name,)]
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
