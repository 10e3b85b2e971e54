"""Time cattn and NumPy on one thread: `pytest benchmarks`, and `--all-cases` for every case there is."""

import pytest
from peers import NumPy
from workloads import CASES

from cattn._bench.engines import Cattn
from cattn._bench.timing import limited
from cattn.reference import _bounds

QUICK_CASES = ("seed", "minilm", "bert-128", "self-attention")
ENGINES = {engine.name: engine for engine in (NumPy, Cattn)}


def pytest_generate_tests(metafunc):
    names = CASES if metafunc.config.getoption("all_cases") else QUICK_CASES
    metafunc.parametrize("case", [CASES[name] for name in names], ids=names, scope="module")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with limited(1):
        yield


@pytest.fixture(scope="module")
def problem(case):
    """Return the inputs, their answer, and the largest κ that cattn may have. In half types it has none of its own."""
    inputs = case.make_inputs()
    answer = case.answer(inputs)
    kappa = answer.check(NumPy(1).prepare(case, inputs).result()).kappa
    return inputs, answer, None if kappa is None else _bounds.allowed(kappa)


@pytest.mark.parametrize("engine", ENGINES)
def test_speed(benchmark, case, problem, engine):
    inputs, answer, allowed = problem
    call = ENGINES[engine](1).prepare(case, inputs).result
    check = answer.check(call())
    assert not check.wrong and (allowed is None or check.kappa <= allowed)
    benchmark.group = case.name
    benchmark(call)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["gflops"] = case.flops / benchmark.stats["median"] / 1e9
