"""Each call with strange arguments is refused in words of ours, or right. fuzz.py says how that is known.

`python tests/fuzz.py` makes a million such calls; here is a share of them.
"""

import warnings

import fuzz
import pytest
from fuzz_corpus import recipes

# Bases take longer to make than calls do.
CALLS, FEWER_CALLS, BASES = 250, 40, 12


@pytest.mark.parametrize("name", fuzz.SHARES)
def test_strange_arguments(name):
    if not fuzz.is_there(name):
        pytest.skip(f"{fuzz.ALL[name].needs} is not installed")
    calls = CALLS if fuzz.SHARES[name] > 1 else FEWER_CALLS
    ends, wrong = fuzz.fuzz(range(calls), [name], bases=BASES)
    assert not wrong, "\n".join(wrong)
    assert name == "plan" or ends["same"] + ends["valid"] + ends["open"] > calls / 20, ends


def test_the_corpus():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong = [fuzz.described(recipe) for recipe in recipes() if fuzz.what_is_wrong_with(recipe)[1]]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 20_000, 2_000))
def test_more_strange_arguments(start):
    _, wrong = fuzz.fuzz(range(start, start + 2_000), [name for name in fuzz.SHARES if fuzz.is_there(name)])
    assert not wrong, "\n".join(wrong)
