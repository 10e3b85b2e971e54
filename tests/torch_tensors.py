"""Tensors, and a record of the calls of cattn.attention, which the tests of cattn.torch share."""

import pytest
import torch

import cattn
from cattn.torch import scaled_dot_product_attention

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EVERY_TYPE = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FUNCTION_AND_OPERATOR = pytest.mark.parametrize(
    "attention", [scaled_dot_product_attention, torch.ops.cattn.attention], ids=["function", "operator"]
)
SHAPE = (2, 4, 5, 8)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype=torch.float32, shape=SHAPE):
    return [normal(*shape, dtype=dtype, seed=seed) for seed in range(3)]


Q, K, V = inputs()
EYE = torch.eye(5)


def wanted(x):
    return x.clone().requires_grad_()


def seen_calls(monkeypatch):
    """Record the arguments and the results of the following calls of cattn.attention."""
    seen = []

    def spy(*arrays, **options):
        seen.append((arrays, options, real(*arrays, **options)))
        return seen[-1][-1]

    real = cattn.attention
    monkeypatch.setattr(cattn, "attention", spy)
    return seen
