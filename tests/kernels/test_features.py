import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import models
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import Features, empirical_ntk
from ntkp2p.kernels.features import pivoted_cholesky

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(12, 5)), RNG.normal(size=(4, 5))

CASES = {
    "affine, Jacobian": (models.affine(), 3, "exact"),
    "affine, Cholesky": (models.affine(), 3, "exact"),
    "mlp": (models.mlp(width=16, depth=1), 1, "exact"),
    "mlp, coupled outputs": (models.mlp(width=16, depth=1), 3, "exact"),
    "mlp, shared": (models.mlp(width=16, depth=1), 3, "shared"),
}


def case(name):
    network, outputs, kernel = CASES[name]
    x = X[:4] if name == "affine, Cholesky" else X
    model = models.prepare(network, x, outputs)
    return model, x, kernel, Features.of(model, x, kernel=kernel)


@pytest.mark.parametrize("name", CASES)
def test_features_are_a_factor_of_the_kernel_at_old_and_new_inputs(name):
    model, x, kernel, features = case(name)
    s, s_new = features.matrix, features.matrix_at(NEW)
    if kernel == "exact" and features.columns > 1:
        s, s_new = (np.kron(m, np.eye(features.columns)) for m in (s, s_new))
    k = empirical_ntk(model.apply, model.params, x, outputs=kernel)
    k_new = empirical_ntk(model.apply, model.params, NEW, x, outputs=kernel)
    np.testing.assert_allclose(s @ s.T, k, atol=1e-12 * k.max())
    # New inputs need S⁻ᵀ, and lose what the kernel's condition number takes.
    np.testing.assert_allclose(s_new @ s.T, k_new, atol=1e-13 * k.max() * np.linalg.cond(k))
    np.testing.assert_allclose(features.matrix_at(x), features.matrix, atol=1e-10 * np.abs(features.matrix).max())


@pytest.mark.parametrize("name", [n for n in CASES if "shared" not in n])
@in_float64
def test_coordinates_are_parameters(name):
    """θ − θ₀ of given coordinates has their norm, and moves the linear model's outputs by S z."""
    model, x, _, features = case(name)
    z = RNG.normal(size=(features.rank, features.columns))
    change = features.parameters(z)
    assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(z), rel=1e-8)
    theta, apply = model.flat()
    step = 1e-6
    moved = (apply(theta + step * change, jnp.asarray(x)) - apply(theta - step * change, jnp.asarray(x))) / (2 * step)
    outputs = (features.matrix @ z).reshape(moved.shape)
    np.testing.assert_allclose(moved, outputs, atol=1e-6 * np.abs(outputs).max())


def test_the_smaller_matrix_is_chosen():
    assert case("affine, Jacobian")[3].rank == 6  # [X, 1]: five inputs and a bias
    assert case("affine, Cholesky")[3].rank == 4  # as many as there are samples
    assert case("mlp, coupled outputs")[3].matrix.shape[0] == 36
    assert case("mlp, shared")[3].matrix.shape[0] == 12


def test_a_mean_kernel_belongs_to_no_parameters():
    assert case("mlp, shared")[3].parameters is None


def factorise(kernel, asked=None, **options):
    """The factor of a matrix, its columns handed out and written down."""

    def columns(samples):
        rows = (samples[:, None] * options.get("per_sample", 1) + np.arange(options.get("per_sample", 1))).reshape(-1)
        if asked is not None:
            asked.extend(samples)
        return kernel[:, rows]

    return pivoted_cholesky(np.diagonal(kernel), columns, **options)


@pytest.mark.parametrize(("batch", "per_sample"), [(1, 1), (4, 1), (64, 1), (2, 3)])
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-6])
def test_cholesky_reveals_the_rank_and_bounds_its_error(rtol, batch, per_sample):
    vectors = np.linalg.qr(RNG.normal(size=(30, 30)))[0]
    kernel = (vectors * 10.0 ** -np.arange(30)) @ vectors.T
    kernel, asked = (kernel + kernel.T) / 2, []
    factor, pivots, error = factorise(kernel, asked, rtol=rtol, batch=batch, per_sample=per_sample)
    assert factor.shape[1] < 15
    assert (np.diagonal(kernel) - np.sum(factor**2, axis=1)).max() <= rtol * kernel.max() * (1 + 1e-9)
    if batch == 1 and per_sample == 1:
        assert len(asked) == factor.shape[1]  # no other column is ever seen
    left_out = np.linalg.svd(kernel - factor @ factor.T, compute_uv=False).sum()
    assert left_out / np.trace(kernel) == pytest.approx(error, rel=1e-6, abs=1e-15)
    assert np.allclose(np.triu(factor[pivots], 1), 0)


def test_repeated_samples_cost_no_features():
    model = models.prepare(models.mlp(width=16, depth=1), X, 1)
    assert Features.of(model, np.concatenate([X, X])).rank == 12


@pytest.mark.parametrize(("kernel", "message"), [(np.full((2, 2), np.nan), "not finite"), (np.zeros((2, 2)), "zero")])
def test_impossible_kernels_are_refused(kernel, message):
    with pytest.raises(ValueError, match=message):
        factorise(kernel)


def test_a_tolerance_asks_for_few_columns_and_keeps_its_promise(tmp_path):
    """Many samples near few: the kernel is seen through the columns of a few of them."""
    x = np.repeat(X, 20, axis=0) + 1e-4 * RNG.normal(size=(240, 5))
    model = models.prepare(models.mlp(width=32, depth=2), x, 2)
    kernel = empirical_ntk(model.apply, model.params, x)
    features = Features.of(model, x, rtol=1e-5, cache=tmp_path)
    assert features.rank < 100
    left_out = np.linalg.norm(kernel - features.matrix @ features.matrix.T, "nuc") / np.trace(kernel)
    assert left_out == pytest.approx(features.error, rel=1e-4)
    assert left_out < 1e-5
    np.testing.assert_allclose(features.matrix_at(x[:50]), features.matrix[:100], atol=1e-8 * np.sqrt(kernel.max()))
    again = Features.of(model, x, rtol=1e-5, cache=tmp_path)
    assert (again.matrix == features.matrix).all()


def test_a_factor_that_does_not_fit_is_refused():
    model = models.prepare(models.mlp(width=16), X, 1)
    with pytest.raises(ValueError, match=r"the kernel has more than .* features at this tolerance.*raise rtol"):
        factorise(empirical_ntk(model.apply, model.params, X), rtol=1e-9, memory=8 * 12 * 3, batch=2)


def test_what_sharing_costs_is_stated():
    features = case("mlp, shared")[3]
    model = models.prepare(models.mlp(width=16, depth=1), X, 3)
    exact = empirical_ntk(model.apply, model.params, X)
    shared = np.kron(empirical_ntk(model.apply, model.params, X, outputs="shared"), np.eye(3))
    assert features.sharing_error == pytest.approx(np.linalg.norm(exact - shared) / np.linalg.norm(exact), rel=1e-10)
    assert 0.01 < features.sharing_error < 1
    assert case("mlp")[3].sharing_error is None


def test_a_diagonal_that_is_off_by_rounding_ends():
    """A diagonal that is computed apart from the columns promises more than they keep."""
    factor, pivots, _ = pivoted_cholesky(np.array([1 + 1e-12] * 2), lambda s: np.ones((2, len(s))), rtol=1e-15)
    assert len(pivots) == 1
    np.testing.assert_allclose(factor, 1)


def test_a_tolerance_is_the_remedy_for_a_kernel_that_does_not_fit():
    x = RNG.normal(size=(4000, 5)) * 1e-3 + X[0]
    model = models.prepare(models.mlp(width=1024, depth=1), X, 1)
    with pytest.raises(ValueError, match=r"a kernel of 4000 × 4000 .* give a tolerance"):
        Features.of(model, x, memory=2**26)
    assert Features.of(model, x, memory=2**26, rtol=1e-4).rank < 100


@in_float64
def test_an_input_that_is_always_zero_is_no_feature():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    x[:, 1] = 0
    model = models.prepare(models.affine(), x, 1, seed=0)
    features = Features.of(model, x)
    assert features.rank == 4  # of five parameters
    design = np.hstack([x / 2, np.ones((12, 1))])
    np.testing.assert_allclose(features.matrix @ features.matrix.T, design @ design.T, atol=1e-12)
    z = rng.normal(size=(4, 1))
    change = features.parameters(z)
    assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(z))
    # On the training inputs the moved parameters are the moved coordinates; elsewhere the idle input has not moved.
    new = rng.normal(size=(3, 4))
    moved = features.initial_at(new) + features.matrix_at(new) @ z
    theta, apply = model.flat()
    np.testing.assert_allclose(moved, apply(np.asarray(theta) + change, new), atol=1e-12)
