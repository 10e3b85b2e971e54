"""The command line: its frame, `cattn info` and `cattn selftest`."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import environment, run_python, slow
from test_package import copy_checkout

import cattn
from cattn import _cli, _cli_selftest, _config, _kernel
from cattn._cli import main


def in_this_process(capsys, *arguments):
    """Run the command line without a process of its own, and return what `run` returns."""
    capsys.readouterr()
    try:
        status = main([*arguments])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, status, said.out, said.err)


@pytest.fixture
def run(tmp_path):
    """Return what runs `python -m cattn` in an empty folder, in a process of its own."""

    def run(*arguments, **environment):
        return run_python("-W", "error", "-m", "cattn", *arguments, cwd=tmp_path, **environment)

    return run


@pytest.fixture(params=["with rich", "without rich"])
def terminal(request, tmp_path):
    """Return what returns what `code` shows on a terminal of 70 columns."""
    pty = pytest.importorskip("pty")
    rich = "import rich" if request.param == "with rich" else "sys.modules['rich'] = None"
    if request.param == "with rich":
        pytest.importorskip("rich")

    def shown(code):
        reading, writing = pty.openpty()
        command = [sys.executable, "-W", "error", "-c", f"import sys; {rich}; from cattn import _cli; {code}"]
        changes = {"COLUMNS": "70", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        process = subprocess.run(command, env=environment(**changes), cwd=tmp_path, stdout=writing, timeout=120)
        assert process.returncode == 0
        os.set_blocking(reading, False)
        text = os.read(reading, 1 << 16).decode().replace("\r\n", "\n")
        os.close(reading)
        os.close(writing)
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    shown.is_rich = request.param == "with rich"
    return shown


# The frame


def test_version_and_help(run, capsys):
    assert run("--version").stdout == f"cattn {cattn.__version__}\n"
    for arguments in ((), ("--help",)):
        result = in_this_process(capsys, *arguments)
        assert result.returncode == 0
        assert set(_cli.COMMANDS) <= set(result.stdout.split())


@pytest.mark.parametrize("command", _cli.COMMANDS)
def test_help_of_a_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: cattn {command} ")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["dance"], "cattn: error: argument COMMAND: invalid choice: 'dance' (choose from "),
        (["da\nnce"], r"cattn: error: argument COMMAND: invalid choice: 'da\nnce'"),
        (["--vers"], "cattn: error: unrecognized arguments: --vers; see cattn --help"),
        (["info", "--jso"], "cattn info: error: unrecognized arguments: --jso; see cattn info --help"),
        (["info", "a\nb"], "cattn info: error: unrecognized arguments: a b; see cattn info --help"),
        (["demo", "--plot"], "cattn demo: error: argument --plot: expected one argument; see cattn demo --help"),
        (["demo", "a.npy", "b.npy"], "cattn demo: error: unrecognized arguments: b.npy; see cattn demo --help"),
        (["selftest", "-v"], "cattn selftest: error: unrecognized arguments: -v; see cattn selftest --help"),
        (["demo", "absent.npy"], "cattn demo: error: absent.npy: No such file or directory"),
    ],
)
def test_what_cannot_be_done_takes_one_line_and_status_2(capsys, arguments, said):
    result = in_this_process(capsys, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("command", [["-m", "cattn"], ["-mcattn"], ["cattn"]], ids=" ".join)
def test_an_environment_that_cannot_be_used_takes_one_line(command, tmp_path):
    """The last command is the script that an installer writes."""
    (tmp_path / "cattn").write_text("import sys\nfrom cattn._cli import main\nsys.exit(main())\n")
    result = run_python("-W", "error", *command, "info", cwd=tmp_path, CATTN_ISA="nope")
    assert (result.returncode, result.stdout) == (2, "")
    expected = "cattn: error: CATTN_ISA: expected portable, vec128, neon, avx2, avx512, avx512bf16 or amx, got 'nope'\n"
    assert result.stderr == expected


def test_main_returns_the_status(capsys):
    assert main(["demo"]) == 0
    assert "7. Context" in capsys.readouterr().out
    assert main(["demo", "absent.npy"]) == 2


def test_an_interrupted_command_says_nothing(monkeypatch, capsys):
    def run(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cattn._cli_info.run", run)
    assert main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


def test_standard_output_may_be_closed(run):
    code = "import sys; sys.stdout = None; from cattn._cli import main; sys.exit(main(['info']))"
    result = run_python("-W", "error", "-c", code)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file of Linux")
def test_standard_output_may_be_full(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "cattn", "info"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert result.returncode == 1
    assert result.stderr == "cattn: error: [Errno 28] No space left on device\n"


ROWS = [("one", "1.5", "[bold]x[/]"), ("twenty", "20", "y")]


def test_a_plain_table(capsys):
    _cli.print_table(ROWS, headings=("name", "number", "text"))
    assert capsys.readouterr().out == (
        "name    number  text\n"
        "one        1.5  [bold]x[/]\n"
        "twenty      20  y\n"
    )  # fmt: skip
    _cli.print_table([("a", "long " * 50)])
    assert capsys.readouterr().out == "a  " + ("long " * 50).rstrip() + "\n"


def test_tables_on_a_terminal(terminal):
    """A table with headings and that of `cattn info` fit the terminal with rich, and are plain without it."""
    code = f"_cli.print_table({ROWS!r}, headings=('name', 'number', 'text')); print('***'); _cli.main(['info'])"
    text, _, info = terminal(code).partition("***\n")
    assert ("─" in text) == terminal.is_rich
    lines = [line.strip() for line in text.splitlines() if line.strip(" ─")]
    assert [re.split("  +", line) for line in lines] == [["name", "number", "text"], *map(list, ROWS)]
    assert (max(map(len, info.splitlines())) <= 70) == terminal.is_rich
    shown = "".join(info.split())
    for name, value in _config.describe(_config.collect()).items():
        assert "".join(name.split()) in shown
        assert value.split()[0] in shown


# info


def test_info_is_what_show_config_prints(capsys):
    cattn.show_config()
    expected = dict(re.split(": +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert dict(re.split("  +", line, maxsplit=1) for line in text.splitlines()) == expected
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(_config.collect()))


def test_info_is_of_this_process(run):
    config = json.loads(run("info", "--json", CATTN_ISA="portable", CATTN_NUM_THREADS="3").stdout)
    assert config["cattn"] == cattn.__version__
    assert config["kernel_table"] == {
        "used": "portable",
        "because": "CATTN_ISA",
        "runnable": _kernel.runnable_isas(),
    }
    assert config["threads"] == {"number": 3, "source": "CATTN_NUM_THREADS"}


# selftest


def outcome(text):
    """Return {kernel table: [checks, largest error, seconds, result]}, and the lines behind the table."""
    heading, *lines = text.splitlines()
    assert heading.startswith("kernel table")
    count = len(_kernel.runnable_isas())
    rows = [re.split("  +", line) for line in lines[:count]]
    return {name: columns for name, *columns in rows}, lines[count:]


@pytest.mark.slow
def test_selftest(run):
    result = run("selftest")
    assert (result.returncode, result.stderr) == (0, "")
    tables, rest = outcome(result.stdout)
    here = _kernel.isa()
    assert list(tables) == [f"{isa} (in use)" if isa == here else isa for isa in _kernel.runnable_isas()]
    for checks, largest, seconds, result in tables.values():
        assert int(checks) == len(list(_cli_selftest._cases())) > 200
        assert 0.05 < float(largest) <= 1
        assert float(seconds) > 0
        assert result == "ok"
    assert rest == [] or "bfloat16" not in _cli_selftest._types()


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Return what breaks a kernel table: in its processes, `code` runs after `import cattn`, and checks are fewer.

    It writes a file that each process of Python reads first.
    """

    def broken(isa, code):
        lines = [
            "import os",
            f"if os.environ.get('CATTN_ISA') == {isa!r}:",
            "    import cattn, cattn._cli_selftest as selftest, numpy as np, os, sys, time",
            "    attention, cases = cattn.attention, selftest._cases",
            "    kept = 'float32, 2/1', 'float64, 2/1'",
            "    selftest._cases = lambda: (case for case in cases() if case[0].startswith(kept))",
            *(f"    {line}" for line in code.splitlines()),
        ]
        (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        monkeypatch.setattr(_cli_selftest, "SHOWN", 2)

    return broken


BREAKS = {
    # In place of attention: a table that is slightly wrong, one that ends the process, one that does not end at all.
    "wrong": (
        "def slightly_off(query, *arguments, return_lse=False, **named):\n"
        "    out, lse = attention(query, *arguments, return_lse=True, **named)\n"
        "    if query.dtype == np.float64 and 'softcap' in named:\n"
        "        out *= 1 + 1e-13\n"
        "    return (out, lse) if return_lse else out\n"
        "cattn.attention = slightly_off",
        r"float64, .*, softcap: the error is \d+(\.\d+)? times what is allowed",
    ),
    "NaN": (
        "def leaking(*arguments, **named):\n"
        "    out = attention(*arguments, **named)\n"
        "    (out if isinstance(out, np.ndarray) else out[0])[..., -1, -1] = np.nan\n"
        "    return out\n"
        "cattn.attention = leaking",
        "float32, .*, no modifier: the error is inf times what is allowed",
    ),
    "other bits": (
        "def unsteady(*arguments, num_threads, **named):\n"
        "    out = attention(*arguments, **named)\n"
        "    return out * np.float32(1 + 2**-23) if num_threads == 2 else out\n"
        "cattn.attention = unsteady",
        "float32, .*, no modifier: the error is inf times what is allowed",
    ),
    "crash": (
        "cattn.attention = lambda *arguments, **named: os._exit(132)",
        "float32, 2/1 heads, .*, no modifier: the process ended with 132.",
    ),
    "exception": (
        "cattn.attention = lambda *arguments, **named: 1 / 0",
        "float32, 2/1 heads, .*, no modifier: the process ended with 1. ZeroDivisionError: division by zero",
    ),
    "endless": (
        "cattn.attention = lambda *arguments, **named: time.sleep(60)",
        "float32, 2/1 heads, .*, no modifier: did not end within 3 seconds.",
    ),
    "no start": (
        "sys.modules['cattn._cli_selftest'] = None",
        "before the first check: the process ended with 1. ModuleNotFoundError: import of cattn._cli_selftest halted",
    ),
}


@pytest.mark.parametrize(
    ("code", "message"), [x if name in ("wrong", "crash") else slow(*x) for name, x in BREAKS.items()], ids=BREAKS
)
def test_selftest_finds_a_broken_table(broken, capsys, monkeypatch, code, message):
    isa = _kernel.runnable_isas()[0]
    broken(isa, code)
    monkeypatch.setattr(_kernel, "runnable_isas", lambda: [isa])
    if "sleep" in code:
        monkeypatch.setattr(_cli_selftest, "SECONDS", 3)
    assert main(["selftest"]) == 1
    tables, lines = outcome(capsys.readouterr().out)
    ((*_, result),) = tables.values()
    assert re.fullmatch(r"\d+ wrong", result)
    assert re.match(f"{isa}: {message}", lines[0])
    assert lines[-1] == "Please report this, with what `cattn info` prints."
    assert 2 <= len(lines) <= 4


@pytest.mark.slow
@pytest.mark.skipif(_kernel.isa() == "portable", reason="needs another table in use")
def test_selftest_names_a_table_that_is_right(broken, capsys, monkeypatch):
    """The table that is right has passed all checks."""
    broken("portable", "cattn.attention = None")
    monkeypatch.setattr(_kernel, "runnable_isas", lambda: ["portable", _kernel.isa()])
    assert main(["selftest"]) == 1
    tables, lines = outcome(capsys.readouterr().out)
    assert [columns[-1] for columns in tables.values()] == ["1 wrong", "ok"]
    checks, largest, *_ = tables[f"{_kernel.isa()} (in use)"]
    assert int(checks) == len(list(_cli_selftest._cases())) > 200
    assert 0.05 < float(largest) <= 1
    assert f"CATTN_ISA={_kernel.isa()} " in lines[-1]


@pytest.mark.slow
def test_selftest_finds_a_broken_kernel(tmp_path):
    """A build of its own has one wrong line in one of the kernels."""
    checkout = copy_checkout(tmp_path)
    kernel = checkout / "src" / "tiles" / "portable.pxd"
    right, wrong = "sum[r] += last[r]", "sum[r] -= last[r]"  # the terms beyond the last four
    text = kernel.read_text(encoding="utf-8")
    assert text.count(right) == 1
    kernel.write_text(text.replace(right, wrong), encoding="utf-8")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "installed", checkout]
    done = run_python(*command, cwd=tmp_path, seconds=900)
    assert done.returncode == 0, done.stderr
    done = run_python("-m", "cattn", "selftest", cwd=tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert (done.returncode, done.stderr) == (1, "")
    tables, _ = outcome(done.stdout)
    results = {isa.split()[0]: columns[-1] for isa, columns in tables.items()}
    assert results.pop("portable").endswith(" wrong")
    assert set(results.values()) <= {"ok"}
