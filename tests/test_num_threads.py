"""How many threads a call may use: the setting, the environment, what the system allows."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cattn
from cattn import _threads


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cattn.set_num_threads(None)
    yield
    cattn.set_num_threads(None)


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Return what find_default says on a system of 64 CPUs with these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def number(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _threads.find_default(str(tmp_path))[0]

    return number


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
        monkeypatch.setattr(_threads, "find_default", lambda: (4, "later"))
        cattn.set_num_threads(meanwhile)
        return 3, "before"

    monkeypatch.setattr(_threads, "find_default", found_late)
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
        for number in range(2, 202):
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
    assert None not in answers and answers <= {_threads.find_default()[0], *range(2, 202)}


def seen_by_a_new_thread():
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(cattn.get_num_threads()))
    thread.start()
    thread.join()
    return numbers[0]


def test_a_block_beats_the_setting_and_ends_with_it():
    cattn.set_num_threads(7)
    with cattn.num_threads(np.int64(3)):
        assert cattn.get_num_threads() == 3 and type(cattn.get_num_threads()) is int
        with cattn.num_threads(2**70):
            assert cattn.get_num_threads() == 1024
        assert cattn.get_num_threads() == 3
        cattn.set_num_threads(8)
        assert cattn.get_num_threads() == 3
        assert _threads.resolve(5) == 5  # num_threads= of a call
    assert cattn.get_num_threads() == 8


def test_a_block_ends_with_an_exception():
    cattn.set_num_threads(7)
    with pytest.raises(KeyError), cattn.num_threads(3), cattn.num_threads(4):
        raise KeyError
    assert cattn.get_num_threads() == 7


@pytest.mark.parametrize("number, error", [(0, ValueError), (True, TypeError), (2.0, TypeError), (None, TypeError)])
def test_a_block_that_is_refused(number, error):
    """At the call, whether or not somebody enters it."""
    with pytest.raises(error, match=rf"^n: expected an integer of 1 or more, got {number}$"):
        cattn.num_threads(number)


@pytest.mark.skipif(getattr(sys.flags, "thread_inherit_context", 0), reason="new threads inherit the caller's context")
def test_a_block_is_the_calling_threads_own():
    cattn.set_num_threads(7)
    with cattn.num_threads(3):
        assert seen_by_a_new_thread() == 7
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(cattn.get_num_threads).result() == 7


def test_a_block_in_tasks_of_asyncio():
    """Tasks take turns in one thread, and a block holds for the task that entered it and what it hands on."""

    async def limited(number, entered, leave):
        with cattn.num_threads(number):
            entered.set()
            await leave.wait()
            return cattn.get_num_threads(), await asyncio.to_thread(cattn.get_num_threads)

    async def main():
        entered, leave = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(limited(number, entered, leave)) for number in (2, 3)]
        await entered.wait()
        outside = cattn.get_num_threads()
        leave.set()
        return outside, await asyncio.gather(*tasks)

    cattn.set_num_threads(7)
    assert asyncio.run(main()) == (7, [(2, 2), (3, 3)])


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the system does not list a process's threads")
def test_a_block_of_one_thread_starts_no_worker():
    """In a process of its own, where no call has started one yet."""
    program = """
import os, numpy, cattn
x = numpy.ones((4, 8, 256, 64), numpy.float32)
query, key, weight = x, x[:, :, :128], numpy.eye(64, dtype=numpy.float32)
tokens = numpy.ones((2048, 64), numpy.float32)
def started(*calls):
    before = len(os.listdir("/proc/self/task"))
    for call in calls:
        call()
    return len(os.listdir("/proc/self/task")) - before
calls = [lambda: cattn.attention(query, key, key), lambda: cattn.attention(query, key, key, softcap=2.0),
         lambda: cattn.attention_weights(query, key), lambda: cattn.self_attention(tokens, weight, weight, weight),
         lambda: cattn.attention_varlen(tokens[:, None], tokens[:, None], tokens[:, None], [0, 1024, 2048],
                                        [0, 1024, 2048])]
cattn.set_num_threads(2)
weight @ weight  # what BLAS starts, it has started
with cattn.num_threads(1):
    print(started(*calls))
print(started(*calls))
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "1"], done.stderr


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


INSIDE = """
set -e
mount --bind "$1/proc/self/cgroup" /proc/$$/cgroup
mount --bind "$1/sys/fs/cgroup" /sys/fs/cgroup
exec "$2" -c "$3"
"""
STARTED = """
import os, numpy, cattn
before = len(os.listdir("/proc/self/task"))
x = numpy.ones((3, 150, 64), numpy.float32)
cattn.attention(x, x, x)
print(cattn.get_num_threads(), 1 + len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize(
    "files, quota",
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
          "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
          "sys/fs/cgroup/a/cpu.max": "900000 100000\n"}, 2),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
          "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n",
          "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 1),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "60000\n",
          "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "50000\n"}, 2),
    ],
)  # fmt: skip
def test_a_process_in_control_groups(tmp_path, files, quota):
    """From outside: other files are mounted over those of the system, for one process."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", INSIDE, "sh", str(tmp_path), sys.executable]
    if shutil.which("unshare") is None or subprocess.run([*command, "pass"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run([*command, STARTED], capture_output=True, text=True, timeout=120)
    threads = str(min(quota, len(os.sched_getaffinity(0))))
    assert done.stdout.split() == [threads, threads], done.stderr


def test_systems_without_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert _threads.find_default(str(tmp_path))[0] == 6

    def refused(pid):
        raise OSError("not here")

    monkeypatch.setattr(os, "sched_getaffinity", refused, raising=False)
    assert _threads.find_default(str(tmp_path))[0] == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads.find_default(str(tmp_path))[0] == 1
