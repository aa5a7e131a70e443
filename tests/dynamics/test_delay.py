"""Delays: textbook values, and oracles that know nothing of the methods."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special

from ntkp2p import ATC, CTA, DGD, Delayed, graphs, lazy, linear_system, metropolis, schedules
from ntkp2p.data import AgentData, Dataset
from ntkp2p.dynamics import (
    characteristic_roots,
    delay,
    delay_margin,
    delay_margin_in_rounds,
    delay_matrices,
    delayed_radius,
    spectrum,
    sufficient_delay,
)
from ntkp2p.kernels import Features

ZERO = np.zeros((1, 1))


def one(value):
    return np.array([[value]])


def upper(roots):
    """Of a pair, rounding decides which is the first."""
    return roots.real + 1j * np.abs(roots.imag)


def linear(matrix, sizes, rng):
    """Linear models with these features, and their agents' data."""
    rows = len(matrix)
    data = Dataset(name="numbers", inputs=rng.normal(size=(rows, 2)), targets=rng.normal(size=(rows, 1)))
    ends = np.cumsum(sizes)
    owned = AgentData(dataset=data, indices=tuple(np.arange(e - s, e) for s, e in zip(sizes, ends, strict=True)))
    features = Features(
        matrix=matrix,
        columns=1,
        initial=np.zeros((rows, 1)),
        error=0.0,
        initial_at=lambda x: np.zeros((len(x), 1)),
        matrix_at=lambda x: matrix,
        parameters=None,
    )
    return features, owned


def random_system(n, seed):
    """Nonsymmetric, without common eigenvectors, stable without delay."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n, n)) / np.sqrt(n)
    return first - 1.2 * np.eye(n), 0.8 * second - 0.9 * np.eye(n)


# x' = −a x(t − τ) and x_{k+1} = x_k − η h x_{k−τ}.


@pytest.mark.parametrize(("late", "expected"), [(0, 2.0), (1, 1.0), (2, 0.61803), (5, 0.28463), (10, 0.14946)], ids=str)
def test_the_textbooks_largest_step_of_late_gradients(late, expected):
    features, data = linear(one(1.3), [1], np.random.default_rng(0))
    h = 1.3**2

    def beyond(step):
        system = linear_system(Delayed(DGD(step_size=step / h), gradients=late), one(1.0), features, data)
        assert system.size == 1 + late
        return spectrum(system).radius - 1

    edge = scipy.optimize.brentq(beyond, 0.05, 2.5, xtol=1e-9)
    assert edge == pytest.approx(expected, abs=5e-6)
    assert edge == pytest.approx(2 * np.sin(np.pi / (2 * (2 * late + 1))), abs=1e-7)
    A0, A1 = delay_matrices(DGD(step_size=0.99 * edge / h), one(1.0), features, data)
    np.testing.assert_allclose(np.append(A0, A1), [0, -h], atol=1e-12)
    assert delay_margin_in_rounds(A0, A1, 0.99 * edge / h, most=20) == late
    assert delay_margin_in_rounds(A0, A1, 1.01 * edge / h, most=20) < late


@pytest.mark.parametrize("product", [0.05, 0.3, 0.4, 1.0, 1.5, 1.6, 4.0])
def test_roots_of_a_delayed_step_are_lamberts(product):
    a = 0.7
    tau = product / a
    found = characteristic_roots(ZERO, one(-a), tau, count=4)
    branches = scipy.special.lambertw(-a * tau, np.arange(-5, 6)) / tau
    expected = branches[np.argsort(-branches.real)][:4]
    np.testing.assert_allclose(upper(found.values), upper(expected), rtol=1e-12, atol=1e-13)
    assert found.method == "Lambert W"
    assert found.residuals.max() < 1e-14
    assert (found.values[0].real < 0) == (a * tau < np.pi / 2)
    assert (abs(found.values[0].imag) < 1e-12) == (a * tau <= 1 / np.e)


def test_decay_is_fastest_at_the_edge_of_oscillation():
    def slowest(product):
        return characteristic_roots(ZERO, one(-1.0), product).values[0].real * product

    # At τ = 1/(a e) two roots meet at −1/τ, to the square root of rounding.
    assert slowest(1 / np.e) == pytest.approx(-1.0, abs=1e-7)
    rate = {product: slowest(product) / product for product in (0.9 / np.e, 1 / np.e, 1.1 / np.e)}
    assert min(rate, key=lambda product: rate[product]) == 1 / np.e


@pytest.mark.parametrize(("a", "b"), [(0.0, -2.0), (-0.5, -1.0), (-1.0, -1.1), (0.3, -0.9)])
def test_the_margin_of_one_mode(a, b):
    # iω = a + b e^{−iωτ}: ω² = b² − a², cos ωτ = −a / b.
    expected = np.arccos(-a / b) / np.sqrt(b * b - a * a)
    assert delay_margin(one(a), one(b)) == pytest.approx(expected, rel=1e-12)
    assert sufficient_delay(one(a), one(b)) == pytest.approx(np.pi / (-2 * b)) or a > 0


def test_margins_at_the_ends():
    assert delay_margin(one(-3.0), one(-2.0)) == np.inf  # |b| < −a: at no delay
    assert delay_margin(one(0.1), one(0.0)) == 0  # unstable without
    assert delay_margin(np.array([[0.0, 1.0], [-1.0, 0.0]]), np.zeros((2, 2))) == 0  # on the axis
    assert delay_margin(np.array([[0.0, 1.0], [0.0, 0.0]]), np.zeros((2, 2))) == 0  # grows like t
    assert delay_margin(ZERO, ZERO) == np.inf
    # What stays at 0 is left out; s = 1 − e^{−sτ} has a second root 0 at τ = 1.
    assert delay_margin(np.zeros((2, 2)), np.diag([0.0, -2.0])) == pytest.approx(np.pi / 4, rel=1e-12)
    assert delay_margin(one(1.0), one(-1.0)) == pytest.approx(1.0, rel=1e-12)
    assert delay_margin_in_rounds(ZERO, one(-1.0), 2.1) == -1
    assert delay_margin_in_rounds(one(-1.0), one(-0.5), 0.5, most=7) == 7
    assert sufficient_delay(ZERO, ZERO) == np.inf
    assert np.isnan(sufficient_delay(one(0.1), one(-1.0)))
    assert np.isnan(sufficient_delay(np.eye(2, k=1), -np.eye(2)))


# The general case.


@pytest.mark.parametrize("seed", range(3))
def test_roots_are_all_that_the_argument_principle_counts(seed):
    A0, A1 = random_system(3, seed)
    tau = 1.3
    found = characteristic_roots(A0, A1, tau, count=9)
    assert found.method == "discretisation"
    assert found.residuals.max() < 1e-13
    real = found.values.real
    gap = np.argmax(real[:-1] - real[1:])  # an edge between two roots, and a box that all to the right of it are in
    edge = (real[gap] + real[gap + 1]) / 2
    top = np.linalg.norm(A0, 2) + np.linalg.norm(A1, 2) * np.exp(-edge * tau) + 1
    corners = np.array([edge - 1j * top, top - 1j * top, top + 1j * top, edge + 1j * top, edge - 1j * top])
    fractions = np.linspace(0, 1, 4000, endpoint=False)
    path = np.concatenate([a + (b - a) * fractions for a, b in pairwise(corners)])
    values = np.linalg.det(path[:, None, None] * np.eye(3) - A0 - A1 * np.exp(-path * tau)[:, None, None])
    turns = np.angle(np.roll(values, -1) / values)
    assert np.abs(turns).max() < 1  # the path is fine enough to count by
    assert round(turns.sum() / (2 * np.pi)) == gap + 1


def test_the_rightmost_root_is_how_a_solution_decays():
    """By the classical Runge–Kutta method over steps of τ/m, interpolating what is past by cubics."""
    A0, A1 = random_system(3, 1)
    tau, m, turns = 0.8, 40, 80
    step = tau / m
    s = characteristic_roots(A0, A1, tau, count=3).values
    assert s[0].real - s[2].real > 0.2  # one mode, or a pair, is left in the end
    x = [np.ones(3)] * (m + 1)
    slopes = [np.zeros(3)] * (m + 1)
    for k in range(m, m * (turns + 1)):
        middle = (x[k - m] + x[k - m + 1]) / 2 + step / 8 * (slopes[k - m] - slopes[k - m + 1])
        late = A1 @ x[k - m], A1 @ middle, A1 @ x[k - m + 1]
        k1 = A0 @ x[k] + late[0]
        k2 = A0 @ (x[k] + step / 2 * k1) + late[1]
        k3 = A0 @ (x[k] + step / 2 * k2) + late[1]
        k4 = A0 @ (x[k] + step * k3) + late[2]
        slopes[k:] = [k1]
        x.append(x[k] + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        slopes.append(A0 @ x[-1] + A1 @ x[k - m + 1])
    # A real signal of one pair obeys x(t + 2h) = 2 e^{σh} cos(ωh) x(t + h) − e^{2σh} x(t).
    far = np.array(x[-1 - 5 * m :: m])[:, :]
    first, second, third = far[:-2].ravel(), far[1:-1].ravel(), far[2:].ravel()
    (twice, minus), *_ = np.linalg.lstsq(np.stack([second, first], axis=1), third)
    rates = np.log(np.roots([1, -twice, -minus]).astype(complex)) / tau
    assert rates.real.max() == pytest.approx(s[0].real, rel=1e-4)
    assert np.abs(rates.imag).max() == pytest.approx(abs(s[0].imag), rel=1e-4)


def test_decoupled_modes_are_what_the_discretisation_finds(monkeypatch):
    rng = np.random.default_rng(0)
    V = rng.normal(size=(4, 4))
    for left, right in ((V, np.linalg.inv(V)), (q := np.linalg.qr(V)[0], q.T)):
        # Two modes alike, one without delay, and one that decays at a rate of 900 a delay.
        A0, A1 = left @ np.diag([-0.5, -0.5, -1.0, -900]) @ right, left @ np.diag([-1.0, -1.0, 0, -300]) @ right
        monkeypatch.undo()
        by_modes = characteristic_roots(A0, A1, 1.0, count=7)
        assert by_modes.method == "Lambert W"
        monkeypatch.setattr(delay, "_common_modes", lambda A0, A1: None)
        found = characteristic_roots(A0, A1, 1.0, count=7)
        np.testing.assert_allclose(upper(found.values), upper(by_modes.values), rtol=1e-9, atol=1e-9)
        assert max(by_modes.residuals.max(), found.residuals.max()) < 1e-12


def margin_by_kronecker_sums(A0, A1):
    """On the axis 0 is an eigenvalue of (A₀ + A₁ z) ⊕ conj(·), |z| = 1: a quadratic problem in z, all at once."""
    n = len(A0)
    eye, size = np.eye(n), n * n
    quadratic, middle, last = np.kron(A1, eye), np.kron(A0, eye) + np.kron(eye, A0), np.kron(eye, A1)
    first = np.block([[middle, last], [-np.eye(size), np.zeros((size, size))]])
    second = np.block([[-quadratic, np.zeros((size, size))], [np.zeros((size, size)), -np.eye(size)]])
    z = scipy.linalg.eigvals(first, second)
    z = z[np.isfinite(z)]
    delays = [np.inf]
    for on_circle in z[np.abs(np.abs(z) - 1) < 1e-7]:
        values = np.linalg.eigvals(A0 + A1 * on_circle)
        for w in values[np.abs(values.real) < 1e-6].imag:
            delays.append(np.mod(-np.angle(on_circle) * np.sign(w), 2 * np.pi) / abs(w))
    return min(delays)


@pytest.mark.parametrize("seed", range(12))
def test_the_margin_is_the_first_crossing(seed):
    A0, A1 = random_system(2 + seed % 3, seed)
    expected = margin_by_kronecker_sums(A0, A1) if np.linalg.eigvals(A0 + A1).real.max() < 0 else 0.0
    found = delay_margin(A0, A1)
    assert found == pytest.approx(expected, rel=1e-6)
    if 0 < found < np.inf:
        below, above = (characteristic_roots(A0, A1, f * found, count=2).values[0].real for f in (0.999, 1.001))
        assert below < 0 < above


def test_some_of_these_margins_are_finite():
    margins = [delay_margin(*random_system(2 + seed % 3, seed)) for seed in range(12)]
    assert sum(0 < margin < np.inf for margin in margins) >= 3


# From an algorithm's round.

W = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(5, 2))
    features, data = linear(matrix, [1, 2, 2], rng)
    hessian = scipy.linalg.block_diag(
        *(matrix[own].T @ matrix[own] / len(own) for own in (np.array([0]), np.array([1, 2]), np.array([3, 4])))
    )
    return features, data, hessian


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("late", ["gradients", "messages"])
def test_matrices_are_those_by_hand(algorithm, late, models):
    features, data, H = models
    eta, eye = 0.2, np.eye(6)
    mix, own = np.kron(W, np.eye(2)), np.kron(np.diag(np.diag(W)), np.eye(2))
    step = eye - eta * H
    A0, A1 = {
        (DGD, "gradients"): (mix, -eta * H),
        (CTA, "gradients"): (mix, -eta * H @ mix),
        (ATC, "gradients"): (mix, -eta * mix @ H),
        (DGD, "messages"): (own - eta * H, mix - own),
        (CTA, "messages"): (step @ own, step @ (mix - own)),
        (ATC, "messages"): (own @ step, (mix - own) @ step),
    }[algorithm, late]
    found = delay_matrices(algorithm(step_size=eta), W, features, data, late=late)
    np.testing.assert_allclose(found[0], (A0 - eye) / eta, atol=1e-12)
    np.testing.assert_allclose(found[1], A1 / eta, atol=1e-12)


@pytest.mark.parametrize(("algorithm", "late", "rounds"), [(DGD, "gradients", 3), (CTA, "messages", 2)])
def test_the_radius_is_that_of_the_augmented_system(algorithm, late, rounds, models):
    features, data, _ = models
    delayed = Delayed(algorithm(step_size=0.2), **{late: rounds})
    system = linear_system(delayed, W, features, data)
    assert system.size == 6 * (1 + rounds)
    A0, A1 = delay_matrices(algorithm(step_size=0.2), W, features, data, late=late)
    assert delayed_radius(A0, A1, 0.2, rounds) == pytest.approx(spectrum(system).radius, rel=1e-12)


def test_late_gradients_of_symmetric_dgd_have_a_sufficient_delay(models):
    features, data, H = models
    A0, A1 = delay_matrices(DGD(step_size=0.2), metropolis(graphs.path(3)), features, data)
    bound = np.pi / (2 * np.linalg.eigvalsh(H).max())
    assert sufficient_delay(A0, A1) == pytest.approx(bound, rel=1e-12)
    assert bound < delay_margin(A0, A1) < np.inf


def test_what_has_no_roots_is_refused(models):
    features, data, _ = models
    for bad in (
        lambda: characteristic_roots(np.eye(2), np.eye(3), 1.0),
        lambda: delay_margin(np.zeros((0, 0)), np.zeros((0, 0))),
        lambda: sufficient_delay(np.eye(2), 1j * np.eye(2)),
    ):
        with pytest.raises(ValueError, match="A₀ and A₁ must be real square matrices of one size, found shapes"):
            bad()
    with pytest.raises(ValueError, match="A₀ and A₁ must be finite"):
        delayed_radius(one(np.nan), ZERO, 0.1, 1)
    for tau in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="delay must be a finite time ≥ 0"):
            characteristic_roots(ZERO, ZERO, tau)
    with pytest.raises(ValueError, match="delay must be a number of rounds ≥ 0, found -1"):
        delayed_radius(ZERO, ZERO, 0.1, -1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        characteristic_roots(ZERO, ZERO, 1.0, count=0)
    with pytest.raises(ValueError, match=r"1 states with 5000 rounds of what is late take a matrix of 5001 rows"):
        delayed_radius(ZERO, one(1.0), 0.1, 5000)
    with pytest.raises(ValueError, match=r"unknown late part of a round 'gradient' \(did you mean 'gradients'"):
        delay_matrices(DGD(step_size=0.1), W, features, data, late="gradient")
    with pytest.raises(ValueError, match="Delayed DGD has a delay already"):
        delay_matrices(Delayed(DGD(step_size=0.1), messages=1), W, features, data)
    with pytest.raises(ValueError, match="this is a schedule"):
        delay_matrices(DGD(step_size=0.1), schedules.periodic([W, lazy(W)]), features, data)
