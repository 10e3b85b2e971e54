"""Time attention forward and backward beside PyTorch's two paths on the CPU, "flash" and "math".

    pip install 'cattn[bench]' torch && python benchmarks/gradients.py

All engines take turns in one process, and the figures are medians over the rounds: GFLOP/s of the backward pass,
counting 10·Lq·Lk·D a head (half of that under a causal mask), the share of cattn's in the peak of float32 that was
measured just before, and how much longer PyTorch takes than cattn in the same round. PyTorch's forward pass is timed
within autograd, because it saves there what its backward pass needs.
"""

import argparse
import statistics
import time

import numpy as np
from limits import Limits

# name: batch, heads, key heads, length, head size, causal, bias
CASES = {
    "bert-128": (1, 12, 12, 128, 64, False, False),
    "bert-512": (1, 12, 12, 512, 64, False, False),
    "bert-512 causal": (1, 12, 12, 512, 64, True, False),
    "2k": (1, 8, 8, 2048, 64, False, False),
    "2k causal": (1, 8, 8, 2048, 64, True, False),
    "2k × 128": (1, 8, 8, 2048, 128, False, False),
    "2k × 128 causal": (1, 8, 8, 2048, 128, True, False),
    "grouped 32/8": (1, 32, 8, 1024, 64, False, False),
    "grouped 32/8 causal": (1, 32, 8, 1024, 64, True, False),
    "T5 with bias gradient": (1, 8, 8, 512, 64, False, True),
    "T5 with a batch of 4": (4, 8, 8, 512, 64, False, True),
}


class Case:
    """Hold the arrays of a case in one type, and a call of each engine that returns (forward, backward) in seconds."""

    def __init__(self, name, type, threads):
        import ml_dtypes

        batch, heads, key_heads, length, size, self.causal, with_bias = CASES[name]
        random, self.threads = np.random.default_rng(0), threads
        dtype = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[type]
        shapes = (batch, heads, length, size), (batch, key_heads, length, size)
        self.query, self.grad_out = (random.standard_normal(shapes[0]).astype(dtype) for _ in range(2))
        self.key, self.value = (random.standard_normal(shapes[1]).astype(dtype) for _ in range(2))
        self.bias = random.standard_normal((1, heads, length, length)).astype(dtype) if with_bias else None
        self.flops = 10 * batch * heads * length * length * size * (0.5 if self.causal else 1)
        self.tensors = None

    def cattn(self):
        import cattn

        modifiers = {"causal": self.causal, "bias": self.bias, "num_threads": self.threads}
        start = time.perf_counter()
        out, lse = cattn.attention(self.query, self.key, self.value, return_lse=True, **modifiers)
        middle = time.perf_counter()
        cattn.attention_backward(
            self.grad_out, self.query, self.key, self.value, out, lse, bias_grad=self.bias is not None, **modifiers
        )
        return middle - start, time.perf_counter() - middle

    def torch(self, backend):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if self.tensors is None:
            arrays = (self.query, self.key, self.value, self.bias, self.grad_out)
            self.tensors = [None if x is None else tensor_of(x) for x in arrays]
        *inputs, grad_out = self.tensors
        inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        with sdpa_kernel([getattr(SDPBackend, backend)]):
            out = torch.nn.functional.scaled_dot_product_attention(
                *inputs[:3],
                attn_mask=inputs[3],
                is_causal=self.causal,
                enable_gqa=self.query.shape[1] != self.key.shape[1],
            )
        middle = time.perf_counter()
        out.backward(grad_out)
        return middle - start, time.perf_counter() - middle

    def flash(self):
        return self.torch("FLASH_ATTENTION")

    def math(self):
        return self.torch("MATH")


def tensor_of(x):
    import torch

    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def measure(case, seconds):
    """Return the times of each engine, round by round."""
    times = {}
    for name in ("cattn", "flash", "math"):
        if name == "flash" and case.bias is not None:
            continue  # it has no gradient of a mask
        try:
            getattr(case, name)()
            times[name] = []
        except (ImportError, RuntimeError) as error:
            print(f"  {name}: {error}")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 3:
        for name, found in times.items():
            found.append(getattr(case, name)())
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--types", default="float32,bfloat16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=4, help="of a case")
    arguments = parser.parse_args()
    print(f"{'case':22} {'type':9} threads   backward GFLOP/s, % of peak      PyTorch's time / cattn's: backward, both")
    for threads in map(int, arguments.threads.split(",")):
        for type in arguments.types.split(","):
            for name in arguments.cases.split(","):
                case = Case(name, type, threads)
                peak = Limits(threads).peak_flops("float32")
                times = measure(case, arguments.seconds)
                speed = {x: case.flops / statistics.median(b for _, b in found) / 1e9 for x, found in times.items()}
                line = f"{name:22} {type:9} {threads:7}   " + " ".join(
                    f"{x} {gflops:.0f}" for x, gflops in speed.items()
                )
                line += f", {100 * speed['cattn'] * 1e9 / peak:.0f}%"
                for other in [x for x in times if x != "cattn"]:
                    pairs = list(zip(times[other], times["cattn"], strict=True))
                    backward = statistics.median(theirs[1] / ours[1] for theirs, ours in pairs)
                    both = statistics.median(sum(theirs) / sum(ours) for theirs, ours in pairs)
                    line += f"   {other} {backward:.2f}, {both:.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
