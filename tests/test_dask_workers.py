"""Attention on dask arrays: the same bits whoever computes them. Threads, processes, and workers that are killed."""

import contextlib
import itertools
import logging
import os
import signal
import sys
import time

import cases
import numpy as np
import pytest
from helpers import HERE, assert_same_bits, problem, python, run_python
from test_dask import attention, check, computed, da, dask, dask_parts

import cattn

EVERYTHING = {
    "causal": True,
    "window": (300, None),
    "query_offset": "end",
    "key_lengths": [390, 333],
    "alibi_slopes": [0.5, 0.25, 0.1, 0.01],
    "softcap": 20.0,
    "sinks": [1.0, -1.0, 0.5, -np.inf],
}


def everything(dtype=np.float32):
    case = problem(33, 400, dtype, size=16, value_size=16) | EVERYTHING
    query = da.from_array(case["query"], (1, 2, 20, -1))
    keys = {name: da.from_array(case[name], (1, 1, 30, -1)) for name in ("key", "value")}
    return case, case | keys | {"query": query}


@pytest.mark.parametrize("dtype", cases.TYPES.values(), ids=str)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_same_bits_for_any_threads(dtype, workers):
    case, given = everything(dtype)
    expected = computed(given)
    check(*expected, case, levels=2)
    for num_threads in (1, 3, None):
        results = attention(**given, return_lse=True, num_threads=num_threads)
        assert_same_bits(dask.compute(*results, scheduler="threads", num_workers=workers), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.parametrize(("num_threads", "started"), [("1", 0), ("2", 1), ("None", 3)])
def test_threads_of_a_task(num_threads, started):
    code = f"""
import os
import dask.array as da
import numpy as np
from cattn.dask import attention
x = da.ones((4, 2000, 64), chunks=(4, 500, 64), dtype=np.float32)
before = len(os.listdir("/proc/self/task"))
attention(x, x, x, num_threads={num_threads}).compute(scheduler="sync")
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert python(code, CATTN_NUM_THREADS="4") == f"{started}\n"


def test_same_bits_in_other_processes():
    code = """
import sys
import dask
from helpers import assert_same_bits
from test_dask import attention, computed
from test_dask_workers import everything
if __name__ == "__main__":
    _, given = everything()
    results = attention(**given, return_lse=True)
    assert_same_bits(dask.compute(*results, scheduler="processes", num_workers=2), computed(given))
"""
    python(code)


def test_same_bits_whatever_numpy_finds_in_the_processor():
    """NumPy's own exponentials and logarithms differ, where the kernel table is the same."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    found = [feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature)]
    if not found:
        pytest.skip("NumPy has no choice here")
    code = """
import sys
import numpy as np
from test_dask import computed
from test_dask_workers import everything
for dtype in (np.float32, np.float64):
    out, lse = computed(everything(dtype)[1])
    print(out.tobytes().hex(), lse.tobytes().hex())
"""
    assert python(code, NPY_DISABLE_CPU_FEATURES=",".join(found)) == python(code)


def test_kernel_tables_that_differ():
    case = problem(5, 20)
    given = case | dask_parts(case, 5)
    own = cattn.plan(**case).isa
    for same in (None, own, "any"):
        assert_same_bits(computed(given | {"kernel_table": same}), computed(given))
    out = attention(**given, kernel_table="another")
    message = f"kernel_table: expected 'another' .* got '{own}' in process {os.getpid()} on"
    with pytest.raises(RuntimeError, match=message):
        out.compute(scheduler="threads")


# dask.distributed


@contextlib.contextmanager
def cluster(*workers):
    """A client of worker processes, one for each of these options."""
    distributed = pytest.importorskip("distributed")
    spec = {
        n: {"cls": distributed.Nanny, "options": {"nthreads": 1, "dashboard_address": None, **options}}
        for n, options in enumerate(workers)
    }
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": ":0", "port": 0}}
    with (
        distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=logging.CRITICAL) as started,
        distributed.Client(started) as client,
    ):
        client.wait_for_workers(len(workers))
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("workers", [[{}], [{}, {}], [{"nthreads": 2}, {}, {}]], ids=len)
def test_same_bits_for_any_worker_processes(workers):
    _, given = everything()
    expected = computed(given)
    with cluster(*workers):
        assert_same_bits(dask.compute(*attention(**given, return_lse=True)), expected)


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle():
    x = da.random.default_rng(0).standard_normal((4, 2**14, 64), chunks=(2, 2**10, 64), dtype=np.float32)
    given = {"query": x, "key": x, "value": x, "causal": True}
    expected = computed(given)
    with cluster({}, {}) as client:
        futures = client.compute(attention(**given, return_lse=True))
        pids = client.run(os.getpid)
        for worker in itertools.cycle(pids):
            assert not any(future.done() for future in futures)
            if sum(key[0].startswith("attention-part") for key in client.has_what()[worker]) >= 3:
                break
            time.sleep(0.01)
        os.kill(pids[worker], signal.SIGKILL)
        assert [future.status for future in futures] == ["pending", "pending"]
        assert_same_bits(client.gather(futures), expected)
        assert pids[worker] not in client.run(os.getpid).values()


@pytest.mark.slow
def test_a_worker_of_another_kernel_table():
    case, given = everything()
    own = cattn.plan(**case).isa
    if own == "portable":
        pytest.skip("there is one kernel table here")
    with cluster({}, {"env": {"CATTN_ISA": "portable"}}) as client:
        tables = client.run(lambda: cattn._kernel.isa())
        (other,) = [worker for worker, table in tables.items() if table == "portable"]
        with pytest.raises(RuntimeError, match=f"expected '{own}' .* got 'portable' in worker {other}, process"):
            dask.compute(attention(**given))
        check(*dask.compute(*attention(**given, return_lse=True, kernel_table="any")), case, levels=2)


# Programs beside it

ROOT = HERE.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "options", "said"),
    [
        ("examples/dask_decoder.py", ("--prompt=500", "--chunk=100", "--steps=3"), "the same in one process: yes"),
        ("benchmarks/dask_keys.py", ("--keys=3000", "--queries=50", "--chunk=1000"), "of the error bound"),
    ],
)
def test_programs(program, options, said):
    if not (ROOT / program).exists():
        pytest.skip("not here")
    pytest.importorskip("distributed")
    done = run_python("-W", "error", ROOT / program, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
