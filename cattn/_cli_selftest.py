"""``cattn selftest`` compares each kernel table that this machine runs with the reference, in a process of its own.

It compares whole calls. Their shapes and modifiers together reach every kernel of a table: full and partial tiles and
blocks, each number of few rows, keys in several chunks, and every type. An error is given as a share of the allowed
error, `cattn.reference.error_bound`.
"""

import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np

import cattn
from cattn import _kernel, reference
from cattn._cli import print_table
from cattn.reference import _bounds

# The checks of one table may take so long on a slow machine that others use too.
SECONDS = 120
SHOWN = 5  # So many failures of one table are printed.
HALF_TYPES = ("float16", "bfloat16")

# Each shape is (query heads, key heads, queries, keys, head size, value size). More than 8 queries a key head are "many
# rows". Few rows take keys, and values, from up to four places of a block in turn: 450 of 512 keys from four and from
# three, 200 from two and from one.
MANY = [(2, 1, 45, 150, 64, 64), (2, 2, 37, 90, 80, 33), (1, 1, 20, 17, 3, 5), (1, 1, 70, 65, 129, 1)]
FEW = [(rows, 1, 1, 450, 64, 64) for rows in range(1, 9)] + [(4, 2, 3, 200, 80, 33), (2, 2, 5, 17, 3, 5)]
LONG = [(1, 1, 20, 901, 64, 64), (1, 1, 1, 2100, 64, 64), (8, 1, 1, 2100, 32, 64)]
LARGE = [(1, 1, 20, 30, 300, 300), (3, 1, 1, 70, 300, 300), (1, 1, 3, 5, 300, 17000)]
# Each of these shapes is computed with a modifier, by turns.
MODIFIED = [*MANY[:1] * 12, *MANY[1:] * 4, *FEW * 3, *LONG, *LARGE]
MODIFIERS = (
    "large scores", "causal", "window", "mask", "bias", "ALiBi", "softcap", "sinks", "lengths", "ranges", "NaN",
    "all of them",
)  # fmt: skip


def add_parser(commands):
    commands.add_parser(
        "selftest",
        help="check every kernel table that this machine runs",
        description="Compare every kernel table that this machine runs with the NumPy reference. This takes "
        "some seconds. The exit status is 1 if one of them is wrong.",
        allow_abbrev=False,
    )


def run(options):
    tables = {}
    for isa in _kernel.runnable_isas():
        if sys.stderr is not None and sys.stderr.isatty():
            print(f"checking {isa} ...", file=sys.stderr)
        tables[isa] = _check_in_process(isa)

    rows = []
    for isa, (errors, broken, seconds) in tables.items():
        name = f"{isa} (in use)" if isa == _kernel.isa() else isa
        largest = max(errors.values(), default=0.0)
        rows.append((name, len(errors), f"{largest:.2g}", f"{seconds:.1f}", f"{len(broken)} wrong" if broken else "ok"))
    print_table(rows, headings=("kernel table", "checks", "error / allowed", "seconds", "result"))
    if "bfloat16" not in _types():
        print("bfloat16 was not checked: it needs ml_dtypes (pip install ml_dtypes)")

    wrong = {isa: broken for isa, (_, broken, _) in tables.items() if broken}
    if not wrong:
        return 0
    for isa, broken in wrong.items():
        print(*(f"{isa}: {message}" for message in broken[:SHOWN]), sep="\n")
        if len(broken) > SHOWN:
            print(f"{isa}: ... and {len(broken) - SHOWN} more")
    print("Please report this, with what `cattn info` prints.")
    for isa in [isa for isa in tables if isa not in wrong][:1]:
        print(f"Until it is fixed, set CATTN_ISA={isa} in the environment, which selects a table that is right.")
    return 1


def _check_in_process(isa):
    """Return what the checks of a table found: the error of each as a share of the allowed error, by name; a line for
    each error that is too large; and the seconds that the checks took.

    The checks run in their own process, because the table is chosen at import, and a wrong one may end the process.
    """
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from cattn._cli_selftest import check; check()"
    command = [sys.executable, "-c", code, json.dumps(sys.path)]
    # One thread for NumPy's BLAS: it takes small matrices only, and each call of cattn says how many it wants.
    environment = os.environ | {"CATTN_ISA": isa, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    ) as process:
        try:
            printed, complaint = process.communicate(timeout=SECONDS)
            ending = f"the process ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            printed, complaint = process.communicate()
            ending = f"did not end within {SECONDS} seconds"
    errors, begun = {}, "before the first check"
    for name, error in map(json.loads, printed.splitlines()):
        if error is None:
            begun = name
        else:
            errors[name] = error
    broken = [f"{name}: the error is {error:.3g} times what is allowed" for name, error in errors.items() if error > 1]
    if process.returncode:
        last_line = "".join(complaint.strip().splitlines()[-1:])
        broken.append(f"{begun}: {ending}. {last_line}")
    return errors, broken, time.perf_counter() - started


def check():
    """Print a line of JSON before each check, [name, null], and one after it, [name, error]."""
    for name, case in _cases():
        print(json.dumps([name, None]), flush=True)
        print(json.dumps([name, _error(case)]), flush=True)


def _cases():
    """Yield the name and the arguments of `attention` of each check. They are the same in each process."""
    random = np.random.default_rng(0)
    types = _types()
    pairs = [(name, name) for name in types] + [("float32", name) for name in types if name in HALF_TYPES]
    for query_type, key_type in pairs:
        modifiers = itertools.cycle(MODIFIERS)
        plain = [(shape, "no modifier") for shape in MANY + FEW + LONG + LARGE]
        modified = [(shape, next(modifiers)) for shape in MODIFIED]
        for shape, modifier in plain + modified:
            heads, key_heads, rows, keys, size, value_size = shape
            case = {
                "query": random.standard_normal((heads, rows, size)).astype(types[query_type]),
                "key": random.standard_normal((key_heads, keys, size)).astype(types[key_type]),
                "value": random.standard_normal((key_heads, keys, value_size)).astype(types[key_type]),
            }
            kind = query_type if query_type == key_type else f"{query_type} over {key_type}"
            sizes = f"{size}" if size == value_size else f"{size} and {value_size}"
            name = f"{kind}, {heads}/{key_heads} heads, {rows} x {keys}, head size {sizes}, {modifier}"
            yield name, case | _modify(random, case, modifier)


def _modify(random, case, modifier):
    """Return the arguments that make up a modifier, and the arrays that it changes."""
    (heads, rows, _), keys = case["query"].shape, case["key"].shape[1]
    length = keys - keys // 3
    bias = random.standard_normal((heads, rows, keys)).astype(np.float32)
    bias[random.random(bias.shape) < 0.1] = -np.inf
    start = random.integers(-2, keys // 2, (heads, rows))
    each = {
        "large scores": {"scale": 16.0},  # Their exponentials are beyond float32.
        "causal": {"causal": True, "query_offset": "end"},
        "window": {"window": (20, 5), "query_offset": keys // 2},
        "mask": {"mask": random.random((rows, keys)) < 0.7},
        "bias": {"bias": bias},
        "ALiBi": {"alibi_slopes": 2.0 ** -np.arange(3.0, heads + 3), "query_offset": "end"},
        "softcap": {"softcap": 1.5},
        "sinks": {"sinks": random.standard_normal(heads)},
        "lengths": {"query_lengths": max(1, rows - 2), "key_lengths": length},
        "ranges": {"key_range": (start, start + random.integers(0, keys, start.shape))},
    }
    if modifier == "lengths":  # What does not exist may hold anything.
        changed = {name: case[name].copy() for name in ("key", "value")}
        for array in changed.values():
            array[:, length:] = np.nan
        return each["lengths"] | changed
    if modifier == "NaN":  # It reaches the queries that attend to it, in its column, and no other.
        value = case["value"].copy()
        value[:, keys // 3, 0], value[:, keys // 2, -1] = np.nan, np.inf
        return each["mask"] | {"value": value}
    if modifier == "all of them":
        all_of_them = {name: x for arguments in each.values() for name, x in arguments.items()}
        return all_of_them | {"scale": None, "query_offset": "end"}
    return each.get(modifier, {})


def _error(case):
    """Return the largest error of a call's results as a share of the allowed error. It is infinity if another number of
    threads gives other bits."""
    without_value = {name: x for name, x in case.items() if name != "value"}
    out, lse = cattn.attention(**case, return_lse=True, num_threads=1)
    again = cattn.attention(**case, num_threads=2)
    weights = cattn.attention_weights(**without_value, num_threads=2)
    if out.tobytes() != again.tobytes():
        return np.inf

    expected, expected_lse = reference.attention(**case, return_lse=True)
    expected_weights = reference.attention_weights(**without_value)
    bound, lse_bound = reference.error_bound(**case, return_lse=True)
    # A weight is exp(score - lse). It is off by about the share of itself that lse is off by, unless it underflows.
    weights_bound = lse_bound[..., None] * expected_weights + np.finfo(weights.dtype).smallest_normal
    return max(
        _share(out, expected, bound),
        _share(lse, expected_lse, lse_bound),
        _share(weights, expected_weights, weights_bound),
    )


def _share(found, expected, allowed):
    """Return the largest error as a share of what is allowed, which is infinity if a number is wrongly NaN."""
    with np.errstate(all="ignore"):
        error = _bounds.distance_between(found, expected)
        return _bounds.largest_kappa(np.where(error == 0, 0, error / allowed))


def _types():
    """Return {name: dtype} of all types that are available here."""
    types = {name: np.dtype(name) for name in ("float32", "float64", "float16")}
    try:
        import ml_dtypes
    except ImportError:
        return types
    return types | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
