"""Mixing that changes over time: ordered products of rounds, and of their exponentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ntkp2p import (
    ATC,
    CTA,
    DGD,
    Experiment,
    graphs,
    linear_system,
    metropolis,
    models,
    predict,
    schedules,
    solve,
    train,
    transition,
)
from ntkp2p.dynamics import krylov, spectrum
from ntkp2p.dynamics.nonlinear import integrate
from ntkp2p.dynamics.round import assemble

AGENTS = 4
MATRICES = [metropolis(graphs.path(AGENTS)), np.random.default_rng(0).dirichlet(np.ones(AGENTS), size=AGENTS)]
MATRICES += [metropolis(graphs.star(AGENTS))]
SCHEDULES = {
    "periodic": schedules.periodic([MATRICES[i] for i in (0, 1, 1, 2, 0)]),
    "one peer": schedules.one_peer_exponential(AGENTS),
    "sequence": schedules.sequence([MATRICES[i] for i in np.random.default_rng(1).integers(3, size=60)]),
}
ROUNDS = np.array([0, 1, 4, 5, 7, 20, 33, 33, 60])


@pytest.fixture(scope="module")
def pieces(digits):
    """By schedule: the system, and every round's affine map as a matrix, from the system of that round's W alone."""
    data, algorithm = digits(agents=AGENTS, samples=12), CTA(step_size=0.3)
    run = Experiment(model=models.affine(), data=data, mixing=MATRICES[0], algorithm=algorithm, rounds=1)
    features = run.features()

    def of(schedule):
        system = linear_system(algorithm, schedule, features, data)
        maps = []
        for W in schedule.matrices:
            one = linear_system(algorithm, W, features, data)
            last = np.eye(1, one.size + 1, one.size)
            maps.append(np.block([[np.block([one.matrix(), one.offset[:, None]])], [last]]))
        return system, [maps[i] for i in schedule.indices(60)]

    return {name: of(schedule) for name, schedule in SCHEDULES.items()}


def expected(system, maps, time):
    state, states = np.append(system.initial, 1.0), []
    for k in range(ROUNDS[-1] + 1):
        states += [state[:-1]] * int(np.sum(k == ROUNDS))
        if k < len(maps):
            one = maps[k] if time == "rounds" else scipy.linalg.expm(maps[k] - np.eye(len(maps[k])))
            state = one @ state
    return np.array(states)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_states_are_ordered_products(name, method, pieces, monkeypatch):
    monkeypatch.setattr(krylov, "LEAST", 4)
    system, maps = pieces[name]
    solution = solve(system, ROUNDS, method=method, rtol=1e-10)
    assert solution.converged
    assert solution.method == ("products" if name == "sequence" else method)
    for time in ("rounds", "flow"):
        exact = expected(system, maps, time)
        np.testing.assert_allclose(solution.states(time), exact, rtol=0, atol=1e-10 * np.linalg.norm(exact[-1]))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_transitions_are_ordered_products(name, method, pieces):
    system, maps = pieces[name]
    linear = [m[:-1, :-1] for m in maps]
    whole = np.eye(system.size)
    for m in linear[3:47]:
        whole = m @ whole
    start = np.random.default_rng(0).normal(size=(system.size, 2))
    phi = transition(system, 47, 3, time="rounds")
    np.testing.assert_allclose(phi.matrix(), whole, atol=1e-12)
    np.testing.assert_allclose(phi.apply(start, method=method, rtol=1e-12), whole @ start, atol=1e-10)

    eta, flow = system.step_size, np.eye(system.size)
    for k, share in [(3, 0.75), *((k, 1.0) for k in range(4, 46)), (46, 0.5)]:
        flow = scipy.linalg.expm(share * (linear[k] - np.eye(system.size))) @ flow
    phi = transition(system, 46.5 * eta, 3.25 * eta)
    np.testing.assert_allclose(phi.matrix(), flow, atol=1e-12)
    np.testing.assert_allclose(phi.apply(start, method=method, rtol=1e-12), flow @ start, atol=1e-10)
    # Within one round, and nothing at all.
    part = scipy.linalg.expm(0.5 * (linear[7] - np.eye(system.size)))
    np.testing.assert_allclose(transition(system, 7.75 * eta, 7.25 * eta).matrix(), part, atol=1e-12)
    np.testing.assert_array_equal(transition(system, 7 * eta, 7 * eta) @ start, start)


def test_a_period_is_a_system_of_its_own(pieces):
    system, maps = pieces["periodic"]
    one = np.linalg.multi_dot(maps[:5][::-1])
    far = 5 * 10**6 + 2
    start = np.append(system.initial, 1.0)
    exact = maps[1] @ maps[0] @ np.linalg.matrix_power(one, 10**6) @ start
    found = solve(system, [far], times=["rounds"])
    np.testing.assert_allclose(found.states("rounds")[0], exact[:-1], rtol=0, atol=1e-8 * np.linalg.norm(exact))

    multipliers = (
        np.abs(np.linalg.eigvals(one[:-1, :-1])).max(),
        np.abs(
            np.linalg.eigvals(
                np.linalg.multi_dot([scipy.linalg.expm(m[:-1, :-1] - np.eye(system.size)) for m in maps[:5]][::-1])
            )
        ).max(),
    )
    extremes = spectrum(system)
    assert extremes.radius == pytest.approx(multipliers[0] ** (1 / 5), rel=1e-10)
    assert extremes.abscissa == pytest.approx(np.log(multipliers[1]) / (5 * system.step_size), rel=1e-8)
    assert np.isnan(spectrum(pieces["sequence"][0])[:2]).all()


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize(("algorithm", "name"), [(DGD, "periodic"), (ATC, "sequence"), (CTA, "one peer")])
def test_trained_affine_is_predicted(algorithm, name, loss, digits):
    run = Experiment(
        model=models.affine(),
        data=digits(agents=AGENTS, samples=24),
        mixing=SCHEDULES[name],
        algorithm=algorithm(step_size=0.1),
        rounds=60,
        record=ROUNDS.tolist(),
        loss=loss,
    )
    trained, predicted = train(run), predict(run, rtol=1e-12)
    for variable in ("local_loss", "global_loss", "test_loss", "parameter_distance"):
        scale = float(np.abs(trained.dataset[variable]).max())
        np.testing.assert_allclose(
            predicted.dataset[variable], trained.dataset[variable], rtol=1e-10, atol=1e-14 * scale
        )


def test_the_flow_of_another_loss_follows_the_schedule(digits):
    run = Experiment(
        model=models.affine(),
        data=digits(agents=AGENTS, samples=24),
        mixing=SCHEDULES["periodic"],
        algorithm=DGD(step_size=0.1),
        rounds=6,
        record=7,
        loss="cross_entropy",
    )
    predicted = predict(run, time="flow", rtol=1e-9)
    assert predicted.dataset.attrs["converged"]

    # Every round by itself, from where the one before it ended.
    features = run.features()
    with jax.enable_x64(True):
        advance, parameters, _ = assemble(run.algorithm, run.mixing, features, run.data, loss="cross_entropy")
        state = advance.start(run.algorithm)
        for k in range(6):
            one = parameters | {"mixing": jnp.asarray(run.mixing.at(k))}
            state = jnp.ravel(integrate(advance, one, state, np.array([0, 1]), time="flow", rtol=1e-11).models[-1])
    found = predicted.models.coordinates(6).ravel()
    np.testing.assert_allclose(found, state, rtol=0, atol=1e-9 * np.linalg.norm(state))


@pytest.mark.parametrize("stiffness", [5, 80])
def test_a_stiff_flow_is_summed_without_cancellation(stiffness, digits):
    """The flow of DGD is stable for any step size, where the rounds are not."""
    run = Experiment(
        model=models.affine(),
        data=digits(agents=4, samples=24),
        mixing=MATRICES[0],
        algorithm=DGD(step_size=1.0),
        rounds=1,
    )
    features = run.features()
    eta = stiffness / linear_system(run.algorithm, MATRICES[0], features, run.data).curvature
    schedule = schedules.sequence([MATRICES[0], MATRICES[2], MATRICES[0]])
    system = linear_system(DGD(step_size=eta), schedule, features, run.data)
    state = np.append(system.initial, 1.0)
    for W in (MATRICES[0], MATRICES[2], MATRICES[0]):
        one = linear_system(DGD(step_size=eta), W, features, run.data)
        zero = np.zeros((1, one.size + 1))
        state = (
            scipy.linalg.expm(np.block([[np.block([one.matrix() - np.eye(one.size), one.offset[:, None]])], [zero]]))
            @ state
        )
    found = solve(system, [3], times=("flow",)).states("flow")[0]
    np.testing.assert_allclose(found, state[:-1], rtol=0, atol=1e-10 * np.linalg.norm(state))


def test_beyond_the_end_is_refused(pieces):
    system, _ = pieces["sequence"]
    with pytest.raises(ValueError, match="given for 60 rounds, and round 61"):
        solve(system, [61])
    with pytest.raises(ValueError, match="given for 60 rounds, and t = 61"):
        transition(system, 61, time="rounds")
