"""Fill the stubs, the .pyi files of cattn/, with what has its home elsewhere.

Each signature gets the modifiers that the function takes, from the table in cattn/_modifiers.py. cattn/_kernel.pyi gets
the docstrings of the compiled functions, because editors read only this file. Run `python tools/fill_stubs.py` after
the table has changed, or after a docstring in src/kernel.pyx has changed and the module was built. tests/test_typing.py
fails if a stub is not filled.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path

from cattn import _kernel
from cattn._modifiers import MODIFIERS

STUBS = sorted((Path(__file__).parents[1] / "cattn").rglob("*.pyi"))
TYPES = {
    "number": "_Number | None",
    "flag": "_Flag",
    "window": "_Window | None",
    "offset": "_Offset | None",
    "range": "_KeyRange | None",
    "integers": "_Integers | None",
    "mask": "_Array | None",
    "floats": "_Array | None",
}


def filled(path):
    """Return the text that the stub should have."""
    stub = with_modifiers(path.read_text(encoding="utf-8"), "dask." if path.stem == "dask" else "")
    return with_docstrings(stub) if path.stem == "_kernel" else stub


def with_modifiers(stub, module):
    """Return the text of a stub in which each signature with modifiers has all that its function takes."""

    def signature(found):
        name, lines = found["name"], found["lines"].splitlines()
        by_name = lines.index("    *,") if "    *," in lines else len(lines)  # others may come before, with such names
        is_modifier = [n > by_name and line.strip().partition(":")[0] in MODIFIERS for n, line in enumerate(lines)]
        if sum(is_modifier) < 2:  # the query_lengths of maxsim are its own
            return found[0]
        first = is_modifier.index(True)
        others = [line for line, modifier in zip(lines, is_modifier, strict=True) if not modifier]
        taken = [line_of(row, module) for row in MODIFIERS.values() if module + name not in row.without]
        return "\n".join([f"def {name}(", *others[:first], *taken, *others[first:], ")"])

    return re.sub(r"^def (?P<name>\w+)\(\n(?P<lines>.*?)\n\)", signature, stub, flags=re.M | re.S)


def line_of(row, module):
    """Return the line of a signature for a modifier. Arrays with an axis for keys may be dask arrays in cattn.dask."""
    kind = TYPES[row.kind]
    if module == "dask." and "Lk" in row.shape:
        kind = kind.replace("_Array", "_Chunked")
    return f"    {row.name}: {kind} = {row.default},"


def with_docstrings(stub):
    """Return the text of a stub in which the first (or only) signature of each function has its docstring."""
    lines = stub.splitlines()
    first = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.FunctionDef):
            first.setdefault(node.name, node)
    for name, node in reversed(first.items()):  # from the end, so that the lines before stay where they are
        docstring = inspect.getdoc(getattr(_kernel, name))
        closing = '\n"""' if "\n" in docstring else '"""'
        new = textwrap.indent(f'"""{docstring}{closing}', "    ").splitlines()
        if lines[node.end_lineno : node.end_lineno + 1] not in ([], [""]):
            new.append("")
        body = node.body[0]
        if opening := lines[body.lineno - 1][: body.col_offset].strip():  # the end of the signature stands there too
            new.insert(0, opening)
        lines[body.lineno - 1 : body.end_lineno] = new
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in STUBS:
        path.write_text(filled(path), encoding="utf-8")
