import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import models
from ntkp2p.base.precision import in_float64

IMAGES = np.random.default_rng(0).normal(size=(6, 5, 4, 2))


@pytest.mark.parametrize(
    "network",
    [models.affine(), models.mlp(width=7, depth=3), models.cnn(channels=3, depth=2)],
    ids=repr,
)
@pytest.mark.parametrize("outputs", [1, 3])
@in_float64
def test_outputs_follow_the_data(network, outputs):
    model = models.prepare(network, IMAGES, outputs)
    assert model.apply(model.params, IMAGES).shape == (6, outputs)
    assert all(p.dtype == "float64" for p in jax.tree.leaves(model.params))


@in_float64
def test_mlp_is_the_ntk_parameterisation():
    model = models.prepare(models.mlp(width=7, depth=1, activation="tanh", weight_std=1.3, bias_std=0.2), IMAGES, 2)
    x = IMAGES.reshape(6, -1)
    hidden, readout = model.params
    h = np.tanh(1.3 / np.sqrt(40) * x @ hidden["weight"] + 0.2 * hidden["bias"])
    expected = 1.3 / np.sqrt(7) * h @ readout["weight"] + 0.2 * readout["bias"]
    np.testing.assert_allclose(model.apply(model.params, IMAGES), expected, rtol=1e-12)


@in_float64
def test_cnn_is_jax_own_convolution():
    model = models.prepare(models.cnn(channels=3, depth=1, weight_std=1.0, bias_std=0.0), IMAGES, 2)
    layer, readout = model.params
    kernel = layer["weight"].reshape(3, 3, 2, 3)
    convolved = jax.lax.conv_general_dilated(IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = jax.nn.relu(convolved / np.sqrt(18)).reshape(6, -1)
    expected = h @ readout["weight"] / np.sqrt(60)
    np.testing.assert_allclose(model.apply(model.params, IMAGES), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.needs("neural-tangents")
@pytest.mark.parametrize(("activation", "stax_name"), [("relu", "Relu"), ("erf", "Erf"), ("gelu", "Gelu")])
@in_float64
def test_variance_at_the_start_is_the_infinite_width_kernel(activation, stax_name, neural_tangents):
    stax = neural_tangents.stax
    sigma = getattr(stax, stax_name)()
    _, _, kernel = stax.serial(stax.Dense(1, 1.4, 0.1), sigma, stax.Dense(1, 1.4, 0.1))
    x = IMAGES[:1].reshape(1, -1)
    expected = float(kernel(jnp.asarray(x), None, "nngp")[0, 0])
    network = models.mlp(width=256, depth=1, activation=activation, weight_std=1.4)
    draws = [
        float(m.apply(m.params, x)[0, 0]) for m in (models.prepare(network, x, 1, seed=seed) for seed in range(200))
    ]
    # The sample variance of n normal draws deviates by √(2/n) of itself; four such deviations.
    assert np.var(draws) == pytest.approx(expected, rel=4 * np.sqrt(2 / 200))


@pytest.mark.needs("flax")
@in_float64
def test_a_flax_module_is_a_model_too():
    import flax.linen as linen

    class Small(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Dense(9)(x.reshape(len(x), -1)))
            return linen.Dense(2)(x)

    flax = models.prepare(Small(), IMAGES, 2)
    assert flax.apply(flax.params, IMAGES).shape == (6, 2)


@in_float64
def test_a_pair_is_a_model_too():
    pair = models.prepare((lambda key, x: jnp.ones((40, 2)), lambda p, x: x.reshape(len(x), -1) @ p), IMAGES, 2)
    np.testing.assert_allclose(pair.apply(pair.params, IMAGES)[:, 0], IMAGES.sum((1, 2, 3)), rtol=1e-12)


def test_the_seed_decides_the_start():
    one, same, other = (models.prepare(models.affine(), IMAGES, 1, seed=s) for s in (0, 0, 1))
    first = [np.asarray(m.params[0]["weight"]) for m in (one, same, other)]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.allclose(first[0], first[2])


@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (lambda: models.mlp(activation="rellu"), ValueError, "unknown activation 'rellu'.*'relu'"),
        (lambda: models.mlp(width=0), ValueError, "width must be a whole number of at least 1"),
        (lambda: models.cnn(depth=0), ValueError, "depth must be"),
        (lambda: object(), TypeError, r"a pair \(init, apply\)"),
        (lambda: models.mlp(outputs=3), ValueError, "targets of shape"),
        (lambda: (lambda k, x: jnp.ones(2, int), lambda p, x: x), ValueError, "real floating-point"),
    ],
)
def test_bad_networks_are_refused(network, error, message):
    with pytest.raises(error, match=message):
        models.prepare(network(), IMAGES, 1)


def test_networks_that_couple_samples_are_refused():
    def centred(p, x):
        h = x.reshape(len(x), -1) @ p
        return h - h.mean(axis=0)

    with pytest.raises(ValueError, match="depends on the other samples"):
        models.prepare((lambda key, x: jnp.ones((40, 1)), centred), IMAGES, 1)


@pytest.mark.needs("flax")
def test_batch_statistics_are_no_parameters():
    import flax.linen as linen

    class Normalised(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(linen.BatchNorm(use_running_average=True)(x.reshape(len(x), -1)))

    with pytest.raises(ValueError, match="keeps batch_stats beside its parameters"):
        models.prepare(Normalised(), IMAGES, 1)


def test_cnn_needs_images():
    with pytest.raises(ValueError, match="cnn needs images"):
        models.prepare(models.cnn(), IMAGES.reshape(6, -1), 1)
