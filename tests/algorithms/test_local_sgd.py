"""Local SGD: event by event as its definition says, and in rounds of all agents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p.algorithms import ATC, CHOCO, DGD, Delayed, LocalSGD, PushSum, TopK, World
from ntkp2p.algorithms.event_round import active_round, mean_round, must_be_asynchronous
from ntkp2p.algorithms.local_sgd import FORGETTING
from ntkp2p.asynchrony import Events, Kind

N, D, RELAYS = 4, 3, 2
RNG = np.random.default_rng(0)
PULL = RNG.normal(size=(N, D, D))
W = np.array([[0.4, 0.6, 0.0, 0.0], [0.2, 0.5, 0.3, 0.0], [0.1, 0.2, 0.4, 0.3], [0.5, 0.0, 0.2, 0.3]])

ALGORITHMS = [
    LocalSGD(0.1),
    LocalSGD(0.1, steps=3),
    LocalSGD(0.1, momentum=0.7),
    LocalSGD(0.1, delay=2),
    LocalSGD(0.1, variance_scale=0.01),
    LocalSGD(0.1, steps=2, momentum=0.5, delay=1, variance_scale=0.05),
]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gradient(agent, x):
    return jnp.tanh(x @ jnp.asarray(PULL)[agent]) - 0.3


def events(count=120, weight=W, seed=1):
    """All kinds of them at random, with two messages on their way at most."""
    rng, rows, flying, free = np.random.default_rng(seed), [], [], list(range(RELAYS))
    for _ in range(count):
        agent, peer = (int(q) for q in rng.choice(N, 2, replace=False))
        kind = Kind(int(rng.integers(8)))
        if (kind == Kind.SEND and not free) or (kind == Kind.ARRIVE and not flying):
            kind = Kind.UPDATE
        if kind == Kind.SEND:
            flying.append((agent, peer, free.pop()))
            rows.append((kind, *flying[-1]))
        elif kind == Kind.ARRIVE:
            rows.append((kind, *flying.pop(0)))
            free.append(rows[-1][3])
        elif kind in (Kind.MESSAGE, Kind.EXCHANGE, Kind.LOST):
            rows.append((kind, agent, peer, -1))
        else:
            rows.append((kind, agent, -1, -1))
    kind, agent, peer, relay = (np.array(column, int) for column in zip(*rows, strict=True))
    time = np.arange(1.0, count + 1)
    return Events(N, time, kind, agent, peer, relay, RELAYS, weight, time[-1], np.zeros(N, int))


class Agent:
    """One agent's own affairs, in the words of the definition."""

    def __init__(self, number, algorithm):
        self.number, self.a = number, algorithm
        self.x = self.begun = self.velocity = np.zeros(D)
        self.waiting, self.variance = [np.zeros(D)] * algorithm.delay, 0.0

    def update(self):
        eta, v = float(self.a.step_size), self.begun
        if self.a.variance_scale:
            eta /= 1 + self.variance / self.a.variance_scale
        for _ in range(self.a.steps):
            v = v - eta * (np.tanh(v @ PULL[self.number]) - 0.3)
        self.waiting.append(v - self.begun)
        self.velocity = (self.a.momentum or 0.0) * self.velocity + self.waiting.pop(0)
        self.x = self.x + self.velocity
        self.begun = self.x

    def hears(self, model, taken):
        self.variance += FORGETTING * (np.sum((model - self.x) ** 2) - self.variance)
        self.x = (1 - taken) * self.x + taken * model


def recursion(algorithm, drawn):
    agents, flying = [Agent(q, algorithm) for q in range(N)], {}
    for kind, agent, peer, relay in zip(drawn.kind, drawn.agent, drawn.peer, drawn.relay, strict=True):
        if kind == Kind.UPDATE:
            agents[agent].update()
        elif kind in (Kind.DROP, Kind.RETURN):
            agents[agent].begun = agents[agent].x
        elif kind in (Kind.MESSAGE, Kind.EXCHANGE):
            mine, theirs = agents[agent].x, agents[peer].x
            agents[agent].hears(theirs, drawn.weight[agent, peer])
            if kind == Kind.EXCHANGE:
                agents[peer].hears(mine, drawn.weight[peer, agent])
        elif kind == Kind.SEND:
            flying[relay] = agents[peer].x
        elif kind == Kind.ARRIVE:
            agents[agent].hears(flying.pop(relay), drawn.weight[agent, peer])
    return np.array([agent.x for agent in agents])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_events_are_the_recursion_of_every_user(algorithm):
    drawn = events(weight=np.where(W > 0, W, 0.25))
    state = algorithm.init(jnp.zeros((drawn.rows, D)))
    assert set(drawn.kind) == set(Kind)

    def one(state, step):
        return active_round(algorithm, state, step, gradient), None

    state = jax.jit(lambda state: jax.lax.scan(one, state, jax.tree.map(jnp.asarray, drawn.steps()))[0])(state)
    x = algorithm.model(state)[:N]
    np.testing.assert_allclose(x, recursion(algorithm, drawn), rtol=1e-12, atol=1e-14)
    assert np.abs(x).min() > 1e-6  # every agent has moved


def test_the_mean_step_is_the_mean_of_the_steps():
    algorithm, drawn = LocalSGD(0.1, steps=2, momentum=0.5, delay=1), events(40)
    shares = RNG.dirichlet(np.ones(40))
    leaves, tree = jax.tree.flatten(algorithm.init(jnp.zeros((drawn.rows, D))))
    state = jax.tree.unflatten(tree, [jnp.asarray(RNG.normal(size=leaf.shape)) for leaf in leaves])
    steps = jax.tree.map(jnp.asarray, drawn.steps())
    found = mean_round(algorithm, state, steps, jnp.asarray(shares), gradient)
    one = jax.jit(lambda step: active_round(algorithm, state, step, gradient))
    after = [one(jax.tree.map(lambda a, k=k: a[k], steps)) for k in range(40)]
    expected = jax.tree.map(lambda *leaves: sum(p * leaf for p, leaf in zip(shares, leaves, strict=True)), *after)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def world():
    def grad(x, when=True):
        return jax.vmap(gradient)(jnp.arange(N), x)

    return World(mix=lambda x: W @ x, grad=grad, own=lambda x: np.diagonal(W)[:, None] * x)


def test_with_one_step_the_rounds_of_all_are_those_of_adapt_then_combine():
    local, atc = LocalSGD(0.1), ATC(0.1)
    state, x = local.init(jnp.zeros((N, D))), jnp.zeros((N, D))
    for _ in range(5):
        state, x = local.round(state, world()), atc.round(x, world())
    np.testing.assert_allclose(local.model(state), x, rtol=1e-14)


def test_variance_of_what_all_neighbours_sent():
    algorithm = LocalSGD(0.1, variance_scale=0.02)
    x = RNG.normal(size=(N, D))
    state = algorithm.init(jnp.asarray(x))
    after = algorithm.round(state, world())
    moved = x - 0.1 * np.asarray(world().grad(x))
    for q in range(N):
        others = [r for r in range(N) if r != q]
        weights = W[q, others] / W[q, others].sum()
        spread = sum(w * np.sum((moved[r] - moved[q]) ** 2) for w, r in zip(weights, others, strict=True))
        np.testing.assert_allclose(after.variance[q, 0], FORGETTING * spread, rtol=1e-12)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of rounds ≥ 1"),
        ({"delay": -1}, "delay must be a whole number"),
        ({"momentum": 1.0}, "momentum must be above 0 and below 1"),
        ({"variance_scale": 0.0}, "variance_scale must be a finite positive number"),
    ],
)
def test_constants_out_of_range_are_named(constants, message):
    with pytest.raises(ValueError, match=message):
        LocalSGD(0.1, **constants)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (PushSum(0.1), "column sums of one"),
        (CHOCO(0.1, TopK(0.1)), "CHOCO does not support asynchronous agents"),
        (Delayed(DGD(0.1), gradients=1), r"LocalSGD\(delay=\.\.\.\)"),
    ],
)
def test_what_needs_rounds_of_all_is_refused(algorithm, message):
    with pytest.raises(ValueError, match=message):
        must_be_asynchronous(algorithm)


def test_an_algorithm_that_counts_rounds_is_refused():
    class Counting(DGD):
        def init(self, x, /):
            return x, 0

    with pytest.raises(ValueError, match="parts that do not belong to a single agent"):
        must_be_asynchronous(Counting(0.1))


def test_steps_are_of_at_most_two_rows_and_average():
    drawn = events()
    steps = drawn.steps()
    np.testing.assert_allclose(steps.weights.sum(axis=2), 1, rtol=1e-15)
    assert (steps.rows[:, 0] != steps.rows[:, 1]).all()
    for k in range(len(drawn)):
        expected = np.eye(drawn.rows)
        a, b = steps.rows[k]
        expected[a, a] = steps.weights[k, 0, 0]
        if b < drawn.rows:
            expected[a, b], expected[b, a], expected[b, b] = steps.weights[k].ravel()[1:]
        np.testing.assert_array_equal(drawn.at(k), expected)
    part = drawn.steps(10, 20)
    for name, whole in steps._asdict().items():
        np.testing.assert_array_equal(getattr(part, name), whole[10:20])
    plain = dataclasses.replace(drawn, weight=0.5).steps().weights
    assert set(np.unique(plain)) == {0.0, 0.5, 1.0}
