"""What must hold for any mixing matrix and any data."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkp2p import ATC, CTA, DGD, check_mixing, linear_system
from ntkp2p.data import AgentData, Dataset
from ntkp2p.dynamics import solve
from ntkp2p.dynamics.lyapunov import certificate
from ntkp2p.kernels import Features

ALGORITHMS = st.sampled_from([DGD, CTA, ATC])


def agents_and_features(rng, agents, rank=3, each=2):
    """Random linear models: S and f₀ drawn outright, for any system that features can make."""
    n = agents * each
    dataset = Dataset(name="random", inputs=rng.normal(size=(n, 2)), targets=rng.normal(size=(n, 1)))
    data = AgentData(dataset=dataset, indices=tuple(np.arange(each) + q * each for q in range(agents)))

    def nowhere(x):
        raise AssertionError("only the training inputs are used")

    matrix = rng.normal(size=(n, rank))
    return data, Features(matrix, 1, np.zeros((n, 1)), 0.0, nowhere, nowhere, None)


def row_stochastic(rng, agents):
    """Of a random strongly connected digraph: a directed ring, and links that come and go."""
    links = np.roll(np.eye(agents), 1, axis=1) + (rng.random((agents, agents)) < rng.random())
    weights = (links > 0) * rng.gamma(0.5, size=(agents, agents)).clip(1e-2)
    return weights / weights.sum(axis=1, keepdims=True)


def doubly_stochastic(rng, agents):
    permutations = [np.eye(agents)[rng.permutation(agents)] for _ in range(4)]
    return np.tensordot(rng.dirichlet(np.ones(5)), [np.eye(agents), *permutations], 1)


@settings(derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.01, 100))
def test_dgd_flow_is_stable_for_row_stochastic_mixing(seed, agents, step_size):
    """At any step size; π, the left Perron vector, weights the Lyapunov function Σ π_q ‖z_q‖²."""
    rng = np.random.default_rng(seed)
    data, features = agents_and_features(rng, agents)
    W = row_stochastic(rng, agents)
    system = linear_system(DGD(step_size=step_size), W, features, data)
    generator = system.matrix() - np.eye(system.size)
    assert np.linalg.eigvals(generator).real.max() < 0
    pi = check_mixing(W).perron_left
    weights = np.kron(np.diag(pi), np.eye(features.rank))
    decay = weights @ generator + generator.T @ weights
    assert np.linalg.eigvalsh(decay).max() < 1e-10 * np.abs(decay).max()
    assert certificate(system, pi).flow


@settings(derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0.01, 100))
def test_dgd_generator_is_dissipative_for_doubly_stochastic_mixing(seed, agents, step_size):
    rng = np.random.default_rng(seed)
    data, features = agents_and_features(rng, agents)
    W = doubly_stochastic(rng, agents)
    matrix = linear_system(DGD(step_size=step_size), W, features, data).matrix()
    symmetric_part = matrix + matrix.T - 2 * np.eye(len(matrix))
    assert np.linalg.eigvalsh(symmetric_part).max() < 1e-10 * np.abs(symmetric_part).max()


@settings(derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), ALGORITHMS)
def test_a_permutation_of_agents_permutes_the_states(seed, agents, algorithm):
    rng = np.random.default_rng(seed)
    data, features = agents_and_features(rng, agents)
    W, order = row_stochastic(rng, agents), rng.permutation(agents)
    rows = np.concatenate([data.indices[q] for q in order])
    moved_data = AgentData(dataset=data.dataset, indices=tuple(data.indices[q] for q in order))
    moved = Features(
        features.matrix[rows], 1, features.initial[rows], 0.0, features.initial_at, features.matrix_at, None
    )
    rounds = [0, 1, 5, 30]
    one = solve(linear_system(algorithm(step_size=0.1), W, features, data), rounds)
    two = solve(linear_system(algorithm(step_size=0.1), W[np.ix_(order, order)], moved, moved_data), rounds)
    for time in ("rounds", "flow"):
        a, b = (s.states(time).reshape(4, agents, -1) for s in (one, two))
        np.testing.assert_allclose(b, a[:, order], rtol=0, atol=1e-10 * np.abs(a).max())


@settings(derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), ALGORITHMS)
def test_the_mean_moves_by_the_mean_gradient_only(seed, agents, algorithm):
    """Any doubly stochastic W keeps the average, which then takes the mean of the gradients' steps."""
    rng = np.random.default_rng(seed)
    data, features = agents_and_features(rng, agents)
    system = linear_system(algorithm(step_size=0.1), doubly_stochastic(rng, agents), features, data)
    residual = features.initial - data.targets
    step = -0.1 * sum(features.matrix[data.owner == q].T @ residual[data.owner == q] / 2 for q in range(agents))
    first = solve(system, [1]).states("rounds").reshape(agents, -1)
    np.testing.assert_allclose(first.mean(axis=0), step[:, 0] / agents, atol=1e-12)
