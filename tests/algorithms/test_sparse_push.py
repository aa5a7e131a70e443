"""Sparse-Push, its skew-compensated form, AdaGossip's rate, and CHOCO, against recursions agent by agent."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from ntkp2p import (
    CHOCO,
    DGD,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    TopK,
    World,
    graphs,
    metropolis,
    push_weights,
)

Q, D, ETA, GAMMA = 5, 8, 0.1, 0.4
RNG = np.random.default_rng(0)
X, H = RNG.normal(size=(Q, D)), RNG.normal(size=(D, D))
GRAPH = nx.DiGraph([(i, (i + 1) % Q) for i in range(Q)] + [(0, 2), (3, 1), (3, 0)])
P, W = push_weights(GRAPH), metropolis(graphs.cycle(Q))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def top(v):
    kept = np.argsort(-np.abs(v))[:2]
    return np.where(np.isin(np.arange(D), kept), v, 0)


def followed(algorithm, mixing, rounds):
    world = World(
        mix=lambda x: mixing @ x,
        grad=lambda x, when=True: jnp.where(when, jnp.tanh(x) @ H, 0),
        own=lambda x: np.diagonal(mixing)[:, None] * x,
        compress=lambda x, by, everything=False: jnp.where(
            everything, x, np.array([top(row) for row in np.asarray(x)])
        ),
    )
    states = [algorithm.init(jnp.asarray(X))]
    for _ in range(rounds):
        states.append(algorithm.round(states[-1], world))
    return states


def recursion(rounds, *, dense=0, beta=None, gradient_rounds=99, gossip_rounds=0):
    x, u, e, v = X.copy(), np.ones(Q), np.zeros((Q, D)), np.zeros((Q, D))
    for k in range(rounds):
        phase = k % (gradient_rounds + gossip_rounds + 1)
        rate = 1.0 if k < dense else GAMMA
        if phase < gradient_rounds:
            x = x - ETA * np.array([np.tanh(x[q] / u[q]) @ H for q in range(Q)])
        q = x + e if k < dense else np.array([top(row) for row in x + e])
        e = x + e - q
        heard, weights = np.zeros((Q, D)), np.zeros(Q)
        for r in range(Q):
            share = 1 / (1 + GRAPH.out_degree(r))
            for s in [r, *GRAPH.successors(r)]:
                heard[s] += share * q[r]
                weights[s] += share * u[r]
        v = v if beta is None else beta * v + (1 - beta) * (heard - q) ** 2
        x = x + (rate if beta is None or k < dense else GAMMA / (np.sqrt(v) + 1e-8)) * (heard - q)
        u = u + rate * (weights - u)
        if phase == gradient_rounds + gossip_rounds:
            x, e = u[:, None] * x.sum(axis=0) / u.sum(), np.zeros((Q, D))
    return x, u, e


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (SparsePush(ETA, TopK(0.25), averaging_rate=GAMMA), {}),
        (SparsePush(ETA, TopK(0.25), averaging_rate=GAMMA, dense_rounds=3), {"dense": 3}),
        (SparsePush(ETA, TopK(0.25), averaging_rate=GAMMA, dense_rounds=2, adaptive=0.9), {"dense": 2, "beta": 0.9}),
        (
            SkewCompensatedSparsePush(ETA, TopK(0.25), averaging_rate=GAMMA, gradient_rounds=4, gossip_rounds=2),
            {"gradient_rounds": 4, "gossip_rounds": 2},
        ),
    ],
    ids=["plain", "dense start", "adaptive", "skew-compensated"],
)
def test_rounds_are_the_recursion_agent_by_agent(algorithm, options):
    rounds = 9
    state = followed(algorithm, P, rounds)[-1]
    x, u, e = recursion(rounds, **options)
    np.testing.assert_allclose(state.x, x, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(state.weights[:, 0], u, rtol=1e-13)
    np.testing.assert_allclose(state.memory, e, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(algorithm.model(state), x / u[:, None], rtol=1e-11, atol=1e-12)


def test_a_merge_makes_all_models_the_mean():
    algorithm = SkewCompensatedSparsePush(ETA, TopK(0.25), gradient_rounds=4, gossip_rounds=2)
    states = followed(algorithm, P, algorithm.cycle)
    merged = algorithm.model(states[-1])
    np.testing.assert_allclose(merged, np.tile(states[-2].x.sum(axis=0) / Q, (Q, 1)), rtol=1e-12, atol=1e-13)
    assert np.ptp(algorithm.model(states[-2]), axis=0).min() > 1e-3
    # In the gossip rounds before, only the exchange moved the models.
    np.testing.assert_allclose(states[6].x.sum(axis=0), states[4].x.sum(axis=0), rtol=1e-12, atol=1e-13)


def test_choco_is_the_recursion_of_its_running_sums():
    x, known = X.copy(), X.copy()
    heard = W @ known
    for _ in range(6):
        y = x - ETA * np.tanh(x) @ H
        q = np.array([top(row) for row in y - known])
        known = known + q
        for i in range(Q):
            heard[i] = heard[i] + sum(W[i, j] * q[j] for j in range(Q))
        x = y + GAMMA * (heard - known)
    # Agents start from one model, which all know: here they do not, so that the sum is set by hand.
    algorithm = CHOCO(ETA, TopK(0.25), averaging_rate=GAMMA)
    world_states = [algorithm.init(jnp.asarray(X))._replace(received=jnp.asarray(W @ X))]
    first = followed(algorithm, W, 0)[0]
    assert first.known is first.x
    for _ in range(6):
        world_states.append(step(algorithm, world_states[-1]))
    np.testing.assert_allclose(world_states[-1].x, x, rtol=1e-11, atol=1e-12)


def step(algorithm, state):
    world = World(
        mix=lambda x: W @ x,
        grad=lambda x, when=True: jnp.tanh(x) @ H,
        own=lambda x: x,
        compress=lambda x, by, everything=False: np.array([top(row) for row in np.asarray(x)]),
    )
    return algorithm.round(state, world)


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan"), "a"])
@pytest.mark.parametrize("make", [SparsePush, CHOCO])
def test_averaging_rates_are_shares(make, rate):
    with pytest.raises(ValueError, match=r"averaging_rate must be above 0 and at most 1, found .*: the share that is"):
        make(0.1, TopK(0.1), averaging_rate=rate)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SparsePush(0.1, 0.01), TypeError, r"must be a compressor .*found 0\.01: for instance TopK\(0\.01\)"),
        (lambda: CHOCO(0.1, "top_k"), TypeError, "compression must be a compressor"),
        (lambda: SparsePush(0.0, TopK(0.1)), ValueError, "step_size must be a finite positive number"),
        (lambda: SparsePush(0.1, TopK(0.1), dense_rounds=1.5), ValueError, "dense_rounds must be a whole number"),
        (lambda: SparsePush(0.1, TopK(0.1), adaptive=1), ValueError, "adaptive must be above 0 and below 1"),
        (
            lambda: SkewCompensatedSparsePush(0.1, RandomK(0.1), gradient_rounds=0, gossip_rounds=3),
            ValueError,
            "gradient_rounds must be a whole number of rounds ≥ 1",
        ),
    ],
)
def test_what_cannot_be_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_compressed_algorithms_have_no_flow():
    for algorithm in (SparsePush(0.1, TopK(0.1)), CHOCO(0.1, TopK(0.1))):
        assert not algorithm.has_flow
    assert DGD(0.1).has_flow
