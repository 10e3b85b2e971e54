"""Signal handlers run within 0.2 s, whatever the work is; one that raises ends the call and leaves nothing behind."""

import functools
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest
from c_interface_calls import WantsToStop
from helpers import python, slow, start_python
from known_calls import SHARED_WORK, endless, known_calls
from registry import FUNCTIONS

import cattn

BEGINNING = """
import signal
import numpy as np
import cattn
x = np.ones((3, 150, 64), np.float32)
"""
TIMERS = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one process")
@pytest.mark.parametrize("threads", [1, slow(2), 4])
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupt(threads, rows):
    # Keys of stride 0 make minutes of work from no memory.
    code = f"""
signal.signal(signal.SIGINT, signal.default_int_handler)   # whoever started this may have it ignored
query, key = np.ones((3, {rows}, 64), "f"), np.ones(64, "f")
keys = np.broadcast_to(key, (3, 10**8 if {rows} > 1 else 10**9, 64))
try:
    print("calling", flush=True)
    cattn.attention(query, keys, keys, num_threads={threads})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(cattn.attention(x, x, x, num_threads={threads}).mean())
"""
    with start_python(BEGINNING + code) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            assert process.stdout.readline() == "calling\n"
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"  # not the end of the call
            assert process.stdout.readline() == "1.0\n"
        finally:
            watch.cancel()
            process.kill()


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


@pytest.fixture
def lateness():
    """How long after so many seconds of work of this process a call ends by Stop, in seconds of work too."""
    before = signal.signal(signal.SIGPROF, stop)

    def lateness(call, seconds):
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        with pytest.raises(Stop):
            call()
        return time.process_time() - began - seconds

    yield lateness
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def in_time(lateness):
    """Return whether a call ends in time in one of three tries: others at work on this processor may slow any of
    them, but a call that does not look for signals is late in each. None of them makes it ten times as late."""

    def ends(call, seconds, limit=0.06):
        tries = (lateness(call, seconds) for _ in range(3))
        return next((late for late in tries if late < limit or late > 10 * limit), limit) < limit

    return ends


@TIMERS
@pytest.mark.parametrize("rows", [1, 512])
def test_interrupts_come_in_time_and_leave_nothing_behind(rows, lateness):
    query = np.zeros((8, rows, 64), np.float32)
    keys = np.broadcast_to(np.ones(64, np.float32), (8, 10**8, 64))
    late, sizes = 0, []
    for _ in range(20):
        late += lateness(lambda: cattn.attention(query, keys, keys, num_threads=1), 0.03) > 0.06
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"))
    assert late <= 2
    assert sizes[-1] - sizes[4] < 2**20


@TIMERS
@pytest.mark.parametrize("call", ["tiny", "empty", "varlen", "weights", "worker"])
def test_interrupts_reach_many_small_tasks(call, in_time):
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
        "worker": lambda: cattn.attention(keys[:, :, :64], keys, keys, key_lengths=[200_000, 8_000_000], num_threads=2),
    }
    assert in_time(functions[call], 0.15)


@TIMERS
def test_interrupts_reach_gradients_of_keys_that_no_query_sees(in_time):
    query, lse = np.ones((1, 0, 64), np.float32), np.ones((1, 0), np.float32)
    keys = np.broadcast_to(np.float32(1), (1, 600_000, 64))
    assert in_time(lambda: cattn.attention_backward(query, query, keys, keys, query, lse, num_threads=1), 0.1)


@TIMERS
def test_interrupts_reach_gradients_of_masked_rows_that_are_nan(in_time):
    """The call looks through all keys of such a row for one that it attends to."""
    ones, zeros, nan, masked = np.float32([1, 0, np.nan, -np.inf])
    query, key = np.broadcast_to(ones, (1, 60, 1)), np.broadcast_to(ones, (1, 3_000_000, 1))
    grad_out, out = np.broadcast_to(nan, query.shape), np.broadcast_to(zeros, query.shape)
    lse, bias = np.broadcast_to(masked, (1, 60)), np.broadcast_to(masked, (60, 3_000_000))
    assert in_time(lambda: cattn.attention_backward(grad_out, query, key, key, out, lse, bias=bias, num_threads=1), 0.1)


@TIMERS
@pytest.mark.parametrize("seconds", [0.3, slow(1.5)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["attention", "weights"])
def test_interrupts_reach_millions_of_tasks(call, threads, seconds, in_time):
    """However far the call has come: nothing is listed, nor left to be freed."""
    many = np.broadcast_to(np.float32(1), (30_000_000, 1, 1, 1))
    functions = {
        "attention": lambda: cattn.attention(many, many, many, num_threads=threads),
        "weights": lambda: cattn.attention_weights(many, many, num_threads=threads),
    }
    assert in_time(functions[call], seconds, 0.06 * threads)


@TIMERS
@pytest.mark.parametrize("seconds", [0.05, 0.2, slow(0.5)])
@pytest.mark.parametrize("call", ["many rows", "few rows", "swapped bytes", "weights"])
def test_interrupts_reach_wide_values_and_large_heads(call, seconds, in_time):
    row = np.ones(4_000_000, np.float32)
    query, keys = np.broadcast_to(row[:16384], (1, 40, 16384)), np.broadcast_to(row[:16384], (1, 10_000, 16384))
    values = np.broadcast_to(row, (1, 10_000, row.size))
    swapped = np.broadcast_to(row.astype(">f4"), values.shape)
    functions = {
        "many rows": lambda: cattn.attention(query, keys, values, num_threads=1),
        "few rows": lambda: cattn.attention(query[:, :5], keys, values, num_threads=1),
        "swapped bytes": lambda: cattn.attention(swapped[:, :40, :16384], swapped[..., :16384], swapped, num_threads=1),
        "weights": lambda: cattn.attention_weights(query, keys, num_threads=1),
    }
    assert in_time(functions[call], seconds, 0.15)  # 128 MB of memory are freed


@TIMERS
@pytest.mark.parametrize("seconds", [0.05, 0.2, slow(0.6)])
@pytest.mark.parametrize("call", ["self_attention", "merge_attention", "list"])
def test_interrupts_reach_what_numpy_computes(call, seconds, in_time):
    x, weights = np.broadcast_to(np.float32(1), (20_000, 2048)), np.ones((2048, 2048), np.float32)
    outs, lses = [np.broadcast_to(np.float32(1), (40, 4_000_000))] * 8, [np.zeros(40)] * 8
    none, zeros = np.ones((0, 1, 1), np.float32), [0] * 8_000_000
    functions = {
        "self_attention": lambda: cattn.self_attention(x, weights, weights, weights, num_heads=16),
        "merge_attention": lambda: cattn.merge_attention(outs, lses),
        "list": lambda: cattn.attention_varlen(none, none, none, zeros, zeros),
    }
    # A product takes a block's time on each processor that NumPy uses: these are seconds of them all.
    assert in_time(functions[call], seconds, 0.4 if call == "self_attention" else 0.06)


@TIMERS
@pytest.mark.parametrize("threads", [slow(1), 2])
@pytest.mark.parametrize("rows", [1, 64])
def test_signal_handlers_that_call_again_and_again(rows, threads):
    code = f"""
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
print(cattn.attention(x, x, x, num_threads={threads}).mean())
"""
    assert python(BEGINNING + code) == "cattn: signal handlers that call cattn are nested too deeply\n1.0\n"


# Every public function


@pytest.fixture
def alarms():
    """Return a function that sets the handler of SIGALRM for a test."""
    before = signal.getsignal(signal.SIGALRM)
    yield functools.partial(signal.signal, signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


KEYS = 2_000_000  # which take half a minute, where nothing ends the call


def repeated(*shape, dtype=np.float32):
    """Ones in the memory of the last axis alone. They can be written to, as tensors on an array's memory must be."""
    ones = np.ones(shape[-1], dtype)
    return np.lib.stride_tricks.as_strided(ones, shape, (*[0] * (len(shape) - 1), ones.itemsize))


def long_arguments(name):
    """Arguments with which a call takes seconds at least."""
    one = np.float32(1)
    if name == "attention_weights":
        return {"query": repeated(1, 40, 16_384), "key": repeated(1, 1_000_000, 16_384)}
    if name in ("attention_varlen", "flash_attn.flash_attn_varlen_func"):
        query, key = repeated(512, 8, 64), repeated(KEYS, 8, 64)
        indptr = np.array([0, 512], np.int32), np.array([0, KEYS], np.int32)
        if name == "attention_varlen":
            return {"query": query, "key": key, "value": key, "query_indptr": indptr[0], "key_indptr": indptr[1]}
        given = {"q": query, "k": key, "v": key, "cu_seqlens_q": indptr[0], "cu_seqlens_k": indptr[1]}
        return given | {"max_seqlen_q": 512, "max_seqlen_k": KEYS}
    if name == "attention_paged":
        query, cache = repeated(512, 8, 64), repeated(KEYS // 16, 16, 8, 64)
        table = {"block_table": np.arange(KEYS // 16)[None], "key_lengths": np.array([KEYS])}
        return {"query": query, "key_cache": cache, "value_cache": cache, "query_indptr": np.array([0, 512])} | table
    if name == "flash_attn.flash_attn_with_kvcache":
        cache = repeated(1, KEYS, 8, 64)
        return {"q": repeated(1, 512, 8, 64), "k_cache": cache, "v_cache": cache}
    if name == "flash_attn.flash_attn_func":
        return {"q": repeated(1, 512, 8, 64), "k": repeated(1, KEYS, 8, 64), "v": repeated(1, KEYS, 8, 64)}
    if name == "merge_attention":
        return {"outputs": [np.broadcast_to(one, (40, 4_000_000))] * 8, "lses": [np.zeros(40)] * 8}
    if name in ("self_attention", "trace"):
        x, weights = np.broadcast_to(one, (3000, 2048)), np.ones((2048, 8192), np.float32)
        return {"x": x, "w_query": weights, "w_key": weights, "w_value": weights}
    if name == "unpad":
        return {"x": np.broadcast_to(one, (4, 400_000, 1024)), "lengths": [400_000] * 4}
    if name == "quantize":
        return {"x": np.broadcast_to(one, (1_600_000, 1024)), "axis": -1}
    if name == "pad":
        return {"packed": np.broadcast_to(one, (1_600_000, 1024)), "indptr": np.arange(0, 1_600_001, 400_000)}
    if name == "KVCache":  # which copies its keys
        sizes = {"batch": 1, "num_kv_heads": 8, "head_size": 64, "value_size": 64, "dtype": "float32"}
        key = repeated(1, 8, KEYS // 10, 64)
        return {"query": repeated(1, 8, 512, 64), "key": key, "value": key} | sizes
    if name in ("maxsim", "torch.maxsim"):
        return {"query": repeated(8, 512, 64), "document": repeated(KEYS // 100, 100, 64)}
    if name == "attention_backward":
        query, key = repeated(8, 8192, 64), repeated(8, KEYS // 40, 64)  # whose gradients take memory
        return {"grad_out": query, "query": query, "key": key, "value": key, "out": query, "lse": query[..., 0]}
    batch = (1,) if name == "transformers.register" else ()
    return {
        "query": repeated(*batch, 8, 512, 64),
        "key": repeated(*batch, 8, KEYS, 64),
        "value": repeated(*batch, 8, KEYS, 64),
    }


def long_call(name):
    """Return a function that makes a long call, and has made a short one: what is imported once is imported then."""
    function = FUNCTIONS[name]
    if not function.is_there:
        pytest.skip(f"{function.needs} is not installed")
    function.call(**function.arguments(0))
    if name != "dask.attention":
        return functools.partial(function.call, **long_arguments(name))
    import dask.array as da

    import cattn.dask

    ones = da.ones(64, np.float32)
    query, keys = (da.broadcast_to(ones, shape, chunks=shape) for shape in ((8, 512, 64), (8, KEYS, 64)))
    call = cattn.dask.attention(query, keys, keys, num_threads=None)
    return functools.partial(call.compute, scheduler="sync")


# That of plan is never long. In the interface for C, a callback says when to stop.
LONG = [name for name in FUNCTIONS if name not in ("plan", "cattn.h")]
NUMPYS_PRODUCTS = ("self_attention", "trace")  # whose blocks take as much on each processor that NumPy uses


@TIMERS
@pytest.mark.parametrize(
    "seconds, threads",
    [(0.05, 1), slow(0.02, 2), slow(0.6, 2)],
)
@pytest.mark.parametrize("name", LONG)
def test_interrupts_reach_every_function(name, seconds, threads, in_time):
    call = long_call(name)
    with cattn.num_threads(threads):
        assert in_time(call, seconds, 0.4 if name in NUMPYS_PRODUCTS else 0.1 * threads)


CTRL_C = """
import sys
from test_interrupts import long_call
signal.signal(signal.SIGINT, signal.default_int_handler)
call = long_call(sys.argv[1])
for _ in range(3):
    try:
        print("calling", flush=True)
        call()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one process")
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_ends_every_function(name):
    """In one of three tries within 0.2 s on the clock, since others may be at work on this machine."""
    if not FUNCTIONS[name].is_there:
        pytest.skip(f"{FUNCTIONS[name].needs} is not installed")
    late = []
    with start_python(BEGINNING + CTRL_C, name) as process:
        watch = threading.Timer(120, process.kill)
        watch.start()
        try:
            for _ in range(3):
                assert process.stdout.readline() == "calling\n"
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                began = time.monotonic()
                assert process.stdout.readline() == "interrupted\n"
                late.append(time.monotonic() - began)
        finally:
            watch.cancel()
            process.kill()
    print(f"{name}: Ctrl-C after {', '.join(f'{x:.3f}' for x in late)} s")
    assert min(late) < (2 if name in NUMPYS_PRODUCTS else 0.2)  # a block of a product waits for its processors, too


def torch_call(inside):
    """Return a long call of PyTorch's names: on heads that lie within positions, or of its own function inside of
    `sdpa`."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    import cattn.torch

    query, keys = (torch.ones(64).expand(1, length, 8, 64) for length in (512, KEYS))
    if inside == "sdpa":
        query, keys = query.swapaxes(1, 2), keys.swapaxes(1, 2)
        query = query.contiguous()

        def call():
            with cattn.torch.sdpa():
                torch.nn.functional.scaled_dot_product_attention(query, keys, keys)

        return call
    query = query.contiguous().swapaxes(1, 2)
    return lambda: cattn.torch.scaled_dot_product_attention(query, keys.swapaxes(1, 2), keys.swapaxes(1, 2))


@TIMERS
@pytest.mark.parametrize("kind", [ValueError, slow(TypeError), slow(RuntimeError)])
@pytest.mark.parametrize("name", [*LONG, "blhd", "sdpa"])
def test_the_error_of_a_handler_is_the_callers(name, kind, alarms):
    """It is not taken for one about arguments, whatever its class and words."""

    class Late(kind):
        def __init__(self, first, second):
            super().__init__(f"query: {first} {second}")

    raised = Late("too", "late")

    def handler(*_):
        raise raised from kind("a cause")

    call = torch_call(name) if name in ("blhd", "sdpa") else long_call(name)
    alarms(handler)
    with pytest.raises(Late) as caught:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        call()
    assert caught.value is raised
    assert str(caught.value) == "query: too late" and str(caught.value.__cause__) == "a cause"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 512])
def test_callbacks_of_c_are_asked_in_time(rows, threads):
    query, keys = repeated(8, rows, 64), repeated(8, KEYS * 512 // rows, 64)
    given = {"query": query, "key": keys, "value": keys, "out": np.empty((8, rows, 64), np.float32)}

    def lateness(seconds):
        end = time.process_time() + seconds
        wants_to_stop = WantsToStop(lambda context: time.process_time() > end)
        with pytest.raises(ValueError, match=r"^wants_to_stop said so$"):
            FUNCTIONS["cattn.h"].call(**given, flags=0, num_threads=threads, wants_to_stop=wants_to_stop)
        return time.process_time() - end

    assert any(lateness(0.1) < 0.1 * threads for _ in range(3))


@pytest.fixture(scope="module")
def calls():
    """Calls of every function, of which half are shared among threads."""
    return known_calls(range(3)) + known_calls(range(3), SHARED_WORK)


STORMS = [0.4, slow(3)]  # seconds


@TIMERS
@pytest.mark.parametrize("seconds", STORMS)
def test_a_storm_of_signals(calls, alarms, seconds):
    """A thousand a second."""
    arrived = []
    alarms(lambda *_: arrived.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    made = check_until(time.monotonic() + seconds, calls)
    print(f"{made} calls during {len(arrived)} signals")
    assert len(arrived) > 10


@TIMERS
@pytest.mark.parametrize("seconds", STORMS)
def test_a_storm_of_handlers_that_call(calls, alarms, seconds):
    """Any function may be interrupted by any that needs no other library, whose locks might be held."""
    inner = endless([call for call in calls if call.function.needs is None], 1)
    right = []

    def call(*_):
        right.append(next(inner).is_right())
        signal.setitimer(signal.ITIMER_REAL, 1e-3)

    alarms(call)
    signal.setitimer(signal.ITIMER_REAL, 1e-3)
    made = check_until(time.monotonic() + seconds, calls)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{made} calls, and {len(right)} in signal handlers")
    assert right and all(right)


def check_until(end, calls):
    """Make calls, with any number of threads, and check that they are right. Return how many there were."""
    for made, call in enumerate(endless(calls, 0)):
        if time.monotonic() > end:
            return made
        with cattn.num_threads(1 + made % 4):
            assert call.is_right(), call


@TIMERS
@pytest.mark.parametrize("seconds", STORMS)
def test_a_storm_of_handlers_that_raise(calls, alarms, seconds):
    """A call either raises what the handler raised, or is right."""
    alarms(stop)
    draw, stopped, made, end = random.Random(0), 0, 0, time.monotonic() + seconds
    for call in endless([call for call in calls if call.function.needs is None], 0):
        if time.monotonic() > end:
            break
        made += 1
        with cattn.num_threads(1 + made % 4):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 2 * min(call.seconds, 1e-3)))
                right = call.is_right()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                stopped += 1
            else:
                assert right, call
        if made % 100 == 0:
            assert all(call.is_right() for call in calls[::10])
    print(f"{made} calls, {stopped} of them stopped")
    assert 0 < stopped < made


@TIMERS
@pytest.mark.parametrize("seconds", STORMS)
def test_calls_of_other_threads_go_on(calls, alarms, seconds):
    """While those of the main thread are interrupted, again and again."""
    alarms(stop)
    made, wrong = [], []

    def call_on(number):
        try:
            made.append(check_until(end, calls[number::3]))
        except BaseException as error:
            wrong.append(error)

    end = time.monotonic() + seconds
    threads = [threading.Thread(target=call_on, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    call, stopped = long_call("attention"), 0
    while time.monotonic() < end:
        with cattn.num_threads(1 + stopped % 4), pytest.raises(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            call()
        stopped += 1
    for thread in threads:
        thread.join(60)
    print(f"{sum(made)} calls beside {stopped} that were stopped")
    assert not wrong and len(made) == 3 and stopped > 2
