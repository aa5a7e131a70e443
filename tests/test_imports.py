"""Names come when they are asked for, whatever was imported before."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

import ntkp2p

#: Run in one process: first the help, without JAX; then the closed form, without the large networks.
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

import ntkp2p.dynamics

assert "ntkp2p.models.cifar" not in sys.modules
"""


def test_help_needs_no_jax_and_the_closed_form_no_large_network():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    everything = {}
    exec("from ntkp2p import *", everything)
    assert set(ntkp2p.__all__) <= set(everything)
    assert dir(ntkp2p) == ntkp2p.__all__
    assert everything["graphs"].cycle(3).number_of_nodes() == 3
    modules = {name for name in ntkp2p.__all__ if isinstance(everything[name], ModuleType)}
    assert modules == {"clocks", "data", "devices", "graphs", "kernels", "models", "schedules"}


def test_no_package_has_the_name_of_a_public_function():
    packages = {name for name in ntkp2p.__all__ if importlib.util.find_spec(f"ntkp2p.{name}")}
    assert packages == {"data", "kernels", "models"}


def test_an_unknown_name_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'ntkp2p' has no attribute 'predcit'"):
        ntkp2p.predcit  # noqa: B018
    assert not hasattr(ntkp2p, "predcit")
