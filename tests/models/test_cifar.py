import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import data, models
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import TangentKernel, infinite_kernels

# Narrow, on small images of odd sizes; the same few throughout, so that each is compiled once.
NARROW = {"resnet20": models.resnet20(channels=2), "vgg11": models.vgg11(channels=2)}


@pytest.fixture(scope="module")
def mnist():
    """By network, six images of 10 × 8 pixels, or of 20 × 17, and their targets −1 and +1."""
    source = data.load("mnist", classes=(0, 1), samples=6, test_samples=1)
    images = {"resnet20": source.inputs[:, ::3, 2:26:3], "vgg11": source.inputs[:, 4:24, 5:22]}
    return {name: (np.asarray(x, float), np.asarray(source.targets, float)) for name, x in images.items()}


@pytest.fixture(scope="module")
def prepared(mnist):
    """`prepared(name)`: the model; whatever `prepare` asks of a network it has then been found to have."""
    return cache(lambda name: models.prepare(NARROW[name], mnist[name][0], 1))


def shapes(network, image, outputs=10):
    x = jnp.zeros((2, *image))
    params = jax.eval_shape(lambda key: network.init(key, x, outputs), jax.random.key(0))
    assert jax.eval_shape(network.apply, params, x).shape == (2, outputs)
    return params


def size(network, image, outputs=10):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(network, image, outputs)))


@pytest.mark.parametrize(("channels", "image"), [(16, (32, 32, 3)), (16, (28, 28, 1)), (3, (9, 8, 2))])
def test_resnet20_has_as_many_parameters_as_the_paper_s(channels, image):
    c, k = channels, image[-1]
    first = 9 * (k * c + 6 * c * c)
    others = 9 * ((c * 2 * c + 5 * (2 * c) ** 2) + (2 * c * 4 * c + 5 * (4 * c) ** 2))
    scales_and_shifts = 2 * (7 * c + 6 * 2 * c + 6 * 4 * c)
    readout = 4 * c * 10 + 10
    network = models.resnet20(channels=channels)
    assert size(network, image) == first + others + scales_and_shifts + readout
    convolutions = [layer["weight"].shape for layer in shapes(network, image)]
    assert len(convolutions) == 20


def test_their_sizes_are_those_that_are_quoted():
    assert size(models.resnet20(), (32, 32, 3)) == 269_722  # "0.27 M"
    assert size(models.vgg11(), (32, 32, 3)) == 9_228_362  # "9.2 M"


@pytest.mark.parametrize(
    ("channels", "image", "left"),
    [(64, (28, 28, 1), 1), (64, (17, 32, 3), 1), (2, (33, 64, 1), 4), (3, (65, 17, 2), 3)],
)
def test_vgg11_has_a_readout_for_every_pixel_that_is_left(channels, image, left):
    widths = channels * np.array([1, 2, 4, 4, 8, 8, 8, 8])
    weights = 9 * (image[-1] * widths[0] + widths[:-1] @ widths[1:])
    expected = weights + 2 * widths.sum() + left * widths[-1] * 10 + 10
    assert size(models.vgg11(channels=channels), image) == expected


def test_a_description_names_them():
    assert {name: models.NETWORKS[name] for name in NARROW} == {"resnet20": models.resnet20, "vgg11": models.vgg11}
    assert repr(NARROW["vgg11"]) == "vgg11(channels=2, σ_w=1.414, σ_b=0.1)"


def test_images_too_small_for_vgg11_are_refused():
    with pytest.raises(ValueError, match="vgg11 halves images 5 times, which needs 17 × 17 pixels, found 28 × 16: use"):
        shapes(models.vgg11(), (28, 16, 1))


@pytest.mark.parametrize("name", NARROW)
def test_bad_descriptions_are_refused(name):
    network = getattr(models, name)
    with pytest.raises(ValueError, match="channels must be a whole number of at least 1, found 0"):
        network(channels=0)
    with pytest.raises(ValueError, match="weight_std must be a finite number"):
        network(weight_std=-1.0)
    with pytest.raises(ValueError, match=f"{name} needs images of shape .* found \\(2, 64\\)"):
        shapes(network(), (64,))
    with pytest.raises(ValueError, match=f"the kernels of {name}.* at infinite width are not known"):
        infinite_kernels(network(), np.zeros((2, 28, 28, 1)))


def in_flax():
    """Both networks, as Flax has them."""
    import flax.linen as linen

    class Flax(linen.Module):
        """The parts of both networks."""

        def unit(self, x, features, stride=1):
            x = linen.Conv(features, (3, 3), strides=stride, padding=1, use_bias=False)(x)
            return linen.GroupNorm(num_groups=2, epsilon=1e-5)(x)

    class FlaxResNet(Flax):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(self.unit(x, 2))
            for features, stride in [(2, 1)] * 3 + [(4, 2)] + [(4, 1)] * 2 + [(8, 2)] + [(8, 1)] * 2:
                change = self.unit(linen.relu(self.unit(x, features, stride)), features)
                if stride == 2:
                    x = linen.avg_pool(x, (1, 1), (2, 2))
                    x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
                x = linen.relu(x + change)
            return linen.Dense(1)(linen.avg_pool(x, x.shape[1:3]).reshape(len(x), -1))

    class FlaxVGG(Flax):
        @linen.compact
        def __call__(self, x):
            for features in [2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"]:
                if features == "M":
                    x = linen.max_pool(x, (2, 2), (2, 2), padding="SAME")
                else:
                    x = linen.relu(self.unit(x, features))
            return linen.Dense(1)(x.reshape(len(x), -1))

    return {"resnet20": FlaxResNet(), "vgg11": FlaxVGG()}


def flax_params(params, weight_std, bias_std):
    *convolutions, readout = params
    found = {}
    for number, layer in enumerate(convolutions):
        n, m = layer["weight"].shape
        kernel = weight_std / np.sqrt(n) * layer["weight"].reshape(3, 3, n // 9, m)
        found[f"Conv_{number}"] = {"kernel": kernel}
        found[f"GroupNorm_{number}"] = {"scale": layer["scale"], "bias": layer["shift"]}
    kernel = weight_std / np.sqrt(len(readout["weight"])) * readout["weight"]
    return {"params": found | {"Dense_0": {"kernel": kernel, "bias": bias_std * readout["bias"]}}}


@pytest.mark.needs("flax")
@pytest.mark.parametrize("name", NARROW)
@in_float64
def test_the_forward_pass_is_that_of_flax(name, prepared, mnist):
    module, model, x = in_flax()[name], prepared(name), mnist[name][0][:2]
    rng = np.random.default_rng(0)  # scales and shifts away from 1 and 0, where they could be left out
    params = jax.tree.map(lambda p: p + rng.normal(size=p.shape) / 4, model.params)
    expected = jax.jit(module.apply)(flax_params(params, np.sqrt(2), 0.1), x)
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def pullbacks(prepared, mnist):
    """`pullbacks(name)`: `(params, v) -> outputs, Jᵀ v` on its six images, compiled once for descent and for J."""

    @cache
    def of(name):
        apply, (x, _) = prepared(name).apply, mnist[name]

        def pull(params, v):
            outputs, back = jax.vjp(lambda params: apply(params, x), params)
            return outputs, back(v)[0]

        return jax.jit(pull)

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
@in_float64
def test_they_begin_of_order_one_and_learn(name, prepared, mnist, pullbacks):
    y = mnist[name][1]
    params, residual, losses = prepared(name).params, np.zeros_like(y), []
    for _ in range(24):
        outputs, _ = pullbacks(name)(params, residual)
        residual = outputs - y
        _, gradient = pullbacks(name)(params, residual / len(y))
        losses.append(float(np.mean(residual**2)) / 2)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    first, _ = pullbacks(name)(prepared(name).params, residual)
    assert 1 / 4 < np.sqrt(np.mean(first**2)) < 4
    assert losses[-1] < losses[0] / 4


@pytest.mark.slow
@in_float64
def test_the_kernel_of_resnet20_is_the_jacobian_product(prepared, mnist, pullbacks):
    model, (x, _) = prepared("resnet20"), mnist["resnet20"]
    rows = [jax.tree.leaves(pullbacks("resnet20")(model.params, v[:, None])[1]) for v in np.eye(len(x))]
    jacobian = np.array([np.concatenate([np.ravel(leaf) for leaf in row]) for row in rows])
    assert jacobian.shape == (6, model.size)
    expected = jacobian @ jacobian.T
    found = TangentKernel(model.apply, model.params, x).matrix()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * expected.max())
