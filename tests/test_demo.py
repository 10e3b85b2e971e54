"""`cattn demo`, run as its users run it, away from the checkout. What depends on the process has one of its own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import environment, run_python
from test_cli import in_this_process

import cattn
from cattn._cli import main


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return what runs the command line in an empty folder, in a process of its own if it is given an environment."""

    def run(*arguments, **environment):
        if not environment:
            return in_this_process(capsys, *arguments)
        return run_python("-W", "error", "-m", "cattn", *arguments, cwd=tmp_path, **environment)

    monkeypatch.chdir(tmp_path)
    return run


UTF8 = {"PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def demo(run):
    def demo(*arguments, **environment):
        result = run("demo", *arguments, **environment)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        return result.stdout

    return demo


@pytest.fixture
def fails(run):
    def fails(*arguments, **environment):
        result = run("demo", *arguments, **environment)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    return fails


def matrix(text, heading, rows, skip=0):
    """Return the numbers in the `rows` lines that follow a heading, after `skip` lines."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading)) + 1 + skip
    return np.array([[float(n) for n in re.findall(r"[-+.\de]*\d", line)] for line in lines[start : start + rows]])


STEPS = ["1. Embeddings", "2. Projections", "3. Scores", "4. Scaled", "5. Weights", "6. Weighted values", "7. Context"]


def assert_all_steps(text):
    places = [text.index(step) for step in STEPS]
    assert places == sorted(places)


def test_the_sentence(demo):
    text = demo(**UTF8)
    assert "The cat sat" in text
    assert_all_steps(text)
    x = np.array([[0.2, 0.5, 0.1, 0.7], [0.9, 0.1, 0.4, 0.6], [0.3, 0.8, 0.2, 0.5]])
    np.testing.assert_array_equal(matrix(text, "1. ", 3), x)

    # Everything after the printed projections follows from them.
    w_query, w_key, w_value = (matrix(text, name, 4) for name in ("W_query", "W_key", "W_value"))
    assert w_query.shape == w_key.shape == w_value.shape == (4, 3)
    query, key, value = x @ w_query, x @ w_key, x @ w_value
    scores = query @ key.T
    weights = np.exp(scores / np.sqrt(3))
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = {
        "Q  (": query,
        "K  (": key,
        "V  (": value,
        "for The": weights[0][:, None] * value,
        "for cat": weights[1][:, None] * value,
        "for sat": weights[2][:, None] * value,
        "7. ": weights @ value,
    }
    for heading, result in wanted.items():
        np.testing.assert_allclose(matrix(text, heading, 3), result, atol=5.1e-5, err_msg=heading)
    for heading, result in {"3. ": scores, "4. ": scores / np.sqrt(3), "5. ": weights}.items():
        np.testing.assert_allclose(matrix(text, heading, 3, skip=1)[:, :3], result, atol=5.1e-5, err_msg=heading)
    assert weights.max() > 0.7, "the weights of the example differ visibly"

    difference = matrix(text, "Check", 3)
    assert difference.shape == (3, 3)
    assert np.abs(difference).max() < 1e-14
    assert re.search(r"largest absolute difference: \d\.\de[-+]\d+\n", text)


def test_plot_writes_a_png(demo, tmp_path):
    pytest.importorskip("matplotlib")
    text = demo("--plot", "weights.png", MPLBACKEND="qtagg", **UTF8)
    assert "weights.png" in text
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64"])
def test_own_embeddings_with_random_projections(demo, tmp_path, dtype):
    x = (np.random.default_rng(0).standard_normal((20, 8)) * 3).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    text = demo("x.npy")
    assert_all_steps(text)
    assert "random" in text
    assert "seed 0" in text
    assert text == demo("x.npy")
    kept = {"int64": "float64"}.get(dtype, dtype)
    assert f"Check  C ({kept}) - C of the NumPy reference (float64)" in text
    bound = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-2}[kept]
    assert float(text.split("largest absolute difference: ")[1]) < bound


def test_own_archive(demo, tmp_path):
    rng = np.random.default_rng(1)
    x, *weights = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 5), (5, 3), (5, 3), (5, 4)))
    w_query, w_key, w_value = weights
    tokens = np.array(["Grüße", "東京"])
    np.savez(tmp_path / "x.npz", x=x, w_query=w_query, w_key=w_key, w_value=w_value, tokens=tokens)
    text = demo("x.npz")
    assert_all_steps(text)
    assert "random" not in text
    np.testing.assert_allclose(matrix(text, "W_value", 5), w_value, atol=5.1e-5)
    context = cattn.self_attention(x, *weights)
    np.testing.assert_allclose(matrix(text, "7. ", 2), context, atol=5.1e-5)
    assert re.search(r"^  Grüße  +-?\d", text, flags=re.MULTILINE)


def test_archive_of_x_alone(demo, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=np.ones((2, 3)))
    assert "random" in demo("x.npz")


def test_a_terminal_that_lacks_the_characters(demo, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3)), tokens=np.array(["東京", "é"]))
    text = demo("x.npz", PYTHONIOENCODING="ascii")
    assert text.isascii()
    assert r"\u6771" in text


CSV = {
    "numbers alone": ("0.1,0.2\n0.3,4e-1\n", ["0", "1"]),
    "tokens": ("The, 0.1, 0.2\ncat, 0.3, 0.4\n", ["The", "cat"]),
    "some tokens that are numbers": ("1984,0.1,0.2\ncat,0.3,0.4\n", ["1984", "cat"]),
    "headings": ("x,y\r\n0.1,0.2\r\n0.3,0.4\r\n", ["0", "1"]),
    "headings with numbers": ("layer 1,2nd\n0.1,0.2\n0.3,0.4\n", ["0", "1"]),
    "headings and tokens": ("token,x,y\nThe,0.1,0.2\n\ncat,0.3,0.4", ["The", "cat"]),
    "as pandas writes it": (",0,1\n7,0.1,0.2\n9,0.3,0.4\n", ["7", "9"]),
    "as a spreadsheet writes it": ('\ufeff"G, rüße",0.1,"0.2"\n"東京",0.3,0.4\n', ["G, rüße", "東京"]),
}


@pytest.mark.parametrize(("content", "tokens"), CSV.values(), ids=CSV)
def test_csv(demo, tmp_path, content, tokens):
    (tmp_path / "x.csv").write_text(content, encoding="utf-8", newline="")
    text = demo("x.csv")
    assert_all_steps(text)
    assert "random" in text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("1. ")) + 1
    for line, token, numbers in zip(lines[start:], tokens, ("0.1000  0.2000", "0.3000  0.4000"), strict=False):
        assert re.fullmatch(rf"  {token} +{numbers}", line)
    assert lines[start + 2] == ""


@pytest.mark.parametrize("extra", [(), ("--plot", "weights.png")], ids=str)
def test_no_tokens_take_one_line(run, tmp_path, extra):
    if extra:
        pytest.importorskip("matplotlib")
    np.save(tmp_path / "x.npy", np.ones((0, 4)))
    result = run("demo", "x.npy", *extra)
    (line,) = (result.stdout + result.stderr).splitlines()
    assert "x has shape (0, 4): there are no tokens" in line
    assert (result.returncode, bool(result.stderr)) == ((2, True) if extra else (0, False))
    assert not (tmp_path / "weights.png").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_said_and_not_plotted(run, tmp_path, value):
    x = np.random.default_rng(0).standard_normal((3, 4))
    x[1, 2] = value
    np.savez(tmp_path / "x.npz", x=x, tokens=np.array(["The", "cat", "sat"]))
    said = f"all 9 weights are NaN, since x holds {value} (first in row 1, 'cat')"
    result = run("demo", "x.npz")
    assert (result.returncode, result.stderr) == (0, "")
    assert_all_steps(result.stdout)
    assert result.stdout.splitlines()[-1].startswith(f"Note  {said}")
    pytest.importorskip("matplotlib")
    result = run("demo", "x.npz", "--plot", "weights.png")
    assert result.returncode == 2
    assert re.fullmatch(f"cattn demo: error: --plot weights.png: .*{re.escape(said)}.*\n", result.stderr)
    assert not (tmp_path / "weights.png").exists()


def test_nan_of_a_projection_is_said(demo, tmp_path):
    weights = {f"w_{name}": np.ones((4, 2)) for name in ("query", "key", "value")}
    weights["w_key"][2, 1] = np.nan
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4)), **weights)
    assert "Note  all 9 weights are NaN, since w_key holds nan (first in row 2)\n" in demo("x.npz")


def test_infinite_values_are_no_warning(demo, tmp_path):
    weights = {f"w_{name}": np.ones((4, 2)) for name in ("query", "key", "value")}
    weights["w_value"][2, 1] = np.inf
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4)), **weights)
    assert "largest absolute difference: nan" in demo("x.npz")


def test_scores_beyond_the_largest_number(demo, tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 3), 1e200) * [[1], [-1]])
    assert "Note  2 of 4 weights are NaN, since scores are beyond the largest number\n" in demo("x.npy")


def test_a_long_plot(demo, tmp_path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1000, 16), dtype=np.float32))
    text = demo("x.npy", "--plot", "weights.png")
    assert len(text.splitlines()) < 200
    from matplotlib import image

    shades = image.imread(tmp_path / "weights.png")[200:800, 200:800, 0]
    assert shades.std() > 0.05, "most of it has one colour"


def test_512_tokens_do_not_flood_the_terminal(demo, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((512, 768)))
    assert len(demo("x.npy").splitlines()) < 200


def write(path, name, array=None, content=None):
    if content is not None:
        (path / name).write_bytes(content)
    elif isinstance(array, dict):
        np.savez(path / name, **array)
    else:
        np.save(path / name, array)


ONES = np.ones((3, 4))
BAD = [
    ("x.npy", np.ones((2, 3, 4)), None, r"x: expected 2 dimensions .*got shape \(2, 3, 4\)"),
    ("x.npy", np.float64(1), None, r"x: expected 2 dimensions .*got shape \(\)"),
    ("x.npy", ONES.astype(complex), None, r"x: .*got complex128"),
    ("x.npy", np.array([["a"]]), None, r"x: .*got str"),
    ("x.npy", np.array([[None]]), None, r"expected a \.npy, \.npz or \.csv file, got: .*allow_pickle=False"),
    ("x.npy", None, b"", "expected lines of numbers with commas between them, got none"),
    ("x.png", None, b"\x89PNG\r\n", r"expected a \.npy, \.npz or \.csv file, got one that begins with b'\\x89PNG"),
    ("x.npy", None, b"\x93NUMPY\x01\x00", r"expected a \.npy, \.npz or \.csv file, got: "),
    ("x.npz", None, b"PK\x03\x04 and nothing more", r"expected a \.npy, \.npz or \.csv file, got: "),
    ("x.npy", np.ones((20_000, 4)), None, "expected at most 4096 tokens, .*got 20000; take a part of them"),
    ("x.csv", None, b"a,b\n", "expected lines of numbers with commas between them, got none"),
    ("x.csv", None, b"0.1,0.2\n\n0.3\n", "line 3: expected 2 columns like the first one, got 1"),
    ("x.csv", None, b"a,0.1,0.2\nb,0.3,?\n", "line 2, column 3: expected a number, .*got '[?]'"),
    ("x.csv", None, b"0.1,?\n", "line 1, column 2: expected a number, .*got '[?]'"),
    ("x.csv", None, b"0.1,0.2\n0.3,\n", "line 2, column 2: expected a number, .*got ''"),
    (
        "x.csv",
        None,
        b"a;b\n0.1;0.2\n",
        "line 2, column 1: expected a number, and commas between numbers, got '0.1;0.2'",
    ),
    (
        "x.csv",
        None,
        b"0.1 0.2\n0.3 0.4\n",
        "line 1, column 1: expected a number, and commas between numbers, got '0.1 0.2'",
    ),
    ("x.csv", None, b"0.1; 0.2\n0.3\n", "line 1, column 1: expected a number, .*got '0.1; 0.2'"),
    ("x.npz", dict(embeddings=ONES), None, r"expected an array named x, got embeddings"),
    ("x.npz", dict(x=ONES, w_query=ONES.T), None, r"expected all of w_query, w_key, w_value or none, got only w_query"),
    ("x.npz", dict(x=ONES, tokens=np.array(["a"])), None, r"tokens: expected 3 names, .*got 1"),
    ("x.npz", dict(x=ONES, w_query=ONES, w_key=ONES, w_value=ONES), None, r"w_query: expected 4 rows .*got 3"),
    (
        "x.npz",
        dict(x=ONES, w_query=np.ones((4, 2)), w_key=np.ones((4, 2)), w_value=np.ones((4, 2), np.float32)),
        None,
        r"w_value: .*float64 like x, got float32",
    ),
]


@pytest.mark.parametrize(("name", "array", "content", "message"), BAD)
def test_bad_files(fails, tmp_path, name, array, content, message):
    write(tmp_path, name, array, content)
    error = fails(name)
    assert re.match(f"cattn demo: error: {name}(:|, line)", error)
    assert re.search(message, error), error


def test_a_token_of_millions_of_numbers(fails, tmp_path):
    """Nobody waits until random projections of that size are made."""
    (tmp_path / "x.csv").write_text("1," * 1_999_999 + "1\n")
    expected = "expected at most 65536 columns where the file holds no projections, got 2000000; a row is a token\n"
    assert fails("x.csv") == f"cattn demo: error: x.csv: {expected}"


def test_truncated_file(fails, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((100, 8)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:1000])
    assert "short.npy" in fails("short.npy")


def test_missing_file(fails):
    assert fails("absent.npy") == "cattn demo: error: absent.npy: No such file or directory\n"


def test_pickles_are_not_executed(fails, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    np.save(tmp_path / "x.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    fails("x.npy")
    assert not (tmp_path / "trapped").exists()


def test_plot_that_cannot_be_written(fails):
    pytest.importorskip("matplotlib")
    assert "--plot absent/weights.png: " in fails("--plot", "absent/weights.png")
    assert "--plot weights.cat: " in fails("--plot", "weights.cat")


def test_plot_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["demo", "--plot", "weights.png"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "cattn demo: error: --plot needs matplotlib: pip install 'cattn[plot]'\n"
    assert printed.out == ""


def test_a_matplotlib_that_fails(fails, tmp_path):
    """matplotlib raises errors of its own, for example for a wrong setting."""
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ValueError('Key backend: not\\na value')\n")
    expected = "cattn demo: error: --plot: matplotlib cannot be imported: Key backend: not a value\n"
    assert fails("--plot", "weights.png", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])) == expected


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="needs a POSIX pipe")
def test_standard_input(tmp_path):
    """A pipe cannot be wound back."""
    np.save(tmp_path / "x.npy", np.eye(3))
    for content in ((tmp_path / "x.npy").read_bytes(), b"1,0,0\n0,1,0\n0,0,1\n"):
        command = [sys.executable, "-m", "cattn", "demo", "/dev/stdin"]
        done = subprocess.run(command, env=environment(PYTHONIOENCODING="utf-8"), cwd=tmp_path, input=content,
                              capture_output=True)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        np.testing.assert_array_equal(matrix(done.stdout.decode(), "1. ", 3)[:, 1:], np.eye(3))  # behind its number


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_reader_that_leaves_early(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cattn", "demo"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=120
    )
    os.close(writing)
    assert result.stderr == b""
