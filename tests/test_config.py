"""show_config: what a report of a problem should hold."""

import os
import platform

import numpy as np
import pytest

import cattn
from cattn import _threads


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cattn.set_num_threads(None)
    yield
    cattn.set_num_threads(None)


def shown(capsys):
    """What it prints, by line."""
    assert cattn.show_config() is None
    text, errors = capsys.readouterr()
    assert errors == ""
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


def test_versions(capsys):
    lines = shown(capsys)
    assert lines["cattn"] == cattn.__version__
    assert lines["NumPy"] == np.__version__
    assert lines["Python"].startswith(platform.python_version())
    assert lines["platform"] == platform.platform()


def test_kernel_tables(capsys):
    isa = cattn.plan(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1))).isa
    used, runs = shown(capsys)["kernel table"].split(";")
    assert used.split()[0] == isa
    runs = runs.removeprefix(" this processor runs ").split(", ")
    assert isa in runs and runs[-1] == "portable"
    if not os.environ.get("CATTN_ISA"):
        assert used == f"{isa} (the best one here)"
        assert isa == runs[0]


def test_default_threads(capsys):
    assert shown(capsys)["threads"] == f"{_threads.default_num_threads()} (CPUs that this process may use)"


def test_threads_of_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert shown(capsys)["threads"] == "3 (OMP_NUM_THREADS)"
    monkeypatch.setenv("CATTN_NUM_THREADS", "5")
    assert shown(capsys)["threads"] == "5 (CATTN_NUM_THREADS)"
    assert cattn.get_num_threads() == 5
    assert shown(capsys)["threads"] == "5 (CATTN_NUM_THREADS)"


def test_threads_found_out_before_the_environment_changed(capsys, monkeypatch):
    monkeypatch.setenv("CATTN_NUM_THREADS", "5")
    assert cattn.get_num_threads() == 5
    monkeypatch.setenv("CATTN_NUM_THREADS", "6")
    assert shown(capsys)["threads"] == "5 (from an earlier look at this process and its environment)"


def test_threads_set_in_the_process(capsys, monkeypatch):
    monkeypatch.setenv("CATTN_NUM_THREADS", "5")
    cattn.set_num_threads(7)
    assert shown(capsys)["threads"] == "7 (set in this process)"
    cattn.set_num_threads(5)
    assert shown(capsys)["threads"] == "5 (set in this process)"


def test_a_wrong_number_of_threads_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("CATTN_NUM_THREADS", "many")
    assert shown(capsys)["threads"] == "CATTN_NUM_THREADS: expected an integer of 1 or more, got 'many'"
    cattn.set_num_threads(2)
    assert shown(capsys)["threads"] == "2 (set in this process)"


def test_showing_settles_nothing(capsys, monkeypatch):
    shown(capsys)
    monkeypatch.setenv("CATTN_NUM_THREADS", "6")
    assert cattn.get_num_threads() == 6
