"""Every name in a table may refer to a user's module: in TOML, shell, sweep and explorer."""

import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p import cli
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.registry import Registry, sources_in
from ntkp2p.runs.tables import as_python

PARTS = '''
import jax.numpy as jnp
import networkx as nx
import numpy as np

import ntkp2p as p2p


class Halved(p2p.DGD):
    """DGD with half the step."""

    def round(self, x, world, /):
        return world.mix(x) - self.step_size / 2 * world.grad(x)


class Half(p2p.Compressor):
    """Half of every value, drawn as all or nothing."""

    unbiased, share = True, 0.5

    def bits(self, size, /):
        return 16 * size

    def __call__(self, values, key, /):
        import jax

        return jnp.where(jax.random.bernoulli(key, 0.5, values.shape), values, 0)


def wheel(n, *, spokes: int = 0):
    return nx.wheel_graph(n) if not spokes else nx.star_graph(n - 1)


def uniform(graph):
    n = len(graph)
    return np.full((n, n), 1 / n)


def line(samples, *, slope: float = 2.0):
    x = np.linspace(-1, 1, samples)[:, None]
    return p2p.data.Dataset(name="line", inputs=x, targets=slope * x)


def two_halves(dataset, agents, rng):
    return np.array_split(np.arange(dataset.samples), agents)


def quadratic(*, scale: float = 1.0):
    def init(key, x):
        return {"a": jnp.zeros(1), "b": jnp.zeros(1)}

    def apply(params, x):
        return scale * (params["a"] * x + params["b"] * x**2)

    return init, apply


def halved_squares(outputs, targets):
    return ((outputs - targets) ** 2).sum(-1) / 2


class TwoHalves(p2p.Mixing):
    """In the first half of the rounds all agents mix, and then none does."""

    def __init__(self, agents, *, first: int):
        self.agents, self.first = agents, first

    def sample(self, rounds, seed, /):
        W = np.full((self.agents, self.agents), 1 / self.agents)
        return p2p.schedules.sequence([W] * self.first + [np.eye(self.agents)] * (rounds - self.first))


NUMBER = 3


def number(n):
    return 3
'''
TABLES = {
    "rounds": 10,
    "record": 3,
    "loss": "own.parts:halved_squares",
    "model": {"name": "own.parts:quadratic", "scale": 2.0},
    "data": {"name": "own.parts:line", "samples": 12},
    "split": {"agents": 4, "by": "own.parts:two_halves"},
    "mixing": {"graph": "own.parts:wheel", "weights": "own.parts:uniform"},
    "algorithm": {"name": "own.parts:Halved", "step_size": 0.2},
}
NAMED = {
    "model": {"name": "affine"},
    "data": {"name": "regression", "samples": 12, "test_samples": 0, "features": 1},
    "split": {"agents": 4, "by": "iid"},
    "mixing": {"graph": "cycle"},
    "algorithm": {"name": "DGD", "step_size": 0.1},
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder that has the package `own`."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "own" / "parts.py").write_text(PARTS)
    (tmp_path / "own" / "lacking.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        del sys.modules[name]


@pytest.fixture
def toml(own):
    path = own / "experiment.toml"
    path.write_text(p2p.runs.tables.as_toml(TABLES))
    return path


def test_toml_describes_what_python_builds(toml):
    read = p2p.Experiment.from_toml(toml)
    parts = sys.modules["own.parts"]
    built = p2p.Experiment(
        model=parts.quadratic(scale=2.0),
        data=p2p.data.AgentData(dataset=parts.line(12), indices=tuple(np.split(np.arange(12), 4))),
        mixing=np.full((4, 4), 0.25),
        algorithm=p2p.DGD(step_size=0.1),
        rounds=10,
        record=3,
    )
    expected, trained = p2p.predict(built).dataset, p2p.train(read).dataset
    predicted = p2p.predict(read, time="rounds").dataset
    np.testing.assert_allclose(predicted["local_loss"], expected["local_loss"], rtol=1e-6)
    np.testing.assert_allclose(trained["local_loss"], expected["local_loss"], rtol=1e-6)


def test_python_source_imports_the_modules(own):
    tables = {name: value for name, value in TABLES.items() if name != "loss"} | {"seed": 4}
    source, made = as_python(tables), {}
    assert "import own.parts\n" in source
    exec(source, made)
    assert made["experiment"].describe() == p2p.Experiment.from_dict(tables).describe()
    with pytest.raises(InputError, match="give its module another name"):
        as_python(tables | {"model": {"name": "p2p.parts:quadratic"}})


def test_mixing_is_named_as_a_schedule(own):
    named = {"rounds": 10, **NAMED, "mixing": {"schedule": "own.parts:TwoHalves", "first": 4}}
    consensus = p2p.predict(p2p.Experiment.from_dict(named)).dataset["consensus_distance"].max("agent")
    assert consensus.sel(round=[4, 10]).diff("round").item() > 0.01  # they part again
    made = {}
    exec(as_python(named), made)
    assert made["experiment"].describe() == p2p.Experiment.from_dict(named).describe()


def test_a_compressor_is_asked_for_its_bytes(own):
    compressed = {"name": "CHOCO", "step_size": 0.1, "averaging_rate": 0.5, "compression": {"name": "own.parts:Half"}}
    run = p2p.Experiment.from_dict({"rounds": 10, **NAMED, "algorithm": compressed})
    assert p2p.predict(run).dataset.attrs["mean_over"] == "Half"
    # An agent sends a slope and an offset, of 16 bits each, to two neighbours.
    np.testing.assert_array_equal(p2p.communication(run).bytes, np.full((10, 4), 2 * 2 * 2))


def test_the_shell_finds_modules_in_the_current_folder(toml):
    environment = os.environ | {"PYTHONPATH": str(p2p.__path__[0]).removesuffix("ntkp2p")}
    program = "from ntkp2p.cli import main; main()"
    for arguments in (["predict", "experiment.toml", "--json", "--quiet"], ["check", "--graph", "own.parts:wheel:8"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments], cwd=toml.parent, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
    assert "8 × 8" in done.stdout.decode()


def test_a_sweep_has_names_among_its_values(own, tmp_path, capsys):
    (tmp_path / "plain.toml").write_text(p2p.runs.tables.as_toml({"rounds": 10, **NAMED}))
    values = ("algorithm.name=DGD,own.parts:Halved", "mixing.graph=own.parts:wheel,own.parts:wheel:4")
    settings = [word for value in values for word in ("--set", value)]
    out = tmp_path / "cells"
    with pytest.raises(SystemExit) as exit:
        cli.main(["sweep", str(tmp_path / "plain.toml"), *settings, "--out", str(out), "--json", "--quiet"])
    assert not exit.value.code, capsys.readouterr().err
    assert len(list(out.glob("*.nc"))) == 4


def test_a_changed_module_is_another_experiment(own):
    before = sources_in(TABLES)
    assert not before  # nothing is imported yet
    p2p.Experiment.from_dict(TABLES)
    before = sources_in(TABLES)
    assert set(before) == {"own.parts"}
    (own / "own" / "parts.py").write_text(PARTS.replace("slope * x)", "-slope * x)"))
    assert sources_in(TABLES) != before


def test_the_explorer_begins_with_names(own):
    pytest.importorskip("ipywidgets")
    explorer = p2p.explore({name: value for name, value in TABLES.items() if name != "loss"})
    assert explorer.graph.value == "own.parts:wheel"
    assert explorer.algorithm.value == "own.parts:Halved"
    explorer.step_size.value = 0.4
    assert explorer.experiment.algorithm.step_size == 0.4
    expected = p2p.predict(explorer.experiment).dataset["local_loss"]
    np.testing.assert_allclose(explorer.predicted["rounds"].dataset["local_loss"], expected, rtol=1e-9)
    explorer.agents.value = 3
    assert tomllib.loads(explorer.toml())["mixing"]["graph"] == "own.parts:wheel"


@pytest.mark.parametrize(
    ("table", "entries", "message"),
    [
        ("algorithm", {"name": "own.parts:Halvd", "step_size": 0.1}, "has no 'Halvd' (did you mean 'Halved'?)"),
        ("algorithm", {"name": "own.part:Halved", "step_size": 0.1}, "no module 'own.part': add its folder to"),
        ("algorithm", {"name": "own.lacking:X", "step_size": 0.1}, "own.lacking imports a_package_that_nobody_has"),
        ("algorithm", {"name": "own.parts:NUMBER", "step_size": 0.1}, "is 3, which cannot be called"),
        ("algorithm", {"name": "own.parts:Half", "step_size": 0.1}, "is a class that is no Algorithm"),
        ("algorithm", {"name": "own.parts:Halved"}, "[algorithm] needs step_size"),
        ("algorithm", {"name": "DGDs", "step_size": 0.1}, "unknown algorithm 'DGDs' (did you mean 'DGD'?)"),
        ("mixing", {"graph": "own.parts:number"}, "graph 'own.parts:number' returns int: it must return Graph"),
        ("mixing", {"graph": "own.parts:wheel:x"}, "n is a number, got 'x'"),
        ("mixing", {"graph": "own.parts:wheel:4,5"}, "write own.parts:wheel:n[,spokes=…]"),
        ("mixing", {"graph": "cycle", "weights": "own.parts:number"}, "what own.parts:number returns"),
        ("data", {"name": "own.parts:number", "n": 4}, "data set 'own.parts:number' returns int"),
        ("data", {"name": "own.parts:line"}, "needs samples"),
        ("model", {"name": "own.parts:quadratic", "width": 3}, "width"),
        ("split", {"agents": 4, "by": "own.parts:nothing"}, "has no 'nothing'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(own, table, entries, message):
    with pytest.raises((InputError, InputTypeError)) as error:
        p2p.Experiment.from_dict({"rounds": 10, **NAMED, table: entries})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_of_a_module_reach_its_author(own):
    (own / "own" / "broken.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        Registry("graph", {})["own.broken:x"]
