import importlib

import numpy as np
import pytest

from ntkp2p import graphs, metropolis, schedules
from ntkp2p.dynamics.mean_square import draws, gossip

mean_square = importlib.import_module("ntkp2p.dynamics.mean_square")


def pairs(agents):
    """Every pair's mean, drawn uniformly: the classic randomised gossip."""
    e = np.eye(agents)
    return np.array([e - np.outer(e[i] - e[j], e[i] - e[j]) / 2 for i in range(agents) for j in range(i)])


@pytest.mark.parametrize("agents", [3, 8, 25])
def test_uniform_pairs_have_a_known_rate(agents):
    """A pair's mean is a projection, E[W²] = E[W], whose eigenvalue off 1 is 1 − 1/(Q − 1): in both senses."""
    found = gossip(pairs(agents))
    assert found.mean == pytest.approx(1 - 1 / (agents - 1), rel=1e-9)
    assert found.mean_square == pytest.approx(1 - 1 / (agents - 1), rel=1e-7)


def test_one_matrix_is_its_own_second_modulus():
    W = metropolis(graphs.path(6))
    second = np.sort(np.abs(np.linalg.eigvalsh(W)))[-2]
    found = gossip(W[None])
    assert found.mean == pytest.approx(second)
    assert found.mean_square == pytest.approx(second**2)


def test_many_agents_are_iterated(monkeypatch):
    W = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 5))
    dense = gossip(W, np.array([0.5, 0.3, 0.2]))
    monkeypatch.setattr(mean_square, "DENSE_SIZE", 0)
    iterated = gossip(W, np.array([0.5, 0.3, 0.2]))
    assert iterated.mean_square == pytest.approx(dense.mean_square, rel=1e-7)
    assert 0 < iterated.residual < 1e-7


def test_stable_in_the_mean_and_not_in_the_mean_square():
    """Half of the time keen, half of the time lazy: E[W] averages, E‖d‖² grows."""
    keen = np.array([[-0.7, 1.7], [1.7, -0.7]])
    found = gossip(np.stack([keen, np.eye(2)]))
    assert found.mean == pytest.approx((1 - 2.4) / 2 * -1)
    assert found.mean_square == pytest.approx((2.4**2 + 1) / 2)


def test_the_mean_square_rate_is_that_of_simulated_disagreement():
    """4,000 runs: E‖d_k‖² between rounds 10 and 20 falls by the rate, within four standard errors."""
    schedule = schedules.random_matchings(graphs.cycle(6), 300, seed=1)
    matrices, p = draws(schedule)
    rate = gossip(matrices, p).mean_square
    rng = np.random.default_rng(0)
    d = np.tile(rng.normal(size=6), (4000, 1))
    sizes = []
    for k in range(21):
        d = d - d.mean(axis=1, keepdims=True)
        if k in (10, 20):
            sizes.append(np.sum(d**2, axis=1))
        d = np.einsum("nij,nj->ni", matrices[rng.choice(len(p), size=len(d), p=p)], d)
    logs = [np.log(size.mean()) for size in sizes]
    errors = [size.std() / size.mean() / np.sqrt(len(size)) for size in sizes]
    assert logs[1] - logs[0] == pytest.approx(10 * np.log(rate), abs=4 * np.hypot(*errors))
    # The mean alone is not the mean square: a test by it would fail here.
    assert abs(10 * np.log(gossip(matrices, p).mean ** 2) - 10 * np.log(rate)) > 8 * np.hypot(*errors)


def test_draws_are_a_schedules_frequencies():
    A, B = np.eye(2), np.full((2, 2), 0.5)
    matrices, p = draws(schedules.sequence([A, B, B, B]))
    np.testing.assert_array_equal(matrices, [A, B])
    np.testing.assert_array_equal(p, [0.25, 0.75])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="sum to one"):
        gossip(pairs(3), np.array([0.5, 0.5, 0.5]))
    with pytest.raises(ValueError, match="row sums of one"):
        gossip(np.full((1, 2, 2), 0.4))
