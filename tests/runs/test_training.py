"""Training over mixing that changes: an affine model against the recursion written out by hand."""

import jax
import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Experiment, graphs, metropolis, models, schedules, train

AGENTS, ROUNDS, STEP = 5, 23, 0.2
RANDOM = np.random.default_rng(0).dirichlet(np.ones(AGENTS), size=AGENTS)  # row-stochastic, symmetric in nothing
RECURSIONS = {
    DGD: lambda W, x, grad: W @ x - STEP * grad(x),
    CTA: lambda W, x, grad: W @ x - STEP * grad(W @ x),
    ATC: lambda W, x, grad: W @ (x - STEP * grad(x)),
}
SCHEDULES = {
    "one peer": schedules.one_peer_exponential(AGENTS),
    "periodic": schedules.periodic([RANDOM, metropolis(graphs.star(AGENTS)), RANDOM, RANDOM]),
    "finite": schedules.random_matchings(graphs.cycle(AGENTS), ROUNDS, seed=1),
    "longer": schedules.random_matchings(graphs.cycle(AGENTS), ROUNDS + 7, seed=2),
    "one matrix": schedules.periodic([RANDOM]),
}


@pytest.fixture
def run(digits):
    def build(mixing, algorithm=DGD, record=(1, 2, 5, 7, 16)):
        return Experiment(
            model=models.affine(),
            data=digits(agents=AGENTS, samples=33),
            mixing=mixing,
            algorithm=algorithm(step_size=STEP),
            rounds=ROUNDS,
            record=list(record),
        )

    return build


def observed(run):
    seen = {}
    trajectory = train(run, observe=lambda k, x: seen.update({k: x}))
    return seen, trajectory


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("algorithm", RECURSIONS)
def test_every_round_mixes_with_its_own_matrix(name, algorithm, run):
    schedule = SCHEDULES[name]
    experiment = run(schedule, algorithm)
    data = experiment.data
    seen, trajectory = observed(experiment)

    # The affine model is linear in its parameters: outputs are J θ.
    with jax.enable_x64(True):
        theta, apply = experiment.initialise().flat()
        design = np.asarray(jax.jacobian(lambda theta: apply(theta, data.inputs)[:, 0])(theta))
    shares = [np.flatnonzero(data.owner == q) for q in range(AGENTS)]

    def grad(x):
        errors = [design[own] @ x[q] - data.targets[own, 0] for q, own in enumerate(shares)]
        return np.stack([design[own].T @ e / len(own) for own, e in zip(shares, errors, strict=True)])

    x = np.tile(np.asarray(theta), (AGENTS, 1))
    for k in range(ROUNDS + 1):
        if k in seen:
            np.testing.assert_allclose(seen[k], x, rtol=0, atol=1e-10 * np.abs(x).max(), err_msg=f"round {k}")
            losses = [np.mean((design[own] @ x[q] - data.targets[own, 0]) ** 2) / 2 for q, own in enumerate(shares)]
            np.testing.assert_allclose(trajectory.local_loss.sel(round=k), losses, rtol=1e-10)
        if k < ROUNDS:
            x = RECURSIONS[algorithm](schedule.at(k), x, grad)
    assert sorted(seen) == [0, 1, 2, 5, 7, 16, ROUNDS]


def test_what_is_recorded_does_not_shift_the_schedule(run):
    few, many = (
        observed(run(SCHEDULES["finite"], record=record))[0][ROUNDS] for record in ((ROUNDS,), range(0, ROUNDS, 3))
    )
    np.testing.assert_allclose(few, many, rtol=1e-12)


def test_a_schedule_of_one_matrix_is_that_matrix(run):
    schedule, matrix = (train(run(mixing)) for mixing in (SCHEDULES["one matrix"], RANDOM))
    np.testing.assert_array_equal(schedule.local_loss, matrix.local_loss)
