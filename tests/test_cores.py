"""benchmarks/cores.py plays the pool's order through, and measures each task of a call."""

import numpy as np
import pytest

import cattn
from cattn import _kernel

cores = pytest.importorskip("cores", reason="not in a checkout")


def seconds(*tasks):
    return np.array(tasks, float)


@pytest.mark.parametrize(
    ("times", "threads", "end"),
    [
        ([1, 1, 1, 1], 1, 4),
        ([1, 1, 1, 1], 2, 2),
        ([1, 1, 1, 1], 3, 2),
        ([1, 1, 1, 1], 9, 1),
        ([3, 1, 1, 1], 2, 3),  # the second thread does its own tasks 1 and 3, and then the first one's task 2
        ([1, 1, 1, 3], 2, 4),  # task 3 is the second thread's last one
        ([5, 1, 0, 1, 0, 1], 3, 5),
    ],
)
def test_makespan(times, threads, end):
    assert cores.makespan(seconds(*times), threads) == end


def test_idle_share():
    assert cores.idle_share([seconds(1, 1), seconds()], 2) == 0
    assert cores.idle_share([seconds(3, 1), seconds()], 2) == pytest.approx(1 / 3)
    assert cores.idle_share([seconds(1, 1), seconds(1, 0)], 2) == pytest.approx(1 / 4)  # joins begin behind all tasks


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("shape", [(8, 8, 300, 300), (32, 1, 1, 5000), (4, 4, 1, 9000)])
def test_each_task_is_measured(shape, threads):
    heads, kv_heads, queries, keys = shape
    query, key = np.ones((heads, queries, 64), np.float32), np.ones((kv_heads, keys, 64), np.float32)
    tasks, joins = _kernel.task_times(query, key, key, num_threads=threads)
    plan = cattn.plan(query, key, key, num_threads=threads)
    assert len(joins) == (plan.tasks if plan.partial_bytes else 0)
    assert len(tasks) == plan.tasks and np.all(tasks > 0) and np.all(joins >= 0)


def test_cases_are_named_once_and_of_the_stated_sizes():
    assert len({case.name for case in cores.CASES}) == len(cores.CASES) >= 30
    for case in cores.CASES:
        assert case.shape[1] % case.shape[2] == 0
