"""The plan: what a call will do, from shapes alone, and within its bounds."""

import dataclasses
import itertools
import os
import sys

import cases
import numpy as np
import pytest
from helpers import TWO_TABLES, python

import cattn

TYPES = list(cases.TYPES.values())
SIZES = [1, 3, 16, 64, 80, 128, 200, 255, 256]
# Of queries and of values: equal sizes, and each beside the least and the most.
PAIRS = [pair for pair in itertools.product(SIZES, SIZES) if len({*pair}) == 1 or {1, 256} & {*pair}]
# Query heads, key heads, query length, key length.
LENGTHS = [
    (1, 1, 1, 1),
    (32, 8, 1, 2049),
    (8, 8, 8, 2**30),
    (4, 4, 9, 2048),
    (4, 4, 300, 2049),
    (1, 1, 300, 2**30),
    (4, 1, 100_000, 5000),
]
MIB = 2**20
BLOCK = 25 * 1024  # bytes of keys
L2_BLOCK = 64 * 1024
LEAST_BLOCK = 10  # keys


def huge(shape, dtype, contiguous=True):
    """An array of any shape that takes next to no memory, with a contiguous last axis or without."""
    if not contiguous:
        return np.broadcast_to(np.zeros((), dtype), shape)
    return np.broadcast_to(np.zeros(shape[-1], dtype), shape)


def problem(heads, key_heads, rows, keys, size, value_size, dtype, **options):
    return (
        huge((heads, rows, size), dtype, **options),
        huge((key_heads, keys, size), dtype, **options),
        huge((key_heads, keys, value_size), dtype, **options),
    )


def everything(lengths, bias):
    """The modifiers that take workspace, in strides that cannot be read in place, with a bias of this type if any."""
    heads, _, rows, keys = lengths
    shape = (heads, rows, keys)
    return {"mask": huge(shape, bool, False), "bias": huge(shape, bias, False)} if bias is not None else {}


def work_sizes():
    """(arguments, plan) over types, sizes, lengths, strides and modifiers."""
    for dtype, (size, value_size), lengths in itertools.product(TYPES, PAIRS, LENGTHS):
        for contiguous, bias in itertools.product((True, False), (None, np.float16, np.float64)):
            arrays = problem(*lengths, size, value_size, dtype, contiguous=contiguous)
            out = huge_out(lengths, value_size, dtype)
            yield (dtype, size, value_size, *lengths), cattn.plan(*arrays, **everything(lengths, bias), out=out)


def huge_out(lengths, value_size, dtype):
    # Never written: no page of it comes to exist.
    return np.empty((lengths[0], lengths[2], value_size), dtype)


def check_bounds(isa):
    for arguments, plan in work_sizes():
        assert plan.isa == isa
        dtype, size, value_size, *_ = arguments
        assert 0 < plan.workspace_bytes <= MIB, (arguments, plan)
        if plan.strategy == "many rows":
            # These tables read bfloat16 as it is, and amx, whose products take 32 keys, has blocks that stay in L2.
            narrow = plan.isa in ("avx512bf16", "amx") and dtype == cases.TYPES["bfloat16"]
            item = 8 if dtype == np.float64 else 2 if narrow else 4
            block = L2_BLOCK if narrow and plan.isa == "amx" else BLOCK
            fits = plan.key_block * max(size, value_size) * item <= block
            assert fits or plan.key_block == LEAST_BLOCK, (arguments, plan)


@TWO_TABLES
def test_bounds(isa):
    """At most 1 MiB a thread for head sizes up to 256; a block of keys that stays in L1; and the table's own name."""
    python("import sys, test_plan; test_plan.check_bounds(*sys.argv[1:])", isa, CATTN_ISA=isa)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("keys", [2049, 4096, 4097, 10_000, 2**20])
@pytest.mark.parametrize("rows", [1, 8])
def test_partials_are_small_beside_keys_and_values(dtype, size, keys, rows):
    query, key, value = problem(32, 32, rows, keys, size, size, dtype)
    plan = cattn.plan(query, key, value, num_threads=2)
    assert 0 < plan.partial_bytes <= 0.01 * (key.nbytes + value.nbytes)


@pytest.mark.parametrize(
    ("heads", "key_heads", "rows", "room"),
    [(8, 8, 1, 1), (8, 2, 1, 4), (8, 8, 3, 3), (8, 2, 2, 8), (20, 2, 3, 30), (32, 1, 1, 32)],
)
def test_partials_have_room_for_the_rows_there_are(heads, key_heads, rows, room):
    plan = cattn.plan(*problem(heads, key_heads, rows, 10_000, 64, 48, np.float32), num_threads=8)
    assert plan.partial_bytes == key_heads * -(-10_000 // plan.split) * room * (3 + 48) * 4


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")
def test_one_thread_has_no_partials():
    code = """
import numpy as np, cattn
def peak():
    with open("/proc/self/status") as file:
        return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
query, keys = np.ones((200, 1, 1, 1), "f"), np.broadcast_to(np.float32(1), (200, 1, 50_000, 1))
values = np.broadcast_to(np.ones(256, "f"), (200, 1, 50_000, 256))
def call(keys, values):
    before = peak()
    cattn.attention(query, keys, values, num_threads=1)
    return peak() - before
call(keys[..., :3000, :], values[..., :3000, :])
print(call(keys, values))
"""
    assert int(python(code)) < MIB
    query, keys, values = huge((200, 1, 1, 1), "f"), huge((200, 1, 50_000, 1), "f"), huge((200, 1, 50_000, 256), "f")
    assert cattn.plan(query, keys, values, num_threads=2).partial_bytes > 4 * MIB
    assert cattn.plan(query, keys, values, num_threads=1).partial_bytes == 0


@pytest.mark.parametrize("rows", [1, 30])
def test_no_partials_where_one_split_is_enough(rows):
    def partial_bytes(keys):
        return cattn.plan(*problem(4, 4, rows, keys, 64, 64, np.float32), num_threads=16).partial_bytes

    split = cattn.plan(*problem(4, 4, rows, 1, 64, 64, np.float32)).split
    assert split >= 2048
    assert partial_bytes(split) == 0
    assert partial_bytes(split + 1) == 4 * 2 * rows * (3 + 64) * 4


# Query heads, key heads, queries, keys, head size, value size.
ONE_TILE, DRAFT, LATENT = (32, 1, 1, 131_072, 128, 128), (8, 1, 16, 32_768, 128, 128), (128, 1, 1, 8192, 576, 512)


@pytest.mark.parametrize("shape", [ONE_TILE, DRAFT, LATENT])
@pytest.mark.parametrize("threads", [2, 16, 128])
def test_many_rows_split_their_keys_among_threads(shape, threads):
    *lengths, size, value_size = shape
    query, key, value = problem(*lengths, size, value_size, np.float32)
    plan = cattn.plan(query, key, value, num_threads=threads)
    tiles, splits = -(-shape[0] * shape[2] // plan.lanes), -(-shape[3] // plan.split)
    assert plan.strategy == "many rows"
    if tiles >= 4 * threads:
        assert (plan.tasks, plan.partial_bytes) == (-(-tiles // plan.tiles_per_task), 0)
        return
    assert plan.tasks == -(-tiles // plan.tiles_per_task) * splits > 1
    assert plan.partial_bytes == shape[0] * shape[2] * splits * (3 + value_size) * 4
    assert plan.partial_bytes <= max(0.01 * (key.nbytes + value.nbytes), threads * MIB)


def test_keys_are_not_split_where_there_are_tiles_enough():
    def partial_bytes(lanes, threads):
        return cattn.plan(*problem(4, 4, lanes, 10_000, 64, 64, np.float32), num_threads=threads).partial_bytes

    lanes = cattn.plan(*problem(4, 4, 100, 10_000, 64, 64, np.float32)).lanes
    assert partial_bytes(lanes, 1) == 0
    assert partial_bytes(8 * lanes, 8) == 0  # 32 tiles
    assert partial_bytes(8 * lanes, 9) > 0


def test_keys_are_not_split_where_partials_take_much_memory():
    arrays = problem(1, 1, 100, 2**20, 1, 5000, np.float32)
    rows, splits = 100, -(-(2**20) // cattn.plan(*arrays).split)
    threads = rows * splits * 5003 * 4 // MIB
    assert cattn.plan(*arrays, num_threads=threads).partial_bytes == 0
    assert cattn.plan(*arrays, num_threads=threads + 1).partial_bytes == rows * splits * 5003 * 4


def test_is_frozen_and_whole():
    plan = cattn.plan(*problem(4, 4, 100, 100, 64, 64, np.float32))
    assert isinstance(plan, cattn.Plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.tasks = 1
    assert all(type(value) in (int, str) for value in dataclasses.asdict(plan).values())
    assert plan == cattn.plan(*problem(4, 4, 100, 100, 64, 64, np.float32))
    assert hash(plan) == hash(dataclasses.replace(plan))


@pytest.mark.parametrize(
    ("heads", "key_heads", "rows", "strategy"),
    [
        (8, 8, 1, "few rows"),
        (8, 8, 8, "few rows"),
        (8, 8, 9, "many rows"),
        (8, 1, 1, "few rows"),
        (9, 1, 1, "many rows"),
    ],
)
def test_strategy_follows_the_rows_of_a_key_head(heads, key_heads, rows, strategy):
    for batch, keys in itertools.product((1, 7), (1, 100, 10_000)):
        query = huge((batch, heads, rows, 16), np.float32)
        key = huge((batch, key_heads, keys, 16), np.float32)
        plan = cattn.plan(query, key, key)
        assert plan.strategy == strategy
        assert plan.lanes == rows * heads // key_heads if strategy == "few rows" else plan.lanes >= 4


def test_what_changes_bits_depends_on_little():
    """Strategy, lanes, key block and chunk: not on batch, number of heads, key length, strides or modifiers."""

    def order(*arguments, **modifiers):
        plan = cattn.plan(*arguments, **modifiers)
        return plan.strategy, plan.isa, plan.lanes, plan.key_block, plan.chunk

    for rows, dtype in itertools.product((1, 50), TYPES):
        expected = order(*problem(2, 1, rows, 100, 64, 48, dtype))
        assert order(*problem(64, 32, rows, 100, 64, 48, dtype)) == expected
        assert order(*problem(2, 1, rows, 100_000, 64, 48, dtype)) == expected
        assert order(*problem(2, 1, rows, 100, 64, 48, dtype, contiguous=False)) == expected
        assert order(*(x[None, None] for x in problem(2, 1, rows, 100, 64, 48, dtype))) == expected
        mask = np.ones((rows, 100), bool)
        assert order(*problem(2, 1, rows, 100, 64, 48, dtype), mask=mask, softcap=3.0, key_lengths=7) == expected


def test_does_not_depend_on_data():
    random = np.random.default_rng(0)
    for rows in (1, 200):
        shapes = (2, 4, rows, 32), (2, 4, 300, 32), (2, 4, 300, 32)
        expected = cattn.plan(*(np.zeros(shape, np.float32) for shape in shapes))
        noise = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
        assert cattn.plan(*noise) == expected
        noise[1][...] = np.nan
        assert cattn.plan(*noise) == expected


def test_many_threads_have_enough_tasks():
    """How many tiles share a task changes no bit, so that it may depend on the number of threads."""
    x = np.zeros((1, 8, 2048, 64), np.float32)
    few, many = cattn.plan(x, x, x, num_threads=2), cattn.plan(x, x, x, num_threads=64)
    with cattn.num_threads(64):
        assert cattn.plan(x, x, x) == many
    assert few.tasks >= 32
    assert many.tasks == min(4 * 64, 8 * -(-2048 // many.lanes))
    assert (few.key_block, few.chunk, few.lanes) == (many.key_block, many.chunk, many.lanes)
    # A task of some microseconds is not worth making.
    x = np.zeros((1, 8, 2048, 1), np.float32)
    y = np.zeros((1, 8, 4, 1), np.float32)
    assert cattn.plan(x, y, y, num_threads=64).tasks == cattn.plan(x, y, y, num_threads=2).tasks


def test_tasks_cover_all_rows():
    query, key, value = problem(12, 6, 1000, 1000, 64, 64, np.float32)
    plan = cattn.plan(query, key, value)
    per_task = plan.lanes * plan.tiles_per_task
    assert plan.tasks == 6 * -(-2000 // per_task)
    few = problem(12, 6, 1, 5000, 64, 64, np.float32)
    assert cattn.plan(*few, num_threads=1).tasks == 6
    assert cattn.plan(*few, num_threads=2).tasks == 6 * -(-5000 // cattn.plan(*few).split)


@pytest.mark.parametrize(("rows", "keys", "size"), [(0, 5, 4), (5, 0, 4), (5, 5, 0), (1, 0, 4)])
def test_empty_problems(rows, keys, size):
    plan = cattn.plan(np.ones((2, rows, 4)), np.ones((2, keys, 4)), np.ones((2, keys, size)))
    assert (plan.tasks == 0) == (rows == 0)
    assert cattn.plan(np.ones((0, 2, 5, 4)), np.ones((2, 5, 4)), np.ones((2, 5, 4))).tasks == 0


def test_takes_what_attention_takes():
    x = np.ones((2, 9, 4, 8), np.float32)
    out = np.full_like(x, 7)
    plan = cattn.plan(x, x, x, layout="blhd", causal=True, out=out, return_lse=True)
    assert plan.strategy == "many rows"
    assert (out == 7).all()
    assert cattn.plan([[1.0]], [[1.0]], [[1.0]]).tasks == 1
    with pytest.raises(ValueError, match="key: expected head size 8"):
        cattn.plan(x, x[..., :4], x)
    with pytest.raises(TypeError, match="mask: expected type bool"):
        cattn.plan(x, x, x, mask=np.ones((9, 9)))
    with pytest.raises(ValueError, match="num_threads"):
        cattn.plan(x, x, x, num_threads=0)


def check_memory_of_a_bias():
    """A bias of another type is converted a block at a time: a copy of all of it would take 8 MiB."""
    import resource

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    keys = 2**21
    query, key, bias = np.ones((20, 1), np.float32), np.ones((keys, 1), np.float32), np.ones(keys)
    cattn.attention(query, key[:5000], key[:5000], bias=bias[:5000], num_threads=1)
    before = peak()
    cattn.attention(query, key, key, bias=bias, num_threads=1)
    assert peak() - before < 2 * MIB


@pytest.mark.skipif(sys.platform == "win32", reason="no module resource")
def test_memory_of_a_bias():
    python("import test_plan; test_plan.check_memory_of_a_bias()")


HUGE = np.broadcast_to(np.float32(1), (2**60, 1, 1))
ONE = HUGE[:1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: cattn.attention(HUGE, HUGE, HUGE[..., :0]),
        lambda: cattn.attention(HUGE.swapaxes(0, 1), ONE, ONE[..., :0]),
        lambda: cattn.attention(HUGE[:, None], ONE[None], ONE[None, ..., :0]),
        lambda: cattn.attention(HUGE[: 2**30, None, None], HUGE[None, : 2**30, None], ONE[None, None, ..., :0]),
        lambda: cattn.attention(ONE, HUGE.swapaxes(0, 1), HUGE.swapaxes(0, 1), num_threads=2),  # which share the keys
        lambda: cattn.attention_weights(HUGE, HUGE[:, :0]),
        lambda: cattn.attention_weights(HUGE.swapaxes(0, 1), ONE[:, :0]),
        lambda: cattn.attention_varlen(ONE, HUGE, HUGE, [0, 1], [0, 2**60]),
        lambda: cattn.attention_varlen(HUGE, ONE, ONE[..., :0], [0, 2**60], [0, 1]),
        lambda: cattn.plan(HUGE, HUGE, HUGE[..., :0]),
    ],
)
def test_more_tasks_than_can_be_counted(call):
    with pytest.raises(MemoryError, match=r"^query, key: expected a batch of at most 281474976710656 tasks, got "):
        call()
