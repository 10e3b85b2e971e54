"""Valid calls of every public function, and what strange arguments of them mean. For fuzz.py."""

import contextlib
import functools
import inspect
import math
import operator

import cases
import numpy as np
from fuzz_scales import SCALE_OF, SCALES, unread, with_lengths
from registry import FUNCTIONS, Function, arrays_of, fingerprint, to_array, to_tensor

import cattn
from cattn._modifiers import MODIFIERS


def _set_num_threads(n):
    try:
        cattn.set_num_threads(n)
        return np.array(cattn.get_num_threads())
    finally:
        cattn.set_num_threads(None)


def _call_torch(**arguments):
    """With tensors for arrays, unless there are no such tensors."""
    import cattn.torch as torch

    for name, x in arguments.items():
        with contextlib.suppress(TypeError):
            arguments[name] = to_tensor(np.asarray(x)) if is_array(x) else x
    return to_array(torch.scaled_dot_product_attention(**arguments))


ALL = FUNCTIONS | {
    "set_num_threads": Function(
        "set_num_threads", lambda seed: {"n": 1 + seed % 9}, _set_num_threads, lambda arguments, result: None
    )
}

# What kind of argument each name is.

FLOATS, MASK, INTEGERS, ANYTHING, NUMBER, FLAG, COUNT, WORD, WINDOW, RANGE, OUT, PARTS, TOKENS, UNUSED = (
    *("floats", "mask", "integers", "anything", "number", "flag", "count", "word", "window", "range", "out", "parts"),
    *("tokens", "unused"),
)
KEYS, SCALE, AXIS, TYPE = "keys", "scale", "axis", "type"
KINDS = {
    **{name: INTEGERS if row.kind == "offset" else row.kind for name, row in MODIFIERS.items()},
    "window_size": WINDOW,
    "attn_mask": MASK,
    "attention_mask": MASK,
    "out": OUT,
    "outputs": PARTS,
    "lses": PARTS,
    "tokens": TOKENS,
    "module": UNUSED,
    "deterministic": UNUSED,
    "block_table": UNUSED,
    "axis": AXIS,
    "dtype": TYPE,
}
KINDS |= dict.fromkeys(SCALE_OF, KEYS) | dict.fromkeys(SCALES, SCALE)
KINDS |= dict.fromkeys(("lengths", "indptr", "query_indptr", "key_indptr", "cu_seqlens_q", "cu_seqlens_k"), INTEGERS)
KINDS |= dict.fromkeys(("document_lengths", "document_indptr"), INTEGERS)
KINDS |= dict.fromkeys(("softmax_scale", "scaling", "dropout_p"), NUMBER)
KINDS |= dict.fromkeys(("is_causal", "return_lse", "return_attn_probs", "return_index", "enable_gqa"), FLAG)
KINDS |= dict.fromkeys(
    ("num_threads", "num_heads", "num_kv_heads", "length", "max_seqlen_q", "max_seqlen_k", "n"), COUNT
)
KINDS |= dict.fromkeys(("batch", "head_size", "value_size"), COUNT)
KINDS |= dict.fromkeys(("layout", "stage"), WORD)
# These fields of C's struct can be wrong without that memory beyond an array is read.
C_NUMBERS = [x for row in MODIFIERS.values() if row.kind in (NUMBER, WINDOW) for x in row.fields]
C_NUMBERS += ["num_threads", "flags"]
C_INTEGERS = [x for row in MODIFIERS.values() if row.kind in (INTEGERS, RANGE, "offset") for x in row.fields]

TYPES = (*cases.TYPES, "int8")  # of a cache
WORDS = {"layout": ("bhld", "blhd"), "stage": ("scores", "softcapped", "biased", "weights")}
# Of self_attention and trace, what the registry's check looks at.
CHECKED = {"x", "causal", "mask", "num_heads", "num_kv_heads", "num_threads"}
CHECKED |= {f"{kind}_{name}" for kind in "wb" for name in ("query", "key", "value", "output")}

READ_LATE = ("query", *SCALE_OF, *SCALES, "document", "mask", "bias")
OF_PAGES = ("block_table", "key_lengths", "query_indptr")  # of attention_paged

# What a call must do: the later one counts where steps differ.
SAME, VALID, MAYBE, OPEN, REFUSED = range(5)


# Valid calls


BASES = 60  # seeds of valid arguments, which tests/test_registry.py checks


@functools.lru_cache(5000)
def base_of(name, seed):
    return Base(name, seed)


class Base:
    """Valid arguments of a function, and their result."""

    def __init__(self, name, seed):
        self.name, self.seed = name, seed
        self.function = ALL[name]
        # Integrations turn arrays into their own, which the registry does; their errors have more classes.
        self.is_ours = name in cattn.__all__ or name.startswith("flash_attn.") or name == "set_num_threads"
        self.call = self.function.call
        if name.startswith("flash_attn."):
            import cattn.flash_attn as flash_attn

            self.call = getattr(flash_attn, name.partition(".")[2])
        if name.startswith("torch."):
            self.call = _call_torch
        self.arguments = self.function.arguments(seed)
        self.arguments = with_lengths(self)
        if name == "cattn.h":
            self.parameters = {}
            self.options = [x for x in C_NUMBERS if x in self.arguments]
            self.options += [x for x in C_INTEGERS if x in self.arguments]
        elif self.is_ours:
            self.parameters = dict(inspect.signature(self.call).parameters)
            self.options = list(self.parameters)
        else:
            self.parameters = {}
            self.options = list(self.arguments)
        # What is there counts twice, as what is not: half of the steps change what the call depends on.
        there = [x for x in self.options if x in self.arguments]
        for place, _ in arrays_of(self.arguments):
            if len(place) == 2:
                there.append(f"{place[0]}[{place[1]}]")
        self.places = there * 2 + [x for x in self.options if x not in self.arguments]
        arguments = self.fresh()
        result = self.call(**arguments)
        self.function.check(arguments, result)
        self.result, self.shapes = fingerprint(result), shapes(result)
        self.before = self.contents()

    def fresh(self):
        """The arguments, with memory of their own for results."""
        return {name: x.copy() if name in self.function.outputs else x for name, x in self.arguments.items()}

    def contents(self):
        return [x.tobytes() for (name, *_), x in arrays_of(self.arguments) if name not in self.function.outputs]

    def kind(self, place):
        name, _, index = place.partition("[")
        if name in ("out", "lse") and not self.function.outputs:  # it is read
            return FLOATS
        if self.name in ("unpad", "pad") and name in ("x", "packed"):
            return ANYTHING
        if index:
            return INTEGERS if name == "key_range" else FLOATS
        if name in SCALE_OF and SCALE_OF[name] not in self.parameters:
            return FLOATS
        if self.name == "KVCache" and name == "window":
            return COUNT
        if self.name == "cattn.h":
            return NUMBER if name in C_NUMBERS else INTEGERS
        return INTEGERS if name == "block_table" and self.name == "attention_paged" else KINDS.get(name, FLOATS)

    def is_required(self, name):
        parameter = self.parameters.get(name)
        return parameter is not None and parameter.default is inspect.Parameter.empty


def shapes(result):
    if isinstance(result, (np.ndarray, tuple)):
        return [(x.shape, x.dtype) for x in (result if isinstance(result, tuple) else (result,))]
    return None


# What arguments mean


class Model:
    """Return what one argument means for a call: (plain value, what the call must do). It knows the documentation,
    not the code; and where others were replaced as well (`alone` is false), it says less."""

    def __init__(self, base, alone):
        self.base, self.alone = base, alone

    def __call__(self, place, value):
        base, kind = self.base, self.base.kind(place)
        name = place.partition("[")[0]
        if not base.is_ours or type(value).__module__ == "torch":
            return value, OPEN
        if value is None and "[" not in place and kind not in (FLAG, WORD):
            return None, REFUSED if base.is_required(name) and name != "n" else MAYBE
        if value is None and place.startswith("key_range["):
            return None, MAYBE
        plain, effect = getattr(self, kind)(place, value)
        if effect in (VALID, MAYBE) and (
            (base.name in ("self_attention", "trace") and name not in CHECKED)
            or (base.name.startswith("flash") and kind in (FLAG, NUMBER))
        ):
            effect = OPEN
        return plain, effect

    def before(self, place):
        name, _, index = place.partition("[")
        value = self.base.arguments.get(name)
        return value[int(index[:-1])] if index and value is not None else value

    def compared(self, place, given):
        """An array that is valid in itself."""
        old = self.before(place)
        old = np.asarray(None if isinstance(old, (tuple, list)) else old)
        is_same = given.shape == old.shape and is_close_kind(given.dtype, old.dtype) and np.array_equal(given, old)
        return (old, SAME) if is_same else (given, MAYBE)

    def keys(self, place, value):
        """Floats or int8. What lies behind the lengths may be anything. fuzz_scales.py knows what must fit."""
        given, old = as_array(value), self.before(place)
        behind = unread(self.base, place) if self.alone else None
        is_alike = behind is not None and given is not None and (given.shape, given.dtype) == (old.shape, old.dtype)
        if is_alike and np.array_equal(given[~behind], old[~behind]):
            return given, SAME
        if given is not None and given.dtype == np.int8 and place in SCALE_OF:
            return self.compared(place, given) if given.size < 1e6 else (given, OPEN)
        return self.floats(place, value)

    scale = keys

    def floats(self, place, value):
        given = as_array(value)
        if given is None:
            return None, REFUSED
        if given.dtype.kind == "i" and given.dtype.itemsize in (4, 8) and self.base.name != "quantize":
            given = given.astype(np.float64) if given.size < 1e6 else given
        elif not (given.dtype.char in "efd" or given.dtype.name == "bfloat16"):
            return None, REFUSED
        if given.size > 1e6:
            return given, OPEN
        plain, effect = self.compared(place, given)
        if effect != SAME and place.startswith(("lses[", "outputs[")) and given.dtype != self.before(place).dtype:
            return plain, OPEN
        if effect != SAME:
            with np.errstate(all="ignore"):
                wide = given.astype(np.float64)
                if not np.all(np.abs(wide) < 1e4):
                    effect = OPEN
        return plain, effect

    def mask(self, place, value):
        given = as_array(value)
        if given is None or given.dtype != np.bool_:
            return None, REFUSED
        return self.compared(place, given)

    def anything(self, place, value):
        given = as_array(value)
        if given is None:
            return None, REFUSED
        if given.size > 1e6 or given.dtype.kind in "OTV":
            return given, OPEN
        if given.dtype != self.before(place).dtype:  # the result has it, in its byte order
            return given, MAYBE
        return self.compared(place, given)

    def integers(self, place, value):
        name = place.partition("[")[0]
        if name == "query_offset" and isinstance(type(value), type) and issubclass(type(value), str):
            word = str.__str__(value)
            if word not in ("start", "end"):
                return None, REFUSED
            before = self.before(place)  # a word, or an array
            return word, SAME if type(before) is str and word == before else MAYBE
        if type(value) is int:
            given = np.array(value, object if abs(value) >= 2**63 else np.int64)
        else:
            given = as_array(value)
        if given is None:
            return None, REFUSED
        if given.dtype.kind not in "iu" and not (given.dtype == object and type(value) is int):
            nothing = given.size == 0 and name in ("lengths", "block_table")
            nothing |= name == "document_lengths" and len(self.base.arguments["document"]) == 0
            return None, OPEN if nothing else REFUSED
        if given.size > 1e6 or (name in OF_PAGES and self.base.name == "attention_paged"):
            return given, OPEN
        base, numbers = self.base, np.array(given, object)
        most = max(map(abs, numbers.ravel().tolist()), default=0)
        if name in ("query_lengths", "key_lengths", "lengths") and self.alone:
            longest = self.longest(name)
            if given.size and not np.all((numbers >= 0) & (numbers <= longest)):
                return None, REFUSED
        if name in ("indptr", "query_indptr", "key_indptr", "cu_seqlens_q", "cu_seqlens_k") and self.alone:
            edges = list(numbers.ravel().tolist())
            total = len(base.arguments[{"indptr": "packed"}.get(name, name.replace("_indptr", "").replace(
                "cu_seqlens_", ""))])  # fmt: skip
            if given.ndim != 1 or not edges or edges[0] != 0 or edges[-1] != total or sorted(edges) != edges:
                return None, REFUSED
            if len(edges) != len(self.before(place)) and name != "indptr":
                return None, REFUSED
        if name == "query_offset":
            if most > 10**6:
                return given, OPEN
        elif name == "key_range":
            numbers, most = np.array(np.clip(numbers, -(2**40), 2**40), object), 0
        return self.compared(place, numbers.astype(np.int64)) if most < 2**62 else (given, OPEN)

    def longest(self, name):
        if name == "lengths":
            return self.base.arguments["x"].shape[1]
        x = self.base.arguments["query" if name == "query_lengths" and "query" in self.base.arguments else
                                "key" if "key" in self.base.arguments else "x"]  # fmt: skip
        return x.shape[-3 if self.base.arguments.get("layout") == "blhd" and x.ndim > 2 else -2]

    def number(self, place, value):
        given = as_array(value)
        if given is None or given.ndim or not (given.dtype.kind in "fiu" or given.dtype.name == "bfloat16"):
            return None, REFUSED
        number = float(given)
        if not math.isfinite(number):
            return None, REFUSED
        if place == "dropout_p":
            return number, SAME if number == 0 else REFUSED
        if place == "softcap" and number <= 0:
            return None, OPEN if self.base.name.startswith("flash") else REFUSED
        if number and not 1e-3 < abs(number) < 1e4:
            return number, OPEN
        return number, SAME if number == self.before(place) else VALID if self.alone else MAYBE

    def flag(self, place, value):
        if type(value) not in (bool, np.bool_):
            return None, REFUSED
        if place in ("return_lse", "return_attn_probs"):
            return bool(value), SAME if value == self.before(place) else VALID if self.alone else MAYBE
        return bool(value), SAME if value == self.before(place) else MAYBE

    def count(self, place, value):
        if issubclass(type(value), (bool, np.bool_)):
            return None, REFUSED
        try:
            number = operator.index(value)
        except BaseException:
            return None, REFUSED
        if place == "window":
            number = min(number, 2**40)
        if place in ("num_threads", "n"):
            return 1, REFUSED if number < 1 else SAME if place == "num_threads" else MAYBE
        if place.startswith("max_seqlen"):
            longest = int(np.diff(self.base.arguments[place.replace("max_seqlen", "cu_seqlens")]).max(initial=0))
            return number, MAYBE if not self.alone else SAME if number >= longest else REFUSED
        if place == "length":
            longest = int(np.diff(self.base.arguments["indptr"]).max(initial=0))
            return number, MAYBE if number >= longest or not self.alone else REFUSED
        return number, REFUSED if number < 1 else SAME if number == self.before(place) else MAYBE

    def axis(self, place, value):
        ndim = self.base.arguments["x"].ndim
        try:
            number = None if type(value) in (bool, np.bool_) else operator.index(value)
        except BaseException:
            return None, REFUSED
        if number is None or (self.alone and not -ndim <= number < ndim):
            return None, REFUSED
        return number, SAME if self.alone and (number - self.before(place)) % ndim == 0 else MAYBE

    def type(self, place, value):
        try:
            word = str.__str__(value) if issubclass(type(value), str) else value
            name = word if type(word) is str and word in TYPES else np.dtype(word).name
        except BaseException:
            return None, REFUSED
        if value is None or name not in TYPES:
            return None, REFUSED
        return name, SAME if name == self.before(place) else MAYBE

    def word(self, place, value):
        if not issubclass(type(value), str) or str.__str__(value) not in WORDS[place]:
            return None, REFUSED
        word = str.__str__(value)
        return word, SAME if word == self.before(place) else MAYBE

    def window(self, place, value):
        """A pair of None, or integers of -1 or more."""
        if self.base.name.startswith("flash"):
            return value, OPEN
        sides = items_of(value)
        if sides is None:
            return None, REFUSED
        whole = all(x is None or (issubclass(type(x), (int, np.integer)) and type(x) is not bool) for x in sides)
        if len(sides) != 2 or not whole:
            return None, REFUSED
        sides = [-1 if x is None else min(operator.index(x), 2**40) for x in sides]
        if min(sides) < -1:
            return None, REFUSED
        old = self.before(place)
        if sides == [-1, -1]:
            return None, SAME if old is None else MAYBE
        return tuple(sides), SAME if old is not None and [-1 if x is None else x for x in old] == sides else MAYBE

    def range(self, place, value):
        sides = items_of(value)
        if sides is None:
            return None, REFUSED
        if len(sides) != 2:
            return None, REFUSED
        found = [(None, SAME) if x is None else self.integers("key_range", x) for x in sides]
        worst = max(effect for _, effect in found)
        return tuple(plain for plain, _ in found), max(worst, MAYBE)

    def out(self, place, value):
        if not issubclass(type(value), np.ndarray) or issubclass(type(value), np.ma.MaskedArray):
            return None, REFUSED
        given = value if type(value) is np.ndarray else np.asarray(value)
        if not self.alone:
            return value, OPEN
        shape, dtype = self.base.shapes[0] if self.base.shapes else (None, None)
        if shape is None:  # of plan
            return value, OPEN
        halves = dtype.itemsize == 2 and given.dtype == np.float32
        if given.shape != shape or not given.flags.writeable or not (given.dtype == dtype or halves):
            return None, REFUSED
        # Numbers that are read before anything is written, and kept, may lie where the output does.
        read = [x for (name, *_), x in arrays_of(self.base.arguments) if name in READ_LATE]
        if any(np.shares_memory(given, x) for x in read) and given.size:
            return None, REFUSED
        if overlaps_itself(given):
            return None, REFUSED
        shares = any(np.shares_memory(given, x) for _, x in arrays_of(self.base.arguments))
        return value, OPEN if halves or shares else SAME

    def parts(self, place, value):
        try:
            items = [*value]
        except BaseException:
            return None, REFUSED
        old = self.before(place)
        if len(items) != len(old) and self.alone:
            return None, REFUSED
        found, effect = [], SAME if items else REFUSED
        for n, item in enumerate(items):
            found.append(self.floats(f"{place}[{n}]" if n < len(old) else "outputs", item))
            effect = max(effect, found[-1][1])
            if effect == REFUSED:
                return None, REFUSED
        pairs = zip(found, old, strict=False)
        kept = len(items) == len(old) and all(x is None or x.dtype == y.dtype for (x, _), y in pairs)
        return [plain for plain, _ in found], effect if kept else max(effect, OPEN)

    def tokens(self, place, value):
        return value, OPEN

    unused = tokens


def as_array(value):
    """NumPy's conversion; None where cattn refuses its argument."""
    if issubclass(type(value), np.ma.MaskedArray) or value is None:
        return None
    try:
        if issubclass(type(value), (list, tuple)) and any(isinstance(x, np.ma.MaskedArray) for x in value):
            return None
        return np.asarray(value)
    except BaseException:  # an interrupt too: it is the object's own
        return None


def items_of(value):
    """The items of a tuple or list, whatever its class says; or None."""
    for kind in (tuple, list):
        if issubclass(type(value), kind):
            return [*kind.__iter__(value)]
    return None


def is_array(value):
    return issubclass(type(value), np.ndarray)


def native(x):
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def is_close_kind(one, other):
    """Return whether arrays of these types can mean the same."""
    if one.kind in "iu" and other.kind in "iu":
        return True
    return one.newbyteorder("=") == other.newbyteorder("=")


def overlaps_itself(x):
    if x.size <= 1:
        return False
    offsets = sum(
        (np.arange(n).reshape(-1, *[1] * (x.ndim - 1 - axis)) * stride for axis, (n, stride) in
         enumerate(zip(x.shape, x.strides, strict=True))), np.zeros((), int))  # fmt: skip
    return np.diff(np.sort(offsets.ravel())).min() < x.itemsize
