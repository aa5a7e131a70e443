import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Experiment, data, graphs, metropolis, models
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics import linear_system
from ntkp2p.dynamics.minimality import hidden_modes, realisation
from ntkp2p.kernels.ntk import jacobian


def regression_run(algorithm=DGD, agents=3, samples=2, inputs=4, seed=0):
    """Affine models of more parameters than each agent has samples; one input is always zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(agents * samples, inputs))
    x[:, 1] = 0
    source = data.Dataset(name="few", inputs=x, targets=rng.normal(size=(len(x), 1)))
    indices = tuple(np.arange(samples) + samples * q for q in range(agents))
    return Experiment(
        model=models.affine(),
        data=data.AgentData(dataset=source, indices=indices),
        mixing=metropolis(graphs.path(agents)),
        algorithm=algorithm(step_size=0.1),
        rounds=3,
    )


def system_of(run, features):
    return linear_system(run.algorithm, run.mixing, features, run.data)


@in_float64
def in_parameters(run):
    """The system in the parameters themselves, with the Jacobian as its features."""
    theta, apply = run.initialise().flat()
    J = np.asarray(jacobian(apply, theta, jnp.asarray(run.data.inputs)))
    return system_of(run, dataclasses.replace(run.features(), matrix=J)), J


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_what_features_leave_out_is_neither_reached_nor_seen(algorithm):
    run = regression_run(algorithm)
    system, J = in_parameters(run)
    idle = J.shape[1] - np.linalg.matrix_rank(J)
    assert idle == 1
    A, B, C = realisation(system, run.data)
    marginal = [h for h in hidden_modes(A, B, C) if abs(h.eigenvalue) < 1e-6]
    assert [(h.uncontrollable, h.unobservable) for h in marginal] == [(idle, idle)]
    values = np.linalg.eigvals(A)
    assert np.sum(np.abs(values) < 1e-8) == idle
    features = run.features()
    assert features.rank == J.shape[1] - idle
    rest = hidden_modes(*realisation(system_of(run, features), run.data))
    assert all(h.eigenvalue.real < -0.1 for h in rest)


def test_the_rank_tests_agree_with_the_reachable_subspace():
    """n − rank [B, AB, A²B, …], and the same of the transposed system."""
    run = regression_run()
    A, B, C = realisation(in_parameters(run)[0], run.data)

    def lost(A, B):
        reached, before = np.linalg.qr(B)[0], 0
        while reached.shape[1] > before:  # no longer, for rounding grows with each
            before = reached.shape[1]
            u, sizes, _ = np.linalg.svd(np.hstack([reached, A @ reached]), full_matrices=False)
            reached = u[:, sizes > 1e-9 * sizes[0]]
        return len(A) - before

    found = hidden_modes(A, B, C)
    assert sum(h.uncontrollable for h in found) == lost(A, B) > 0
    assert sum(h.unobservable for h in found) == lost(A.T, C.T) > 0


def test_a_realisation_is_what_the_round_does():
    run = regression_run()
    system = system_of(run, run.features())
    A, B, C = realisation(system, run.data)
    matrix = np.asarray(system.parameters["matrix"])
    y, f0 = run.data.per_agent(run.data.targets)[..., 0], run.data.per_agent(run.features().initial)[..., 0]
    np.testing.assert_allclose(B @ (y - f0).ravel(), system.offset / system.step_size, atol=1e-14)
    s = np.random.default_rng(0).normal(size=system.size)
    np.testing.assert_allclose(C @ s, np.einsum("qnr,qr->qn", matrix, s.reshape(3, -1)).ravel(), atol=1e-14)
    np.testing.assert_allclose(A @ s, (system.apply(s) - s) / 0.1, atol=1e-13)


def test_a_minimal_system_hides_nothing_and_others_by_eigenvalue():
    A = np.diag([-1.0, -2.0, -2.0, -3.0])
    everything = np.eye(4)
    assert hidden_modes(A, everything, everything) == []
    B = np.array([[1.0], [1.0], [1.0], [0.0]])  # one input cannot steer both modes of −2
    found = hidden_modes(A, B, everything)
    assert [(h.eigenvalue, h.uncontrollable, h.unobservable) for h in found] == [(-2, 1, 0), (-3, 1, 0)]
