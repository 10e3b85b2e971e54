"""Calls with unknown names or a wrong number of arguments: the error says what to write instead."""

import inspect

import pytest
from helpers import zeros

import cattn

QUERY, KEY, VALUE = zeros(2, 4, 5, 8), zeros(2, 2, 7, 8), zeros(2, 2, 7, 3)
INPUTS = {"query": QUERY, "key": KEY, "value": VALUE}
WEIGHTS = {"query": QUERY, "key": KEY}
SQUARE = zeros(4, 4)
SELF = {"x": SQUARE, "w_query": SQUARE, "w_key": SQUARE, "w_value": SQUARE}
MASKS = "write mask= for booleans (True: may attend), bias= for what is added to the scores"
DROPOUT = "leave it out: there is no dropout"
CAUSAL = 'write causal=, with query_offset="start" where the lengths differ'
BY_NAME = "give all others by name, such as scale="
NAMES = ", ".join(inspect.signature(cattn.attention).parameters)

# The function, arguments by position and by name, and the message.
CALLS = [
    (cattn.attention, (QUERY, KEY, VALUE, 0.125), {},
     f"attention: expected at most 3 arguments by position (query, key, value), got 4; {BY_NAME}"),
    (cattn.attention, (QUERY, KEY, VALUE, None, 0.0, True), {"causal": True},
     f"attention: expected at most 3 arguments by position (query, key, value), got 6; {BY_NAME}"),
    (cattn.attention, (QUERY, KEY, VALUE), {"is_causal": True},
     f"is_causal: not an argument of attention; {CAUSAL}"),
    (cattn.attention, (QUERY, KEY, VALUE), {"attn_mask": None}, f"attn_mask: not an argument of attention; {MASKS}"),
    (cattn.attention, (), {**INPUTS, "enable_gqa": True},
     "enable_gqa: not an argument of attention; leave it out: fewer heads of key and value than of query need no flag"),
    (cattn.attention, (QUERY,), {**WEIGHTS, "dropout_p": 0.0}, f"dropout_p: not an argument of attention; {DROPOUT}"),
    (cattn.attention, (QUERY, KEY, VALUE), {"softcapp": 1.0},
     f"softcapp: not an argument of attention; expected one of {NAMES}"),
    (cattn.plan, (QUERY, KEY, VALUE), {"attn_mask": None}, f"attn_mask: not an argument of plan; {MASKS}"),
    (cattn.attention_weights, (QUERY, KEY, VALUE), {},
     f"attention_weights: expected at most 2 arguments by position (query, key), got 3; {BY_NAME}"),
    (cattn.attention_weights, (QUERY, KEY), {"is_causal": True},
     f"is_causal: not an argument of attention_weights; {CAUSAL}"),
    (cattn.attention_weights, (), {**WEIGHTS, "value": VALUE},
     "value: not an argument of attention_weights; expected one of query, key, stage, scale, "),
    (cattn.attention_varlen, (QUERY, KEY, VALUE, [0], [0], 7), {},
     "attention_varlen: expected at most 5 arguments by position (query, key, value, query_indptr, key_indptr), got 6"
     f"; {BY_NAME}"),
    (cattn.attention_varlen, (QUERY, KEY, VALUE, [0], [0]), {"dropout_p": 0.0},
     f"dropout_p: not an argument of attention_varlen; {DROPOUT}"),
    (cattn.attention_varlen, (QUERY, KEY, VALUE, [0], [0]), {"attn_mask": None},
     "attn_mask: not an argument of attention_varlen; expected one of query, key, value, query_indptr, key_indptr, "),
    (cattn.self_attention, tuple(SELF.values()), {"attn_mask": None},
     f"attn_mask: not an argument of self_attention; {MASKS}"),
    (cattn.self_attention, (*SELF.values(), None, 4), {},
     "self_attention: expected at most 5 arguments by position (x, w_query, w_key, w_value, w_output), got 6; "),
    (cattn.trace, (), {**SELF, "is_causal": True}, "is_causal: not an argument of trace; write causal="),
    (cattn.trace, (*SELF.values(), ["a"]), {},
     "trace: expected at most 4 arguments by position (x, w_query, w_key, w_value), got 5; "),
    (cattn.attention, (QUERY, KEY), {}, "value: expected an argument, got none; attention needs query, key, value"),
    (cattn.attention, (), {"key": KEY, "causal": True},
     "query, value: expected an argument, got none; attention needs query, key, value"),
    (cattn.attention_varlen, (QUERY, KEY, VALUE), {},
     "query_indptr, key_indptr: expected an argument, got none; attention_varlen needs query, key, value, "),
    (cattn.self_attention, tuple(SELF.values())[:3], {},
     "w_value: expected an argument, got none; self_attention needs x, w_query, w_key, w_value"),
    (cattn.attention, (QUERY, KEY, VALUE), {"key": KEY},
     "key: expected one argument, got two, by position and by name"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "positional", "named", "message"), CALLS, ids=[case[-1][:50] for case in CALLS])
def test_calls(function, positional, named, message):
    with pytest.raises(TypeError) as caught:
        function(*positional, **named)
    assert str(caught.value).startswith(message)
    assert message.endswith((" ", "=")) or str(caught.value) == message
    with pytest.raises(TypeError, match="^" + message.partition(":")[0]):
        function.__call__(*positional, **named)


@pytest.mark.parametrize("function", [cattn.attention, cattn.self_attention, cattn.trace])
def test_wrong_names_come_first(function):
    """Before anything is computed, and whatever else is wrong."""
    with pytest.raises(TypeError, match=r"^attn_mask: not an argument of"):
        function(*[zeros(8)] * (3 if function is cattn.attention else 4), attn_mask=None)


@pytest.mark.parametrize("function", [cattn.attention, cattn.trace])
def test_errors_inside_of_a_call(function):
    """They are not taken for a wrong call."""
    with pytest.raises(TypeError, match=r"^causal: expected True or False, got 1$"):
        function(SQUARE, SQUARE, *[SQUARE] * (function is cattn.trace), SQUARE, causal=1)
