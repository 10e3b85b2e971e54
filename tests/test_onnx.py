"""cattn can express the ONNX operator Attention: every case that onnx's own backends are tested with."""

from unittest import mock

import numpy as np
import pytest

pytest.importorskip("onnx", minversion="1.23")  # The operator's text has changed over the versions.

import onnx.backend.test.case.node.attention
from onnx.reference import ReferenceEvaluator
from onnx_attention import Attention

import cattn

# Importing their module is what generates the cases; "expanded" ones have no node Attention. (The public
# collect_testcases does the same, but generates those of all operators first, which takes ten seconds.)
ALL = onnx.backend.test.case.node._NodeTestCases
CASES = [case for case in ALL if case.model.graph.node[0].op_type == "Attention"]


def test_there_are_cases():
    assert len(CASES) >= 93
    assert {case.model.opset_import[0].version for case in CASES} >= {23, 24, 25}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case, monkeypatch):
    spy = mock.Mock(wraps=cattn.attention)
    monkeypatch.setattr(cattn, "attention", spy)
    evaluator = ReferenceEvaluator(case.model, new_ops=[Attention])
    [(inputs, expected)] = case.data_sets
    found = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))

    spy.assert_called_once()
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        rtol = max(case.rtol, 2**-6) if y.dtype.name == "bfloat16" else case.rtol  # as onnx's own runner has it
        np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=rtol, atol=case.atol)
