"""Push-sum over directed graphs: its rounds, what they keep, and where they lead."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkp2p import PushSum, RandomK, SkewCompensatedSparsePush, SparsePush, TopK, World, push_weights

Q, D = 5, 6
RNG = np.random.default_rng(0)
X, H = RNG.normal(size=(Q, D)), RNG.normal(size=(D, D))
GRAPH = nx.DiGraph([(i, (i + 1) % Q) for i in range(Q)] + [(0, 2), (3, 1), (3, 0)])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradient(x):
    return jnp.tanh(jnp.asarray(x)) @ H


def world(P, grad=gradient):
    def compress(x, by, everything=False):
        return jnp.where(everything, x, jnp.stack([by(row, jax.random.key(0)) for row in x]))

    return World(
        mix=lambda x: P @ x,
        grad=lambda x, when=True: jnp.where(when, grad(x), 0),
        own=lambda x: np.diagonal(P)[:, None] * x,
        compress=compress,
    )


def test_rounds_are_the_recursion_agent_by_agent():
    P, eta, mu = push_weights(GRAPH), 0.1, 0.9
    algorithm = PushSum(eta, momentum=mu)
    state = algorithm.init(jnp.asarray(X))
    x, u, m = X.copy(), np.ones(Q), np.zeros((Q, D))
    for _ in range(4):
        state = algorithm.round(state, world(P))
        sums, weights = np.zeros((Q, D)), np.zeros(Q)
        for r in range(Q):
            g = np.tanh(x[r] / u[r]) @ H
            m[r] = mu * m[r] + g
            # Agent r gives the same share to itself and to each of its receivers.
            for q in [r, *GRAPH.successors(r)]:
                sums[q] += (x[r] - eta * (g + mu * m[r])) / (1 + GRAPH.out_degree(r))
                weights[q] += u[r] / (1 + GRAPH.out_degree(r))
        x, u = sums, weights
    np.testing.assert_allclose(state.x, x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state.weights[:, 0], u, rtol=1e-14)
    np.testing.assert_allclose(algorithm.model(state), x / u[:, None], rtol=1e-12, atol=1e-13)


ALGORITHMS = (
    PushSum(0.1),
    SparsePush(0.1, TopK(0.4), averaging_rate=0.7),
    SparsePush(0.1, TopK(0.4), averaging_rate=0.3, dense_rounds=2, momentum=0.5),
    SkewCompensatedSparsePush(0.1, TopK(0.3), gradient_rounds=2, gossip_rounds=1),
)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ALGORITHMS))
def test_exchange_keeps_the_sums(seed, algorithm):
    """Over any column-stochastic matrices, whatever the compressor lets through."""
    rng = np.random.default_rng(seed)
    state = algorithm.init(jnp.asarray(rng.normal(size=(Q, D))))
    for _ in range(5):
        P, before = rng.dirichlet(np.ones(Q), size=Q).T, state
        state = algorithm.round(state, world(P))
        rests = isinstance(algorithm, SkewCompensatedSparsePush) and before.phase >= algorithm.gradient_rounds
        step = np.zeros((Q, D)) if rests else np.asarray(gradient(algorithm.model(before)))
        step = step if state.velocity is None else step + algorithm.momentum * np.asarray(state.velocity)
        expected = np.asarray(before.x - algorithm.step_size * step).sum(axis=0)
        scale = 20 * Q * (np.abs(before.x).sum() + np.abs(step).sum())
        np.testing.assert_allclose(state.x.sum(axis=0), expected, rtol=0, atol=np.finfo(float).eps * scale)
        np.testing.assert_allclose(state.weights.sum(), Q, rtol=1e-14)


@pytest.mark.parametrize("momentum", [0, 1, -0.5, "0.9", float("nan"), True])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=r"momentum must be above 0 and below 1, found .*: 0\.9 is usual, None"):
        PushSum(0.1, momentum=momentum)
    with pytest.raises(ValueError, match="momentum must be above 0"):
        SparsePush(0.1, RandomK(0.5), momentum=momentum)
