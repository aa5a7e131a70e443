"""Names come when they are asked for, whatever was imported before."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

import ntkp2p

#: Built in one process: the help first, without JAX; then modules that have a public function's name.
PROGRAM = """
import sys
from ntkp2p import cli

for arguments in (["--help"], ["--version"], *([name, "--help"] for name in cli.app if not name.startswith("-"))):
    try:
        cli.main(arguments)
    except SystemExit as exit:
        assert not exit.code, arguments
heavy = {"jax", "numpy", "scipy", "matplotlib", "xarray", "pandas"} & set(sys.modules)
assert not heavy, heavy

import ntkp2p.compare, ntkp2p.stability
import ntkp2p as p2p
from ntkp2p import communication
from ntkp2p.analysis.timeliness import Timeliness

for function in (p2p.compare, p2p.stability, communication, p2p.timeliness):
    assert callable(function), function
assert sys.modules["ntkp2p.runs.comparison"].compare is p2p.compare
"""


def test_help_does_without_jax_and_functions_are_not_hidden_by_their_modules():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    everything = {}
    exec("from ntkp2p import *", everything)
    assert set(ntkp2p.__all__) <= set(everything)
    assert set(ntkp2p.__all__) | {"__version__"} <= set(dir(ntkp2p))
    assert everything["graphs"].cycle(3).number_of_nodes() == 3
    modules = {name for name in ntkp2p.__all__ if isinstance(everything[name], ModuleType)}
    assert modules == {"clocks", "data", "devices", "graphs", "models", "schedules"}


@pytest.mark.parametrize("name", [n for n in ntkp2p.__all__ if importlib.util.find_spec(f"ntkp2p.{n}")])
def test_a_module_does_not_hide_the_function_of_its_name(name):
    module = importlib.import_module(f"ntkp2p.{name}")
    setattr(ntkp2p, name, module)  # what Python does when a module has been imported
    assert getattr(ntkp2p, name) is getattr(module, name, module)


def test_an_unknown_name_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'ntkp2p' has no attribute 'predcit'"):
        ntkp2p.predcit  # noqa: B018
    assert not hasattr(ntkp2p, "predcit")
