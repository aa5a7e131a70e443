"""One agent is central training, which neural-tangents predicts by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import DGD, Experiment, graphs, metropolis, models, predict
from ntkp2p.kernels import empirical_ntk

pytestmark = pytest.mark.needs("neural-tangents")


@pytest.fixture(scope="module")
def solved(digits, neural_tangents):
    """f_t(X) by `gradient_descent_mse` on the empirical kernel, and the experiment."""
    data = digits(agents=1, by="iid", samples=24)
    experiment = Experiment(
        model=models.mlp(width=64, depth=2),
        data=data,
        mixing=np.ones((1, 1)),
        algorithm=DGD(step_size=0.05),
        rounds=400,
    )
    model = experiment.initialise()
    with jax.enable_x64(True):
        kernel = empirical_ntk(model.apply, model.params, data.inputs)
        f0 = model.apply(model.params, jnp.asarray(data.inputs))
        # Its loss is the mean over samples and outputs, without the ½ that its gradient cancels.
        follow = neural_tangents.predict.gradient_descent_mse(jnp.asarray(kernel), jnp.asarray(data.targets))
        outputs = follow(jnp.asarray(0.05 * experiment.recorded), jnp.asarray(f0))
    return experiment, np.asarray(outputs)


def test_one_agent_is_neural_tangents_prediction(solved):
    experiment, outputs = solved
    expected = np.mean((outputs - experiment.data.targets) ** 2, axis=(1, 2)) / 2
    found = predict(experiment, time="flow")
    np.testing.assert_allclose(found.local_loss[:, 0], expected, rtol=1e-8, atol=1e-10 * expected[0])
    np.testing.assert_allclose(found.global_loss[:, 0], expected, rtol=1e-8, atol=1e-10 * expected[0])


def test_identical_data_on_a_complete_graph_are_one_agent(solved, digits):
    experiment, outputs = solved
    base = experiment.data.dataset
    repeated = type(base)(
        name="repeated",
        inputs=np.concatenate([base.inputs] * 3),
        targets=np.concatenate([base.targets] * 3),
    )
    from ntkp2p.data import AgentData

    data = AgentData(dataset=repeated, indices=tuple(np.arange(24) + 24 * q for q in range(3)))
    three = Experiment(
        model=experiment.model,
        data=data,
        mixing=metropolis(graphs.complete(3)),
        algorithm=experiment.algorithm,
        rounds=400,
    )
    expected = np.mean((outputs - experiment.data.targets) ** 2, axis=(1, 2)) / 2
    found = predict(three, time="flow").local_loss
    np.testing.assert_allclose(found, np.stack([expected] * 3, axis=1), rtol=1e-8, atol=1e-10 * expected[0])
