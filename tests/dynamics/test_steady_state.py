from importlib import import_module

import numpy as np
import pytest

from ntkp2p import (
    ATC,
    CTA,
    DGD,
    Experiment,
    NoSteadyStateError,
    data,
    graphs,
    lazy,
    metropolis,
    models,
    predict,
    schedules,
    steady_state,
)
from ntkp2p.dynamics import LinearSystem, transition
from ntkp2p.dynamics import steady_state as rest

W = metropolis(graphs.cycle(4))


def run(digits, algorithm=DGD, *, step_size=0.2, mixing=W, rounds=10, **data):
    return Experiment(
        model=models.mlp(width=32, depth=1),
        data=digits(**data),
        mixing=mixing,
        algorithm=algorithm(step_size=step_size),
        rounds=rounds,
    )


@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_a_long_run_ends_there(algorithm, iterated, digits, monkeypatch):
    if iterated:
        monkeypatch.setattr(import_module("ntkp2p.dynamics.steady_state"), "DENSE_SOLVE", 10)
    experiment = run(digits, algorithm, rounds=10**8)
    found = steady_state(experiment, rtol=1e-13)
    assert found.source == "steady"
    assert found.dataset.attrs["residual"] < 1e-10
    for time in ("rounds", "flow"):
        late = predict(experiment, time=time)
        for name in ("local_loss", "global_loss", "test_loss", "consensus_distance", "parameter_distance"):
            np.testing.assert_allclose(found.dataset[name][0], late.dataset[name][-1], rtol=1e-5, atol=1e-9)


def test_the_bias_of_dgd_is_of_order_eta_and_that_of_one_agent_is_none(digits):
    """One agent has no bias; several have one that halves with the step size (Yuan, Ling and Yin, 2016)."""
    source = data.load("regression", samples=60, features=3)

    def biases(agents, eta):
        mixing = metropolis(graphs.path(agents))
        dealt = source.split(agents=agents, by="label")
        linear = Experiment(model=models.affine(), data=dealt, mixing=mixing, algorithm=DGD(step_size=eta), rounds=1)
        return steady_state(linear).bias.values[0]

    assert biases(4, 2e-4).mean() / biases(4, 1e-4).mean() == pytest.approx(2, rel=0.01)
    assert biases(1, 0.1).max() < 1e-9


def test_the_fixed_point_of_dgd_balances_mixing_and_gradients(digits):
    """(I − W) z = −η g(z): an independent statement of where DGD rests, evaluated at parameters of the network."""
    experiment = run(digits)
    features, data = experiment.features(), experiment.data
    z = steady_state(experiment, features=features).models.coordinates(0)
    errors = features.initial + features.matrix @ z[..., None] - data.targets  # (Q, N, 1)
    gradients = np.stack(
        [features.matrix[data.owner == q].T @ errors[q, data.owner == q, 0] / data.sizes[q] for q in range(4)]
    )
    np.testing.assert_allclose(z - W @ z, -0.2 * gradients, atol=1e-9 * np.abs(z).max())


def raw(matrix, offset, initial, **options):
    return LinearSystem.of(*(np.asarray(a, float) for a in (matrix, offset, initial)), **options)


def test_modes_that_nothing_damps_stay_where_they_are():
    # Eigenvalue 1 twice, not normal; the drive is in the range of I − M, so that a limit exists.
    right = np.random.default_rng(0).normal(size=(5, 5))
    matrix = right @ np.diag([1, 1, 0.5, -0.3, 0.9]) @ np.linalg.inv(right)
    initial = np.random.default_rng(1).normal(size=5)
    offset = (np.eye(5) - matrix) @ np.random.default_rng(2).normal(size=5)
    system = raw(matrix, offset, initial)
    state, residual = rest(system)
    limit = initial.copy()
    for _ in range(2000):
        limit = matrix @ limit + offset
    np.testing.assert_allclose(state, limit, atol=1e-9 * np.abs(limit).max())
    assert residual < 1e-10
    np.testing.assert_allclose(transition(system, 500) @ (initial - state), 0 * state, atol=1e-9)


@pytest.mark.parametrize(
    ("system", "time", "message"),
    [
        (raw(np.diag([0.5, 1.1]), [1, 1], [0, 0]), "rounds", "spectral radius is 1.1 > 1"),
        (raw(np.diag([0.5, 1.1]), [1, 1], [0, 0]), "flow", "spectral abscissa is 0.1 > 0"),
        (raw(np.diag([0.5, -1.0]), [1, 1], [0, 0]), "rounds", "eigenvalue -1 keeps oscillating"),
        (raw(np.diag([0.5, 1.0]), [1, 1], [0, 0]), "rounds", "drift without limit"),
        (raw(np.diag([0.5, 1.0]), [1, 1], [0, 0]), "rest", 'time must be "rounds" or "flow"'),
    ],
)
def test_why_nothing_rests_is_said(system, time, message):
    with pytest.raises(ValueError, match=message):
        rest(system, time=time)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_large_system_that_oscillates_is_refused(symmetric, monkeypatch):
    monkeypatch.setattr(import_module("ntkp2p.dynamics.steady_state"), "DENSE_SOLVE", 10)
    values = np.r_[-1.0, np.linspace(-0.9, 0.9, 499)]
    with pytest.raises(NoSteadyStateError, match=r"eigenvalue -1.* keeps oscillating"):
        rest(raw(np.diag(values), np.ones(500), np.zeros(500), symmetric=symmetric))


def test_the_flow_rests_where_the_rounds_oscillate():
    system = raw(np.diag([0.5, -1.0]), [1, 1], [0, 0])
    np.testing.assert_allclose(rest(system, time="flow")[0], [2, 0.5])


def test_resting_from_the_start_and_refusals(digits):
    assert rest(raw(np.eye(2) / 2, [1, 1], [2, 2]))[1] == 0
    with pytest.raises(NoSteadyStateError, match="mixing that changes over time"):
        steady_state(run(digits, mixing=schedules.one_peer_exponential(4)))
    with pytest.raises(NoSteadyStateError, match="smaller step size"):
        steady_state(run(digits, step_size=500.0))
    with pytest.raises(ValueError, match="predict a long run"):
        steady_state(
            Experiment(
                model=models.affine(),
                data=digits(),
                mixing=lazy(W),
                algorithm=DGD(step_size=0.1),
                rounds=5,
                loss="cross_entropy",
            )
        )


def test_levels_are_drawn(digits):
    found = steady_state(run(digits))
    ax = found.plot("bias")
    levels = sorted(line.get_ydata()[0] for line in ax.lines)
    np.testing.assert_allclose(levels, np.sort(found.bias.values[0]))
    assert "inf rounds" in repr(found)
