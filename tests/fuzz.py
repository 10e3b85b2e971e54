"""Calls of every public function with strange arguments: what it may raise, and what it must return.

A *recipe* is a call in one line: a function of tests/registry.py, the seed of its valid arguments there, and steps.
Each step replaces one argument, such as

    attention 17 memory:query:3 raising:scale:5

`Model` says what an argument means, from the documentation alone: the same as before, another valid value, or nothing.
A call must then give the same bits, what the function's check accepts, or an exception of ours. The exceptions of
hostile objects may come through, as the objects raised them.

    python tests/fuzz.py --calls 1000000

makes that many calls in several processes. It goes on where an earlier run ended (--record).
"""

import argparse
import collections
import concurrent.futures
import faulthandler
import inspect
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from fuzz_model import (
    ALL,
    ANYTHING,
    AXIS,
    BASES,
    C_NUMBERS,
    COUNT,
    FLAG,
    FLOATS,
    INTEGERS,
    KEYS,
    MASK,
    MAYBE,
    NUMBER,
    OPEN,
    OUT,
    PARTS,
    RANGE,
    REFUSED,
    SAME,
    SCALE,
    TOKENS,
    TYPE,
    UNUSED,
    VALID,
    WINDOW,
    WORD,
    Model,
    as_array,
    base_of,
    is_array,
)  # fmt: skip
from fuzz_scales import SCALES, refusals
from fuzz_values import MAKERS, Changing
from registry import fingerprint

# How often a function is called. The last ones take long to import, or milliseconds a call.
SHARES = {
    "attention": 40,
    "attention_weights": 12,
    "attention_varlen": 12,
    "attention_paged": 8,
    "merge_attention": 6,
    "self_attention": 8,
    "trace": 2,
    "KVCache": 5,
    "quantize": 3,
    "maxsim": 5,
    "unpad": 5,
    "pad": 5,
    "plan": 5,
    "cattn.h": 5,
    "set_num_threads": 1,
    "flash_attn.flash_attn_func": 8,
    "flash_attn.flash_attn_varlen_func": 5,
    "torch.scaled_dot_product_attention": 4,
    "transformers.register": 1,
    "dask.attention": 0.2,
}

STEPS = {
    FLOATS: {"memory": 6, "wrapped": 3, "listed": 2, "typed": 4, "shaped": 5, "numbers": 3, "foreign": 2, "raising": 3,
             "liar": 2, "none": 1, "huge": 0.3},
    AXIS: {"count": 8, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    TYPE: {"type": 8, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    MASK: {"memory": 6, "wrapped": 3, "listed": 2, "typed": 3, "shaped": 5, "foreign": 2, "raising": 3, "liar": 2,
           "none": 1, "huge": 0.3},
    INTEGERS: {"memory": 3, "wrapped": 3, "listed": 3, "typed": 3, "shaped": 4, "integers": 6, "foreign": 2,
               "raising": 3, "liar": 2, "none": 1, "huge": 0.3},
    ANYTHING: {"memory": 5, "wrapped": 3, "listed": 2, "typed": 5, "shaped": 4, "foreign": 2, "raising": 3, "liar": 2,
               "none": 1, "huge": 0.3},
    NUMBER: {"number": 8, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    FLAG: {"flag": 6, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    COUNT: {"count": 8, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    WORD: {"word": 6, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    WINDOW: {"window": 8, "foreign": 2, "raising": 2, "liar": 2, "none": 1},
    RANGE: {"range": 6, "foreign": 2, "raising": 2, "liar": 1, "none": 1},
    OUT: {"memory": 4, "typed": 2, "shaped": 3, "overlap": 3, "listed": 1, "wrapped": 1, "foreign": 2, "raising": 2,
          "liar": 3, "none": 1},
    PARTS: {"parts": 6, "foreign": 2, "raising": 2, "liar": 1, "none": 1},
    TOKENS: {"tokens": 6, "foreign": 2, "raising": 2, "none": 1},
    UNUSED: {"foreign": 1},
}  # fmt: skip
STEPS[KEYS] = STEPS[FLOATS] | {"garbage": 4}
STEPS[SCALE] = STEPS[KEYS] | {"scaled": 8}
CALLS = {"missing": 2, "misspelt": 3, "positional": 2, "extra": 1}  # steps of a call, not of an argument
CALL_STEPS_SHARE = 0.06
MEMORY = ("length", "batch", "num_kv_heads", "head_size", "value_size")  # what they ask for may not be there
OWN_SIGNATURE = ("set_num_threads", "KVCache")  # is that of the registry or the model, not of cattn


def steps_of(base, place):
    """Which steps an argument can take, and how often."""
    steps = STEPS[base.kind(place)]
    if base.name == "cattn.h":
        return {"number": 1} if place in C_NUMBERS else {"integers": 1}
    if base.is_ours:
        return steps
    left_out = {"raising", "liar"}  # hostile objects meet PyTorch's own parser first
    if base.name.startswith("transformers."):  # only models call it, with tensors of four axes
        left_out |= {"typed", "shaped"}
    if not base.name.startswith("torch."):
        left_out |= {"wrapped", "listed", "foreign", "none", "huge"}
    return {kind: share for kind, share in steps.items() if kind not in left_out} or {"none": 1}


# Recipes


def weighted(r, weights):
    return r.choices(list(weights), list(weights.values()))[0]


def recipe_of(seed, names, bases=BASES):
    """A random recipe: with one step as a rule, to blame it for what comes."""
    r = random.Random(seed)
    name = weighted(r, {name: SHARES[name] for name in names})
    base = base_of(name, r.randrange(bases))
    steps, taken = [], set()
    for _ in range(weighted(r, {1: 60, 2: 25, 3: 10, 5: 5})):
        if r.random() < CALL_STEPS_SHARE and base.is_ours and name not in OWN_SIGNATURE:
            kind, place = weighted(r, CALLS), "-"
        else:
            place = r.choice(base.places)
            kind = weighted(r, steps_of(base, place))
            if kind == "huge" and steps:
                continue
        if taken.isdisjoint({place, place.partition("[")[0]}):
            taken |= {place, place.partition("[")[0]}
            steps.append(f"{kind}:{place}:{r.randrange(1000)}")
        if kind == "huge":
            break
    return " ".join([name, str(base.seed), *steps])


# Calls


class Case:
    """A recipe as a call: its arguments, what they mean, and what the call must do."""

    def __init__(self, recipe):
        name, seed, *steps = recipe.split()
        self.may_overlap = any(step.startswith("overlap:") for step in steps)  # and then write to an input
        self.base = base = (base_of.__wrapped__ if self.may_overlap else base_of)(name, int(seed))
        self.named, self.given, self.effect = base.fresh(), (), SAME
        self.plain = dict(self.named)
        self.steps = [step.split(":") for step in steps]
        self.is_wrong_call = False
        base.raised = self.raised = []
        model = Model(base, alone=len(steps) == 1)
        self.arrays = {name: as_array(x) for name, x in base.arguments.items() if is_array(x)}
        self.refusals = []
        for kind, place, own in sorted(self.steps, key=lambda step: step[0] in CALLS):
            if kind in CALLS:
                getattr(self, kind)(random.Random(int(own)))
            else:
                self.replace(kind, place, int(own), model)
        changed = place if len(steps) == 1 else None
        if self.effect != OPEN and (words := refusals(base, self.arrays, changed)):
            self.effect = REFUSED
            # An array of another shape may be refused for that.
            if changed in SCALES or (changed and np.shape(self.arrays[changed]) == np.shape(base.arguments[changed])):
                self.refusals = words
        self.may_lack_memory = any(
            kind in ("huge", "liar", "foreign") or place in MEMORY for kind, place, _ in self.steps
        )

    def replace(self, kind, place, seed, model):
        name, _, index = place.partition("[")
        before = self.base.fresh().get(name)
        if index:
            before = before[int(index[:-1])]
        if type(before) is str and self.base.kind(place) == INTEGERS:
            before = np.zeros(2, np.int64)
        if before is None and self.base.kind(place) not in (NUMBER, FLAG, COUNT, WORD, WINDOW, RANGE, TOKENS):
            before = np.zeros(2)
        given = seen = MAKERS[kind](random.Random(seed), before, place, self.base)
        if not is_array(given):  # it may change when it is looked at
            seen = MAKERS[kind](random.Random(seed), before, place, self.base)
        plain, effect = model(place, seen)
        self.arrays.pop(name, None)
        if seen is not None and "[" not in place:
            array = None if kind == "liar" or type(given) is Changing else as_array(seen)
            self.arrays = {} if array is None else self.arrays | {name: array}  # without one, nothing is known of them
        if (kind == "liar" and effect != REFUSED) or type(given) is Changing:
            effect = OPEN
        if type(given) is Changing:  # nobody knows what it was
            plain = None
        if kind in ("raising", "liar") and place in ("outputs", "tokens"):
            effect = OPEN
        if self.base.kind(place) == OUT and is_array(given):
            plain = given
        self.effect = max(self.effect, effect)
        if index:
            self.named, self.plain = (
                {**old, name: replaced(old[name], int(index[:-1]), new)}
                for old, new in ((self.named, given), (self.plain, plain))
            )
            return
        self.named[name] = given
        self.plain[name] = plain
        if plain is None:
            del self.plain[name]

    def missing(self, r):
        changed = {place.partition("[")[0] for _, place, _ in self.steps}
        untouched = [name for name in self.named if name not in changed]
        if not untouched:
            return
        name = r.choice(untouched)
        del self.named[name]
        self.plain.pop(name, None)
        self.arrays.pop(name, None)
        default = getattr(self.base.parameters.get(name), "default", None)
        if default not in (None, inspect.Parameter.empty):
            self.plain[name] = default
        self.effect = max(self.effect, REFUSED if self.base.is_required(name) else OPEN)
        self.is_wrong_call = True

    def misspelt(self, r):
        name = r.choice([*self.base.parameters])
        name = r.choice([name + "s", name[1:], name.upper(), name + " ", "", "is_causal", "attn_mask", "enable_gqa",
                         "dropout_p", "self", "args", "\ud800", "x" * 10**4, "__class__", name[::-1]])  # fmt: skip
        if name not in self.base.parameters:
            self.named[name] = r.choice([None, 1, True])
            self.effect, self.is_wrong_call = REFUSED, True

    def positional_count(self):
        kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
        return sum(parameter.kind not in kinds for parameter in self.base.parameters.values())

    def by_position(self, count):
        names = [name for name in self.base.parameters][:count]
        if not all(name in self.named for name in names):
            return False
        self.given = tuple(self.named.pop(name) for name in names)
        return True

    def positional(self, r):
        self.by_position(r.randrange(1, self.positional_count() + 1))

    def extra(self, r):
        kept = dict(self.named)
        if r.random() < 0.5 and self.by_position(1):
            self.named = kept  # the first one by position and by name
        else:
            names = [*self.base.parameters]
            count = self.positional_count()
            self.given = tuple(self.named.pop(name, None) for name in names[:count]) + (None,) * r.choice([1, 9])
        self.effect, self.is_wrong_call = REFUSED, True

    def __call__(self):
        return self.base.call(*self.given, **self.named)


def replaced(items, index, item):
    return type(items)([*items[:index], item, *items[index + 1 :]])


OURS = re.compile(r"(\w+)(?: start| stop|(?:\[\d+\]))?: expected ")
WRONG_CALL = re.compile(r"(.*?): (not an argument of|expected (an|one) argument|expected at most)", re.DOTALL)


def wrong_error(case, error):
    """Return what is wrong with an exception, or None."""
    base, message = case.base, str(error)
    shown = f"{type(error).__name__}: {message[:300]}"
    if any(error is own for own in case.raised):
        return None
    if isinstance(error, MemoryError):
        return None if case.may_lack_memory else shown
    if isinstance(error, Warning) and any(kind == "liar" for kind, *_ in case.steps):
        return None  # Python's, about the object
    if case.effect in (SAME, VALID):
        return f"refused: {shown}"
    if case.refusals and not message.startswith(tuple(case.refusals)):
        return f"{shown}, not {case.refusals}"
    found = OURS.match(message)
    if not base.is_ours:
        if base.name == "cattn.h":
            return None if type(error) is ValueError and re.match(r"\w+(, \w+)*: ", message) else shown
        kinds = TypeError, ValueError, RuntimeError, NotImplementedError
        # Of PyTorch's dispatcher, and of the registry, which makes tensors.
        theirs = message.startswith(("cattn::attention()", "Exceeds the limit", "can't convert np.ndarray"))
        return None if type(error) in kinds and (": expected " in message or theirs) else shown
    if type(error) in (TypeError, ValueError) and found and found[1] in base.parameters:
        return None
    if case.is_wrong_call and type(error) is TypeError:
        title = base.name.rpartition(".")[2]
        if WRONG_CALL.match(message) or message.startswith(f"{title}() "):
            return None
    return shown


def wrong_result(case, result):
    base = case.base
    if case.effect == REFUSED:
        return "accepted"
    given = case.named.get("out") if base.function.outputs else None
    if is_array(given) and base.name != "plan":
        has_lse = type(result) is tuple
        if (result[0] if has_lse else result) is not given:
            return "out is not what was given"
        case.plain["out"] = out = np.ndarray.view(given, np.ndarray)  # without what its class says
        result = (out, *result[1:]) if has_lse else out
    try:
        if case.effect == SAME:
            if base.name == "plan":  # which depends on strides
                return None
            if base.name in ("self_attention", "trace"):  # matrix products, whose bits NumPy promises for no strides
                base.function.check(case.plain, result)
            elif fingerprint(result) != base.result:
                return "other bits"
        elif case.effect in (VALID, MAYBE) and base.name != "plan":
            base.function.check(case.plain, result)
        else:
            return wrong_shape(case, result)
    except Exception as error:
        return f"{type(error).__name__} in the check: {str(error)[:300]}"
    return None


def wrong_shape(case, result):
    """Report a call of which nothing else is known."""
    name, plain = case.base.name, case.plain
    for x in result if isinstance(result, tuple) else ():
        if not isinstance(x, np.ndarray) and x is not None:
            return f"{type(x)} in the result"
    if name not in ("attention", "attention_weights") or not all(
        isinstance(plain.get(x), np.ndarray) for x in ("query", "key")
    ):
        return None
    names = ("query", "key", "value") if name == "attention" else ("query", "key")
    arrays = [plain.get(x) for x in names]
    if not all(isinstance(x, np.ndarray) for x in arrays):
        return None
    if plain.get("layout") == "blhd" and arrays[0].ndim > 2:
        arrays = [x.swapaxes(-2, -3) for x in arrays]
    batch = cases_broadcast(*(x.shape[:-3] for x in arrays))
    shape = (*batch, *arrays[0].shape[-3:-1], arrays[1].shape[-2] if name == "attention_weights" else
             arrays[2].shape[-1])  # fmt: skip
    if plain.get("layout") == "blhd" and arrays[0].ndim > 2 and name == "attention":
        shape = (*shape[:-3], shape[-2], shape[-3], shape[-1])
    out = result[0] if isinstance(result, tuple) else result
    return None if out.shape == shape else f"shape {out.shape}, not {shape}"


def cases_broadcast(*shapes):
    """NumPy's own takes 32 axes."""
    sizes = itertools.zip_longest(*map(reversed, shapes), fillvalue=1)
    return tuple(min(axis) if 0 in axis else max(axis) for axis in sizes)[::-1]


def what_is_wrong(recipe):
    """(how a call ended, what is wrong with that or None)."""
    case = Case(recipe)
    out = case.plain.get("out")
    out = np.ndarray.view(out, np.ndarray) if is_array(out) else None
    out = None if out is None or out.size > 1e6 else out
    out_before = None if out is None else out.tobytes()
    try:
        result = case()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not any(error is own for own in case.raised):
            raise
        how = "raised" if any(error is own for own in case.raised) else "refused"
        wrong = wrong_error(case, error)
        if wrong is None and out is not None and out.tobytes() != out_before:
            wrong = "out was written to"
    else:
        how, wrong = ("same", "valid", "valid", "open", "accepted")[case.effect], wrong_result(case, result)
    if wrong is None and case.base.contents() != case.base.before and not case.may_overlap:
        wrong = "an input was written to"
    return how, wrong


def shortened(recipe):
    """A recipe with as few steps as go wrong."""
    head, steps = recipe.split()[:2], recipe.split()[2:]
    for step in list(steps):
        fewer = [other for other in steps if other is not step]
        if what_is_wrong_with(" ".join(head + fewer))[1]:
            steps = fewer
    return " ".join(head + steps)


def described(recipe):
    """A recipe that goes wrong, in a few lines."""
    recipe = shortened(recipe)
    how, what = what_is_wrong_with(recipe)
    lines = [recipe, f"    {what}"]
    if how == "fuzzer":
        return "\n".join(lines)
    case = Case(recipe)
    for _, place, _ in case.steps:
        name = place.partition("[")[0]
        if name in case.named:
            try:
                text = repr(case.named[name])
            except BaseException as error:
                text = f"repr raises {type(error).__name__}"
            lines.append(f"    {place} = {type(case.named[name])} {text[:200]}")
    return "\n".join(lines)


def what_is_wrong_with(recipe):
    """Do it where something may be wrong with the fuzzer itself."""
    try:
        return what_is_wrong(recipe)
    except Exception as error:
        return "fuzzer", f"{type(error).__name__} of the fuzzer: {error}"


def fuzz(seeds, names, note=lambda seed: None, bases=BASES):
    """Make the calls of these seeds; return how often each end came, and what went wrong."""
    ends, wrong = collections.Counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in seeds:
            note(seed)
            recipe = recipe_of(seed, names, bases)
            how, what = what_is_wrong_with(recipe)
            ends[how] += 1
            if what is not None:
                wrong.append(described(recipe))
    return ends, wrong


def is_there(name):
    return ALL[name].is_there


# A million calls, in processes


CHUNK = 2_000  # calls that are recorded together


def begin(handle, seed):
    """Note the seed, and end the process if a call takes for ever: minutes of a processor, however busy that is."""
    os.pwrite(handle, b"%12d" % seed, 0)
    if seed % 64 == 0:
        signal.setitimer(signal.ITIMER_PROF, 120)


def limit_memory(most=8 * 2**30):
    """Arrays that are too large fail then, whatever the system would promise."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def part(start, count, record, until):
    """Make these calls and record what came of them, unless it is too late. The file RECORD.at.PROCESS says which seed
    the process is at, if it does not come back."""
    if time.time() > until:
        return
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # shows where it is, and lets the signal end it
    limit_memory()
    handle = os.open(f"{record}.at.{os.getpid()}", os.O_CREAT | os.O_RDWR)
    began = time.process_time()
    names = [name for name in SHARES if is_there(name)]
    ends, wrong = fuzz(range(start, start + count), names, lambda seed: begin(handle, seed))
    signal.setitimer(signal.ITIMER_PROF, 0)
    os.close(handle)
    seconds = time.process_time() - began
    line = json.dumps({"start": start, "calls": count, "seconds": seconds, "ends": ends, "wrong": wrong})
    with open(record, "a", encoding="utf-8") as lines:
        lines.write(line + "\n")


def recorded(record):
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def main():
    parser = argparse.ArgumentParser(description="Call every public function with strange arguments.")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--record", type=Path, default="build/fuzz.jsonl", help="gets a line for each part")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no part after so many")
    parser.add_argument("recipe", nargs="*", help="make this call alone")
    options = parser.parse_args()
    if options.recipe:
        warnings.simplefilter("error")
        print(described(" ".join(options.recipe)))
        return 0
    options.record.parent.mkdir(parents=True, exist_ok=True)
    done = {part["start"] for part in recorded(options.record)}
    left = [start for start in range(0, options.calls, CHUNK) if start not in done]
    until = time.time() + options.seconds
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, context) as processes:
        parts = [
            processes.submit(part, start, min(CHUNK, options.calls - start), str(options.record), until)
            for start in left
        ]
        try:
            for each in parts:
                each.result()
        except concurrent.futures.process.BrokenProcessPool:
            for file in options.record.parent.glob(options.record.name + ".at.*"):
                print(f"a process ended; {file.name}: seed {file.read_text()}")
            return 1
    for file in options.record.parent.glob(options.record.name + ".at.*"):
        file.unlink()
    done = recorded(options.record)
    wrong = [text for part in done for text in part["wrong"]]
    ends = sum((collections.Counter(part["ends"]) for part in done), collections.Counter())
    calls, seconds = (sum(part[name] for part in done) for name in ("calls", "seconds"))
    print(*wrong, sep="\n")
    print(f"{calls} calls in {seconds:.0f} s of one core: {dict(ends)}; {len(wrong)} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
