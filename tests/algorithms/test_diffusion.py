import jax
import numpy as np
import pytest

from ntkp2p.algorithms import ATC, CTA, DGD, World

RNG = np.random.default_rng(0)
W = RNG.dirichlet(np.ones(5), size=5)
H = RNG.normal(size=(3, 3))
X = RNG.normal(size=(5, 3))
ETA = 0.07


def gradient(x):
    return np.tanh(x) @ H


# Each round once more, as the literature writes it for one agent q: Nedić and Ozdaglar 2009; Chen and Sayed 2012.
def dgd(q):
    return sum(W[q, r] * X[r] for r in range(5)) - ETA * gradient(X[q])


def cta(q):
    mixed = sum(W[q, r] * X[r] for r in range(5))
    return mixed - ETA * gradient(mixed)


def atc(q):
    return sum(W[q, r] * (X[r] - ETA * gradient(X[r])) for r in range(5))


@pytest.mark.parametrize(("algorithm", "expected"), [(DGD, dgd), (CTA, cta), (ATC, atc)])
def test_round_is_the_algorithm_of_the_literature(algorithm, expected):
    world = World(mix=lambda x: W @ x, grad=gradient)
    found = algorithm(step_size=ETA).round(X, world)
    np.testing.assert_allclose(found, [expected(q) for q in range(5)], rtol=1e-13)


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("step_size", [0, -1.0, float("nan"), float("inf"), "0.1", True, 1j])
def test_step_size_is_checked(algorithm, step_size):
    with pytest.raises(ValueError, match=r"step_size must be a finite positive number.*for instance"):
        algorithm(step_size=step_size)


def test_only_dgd_with_symmetric_weights_is_declared_symmetric():
    symmetric = (W + W.T) / 2
    assert DGD(step_size=0.1).is_symmetric(symmetric)
    assert not DGD(step_size=0.1).is_symmetric(W)
    assert not CTA(step_size=0.1).is_symmetric(symmetric)
    assert not ATC(step_size=0.1).is_symmetric(symmetric)


def test_textbook_step_size_is_the_edge_for_dgd_on_one_quadratic():
    # Every agent with the same Hessian: M = W ⊗ 1 − η h, whose extreme eigenvalue is λ_min(W) − η h.
    cycle = np.eye(4) / 2 + np.roll(np.eye(4), 1, 0) / 4 + np.roll(np.eye(4), -1, 0) / 4
    bound = DGD(step_size=1.0).stable_step_size(cycle, 3.0)
    edge = np.linalg.eigvalsh(cycle - bound * 3.0 * np.eye(4))
    assert np.abs(edge).max() == pytest.approx(1.0, abs=1e-12)


def test_no_textbook_step_size_where_its_hypotheses_fail():
    assert np.isnan(DGD(step_size=0.1).stable_step_size(W, 1.0))
    assert np.isnan(ATC(step_size=0.1).stable_step_size(W, 1.0))


def test_algorithms_are_pytrees_of_their_constants():
    assert jax.tree.leaves(DGD(step_size=0.1)) == [0.1]
