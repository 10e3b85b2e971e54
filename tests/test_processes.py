"""Processes that end, fork, or hold more than one interpreter while calls are under way, and pools of processes."""

import concurrent.futures
import importlib.util
import itertools
import multiprocessing
import os
import signal
import sys
import sysconfig
import threading
import warnings

import pytest
from helpers import python, same_bits, slow, work
from process_calls import NAMES, NUMPY_NAMES, Results, result, results

import cattn

NO_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
HAS_PROC = os.path.isdir("/proc/self/task")
NO_PROC = pytest.mark.skipif(not HAS_PROC, reason="no /proc here")


@pytest.fixture(autouse=True)
def threads_of_blas(monkeypatch):
    """Processes have those of NumPy's BLAS beside ours, as they have elsewhere, but for conftest.py."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)


BEGINNING = """
import os, signal, sys, threading, time, warnings
import numpy as np
import cattn
warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12 warns of a fork beside threads
"""


# Python ends


REPEATS = pytest.mark.parametrize("repeats", [1, slow(10)])


@REPEATS
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("callers", [slow(1), 3])
@pytest.mark.parametrize("shape", [(1, 8, 8192, 64), (8, 12, 512, 64)], ids=str)
def test_daemon_threads_in_a_call(shape, callers, threads, repeats):
    """Each of them is ended, or held for ever, wherever it asks for the GIL; its workers are not."""
    code = f"""
x = np.ones({shape}, "f")
def call():
    while True:
        cattn.attention(x, x, x, num_threads={threads})
for _ in range({callers}):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(repeats):
        assert python(BEGINNING + code) == ""


@REPEATS
def test_daemon_threads_in_calls_of_every_function(repeats):
    code = """
from process_calls import NUMPY_NAMES, results
def call():
    while True:
        results(NUMPY_NAMES, range(8))
for _ in range(4):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(repeats):
        assert python(BEGINNING + code) == ""


def test_calls_after_python_began_to_end():
    """By functions of atexit, which run before and after our own, they heed signals; by a finalizer, they compute."""
    code = """
import atexit
atexit.register(lambda: call("earlier"))
import cattn
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
def call(name):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        cattn.attention(x, keys, keys, num_threads=3)
    except Stop:
        print(name)
signal.signal(signal.SIGALRM, stop)
x, keys = np.ones((2, 300, 64), "f"), np.broadcast_to(np.float32(1), (2, 10**8, 64))
class Last:
    def __del__(self, call=cattn.attention, x=x):
        print("finalizer", float(call(x, x, x, num_threads=3)[0, 0, 0]))
last = Last()
atexit.register(call, "later")
"""
    assert python(BEGINNING.replace("import cattn\n", "") + code) == "later\nearlier\nfinalizer 1.0\n"


# Signal handlers that fork during a call

CALLS = {
    "many rows": "x = normal((4, 3000, 64)); return attention, dict(query=x, key=x, value=x)",
    "causal": "x = normal((30, 1000, 64)); return attention, dict(query=x, key=x, value=x, causal=True)",
    "few rows": "x = windows(6_000_000); return attention, dict(query=x[:, :4], key=x, value=x)",
    # The caller has done its part and waits for a worker.
    "waiting": "x = windows(600_000); y = np.broadcast_to(x, (2, *x.shape));"
    "return attention, dict(query=y[:, :, :64], key=y, value=y, key_lengths=[60_000, 600_000])",
    "weights": "x = normal((2, 2500, 64)); return cattn.attention_weights, dict(query=x, key=x)",
    "varlen": "x = normal((4000, 4, 64)); edges = [0, 500, 4000];"
    "return cattn.attention_varlen, dict(query=x, key=x, value=x, query_indptr=edges, key_indptr=edges)",
    "self-attention": "x = normal((2, 2500, 64)); w = normal((64, 64));"
    "return cattn.self_attention, dict(x=x, w_query=w, w_key=w, w_value=w)",
}
CALLING = """
def normal(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)
def windows(count):
    return np.lib.stride_tricks.sliding_window_view(normal(count + 63), 64)[None]
def attention(**arguments):
    return cattn.attention(**arguments, return_lse=True)
def call(threads):
    results = function(**arguments, num_threads=threads)
    results = results if isinstance(results, tuple) else (results,)
    found = [x.tobytes() for x in results]
    for x in results:
        x.fill(np.nan)  # memory that is used again must not hold the right result before it is computed
    return found
def same(result):
    return result == expected
def fork(number, frame):
    global child
    while frame and frame.f_code is not call.__code__:
        frame = frame.f_back
    if not frame or child is not None:
        return
    child = -1  # a signal that came late interrupts this handler, too
    signal.setitimer(signal.ITIMER_REAL, 0)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)
        in_child()
function, arguments = arguments()
expected = call(1)
child = None
signal.signal(signal.SIGALRM, fork)
"""
GOING_ON = """
result = None
try:
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    while child is None:
        result = call(THREADS)
except RuntimeError as error:
    result = error
if child == 0:
    result = repr(result) if isinstance(result, RuntimeError) else same(result)
    print(result, same(call(THREADS)), same(call(1)), flush=True)
    os._exit(0)
ended = os.waitpid(child, 0)[1]
print(ended, same(result), same(call(THREADS)))
"""


def fork_during(name, in_child="pass", threads=3):
    """Return what the child prints, and then its parent: the result of the interrupted call, and of others after it."""
    arguments = f"def arguments():\n    {CALLS[name]}\n"
    in_child = f"def in_child():\n    {in_child}\n"
    return python(BEGINNING + arguments + in_child + CALLING + GOING_ON.replace("THREADS", str(threads)))


@NO_FORK
@pytest.mark.parametrize("threads", [slow(2), 5])
@pytest.mark.parametrize(
    "name", [name if name in ("many rows", "few rows", "waiting") else slow(name) for name in CALLS]
)
def test_both_processes_end_the_call(name, threads):
    assert fork_during(name, threads=threads) == "True True True\n0 True True\n"


@NO_FORK
@pytest.mark.parametrize("name", [slow("many rows"), "few rows"])
def test_the_child_calls_in_the_handler(name):
    assert fork_during(name, "assert same(call(3)) and same(call(2))") == "True True True\n0 True True\n"


@NO_FORK
@pytest.mark.parametrize("name", [slow("many rows"), "few rows"])
def test_the_child_leaves_the_call(name):
    assert fork_during(name, "raise RuntimeError(1)") == "RuntimeError(1) True True\n0 True True\n"


@NO_FORK
def test_the_child_forks_in_the_handler():
    """Three processes end the call."""
    grandchild = "grandchild = os.fork(); assert grandchild == 0 or os.waitpid(grandchild, 0)[1] == 0"
    assert fork_during("few rows", grandchild) == "True True True\n" * 2 + "0 True True\n"


# Children forked between calls, and during calls of other threads


def in_a_fork(function):
    """Return whether a function returns something true in a forked child, in time."""
    with warnings.catch_warnings():  # Python >= 3.12 warns of a fork beside threads, which is what is tested here
        warnings.simplefilter("ignore")  # and so does JAX, where another test imported it
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(30)
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@NO_FORK
def test_fork_after_use():
    arrays = work()
    expected = cattn.attention(*arrays, num_threads=3)

    def works():
        return all(same_bits(cattn.attention(*arrays, num_threads=n), expected) for n in (3, 2, 4, 1))

    assert in_a_fork(works)
    assert in_a_fork(lambda: in_a_fork(works))
    assert in_a_fork(lambda: works() and in_a_fork(works) and works())
    assert works()


def starts_threads():
    """Return whether the first call on three threads starts two."""
    before = len(os.listdir("/proc/self/task"))
    cattn.attention(*work(), num_threads=3)
    return len(os.listdir("/proc/self/task")) - before == 2


@NO_FORK
@NO_PROC
def test_fork_has_threads_of_its_own():
    cattn.attention(*work(), num_threads=3)
    assert in_a_fork(starts_threads)


@NO_FORK
@pytest.mark.parametrize("forks, names", [(50, NUMPY_NAMES), slow(400, NAMES)])
def test_many_forks(forks, names):
    """Children, one after the other, of a process that has used its threads, and goes on using them."""
    expected = results(names, range(4))
    tasks = itertools.cycle(expected)

    def works(task):
        return (not HAS_PROC or starts_threads()) and result(*task) == expected[task]

    for n, task in enumerate(itertools.islice(tasks, forks)):
        assert in_a_fork(lambda task=task: works(task)), task
        if n % 20 == 0:
            assert result(names[0], 0) == expected[names[0], 0]


@NO_FORK
@pytest.mark.parametrize("length, depth", [(5, 3), slow(10, 6)])
def test_forks_of_forks(length, depth):
    """Children of children, in a line and in a tree. Each of them calls before it forks, and after."""
    expected = result(NAMES[0], 0)

    def works():
        return result(NAMES[0], 0) == expected

    def line(depth):
        return works() and (depth == 0 or in_a_fork(lambda: line(depth - 1))) and works()

    def tree(depth):
        return depth == 0 or (works() and all(in_a_fork(lambda: tree(depth - 1)) for _ in range(2)) and works())

    assert line(length)
    assert tree(depth)


@NO_FORK
@pytest.mark.parametrize("forks", [20, slow(200)])
def test_forks_during_calls_of_every_function(forks):
    expected = results(NUMPY_NAMES, range(3))
    ended = threading.Event()
    wrong = []

    def works(task):
        return result(*task) == expected[task]

    def call_all():
        for task in itertools.cycle(expected):
            if ended.is_set():
                return
            if not works(task):
                wrong.append(task)

    def call_on_threads():
        arrays = work()
        while not ended.is_set():
            cattn.attention(*arrays, num_threads=3)

    callers = [threading.Thread(target=call) for call in [call_on_threads] * 3 + [call_all]]
    for caller in callers:
        caller.start()
    try:
        for task in itertools.islice(itertools.cycle(expected), forks):
            assert in_a_fork(lambda task=task: works((NAMES[0], 0)) and works(task)), task
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    assert not wrong


# Pools of processes

TASKS = [(name, seed) for seed in range(3) for name in NUMPY_NAMES]
ALL_TASKS = [(name, seed) for seed in range(3) for name in NAMES]


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def context(request):
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {request.param} here")
    result(NAMES[0], 0)  # the parent has threads of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", r"os.fork\(\) was called", RuntimeWarning)  # by JAX, once it is imported
        yield multiprocessing.get_context(request.param)


@pytest.mark.parametrize("tasks", [TASKS, slow(ALL_TASKS)], ids=["numpy", "all"])
def test_multiprocessing(context, tasks):
    with context.Pool(2, maxtasksperchild=20) as pool:
        found = pool.starmap_async(result, tasks).get(200)
    assert found == [result(*task) for task in tasks]


def test_process_pool(context):
    """An initializer holds in each worker, also in those that replace others."""
    options = {"mp_context": context, "initializer": cattn.set_num_threads, "initargs": (2,)}
    if sys.version_info >= (3, 14) and context.get_start_method() != "fork":  # the pools before hang without us, too
        options["max_tasks_per_child"] = 20
    with concurrent.futures.ProcessPoolExecutor(2, **options) as pool:
        numbers = [pool.submit(cattn.get_num_threads) for _ in range(4)]
        found = [pool.submit(result, *task) for task in TASKS]
        assert {future.result(200) for future in numbers} == {2}
        assert [future.result(200) for future in found] == [result(*task) for task in TASKS]


# Workers that are not forked import PyTorch first.
@pytest.mark.parametrize(
    "context, tasks",
    [("fork", TASKS), slow("fork", ALL_TASKS), slow("forkserver", TASKS), slow("spawn", TASKS)],
    indirect=["context"],
)
def test_data_loader(context, tasks):
    torch = pytest.importorskip("torch")
    options = {"batch_size": 4, "collate_fn": list, "num_workers": 2, "timeout": 200, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(Results(tasks), multiprocessing_context=context, **options)
    for _ in range(2):
        found = [x for batch in loader for x in batch]
        assert found == [(task, result(*task)) for task in tasks]


# Subinterpreters

INTERPRETERS = """
try:
    import _interpreters
    def create():
        return _interpreters.create(KIND)
    def run(interpreter, code):
        failure = _interpreters.exec(interpreter, code)
        assert failure is None, failure.formatted
    destroy = _interpreters.destroy
except ImportError:  # before 3.13
    import _xxsubinterpreters
    def create():
        return _xxsubinterpreters.create(isolated=KIND == "isolated")
    run, destroy = _xxsubinterpreters.run_string, _xxsubinterpreters.destroy
ATTEMPT = '''
import warnings
warnings.simplefilter("ignore")  # NumPy warns of subinterpreters
try:
    import numpy as np
    import cattn
except ImportError:
    print("refused ", end="", flush=True)  # in one piece, also beside other threads
else:
    random = np.random.default_rng(0)
    x, few = random.standard_normal((3, 150, 64), np.float32), random.standard_normal((2, 5, 8), np.float32)
    def close(found, expected):
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
    for n in range(1, 4):
        close(cattn.attention(x, x, x, causal=True, num_threads=n), cattn.reference.attention(x, x, x, causal=True))
        close(cattn.attention_weights(x, x, num_threads=n), cattn.reference.attention_weights(x, x))
    close(cattn.attention(few, few, few, softcap=3), cattn.reference.attention(few, few, few, softcap=3))
    keys = np.broadcast_to(x[:, :1], (3, 20_000, 64))
    close(cattn.attention(x, keys, keys, num_threads=3), np.broadcast_to(x[:, :1], x.shape))
    try:
        cattn.attention(few, few, few[:1])
    except ValueError:
        print("right ", end="", flush=True)
'''
def attempt():
    exec(ATTEMPT, {})
"""
HAS_INTERPRETERS = pytest.mark.skipif(
    all(importlib.util.find_spec(name) is None for name in ("_interpreters", "_xxsubinterpreters")),
    reason="no module for subinterpreters here",
)
KINDS = pytest.mark.parametrize("kind", ["legacy", slow("isolated")])


def in_subinterpreters(kind, code):
    """The words that `code` prints, which may create subinterpreters of this kind, and attempt calls in any."""
    return python(f"KIND = {kind!r}\n" + INTERPRETERS + code).split()


@HAS_INTERPRETERS
@KINDS
def test_subinterpreters(kind):
    """Interpreters that come after the main one are refused, and that one goes on."""
    code = """
attempt()
for _ in range(2):
    interpreter = create()
    run(interpreter, ATTEMPT)
    attempt()
    destroy(interpreter)
attempt()
"""
    main, *others, last = in_subinterpreters(kind, code)
    assert main == last == "right"
    assert others[1::2] == ["right"] * 2 and set(others[::2]) <= {"refused", "right"}


@HAS_INTERPRETERS
@KINDS
def test_subinterpreters_that_come_first(kind):
    """The first to import cattn has it, or is refused."""
    code = """
first, second = create(), create()
for interpreter in (first, second, first, first):
    run(interpreter, ATTEMPT)
attempt()
destroy(second)
run(first, ATTEMPT)
destroy(first)
attempt()
"""
    first, second, *again, main, after, last = in_subinterpreters(kind, code)
    assert {first, second, main, last} <= {"refused", "right"}
    assert again == [first] * 2 and after == first


@HAS_INTERPRETERS
@KINDS
def test_subinterpreters_in_threads(kind):
    code = """
import threading
def life():
    interpreter = create()
    run(interpreter, ATTEMPT)
    destroy(interpreter)
attempt()
lives = [threading.Thread(target=life) for _ in range(3)]
for thread in lives:
    thread.start()
for _ in range(4):
    attempt()
for thread in lives:
    thread.join()
"""
    found = in_subinterpreters(kind, code)
    assert len(found) == 8 and set(found) <= {"refused", "right"} and found.count("right") >= 5


@HAS_INTERPRETERS
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="they are all refused without the GIL")
def test_signals_during_a_call_in_a_subinterpreter():
    """Python runs handlers in the main interpreter only. The call ends as it would without the signal."""
    code = """
import signal
class Stop(Exception):
    pass
def stop(*_):
    raise Stop
signal.signal(signal.SIGALRM, stop)
interpreter = create()
run(interpreter, '''
import warnings
warnings.simplefilter("ignore")
import numpy as np
import cattn
x, keys = np.ones((3, 150, 64), "f"), np.broadcast_to(np.float32(1), (3, 300_000, 64))
def call(keys):
    print(cattn.attention(x, keys, keys, num_threads=3).mean(), flush=True)
call(x)
''')
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    run(interpreter, "call(keys)")
    print("no signal")
except Stop:
    print("stopped")
run(interpreter, "call(x)")
destroy(interpreter)
"""
    assert in_subinterpreters("legacy", code) == ["1.0", "1.0", "stopped", "1.0"]


@pytest.mark.skipif(not hasattr(concurrent.futures, "InterpreterPoolExecutor"), reason="Python 3.14 is the first")
def test_interpreter_pool():
    code = """
from concurrent.futures import InterpreterPoolExecutor
attempt()
with InterpreterPoolExecutor(2) as pool:
    for future in [pool.submit(exec, ATTEMPT, {}) for _ in range(6)]:
        future.result(60)
attempt()
"""
    found = in_subinterpreters("isolated", code)
    assert len(found) == 8 and found.count("right") >= 2 and set(found) <= {"refused", "right"}
