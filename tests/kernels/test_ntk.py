from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import models
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import TangentKernel, empirical_ntk, infinite_kernels, ntk
from ntkp2p.kernels.layers import factorise
from ntkp2p.kernels.store import Store

RNG = np.random.default_rng(0)
X1, X2 = RNG.normal(size=(7, 4, 4, 2)), RNG.normal(size=(5, 4, 4, 2))


@cache
def in_flax():
    """Networks that Flax describes, by name."""
    import flax.linen as linen

    class Convolutional(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3))(x)).reshape(len(x), -1)
            return linen.Dense(3)(linen.gelu(linen.Dense(11)(x)))

    class Strided(linen.Module):
        """Strides, dilations, no padding, no bias, and few windows of wide layers."""

        @linen.compact
        def __call__(self, x):
            x = linen.tanh(linen.Conv(6, (3, 2), strides=(2, 1), padding=((2, 1), (0, 3)), kernel_dilation=(1, 2))(x))
            x = linen.tanh(linen.ConvTranspose(40, (3, 3), strides=(2, 1), use_bias=False)(x))
            x = linen.tanh(linen.Conv(40, (3, 3), strides=4)(x))
            return linen.Dense(3)(x.reshape(len(x), -1))

    class Grouped(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.tanh(linen.Conv(4, (3, 3), feature_group_count=2)(x))
            return linen.Dense(3)(linen.LayerNorm()(x).mean(axis=(1, 2)))

    class Attention(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Dense(6)(x.reshape(len(x), 8, 4))
            return linen.Dense(3)(linen.MultiHeadDotProductAttention(2)(x).mean(axis=1))

    return {"flax": Convolutional(), "strided": Strided(), "grouped": Grouped(), "attention": Attention()}


def pair(apply, **shapes):
    def init(key, x):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    return init, lambda p, x: apply(p, x.reshape(len(x), -1))


def tokens(x):
    return x.reshape(len(x), 8, 4)


@jax.jit
def jitted_layer(x, w, b):
    return jnp.tanh(x @ w / 4 + b)


# Each with the leaves found as: weights with small Grams, weights with Jacobians, and leaves that are neither.
NETWORKS = {
    "affine": (models.affine(), (1, 0, 0)),
    "mlp": (models.mlp(width=9, depth=3, activation="erf"), (4, 0, 0)),
    "cnn": (models.cnn(channels=3), (1, 2, 0)),
    "flax": (None, (2, 1, 0)),
    "strided": (None, (2, 2, 0)),
    "grouped": (None, (1, 0, 4)),
    "attention": (None, (1, 5, 0)),
    "of a jit": (pair(jax.jit(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]), w=(32, 5), v=(5, 3)), (2, 0, 0)),
    "jits inside": (
        pair(
            lambda p, x: jitted_layer(jitted_layer(x, p["a"], p["b"]), p["c"], p["d"]),
            a=(32, 5),
            b=(5,),
            c=(5, 3),
            d=(3,),
        ),
        (2, 0, 0),
    ),
    "transposed": (pair(lambda p, x: jnp.tanh(p["w"] @ x.T).T @ p["v"].T, w=(5, 32), v=(3, 5)), (2, 0, 0)),
    "scaled": (
        pair(lambda p, x: -jnp.tanh(x @ (2 * p["w"]) / 3 + p["b"]) @ p["v"], w=(32, 5), b=(5,), v=(5, 3)),
        (2, 0, 0),
    ),
    "wide tokens": (
        pair(lambda p, x: jnp.sum(jnp.tanh(tokens(x) @ p["w"] + 3 * p["b"]), 1) @ p["v"], w=(4, 6), b=(6,), v=(6, 3)),
        (1, 1, 0),
    ),
    "few tokens": (
        pair(lambda p, x: jnp.sum(jnp.tanh(x.reshape(len(x), 2, 16) @ p["w"] + p["b"]), 1)[:, :3], w=(16, 30), b=(30,)),
        (1, 0, 0),
    ),
    # Uses of a leaf that are no layer's, which must not be mistaken for one:
    "tied": (pair(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) @ p["v"], w=(32, 32), v=(32, 3)), (1, 0, 1)),
    "twice": (pair(lambda p, x: (x @ p["w"]) * jnp.sum(p["w"] ** 2), w=(32, 3)), (0, 0, 1)),
    "shared bias": (
        pair(lambda p, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] + p["b"], w=(32, 3), b=(3,), v=(3, 3)),
        (2, 0, 1),
    ),
    "bias of a place": (
        pair(lambda p, x: jnp.sum(jnp.tanh(tokens(x) @ p["w"] + p["b"][:, None]), 1)[:, :3], w=(4, 8), b=(8,)),
        (0, 1, 1),
    ),
    "bias of a stretched product": (
        pair(lambda p, x: jnp.sum(jnp.tanh(x[:, None, :] @ p["w"] + p["b"][:, None]), 1), w=(32, 3), b=(3,)),
        (1, 0, 1),
    ),
    "rows of a bias": (
        pair(
            lambda p, x: jnp.sum(jnp.tanh(tokens(x) @ p["w"] + p["b"][None, None]), 1) @ p["v"],
            w=(4, 6),
            b=(6,),
            v=(6, 3),
        ),
        (1, 1, 0),
    ),
    "bias reversed": (
        pair(lambda p, x: jnp.tanh(x @ p["w"] + p["b"][::-1]) @ p["v"], w=(32, 5), b=(5,), v=(5, 3)),
        (2, 0, 1),
    ),
    "bias times input": (pair(lambda p, x: x @ p["w"] + p["b"] * x[:, :3], w=(32, 3), b=(3,)), (1, 0, 1)),
    "rounded": (pair(lambda p, x: x @ p["w"] + jnp.round(p["b"]).astype(int), w=(32, 3), b=(3,)), (1, 0, 1)),
    "stopped": (pair(lambda p, x: x @ p["w"] + x @ jax.lax.stop_gradient(p["v"]), w=(32, 3), v=(32, 3)), (1, 0, 1)),
    "squared": (pair(lambda p, x: x @ (p["w"] * p["w"]), w=(32, 3)), (0, 0, 1)),
    "of a parameter": (
        pair(lambda p, x: jnp.tanh(x @ p["u"]) * (p["v"] @ p["w"]), u=(32, 3), v=(5,), w=(5, 3)),
        (1, 1, 1),
    ),
    "outer": (pair(lambda p, x: x @ (p["a"] @ p["b"]), a=(32, 1), b=(1, 3)), (0, 1, 1)),
    "inner": (pair(lambda p, x: jnp.tanh(x @ p["w"]) * (p["a"] @ p["b"]), w=(32, 3), a=(1, 5), b=(5, 1)), (2, 0, 1)),
    "unused": (pair(lambda p, x: x @ p["w"], w=(32, 3), v=(5, 3)), (1, 0, 1)),
    "scanned": (
        pair(lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0][:, :3], w=(2, 32, 32)),
        (0, 0, 1),
    ),
}


#: Variants of others in the table, which plain pytest leaves out.
SLOW = ["jits inside", "transposed", "scaled", "wide tokens", "shared bias", "bias of a stretched product"]
SLOW += ["rows of a bias", "bias reversed", "rounded", "of a parameter", "outer", "inner", "unused"]


def named(name, *more):
    """A parameter of a test: a network by name, which may be slow or need Flax."""
    marks = [pytest.mark.needs("flax")] if NETWORKS[name][0] is None else []
    return pytest.param(name, *more, marks=marks + [pytest.mark.slow] * (name in SLOW))


def prepared(name):
    return models.prepare(NETWORKS[name][0] or in_flax()[name], X1, 3)


@in_float64
def jacobian(model, x):
    leaves = jax.tree.leaves(jax.jit(jax.jacobian(model.apply))(model.params, jnp.asarray(x)))
    return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


@pytest.fixture(scope="module", params=map(named, NETWORKS))
def case(request):
    model, kinds = prepared(request.param), NETWORKS[request.param][1]
    j1, j2 = np.split(jacobian(model, np.concatenate([X1, X2])), [len(X1)])
    exact = np.einsum("ncp,mdp->ncmd", j1, j1).reshape(21, 21)
    between = np.einsum("ncp,mdp->ncmd", j1, j2).reshape(21, 15)
    return model, kinds, exact, between


def same(found, expected, scale):
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(scale).max())


def test_equals_the_jacobian_product(case):
    model, _, exact, between = case
    kernel = TangentKernel(model.apply, model.params, X1)
    same(kernel.matrix(), exact, exact)
    same(kernel.diagonal(), np.diag(exact), exact)
    same(kernel.against(X2), between, exact)
    same(kernel.columns(np.array([2, 5])), exact[:, [6, 7, 8, 15, 16, 17]], exact)


@pytest.mark.parametrize("name", ["mlp", "cnn", "few tokens", "tied"])
def test_a_shared_kernel_is_the_mean_over_outputs(name):
    model = prepared(name)
    j = jacobian(model, X1)
    mean, scale = np.einsum("ncp,mcp->nm", j, j) / 3, np.einsum("ncp,ncp->", j, j)
    shared = TangentKernel(model.apply, model.params, X1, outputs="shared")
    same(shared.matrix(), mean, scale)
    same(shared.diagonal(), np.diag(mean), scale)


def test_layers_are_found_without_being_declared(case):
    model, kinds, *_ = case
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct(X1.shape[1:], "float64")
        assert factorise(model.apply, model.params, x, samples=10**4, shared=False).layers == kinds


@pytest.mark.parametrize(
    ("name", "outputs"),
    [named("mlp", "exact"), named("cnn", "exact"), named("flax", "exact"), named("few tokens", "shared")],
)
def test_blocks_of_any_size_make_the_same_kernel(name, outputs, monkeypatch):
    model = prepared(name)
    whole = TangentKernel(model.apply, model.params, X1, outputs=outputs)
    assert whole.batch == 7
    monkeypatch.setitem(ntk.BLOCK, "cpu", 2)
    small = TangentKernel(model.apply, model.params, X1, outputs=outputs)
    assert small.batch == 2
    tight = TangentKernel(model.apply, model.params, X1, outputs=outputs, memory=just_enough(small))
    tight.matrix()
    assert tight._room == 1  # of four
    assert tight.peak < small.peak
    same(tight.matrix(), whole.matrix(), whole.matrix())
    same(tight.against(X2), whole.against(X2), whole.matrix())
    assert (tight.matrix() == tight.matrix().T).all()


def just_enough(kernel):
    """Bytes for the kernel and its least work."""
    return 8 * kernel.rows**2 + kernel._least_work() + 8


def test_less_memory_makes_smaller_blocks():
    model = models.prepare(models.mlp(width=64), X1, 3)
    whole = TangentKernel(model.apply, model.params, X1)
    less = TangentKernel(model.apply, model.params, X1, memory=int(0.9 * just_enough(whole)))
    assert less.batch < whole.batch == 7
    same(less.matrix(), whole.matrix(), whole.matrix())


def test_single_precision():
    model = models.prepare(models.mlp(width=9, depth=2), X1, 3)
    double = empirical_ntk(model.apply, model.params, X1)
    single = empirical_ntk(model.apply, model.params, X1, precision="float32")
    assert single.dtype == np.float32
    # Sums of some tens of products, each rounded to 24 bits.
    np.testing.assert_allclose(single, double, rtol=0, atol=100 * 2**-24 * double.max())


@in_float64
def test_a_network_that_computes_in_float32_has_a_kernel_as_good():
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


@pytest.mark.needs("neural-tangents")
def test_wide_networks_have_the_infinite_kernel():
    expected = infinite_kernels(models.mlp(width=4096, depth=2), X1).ntk
    errors = []
    for seed in range(4):
        model = models.prepare(models.mlp(width=4096, depth=2), X1, 1, seed=seed)
        errors.append(empirical_ntk(model.apply, model.params, X1) - expected)
    # Entries of the empirical kernel fluctuate by O(1/√width) = 1.6 % of the diagonal.
    assert np.abs(np.mean(errors, axis=0)).max() < 0.05 * expected.max()


def affine_kernel(**options):
    model = models.prepare(models.affine(), X1, 1)
    return TangentKernel(model.apply, model.params, X1, **options)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match='"exact" or "shared"'):
        affine_kernel(outputs="mean")
    with pytest.raises(ValueError, match='"float64" or "float32"'):
        affine_kernel(precision="bfloat16")
    with pytest.raises(ValueError, match=r"for one sample and .* B may be used: take a smaller network"):
        affine_kernel(memory=100)
    with pytest.raises(ValueError, match=r"each input has the shape \(4, 4, 2\) here, found \(3,\)"):
        affine_kernel().against(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least one sample"):
        TangentKernel(lambda p, x: x @ p, np.eye(3), np.zeros((0, 3)))
    with pytest.raises(ValueError, match="real floating-point arrays"):
        TangentKernel(lambda p, x: p["n"] * x @ p["w"], {"w": np.eye(3), "n": 2}, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"outputs of shape \(N, C\), found \(1,\)"):
        TangentKernel(lambda p, x: x @ p, np.ones(3), np.ones((2, 3)))


def test_a_kernel_that_does_not_fit_is_refused_before_any_work():
    done = []
    kernel = affine_kernel(memory=2**20, progress=lambda *now: done.append(now))
    columns = np.zeros((2**15, 4, 4, 2))
    with pytest.raises(ValueError, match=r"7 × 32768 takes 1.84 MB and .* may be used: give a tolerance"):
        kernel.against(columns)
    assert not done
    kernel.matrix()
    assert done == [(1, 1)]


def test_finished_blocks_are_kept_and_damaged_ones_are_made_anew(tmp_path, monkeypatch):
    model = models.prepare(models.mlp(width=9), X1, 3)
    expected = empirical_ntk(model.apply, model.params, X1)
    monkeypatch.setitem(ntk.BLOCK, "cpu", 2)
    made = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda *a: made.append(a) or put(*a))

    def run(params=model.params, x=X1, **options):
        made.clear()
        return TangentKernel(model.apply, params, x, cache=tmp_path, **options).matrix()

    def kill(done, _):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=kill)
    assert len(made) == 3
    first = run()
    blocks = len(made) + 3
    same(first, expected, expected)
    assert (run() == first).all()
    assert not made

    files = sorted(tmp_path.glob("*/*"))
    assert len(files) == blocks
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    assert (run() == first).all()
    assert len(made) == 2
    run(params=jax.tree.map(lambda p: 2 * np.asarray(p), model.params))
    assert len(made) == blocks
    run(x=X1 + 1)
    assert len(made) == blocks


@jax.custom_jvp
def sloped(x):
    return x


SLOPE = [1.0]


@sloped.defjvp
def _(primals, tangents):
    return primals[0], SLOPE[0] * tangents[0]


def test_the_cache_knows_what_a_network_holds(tmp_path):
    """Constants inside a jit, and rules for derivatives, make another network of the same program."""

    def holding(constant):
        init, apply = pair(jax.jit(lambda p, x: jnp.tanh((x * constant) @ p["w"]) @ p["v"]), w=(32, 5), v=(5, 3))
        return models.prepare((init, apply), X1, 3)

    for constant in (np.full(32, 1.0), np.full(32, 3.0)):
        model = holding(constant)
        found = empirical_ntk(model.apply, model.params, X1, cache=tmp_path)
        same(found, empirical_ntk(model.apply, model.params, X1), found)
    for slope in (1.0, 2.0):
        SLOPE[0] = slope
        init, apply = pair(lambda p, x: sloped(x @ p["w"]), w=(32, 3))
        model = models.prepare((init, apply), X1, 3)
        found = empirical_ntk(apply, model.params, X1, cache=tmp_path)
        x = X1.reshape(7, -1)
        same(found, slope**2 * np.kron(x @ x.T, np.eye(3)), found)


def test_an_interruption_leaves_nothing_behind(monkeypatch):
    model = models.prepare(models.mlp(width=9), X1, 3)
    expected = empirical_ntk(model.apply, model.params, X1, X2)
    monkeypatch.setitem(ntk.BLOCK, "cpu", 2)

    def interrupt(*_):
        raise KeyboardInterrupt

    kernel = TangentKernel(model.apply, model.params, X1, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        kernel.against(X2 + 1)
    kernel._progress = None
    same(kernel.against(X2), expected, expected)
