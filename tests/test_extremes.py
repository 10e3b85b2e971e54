"""What every kernel table makes of extreme numbers: near the largest and the smallest, subnormal, infinite, NaN.

All tables are held to one rule (extremes.py), so that any two agree within twice its tolerance. Each computes in a
process of its own, with several numbers of threads.
"""

import pickle

import extremes
import pytest
from helpers import EVERY_TABLE, TWO_TABLES, run_python

CHUNK = 24  # problems
DEFAULT = 3  # the chunk with the first problem that ever went wrong
SLOW, EXHAUSTIVE = 12, 400  # so many chunks


def check(isa, chunk, folder):
    seeds, file = range(chunk * CHUNK, (chunk + 1) * CHUNK), folder / "results"
    done = run_python(extremes.__file__, seeds.start, seeds.stop, file, CATTN_ISA=isa)
    assert done.returncode == 0, done.stderr
    found = pickle.loads(file.read_bytes())
    wrong = {seed: extremes.wrong(seed, results, isa) for seed, results in zip(seeds, found, strict=True)}
    assert not any(wrong.values()), {seed: text for seed, text in wrong.items() if text}


@TWO_TABLES
def test_extremes(isa, tmp_path):
    check(isa, DEFAULT, tmp_path)


@pytest.mark.slow
@EVERY_TABLE
@pytest.mark.parametrize("chunk", [chunk for chunk in range(SLOW) if chunk != DEFAULT])
def test_more_extremes(chunk, isa, tmp_path):
    check(isa, chunk, tmp_path)


@pytest.mark.exhaustive
@EVERY_TABLE
@pytest.mark.parametrize("chunk", range(SLOW, EXHAUSTIVE))
def test_all_extremes(chunk, isa, tmp_path):
    check(isa, chunk, tmp_path)
