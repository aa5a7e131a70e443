"""Packages build on one another in one order: every import leads to the own package, or to one before it."""

import ast
from pathlib import Path

import pytest

import ntkp2p

PACKAGES = (
    "base",
    "topology",
    "data",
    "models",
    "kernels",
    "algorithms",
    "asynchrony",
    "dynamics",
    "runs",
    "analysis",
    "figures",
    "explorer",
    "cli",
)
#: What may be imported from `ntkp2p` itself, which no package is before.
TOP = {"__version__"}
ROOT = Path(ntkp2p.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file):
    parts = ("ntkp2p", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
STUB = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
PUBLIC = {name.name: line.module for line in STUB.body if isinstance(line, ast.ImportFrom) for name in line.names}


def targets(node):
    """The modules of ours that an import statement reads, and names that are none."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name.partition(".")[0] == "ntkp2p"]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert not node.level, "imports are absolute"
    if (node.module or "").partition(".")[0] != "ntkp2p":
        return []
    found = []
    for name in node.names:
        whole = f"{node.module}.{name.name}"
        if node.module == "ntkp2p" and whole not in MODULES and name.name not in TOP:
            whole = f"{PUBLIC[name.name]}.{name.name}"
        found.append(whole if whole in MODULES else whole.rpartition(".")[0])
    return found


def executed(body):
    """The import statements that run when a module is imported: none of functions, and none for type checkers alone."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from executed(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "handlers", "finalbody"):
                yield from executed(getattr(node, field, []))


def package_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("ntkp2p", "ntkp2p.__main__")])
def test_a_module_imports_no_later_package(module):
    assert package_of(module) in PACKAGES, "every module belongs to a package"
    if f"ntkp2p.{package_of(module)}" == module and package_of(module) not in ("explorer", "cli"):
        return  # what a package exports
    known = PACKAGES[: PACKAGES.index(package_of(module)) + 1]
    for node in ast.walk(MODULES[module]):
        for target in targets(node):
            if target != "ntkp2p":
                assert package_of(target) in known, f"line {node.lineno}: {ast.unparse(node)}"


def test_no_modules_import_each_other():
    reads = {m: {t for node in executed(tree.body) for t in targets(node)} - {m} for m, tree in MODULES.items()}
    while outside := [m for m in reads if not reads[m] & set(reads) or not any(m in reads[n] for n in reads)]:
        for module in outside:
            del reads[module]
    assert not set(reads), "modules that import one another, or are between such"
