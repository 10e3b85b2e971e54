"""The package: what is in the wheel, what an import costs, and what a checkout says that was not built."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from helpers import PACKAGE, python, run_python

import cattn

ROOT = Path(__file__).parents[1]
REPRODUCIBLE = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def copy_checkout(folder):
    """A copy of the checkout in which nothing was built."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not in a checkout")
    unwanted = (".*", "build", "dist", "*.egg-info", "*.so", "*.pyd", "kernel.c", "__pycache__", "*venv")
    return shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*unwanted))


def build(folder):
    """The sdist of a copy of the checkout, and the wheel built from that sdist."""
    dist = folder / "dist"
    done = run("-m", "build", "--outdir", str(dist), cwd=copy_checkout(folder), timeout=900, env=REPRODUCIBLE)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


def paths_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


@pytest.mark.slow
def test_sdist_holds_what_is_needed_to_build_and_test(built):
    with tarfile.open(built[0]) as archive:
        found = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    kinds = {"src": "**/*.[pch]*", "cattn": "**/*.[ph]*", "tests": "**/*.*", "benchmarks": "**/*.*"}
    expected = {path for folder, kind in kinds.items() for path in (ROOT / folder).glob(kind)}
    expected = {path.relative_to(ROOT) for path in expected if path.suffix != ".pyc" and path.name != "kernel.c"}
    assert {PurePosixPath(path) for path in expected} <= found
    assert {PurePosixPath(name) for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff")} <= found
    assert not [path for path in found if path.name == "kernel.c" or path.suffix in (".so", ".pyd", ".pyc", ".o")]


@pytest.mark.slow
def test_wheel_holds_the_package(built):
    sources = (path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".pyi", ".pxd", ".h"))
    expected = {path.relative_to(PACKAGE).as_posix() for path in sources} | {"py.typed"}
    found = {str(path.relative_to("cattn")) for path in paths_in(built[1]) if path.parts[0] == "cattn"}
    assert expected <= found
    (compiled,) = (name for name in found if name.startswith("_kernel.") and name.endswith((".so", ".pyd")))
    assert found == expected | {compiled}


@pytest.mark.slow
def test_wheel_holds_nothing_else(built):
    paths = paths_in(built[1])
    assert {path.parts[0] for path in paths} == {"cattn", f"cattn-{cattn.__version__}.dist-info"}
    assert not [path for path in paths if path.suffix in (".pyx", ".pxi", ".c", ".inc")]
    assert [str(path) for path in paths if path.suffix == ".h"] == ["cattn/cattn.h"]
    assert "LICENSE" in {path.name for path in paths}
    assert built[1].stat().st_size < 2**21


@pytest.mark.slow
def test_wheel_works_elsewhere(built, tmp_path):
    """Installed from the sdist's wheel, in an empty folder."""
    done = run("-m", "pip", "install", "--no-deps", "--target", str(tmp_path), str(built[1]), timeout=300)
    assert done.returncode == 0, done.stderr
    code = "import cattn, numpy; x = numpy.eye(3); print(cattn.__file__, cattn.attention(x, x, x).shape)"
    done = run("-c", code, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == [str(tmp_path / "cattn" / "__init__.py"), "(3,", "3)"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="linkers elsewhere have clocks of their own")
def test_builds_in_other_folders_give_the_same_bytes(built, tmp_path):
    assert build(tmp_path / "another folder")[1].read_bytes() == built[1].read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="it asks by itself")
@pytest.mark.parametrize("environment, missing", [({"CC": "no-such-compiler"}, "no-such-compiler is not there")])
def test_what_the_build_lacks_is_said_in_a_line(environment, missing, tmp_path):
    command = ("-m", "pip", "wheel", ".", "--no-deps", "-w", str(tmp_path))
    done = run(*command, cwd=copy_checkout(tmp_path), timeout=900, env=os.environ | environment)
    assert done.returncode == 1
    (line,) = (line for line in (done.stdout + done.stderr).splitlines() if "cattn is built by a C compiler" in line)
    assert missing in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="CC names no compiler there")
def test_other_flags_build_anew(tmp_path):
    """In a checkout that was built before. The compiler is a script that writes its arguments where its result should
    be."""
    checkout = copy_checkout(tmp_path)
    # What the build needs, in a place that stays: what was built is compared with its age.
    python = tmp_path / "venv" / "bin" / "python"
    requirements = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    for command in ([sys.executable, "-m", "venv", tmp_path / "venv"], [python, "-m", "pip", "install", *requirements]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index('-o') + 1], 'w').write(' '.join(sys.argv))\n"
    )
    compiler.chmod(0o755)

    def build(**flags):
        """The arguments that the module's object was made with, the time when, and whether its source traces lines."""
        environment = os.environ | {"CC": str(compiler), "LDSHARED": f"{compiler} -shared"} | flags
        command = [python, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        (made,) = checkout.glob("build/temp*/src/kernel.o")
        source = (checkout / "src" / "kernel.c").read_text(encoding="utf-8")
        return made.read_text(), made.stat().st_mtime_ns, "__Pyx_TraceLine(" in source

    arguments, first, traces = build()
    assert "-fsanitize" not in arguments and "CYTHON_TRACE" not in arguments and not traces
    assert build()[1] == first
    arguments, _, traces = build(CATTN_SANITIZE="undefined")
    assert "-fsanitize=undefined" in arguments and not traces
    arguments, _, traces = build(CATTN_COVERAGE="1")
    assert "-fsanitize" not in arguments and "CYTHON_TRACE" in arguments and traces
    arguments, _, traces = build()
    assert "-fsanitize" not in arguments and "CYTHON_TRACE" not in arguments and not traces


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="CC names no compiler there")
def test_a_second_editable_installation_compiles_nothing(tmp_path):
    """The README's second command, in a folder where the first one has built. The compiler only notes its calls."""
    checkout = copy_checkout(tmp_path)
    compiler, calls = tmp_path / "compiler", tmp_path / "calls"
    compiler.write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[sys.argv.index('-o') + 1], 'w')\n"
        f"print(sys.argv, file=open({str(calls)!r}, 'a'))\n"
    )
    compiler.chmod(0o755)

    def install():
        """Return how often the compiler was called so far, and the age of what Cython wrote."""
        command = ("-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "target"), "--upgrade", "-e", ".")
        environment = os.environ | {"CC": str(compiler), "LDSHARED": f"{compiler} -shared"}
        done = run(*command, cwd=checkout, timeout=900, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return len(calls.read_text().splitlines()), (checkout / "src" / "kernel.c").stat().st_mtime_ns

    first = install()
    assert first[0] > 1
    assert install() == first
    (checkout / "src" / "problem.h").touch()
    assert install()[0] == 2 * first[0]


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is text there")
@pytest.mark.parametrize("name", [b"avx1024", b"\xff"])
def test_an_unknown_kernel_table(name):
    done = run_python("-c", "import cattn", CATTN_ISA=os.fsdecode(name))
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    names = "portable, vec128, neon, avx2, avx512, avx512bf16 or amx"
    expected = f"ImportError: CATTN_ISA: expected {names}, got {os.fsdecode(name)!r}"
    assert done.stderr.splitlines()[-1] == expected


def test_import_needs_numpy_only():
    new = python("import sys, numpy\nbefore = set(sys.modules)\nimport cattn\nprint(*set(sys.modules) - before)")
    tops = {name.partition(".")[0] for name in new.split()} - sys.stdlib_module_names
    tops = {name for name in tops if "cython" not in name}  # two modules that Cython makes up, without a file
    assert tops == {"cattn"}


def test_import_starts_nothing():
    code = "import threading, cattn; print(threading.active_count()); import warnings; print(warnings.filters == old)"
    assert python(f"import numpy, warnings; old = list(warnings.filters)\n{code}").split() == ["1", "True"]


def test_import_is_quick(tmp_path, monkeypatch):
    """The promise is 10 ms beyond NumPy's own import. Processor time, and the best of five: other load counts less."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))  # compiled by the first, as an installer does
    code = "import time, numpy; start = time.process_time(); import cattn; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(5)) < 0.030


def test_checkout_that_was_not_built(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "cattn", ignore=shutil.ignore_patterns("_kernel*", "__pycache__"))
    # Without the finder of an editable installation, which would lend it its own compiled module.
    code = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import cattn"""
    done = run("-c", code, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "ImportError: cattn: the compiled module is missing" in done.stderr
    assert "pip install -e ." in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_failing_dependency_is_not_called_a_missing_build(tmp_path):
    """Only the absence of the compiled module itself is: here NumPy fails to import."""
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('no module named oops', name='oops')\n")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(PACKAGE.parent)]!r}; import cattn"
    done = run("-c", code, timeout=60)
    assert done.returncode == 1
    assert "oops" in done.stderr and "the compiled module is missing" not in done.stderr
