"""Algorithms and compressors as users write them: outside the package, in a few lines, trained and predicted alike."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p.algorithms.contract import check_algorithm

Q = 4
W = p2p.metropolis(p2p.graphs.cycle(Q))
RNG = np.random.default_rng(0)
NUMBERS = p2p.data.Dataset(name="numbers", inputs=RNG.normal(size=(12, 2)), targets=RNG.normal(size=(12, 1)))
DATA = NUMBERS.split(Q, by="label")


class GradientTracking(p2p.Algorithm):
    """DIGing: y follows the mean gradient. Nedić, Olshevsky and Shi, SIAM J. Optim. 27 (2017)."""

    def init(self, x):
        return x, 0 * x, 0 * x

    def model(self, state):
        return state[0]

    def round(self, state, world):
        x, y, before = state
        gradient = world.grad(x)
        y = world.mix(y) + gradient - before
        return world.mix(x) - self.step_size * y, y, gradient


class Extra(p2p.Algorithm):
    """Shi, Ling, Wu and Yin, SIAM J. Optim. 25 (2015), from models 0, of which W x = 0."""

    def init(self, x):
        return x, 0 * x, 0 * x

    def model(self, state):
        return state[0]

    def round(self, state, world):
        x, last, before = state
        gradient = world.grad(x)
        mixed = x + world.mix(x) - (last + world.mix(last)) / 2
        return mixed - self.step_size * (gradient - before), x, gradient


class ExactDiffusion(p2p.Algorithm):
    """Yuan, Ying, Zhao and Sayed, IEEE Trans. Signal Process. 67 (2019)."""

    def init(self, x):
        return x, x

    def model(self, state):
        return state[0]

    def round(self, state, world):
        x, last = state
        adapted = x - self.step_size * world.grad(x)
        corrected = adapted + x - last
        return (corrected + world.mix(corrected)) / 2, adapted


class Plain(p2p.Algorithm):
    """DGD once more."""

    def round(self, state, world):
        return world.mix(state) - self.step_size * world.grad(state)


ALGORITHMS = (GradientTracking, Extra, ExactDiffusion)


def experiment(algorithm, rounds=60, **options):
    return p2p.Experiment(model=p2p.models.affine(), data=DATA, mixing=W, algorithm=algorithm, rounds=rounds, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_is_predicted(algorithm):
    run = experiment(algorithm(0.1), record=7)
    trained, predicted = p2p.train(run), p2p.predict(run)
    for name in ("local_loss", "global_loss", "parameter_distance"):
        np.testing.assert_allclose(predicted.dataset[name], trained.dataset[name], rtol=1e-12, atol=1e-13)
    assert p2p.stability(run).stable["rounds"]


def models_of(predicted, time):
    """All agents' parameters as one array, the bias before the weights."""
    models = (jax.tree.leaves(predicted.models.parameters(q, time)) for q in range(Q))
    return np.array([np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in models])


@pytest.mark.parametrize(
    ("algorithm", "rounds"), [(GradientTracking(0.05), 4000), (Extra(0.2), 1000), (ExactDiffusion(0.2), 1000)]
)
def test_there_is_no_bias(algorithm, rounds):
    """All agents come to rest at the minimiser of the mean loss, found by least squares, as DGD's do not.

    Rounding grows by the round in modes of eigenvalue 1, so that more rounds are not nearer.
    """
    features = np.hstack([np.ones((12, 1)), DATA.inputs / np.sqrt(2)])
    weights = np.sqrt(1 / (2 * Q * DATA.sizes[DATA.owner]))[:, None]
    minimiser = np.linalg.lstsq(weights * features, weights * DATA.targets, rcond=None)[0].ravel()

    def gap(algorithm):
        predicted = p2p.predict(experiment(algorithm, rounds, record=rounds))
        return float(np.abs(models_of(predicted, float(rounds)) - minimiser).max())

    assert gap(algorithm) < 1e-9
    assert gap(p2p.DGD(algorithm.step_size)) > 1e-2


class Momentum(Plain):
    def init(self, x):
        return {"x": x, "v": 0 * x}

    def model(self, state):
        return state["x"]

    def round(self, state, world):
        v = 0.5 * state["v"] - self.step_size * world.grad(state["x"])
        return {"x": world.mix(state["x"]) + v, "v": v}


class NoModel(Momentum):
    def model(self, state):
        return state  # as by default


class LostLeaf(Momentum):
    def round(self, state, world):
        return {"x": world.mix(state["x"])}


class OtherForm(Plain):
    def round(self, state, world):
        return (super().round(state, world),)


class Norms(Momentum):
    """A step size by the norm of the gradients: no linear system, and no closed form."""

    def init(self, x):
        return {"x": x, "v": jnp.zeros(len(x))}

    def round(self, state, world):
        gradient = world.grad(state["x"])
        v = state["v"] + jnp.sum(gradient**2, axis=1)
        return {"x": world.mix(state["x"]) - self.step_size * gradient / (1 + v[:, None]), "v": v}


REFUSED = {
    NoModel: r"NoModel\.model must return the agents' models, .*, found .*: define model",
    LostLeaf: r"LostLeaf\.round must return a state like that of init, .*, found .*: return the same parts",
    OtherForm: r"OtherForm\.round must return a state like that of init, ",
    Norms: r"Norms\.round makes state\['v'\] depend on the models",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_algorithm_that_does_not_fit_together_is_refused(kind):
    """Where it enters, so that predict, train and stability never see it."""
    with pytest.raises(p2p.InputError, match=REFUSED[kind]) as refused:
        experiment(kind(0.1))
    assert "\n" not in str(refused.value)


def test_what_a_round_raises_is_not_caught():
    class Broken(Plain):
        def round(self, state, world):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        experiment(Broken(0.1))


def test_algorithms_that_differ_in_constants_are_checked_once():
    traced = []

    class Counted(Plain):
        def round(self, state, world):
            traced.append(self)
            return super().round(state, world)

    for step_size in (0.1, 0.2, 0.3):
        check_algorithm(Counted(step_size), Q)
    assert len(traced) == 1


def test_a_flow_is_of_states_that_are_models():
    assert Plain(0.1).has_flow
    assert not Momentum(0.1).has_flow
    with pytest.raises(ValueError, match="flow"):
        p2p.predict(experiment(Momentum(0.1)), time="flow")


class Weighted(Momentum):
    """Momentum whose initial state has one constant of each agent."""

    weights: Any = None

    def init(self, x):
        return {"x": x, "v": self.weights * x}


def test_a_constant_of_every_agent():
    """What is known of an algorithm beforehand is asked of all its agents, or without calling its `init`."""
    weighted, plain = (experiment(kind) for kind in (Weighted(0.1, jnp.ones((Q, 1))), Momentum(0.1)))
    loss = p2p.predict(weighted).global_loss
    np.testing.assert_allclose(loss, p2p.predict(plain).global_loss, rtol=1e-12)
    np.testing.assert_allclose(loss, p2p.train(weighted).global_loss, rtol=1e-12)
    assert p2p.stability(weighted).stable["rounds"]


class WeightedNorms(Norms):
    weights: Any = None

    def round(self, state, world):
        after = super().round(state, world)
        return after | {"v": self.weights * after["v"]}


class WeightedCount(Weighted):
    def init(self, x):
        return {"x": x, "v": jnp.zeros(len(x))}

    def round(self, state, world):
        return {"x": world.mix(state["x"]), "v": self.weights + state["v"]}


def test_constants_that_are_arrays_are_followed():
    """Beside a part of the state that does not grow with the models."""
    check_algorithm(WeightedCount(0.1, jnp.ones(Q)), Q)
    with pytest.raises(p2p.InputError, match=r"WeightedNorms\.round makes state\['v'\] depend on the models"):
        check_algorithm(WeightedNorms(0.1, jnp.ones(Q)), Q)


class Grid(p2p.Compressor):
    """Multiples of 1/2, up or down at random with the exact mean: a signed byte each, after four bytes of head."""

    unbiased = True

    def bits(self, size, /):
        return 8 * size + 32

    def __call__(self, values, key, /):
        return jnp.floor(2 * values + jax.random.uniform(key, values.shape)) / 2


def test_the_bytes_of_a_users_quantiser():
    """A message to each of two neighbours, of layers of 2 weights and of 1 bias: (8 · 2 + 32 + 8 · 1 + 32)/8 bytes."""
    sent = p2p.communication(experiment(p2p.CHOCO(0.1, Grid(), averaging_rate=0.5), 5))
    np.testing.assert_array_equal(sent.bytes, np.full((5, Q), 2 * 11.0))


def test_the_mean_of_a_users_quantiser():
    """An unbiased compressor's prediction is of the mean over draws, which 200 trainings confirm."""
    run = experiment(p2p.CHOCO(0.1, Grid(), averaging_rate=0.5), 20, record=20)
    predicted = p2p.predict(run)
    assert predicted.dataset.attrs["mean_over"] == "Grid"
    assert "mean_field_share" not in predicted.dataset.attrs
    assert "mean over draws (Grid)" in repr(predicted)
    assert ("mean over draws", "Grid") in p2p.stability(run).sections["Rounds"]
    seen = defaultdict(list)
    for draw in range(200):
        p2p.train(run, draw=draw, observe=lambda k, x: seen[k].append(x))
    found = np.array(seen[20])
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (error > 1e-3).all()
    assert (np.abs(found.mean(axis=0) - models_of(predicted, 20.0)) < 4.5 * error).all()
