"""The docstrings of what is public: their examples give what they say, and numpydoc finds nothing missing."""

import doctest
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import cattn
from cattn import reference

ROOT = Path(__file__).parents[1]
PUBLIC = {
    **{f"cattn.{name}": getattr(cattn, name) for name in cattn.__all__ if callable(getattr(cattn, name))},
    **{f"cattn.reference.{name}": getattr(reference, name) for name in reference.__all__},
    "cattn.AttentionTrace.plot": cattn.AttentionTrace.plot,
    **{f"cattn.KVCache.{name}": vars(cattn.KVCache)[name] for name in ("append", "attend", "truncate", "reorder")},
}


@pytest.fixture
def number_of_threads():
    setting = cattn._threads._setting
    yield
    cattn.set_num_threads(setting)


@pytest.mark.usefixtures("number_of_threads")
@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name):
    if name.endswith(".plot"):
        pytest.importorskip("matplotlib").use("agg")
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert test.examples
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_numpydoc(name):
    validation = pytest.importorskip("numpydoc.validate")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not in a checkout")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["numpydoc_validation"]
    assert settings["checks"][0] == "all"  # less those that follow
    docstring = inspect.getdoc(PUBLIC[name])

    def counts(code):
        accepted = settings.get(f"override_{code}", [])
        return code not in settings["checks"] and not any(re.search(pattern, docstring) for pattern in accepted)

    assert [error for error in validation.validate(name)["errors"] if counts(error[0])] == []
