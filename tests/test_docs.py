"""The pages' examples run as a reader would run them, from the top of a page to its end, and print what they show."""

import doctest
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from helpers import PACKAGE, run_python

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="not in a checkout")

# A block whose packages may be absent has them in a comment above it, which the page does not show.
BLOCK = re.compile(r"^(?:% needs: (?P<needs>[^\n]*)\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def pages():
    return sorted(path for path in DOCS.rglob("*.md") if not path.parent.name.startswith("_"))


def read(page):
    return page.read_text(encoding="utf-8")


def needs(block):
    return frozenset((block["needs"] or "").replace(",", " ").split())


def run(page, packages=frozenset()):
    """Return what the page's examples have named in the end, of those that need no package beyond these."""
    text = read(page)
    shown = [block.span("code") for block in BLOCK.finditer(text) if needs(block) <= packages]
    inside = {line for start, end in shown for line in range(text.count("\n", 0, start), text.count("\n", 0, end))}
    # Each line stays where it is, so that a failure names the page's own.
    code = "".join(line if n in inside else "\n" for n, line in enumerate(text.splitlines(keepends=True)))
    names = {"__name__": "__main__"}
    test = doctest.DocTestParser().get_doctest(code, names, page.stem, str(page), 0)
    runner, report = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    result = runner.run(test, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 0
    return test.globs


WITH_EXAMPLES = [page for page in pages() if any(not needs(block) for block in BLOCK.finditer(read(page)))]
NEEDS = ((page, needs(block)) for page in pages() for block in BLOCK.finditer(read(page)))
BESIDE = [(page, packages) for page, packages in dict.fromkeys(NEEDS) if packages]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_every_python_block_is_an_example(page):
    """Whatever looks like one is found by the pattern, and begins with a prompt: no other text is run."""
    text = read(page)
    found = list(BLOCK.finditer(text))
    assert len(found) == len(re.findall("^```+ *(?:python|py|pycon)", text, re.MULTILINE))
    assert all(block["code"].startswith(">>> ") for block in found)


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples(page):
    run(page)


def test_the_sentence_is_that_of_the_demo():
    """The page of the seven steps shows the numbers that `cattn demo` prints."""
    steps = run(DOCS / "steps.md")["steps"]
    shown = run_python("-m", "cattn", "demo").stdout
    assert str(steps) in shown


@pytest.mark.parametrize("page, packages", BESIDE, ids=lambda x: x.stem if isinstance(x, Path) else "+".join(sorted(x)))
def test_examples_beside_other_packages(page, packages):
    for package in sorted(packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    run(page, packages)


def test_pictures(monkeypatch):
    """The pages show what is drawn from the numbers that they tell."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(DOCS)
    pictures = importlib.import_module("pictures")
    shown = {name for page in pages() for name in re.findall(r"^```\{picture\} (.*)$", read(page), re.MULTILINE)}
    assert shown == set(pictures.PICTURES)
    texts = [text.get_text() for axes in pictures.step5().axes for text in axes.texts]
    assert texts == [f"{weight:.2f}" for weight in run(DOCS / "steps.md")["steps"].weights.flat]


def test_c_and_cython_are_the_examples_of_the_header():
    """Which the tests of the interface compile and run."""
    header = PACKAGE / "cattn.h"
    if not header.exists():
        pytest.skip("needs cattn.h")
    told = re.sub(r"^ \* ?(?:    )?", "", header.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = re.findall(r"^```(?:c|cython)\n(.*?)^```$", read(DOCS / "guide" / "c.md"), re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    assert all(example in told for example in shown)
