"""Threads are there when they are needed, and only then; and they change nothing."""

import concurrent.futures
import os
import threading
import time

import numpy as np
import pytest
from helpers import EVERY_TABLE, python, same_bits, work

import cattn

NO_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")

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


@EVERY_TABLE
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
