import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ntkp2p import data
from ntkp2p.base.precision import in_float64
from ntkp2p.models.losses import LOSSES, cross_entropy, name_classes


@pytest.fixture(params=[2, 3, 10], ids="{} classes".format)
def dataset(request):
    return data.load("digits", classes=tuple(range(request.param)), samples=60)


@in_float64
def test_cross_entropy_is_scikit_learns(dataset):
    logits = 3 * np.random.default_rng(0).normal(size=dataset.targets.shape)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(dataset.targets))
    both = np.hstack([0 * logits, logits]) if logits.shape[1] == 1 else logits
    probabilities = np.exp(both) / np.exp(both).sum(axis=1, keepdims=True)
    assert found.shape == (60,)
    assert np.mean(found) == pytest.approx(log_loss(dataset.labels, probabilities), rel=1e-13)


@in_float64
def test_huge_logits_are_no_trouble(dataset):
    """A class that is wrong by a margin m costs m, one that is right by it costs nothing, and slopes are 1 and 0."""
    targets = jnp.asarray(dataset.targets)
    gap = 2 if targets.shape[1] == 1 else 1  # −1 and +1, or 0 and 1
    for margin, cost in ((1e300, 0), (-1e300, 1e300)):
        logits = margin * targets * (2 / gap)
        value, slope = jax.value_and_grad(lambda f: jnp.sum(cross_entropy(f, targets)[:1]))(logits)
        # Of margins this size only the ratio to the cost is left, several classes' one being twice as large.
        assert value == pytest.approx(cost * (2 / gap), rel=1e-12)
        assert jnp.abs(slope).max() == pytest.approx(float(cost > 0), abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@in_float64
def test_losses_broadcast_over_leading_axes(loss, dataset):
    logits = np.random.default_rng(0).normal(size=(2, 5, *dataset.targets.shape))
    found = LOSSES[loss](jnp.asarray(logits), jnp.asarray(dataset.targets))
    assert found.shape == (2, 5, 60)
    np.testing.assert_allclose(found[1, 3], LOSSES[loss](jnp.asarray(logits[1, 3]), jnp.asarray(dataset.targets)))


def test_which_targets_name_classes(dataset):
    assert name_classes(dataset.targets)
    assert name_classes(np.eye(4)[[0, 3, 1]])
    assert not name_classes(dataset.targets * 0.5)
    assert not name_classes(0 * dataset.targets)
    assert not name_classes(np.array([[0.2, 0.8], [0.0, 1.0]]))
