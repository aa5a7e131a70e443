import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

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
    world = World(mix=lambda x: W @ x, grad=gradient, own=lambda x: np.diagonal(W)[:, None] * x)
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
    bound = DGD(step_size=1.0).sufficient_step_size(cycle, 3.0)
    edge = np.linalg.eigvalsh(cycle - bound * 3.0 * np.eye(4))
    assert np.abs(edge).max() == pytest.approx(1.0, abs=1e-12)


def test_no_textbook_step_size_where_its_hypotheses_fail():
    assert np.isnan(DGD(step_size=0.1).sufficient_step_size(W, 1.0))
    assert np.isnan(ATC(step_size=0.1).sufficient_step_size(W, 1.0))


@pytest.mark.parametrize("kind", [DGD, CTA, ATC])
def test_a_round_has_a_derivative_by_the_step_size(kind):
    world = World(mix=lambda x: W @ x, grad=lambda x: jnp.tanh(x) @ H, own=lambda x: np.diag(W)[:, None] * x)
    found = jax.jacfwd(lambda algorithm: algorithm.round(X, world))(kind(step_size=0.07)).step_size
    above, below = (kind(step_size=eta).round(X, world) for eta in (0.08, 0.06))  # a round is affine in η
    rounding = 2 * float(np.finfo(np.float32).eps) * float(np.abs(above).max()) / 0.02
    np.testing.assert_allclose(found, (above - below) / 0.02, rtol=0, atol=rounding)


MIXINGS = {
    "symmetric": np.array([[0.4, 0.6, 0.0], [0.6, 0.1, 0.3], [0.0, 0.3, 0.7]]),
    "doubly stochastic": 0.3 * np.eye(3) + 0.7 * np.roll(np.eye(3), 1, axis=1),
    "row-stochastic": np.array([[0.5, 0.5, 0.0], [0.1, 0.6, 0.3], [0.05, 0.0, 0.95]]),
}


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_the_declared_growth_bounds_all_powers_and_the_flow(algorithm, mixing, share):
    """M^k and exp((M − I) k) of linear models with any Hessians stay below what the algorithm declares."""
    matrix, rng = MIXINGS[mixing], np.random.default_rng(0)
    for trial in range(8):
        factors = rng.normal(size=(3, 2, 4)) * rng.choice([0.1, 1, 3], size=(3, 1, 1))
        hessians = np.einsum("qnr,qns->qrs", factors, factors)
        curvature = float(np.linalg.eigvalsh(hessians).max())
        limits = [2 * np.diagonal(matrix).min(), 1 + np.linalg.eigvalsh(matrix)[0] if mixing == "symmetric" else 0.0]
        eta = share * (max(limits) if algorithm is DGD else 2.0) / curvature
        growth = algorithm(step_size=eta).growth(matrix, curvature)
        assert np.isfinite(growth)
        hessian, mix = scipy.linalg.block_diag(*hessians), np.kron(matrix, np.eye(4))
        step = np.eye(12) - eta * hessian
        one = {DGD: mix - eta * hessian, CTA: step @ mix, ATC: mix @ step}[algorithm]
        for first in (one, scipy.linalg.expm(one - np.eye(12)), scipy.linalg.expm(0.3 * (one - np.eye(12)))):
            power = np.eye(12)
            for _ in range(30 if trial else 300):
                power = first @ power
                assert np.linalg.norm(power, 2) <= growth * (1 + 1e-9)


def test_no_growth_is_declared_beyond_what_is_known():
    matrix = MIXINGS["row-stochastic"]
    assert np.isnan(DGD(step_size=1.01).growth(matrix, 1.0))
    assert np.isnan(CTA(step_size=2.01).growth(matrix, 1.0))
    assert np.isnan(ATC(step_size=0.1).growth(matrix - 0.1, 1.0))
    assert np.isnan(ATC(step_size=0.1).growth(np.array([[1.2, -0.2], [0.3, 0.7]]), 1.0))
