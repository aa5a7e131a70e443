import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ntkp2p import models
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import infinite, infinite_features, infinite_kernels

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(6, 4, 4, 2)), RNG.normal(size=(3, 4, 4, 2))
W, B = 1.3, 0.4


def linear(x1, x2):
    """The kernel of a single dense layer."""
    return W**2 * x1.reshape(len(x1), -1) @ x2.reshape(len(x2), -1).T / 32 + B**2


def relu_expectations(k, a, b):
    """E σ(u)σ(v) and E σ'(u)σ'(v): arc-cosine kernels (Cho and Saul, 2009)."""
    scale = np.sqrt(np.outer(a, b))
    angle = np.arccos(np.clip(k / scale, -1, 1))
    return scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


def erf_expectations(k, a, b):
    """The arcsine kernel (Williams, 1997)."""
    scale = np.outer(1 + 2 * a, 1 + 2 * b)
    return 2 / np.pi * np.arcsin(2 * k / np.sqrt(scale)), 4 / np.pi / np.sqrt(scale - 4 * k**2)


def gelu_expectations(k, a, b):
    """By quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    def slope(x):
        return (1 + erf(x / np.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

    def expectation(f, i, j):
        u = np.sqrt(a[i]) * nodes[:, None]
        v = k[i, j] / np.sqrt(a[i]) * nodes[:, None] + np.sqrt(max(b[j] - k[i, j] ** 2 / a[i], 0)) * nodes
        return np.sum(weights * f(u) * f(v))

    pairs = np.ndindex(*k.shape)
    values = np.array([[expectation(f, *pair) for f in (gelu, slope)] for pair in pairs])
    return values[:, 0].reshape(k.shape), values[:, 1].reshape(k.shape)


EXPECTATIONS = {"relu": relu_expectations, "erf": erf_expectations, "gelu": gelu_expectations}


@pytest.mark.needs("neural-tangents")
@pytest.mark.parametrize("activation", EXPECTATIONS)
@pytest.mark.parametrize("other", [X, NEW], ids=["self", "new"])
def test_one_hidden_layer_is_the_analytic_kernel(activation, other):
    k, a, b = linear(X, other), np.diag(linear(X, X)), np.diag(linear(other, other))
    values, slopes = EXPECTATIONS[activation](k, a, b)
    nngp = W**2 * values + B**2
    ntk = nngp + W**2 * slopes * k
    network = models.mlp(width=math.inf, depth=1, activation=activation, weight_std=W, bias_std=B)
    found = infinite_kernels(network, X) if other is X else infinite_kernels(network, X, other)
    # The library's ReLU is right to 5e-9 where the inputs are equal, to rounding elsewhere.
    equal = 1e-8 * np.eye(*k.shape) if other is X else 0
    for kernel, expected in zip(found, (nngp, ntk), strict=True):
        assert kernel.dtype == np.float64
        assert np.all(np.abs(kernel - expected) <= (1e-10 + equal) * expected.max())


@pytest.mark.needs("neural-tangents")
def test_affine_is_its_own_limit():
    found = infinite_kernels(models.affine(weight_std=W, bias_std=B), X, NEW)
    for kernel in found:
        np.testing.assert_allclose(kernel, linear(X, NEW), rtol=1e-12)


@pytest.mark.needs("neural-tangents")
@pytest.mark.parametrize(
    "network",
    [
        models.mlp(width=512, depth=2),
        models.mlp(width=512, depth=2, activation="erf", weight_std=W, bias_std=B),
        models.mlp(width=512, depth=2, activation="gelu"),
        models.cnn(channels=128, depth=1, bias_std=B),
        models.cnn(channels=128, depth=2, activation="erf"),
    ],
    ids=repr,
)
@in_float64
def test_wide_networks_tend_to_the_kernels(network):
    """Means over initialisations: 4.5 standard errors, and the O(1/width) by which a finite width shifts them."""
    seeds, outputs = 32, 100

    @jax.jit
    def kernels(key):
        f0 = network.apply(network.init(key, X, outputs), X)
        gradients = jax.jacobian(network.apply)(network.init(key, X, 1), X)
        j = jnp.concatenate([leaf.reshape(len(X), -1) for leaf in jax.tree.leaves(gradients)], axis=1)
        return f0 @ f0.T / outputs, j @ j.T

    found = zip(*map(kernels, jax.random.split(jax.random.key(0), seeds)), strict=True)
    for sample, limit in zip(found, infinite_kernels(network, X), strict=True):
        error = np.std(sample, axis=0, ddof=1) / np.sqrt(seeds)
        assert np.all(np.abs(np.mean(sample, axis=0) - limit) < 4.5 * error + 0.01 * limit.max())


@pytest.mark.needs("neural-tangents")
@pytest.mark.parametrize("network", [models.mlp(width=math.inf), models.cnn(channels=math.inf)], ids=repr)
def test_blocks_of_rows_are_the_whole(network):
    whole, blocks = infinite_kernels(network, X, NEW), infinite_kernels(network, X, NEW, memory=1)
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.needs("neural-tangents")
@pytest.mark.parametrize("network", [models.affine(), models.cnn(channels=math.inf)], ids=repr)
def test_features_are_factors_of_both_kernels(network):
    features = infinite_features(network, X, 3)
    spread, new = features.spread, NEW[:2]
    both = np.concatenate([X, new])
    kernels = infinite_kernels(network, both)
    s = np.concatenate([features.matrix, features.matrix_at(new)])
    own, beyond = spread.at(new)
    factor = np.concatenate([spread.factor, own])
    np.testing.assert_allclose((s @ s.T)[:, :6], kernels.ntk[:, :6], atol=1e-10)
    covariance = factor @ factor.T
    covariance[6:, 6:] += beyond
    np.testing.assert_allclose(covariance, kernels.nngp, atol=1e-10)
    assert features.columns == 3
    assert features.parameters is None
    assert spread.error < 1e-12
    np.testing.assert_array_equal(features.initial_at(new), np.zeros((2, 3)))


@pytest.mark.needs("neural-tangents")
def test_equal_inputs_cost_no_features():
    features = infinite_features(models.mlp(width=math.inf), np.concatenate([X, X]), 1)
    assert features.rank == features.spread.factor.shape[1] == 6
    assert max(features.error, features.spread.error) < 1e-7


PROGRAM = """
import sys
import jax.interpreters.ad, jax.experimental.ode, jax.example_libraries.stax, frozendict
from ntkp2p import models
from ntkp2p.kernels.infinite import infinite_kernels, neural_tangents

def names():
    own = {n: m for n, m in sys.modules.items() if n == "jax" or n.startswith(("jax.", "neural_tangents"))}
    return set(sys.modules), {n: dict(vars(m)) for n, m in own.items()}

before = names()
assert neural_tangents() is neural_tangents()
after = names()
assert before[0] == after[0], before[0] ^ after[0]
for name in before[1]:
    assert before[1][name].keys() == after[1][name].keys(), name
    assert all(before[1][name][k] is v for k, v in after[1][name].items()), name
import numpy as np
infinite_kernels(models.cnn(channels=float("inf")), np.ones((2, 3, 3, 1)))
assert not [n for n in sys.modules if n.startswith(("neural_tangents", "tensorflow")) or n == "jax.util"]
"""


@pytest.mark.needs("neural-tangents")
def test_the_import_leaves_no_trace():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "missing",
    ["neural_tangents", pytest.param("jax.example_libraries.stax", marks=pytest.mark.needs("neural-tangents"))],
)
def test_a_library_that_does_not_import_is_explained(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    before = dict(sys.modules)
    ours = missing == "neural_tangents"
    with pytest.raises(ImportError, match=r"pip install 'ntkp2p\[infinite\]'" if ours else "cannot be imported"):
        infinite.neural_tangents.__wrapped__()
    assert {n: m for n, m in sys.modules.items() if "tangents" in n} == {
        n: m for n, m in before.items() if "tangents" in n
    }


def test_a_library_that_is_there_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", sys)
    assert infinite.neural_tangents.__wrapped__() is sys


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.mlp(width=math.inf, activation="tanh"), "tanh has no analytic kernel.*relu or erf or gelu"),
        (lambda: models.cnn(channels=-math.inf), "channels must be a whole number"),
        (lambda: models.mlp(width=2.5), "width must be a whole number"),
        (lambda: models.mlp(width=math.inf, depth=0), "depth must be a whole number"),
        (lambda: models.prepare(models.mlp(width=math.inf), X, 1), r"no parameters.*to train, mlp\(width=1024\)"),
        (lambda: models.prepare(models.cnn(channels=math.inf), X, 1), r"no parameters.*to train, cnn\(channels=64\)"),
        (lambda: infinite_kernels(models.mlp(activation="tanh"), X), "tanh has no analytic kernel"),
        (lambda: infinite_kernels(models.cnn(), X.reshape(6, -1)), "cnn needs images"),
        (lambda: infinite_features(models.mlp(outputs=3), X, 2), "has 3 outputs, the data have targets of 2"),
        (lambda: infinite_kernels(models.Network("mine", print, print), X), "mine at infinite width are not known"),
    ],
)
def test_what_has_no_infinite_width_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
