"""Model the inner loops of a kernel table on ARM processors that nobody here has: `python tools/model_arm.py`.

The script compiles the tables for aarch64 with gcc and Clang, cuts the inner loops out of the assembly, and lets
llvm-mca compute how many cycles a turn takes on a model of the processor's pipes. The model knows no caches, no
branches and no memory: all loads hit L1. It shows what limits a loop, and what a change of it brings. It measures
nothing.

A line has, for each processor:

    scores, values        the share of the peak, which is the rate at which the processor begins multiply-adds
    exponentials          cycles per score
    few rows              cycles per vector of a key's columns, for all rows together, and how many its loads and its
                          multiply-adds would take alone

and, of the code, the instructions per multiply-add (per score, per vector of a key's columns), how many registers hold
sums, and how many instructions of the loop touch the stack, where spilled registers are. Debian's packages:
gcc-12-aarch64-linux-gnu, libc6-dev-arm64-cross, clang-19, llvm-19.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = {
    "gcc 12": ["aarch64-linux-gnu-gcc-12"],
    "clang 19": ["clang-19", "--target=aarch64-linux-gnu", "-I/usr/aarch64-linux-gnu/include"],
}
# As setup.py compiles it.
FLAGS = ["-O3", "-std=gnu11", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-g0", "-S"]
# A name of llvm-mca's, and how many multiply-adds of 128 bits the processor begins in a cycle.
PROCESSORS = {
    "N1": ("neoverse-n1", 2),
    "V1": ("neoverse-v1", 4),
    "V2": ("neoverse-v2", 4),
    "M1": ("apple-m1", 4),
}
# What is cut out: a name, the function that has the loop, the kind of figure, and how many few rows there are.
LOOPS = [
    ("scores", "scores_{bits}", "tile", 0),
    ("values", "values_{bits}", "tile", 0),
    ("exponentials", "exponentials_{bits}", "exponentials", 0),
    *((f"few rows: scores of {n}", f"few_scores_of_{n}_{{bits}}", "few", n) for n in (1, 2, 4)),
    *((f"few rows: values of {n}", f"few_values_of_{n}_{{bits}}", "few", n) for n in (1, 2, 4)),
]
FMA = re.compile(r"fm(?:l[as]|ul)\s+v")  # the first product of a sum needs no addition
EXPONENT = re.compile(r"shl|uqsub")
WIDENS = re.compile(r"u?s?shll|[su]xtl|[su]cvtf|fcvtl|zip")
BRANCH = re.compile(r"(?:b|b\.?[a-z][a-z]|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$")
VECTOR_LOAD = re.compile(r"ldp?r?u?r?\s+(q\d+)(?:, (q\d+))?, \[(\w+)")
VECTOR_STORE = re.compile(r"stp?r?u?r?\s+(q\d+)(?:, (q\d+))?, \[(\w+)")


def assembly(compiler, table):
    """Return the lines of each function of a table, as the compiler writes them for aarch64."""
    with tempfile.NamedTemporaryFile(suffix=".s") as file:
        includes = [f"-I{ROOT / name}" for name in ("src", "cattn")]
        source = ROOT / "src" / "tiles" / f"{table}.c"
        subprocess.run([*COMPILERS[compiler], *FLAGS, *includes, source, "-o", file.name], check=True)
        text = Path(file.name).read_text()
    functions, lines = {}, []
    for line in text.splitlines():
        line = re.split(r"//|\s#\s", line)[0].strip()
        if line.startswith("#"):
            continue
        if name := re.fullmatch(r"([A-Za-z_]\w*)(?:\.\w+)*:", line):
            lines = functions.setdefault(name[1], [])
        elif line and (not line.startswith(".") or line.endswith(":")):
            lines.append(re.sub(r"\s+", " ", line))
    return functions


def inner_loops(lines):
    """Return the instructions of each innermost loop: what lies between a label and a branch back to it."""
    place = {line[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    back = []  # (label, branch)
    for number, line in enumerate(lines):
        branch = BRANCH.match(line)
        if branch and place.get(branch[1], number) < number:
            back.append((place[branch[1]], number))
    return [lines[start + 1 : end + 1] for start, end in back if is_loop(lines, start, end)]


def is_loop(lines, start, end):
    """Return whether no other loop lies between a label and a branch back to it."""
    passed = set()
    for line in lines[start:end]:
        branch = BRANCH.match(line)
        if line.endswith(":"):
            passed.add(line[:-1])
        elif branch and branch[1] in passed:
            return False
    return True


def split(line):
    """Return a store that also moves its address as two instructions. In llvm-mca's models the new address would wait
    for the numbers to be stored, which it does not on any of these processors."""
    store = re.fullmatch(r"(st\w+ .*\[(x\d+)\]), (#?\d+)", line)
    return f"{store[1]}\nadd {store[2]}, {store[2]}, {store[3]}" if store else line


def cycles(loop, processor):
    """Return the cycles that llvm-mca computes for one turn of a loop."""
    total = []
    for turns in (100, 300):
        command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={PROCESSORS[processor][0]}", f"-iterations={turns}"]
        text = "\n".join(split(line) for line in loop if not line.endswith(":"))
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        total.append(int(re.search(r"Total Cycles: +(\d+)", result.stdout)[1]))
    return (total[1] - total[0]) / 200


def registers(pattern, loop):
    """Return how many vector registers the loop loads or stores, without those of the stack."""
    found = [match for line in loop if (match := pattern.match(line)) and match[3] != "sp"]
    return sum(2 if match[2] else 1 for match in found)


def spills(loop):
    """Return how many instructions of the loop touch the stack."""
    return sum(bool(re.search(r"\[(sp|x29)\b", line)) for line in loop)


def accumulators(loop):
    """Return how many registers multiply-adds of the loop write."""
    return len({line.split(" ")[1].rstrip(",") for line in loop if FMA.match(line)})


def count_fmas(loop):
    """Return how many multiply-adds of vectors the loop has."""
    return sum(bool(FMA.match(line)) for line in loop)


def chosen(functions, name, kind):
    """Return the loop that a long block spends its time in: that of the most sums, for float32 itself where a function
    also widens half types."""
    loops = []
    for key in functions:
        if re.fullmatch(rf"{name}(?:_isra_\d+|_part_\d+)?", key):
            loops += inner_loops(functions[key])
    if kind == "exponentials":
        loops = [loop for loop in loops if registers(VECTOR_STORE, loop) and any(map(EXPONENT.search, loop))]
    if kind == "few":
        loops = [loop for loop in loops if registers(VECTOR_LOAD, loop) and not any(map(WIDENS.match, loop))]
        return max(loops, key=lambda loop: (count_fmas(loop) / len(loop) > 0.2, count_fmas(loop), -len(loop)))
    return max(loops, key=lambda loop: (accumulators(loop), count_fmas(loop)))


def line_of(loop, kind, bits, rows):
    """Return the figures of a loop for each processor, and those of its code."""
    fmas, cells = count_fmas(loop), []
    if kind == "exponentials":
        unit = registers(VECTOR_STORE, loop) * 128 // bits
    elif kind == "few":
        unit = fmas / rows
    else:
        unit = fmas
    for processor in PROCESSORS:
        turn = cycles(loop, processor)
        alone = 1 / PROCESSORS[processor][1]
        if kind == "tile":
            cells.append(f"{100 * fmas * alone / turn:.0f}%")
        elif kind == "exponentials":
            cells.append(f"{turn / unit:.2f}")
        else:
            loads = cycles([f"ldr q{n % 24}, [x1]" for n in range(240)], processor) / 240 * registers(VECTOR_LOAD, loop)
            cells.append(f"{turn / unit:.2f} (loads {loads / unit:.2f}, multiply-adds {rows * alone:.2f})")
    return [*cells, f"{len(loop) / unit:.2f}", f"{accumulators(loop)}", f"{spills(loop)}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", default="vec128,neon", help="the tables, with commas between them")
    parser.add_argument("--compilers", default=",".join(COMPILERS))
    parser.add_argument("--bits", default="32", help="32, 64 or both: float32 and float64")
    parser.add_argument("--loops", default="", help="only those whose names match this")
    parser.add_argument("--show", help="print the loop of this name")
    arguments = parser.parse_args()
    print("| loop | table | compiler |", " | ".join(PROCESSORS), "| instructions | accumulators | spills |")
    print("|---" * (6 + len(PROCESSORS)) + "|")
    for compiler in arguments.compilers.split(","):
        for table in arguments.tables.split(","):
            functions = assembly(compiler, table)
            for bits in map(int, arguments.bits.split(",")):
                for title, name, kind, rows in LOOPS:
                    if not re.search(arguments.loops, title):
                        continue
                    loop = chosen(functions, name.format(bits=bits), kind)
                    if title == arguments.show:
                        print("\n".join(loop))
                    cells = [f"{title}, {bits}", table, compiler, *line_of(loop, kind, bits, rows)]
                    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
