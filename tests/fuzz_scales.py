"""The fuzzer's model asks here what the documentation says of int8 arrays, their scales, and keys that nobody reads."""

import numpy as np

SCALE_OF = {"key": "key_scale", "value": "value_scale", "key_cache": "key_scale", "value_cache": "value_scale"}
SCALES = ("key_scale", "value_scale")
PADDED = ("attention", "attention_weights", "plan")  # functions that take lengths of keys beside scales


def scaled_array(arguments, place):
    """Return the array that a scale belongs to."""
    return next(arguments[name] for name, scale in SCALE_OF.items() if scale == place and name in arguments)


def keys_axis(base, ndim):
    """Return the axis, from the end, along which the keys of an array with so many axes lie."""
    is_packed = base.name in ("attention_varlen", "attention_paged") or base.arguments.get("layout") == "blhd"
    return -3 if is_packed and ndim > 2 else -2


def batch_of(arguments):
    """Return the shape of the batch of padded sequences."""
    return np.broadcast_shapes(*(arguments[x].shape[:-3] for x in ("query", "key", "value") if x in arguments))


def with_lengths(base):
    """Return the arguments of a call, with lengths of the keys if they are int8 and have none."""
    arguments = base.arguments
    if base.name not in PADDED or "key_scale" not in arguments or "key_lengths" in arguments:
        return arguments
    key = arguments["key"]
    longest = key.shape[keys_axis(base, key.ndim)]
    lengths = np.random.default_rng(base.seed).integers(0, longest + 1, batch_of(arguments))
    return arguments | {"key_lengths": np.asarray(lengths)}


def unread(base, place):
    """Return which keys, values or scales lie behind the lengths of all that share them, as bools; or None."""
    arguments = base.arguments
    x, lengths = arguments.get(place), arguments.get("key_lengths")
    if base.name not in PADDED or place not in (*SCALE_OF, *SCALES):
        return None
    if x is None or lengths is None or arguments.get("stage") in ("scores", "softcapped"):  # which show all keys
        return None
    array = scaled_array(arguments, place) if place in SCALES else x
    axis, leading = keys_axis(base, array.ndim), x.shape[:-3]
    if x.ndim < -axis or x.shape[axis] != array.shape[axis]:  # a scale of all keys
        return None
    lengths = np.broadcast_to(lengths, batch_of(arguments))
    lengths = lengths.max(axis=tuple(range(lengths.ndim - len(leading))), initial=0)
    lengths = lengths.max(axis=tuple(n for n, size in enumerate(leading) if size == 1), keepdims=True, initial=0)
    behind = np.arange(x.shape[axis]) >= lengths[..., None]
    others = [n for n in range(-x.ndim, 0) if n >= -3 and n != axis]
    return np.broadcast_to(np.expand_dims(behind, others), x.shape)


def refusals(base, arrays, place):
    """Return how the error may begin if int8 arrays and scales do not belong together, or nothing if they do.

    `arrays` has the arguments as NumPy takes them. `place` is the only one that is not as before, or None.
    """
    if "key_scale" not in base.parameters or "query" not in arrays:
        return []
    of = {name: arrays[name] for name in SCALE_OF if name in arrays}
    words = []
    for name, x in of.items():
        scale, is_given = SCALE_OF[name], SCALE_OF[name] in arrays
        if x.dtype == np.int8 and not is_given:
            words.append(f"{scale}: expected an array beside {name} of type int8, got None; write {name}.astype(")
        elif x.dtype != np.int8 and is_given:
            words.append(f"{scale}: expected None beside {name} of type {x.dtype.name}" if is_float(x.dtype) else
                         f"{name}: expected type int8 beside {scale}, got ")  # fmt: skip
        others = [other for other in of if of[other].dtype == np.int8 and other != name]
        if x.dtype != np.int8 and others:
            words.append(f"{name}: expected type int8 like {others[0]}, got ")
    query = arrays["query"].dtype
    if any(x.dtype == np.int8 for x in of.values()) and query.name in ("float64", "int32", "int64"):
        words.append(f"query: expected type float32, float16 or bfloat16 beside int8 keys, got {query.name}")
    if place in SCALES and place in arrays and not words:
        words += wrong_scale(base, place, arrays[place])
    return words


def wrong_scale(base, place, scale):
    """Return how the error about a scale begins that does not fit an int8 array, or nothing if it does."""
    array = scaled_array(base.arguments, place)
    name = next(name for name in SCALE_OF if base.arguments.get(name) is array)
    if not is_float(scale.dtype) and scale.dtype.name not in ("int32", "int64"):
        return [f"{place}: expected type float16, bfloat16, float32 or float64, got "]
    sizes = (1,) * (array.ndim - scale.ndim) + scale.shape
    if len(sizes) != array.ndim or not all(n in (1, m) for n, m in zip(sizes, array.shape, strict=True)):
        return [f"{place}: expected a shape that broadcasts to {array.shape}, that of {name}, got {scale.shape}"]
    by_key = sizes[keys_axis(base, array.ndim)] != 1 or (base.name == "attention_paged" and sizes[0] != 1)
    if by_key and sizes[-1] != 1:
        return [f"{place}: expected size 1 along the keys (a scale for each column) or along the last axis (a scale "]
    return []


def is_float(dtype):
    return dtype.char in "efd" or dtype.name == "bfloat16"
