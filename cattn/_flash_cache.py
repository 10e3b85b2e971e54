"""flash_attn_with_kvcache of cattn.flash_attn: new keys and values go into a cache, which is then attended to."""

import numpy as np

from . import _arguments, _kernel
from ._arithmetic import in_usual_arithmetic
from ._calls import renamed
from ._flash_arguments import WORDS, Arrays, flash_lse, options_of, read_inputs
from ._modifiers import FAR
from ._read import arithmetic, as_flag, as_floats, as_integers, as_items, native, shown

_WORDS = WORDS | {name: "k_cache" for name in ("key", "key_cache")}
_WORDS |= {"value": "v_cache", "value_cache": "v_cache", "key_lengths": "cache_seqlens"}
_OF_CACHES = "(batch, slots, heads, size) or, with block_table, (pages, page size, heads, size)"


@in_usual_arithmetic
def attend_cache(house, inputs, new, rotary, places, options):
    """Return what `flash_attn_with_kvcache` returns. Nothing is written before every argument has been accepted."""
    names = "q", "k_cache", "v_cache"
    q, *caches = read_inputs(house, 4, ("(batch, length, heads, size)", *[_OF_CACHES] * 2), *inputs, names=names)
    if caches[1].shape[:3] != caches[0].shape[:3]:
        raise ValueError(
            f"v_cache: expected {caches[0].shape[2]} heads like k_cache, and axes {caches[0].shape[:2]} before, "
            f"got shape {caches[1].shape}"
        )
    options = options_of(house, *options)
    new = _read_new(house, names[1:], inputs, (q, *caches), new)
    added = 0 if new is None else new[0].shape[1]
    table, before, leftpad = _read_places(house, len(q), caches, None if new is None else added, *places)
    is_paged = places[-1] is not None
    if rotary[0] is not None or rotary[1] is not None:
        sides = as_items(options.get("window", ())) or ()
        moves = as_flag("causal", options["causal"]) or any(side not in (None, -1) for side in sides)
        q, new = _rotate_both(house, q, new, rotary, before, moves)

    lengths = before + added
    if added and is_paged:
        size = caches[0].shape[1]
        _arguments.check_pages(table, before // size, -(-lengths // size), len(caches[0]))
    try:
        problems, out, lse = _problems(q, caches, table, lengths, leftpad, is_paged, options)
    except (TypeError, ValueError) as error:
        raise renamed(error, _WORDS) from None
    if new is not None:
        _write(caches, new, table, before)
    for problem in problems:
        _kernel.attend(problem)
    if lse is None:
        return house.to_tensor(out)
    return house.to_tensor(out), house.to_tensor(flash_lse(lse))


def _read_places(house, batch, caches, added, cache_seqlens, cache_batch_idx, cache_leftpad, block_table):
    """Return the pages of each sequence, its length before the new tokens, and the slot at which it begins, or None.

    `added` is the number of new tokens, or None if there are no arrays of them. A cache without pages has one page for
    each entry.
    """
    if added is not None and cache_seqlens is None:
        raise ValueError("cache_seqlens: expected the lengths before k is written, because k is given, got None")
    for name, given in (("cache_batch_idx", cache_batch_idx), ("cache_leftpad", cache_leftpad)):
        if block_table is not None and given is not None:
            raise ValueError(f"{name}: expected None beside block_table, got {shown(given)}")

    if block_table is not None:
        table = as_integers("block_table", house.read("block_table", block_table), -FAR, FAR)
        if table.ndim != 2 or len(table) != batch:
            raise ValueError(f"block_table: expected shape ({batch}, most pages), got {table.shape}")
    elif cache_batch_idx is not None:
        table = _per_sequence(house, "cache_batch_idx", cache_batch_idx, batch)[:, None]
        _check_numbers("cache_batch_idx", table[:, 0], 0, len(caches[0]) - 1, "the entries of k_cache")
    elif len(caches[0]) >= batch:
        table = np.arange(batch)[:, None]
    else:
        raise ValueError(f"k_cache: expected an entry for each of {batch} sequences, got shape {caches[0].shape}")
    room = table.shape[1] * caches[0].shape[1]
    if cache_seqlens is None:
        before = np.full(batch, room)
    else:
        before = _per_sequence(house, "cache_seqlens", cache_seqlens, batch)
        if added and added > room:
            raise ValueError(f"k: expected {room} new tokens at most, the slots of k_cache, got {added}")
        beside = f" beside the {added} new token{'s' if added > 1 else ''} of k" if added else ""
        _check_numbers("cache_seqlens", before, 0, room - (added or 0), f"the slots of k_cache{beside}")
    leftpad = None
    if cache_leftpad is not None:
        leftpad = _per_sequence(house, "cache_leftpad", cache_leftpad, batch)
        _check_numbers("cache_leftpad", leftpad, 0, before, "its cache_seqlens")
    return table, before, leftpad


def _problems(q, caches, table, lengths, leftpad, paged, options):
    """Return the checked problems that are to be computed, and the results that they will write."""
    batch, queries = q.shape[:2]
    options = options | {"query_offset": "end"}
    if paged:
        given = q.reshape(batch * queries, *q.shape[2:]), *caches, table, lengths
        indptr = np.arange(batch + 1) * queries
        problem, out, lse = _arguments.attention_paged(*given, query_indptr=indptr, may_be_longer=True, **options)
        shape = (batch, queries, *out.shape[1:])
        return [problem], out.reshape(shape), None if lse is None else lse.reshape(shape[:-1])
    options["layout"] = "blhd"
    if leftpad is None and np.array_equal(table[:, 0], np.arange(batch)):
        given = q, *(cache[:batch] for cache in caches)
        problem, out, lse = _arguments.attention(*given, key_lengths=lengths, **options)
        return [problem], out, lse
    # Entries in another order, or with a padding at the left, are computed one by one, in place.
    problems, out = [], np.empty((*q.shape[:-1], caches[1].shape[-1]), native(q.dtype))
    lse = np.empty(q.shape[:-1], arithmetic(q.dtype)) if options["return_lse"] else None
    slopes = options.pop("alibi_slopes", None)
    for n, (entry,) in enumerate(table):
        own = {} if slopes is None else {"alibi_slopes": slopes[n] if slopes.ndim == 2 and len(slopes) > 1 else slopes}
        keys = slice(0 if leftpad is None else int(leftpad[n]), int(lengths[n]))
        given = q[n : n + 1], *(cache[entry : entry + 1, keys] for cache in caches)
        problem, _, _ = _arguments.attention(*given, out=out[n : n + 1], **options, **own)
        if lse is not None:
            problem = problem._replace(lse=lse[n : n + 1].swapaxes(-2, -1))
        problems.append(problem)
    return problems, out, lse


def _read_new(house, names, inputs, arrays, new):
    """Return the new keys and values as arrays, or None if there are none. The caches must then be writable."""
    k, v = new
    if k is None and v is None:
        return None
    for name, given, other in (("k", k, "v"), ("v", v, "k")):
        if given is None:
            raise ValueError(f"{name}: expected an array, because {other} is given, got None")
    first = arrays[0] if house is Arrays else inputs[0]  # no argument is converted twice
    _, *found = read_inputs(house, 4, "(batch, new, heads, size)", first, k, v)
    q, k_cache, v_cache = arrays
    expected = (len(q), found[0].shape[1], k_cache.shape[2])
    for name, x, cache in (("k", found[0], k_cache), ("v", found[1], v_cache)):
        if x.shape != (*expected, cache.shape[-1]):
            raise ValueError(f"{name}: expected shape {(*expected, cache.shape[-1])}, got {x.shape}")
    for name, given, cache in zip(names, inputs[1:], (k_cache, v_cache), strict=True):
        house.check_writable(name, given, cache)
        if any(stride == 0 and size > 1 for stride, size in zip(cache.strides, cache.shape, strict=True)):
            raise ValueError(
                f"{name}: expected memory of its own for each slot, because k and v are written, got strides "
                f"{cache.strides}; copy it first"
            )
    if k_cache.size and k_cache.ctypes.data == v_cache.ctypes.data:
        raise ValueError("v_cache: expected memory of its own, because k and v are written, got that of k_cache")
    return found


def _write(caches, new, table, before):
    """Write new tokens behind those before them, page by page."""
    page_size = caches[0].shape[1]
    for n, start in enumerate(before.tolist()):
        stop, at = start + new[0].shape[1], start
        while at < stop:
            page, slot = table[n, at // page_size], at % page_size
            count = min(page_size - slot, stop - at)
            for cache, x in zip(caches, new, strict=True):
                cache[page, slot : slot + count] = x[n, at - start : at - start + count]
            at += count


def _rotate_both(house, q, new, rotary, before, moves):
    """Return the queries and the new keys and values, rotated at their positions."""
    names = "rotary_cos", "rotary_sin"
    if new is None:
        raise ValueError("rotary_cos: expected None without k, got an array; rotate q before the call")
    for name, given in zip(names, rotary, strict=False):
        if given is None:
            raise ValueError(f"{name}: expected an array, because its other half is given, got None")
    interleaved = as_flag("rotary_interleaved", rotary[2])
    cos, sin = (as_floats(name, house.read(name, given)) for name, given in zip(names, rotary, strict=False))
    for name, x in zip(names, (cos, sin), strict=True):
        if x.ndim != 2 or x.shape != cos.shape or 2 * x.shape[1] > q.shape[-1]:
            like = ", like rotary_cos" if name != names[0] else ""
            raise ValueError(
                f"{name}: expected shape (positions, rotary size / 2){like}, of at most half the {q.shape[-1]} columns "
                f"of q, got {x.shape}"
            )
    k, v = new
    ends = k.shape[1], q.shape[1] if moves else min(q.shape[1], 1)
    needed = int(before.max(initial=0)) + max(ends)
    if len(before) and needed > len(cos):
        raise ValueError(f"rotary_cos: expected at least {needed} positions, got shape {cos.shape}")
    positions = before[:, None] + np.arange(k.shape[1])
    k = _rotate(k, cos[positions], sin[positions], interleaved)
    positions = before[:, None] + np.arange(q.shape[1]) * moves
    return _rotate(q, cos[positions], sin[positions], interleaved), (k, v)


def _rotate(x, cos, sin, interleaved):
    """Return the heads of x (batch, length, heads, size) rotated by angles (batch, length, size of the angles)."""
    wide, half = arithmetic(x.dtype), cos.shape[-1]
    cos, sin = (angle.astype(wide)[:, :, None] for angle in (cos, sin))
    pairs = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    one, other = (x[..., columns].astype(wide) for columns in pairs)
    rotated = np.array(x, x.dtype.newbyteorder("="))
    rotated[..., pairs[0]] = one * cos - other * sin
    rotated[..., pairs[1]] = one * sin + other * cos
    return rotated


def _per_sequence(house, name, given, batch):
    """Return integers, one for each sequence, as an array. One number counts for all of them."""
    numbers = as_integers(name, given if type(given) is int else house.read(name, given), -FAR, FAR)
    if numbers.ndim == 0:
        return np.full(batch, numbers)
    if numbers.shape != (batch,):
        raise ValueError(f"{name}: expected shape {(batch,)}, one number for each sequence, got {numbers.shape}")
    return numbers


def _check_numbers(name, numbers, least, most, what):
    most = np.broadcast_to(most, numbers.shape)
    (wrong,) = ((numbers < least) | (numbers > most)).nonzero()
    if wrong.size:
        n = wrong[0]
        raise ValueError(f"{name}: expected {least} to {most[n]}, {what}, got {numbers[n]} (sequence {n})")
