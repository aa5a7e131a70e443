"""No function of the package has more than 60 lines of code, and no file more than 600 lines in all."""

import ast
from pathlib import Path

import pytest

import ntkp2p

ROOT = Path(ntkp2p.__file__).parent
#: Of code: without the docstring, comments and blank lines.
FUNCTION, FILE = 60, 600


def lines_of_code(function, lines):
    body = function.body[ast.get_docstring(function) is not None :]
    head = range(function.lineno - 1, function.body[0].lineno - 1)
    rest = range(body[0].lineno - 1, function.end_lineno) if body else range(0)
    code = (lines[number].strip() for number in sorted({*head, *rest}))
    return sum(bool(line) and not line.startswith("#") for line in code)


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_and_files_are_short(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FILE, "split it, by what it answers"
    long = {
        node.name: size
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := lines_of_code(node, lines)) > FUNCTION
    }
    assert not long
