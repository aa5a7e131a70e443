"""Tables of an experiment, written down and made again: in TOML and as Python source it is the same one."""

import tomllib

import numpy as np
import pytest

from ntkp2p import Experiment
from ntkp2p.runs.tables import as_python, as_toml
from ntkp2p.topology.weights import WEIGHTS

TABLES = {
    "rounds": 12,
    "model": {"name": "affine"},
    "data": {"name": "regression", "samples": 12, "test_samples": 0, "features": 2},
    "split": {"agents": 4, "by": "label"},
    "mixing": {"graph": "cycle"},
    "algorithm": {"name": "DGD", "step_size": 0.1},
}
DGD = {"name": "DGD", "step_size": 0.1}
ALGORITHM_OF = {"push": {"name": "PushSum", "step_size": 0.1}}
CLOCK = {"clock": "exponential", "rate": 1.0}


def tables(**changed):
    return TABLES | changed


CASES = {
    "the usual weights": {},
    "of a directed graph": {"mixing": {"graph": "directed_ring"}, "algorithm": {"name": "PushSum", "step_size": 0.1}},
    "a graph with options": {"mixing": {"graph": "erdos_renyi: 4, 0.7, seed=3", "weights": "best_constant"}},
    **{
        name: {"mixing": {"graph": "erdos_renyi:4,0.8", "weights": name}, "algorithm": ALGORITHM_OF.get(name, DGD)}
        for name in WEIGHTS
    },
    "plain fields": {"record": [3, 5], "seed": 4, "batch_size": 2, "kernel_rtol": 1e-9, "precision": "float32"},
    "images": {
        "model": {"name": "mlp", "width": 8, "depth": 1, "activation": "erf"},
        "data": {"name": "digits", "classes": [3, 5], "samples": 12, "test_samples": 4},
        "split": {"agents": 4, "by": "dirichlet", "alpha": 3.0, "seed": 2},
    },
    "infinite width": {"model": {"name": "mlp", "width": float("inf"), "depth": 1}},
    "delays": {"algorithm": {"name": "DGD", "step_size": 0.1, "gradient_delay": 2, "message_delay": 1}},
    "compression": {
        "algorithm": {"name": "SparsePush", "step_size": 0.1, "compression": {"name": "top_k", "keep": 0.2}},
        "mixing": {"graph": "directed_ring", "weights": "push"},
    },
    "a file": {"mixing": {"file": "W.csv"}},
    "files": {"mixing": {"files": ["W.csv", "W.csv"]}},
    "agents' schedule": {"mixing": {"schedule": "one_peer_exponential"}},
    "a graph's schedule": {"mixing": {"schedule": "random_matchings", "graph": "star", "seed": 1}},
    "a matrix's schedule": {
        "mixing": {"schedule": "failing_links", "graph": "cycle", "weights": "metropolis", "probability": 0.2}
    },
    "clocks": {
        "mixing": {"scheme": "push", "graph": "cycle", "weights": "metropolis", "update": CLOCK, "gossip": CLOCK},
        "algorithm": {"name": "LocalSGD", "step_size": 0.1, "steps": 2},
    },
    "asynchronous, sampled": {
        "rounds": 80,
        "mixing": {
            "scheme": "push",
            "seed": 5,
            "update": [CLOCK, CLOCK, CLOCK, {"clock": "weibull", "shape": 2.0, "scale": 1.0}],
            "gossip": {"clock": "exponential", "rate": 2.0},
            "transmission": 0.1,
        },
        "algorithm": {"name": "LocalSGD", "step_size": 0.1},
    },
}


NEEDED = {"fastest_mixing": [pytest.mark.needs("cvxpy")]}


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDED.get(name, [])) for name in CASES])
def test_both_texts_make_the_same_experiment(name, tmp_path, monkeypatch):
    changed = CASES[name]
    monkeypatch.chdir(tmp_path)
    np.savetxt("W.csv", np.full((4, 4), 0.25), delimiter=",")
    described = tables(**changed)
    expected = Experiment.from_dict(described)
    made: dict = {}
    exec(as_python(described), made)
    assert made["experiment"].describe() == expected.describe()
    assert made["experiment"].rounds == expected.rounds
    assert made["experiment"].precision == expected.precision
    np.testing.assert_array_equal(made["experiment"].recorded, expected.recorded)
    assert tomllib.loads(as_toml(described)) == described


def test_toml_has_no_word_for_nothing():
    with pytest.raises(TypeError, match="cannot be written as TOML"):
        as_toml(tables(batch_size=None))
