"""What is not installed, or cannot be imported, is refused in one line that says what to install."""

import importlib
import subprocess
import sys

import h5netcdf  # noqa: F401  (imported once with h5py, before a test hides it: it remembers)
import h5py  # noqa: F401
import pytest

import ntkp2p as p2p
from ntkp2p import cli
from ntkp2p.base.files import netcdf_engine
from ntkp2p.base.imports import needed

TOML = """
rounds = 4
model = {name = "affine"}
data = {name = "digits", samples = 8}
split = {agents = 2}
mixing = {graph = "complete", weights = "metropolis"}
algorithm = {name = "DGD", step_size = 0.1}
"""


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """`refused(*typed)`: the one line with which a command ends, exit code 2. It runs in a new folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.toml").write_text(TOML)

    def line(*typed):
        with pytest.raises(SystemExit) as exit:
            cli.main(typed)
        out, err = capsys.readouterr()
        assert (exit.value.code, out, err.count("\n")) == (2, "", 1), err
        return err

    return line


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with (
        pytest.raises(ImportError, match=r"^this needs cvxpy and clarabel, but .* pip install 'ntkp2p\[optimal\]'$"),
        needed("this", "optimal"),
    ):
        import cvxpy  # noqa: F401
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="netCDF needs h5py, which is not installed: pip install h5py"):
        netcdf_engine()


@pytest.mark.parametrize("error", [ImportError("lib.so: cannot open"), ValueError("dtype size changed")])
def test_a_broken_package_is_not_called_missing(error):
    with pytest.raises(ImportError, match=f"cannot be imported .{error}.: pip install --force-reinstall distributed"):  # noqa: SIM117
        with needed("a Dask cluster", "cluster"):
            raise error


def test_a_module_that_a_version_lacks_is_not_missing():
    with pytest.raises(ImportError, match=r"installed but cannot be imported .No module named 'numpy.none'"):  # noqa: SIM117
        with needed("this", "infinite"):
            import numpy.none  # noqa: F401  # pyright: ignore[reportMissingImports]


@pytest.mark.parametrize(
    ("module", "extra", "typed"),
    [
        ("cvxpy", "optimal", ["check", "--graph", "cycle:6", "--weights", "fastest_mixing"]),
        (
            "distributed",
            "cluster",
            ["sweep", "experiment.toml", "--set", "algorithm.step_size=0.1", "--scheduler", "tcp://127.0.0.1:1"],
        ),
    ],
)
def test_a_command_names_the_extra(module, extra, typed, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert refused(*typed).endswith(f"pip install 'ntkp2p[{extra}]'\n")


@pytest.mark.parametrize("module", ["h5py", "h5netcdf"])
@pytest.mark.parametrize("command", ["predict", "train", "compare", "sweep", "figures"])
def test_a_command_that_cannot_save_does_not_begin(command, module, refused, monkeypatch, tmp_path):
    """Nothing is computed, and no folder is left."""
    monkeypatch.setitem(sys.modules, module, None)
    for home, work in (
        ("runs.prediction", "predictions"),
        ("runs.training", "train"),
        ("figures.draw", "Study"),
        ("analysis.sweep", "_cells"),
    ):
        monkeypatch.setattr(importlib.import_module(f"ntkp2p.{home}"), work, None)
    setting = ["--set", "algorithm.step_size=0.1"] if command == "sweep" else []
    typed = ["--quick"] if command == "figures" else ["experiment.toml", *setting]
    assert f"needs {module}, which is not installed: pip install {module}" in refused(command, *typed)
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.toml"]


def test_python_cannot_save_either(monkeypatch, tmp_path):
    (tmp_path / "experiment.toml").write_text(TOML)
    run = p2p.train(p2p.Experiment.from_toml(tmp_path / "experiment.toml"))
    saved = run.save(tmp_path / "run.nc")
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none/run.nc .*: choose another folder"):
        run.save(tmp_path / "none" / "run.nc")
    monkeypatch.setitem(sys.modules, "h5py", None)
    for action in (lambda: run.save(tmp_path / "other.nc"), lambda: p2p.Trajectory.load(saved)):
        with pytest.raises(ImportError, match="needs h5py, which is not installed"):
            action()
    with pytest.raises(ImportError, match="needs h5py, which is not installed"):
        p2p.sweep(tmp_path / "experiment.toml", {"seed": [0, 1]}, out=tmp_path / "sweep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.toml", "run.nc"]


def test_an_incomplete_installation_is_no_defect(tmp_path):
    """Where a dependency is missing that every command needs."""
    program = (
        "import sys; sys.modules['networkx'] = None; from ntkp2p.cli import main; main(['check', '--graph', 'cycle:5'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "ntkp2p: ntkp2p needs networkx, which is not installed: pip install ntkp2p installs what is missing\n"
    )
