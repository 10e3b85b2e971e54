"""Functions that do the like take the like: the same modifiers, by name, in one order, with the same defaults."""

import inspect

import cases
import pytest

import cattn
from cattn import reference

MODIFIERS = {
    "scale": None,
    "causal": False,
    "window": None,
    "query_offset": None,
    "key_range": None,
    "query_lengths": None,
    "key_lengths": None,
    "mask": None,
    "bias": None,
    "alibi_slopes": None,
    "softcap": None,
    "sinks": None,
}
TAKE_MODIFIERS = {
    "attention": cattn.attention,
    "attention_weights": cattn.attention_weights,
    "plan": cattn.plan,
    "self_attention": cattn.self_attention,
    "trace": cattn.trace,
    "reference.attention": reference.attention,
    "reference.attention_weights": reference.attention_weights,
}


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def modifiers_of(function):
    """(name, default) of each, from the first to the last: they stand together, and by name only."""
    parameters = parameters_of(function)
    names = [name for name, _, _ in parameters]
    found = parameters[names.index("scale") : names.index("sinks") + 1]
    assert {kind for _, kind, _ in found} == {inspect.Parameter.KEYWORD_ONLY}
    return [(name, default) for name, _, default in found]


@pytest.mark.parametrize("function", TAKE_MODIFIERS.values(), ids=TAKE_MODIFIERS)
def test_modifiers(function):
    assert modifiers_of(function) == list(MODIFIERS.items())


def test_modifiers_of_packed_sequences():
    """Those that need no array over batch, heads, queries or keys."""
    without = {"key_range", "query_lengths", "key_lengths", "mask", "bias"}
    expected = [(name, default) for name, default in MODIFIERS.items() if name not in without]
    assert modifiers_of(cattn.attention_varlen) == expected


def test_generated_cases_draw_every_modifier():
    assert cases.MODIFIERS - {"layout"} == set(MODIFIERS)


def test_plan_takes_what_attention_takes():
    assert parameters_of(cattn.plan) == parameters_of(cattn.attention)


def test_all_is_what_there_is():
    public = {name for name in vars(cattn) if not name.startswith("_")} | {"__version__"}
    imported_by_name = {"dask", "flash_attn", "threadpoolctl", "torch", "transformers"}  # there once somebody did
    assert public - imported_by_name == set(cattn.__all__)
    assert all(hasattr(cattn, name) for name in cattn.__all__)
