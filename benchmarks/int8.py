"""Time int8 keys and values beside those of the other types, and beside ONNX Runtime's int8 cache.

    pip install cattn ml_dtypes onnx onnxruntime && python benchmarks/int8.py

All take turns in one process, with a rest before each call. The figures are the median time of a call, and the median
of its ratio to float32's time in the same round. `--beside` lets other processes read memory at full speed meanwhile.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time

import numpy as np

REST = 0.1
# batch, heads, key heads, queries, keys, head size
CASES = {
    "one row": (1, 32, 32, 1, 4096, 128),
    "four rows": (1, 32, 8, 1, 32768, 128),
    "one row in L2": (1, 1, 1, 1, 512, 128),
    "four rows in L2": (1, 4, 1, 1, 512, 128),
    "a prompt": (1, 4, 4, 512, 4096, 128),
}


def onnx_runtime(query, key, value, key_scale, value_scale, threads):
    """Return a call of GroupQueryAttention whose past and present are one int8 cache with scales per channel."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    batch, heads, _, size = query.shape
    _, key_heads, length, _ = key.shape
    names = ["query", "new_key", "new_value", "past_key", "past_value", "seqlens_k", "total", "", "", "", "", "",
             "k_scale", "v_scale"]  # fmt: skip
    node = helper.make_node(
        "GroupQueryAttention", names, ["out", "present_key", "present_value"], domain="com.microsoft", num_heads=heads,
        kv_num_heads=key_heads, k_quant_type="PER_CHANNEL", v_quant_type="PER_CHANNEL", kv_cache_bit_width=8,
    )  # fmt: skip
    feeds = {
        "query": query.transpose(0, 2, 1, 3).reshape(batch, 1, -1),
        "new_key": np.zeros((batch, 1, key_heads * size), np.float32),
        "new_value": np.zeros((batch, 1, key_heads * size), np.float32),
        "past_key": key,
        "past_value": value,
        "seqlens_k": np.full(batch, length - 1, np.int32),
        "total": np.array([length], np.int32),
        "k_scale": key_scale.reshape(-1).astype(np.float32),
        "v_scale": value_scale.reshape(-1).astype(np.float32),
    }
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8,
             np.dtype(np.int32): TensorProto.INT32}  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, types[x.dtype], x.shape) for name, x in feeds.items()]
    outputs = [
        helper.make_tensor_value_info("out", TensorProto.FLOAT, feeds["query"].shape),
        helper.make_tensor_value_info("present_key", TensorProto.INT8, key.shape),
        helper.make_tensor_value_info("present_value", TensorProto.INT8, value.shape),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "cache", inputs, outputs), opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in feeds.items()}
    for name, x in values.items():
        binding.bind_ortvalue_input(name, x)
    binding.bind_output("out")
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
    return lambda: session.run_with_iobinding(binding)


def engines(shape, threads):
    """Return the calls of a case by name."""
    import ml_dtypes

    import cattn

    batch, heads, key_heads, queries, length, size = shape
    rng = np.random.default_rng(7)
    query = rng.standard_normal((batch, heads, queries, size), dtype=np.float32)
    key, value = rng.standard_normal((2, batch, key_heads, length, size), dtype=np.float32)
    calls = {}

    def add(name, key, value, **scales):
        calls[name] = lambda: cattn.attention(query, key, value, num_threads=threads, **scales)

    add("float32", key, value)
    add("bfloat16", key.astype(ml_dtypes.bfloat16), value.astype(ml_dtypes.bfloat16))
    for axis, name in ((-1, "int8 per token"), (-2, "int8 per channel")):
        (small_key, key_scale), (small_value, value_scale) = (cattn.quantize(x, axis=axis) for x in (key, value))
        add(name, small_key, small_value, key_scale=key_scale, value_scale=value_scale)
    if queries == 1 and importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        calls["ONNX Runtime int8"] = onnx_runtime(query, small_key, small_value, key_scale, value_scale, threads)
    return calls


def measured(calls, rounds):
    """Return the seconds of each call in each round."""
    samples = {name: [] for name in calls}
    for number in range(rounds):
        for name in calls if number % 2 else reversed(calls):
            time.sleep(REST)
            calls[name]()
            count = 0
            start = time.perf_counter()
            while count == 0 or time.perf_counter() - start < 2e-3:
                calls[name]()
                count += 1
            samples[name].append((time.perf_counter() - start) / count)
    return samples


def read_memory(ready):
    memory = np.ones(2**26, np.float32)
    ready.set()
    while True:
        memory.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", action="append", choices=CASES, help="one of the cases; all by default")
    parser.add_argument("--beside", type=int, default=0, help="the number of processes that read memory meanwhile")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores and options.threads == 1:
        os.sched_setaffinity(0, cores[-1:])
    neighbours = []
    for number in range(options.beside):
        ready = multiprocessing.Event()
        neighbours.append(multiprocessing.Process(target=read_memory, args=(ready,), daemon=True))
        neighbours[-1].start()
        if cores:
            os.sched_setaffinity(neighbours[-1].pid, {cores[number % max(1, len(cores) - 1)]})
        ready.wait()
    for name in options.case or CASES:
        samples = measured(engines(CASES[name], options.threads), options.rounds)
        for engine, times in samples.items():
            ratio = statistics.median(a / b for a, b in zip(times, samples["float32"], strict=True))
            print(f"{name:16} {engine:18} {1e3 * statistics.median(times):9.4f} ms {ratio:6.2f}", flush=True)
    for neighbour in neighbours:
        neighbour.terminate()


if __name__ == "__main__":
    sys.exit(main())
