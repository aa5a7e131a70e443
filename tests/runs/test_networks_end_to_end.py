"""Every kind of network is trained and predicted by the same two calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import DGD, Experiment, compare, graphs, metropolis, models, predict, train


def in_flax():
    import flax.linen as linen

    class FlaxNetwork(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(512)(x.reshape(len(x), -1)))
            return linen.Dense(1)(x)

    return FlaxNetwork()


def init(key, x):
    first, second = jax.random.split(key)
    return {"in": jax.random.normal(first, (64, 512)), "out": jax.random.normal(second, (512, 1))}


def apply(params, x):
    return jnp.cos(x.reshape(len(x), -1) @ params["in"] / 8) @ params["out"] / 512**0.5


NETWORKS = {
    "cnn": (models.cnn(channels=48, depth=2), 0.05),
    "tanh": (models.mlp(width=512, depth=1, activation="tanh"), 0.1),
    "pair": ((init, apply), 0.2),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cnn", marks=pytest.mark.slow),
        "tanh",
        "pair",
        pytest.param("flax", marks=pytest.mark.needs("flax")),
    ],
)
def test_trained_beside_predicted(name, digits):
    network, step_size = NETWORKS.get(name) or (in_flax(), 0.002)
    experiment = Experiment(
        model=network,
        data=digits(samples=24),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=step_size),
        rounds=40,
        record=5,
    )
    trained, predicted = train(experiment), predict(experiment)
    assert predicted.stable
    loss = trained.local_loss.values
    moved = np.abs(loss - loss[0]).max() / loss[0].mean()
    error = compare(trained, predicted).errors()["linearisation"]
    # These are not very wide: a twentieth of what training changed is left to the linearisation.
    assert error < moved / 20
    assert moved > 0.1


def test_the_error_falls_with_the_width(digits):
    errors = []
    for width in (32, 512):
        experiment = Experiment(
            model=models.mlp(width=width, depth=1),
            data=digits(samples=24),
            mixing=metropolis(graphs.cycle(4)),
            algorithm=DGD(step_size=0.1),
            rounds=40,
            record=5,
        )
        trained, predicted = train(experiment), predict(experiment)
        assert trained.local_loss[-1].mean() < 0.7 * trained.local_loss[0].mean()
        errors.append(compare(trained, predicted).errors("local_loss")["linearisation"])
    # Sixteen times as wide: a quarter of the error by the order width^(-1/2), between a half and a tenth with one seed.
    assert 1 / 10 < errors[1] / errors[0] < 1 / 2
    assert errors[1] < 0.02
