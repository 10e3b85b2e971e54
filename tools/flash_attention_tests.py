"""Runs FlashAttention's own tests of outputs and gradients through cattn.flash_attn, on the CPU.

    python tools/flash_attention_tests.py CHECKOUT/tests/test_flash_attn.py --cases 50

CHECKOUT is one of https://github.com/Dao-AILab/flash-attention; pytest, torch, ml_dtypes and einops must be installed.
Each function has thousands of cases, of which so many are chosen at random, always the same ones.

The tests run as they are, but for this. Their tensors lie on the CPU. Cases with dropout are left out. Of block tables,
only those of flash_attn_with_kvcache are tested. A test that repeats a call 50 or 250 times to find races repeats it 5
times.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import random
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from cattn.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

SERVED = (
    "test_flash_attn_qkvpacked", "test_flash_attn_varlen_qkvpacked", "test_flash_attn_output",
    "test_flash_attn_varlen_output", "test_flash_attn_causal", "test_flash_attn_varlen_causal",
    "test_flash_attn_splitkv", "test_flash_attn_race_condition", "test_flash_attn_bwd_overflow",
    "test_flash_attn_bwd_transpose", "test_flash_attn_bwd_varlen_overflow", "test_flash_attn_deterministic",
    "test_flash_attn_varlen_deterministic", "test_flash_attn_kvcache",
)  # fmt: skip
REPLACED = {'"cuda"': '"cpu"', "range(250)": "range(5)", "range(50)": "range(5)"}


def qkvpacked(qkv, *given, **options):
    return flash_attn_func(*qkv.unbind(-3), *given, **options)


def kvpacked(q, kv, *given, **options):
    return flash_attn_func(q, *kv.unbind(-3), *given, **options)


def varlen_qkvpacked(qkv, cu_seqlens, max_seqlen, *given, **options):
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    return flash_attn_varlen_func(*qkv.unbind(-3), *lengths, *given, **options)


def varlen_kvpacked(q, kv, *given, **options):
    return flash_attn_varlen_func(q, *kv.unbind(-3), *given, **options)


def apply_rotary_emb(x, cos, sin, seqlen_offsets, interleaved):
    """Rotate (batch, length, heads, size) at the positions from each offset on, in float32."""
    positions = seqlen_offsets[:, None] + torch.arange(x.shape[1])
    cos, sin = (angle[positions][:, :, None].float() for angle in (cos, sin))
    columns = torch.arange(2 * cos.shape[-1])
    one, other = (columns[::2], columns[1::2]) if interleaved else columns.chunk(2)
    a, b, out = x[..., one].float(), x[..., other].float(), x.clone()
    out[..., one], out[..., other] = (a * cos - b * sin).to(x.dtype), (a * sin + b * cos).to(x.dtype)
    return out


def install_modules(checkout):
    """Provide what the file imports of flash_attn: our functions, and that package's Python code for padding."""
    package = types.ModuleType("flash_attn")
    package.__path__ = []
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    package.flash_attn_qkvpacked_func, package.flash_attn_kvpacked_func = qkvpacked, kvpacked
    package.flash_attn_varlen_qkvpacked_func = varlen_qkvpacked
    package.flash_attn_varlen_kvpacked_func = varlen_kvpacked
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    interface = types.ModuleType("flash_attn.flash_attn_interface")
    interface._get_block_size_n, interface.USE_TRITON_ROCM = None, False
    rotary = types.ModuleType("flash_attn.layers.rotary")
    rotary.apply_rotary_emb = apply_rotary_emb
    file = checkout / "flash_attn" / "bert_padding.py"
    spec = importlib.util.spec_from_file_location("flash_attn.bert_padding", file)
    padding = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(padding)
    for module in (package, interface, types.ModuleType("flash_attn.layers"), rotary, padding):
        sys.modules[module.__name__] = module


def patch_torch():
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch.cuda.get_device_capability = lambda device: (8, 0)
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(total_memory=memory)


def all_values(function, longest):
    """Return {parameter: its values} of a test. Parameters that go together are one."""
    found = dict(mark.args for mark in function.pytestmark)
    for names, values in found.items():
        if names == "dropout_p" or (names == "paged_kv_block_size" and "kvcache" not in function.__name__):
            found[names] = [x for x in values if not x]
        elif names == "seqlen":
            found[names] = [x for x in values if x <= longest]
        elif names == "seqlen_q,seqlen_k":
            found[names] = [x for x in values if max(x) <= longest]
    return found


def choose(function, count, longest):
    """Yield so many cases of a test, each as its arguments."""
    values, chosen = all_values(function, longest), random.Random(0)
    for _ in range(count):
        case = {}
        for names, of_these in values.items():
            value, names = chosen.choice(of_these), names.split(",")
            case |= zip(names, value if len(names) > 1 else [value], strict=True)
        yield case


def run(function, case):
    """Run a case, and return how it went, in a line."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function(**case)
    except pytest.skip.Exception as error:
        return f"skipped: {error}"
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"
    return "passed"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", type=int, default=50, help="of each function (50)")
    parser.add_argument("--longest", type=int, default=10**6, help="leave out longer sequences, which take seconds")
    parser.add_argument("functions", nargs="*", default=SERVED, help="all that are tested here")
    options = parser.parse_intermixed_args()
    text = options.file.read_text(encoding="utf-8")
    for there, here in REPLACED.items():
        text = text.replace(there, here)
    install_modules(options.file.resolve().parents[1])
    patch_torch()
    tests = {}
    exec(compile(text, options.file, "exec"), tests)

    failed = 0
    for name in options.functions:
        outcomes, began = [], time.perf_counter()
        for case in choose(tests[name], options.cases, options.longest):
            outcomes.append(run(tests[name], case))
            if outcomes[-1] != "passed":
                print(name, case, outcomes[-1], flush=True)
        passed, failures = outcomes.count("passed"), sum(x.startswith("failed") for x in outcomes)
        print(f"{name}: {len(outcomes)} cases, {passed} passed, {failures} failed, "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
        failed += failures
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
