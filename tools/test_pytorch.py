"""Runs PyTorch's own tests of attention within `cattn.torch.sdpa()`, and without it, and compares test by test.

    python tools/test_pytorch.py test_transformers.py [pytest's arguments]

The file is test/test_transformers.py of PyTorch's repository, of the version that is installed; it needs expecttest.
There are three runs: without the context, within it, and within it while calls for PyTorch's backend MATH alone, by
which many tests compute what they expect, stay there. What fails within and not without is named, and the program ends
with 1 then. Calls that cattn computed are counted, and so are those that were left to PyTorch, by reason. EVERY=16 in
the environment takes every 16th test only.

Two tests are known to fail: test_disable_fastpath and test_mask_check_fastpath ask whether PyTorch takes its fast path
for Transformer layers, which it gives up within any mode.
"""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SECONDS = 120  # a test may take


class Plugin:
    """Enters the context around each test, where it is asked for, and writes down what came of it."""

    def __init__(self, path, context):
        self.path, self.context = path, context
        self.outcomes, self.counts = {}, collections.Counter()

    def pytest_configure(self):
        import cattn
        import cattn.torch

        def computed(*arrays, **options):
            out = attention(*arrays, **options)
            self.counts["computed by cattn"] += 1
            return out

        def left(reason):
            self.counts["left to PyTorch: " + reason.partition(", got")[0].partition(" (shape")[0]] += 1

        attention = cattn.attention
        cattn.attention = computed
        cattn.torch._warn = left

    def pytest_collection_modifyitems(self, items):
        items[:] = items[:: int(os.environ.get("EVERY", "1"))]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self):
        def stop(*_):
            raise TimeoutError(f"not done after {SECONDS} s")

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(SECONDS)
        try:
            with self.context():
                return (yield)
        finally:
            signal.alarm(0)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = "xfailed" if hasattr(report, "wasxfail") else report.outcome

    def pytest_sessionfinish(self):
        Path(self.path).write_text(json.dumps([self.outcomes, self.counts]), encoding="utf-8")


def within():
    from cattn.torch import sdpa

    return sdpa()


def within_but_math():
    import torch

    from cattn.torch import sdpa

    class Context(sdpa):
        def __torch_function__(self, function, overridden, args=(), kwargs=None):
            if torch.backends.cuda.flash_sdp_enabled():
                return super().__torch_function__(function, overridden, args, kwargs)
            return function(*args, **(kwargs or {}))

    return Context()


CONTEXTS = {"without": contextlib.nullcontext, "within": within, "within, but MATH": within_but_math}


def run(context, arguments):
    """The outcome of each test, and the counts, of a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "found.json")
        subprocess.run([sys.executable, __file__, "--one", path, context, *arguments])
        return json.loads(Path(path).read_text(encoding="utf-8"))


def main(arguments):
    failed = False
    without = {}
    for context in CONTEXTS:
        outcomes, counts = run(context, arguments)
        without = without or outcomes
        print(f"{context}: {dict(collections.Counter(outcomes.values()))}")
        for reason, number in collections.Counter(counts).most_common():
            print(f"{number:7} calls {reason}")
        for name, outcome in outcomes.items():
            if outcome not in ("passed", without.get(name)):
                failed = True
                print(f"{name}: {outcome}, {without.get(name)} without")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        path, context, *arguments = sys.argv[2:]
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore"]
        sys.exit(pytest.main([*options, *arguments], plugins=[Plugin(path, CONTEXTS[context])]))
    sys.exit(main(sys.argv[1:]))
