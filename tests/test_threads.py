"""How many threads there are, and that they are there when they are needed, and only then."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import cattn
from cattn import _kernel, _threads

NO_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
NO_PROC = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc here")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cattn.set_num_threads(None)
    yield
    cattn.set_num_threads(None)


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A system of 64 CPUs with these files: what default_num_threads says there."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def number(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _threads.default_num_threads(str(tmp_path))

    return number


# The number


def test_set_and_get():
    default = cattn.get_num_threads()
    assert default >= 1
    for n in (3, np.int64(4), np.uint8(5), 1):
        assert cattn.set_num_threads(n) is None
        assert cattn.get_num_threads() == n and type(cattn.get_num_threads()) is int
        assert _threads.resolve(None) == n
        assert _threads.resolve(np.int32(7)) == 7
        assert cattn.get_num_threads() == n
    cattn.set_num_threads(None)
    assert cattn.get_num_threads() == default


def test_many_are_as_many_as_the_pool_has():
    cattn.set_num_threads(10**30)
    assert cattn.get_num_threads() == _threads.resolve(2**64) == 1024


@pytest.mark.parametrize(
    "number, error, came",
    [
        (0, ValueError, "0"),
        (np.int8(-2), ValueError, "-2"),
        (-(10**5000), ValueError, "a very long int"),
        (2.0, TypeError, r"2\.0"),
        ("2", TypeError, "'2'"),
        (True, TypeError, "True"),
        (np.True_, TypeError, r"np\.True_"),
        (np.array([2, 3]), TypeError, r"ndarray of shape \(2,\) and type int\d+"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refused(number, error, came):
    cattn.set_num_threads(3)
    expected = "expected an integer of 1 or more, or None, got"
    with pytest.raises(error, match=f"^n: {expected} {came}$"):
        cattn.set_num_threads(number)
    assert cattn.get_num_threads() == 3
    x = np.ones((2, 2), np.float32)
    with pytest.raises(error, match=f"^num_threads: {expected} {came}$"):
        cattn.attention(x, x, x, num_threads=number)


@pytest.mark.parametrize(
    "own, openmp, expected",
    [
        ("3", None, 3),
        ("3", "5", 3),
        (" 12 ", "5", 12),
        ("", "5", 5),
        (None, "5", 5),
        (None, "5,2,1", 5),
        (None, " 4 , 2", 4),
        (None, "0", 64),
        (None, "-1", 64),
        (None, "many", 64),
        (None, ",3", 64),
        (None, "", 64),
        (None, None, 64),
        ("100000", None, 1024),
    ],
)
def test_environment(monkeypatch, system, own, openmp, expected):
    for name, value in (("CATTN_NUM_THREADS", own), ("OMP_NUM_THREADS", openmp)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert system({}) == expected


@pytest.mark.parametrize("text", ["0", "-3", "four", "2.5", "4,2"])
def test_own_variable_must_be_valid(monkeypatch, text):
    monkeypatch.setenv("CATTN_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"^CATTN_NUM_THREADS: expected an integer of 1 or more, got '{text}'$"):
        cattn.get_num_threads()
    cattn.set_num_threads(2)
    assert cattn.get_num_threads() == 2


def test_environment_is_read_at_first_need_and_kept(monkeypatch):
    monkeypatch.setenv("CATTN_NUM_THREADS", "5")
    assert cattn.get_num_threads() == 5
    monkeypatch.setenv("CATTN_NUM_THREADS", "6")
    assert cattn.get_num_threads() == 5
    cattn.set_num_threads(None)
    assert cattn.get_num_threads() == 6


@pytest.mark.parametrize("meanwhile", [7, None])
def test_a_setting_made_while_the_default_is_found_out(monkeypatch, meanwhile):
    """It holds; and to go back to the default is to look again, not to keep what is just being found out."""

    def found_late():
        monkeypatch.setattr(_threads, "default_num_threads", lambda: 4)
        cattn.set_num_threads(meanwhile)
        return 3

    monkeypatch.setattr(_threads, "default_num_threads", found_late)
    assert cattn.get_num_threads() == 3
    assert cattn.get_num_threads() == (meanwhile or 4)


def test_settings_of_one_thread_and_questions_of_others():
    """No setting is lost, whoever is just finding out the default, and every answer is a number."""
    lost, answers, done = [], set(), threading.Event()

    def ask():
        while not done.is_set():
            answers.add(cattn.get_num_threads())

    threads = [threading.Thread(target=ask) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for number in range(2, 502):
            cattn.set_num_threads(None)
            time.sleep(1e-5)  # they find out the default
            cattn.set_num_threads(number)
            time.sleep(1e-4)
            if cattn.get_num_threads() != number:
                lost.append(number)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not lost
    assert None not in answers and answers <= {_threads.default_num_threads(), *range(2, 502)}


V1 = "12:memory:/other\n4:cpu,cpuacct:/a/b\n1:name=systemd:/a\n"


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
          "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/cpu.max": "700000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/cpu.max": "500000 100000\n"}, 5),
        ({"proc/self/cgroup": "1:name=systemd:/\n0::/a\n", "sys/fs/cgroup/unified/a/cpu.max": "600000 100000\n"}, 6),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n"}, 64),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "150000\n",
          "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "50000\n"}, 3),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "120000\n",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "700000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 7),
        ({"proc/self/cgroup": "4:cpuset:/a\n", "sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us": "100000\n",
          "sys/fs/cgroup/cpuset/a/cpu.cfs_period_us": "100000\n"}, 64),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n"}, 64),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "0\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 2 3\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": b"\xff\xfe\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max/folder": ""}, 64),
        ({"proc/self/cgroup": "\n:\n::\nnonsense\n0::\n0::no/slash\n0::/../..\n"}, 64),
    ],
)  # fmt: skip
def test_control_groups(system, files, expected):
    assert system(files) == expected


def test_systems_without_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert _threads.default_num_threads(str(tmp_path)) == 6

    def refused(pid):
        raise OSError("not here")

    monkeypatch.setattr(os, "sched_getaffinity", refused, raising=False)
    assert _threads.default_num_threads(str(tmp_path)) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads.default_num_threads(str(tmp_path)) == 1


# The threads


def problem(seed=0, heads=3, rows=150, keys=150, dtype=np.float32):
    """More work than one thread is given alone."""
    random = np.random.default_rng(seed)
    return [random.standard_normal((heads, n, 64)).astype(dtype) for n in (rows, keys, keys)]


def same_bits(x, y):
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


def python(code, **environment):
    """Starts Python with the cattn of this test, and `problem` under its name."""
    paths = [os.path.dirname(os.path.dirname(cattn.__file__)), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment
    beginning = """
import os, sys, time
import numpy as np
import cattn
def problem(heads=3, rows=150, keys=150):
    return [np.ones((heads, n, 64), np.float32) for n in (rows, keys, keys)]
def threads():
    return set(os.listdir("/proc/self/task"))
"""
    command = [sys.executable, "-W", "error", "-c", beginning + code]
    # Not in the root of a checkout, whose folder cattn/ would be found first.
    here = os.path.dirname(os.path.abspath(__file__))
    return subprocess.Popen(command, env=environment, cwd=here, stdout=subprocess.PIPE, text=True)


def printed(process):
    with process:
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return output


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 150, 150), (2, 1, 20000), (1, 1000, 77), (8, 2, 3000)], ids=str)
def test_same_bits_for_any_number_of_threads(shape, dtype):
    arrays = problem(1, *shape, dtype)
    expected = cattn.attention(*arrays, num_threads=1)
    for threads in (2, 3, 7, 7, 7):
        assert same_bits(cattn.attention(*arrays, num_threads=threads), expected)


@NO_PROC
def test_threads_start_on_demand_stay_and_leave_signals_alone():
    code = """
before = threads()
for n in (1, 3, 2, 3):
    cattn.attention(*problem(), num_threads=n)
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
    assert printed(python(code)).split("\n") == ["0", "2", "2", "2", "[1, 1, 1, 0]", "[1, 1, 1, 0]", ""]


@NO_PROC
def test_threads_may_run_wherever_their_process_may():
    """A worker that leaves its caller's processor is free to come back."""
    code = """
for rest in [0.002] * 30:
    cattn.attention(*problem(), num_threads=3)
    time.sleep(rest)
print({tuple(os.sched_getaffinity(int(thread))) for thread in threads()} == {tuple(os.sched_getaffinity(0))})
"""
    assert printed(python(code)) == "True\n"


@NO_PROC
def test_what_beats_what():
    code = """
before = threads()
def started(**arguments):
    cattn.attention(*problem(), **arguments)
    print(len(threads() - before), end=" ")
started()
cattn.set_num_threads(4)
started()
started(num_threads=6)
"""
    assert printed(python(code, CATTN_NUM_THREADS="3", OMP_NUM_THREADS="9")) == "2 3 5 "
    assert printed(python(code, OMP_NUM_THREADS="2,9")) == "1 3 5 "


@NO_PROC
def test_importing_starts_nothing():
    code = """
before = threads()
import cattn._kernel
x = np.ones((4, 4), np.float32)
cattn.attention(x, x, x)
print(len(threads() - before), cattn._threads._setting)
"""
    assert printed(python(code, CATTN_NUM_THREADS="not read")) == "0 None\n"


def test_many_callers_at_once():
    problems = [problem(seed, rows=40 + 17 * seed) for seed in range(12)]
    expected = [cattn.attention(*arrays, num_threads=1) for arrays in problems]

    def call(i):
        n = i % len(problems)
        return same_bits(cattn.attention(*problems[n], num_threads=1 + i % 5), expected[n])

    with concurrent.futures.ThreadPoolExecutor(len(problems)) as executor:
        assert all(executor.map(call, range(300)))


def test_idle_threads_use_no_cpu():
    cattn.attention(*problem(), num_threads=4)
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize("pause", [0, 2e-5, 0.01])
def test_process_ends_while_threads_wait(pause):
    code = f"import time; cattn.attention(*problem(), num_threads=4); time.sleep({pause})"
    assert printed(python(code)) == ""


def test_process_ends_during_a_call():
    code = """
import threading, time
def call():
    while True:
        cattn.attention(*problem(), num_threads=3)
for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
"""
    assert printed(python(code)) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one process")
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupt(threads, rows):
    # Keys of stride 0 make minutes of work from no memory.
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)   # whoever started this may have it ignored
query, key, value = problem(rows={rows}, keys=1)
keys = (3, 10**8 if {rows} > 1 else 10**9, 64)
try:
    print("calling", flush=True)
    cattn.attention(query, np.broadcast_to(key, keys), np.broadcast_to(value, keys), num_threads={threads})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(cattn.attention(*problem(), num_threads={threads}).mean())
"""
    with python(code) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            assert process.stdout.readline() == "calling\n"
            time.sleep(0.3)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert time.monotonic() - began < 0.7
            assert process.stdout.readline() == "1.0\n"
        finally:
            watch.cancel()
            process.kill()


# Signals: a handler runs within 50 ms of work, whatever the work is


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


@pytest.fixture
def stop_after():
    """Raises Stop in this thread after so many seconds of work of the process."""
    before = signal.signal(signal.SIGPROF, stop)
    yield lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupts_come_in_time_and_leave_nothing_behind(rows, stop_after):
    query = np.zeros((8, rows, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 10**8, 64))
    sizes = []
    for _ in range(20):
        began = time.process_time()
        stop_after(0.03)
        with pytest.raises(Stop):
            cattn.attention(query, keys, keys, num_threads=1)
        assert time.process_time() - began < 0.03 + 0.06
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    assert sizes[-1] - sizes[4] < 2**20


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("call", ["tiny", "empty", "varlen", "weights", "worker"])
def test_interrupts_reach_many_small_tasks(call, stop_after):
    many = np.broadcast_to(np.float32(1), (3_000_000, 1, 1, 1))
    one, none = np.ones((1, 1, 1), np.float32), np.ones((1, 0, 1), np.float32)
    indptr = np.arange(2_000_001)
    keys = np.broadcast_to(np.float32(1), (2, 1, 8_000_000, 64))
    functions = {
        "tiny": lambda: cattn.attention(many, one, one, num_threads=1),
        "empty": lambda: cattn.attention(np.broadcast_to(np.float32(1), (1, 30_000_000, 1)), none, none, num_threads=1),
        "varlen": lambda: cattn.attention_varlen(*[many[:2_000_000, ..., 0]] * 3, indptr, indptr, num_threads=1),
        "weights": lambda: cattn.attention_weights(many, one, num_threads=1),
        # The caller has done its part and waits for a worker.
        "worker": lambda: cattn.attention(keys[:, :, :64], keys, keys, key_lengths=[1000, 8_000_000], num_threads=2),
    }
    stop_after(0.15)
    began = time.process_time()
    with pytest.raises(Stop):
        functions[call]()
    assert time.process_time() - began < 0.15 + 0.06


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["attention", "weights"])
def test_interrupts_reach_millions_of_tasks(call, threads, stop_after):
    """However far the call has come: nothing is listed, nor left to be freed."""
    many = np.broadcast_to(np.float32(1), (30_000_000, 1, 1, 1))
    functions = {
        "attention": lambda: cattn.attention(many, many, many, num_threads=threads),
        "weights": lambda: cattn.attention_weights(many, many, num_threads=threads),
    }
    stop_after(1.5)
    began = time.process_time()
    with pytest.raises(Stop):
        functions[call]()
    assert time.process_time() - began < 1.5 + 0.06 * threads


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("call", ["many rows", "few rows", "swapped bytes", "merge", "weights"])
def test_interrupts_reach_huge_heads(call, stop_after):
    row = np.ones(4_000_000, np.float32)
    query, keys = np.broadcast_to(row, (1, 40, row.size)), np.broadcast_to(row, (1, 10_000, row.size))
    swapped = np.broadcast_to(row.astype(">f4"), keys.shape)
    functions = {
        "many rows": lambda: cattn.attention(query, keys, keys, num_threads=1),
        "few rows": lambda: cattn.attention(query[:, :5], keys, keys, num_threads=1),
        "swapped bytes": lambda: cattn.attention(swapped[:, :40], swapped, swapped, num_threads=1),
        "merge": lambda: cattn.attention(query[..., :1], keys[..., :1], keys, key_lengths=1, num_threads=1),
        "weights": lambda: cattn.attention_weights(query, keys, num_threads=1),
    }
    for seconds in (0.05, 0.3, 0.5):
        stop_after(seconds)
        began = time.process_time()
        with pytest.raises(Stop):
            functions[call]()
        assert time.process_time() - began < seconds + 0.15  # 128 MB of memory are freed


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 64])
def test_signal_handlers_that_call_again_and_again(rows, threads):
    code = f"""
import signal
query, keys = np.ones((2, {rows}, 64), np.float32), np.broadcast_to(np.ones(64, np.float32), (2, 10**8, 64))
def call(*_):
    try:
        cattn.attention(query, keys, keys, num_threads={threads})
    except RecursionError:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        raise
signal.signal(signal.SIGALRM, call)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
try:
    call()
except RecursionError as error:
    print(error)
print(cattn.attention(*problem(), num_threads={threads}).mean())
"""
    assert printed(python(code)) == "cattn: signal handlers that call cattn are nested too deeply\n1.0\n"


@pytest.mark.parametrize("isa", ["portable", "vec128", "avx2", "avx512"])
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
threading.stack_size(64 * 1024)
thread = threading.Thread(target=call_all)
thread.start()
thread.join()
"""
    if isa not in _kernel.runnable_isas():
        pytest.skip(f"{isa} does not run here")
    assert printed(python(code, CATTN_ISA=isa)) == "done\n" * 2


def counts_subnormals():
    """Whether this thread's arithmetic does: calls compute in a mode in which it does not."""
    return np.float32(1e-38) * np.float32(0.5) > 0


@pytest.mark.parametrize("rows", [1, 512])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floating_point_mode_is_the_callers_after_a_call(rows, threads):
    query, keys = np.ones((8, rows, 64), np.float32), np.ones((8, 4096, 64), np.float32)
    cattn.attention(query, keys, keys, num_threads=threads)
    cattn.attention_weights(query, keys)
    assert counts_subnormals()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_floating_point_mode_is_the_callers_in_signal_handlers(threads, stop_after):
    seen = []

    def look(*_):
        seen.append(counts_subnormals())
        raise Stop

    query = np.zeros((8, 512, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 10**8, 64))
    signal.signal(signal.SIGPROF, look)
    stop_after(0.03)
    with pytest.raises(Stop):
        cattn.attention(query, keys, keys, num_threads=threads)
    assert seen == [True]
    assert counts_subnormals()


def test_subnormal_values_come_within_the_smallest_normal_number():
    """They count as 0, in every type that has them."""
    for dtype in np.float32, np.float64:
        tiny = np.finfo(dtype).smallest_normal
        ones = np.ones((1, 20, 8), dtype)
        for rows in 1, 20:
            out = cattn.attention(ones[:, :rows], ones, ones * (tiny / 8))
            assert np.all(np.abs(out - tiny / 8) <= tiny)
            out = cattn.attention(ones[:, :rows], ones, ones * (tiny * 8))
            np.testing.assert_allclose(out, tiny * 8, rtol=1e-5)


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


# Forks


def in_a_fork(function):
    """Whether it returns something true in a forked child, in time."""
    with warnings.catch_warnings():  # Python >= 3.12 warns of a fork beside threads, which is what is tested here
        warnings.simplefilter("ignore", DeprecationWarning)
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
    arrays = problem()
    expected = cattn.attention(*arrays, num_threads=3)

    def works():
        return all(same_bits(cattn.attention(*arrays, num_threads=n), expected) for n in (3, 2, 4, 1))

    assert in_a_fork(works)
    assert in_a_fork(lambda: in_a_fork(works))
    assert in_a_fork(lambda: works() and in_a_fork(works) and works())
    assert works()


@NO_FORK
def test_fork_during_calls_of_others():
    arrays = problem()
    expected = cattn.attention(*arrays, num_threads=3)
    ended = threading.Event()

    def works():
        return same_bits(cattn.attention(*arrays, num_threads=3), expected)

    def call():
        while not ended.is_set():
            works()

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        assert all(in_a_fork(works) for _ in range(30))
    finally:
        ended.set()
        for caller in callers:
            caller.join()


@NO_FORK
@NO_PROC
def test_fork_has_threads_of_its_own():
    cattn.attention(*problem(), num_threads=3)

    def started():
        before = len(os.listdir("/proc/self/task"))
        cattn.attention(*problem(), num_threads=3)
        return (before, len(os.listdir("/proc/self/task"))) == (1, 3)

    assert in_a_fork(started)


def called_by_multiprocessing(seed):
    return cattn.attention(*problem(seed), num_threads=2)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_multiprocessing():
    expected = [called_by_multiprocessing(seed) for seed in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(called_by_multiprocessing, range(4)).get(60)
    assert all(map(same_bits, found, expected))
