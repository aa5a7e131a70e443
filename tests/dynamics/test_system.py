import dataclasses

import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Algorithm, Experiment, linear_system, models

RNG = np.random.default_rng(0)
W = RNG.dirichlet(np.ones(4), size=4)


def assembled(algorithm, data, network=None):
    experiment = Experiment(
        model=network or models.mlp(width=8, depth=1), data=data, mixing=W, algorithm=algorithm, rounds=1
    )
    features = experiment.features()
    return features, linear_system(algorithm, W, features, data)


def by_hand(algorithm, features, data):
    """M and b from Kronecker products, for one column of coordinates."""
    eta, rank, Q = algorithm.step_size, features.rank, data.agents
    hessian, pull = np.zeros((Q * rank, Q * rank)), np.zeros(Q * rank)
    residual = (features.initial - data.targets).ravel()
    for q in range(Q):
        rows, block = np.repeat(data.owner == q, len(features.matrix) // data.samples), slice(q * rank, (q + 1) * rank)
        s = features.matrix[rows]
        hessian[block, block] = s.T @ s / data.sizes[q]
        pull[block] = s.T @ residual[rows] / data.sizes[q]
    mix, one = np.kron(W, np.eye(rank)), np.eye(Q * rank)
    return {
        DGD: (mix - eta * hessian, -eta * pull),
        CTA: ((one - eta * hessian) @ mix, -eta * pull),
        ATC: (mix @ (one - eta * hessian), -eta * mix @ pull),
    }[type(algorithm)]


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize(
    ("split", "classes"), [({"by": "label"}, (0, 1, 2)), ({"by": "dirichlet", "alpha": 0.3}, (0, 1))], ids=str
)
def test_the_linearised_round_is_the_system_by_hand(algorithm, split, classes, digits):
    data = digits(samples=18, classes=classes, **split)
    features, system = assembled(algorithm(step_size=0.2), data)
    matrix, offset = by_hand(algorithm(step_size=0.2), features, data)
    np.testing.assert_allclose(system.matrix(), matrix, atol=1e-12)
    np.testing.assert_allclose(system.offset, offset, atol=1e-12)
    np.testing.assert_array_equal(system.initial, 0)


def test_curvature_is_the_largest_local_hessian(digits):
    data = digits(by="label")
    features, system = assembled(DGD(step_size=0.2), data)
    blocks = [features.matrix[data.owner == q] for q in range(4)]
    expected = max(np.linalg.svd(s, compute_uv=False)[0] ** 2 / len(s) for s in blocks)
    assert system.curvature == pytest.approx(expected, rel=1e-10)


class Clipped(Algorithm):
    def round(self, state, world, /):
        return (world.mix(state) - self.step_size * world.grad(state)).clip(-0.1, 0.1)


class Doubled(Algorithm):
    """A state of two arrays: heavy-ball momentum."""

    def init(self, x, /):
        return {"x": x, "v": 0 * x}

    def model(self, state, /):
        return state["x"]

    def round(self, state, world, /):
        v = 0.5 * state["v"] - self.step_size * world.grad(state["x"])
        return {"x": world.mix(state["x"]) + v, "v": v}


def test_a_round_that_is_not_affine_is_refused(digits):
    with pytest.raises(ValueError, match="one round of Clipped is not affine"):
        assembled(Clipped(step_size=0.1), digits())


def test_a_users_own_algorithm_with_its_own_state_trains_and_predicts(digits):
    from ntkp2p import predict, train

    experiment = Experiment(
        model=models.affine(), data=digits(), mixing=W, algorithm=Doubled(step_size=0.05), rounds=40
    )
    trained, predicted = train(experiment), predict(experiment)
    np.testing.assert_allclose(predicted.local_loss, trained.local_loss, rtol=1e-10)
    assert "Doubled" in repr(predicted)
    assert dataclasses.replace(experiment, rounds=3).recorded[-1] == 3
