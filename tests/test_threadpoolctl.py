"""threadpoolctl finds cattn once cattn.threadpoolctl is imported, limits its calls, and leaves everything as it was."""

import ctypes
import shutil
import threading

import numpy as np
import pytest

import cattn
from cattn import _kernel

threadpoolctl = pytest.importorskip("threadpoolctl", "3.2")


@pytest.fixture(autouse=True)
def seven_threads():
    import cattn.threadpoolctl

    cattn.set_num_threads(7)
    yield
    cattn.set_num_threads(None)


def infos():
    return [info for info in threadpoolctl.threadpool_info() if info["internal_api"] == "cattn"]


def test_it_finds_the_compiled_module_alone():
    (info,) = infos()
    assert info["filepath"] == _kernel.__file__
    assert (info["user_api"], info["version"], info["num_threads"]) == ("cattn", cattn.__version__, 7)


def test_other_libraries_of_the_same_name_are_not_taken_for_it(tmp_path):
    ctypes.CDLL(shutil.copy(np.random._pcg64.__file__, tmp_path / "_kernel.so"))
    assert [info["filepath"] for info in infos()] == [_kernel.__file__]


@pytest.mark.parametrize(
    "options", [{"limits": 2}, {"limits": 2, "user_api": "cattn"}, {"limits": {"cattn": 2}}], ids=str
)
def test_limits(options):
    with threadpoolctl.threadpool_limits(**options):
        assert cattn.get_num_threads() == infos()[0]["num_threads"] == 2
        with threadpoolctl.threadpool_limits(1):
            assert cattn.get_num_threads() == 1
        assert cattn.get_num_threads() == 2
    assert cattn.get_num_threads() == 7


def test_limits_of_others():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert cattn.get_num_threads() == 7


def test_nothing_is_left_behind():
    """A number that is set for the process afterwards holds here too."""
    with threadpoolctl.threadpool_limits(2):
        pass
    cattn.set_num_threads(5)
    assert cattn.get_num_threads() == 5


def test_inside_of_a_block():
    with cattn.num_threads(3):
        with threadpoolctl.threadpool_limits(7):
            assert cattn.get_num_threads() == 7
        assert cattn.get_num_threads() == 3
    assert cattn.get_num_threads() == 7


def test_limits_hold_in_the_calling_thread():
    seen, limited, looked = [], threading.Event(), threading.Event()

    def limit():
        with threadpoolctl.threadpool_limits(2):
            limited.set()
            looked.wait(10)
            seen.append(cattn.get_num_threads())

    thread = threading.Thread(target=limit)
    thread.start()
    assert limited.wait(10)
    seen.append(cattn.get_num_threads())
    looked.set()
    thread.join()
    assert seen == [7, 2]
