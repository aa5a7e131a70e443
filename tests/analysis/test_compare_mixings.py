"""Mixing matrices side by side: published values, and rounds that training confirms."""

import dataclasses
import sys

import networkx as nx
import numpy as np
import pytest

from ntkp2p import DGD, Experiment, compare_mixings, graphs, metropolis, models, train
from ntkp2p.analysis import compare_mixings as analysis_compare_mixings

BOYD = nx.empty_graph(8)
BOYD.add_edges_from([(0, 1), (1, 2), (2, 3), (0, 4), (1, 7), (1, 3), (4, 5)])
BOYD.add_edges_from([(4, 6), (2, 6), (3, 7), (5, 6), (6, 7), (1, 6)])
MODULI = {
    "metropolis(graph)": 0.81255,
    "max_degree(graph)": 0.81605,
    "best_constant(graph)": 0.71186,
    "lazy(metropolis(graph))": (1 + 0.81255) / 2,
    "fastest_mixing(graph)": 0.68096,
    "fastest_mixing(graph, nonnegative=False)": 0.64333,
}


@pytest.fixture
def experiment(digits):
    return Experiment(
        model=models.affine(),
        data=digits(agents=4, samples=24),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=60,
    )


@pytest.mark.parametrize("fastest", [False, pytest.param(True, marks=pytest.mark.needs("cvxpy"))])
def test_boyds_graph(fastest):
    found = compare_mixings(BOYD)
    assert list(found.table.index) == list(MODULI)
    names = [name for name in MODULI if fastest == name.startswith("fastest_mixing")]
    table = found.table.loc[names]
    assert dict(table["second_modulus"]) == pytest.approx({name: MODULI[name] for name in names}, abs=1e-5)
    np.testing.assert_allclose(table["spectral_gap"], 1 - table["second_modulus"])
    for name in names:
        values = np.linalg.eigvalsh(found.matrices[name]) ** 2
        expected = 8 / (0.1 * np.sum(values / (1 - 0.9 * values)))
        assert table["effective_neighbours"][name] == pytest.approx(expected)


def test_the_names_are_what_one_types():
    import ntkp2p as p2p

    typed = {name: getattr(p2p, name) for name in p2p.__all__} | {"graph": BOYD}
    for name, W in compare_mixings(BOYD).matrices.items():
        np.testing.assert_array_equal(eval(name, typed), W)


def test_predicted_rounds_are_trained_rounds(experiment, monkeypatch):
    graph, two = graphs.path(4), ("metropolis(graph)", "best_constant(graph)")
    monkeypatch.setattr(
        analysis_compare_mixings, "MIXINGS", {name: analysis_compare_mixings.MIXINGS[name] for name in two}
    )
    found = compare_mixings(graph, experiment=experiment)
    for name in two:
        rounds = int(found.table["rounds"][name])
        run = dataclasses.replace(experiment, mixing=found.matrices[name], rounds=rounds, record=[rounds - 1])
        start, *_, before, after = train(run).dataset["global_loss"].mean("agent").values
        assert found.target == pytest.approx(0.1 * start)
        assert after <= found.target < before
    assert "rounds until the mean global loss is" in repr(found)
    assert "<td>" in found._repr_html_()


def test_a_target_that_is_not_reached_is_a_dash_and_a_note(experiment, monkeypatch):
    monkeypatch.setattr(analysis_compare_mixings, "MIXINGS", {"metropolis(graph)": metropolis})
    monkeypatch.setattr(analysis_compare_mixings, "rounds_to_loss", lambda run, target, features: None)
    found = compare_mixings(graphs.path(4), experiment=experiment, target=1e-6)
    assert np.isnan(found.table["rounds"]["metropolis(graph)"])
    assert repr(found).endswith("—  not reached in 1,000,000 rounds")
    assert "<td>not reached in 1,000,000 rounds</td>" in found._repr_html_()


def test_what_a_row_lacks_is_said_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    table = compare_mixings(BOYD).table
    assert "pip install 'ntkp2p[optimal]'" in table["note"]["fastest_mixing(graph)"]
    assert np.isnan(table["second_modulus"]["fastest_mixing(graph)"])
    assert table["note"]["metropolis(graph)"] == ""
    table = compare_mixings(graphs.cycle(101)).table
    assert "left out above 100 agents" in table["note"]["fastest_mixing(graph)"]


def test_refuses_what_does_not_fit(experiment):
    with pytest.raises(ValueError, match="graph has 5 nodes and the experiment 4 agents"):
        compare_mixings(graphs.cycle(5), experiment=experiment)
    with pytest.raises(ValueError, match="give experiment="):
        compare_mixings(graphs.cycle(5), target=0.1)
    with pytest.raises(ValueError, match="directed"):
        compare_mixings(nx.DiGraph([(0, 1)]))
