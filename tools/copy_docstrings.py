"""Copies the docstrings of the compiled functions into their stub, cattn/_kernel.pyi, where editors read them.

Run it after a docstring in src/kernel.pyx has changed and the module was built: python tools/copy_docstrings.py.
tests/test_typing.py fails where the two differ.
"""

import ast
import inspect
import textwrap
from pathlib import Path

from cattn import _kernel

STUB = Path(__file__).parents[1] / "cattn" / "_kernel.pyi"


def with_docstrings(stub):
    """The text of the stub, in which the first (or only) signature of each function has its docstring."""
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
    STUB.write_text(with_docstrings(STUB.read_text(encoding="utf-8")), encoding="utf-8")
