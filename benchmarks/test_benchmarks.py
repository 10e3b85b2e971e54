"""cattn against NumPy on one thread: `pytest benchmarks`, and `--all-cases` for every case there is."""

from functools import partial

import pytest

from cattn._bench.answer import expected
from cattn._bench.cases import CASES
from cattn._bench.engines import cattn_call
from cattn._bench.inputs import make_inputs
from cattn._bench.numpy_attention import numpy_call
from cattn._bench.timing import limited
from cattn.reference import _allowed as allowed

QUICK_CASES = ("seed", "minilm", "bert-128", "self-attention")
ENGINES = {"numpy": numpy_call, "cattn": partial(cattn_call, num_threads=1)}


def pytest_generate_tests(metafunc):
    names = CASES if metafunc.config.getoption("all_cases") else QUICK_CASES
    metafunc.parametrize("case", [CASES[name] for name in names], ids=names, scope="module")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with limited(1):
        yield


@pytest.fixture(scope="module")
def problem(case):
    """The inputs, their answer, and the largest error that cattn may make."""
    inputs = make_inputs(case)
    answer = expected(case, inputs)
    numpy_kappa = answer.check(numpy_call(case, inputs)()).kappa
    return inputs, answer, allowed(numpy_kappa)


@pytest.mark.parametrize("engine", ENGINES)
def test_speed(benchmark, case, problem, engine):
    inputs, answer, allowed_kappa = problem
    call = ENGINES[engine](case, inputs)
    assert answer.check(call()).kappa <= allowed_kappa
    benchmark.group = case.name
    benchmark(call)
    if benchmark.stats:  # none with --benchmark-disable
        benchmark.extra_info["gflops"] = case.flops / benchmark.stats["median"] / 1e9
