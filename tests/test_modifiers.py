"""The table of modifiers says what is there. Each place that cannot ask the table is compared with it here, and the
test of a place names the modifiers that it lacks."""

import importlib
import inspect
import re

import cases
import fuzz_model
import numpy as np
import pytest
from helpers import PACKAGE, normal

import cattn
from cattn import _cli_selftest, _modifiers, flash_attn, reference
from cattn._modifiers import MODIFIERS, Modifiers

ROOT = PACKAGE.parent
OF_FLASH_ATTN = ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache")

# The queries, keys and values of one head are the same array (tokens, heads, size), so that all functions compare.
X = normal(9, 1, 6, dtype=np.float64)
ENDS = [0, len(X)]
ONE = np.eye(6)
PAGES = X, X.reshape(3, 3, 1, 6)[[2, 0, 1]], X.reshape(3, 3, 1, 6)[[2, 0, 1]], [[1, 2, 0]], [9]
OWN = {"attention_paged": {"key_lengths"}}  # arguments that are no modifiers there

# What shows each modifier: the result is another one without it.
EXAMPLES = {
    "scale": {"scale": 0.7},
    "causal": {"causal": True},
    "window": {"window": (2, 1)},
    "query_offset": {"query_offset": 2, "causal": True},
    "key_range": {"key_range": (np.arange(9) // 3, np.full(9, 6))},
    "query_lengths": {"query_lengths": 5},
    "key_lengths": {"key_lengths": 5},
    "mask": {"mask": np.arange(81).reshape(9, 9) % 3 > 0},
    "bias": {"bias": normal(9, 9, dtype=np.float64)},
    "alibi_slopes": {"alibi_slopes": np.array([0.5])},
    "softcap": {"softcap": 0.8},
    "sinks": {"sinks": np.array([1.5])},
}


def through_weights(function):
    def call(**modifiers):
        return np.einsum("hij,jhd->ihd", function(X, X, layout="blhd", **modifiers), X)

    return call


def through_c(**modifiers):
    from c_interface_calls import DONE, Call, capsule

    call = Call(query=X, key=X, value=X, layout="blhd", with_lse=False, **modifiers)
    assert capsule(call.arguments)[0] == DONE
    return call.results[0].swapaxes(0, 1)


def through_dask(**modifiers):
    da = pytest.importorskip("dask.array")
    import cattn.dask

    x = da.from_array(X.swapaxes(0, 1), (-1, 4, -1))
    return cattn.dask.attention(x, x, x, **modifiers).compute(scheduler="sync").swapaxes(0, 1)


def through_gradients(function):
    """Return a function that finds the weights as gradients of values, and from them the context."""

    def call(**modifiers):
        none = np.zeros_like(X[..., :1]).repeat(len(X), axis=-1)
        out, lse = cattn.attention(X, X, none, layout="blhd", return_lse=True, **modifiers)
        weights = function(np.eye(len(X))[:, None], X, X, none, out, lse, layout="blhd", **modifiers).value
        return np.einsum("jhi,jhd->ihd", weights, X)

    return call


# Each takes modifiers and returns the context (tokens, heads, size).
CALLS = {
    "attention": lambda **modifiers: cattn.attention(X, X, X, layout="blhd", **modifiers),
    "attention_weights": through_weights(cattn.attention_weights),
    "attention_backward": through_gradients(cattn.attention_backward),
    "attention_varlen": lambda **modifiers: cattn.attention_varlen(X, X, X, ENDS, ENDS, **modifiers),
    "attention_paged": lambda **modifiers: cattn.attention_paged(*PAGES, query_indptr=ENDS, **modifiers),
    "self_attention": lambda **modifiers: cattn.self_attention(X[:, 0], ONE, ONE, ONE, **modifiers)[:, None],
    "trace": lambda **modifiers: cattn.trace(X[:, 0], ONE, ONE, ONE, **modifiers).context[:, None],
    "reference.attention": lambda **modifiers: reference.attention(X, X, X, layout="blhd", **modifiers),
    "reference.attention_weights": through_weights(reference.attention_weights),
    "reference.attention_backward": through_gradients(reference.attention_backward),
    "reference.attention_varlen": lambda **modifiers: reference.attention_varlen(X, X, X, ENDS, ENDS, **modifiers),
    "reference.attention_paged": lambda **modifiers: reference.attention_paged(*PAGES, query_indptr=ENDS, **modifiers),
    "dask.attention": through_dask,
    "cattn.h": through_c,
    "flash_attn_func": lambda **modifiers: flash_attn.flash_attn_func(X[None], X[None], X[None], **modifiers)[0],
    "flash_attn_varlen_func": lambda **modifiers: flash_attn.flash_attn_varlen_func(
        X, X, X, np.array(ENDS), np.array(ENDS), 9, 9, **modifiers
    ),
    "flash_attn_with_kvcache": lambda **modifiers: flash_attn.flash_attn_with_kvcache(
        X[None], X[None], X[None], **modifiers
    )[0],
}
FUNCTIONS = {name: getattr(cattn, name) for name in CALLS if "." not in name and "flash" not in name}
FUNCTIONS |= {"plan": cattn.plan} | {
    f"reference.{name}": getattr(reference, name) for name in reference.__all__ if "maxsim" not in name
}
EVERY_CALL = pytest.mark.parametrize("place", CALLS)
EVERY_FUNCTION = pytest.mark.parametrize("place", [*FUNCTIONS, "dask.attention"])


def names_of(place):
    """Return the modifiers that a function takes, and the names that it has for them."""
    if place in OF_FLASH_ATTN:
        return _modifiers.names_in("flash_attn")
    taken = cases.taken_by(place.removeprefix("reference."))
    return {name: name for name in MODIFIERS if name in taken}


def function_of(place):
    if place == "dask.attention":
        pytest.importorskip("dask.array")
        import cattn.dask

        return cattn.dask.attention
    return getattr(flash_attn, place) if place in OF_FLASH_ATTN else FUNCTIONS[place]


def lacking(names, found):
    return [name for name in names if name not in found]


# The table itself


def test_fields():
    """Modifiers has the fields that some modifier sets, and no others."""
    fields = [field for row in MODIFIERS.values() for field in row.fields]
    assert set(fields) == set(Modifiers._fields)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_reader_sets(name):
    sizes = _modifiers.Sizes((), 1, 9, 9, 6, np.dtype(np.float64))
    row, argument = MODIFIERS[name], EXAMPLES[name][name]
    assert row.read(name, argument, sizes).keys() <= set(row.fields)


def test_causal_counts_before_a_window():
    sizes = _modifiers.Sizes((), 1, 9, 9, 6, np.dtype(np.float64))
    for given in ({"causal": True, "window": (2, 3)}, {"window": (2, 3), "causal": True}):
        found = _modifiers.modifiers(sizes, **given)
        assert (found.window_left, found.window_right) == (2, 0)


# Python


@EVERY_FUNCTION
def test_signature(place):
    """The modifiers stand together, in the table's order and with its defaults, and are given by name."""
    if place in ("reference.attention_varlen", "reference.attention_paged"):
        pytest.skip("it passes the names on")
    parameters = [*inspect.signature(function_of(place)).parameters.values()]
    expected = [(name, parameters[0].KEYWORD_ONLY, MODIFIERS[name].default) for name in names_of(place)]
    names = [parameter.name for parameter in parameters]
    assert lacking(names_of(place), names) == []
    start = names.index(next(iter(names_of(place))))
    found = parameters[start : start + len(expected)]
    assert [(parameter.name, parameter.kind, parameter.default) for parameter in found] == expected
    others = [name for name in MODIFIERS if name not in OWN.get(place, ())]
    assert lacking(names, others) == [*names[:start], *names[start + len(expected) :]]


@EVERY_FUNCTION
def test_docstring(place):
    documented = inspect.getdoc(function_of(place)).partition("Parameters\n")[2].partition("Returns\n")[0]
    assert lacking(names_of(place), re.findall(r"\w+", documented)) == []


@pytest.mark.parametrize("place", OF_FLASH_ATTN)
def test_signature_and_docstring_of_flash_attn(place):
    function = function_of(place)
    documented = inspect.getdoc(function).partition("Parameters\n")[2].partition("Returns\n")[0]
    assert lacking(names_of(place).values(), inspect.signature(function).parameters) == []
    assert lacking(names_of(place).values(), re.findall(r"\w+", documented)) == []


@pytest.mark.parametrize(
    ("module", "function"), [("torch", "scaled_dot_product_attention"), ("transformers", "_attention")]
)
def test_signature_of_other_libraries(module, function):
    pytest.importorskip(module)
    function = getattr(importlib.import_module(f"cattn.{module}"), function)
    assert lacking(_modifiers.names_in(module).values(), inspect.signature(function).parameters) == []


@EVERY_CALL
def test_results(place):
    """Each modifier counts, and means what it means in the specification."""
    assert lacking(names_of(place), EXAMPLES) == []
    call, names = CALLS[place], names_of(place)
    wrong = []
    for name in names:
        example = EXAMPLES[name]
        expected = reference.attention(X, X, X, layout="blhd", **example)
        without = call(**{names[other]: x for other, x in example.items() if other != name})
        found = call(**{names[other]: x for other, x in example.items()})
        if np.allclose(found, without, rtol=1e-3) or not np.allclose(found, expected, rtol=1e-9):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("place", [*CALLS, "plan"])
def test_errors(place):
    """A wrong argument is refused by its own name."""
    if place.startswith(("reference.", "cattn.h")):
        pytest.skip("it checks nothing, or has no such arguments")
    call = CALLS.get(place, lambda **modifiers: cattn.plan(X, X, X, **modifiers))
    for name in names_of(place).values():
        with pytest.raises(TypeError, match=rf"^{name}: expected"):
            call(**{name: object()})


# C


def identifiers(path, start="", end="\0"):
    """Return the identifiers in a file of the checkout, between two texts."""
    if not (ROOT / path).exists():
        pytest.skip("not in a checkout")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert start in text
    return set(re.findall(r"\w+", text.partition(start)[2].partition(end)[0] if start else text))


PLACES_OF_FIELDS = {
    "cattn/cattn.h, cattn_attention_args": ("    size_t struct_size;", "} cattn_attention_args;"),
    "cattn/__init__.pxd, cattn_attention_args": ("struct cattn_attention_args:", "ctypedef enum"),
    "src/problem.h, cattn_problem": ("cattn_array lse;", "} cattn_problem;"),
    "src/problem.pxd, cattn_problem": ("struct cattn_problem:", "\0"),
    "src/arrays.pxd, set_modifiers": ("int set_modifiers(", "\n\n\n"),
    "src/arrays.pxd, set_unmodified": ("void set_unmodified(", "\n\n\n"),
    "src/c_arguments.h, cattn_arguments": ("cattn_arguments[] = {", "enum { CATTN_ARGUMENTS"),
}


@pytest.mark.parametrize("place", PLACES_OF_FIELDS)
def test_fields_in_c(place):
    found = identifiers(place.partition(",")[0], *PLACES_OF_FIELDS[place])
    assert [name for name, row in MODIFIERS.items() if lacking(row.fields, found)] == []


@pytest.mark.parametrize("path", ["cattn/cattn.h", "cattn/__init__.pxd", "src/c_arguments.h", "src/c_api.pxd"])
def test_flags_in_c(path):
    found = identifiers(path)
    assert [name for name, row in MODIFIERS.items() if lacking(row.flags, found)] == []


@pytest.mark.parametrize("path", ["cattn/cattn.h", "cattn/__init__.pxd", "src/c_arguments.h"])
def test_arguments_in_c(path):
    """A status names the argument that is wrong. Flags have one name together."""
    found = identifiers(path)
    names = {name: {f"CATTN_ARGUMENT_{x.upper()}" for x in (name, *row.fields)} for name, row in MODIFIERS.items()}
    names = {name: arguments for name, arguments in names.items() if MODIFIERS[name].kind != "flag"}
    assert [name for name, arguments in names.items() if not arguments & found] == []


# Tests, selftest and pages


def test_generated_cases():
    assert lacking(MODIFIERS, cases.MODIFIERS) == []
    assert set().union(*(cases.case(seed, work=10_000) for seed in range(300))) >= MODIFIERS.keys()


def test_fuzzer():
    """It has a method that says what an argument of a kind means."""
    assert lacking(MODIFIERS, fuzz_model.KINDS) == []
    assert [name for name in MODIFIERS if not hasattr(fuzz_model.Model, fuzz_model.KINDS[name])] == []


def test_selftest():
    assert lacking(MODIFIERS, set().union(*(case for _, case in _cli_selftest._cases()))) == []


def test_pages():
    if not (ROOT / "docs" / "guide").exists():
        pytest.skip("not in a checkout")
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "guide").glob("*.md"))
    assert lacking(MODIFIERS, re.findall(r"\w+", text)) == []
