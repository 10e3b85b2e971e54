"""Fixtures that call the interface for C, by ctypes, from C, or from Cython."""

import shutil
import sys
import textwrap

import pytest
from c_interface_calls import HEADER, capsule, load
from helpers import HERE, run_python


def examples():
    """Return the two examples of the header, in C and in Cython."""
    comment = HEADER.read_text(encoding="utf-8").partition("*/")[0]
    lines = [line.removeprefix(" *") for line in comment.splitlines()[1:]]
    found = [[], []]
    for line in lines:
        if line.startswith(" In C:"):
            language = 0
        elif line.startswith(" In Cython"):
            language = 1
        elif line.startswith("     ") or (not line.strip() and "language" in locals()):
            found[language].append(line)
    return [textwrap.dedent("\n".join(lines)) for lines in found]


SETUP = """
import os
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
import cattn

strict = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
in_c = {"include_dirs": [cattn.get_include()], "extra_compile_args": strict, "extra_link_args": ["-pthread"]}
sources = ["in_c.c", "without_import.c", "without_python.c"]
setup(
    name="callers",
    ext_modules=[
        Extension("in_c", sources, **in_c),
        Extension("example_in_c", ["example_in_c.c"], **in_c),
        *cythonize(["in_cython.pyx", "example_in_cython.pyx"], language_level=3),
    ],
)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Compile the extension modules, and return their folder."""
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    if sys.platform == "win32":
        pytest.skip("the modules have POSIX threads")
    folder = tmp_path_factory.mktemp("callers")
    for file in (HERE / "c_interface").iterdir():
        shutil.copy(file, folder)
    for name, text in zip(("example_in_c.c", "example_in_cython.pyx", "setup.py"), (*examples(), SETUP), strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    done = run_python("setup.py", "build_ext", "--inplace", cwd=folder, CFLAGS="-O1")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


DOORS = ["capsule", *(pytest.param(name, marks=pytest.mark.slow) for name in ("in_c", "in_cython"))]


@pytest.fixture(params=DOORS)
def door(request):
    """Return a function from a dict of arguments, by the names of the struct's fields, to (status, message)."""
    if request.param == "capsule":
        return capsule
    return load(request.getfixturevalue("built"), request.param).attention
