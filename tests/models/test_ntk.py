import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import models
from ntkp2p.models import empirical_ntk
from ntkp2p.models.ntk import _factors
from ntkp2p.precision import in_float64

RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(7, 4, 4, 2)), RNG.normal(size=(5, 4, 4, 2))


class Convolutional(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3))(x)).reshape(len(x), -1)
        return linen.Dense(3)(linen.gelu(linen.Dense(11)(x)))


def pair(apply, **shapes):
    def init(key, x):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    return init, lambda p, x: apply(p, x.reshape(len(x), -1))


NETWORKS = {
    "affine": models.affine(),
    "mlp": models.mlp(width=9, depth=3, activation="erf"),
    "cnn": models.cnn(channels=3),
    "flax": Convolutional(),
    # Uses of a weight that are no single product of one row, which must not be mistaken for one:
    "tied": pair(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) @ p["v"], w=(32, 32), v=(32, 3)),
    "twice": pair(lambda p, x: (x @ p["w"]) * jnp.sum(p["w"] ** 2), w=(32, 3)),
    "tokens": pair(lambda p, x: jnp.sum(jnp.tanh(x.reshape(len(x), 8, 4) @ p["w"]), 1) @ p["v"], w=(4, 6), v=(6, 3)),
    "scaled": pair(lambda p, x: jnp.tanh(x @ (2 * p["w"])) @ p["v"], w=(32, 5), v=(5, 3)),
    "jitted": pair(jax.jit(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]), w=(32, 5), v=(5, 3)),
    "transposed": pair(lambda p, x: jnp.tanh(p["w"] @ x.T).T @ p["v"], w=(5, 32), v=(5, 3)),
    "of a parameter": pair(lambda p, x: jnp.tanh(x @ p["u"]) * (p["v"] @ p["w"]), u=(32, 3), v=(5,), w=(5, 3)),
    "outer": pair(lambda p, x: x @ (p["a"] @ p["b"]), a=(32, 1), b=(1, 3)),
    "inner": pair(lambda p, x: jnp.tanh(x @ p["w"]) * (p["a"] @ p["b"]), w=(32, 3), a=(1, 5), b=(5, 1)),
    "unused": pair(lambda p, x: x @ p["w"], w=(32, 3), v=(5, 3)),
}


@in_float64
def jacobian(model, x):
    leaves = jax.tree.leaves(jax.jacobian(model.apply)(model.params, jnp.asarray(x)))
    return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


CASES = [(name, 2**31) for name in NETWORKS] + [("mlp", 1), ("flax", 1)]  # 1 byte: a block for every sample


@pytest.mark.parametrize(("name", "memory"), CASES)
def test_equals_the_jacobian_product(name, memory):
    model = models.prepare(NETWORKS[name], X1, 3)
    j1, j2 = jacobian(model, X1), jacobian(model, X2)
    exact = np.einsum("ncp,mdp->ncmd", j1, j1).reshape(21, 21)
    between = np.einsum("ncp,mdp->ncmd", j1, j2).reshape(21, 15)
    mean = np.einsum("ncp,mcp->nm", j1, j1) / 3
    tolerance = 1e-10 * np.abs(exact).max()
    ntk = [
        empirical_ntk(model.apply, model.params, X1, memory=memory),
        empirical_ntk(model.apply, model.params, X1, X2, memory=memory),
        empirical_ntk(model.apply, model.params, X1, outputs="shared", memory=memory),
    ]
    for found, expected in zip(ntk, (exact, between, mean), strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "matrices"), [("affine", 1), ("mlp", 4), ("cnn", 1), ("flax", 2), ("tied", 1), ("twice", 0)]
)
@in_float64
def test_weight_matrices_are_found_without_being_declared(name, matrices):
    model = models.prepare(NETWORKS[name], X1, 3)
    factors, _ = _factors(model.apply, model.params, jnp.asarray(X1))
    assert len(factors(model.params, jnp.asarray(X1)).inputs) == matrices


@in_float64
def test_a_network_that_computes_in_float32_has_a_kernel_as_good(neural_tangents):
    def rounded(p, x):
        return (x.astype("float32") @ p["w"].astype("float32")).astype("float32")

    init, apply = pair(rounded, w=(32, 3))
    model = models.prepare((init, apply), X1, 3)
    x = X1.reshape(7, -1)
    np.testing.assert_allclose(empirical_ntk(apply, model.params, X1), np.kron(x @ x.T, np.eye(3)), rtol=0, atol=1e-4)


def test_affine_outputs_share_one_kernel():
    model = models.prepare(models.affine(weight_std=1.0, bias_std=1.0), X1, 3)
    x = X1.reshape(7, -1)
    np.testing.assert_allclose(
        empirical_ntk(model.apply, model.params, X1), np.kron(x @ x.T / 32 + 1, np.eye(3)), atol=1e-12
    )


def test_wide_networks_have_the_infinite_kernel(neural_tangents):
    stax = neural_tangents.stax
    parts = [stax.Dense(1, 2**0.5, 0.1), stax.Relu()] * 2 + [stax.Dense(1, 2**0.5, 0.1)]
    with jax.enable_x64(True):
        expected = np.asarray(stax.serial(*parts)[2](jnp.asarray(X1.reshape(7, -1)), None, "ntk"))
    errors = []
    for seed in range(4):
        model = models.prepare(models.mlp(width=4096, depth=2), X1, 1, seed=seed)
        errors.append(empirical_ntk(model.apply, model.params, X1) - expected)
    # Entries of the empirical kernel fluctuate by O(1/√width) = 1.6 % of the diagonal.
    assert np.abs(np.mean(errors, axis=0)).max() < 0.05 * expected.max()


def test_unknown_outputs_are_refused():
    model = models.prepare(models.affine(), X1, 1)
    with pytest.raises(ValueError, match='"exact" or "shared"'):
        empirical_ntk(model.apply, model.params, X1, outputs="mean")
