"""show_config: what a report of a problem should hold."""

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cattn
from cattn import _config, _kernel, _threads


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("CATTN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cattn.set_num_threads(None)
    yield
    cattn.set_num_threads(None)


def shown(capsys):
    """Return what it prints, by line."""
    assert cattn.show_config() is None
    text, errors = capsys.readouterr()
    assert errors == ""
    return {name: value.strip() for name, value in (line.split(":", 1) for line in text.splitlines())}


def test_versions(capsys):
    lines = shown(capsys)
    assert lines["cattn"] == cattn.__version__
    assert lines["NumPy"].startswith(f"{np.__version__}, built with ")
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


@pytest.mark.parametrize(
    "cpus, usable, quotas, expected",
    [
        (64, 64, [], "64 (all CPUs of this machine)"),
        (64, 64, [64.0], "64 (all CPUs of this machine)"),
        (64, 8, [], "8 (this process's affinity, 8 of 64 CPUs)"),
        (64, 8, [9.5], "8 (this process's affinity, 8 of 64 CPUs)"),
        (64, 8, [16, 2.5], "3 (a control group's quota of 2.5 CPUs)"),
    ],
)
def test_default_threads(capsys, monkeypatch, cpus, usable, quotas, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(usable)), raising=False)
    monkeypatch.setattr(_threads, "_quotas", lambda root: iter(quotas))
    assert shown(capsys)["threads"] == expected


def test_default_threads_where_there_is_no_affinity(capsys, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(_threads, "_quotas", lambda root: iter([]))
    assert shown(capsys)["threads"] == "64 (all CPUs of this machine)"


def test_caches(capsys, monkeypatch):
    assert 1 << 16 <= _kernel.l2_bytes() <= 1 << 26
    monkeypatch.setattr(_kernel, "l2_bytes", lambda: 1280 << 10)
    monkeypatch.setattr(_config, "_find_caches", lambda: {"L1d": 48 << 10, "L2": 2 << 20})
    assert shown(capsys)["caches"] == "L1d 48 KiB, L2 2 MiB; blocks are cut for an L2 of 1280 KiB"
    monkeypatch.setattr(_config, "_find_caches", lambda: {})
    assert shown(capsys)["caches"] == "blocks are cut for an L2 of 1280 KiB"


def test_caches_of_linux(monkeypatch, tmp_path):
    for number, texts in enumerate((("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"))):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), texts, strict=True):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "index3").mkdir()
    monkeypatch.setattr(_config, "CACHES", str(tmp_path / "index*"))
    assert _config._find_caches() == {"L1d": 48 << 10, "L2": 2 << 20}


def test_blas(monkeypatch, capsys):
    for blas, expected in (
        ({"name": "scipy-openblas", "version": "0.3.31"}, "scipy-openblas 0.3.31"),
        ({"name": "accelerate"}, "accelerate"),
        ({"found": False}, "no BLAS"),
    ):
        monkeypatch.setattr(np, "show_config", lambda mode, blas=blas: {"Build Dependencies": {"blas": blas}})
        assert shown(capsys)["NumPy"] == f"{np.__version__}, built with {expected}"


def test_licence_and_documentation(capsys):
    lines = shown(capsys)
    assert lines["licence"].startswith("BSD-3-Clause")
    assert "python -m pydoc cattn" in lines["documentation"]
    found = _config.collect()
    if path := found["licence"]["file"]:
        assert "Redistribution and use" in Path(path).read_text(encoding="utf-8")
        assert lines["licence"] == f"BSD-3-Clause, {path}"
    if path := found["documentation"]["readme"]:
        assert "## Promises" in Path(path).read_text(encoding="utf-8")
        assert lines["documentation"].endswith(f"README in {path}")


def test_files_beside_the_package(monkeypatch, tmp_path):
    names = ("RECORD", "METADATA", "LICENSE")
    files = [SimpleNamespace(name=name, locate=lambda name=name: tmp_path / name) for name in names]
    monkeypatch.setattr("importlib.metadata.files", lambda package: files if package == "cattn" else [])
    found = _config.collect()
    assert found["licence"]["file"] == str(tmp_path.resolve() / "LICENSE")
    assert found["documentation"]["readme"] == str(tmp_path.resolve() / "METADATA")


def test_a_package_that_was_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(_config, "_find_file", lambda name: None)
    lines = shown(capsys)
    assert lines["licence"] == "BSD-3-Clause"
    assert lines["documentation"] == "python -m pydoc cattn"


def test_a_table_that_was_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("CATTN_ISA", _kernel.isa())
    assert shown(capsys)["kernel table"].startswith(f"{_kernel.isa()} (CATTN_ISA); this processor runs ")


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


def test_threads_set_in_this_thread(capsys):
    cattn.set_num_threads(7)
    with cattn.num_threads(3):
        assert shown(capsys)["threads"] == "3 (set in this thread)"
    assert shown(capsys)["threads"] == "7 (set in this process)"


def test_a_wrong_number_of_threads_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("CATTN_NUM_THREADS", "many")
    assert shown(capsys)["threads"] == "CATTN_NUM_THREADS: expected an integer of 1 or more, got 'many'"
    cattn.set_num_threads(2)
    assert shown(capsys)["threads"] == "2 (set in this process)"


def test_showing_settles_nothing(capsys, monkeypatch):
    shown(capsys)
    monkeypatch.setenv("CATTN_NUM_THREADS", "6")
    assert cattn.get_num_threads() == 6
