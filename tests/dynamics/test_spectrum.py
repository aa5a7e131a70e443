import dataclasses
import importlib

import numpy as np
import pytest
import scipy.linalg

from ntkp2p import ATC, CTA, DGD, Experiment, data, graphs, metropolis, models, predict, schedules, train
from ntkp2p.dynamics import linear_system, spectrum

spectrum_module = importlib.import_module("ntkp2p.dynamics.spectrum")
step_size_module = importlib.import_module("ntkp2p.dynamics.step_size")


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("step_size", [0.1, 10.0])
def test_iteration_finds_the_dense_extremes(algorithm, step_size, digits):
    data = digits()
    experiment = Experiment(
        model=models.mlp(width=32, depth=1),
        data=data,
        mixing=metropolis(graphs.path(4)),
        algorithm=algorithm(step_size=step_size),
        rounds=1,
    )
    system = linear_system(experiment.algorithm, experiment.mixing, experiment.features(), data)
    values = np.linalg.eigvals(system.matrix())
    # Dense, then iterative: to its residual, times the eigenvalues' condition number, 1 where M is symmetric.
    conditioned = 1 if system.symmetric else np.linalg.cond(np.linalg.eig(system.matrix())[1])
    for size, tolerance in ((10**6, 1e-9), (0, conditioned * spectrum_module.TOLERANCE)):
        found = spectrum(system, dense=size)
        assert found.radius == pytest.approx(np.abs(values).max(), rel=tolerance)
        assert found.abscissa == pytest.approx((values.real.max() - 1) / step_size, abs=tolerance / step_size)


def test_the_edge_of_stability_is_where_the_radius_passes_one(digits):
    def run(step_size):
        return predict(
            Experiment(
                model=models.affine(),
                data=digits(),
                mixing=metropolis(graphs.complete(4)),
                algorithm=DGD(step_size=step_size),
                rounds=5,
            )
        )

    bound = run(0.1).dataset.attrs["sufficient_step_size"]
    assert run(0.99 * bound).stable
    # The bound is sufficient; this far beyond it, no mixing holds the stiffest agent's direction.
    assert not run(4 * bound).stable


def test_what_was_not_found_is_not_a_number(monkeypatch, digits):
    from scipy.sparse.linalg import ArpackNoConvergence

    def never(*args, **kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr("scipy.sparse.linalg.eigs", never)
    system = system_of(affine_run(digits, ATC, metropolis(graphs.cycle(4))))
    assert np.isnan(spectrum(system, dense=0)[:2]).all()
    monkeypatch.setattr("ntkp2p.runs.prediction.spectrum", lambda system: spectrum(system, dense=0))
    run = predict(affine_run(digits, ATC, metropolis(graphs.cycle(4))))
    assert np.isnan(run.dataset.attrs["spectral_radius"])
    assert run.stable
    assert np.isnan(step_size_module.largest_step_size(system, dense=0))
    assert spectrum_module.slowest_modes(system, dense=0) == []


def test_predictions_say_how_well_their_spectrum_is_known(digits, monkeypatch):
    run = affine_run(digits, DGD, metropolis(graphs.cycle(4)))
    exact = np.abs(np.linalg.eigvalsh(system_of(run).matrix())).max()
    known = predict(run).dataset.attrs
    assert known["spectral_radius"] == pytest.approx(exact, rel=1e-12)
    assert "spectral_residual" not in known
    monkeypatch.setattr(spectrum_module, "DENSE", {True: 1, False: 1})
    iterated = predict(run).dataset.attrs
    # A Ritz value of a symmetric matrix lies within its residual of an eigenvalue, and never beyond the largest one.
    assert exact - iterated["spectral_residual"] <= iterated["spectral_radius"] <= exact + 1e-12
    assert 0 < iterated["spectral_residual"] <= spectrum_module.TOLERANCE


def test_where_no_step_size_is_stable_the_limit_is_none(digits):
    """A directed ring turns disagreement round; every step pushes it outwards, the smaller the less."""
    ring = np.roll(np.eye(3), 1, axis=1)
    system = system_of(affine_run(digits, DGD, ring))
    assert step_size_module.largest_step_size(system) == 0
    for eta in (1e-2, 1e-4, 1e-6):
        other = step_size_module.with_step_size(system, eta)
        found = spectrum(other)
        assert found.radius > 1 + spectrum_module.stability_tolerance(other, found)


def test_iteration_sees_instabilities_away_from_minus_one(digits):
    """Where W turns, an eigenvalue may leave the unit circle elsewhere than at −1."""
    W = 0.2 * np.eye(5) + 0.8 * np.roll(np.eye(5), 1, axis=1)
    for algorithm in (DGD, ATC):
        system = system_of(affine_run(digits, algorithm, W))
        dense = step_size_module.largest_step_size(system)
        assert step_size_module.largest_step_size(system, dense=0) == pytest.approx(dense, rel=1e-3)


def system_of(experiment):
    return linear_system(experiment.algorithm, experiment.mixing, experiment.features(), experiment.data)


def affine_run(digits, algorithm, mixing, *, step_size=0.1, samples=24, rounds=5):
    data = digits(agents=len(mixing), samples=samples, test_samples=0)
    algorithm = algorithm(step_size=step_size)
    return Experiment(model=models.affine(), data=data, mixing=mixing, algorithm=algorithm, rounds=rounds, record=3)


def test_dgd_is_stable_up_to_a_generalised_eigenvalue(digits):
    """W − η H + I ⪰ 0 up to η = 1 / λ_max((I + W)^{-1} H), by SciPy."""
    system = system_of(affine_run(digits, DGD, metropolis(graphs.star(4))))
    M0, M1 = (step_size_module.with_step_size(system, eta).matrix() for eta in (1e-9, 1.0))
    H, W = M0 - M1, M0
    exact = 1 / scipy.linalg.eigh(H, np.eye(len(W)) + W, eigvals_only=True)[-1]
    assert step_size_module.largest_step_size(system) == pytest.approx(exact, rel=1e-6)
    assert system.sufficient_step_size <= exact


@pytest.mark.parametrize("algorithm", [CTA, ATC])
def test_one_agent_is_stable_up_to_two_over_the_curvature(algorithm, digits):
    system = system_of(affine_run(digits, algorithm, np.ones((1, 1))))
    assert step_size_module.largest_step_size(system) == pytest.approx(2 / system.curvature, rel=1e-5)


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_training_turns_at_the_largest_step_size(algorithm, digits):
    """Real data, W with negative eigenvalues: just below it converges, just above it diverges."""
    W = metropolis(graphs.cycle(4))
    limit = step_size_module.largest_step_size(system_of(affine_run(digits, algorithm, W)))

    def last(step_size):
        trained = train(affine_run(digits, algorithm, W, step_size=step_size, rounds=2000))
        return trained.local_loss.values.mean(axis=1)

    below, above = last(0.99 * limit), last(1.01 * limit)
    assert below[2] < below[1] < below[0]
    assert above[2] > above[1] > 10 * above[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_large_systems_have_the_same_largest_step_size(symmetric, digits):
    W = metropolis(graphs.cycle(4))
    W = W if symmetric else 0.5 * np.eye(4) + 0.5 * np.roll(np.eye(4), 1, axis=1)
    system = system_of(affine_run(digits, DGD, W))
    dense = step_size_module.largest_step_size(system)
    assert step_size_module.largest_step_size(system, dense=0) == pytest.approx(dense, rel=1e-4)


def test_no_step_size_helps_mixing_that_does_not_settle(digits):
    turning = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert step_size_module.largest_step_size(system_of(affine_run(digits, DGD, turning))) == 0
    assert step_size_module.largest_step_size(system_of(affine_run(digits, ATC, turning))) > 0.01


def test_a_period_has_a_largest_step_size(digits):
    run = affine_run(digits, DGD, metropolis(graphs.cycle(4)))
    run = dataclasses.replace(run, mixing=schedules.one_peer_exponential(4))
    limit = step_size_module.largest_step_size(system_of(run))
    for factor, stable in ((0.999, True), (1.001, False)):
        algorithm = DGD(step_size=factor * limit)
        assert (spectrum(system_of(dataclasses.replace(run, algorithm=algorithm))).radius <= 1) == stable


def test_the_slowest_modes_of_identical_agents_are_products(digits):
    """On one agent's data at every agent, M = W ⊗ I − η I ⊗ H: eigenvectors are agents × directions."""
    one = digits(agents=1, samples=8, test_samples=0)
    dataset = one.dataset
    tripled = data.Dataset(
        name="three times", inputs=np.concatenate([dataset.inputs] * 3), targets=np.tile(dataset.targets, (3, 1))
    )
    split = data.AgentData(dataset=tripled, indices=tuple(np.arange(8) + 8 * q for q in range(3)))
    W = metropolis(graphs.path(3))
    run = Experiment(model=models.affine(), data=split, mixing=W, algorithm=DGD(step_size=0.1), rounds=5)
    system = system_of(run)
    S = np.asarray(system.parameters["matrix"][0])
    H = np.linalg.eigvalsh(S.T @ S / 8)
    expected = np.sort(np.abs(np.linalg.eigvalsh(W)[:, None] - 0.1 * H).ravel())[::-1]
    modes = spectrum_module.slowest_modes(system, count=len(expected))
    np.testing.assert_allclose([abs(mode.eigenvalue) for mode in modes], expected, atol=1e-12)
    slowest = modes[0]
    assert slowest.agreement == pytest.approx(1)
    assert slowest.separable == pytest.approx(1)
    np.testing.assert_allclose(slowest.agents, 1 / np.sqrt(3), atol=1e-8)
    assert slowest.rounds == pytest.approx(-1 / np.log(1 - 0.1 * H[0]))
    assert slowest.flow_time == pytest.approx(1 / H[0])
    # A mode is what is left in the long run: one time constant takes it to 1/e.
    state = np.linalg.matrix_power(system.matrix(), 7) @ np.kron(slowest.agents, slowest.direction)
    np.testing.assert_allclose(np.linalg.norm(state), np.exp(-7 / slowest.rounds))


def test_iteration_states_its_residual():
    values = np.linspace(-0.9, 0.999, 500)
    pairs = spectrum_module.extremes(lambda s: values * s, 500, "LA", count=2, symmetric=True)
    off = np.linalg.norm(values[:, None] * pairs.vectors - pairs.vectors * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, off)
    assert (pairs.residuals <= 2 * spectrum_module.TOLERANCE).all()
    # In a symmetric matrix there is an eigenvalue as near as the residual.
    assert (np.abs(values[:, None] - pairs.values).min(axis=0) <= pairs.residuals).all()
