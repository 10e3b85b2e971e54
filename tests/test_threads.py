"""Threads are there when they are needed, and only then; and they change nothing."""

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import HERE, TWO_TABLES, python, same_bits, work
from known_calls import SHARED_WORK, endless, known_calls
from registry import FUNCTIONS

import cattn

NO_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")
NO_TIMES = pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="no times of threads here")

BEGINNING = """
import os, time
import numpy as np
import cattn
x = np.ones((3, 150, 64), np.float32)  # more work than one thread is given alone
def threads():
    return set(os.listdir("/proc/self/task"))
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 150, 150), (2, 1, 20000), (1, 1000, 77), (8, 2, 3000)], ids=str)
def test_same_bits_for_any_number_of_threads(shape, dtype):
    arrays = work(1, *shape, dtype)
    expected = cattn.attention(*arrays, num_threads=1)
    for threads in (2, 3, 7, 7, 7):
        assert same_bits(cattn.attention(*arrays, num_threads=threads), expected)


@NO_PROC
def test_threads_start_on_demand_stay_and_leave_signals_alone():
    code = """
before = threads()
for n in (1, 3, 2, 3):
    cattn.attention(x, x, x, num_threads=n)
    print(len(threads() - before))
def blocked_by(thread):
    with open(f"/proc/self/task/{thread}/status") as file:
        return int(file.read().split("SigBlk:")[1].split()[0], 16)
for thread in threads() - before:
    for _ in range(1000):  # a thread that has just been made blocks everything until it first runs
        blocked = blocked_by(thread)
        if not blocked >> 10 & 1:
            break
        time.sleep(0.01)
    print([blocked >> number - 1 & 1 for number in (2, 14, 15, 11)])  # INT, ALRM, TERM; a SEGV must reach its handler
"""
    assert python(BEGINNING + code).split("\n") == ["0", "2", "2", "2", "[1, 1, 1, 0]", "[1, 1, 1, 0]", ""]


@NO_PROC
def test_threads_may_run_wherever_their_process_may():
    """A worker that leaves its caller's processor is free to come back."""
    code = """
for rest in [0.002] * 30:
    cattn.attention(x, x, x, num_threads=3)
    time.sleep(rest)
print({tuple(os.sched_getaffinity(int(thread))) for thread in threads()} == {tuple(os.sched_getaffinity(0))})
"""
    assert python(BEGINNING + code) == "True\n"


@NO_PROC
def test_what_beats_what():
    code = """
before = threads()
def started(**arguments):
    cattn.attention(x, x, x, **arguments)
    print(len(threads() - before), end=" ")
started()
cattn.set_num_threads(4)
started()
started(num_threads=6)
"""
    assert python(BEGINNING + code, CATTN_NUM_THREADS="3", OMP_NUM_THREADS="9") == "2 3 5 "
    assert python(BEGINNING + code, OMP_NUM_THREADS="2,9") == "1 3 5 "


@NO_PROC
def test_no_more_threads_than_have_a_use():
    """Hundreds on a few processors would keep the calling thread from looking for signals."""
    code = """
before = threads()
many = np.ones((2000, 150, 64), np.float32)
cattn.attention(many, x[:1], x[:1], num_threads=1024)
print(len(threads() - before) < max(8, 4 * len(os.sched_getaffinity(0))))
"""
    assert python(BEGINNING + code) == "True\n"


@NO_PROC
def test_importing_starts_nothing():
    code = """
before = threads()
import cattn._kernel
x = np.ones((4, 4), np.float32)
cattn.attention(x, x, x)
print(len(threads() - before), cattn._threads._setting)
"""
    assert python(BEGINNING + code, CATTN_NUM_THREADS="not read") == "0 None\n"


def test_many_callers_at_once():
    problems = [work(seed, rows=40 + 17 * seed) for seed in range(12)]
    expected = [cattn.attention(*arrays, num_threads=1) for arrays in problems]

    def call(i):
        n = i % len(problems)
        return same_bits(cattn.attention(*problems[n], num_threads=1 + i % 5), expected[n])

    with concurrent.futures.ThreadPoolExecutor(len(problems)) as executor:
        assert all(executor.map(call, range(300)))


@pytest.fixture(scope="module")
def calls():
    """Calls of every function, of which half are shared among threads."""
    return known_calls(range(3)) + known_calls(range(3), SHARED_WORK)


STRESS = float(os.environ.get("CATTN_STRESS_SECONDS", 60))


@pytest.mark.parametrize("seconds", [1, pytest.param(STRESS, marks=pytest.mark.slow)])
def test_many_callers_of_every_function(calls, seconds):
    """16 threads for so long: each result has the bits that the call has alone."""
    made, wrong = collections.Counter(), []

    def call_on(number):
        draw, first = random.Random(number), calls[number::16]
        for n, call in enumerate(itertools.chain(first, endless(calls, number))):
            if wrong or (n >= len(first) and time.monotonic() > end):
                return
            try:
                with cattn.num_threads(draw.randint(1, 4)):
                    if not call.is_right():
                        wrong.append(f"{call}: other bits")
            except BaseException as error:
                wrong.append(f"{call}: {error!r}")
            made[number, call.function.name] += 1

    end = time.monotonic() + seconds
    threads = [threading.Thread(target=call_on, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    assert not wrong
    functions = {name for _, name in made}
    assert functions == {call.function.name for call in calls}
    print(f"16 callers, {seconds} seconds: {made.total()} calls of {len(functions)} functions, all with the same bits")


class MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t) for name in ("arena", "_1", "_2", "_3", "hblkhd", "_4", "_5", "uordblks", "_6", "_7")
    ]


def memory_in_use():
    """Python's blocks, malloc's bytes (0 where the C library does not tell), and the bytes that are resident."""
    allocated = 0
    if mallinfo := getattr(ctypes.CDLL(None), "mallinfo2", None):
        mallinfo.restype = MallocInfo
        info = mallinfo()
        allocated = info.uordblks + info.hblkhd
    with open("/proc/self/statm") as file:
        return sys.getallocatedblocks(), allocated, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@NO_PROC
@pytest.mark.slow
def test_memory_is_flat(calls):
    """Over 200,000 calls of every function, right ones and wrong ones."""
    count, step = 200_000, 20_000
    calls = known_calls(range(12)) + calls
    sizes = []
    for made, call in enumerate(endless(calls, 0)):
        if made % step == 0:
            gc.collect()
            sizes.append(memory_in_use())
        if made == count:
            break
        if made % 10 == 0:
            assert call.refuses()
        else:
            assert call.is_right(), call
    growth = [max(kind[2:]) - kind[2] for kind in zip(*sizes, strict=True)]
    print(f"{count} calls; after the first {2 * step}, {growth[0]} blocks of Python, {growth[1]} bytes of malloc and "
          f"{growth[2]} resident bytes came at most")  # fmt: skip
    assert growth[0] < 500 and growth[1] < 2**18 and growth[2] < 2**22


# The pool alone, between whose steps anything may happen


@pytest.fixture(scope="module")
def pool_pauses(tmp_path_factory):
    """A program that runs pool.c with pauses at each hand-off."""
    source, compiler = HERE.parent / "src" / "system" / "pool.c", shutil.which("cc")
    if not source.exists() or compiler is None or sys.platform == "win32":
        pytest.skip("no source, no C compiler, or no POSIX threads here")
    program = tmp_path_factory.mktemp("pool") / "pool_pauses"
    flags = ["-std=gnu11", "-O1", "-pthread", f"-I{source.parent.parent}", "-lm"]
    subprocess.run([compiler, HERE / "pool_pauses.c", "-o", program, *flags], check=True, timeout=120)
    return program


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_pauses_at_each_hand_off(pool_pauses, seed):
    seconds = "0.6" if seed == 0 else "3"
    done = subprocess.run([pool_pauses, str(seed), seconds], capture_output=True, text=True, timeout=180)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


# The number of threads, from outside


def threads_of_blas(n):
    """Limit the threads of NumPy's matrix products, which are no threads of cattn's."""
    threadpoolctl = pytest.importorskip("threadpoolctl", "3.2")
    return threadpoolctl.threadpool_limits(n, user_api="blas")


def seconds_of_others():
    """The time that each thread of this process but the calling one has spent on a processor."""
    times = {}
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != threading.get_native_id():
            with open(f"/proc/self/task/{thread}/schedstat") as file:
                times[thread] = int(file.read().split()[0]) * 1e-9
    return times


def others_at_work(function):
    """How many other threads run during a call. All are asleep before it."""
    time.sleep(0.002)
    before = seconds_of_others()
    function()
    time.sleep(0.002)
    after = seconds_of_others()
    return sum(after[thread] > before.get(thread, 0) for thread in after)


@contextlib.contextmanager
def by_setting(n):
    cattn.set_num_threads(n)
    try:
        yield
    finally:
        cattn.set_num_threads(None)


@contextlib.contextmanager
def by_environment(n):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATTN_NUM_THREADS", str(n))
        with by_setting(None):  # it is read again
            yield


@contextlib.contextmanager
def by_threadpoolctl(n):
    threadpoolctl = pytest.importorskip("threadpoolctl", "3.2")
    importlib.import_module("cattn.threadpoolctl")
    with threadpoolctl.threadpool_limits(n, user_api="cattn"):
        yield


WAYS = {"num_threads": cattn.num_threads, "setting": by_setting, "environment": by_environment}
WAYS |= {"threadpoolctl": by_threadpoolctl, "argument": lambda n: contextlib.nullcontext()}
TAKE_IT = {"attention", "attention_weights", "attention_varlen", "attention_paged", "self_attention", "cattn.h"}
TAKE_IT |= {"dask.attention"}
TAKE_NOTHING_ELSE = {"cattn.h", "dask.attention"}
SHARE_NOTHING = {"merge_attention", "pad", "unpad", "plan", "quantize"}


@NO_TIMES
@pytest.mark.parametrize(
    "name, way",
    [
        (name, way)
        for name, way in itertools.product(FUNCTIONS, WAYS)
        if (name in TAKE_IT if way == "argument" else name not in TAKE_NOTHING_ELSE)
    ],
)
def test_the_number_of_threads_is_that_of_each_call(name, way):
    """A pool may have more of them."""
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    cattn.attention(*work(), num_threads=6)
    given = [FUNCTIONS[name].arguments(seed, work=(10_000_000, 20_000_000)) for seed in range(4)]  # dask shares chunks

    def others(n):
        """How many other threads run in each call."""
        for arguments in given:
            arguments = arguments | ({"num_threads": n} if way == "argument" else {})
            with WAYS[way](n), threads_of_blas(1):
                yield others_at_work(functools.partial(FUNCTIONS[name].call, **arguments))

    assert any(not any(others(1)) for _ in range(3))  # another test's threads may be at work once
    if name not in SHARE_NOTHING:
        assert any(others(3))


@NO_TIMES
@pytest.mark.parametrize("n", [2, 3, 5])
def test_no_more_threads_than_the_number(n):
    x = np.ones((3, 600, 64), np.float32)
    assert cattn.plan(x, x, x).tasks > 6
    cattn.attention(x, x, x, num_threads=6)
    found = [others_at_work(lambda: cattn.attention(x, x, x, num_threads=n)) for _ in range(10)]
    # Now and then the system does not let a worker run, or another test's thread does.
    assert sorted(found)[8] == n - 1


ONE_PROCESSOR = """
one, all_of_them = {min(os.sched_getaffinity(0))}, os.sched_getaffinity(0)
def pin(processors):
    for thread in threads():
        os.sched_setaffinity(int(thread), processors)
def are_pinned_to(processors):
    return all(os.sched_getaffinity(int(thread)) == processors for thread in threads())
def call(times, **options):
    return {cattn.attention(x, x, x, **options).tobytes() for _ in range(times)}
"""


@NO_PROC
def test_a_process_that_begins_on_one_processor():
    code = """
before = threads()
cattn.attention(x, x, x)
print(cattn.get_num_threads(), len(threads() - before), len(call(30) | call(30, num_threads=3)), are_pinned_to(one))
"""
    pinned = """
import os
for thread in os.listdir("/proc/self/task"):  # an emulator has one of its own
    os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
"""
    unset = {"CATTN_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    assert python(pinned + BEGINNING + ONE_PROCESSOR + code, **unset) == "1 0 1 True\n"


@NO_PROC
def test_a_process_that_is_held_to_one_processor_between_calls():
    """Workers stay where they are told to. The number of threads is found out again once it is set to None."""
    code = """
bits = call(30, num_threads=3)
pin(one)
bits |= call(30, num_threads=3)
print(are_pinned_to(one))
cattn.set_num_threads(None)
before = threads()
bits |= call(1)
print(cattn.get_num_threads(), len(threads() - before))
pin(all_of_them)
bits |= call(30, num_threads=3)
print(are_pinned_to(all_of_them), len(bits))
"""
    unset = {"CATTN_NUM_THREADS": "", "OMP_NUM_THREADS": ""}
    assert python(BEGINNING + ONE_PROCESSOR + code, **unset) == "True\n1 0\nTrue 1\n"


def test_idle_threads_use_no_cpu():
    cattn.attention(*work(), num_threads=4)
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize("pause", [0, 2e-5, 0.01])
def test_process_ends_while_threads_wait(pause):
    code = f"cattn.attention(x, x, x, num_threads=4); time.sleep({pause})"
    assert python(BEGINNING + code) == ""


def test_process_ends_during_a_call():
    code = """
import threading
def call():
    while True:
        cattn.attention(x, x, x, num_threads=3)
for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""
    assert python(BEGINNING + code) == ""


def test_the_gil_is_released():
    query = np.ones((8, 512, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 20_000, 64))
    call = threading.Thread(target=cattn.attention, args=(query, keys, keys), kwargs={"num_threads": 1})
    turns = 0
    call.start()
    while call.is_alive():
        turns += 1
        time.sleep(0.002)
    assert turns > 20  # held, the call of 0.3 s and more lets this thread have one or two


@TWO_TABLES
def test_64_kib_of_stack_are_enough(isa):
    code = """
import threading
def calls(rows, dtype, threads):
    x, keys = np.ones((2, rows, 64), dtype), np.ones((1, 5000, 64), dtype)
    some, tiny = keys[:, :300], x[:1, ..., :3]
    packed = [array.swapaxes(0, 1) for array in (x, keys, keys)] + [[0, rows], [0, 5000]]
    modifiers = dict(mask=np.ones((rows, 300), bool), bias=np.zeros((2, rows, 300), np.float16),
                     alibi_slopes=[1.0, 2.0], sinks=[0.0, 1.0], causal=True, softcap=3.0, query_offset=230,
                     window=(299, None), key_range=(0, 300), num_threads=threads)
    yield lambda: cattn.attention(x, keys, keys, return_lse=True, num_threads=threads)
    yield lambda: cattn.attention(x, some, some, **modifiers)
    yield lambda: cattn.attention(x[..., ::-1], some[..., ::-1], some[..., ::-1], **modifiers)
    yield lambda: cattn.attention(tiny, tiny, tiny, num_threads=threads)
    yield lambda: cattn.attention_weights(x, some, **modifiers)
    yield lambda: cattn.attention_varlen(*packed, num_threads=threads)
every = [(rows, dtype, threads) for rows in (1, 4, 12, 70) for dtype in "fde" for threads in (1, 2)]
every = [call for arguments in every for call in calls(*arguments)]
def call_all():
    for call in every:
        call()
    print("done")
call_all()  # in the main thread, for what Python does once
try:
    threading.stack_size(64 * 1024)
except ValueError:  # glibc on aarch64 asks for twice as much
    threading.stack_size(128 * 1024)
thread = threading.Thread(target=call_all)
thread.start()
thread.join()
"""
    assert python(BEGINNING + code, CATTN_ISA=isa) == "done\n" * 2
