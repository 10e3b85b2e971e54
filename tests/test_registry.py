"""Each public function is in the registry, and gives what its reference gives."""

import importlib
import importlib.util

import numpy as np
import pytest
from registry import FUNCTIONS, SETTINGS, TYPES_OF_RESULTS, arrays_of, copied, fingerprint

import cattn

MODULES = {"dask": "dask", "flash_attn": None, "torch": "torch", "transformers": "transformers"}


def test_all_public_functions_are_there():
    names = {name for name in cattn.__all__ if callable(getattr(cattn, name))} - SETTINGS - TYPES_OF_RESULTS
    assert names == {name for name in FUNCTIONS if "." not in name}


@pytest.mark.parametrize("name", MODULES)
def test_all_functions_of_other_modules_are_there(name):
    if MODULES[name] and importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    # The context calls scaled_dot_product_attention, and the cache computes nothing.
    names = set(importlib.import_module("cattn." + name).__all__) - {"sdpa", "AppendCache"}
    assert {f"{name}.{x}" for x in names} == {x for x in FUNCTIONS if x.startswith(name + ".")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results(name):
    function = FUNCTIONS[name]
    if not function.is_there:
        pytest.skip(f"{function.needs} is not installed")
    for seed in range(60):
        arguments = function.arguments(seed)
        before = [x.tobytes() for (name, *_), x in arrays_of(arguments) if name not in function.outputs]
        try:
            result = function.call(**arguments)
            function.check(arguments, result)
            again = copied(arguments)
            assert fingerprint(function.call(**again)) == fingerprint(result)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        assert before == [x.tobytes() for (name, *_), x in arrays_of(arguments) if name not in function.outputs]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_result_is_noticed(name):
    """The checks can fail. They accept another number only where scores are so large that nothing is promised."""
    function = FUNCTIONS[name]
    if not function.is_there or name in ("plan", "trace"):
        pytest.skip("its result is no array")
    noticed = []
    for seed in range(30):
        arguments = function.arguments(seed)
        result = function.call(**arguments)
        first = result[0] if isinstance(result, tuple) else result
        if first.size == 0:
            continue
        index = tuple(n // 2 for n in first.shape)
        if first.dtype == np.int8:
            first[index] = -1 - first[index]
        else:
            first[index] = 100 if np.isinf(first[index]) else 2 * float(first[index]) + 100
        try:
            function.check(arguments, result)
            noticed.append(False)
        except AssertionError:
            noticed.append(True)
    assert len(noticed) > 5 and sum(noticed) >= 0.9 * len(noticed)
