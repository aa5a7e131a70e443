"""Experiments, networks and results go to other processes and back."""

import pickle

import jax
import numpy as np
import pytest

import ntkp2p as p2p


def test_experiments_and_results_go_to_other_processes(digits):
    """A copy has the same models; it computes the linear model again when they are asked for."""
    run = p2p.Experiment(
        model=p2p.models.mlp(width=8, depth=1),
        data=digits(agents=3, samples=12, test_samples=4),
        mixing=p2p.metropolis(p2p.graphs.complete(3)),
        algorithm=p2p.DGD(0.1),
        rounds=3,
    )
    predicted = p2p.predict(run)
    for result in (run, predicted, p2p.train(run), p2p.stability(run), p2p.compare(p2p.train(run), predicted)):
        assert repr(pickle.loads(pickle.dumps(result))) == repr(result)
    for copy in (
        pickle.loads(pickle.dumps(predicted)),
        pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(predicted)))),
    ):
        x = run.data.test_inputs
        np.testing.assert_array_equal(copy.outputs(x, 3), predicted.outputs(x, 3))
        for one, other in zip(*(jax.tree.leaves(t.parameters(1, 2)) for t in (copy, predicted)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "model",
    [p2p.models.affine(), p2p.models.cnn(channels=2), p2p.models.resnet20(), p2p.models.vgg11()],
    ids=lambda model: model.name.partition("(")[0],
)
def test_networks_can_be_pickled(model):
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)
