"""Functions that other processes and interpreters compute for test_processes.py. They find these functions by name."""

from helpers import work
from registry import FUNCTIONS, fingerprint

import cattn

POOL = "attention on three threads"
NAMES = [POOL, *(name for name, function in FUNCTIONS.items() if function.is_there)]
# Those that import nothing beside NumPy.
NUMPY_NAMES = [POOL, *(name for name, function in FUNCTIONS.items() if function.needs is None)]


def result(name, seed):
    """The fingerprint of what a public function gives."""
    if name == POOL:
        return fingerprint(cattn.attention(*work(seed), return_lse=True, num_threads=3))
    return fingerprint(FUNCTIONS[name].call(**FUNCTIONS[name].arguments(seed)))


def results(names, seeds):
    """The fingerprint of each name and seed."""
    return {(name, seed): result(name, seed) for name in names for seed in seeds}


class Results:
    """Offer the calls as a dataset of PyTorch."""

    def __init__(self, tasks):
        self.tasks = tasks

    def __len__(self):
        return len(self.tasks)

    def __getitem__(self, n):
        return self.tasks[n], result(*self.tasks[n])
