"""pyproject.toml names every package that is imported: in its dependencies or in an extra."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Modules whose distribution has another name, for those that are not installed.
DISTRIBUTIONS = {"IPython": "ipython", "PIL": "pillow", "sklearn": "scikit-learn"}
#: Functions that import the module that their argument names.
IMPORTERS = ("import_module", "importorskip")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names: its dependencies, and those of `extras`."""
    requirements = list(PROJECT["dependencies"])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in PROJECT["optional-dependencies"][extra]:
            own = re.fullmatch(r"ntkp2p\[(.+)\]", requirement)
            if own:
                waiting += own[1].split(",")
            else:
                requirements.append(requirement)
    return {normalised(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


@cache
def installed() -> dict[str, list[str]]:
    return {module: list(map(normalised, names)) for module, names in packages_distributions().items()}


def distributions(module: str) -> set[str]:
    """The distributions that a top-level module may come from."""
    return {*installed().get(module, ()), DISTRIBUTIONS.get(module, normalised(module))}


def modules(node: ast.AST) -> Iterator[str]:
    """The third-party top-level modules that one statement or call imports."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [str(node.module)]
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        names = [str(node.args[0].value)] if name in IMPORTERS else []
    for name in (name.partition(".")[0] for name in names):
        if name != "ntkp2p" and name not in sys.stdlib_module_names:
            yield name


def imports(tree: ast.AST, extra: str | None = None) -> Iterator[tuple[int, str, str | None]]:
    """Every third-party import with its line and the extra that a `with needed(..., extra)` around it names."""
    for node in ast.iter_child_nodes(tree):
        inside = extra
        if isinstance(node, ast.With):
            for call in (item.context_expr for item in node.items):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "needed" and len(call.args) > 1:
                    inside = ast.literal_eval(call.args[1])
        yield from ((node.lineno, module, inside) for module in modules(node))
        yield from imports(node, inside)


def imported(folder: str) -> Iterator[tuple[str, str, str | None]]:
    """Every third-party import below a folder: where it is, the module, and the extra that is named around it."""
    own = {path.stem for path in (ROOT / folder).rglob("*.py")}  # scripts import their neighbours
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, module, extra in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if module not in own:
                yield f"{path.relative_to(ROOT)}:{line}", module, extra


def test_the_package_imports_only_what_pyproject_names():
    faults = []
    for where, module, extra in imported("ntkp2p"):
        if not distributions(module) & required(*([extra] if extra else [])):
            place = f"the extra {extra}" if extra else "the dependencies"
            faults.append(f"{where}: {module} is not in {place} of pyproject.toml")
    assert not faults, "\n".join(["", *faults])


@pytest.mark.parametrize(("folder", "extra"), [("tests", "dev"), ("docs", "docs"), ("benchmarks", "dev")])
def test_what_developers_run_imports_only_what_pyproject_names(folder, extra):
    names = required(extra)
    faults = [f"{where}: {module}" for where, module, _ in imported(folder) if not distributions(module) & names]
    assert not faults, f"not in the extra {extra} of pyproject.toml: " + "; ".join(faults)


def test_dev_has_every_extra():
    assert required("dev") == required(*PROJECT["optional-dependencies"])


def test_missing_names_are_found():
    program = """
import numpy.linalg
def f():
    from cvxpy import Problem
    with needed("this", "optimal"):
        import cvxpy as cp
    return importlib.import_module("neural_tangents._src")
"""
    assert [(module, extra) for _, module, extra in imports(ast.parse(program))] == [
        ("numpy", None),
        ("cvxpy", None),
        ("cvxpy", "optimal"),
        ("neural_tangents", None),
    ]
    assert "cvxpy" in required("notebooks")
    assert "cvxpy" not in required()
    assert distributions("sklearn") >= {"scikit-learn"}
