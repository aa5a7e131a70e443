"""Systems evaluated by NumPy, against the same rounds compiled by JAX."""

import numpy as np
import pytest

from ntkp2p import (
    ATC,
    CHOCO,
    CTA,
    DGD,
    Algorithm,
    Delayed,
    LocalSGD,
    PushSum,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    graphs,
    metropolis,
    models,
    push_weights,
)
from ntkp2p.dynamics import linear_system
from ntkp2p.dynamics.eager import eager_system
from ntkp2p.kernels import Features

W = metropolis(graphs.path(3))


class HeavyBall(Algorithm):
    """A user's algorithm with a second leaf."""

    def init(self, x):
        return {"x": x, "v": 0 * x}

    def model(self, state):
        return state["x"]

    def round(self, state, world):
        v = 0.9 * state["v"] - self.step_size * world.grad(state["x"])
        return {"x": world.mix(state["x"]) + v, "v": v}


class Clipped(Algorithm):
    """Not affine."""

    def round(self, x, world):
        return np.clip(x, -1, 1)


@pytest.fixture(scope="module", params=[(0, 1), (0, 1, 2)], ids=["one output", "three outputs"])
def problem(request, digits):
    data = digits(agents=3, samples=12, classes=request.param)
    model = models.prepare(models.affine(), data.inputs, data.outputs)
    return Features.of(model, data.inputs), data


@pytest.mark.parametrize("algorithm", [DGD(0.1), CTA(0.1), ATC(0.1), HeavyBall(0.1)], ids=lambda a: a.name)
def test_matrix_offset_and_models_are_those_of_the_compiled_system(algorithm, problem):
    features, data = problem
    eager, compiled = eager_system(algorithm, W, features, data), linear_system(algorithm, W, features, data)
    states = np.random.default_rng(1).normal(size=(4, compiled.size))
    np.testing.assert_allclose(eager.matrix(), compiled.matrix(), atol=1e-13)
    np.testing.assert_allclose(eager.offset, compiled.offset, atol=1e-13)
    np.testing.assert_allclose(eager.apply(states[0]), compiled.apply(states[0]), atol=1e-13)
    np.testing.assert_array_equal(eager.models(states, np.arange(4)), compiled.models(states, np.zeros(4, int)))
    np.testing.assert_array_equal(eager.initial, compiled.initial)
    for name in ("step_size", "symmetric", "growth", "sufficient_step_size", "has_flow"):
        np.testing.assert_allclose(getattr(eager, name), getattr(compiled, name), rtol=1e-13, err_msg=name)
    assert eager.curvature == pytest.approx(compiled.curvature, rel=1e-12)


@pytest.mark.parametrize(
    "algorithm",
    [
        PushSum(0.1, momentum=0.5),
        LocalSGD(0.1, steps=2, momentum=0.3, delay=1),
        Delayed(DGD(0.1), gradients=2, messages=1),
        SparsePush(0.1, RandomK(0.3), dense_rounds=2),
        SkewCompensatedSparsePush(0.1, RandomK(0.3), gradient_rounds=3, gossip_rounds=2),
        CHOCO(0.1, RandomK(0.3)),
    ],
    ids=lambda a: a.name,
)
@pytest.mark.parametrize("problem", [(0, 1, 2)], indirect=True, ids=["three outputs"])
def test_rounds_and_models_of_every_algorithm_are_those_of_the_compiled_system(algorithm, problem):
    directed = push_weights(graphs.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]))
    mixing = directed if algorithm.stochastic == "column" else W
    eager, compiled = (build(algorithm, mixing, *problem, rounds=20) for build in (eager_system, linear_system))
    states = np.random.default_rng(1).normal(size=(3, compiled.size))
    for driven in (True, False):
        found, expected = (system.over(states, 1, 7, driven=driven) for system in (eager, compiled))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    rounds = np.array([0, 2, 7])
    np.testing.assert_allclose(eager.models(states, rounds), compiled.models(states, rounds), rtol=1e-13, atol=1e-13)


class OfJax(Algorithm):
    """Whose round is for arrays of JAX only."""

    def round(self, x, world):
        return (world.mix(x) - self.step_size * world.grad(x)).at[0].multiply(0.5)


class InPlace(Algorithm):
    """Whose round changes an array of NumPy in place, and makes another one of JAX's."""

    def round(self, x, world):
        x *= 0.5
        return world.mix(x)


@pytest.mark.parametrize("algorithm", [OfJax(0.1), InPlace(0.1)], ids=lambda a: a.name)
@pytest.mark.parametrize("problem", [(0, 1)], indirect=True, ids=["one output"])
def test_a_round_for_the_arrays_of_jax_is_left_to_the_compiler(algorithm, problem):
    assert eager_system(algorithm, W, *problem) is None
    assert linear_system(algorithm, W, *problem).size == 36


def test_a_round_that_is_not_affine_is_left_to_the_compiler_which_refuses_it(problem):
    assert eager_system(Clipped(0.1), W, *problem) is None
