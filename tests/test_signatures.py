"""Functions that do the same kind of work take the same arguments, and `__all__` lists what is public."""

import inspect

import cattn


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_plan_takes_what_attention_takes():
    assert parameters_of(cattn.plan) == parameters_of(cattn.attention)


def test_all_is_what_there_is():
    public = {name for name in vars(cattn) if not name.startswith("_")} | {"__version__"}
    imported_by_name = {"dask", "flash_attn", "threadpoolctl", "torch", "transformers"}  # there once somebody did
    assert public - imported_by_name == set(cattn.__all__)
    assert all(hasattr(cattn, name) for name in cattn.__all__)
