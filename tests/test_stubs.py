"""The stubs say what is really there: names, kinds and defaults of all parameters. All functions take the same
modifiers."""

import ast
import dataclasses
import inspect
from pathlib import Path

import cases
import pytest

import cattn
from cattn import reference

STUB = Path(cattn.__file__).with_name("__init__.pyi")
TREE = ast.parse(STUB.read_text(encoding="utf-8"))
FUNCTIONS = [node for node in TREE.body if isinstance(node, ast.FunctionDef)]
CLASSES = [node for node in TREE.body if isinstance(node, ast.ClassDef)]
NO_DEFAULT = inspect.Parameter.empty


def stub_parameters(function):
    """(name, kind, default) of each parameter."""
    arguments = function.args
    assert not arguments.posonlyargs and not arguments.vararg and not arguments.kwarg
    count = len(arguments.args)
    defaults = [None] * (count - len(arguments.defaults)) + arguments.defaults + arguments.kw_defaults
    for number, (argument, default) in enumerate(zip(arguments.args + arguments.kwonlyargs, defaults, strict=True)):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if number < count else inspect.Parameter.KEYWORD_ONLY
        yield argument.arg, kind, NO_DEFAULT if default is None else ast.literal_eval(default)


def real_parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def overloads(function):
    return [node for node in FUNCTIONS if node.name == function.name]


def is_required(parameter):
    return parameter[2] is NO_DEFAULT


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda node: f"{node.name}-{node.lineno}")
def test_parameters(function):
    found, expected = list(stub_parameters(function)), real_parameters(getattr(cattn, function.name))
    if len(overloads(function)) > 1:
        # `return_lse: Literal[True]` has no default in the overload that it selects.
        found = [p for p in found if p[0] != "return_lse"]
        expected = [p for p in expected if p[0] != "return_lse"]
    assert found == expected


@pytest.mark.parametrize("name", ["attention", "attention_varlen", "self_attention"])
def test_return_lse_selects_the_result(name):
    signatures = [node for node in FUNCTIONS if node.name == name]
    flags = []
    for node in signatures:
        assert [decorator.id for decorator in node.decorator_list] == ["overload"]
        (flag,) = (argument.annotation for argument in node.args.kwonlyargs if argument.arg == "return_lse")
        flags.append((ast.unparse(flag), ast.unparse(node.returns)))
    array, pair = "NDArray[Any]", "tuple[NDArray[Any], NDArray[Any]]"
    assert flags == [("Literal[False]", array), ("Literal[True]", pair), ("_Flag", f"{array} | {pair}")]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda node: f"{node.name}-{node.lineno}")
def test_everything_is_annotated(function):
    assert function.returns is not None
    for argument in function.args.args + function.args.kwonlyargs:
        assert argument.annotation is not None, argument.arg


@pytest.mark.parametrize("node", CLASSES, ids=lambda node: node.name)
def test_fields(node):
    found = [
        (field.target.id, dataclasses.MISSING if field.value is None else ast.literal_eval(field.value))
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert found == [(field.name, field.default) for field in dataclasses.fields(getattr(cattn, node.name))]
    for method in node.body:
        if isinstance(method, ast.FunctionDef):
            assert list(stub_parameters(method)) == real_parameters(getattr(getattr(cattn, node.name), method.name))


def test_public_names():
    assigned = [node for node in TREE.body if isinstance(node, ast.Assign)]
    assert [node.targets[0].id for node in assigned] == ["__all__"]
    assert ast.literal_eval(assigned[0].value) == cattn.__all__
    declared = {node.name for node in FUNCTIONS + CLASSES}
    for node in TREE.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            declared |= {alias.asname for alias in node.names}
    assert declared == set(cattn.__all__)


def test_all_is_what_there_is():
    public = {name for name in vars(cattn) if not name.startswith("_")} | {"__version__"}
    assert public == set(cattn.__all__)
    assert all(hasattr(cattn, name) for name in cattn.__all__)


@pytest.mark.parametrize("name", [name for name in cattn.__all__ if callable(getattr(cattn, name))])
def test_has_a_docstring(name):
    assert inspect.getdoc(getattr(cattn, name))


def test_plan_takes_what_attention_takes():
    assert real_parameters(cattn.plan) == real_parameters(cattn.attention)


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


def modifiers_among(parameters):
    """(name, default) of each, from the first to the last: they stand together, and by name only."""
    parameters = list(parameters)
    names = [name for name, _, _ in parameters]
    found = parameters[names.index("scale") : names.index("sinks") + 1]
    assert {kind for _, kind, _ in found} == {inspect.Parameter.KEYWORD_ONLY}
    return [(name, default) for name, _, default in found]


@pytest.mark.parametrize("function", TAKE_MODIFIERS.values(), ids=TAKE_MODIFIERS)
def test_modifiers(function):
    assert modifiers_among(real_parameters(function)) == list(MODIFIERS.items())


@pytest.mark.parametrize("name", [name for name in TAKE_MODIFIERS if "." not in name])
def test_modifiers_of_the_stub(name):
    nodes = [node for node in FUNCTIONS if node.name == name]
    assert nodes
    for node in nodes:
        assert modifiers_among(stub_parameters(node)) == list(MODIFIERS.items())


def test_modifiers_of_packed_sequences():
    """Those that need no array over batch, heads, queries or keys."""
    without = {"key_range", "query_lengths", "key_lengths", "mask", "bias"}
    expected = [(name, default) for name, default in MODIFIERS.items() if name not in without]
    assert modifiers_among(real_parameters(cattn.attention_varlen)) == expected


def test_generated_cases_draw_every_modifier():
    assert cases.MODIFIERS - {"layout"} == set(MODIFIERS)
