"""What is let through: the largest entries, or some at random, of every layer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ntkp2p import RandomK, TopK

V = np.random.default_rng(0).normal(size=40)


@pytest.mark.parametrize(("keep", "kept"), [(0.1, 4), (0.12, 4), (0.01, 1), (0.99, 39), (0.7 - 0.6, 3 + 1)])
def test_the_largest_are_kept(keep, kept):
    """max(1, ⌊d · keep⌋) of them; 40 · (0.7 − 0.6) falls short of 4 by rounding only."""
    sent = np.asarray(TopK(keep)(jnp.asarray(V), jax.random.key(0)))
    largest = np.argsort(-np.abs(V))[:kept]
    expected = np.zeros(40)
    expected[largest] = V[largest]
    np.testing.assert_array_equal(sent, expected.astype(sent.dtype))
    assert TopK(keep).bits(40) == 48 * kept  # a float32 and a place of two bytes each


def test_ties_send_no_more():
    sent = TopK(0.1)(jnp.ones(40), jax.random.key(0))
    assert int((sent != 0).sum()) == 4


def test_layers_are_compressed_by_themselves():
    x = np.concatenate([1e-3 * V, V, [5.0]])
    sent = np.asarray(TopK(0.1).by_layer(jnp.asarray(x), (40, 40, 1), jax.random.key(0)))
    assert [np.count_nonzero(part) for part in (sent[:40], sent[40:80], sent[80:])] == [4, 4, 1]
    np.testing.assert_allclose(sent[:40], 1e-3 * sent[40:80], rtol=1e-6)


@pytest.mark.parametrize("keep", [0.1, 0.33, 0.01])
def test_every_entry_is_drawn_with_the_same_probability(keep):
    """Exactly `keep`, and in a round ⌊d · keep⌋ entries or one more."""
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    sent = np.asarray(jax.vmap(lambda key: RandomK(keep)(jnp.asarray(V), key))(keys))
    drawn = sent != 0
    np.testing.assert_allclose(sent, np.where(drawn, V, 0), rtol=1e-6)
    counts = drawn.sum(axis=1)
    assert set(counts) <= {int(40 * keep), int(40 * keep) + 1}
    # Bounds that 40 binomial counts all keep with probability 1 − 1e-6.
    low, high = stats.binom.interval(1 - 1e-6 / 40, draws, keep)
    assert (drawn.sum(axis=0) >= low).all()
    assert (drawn.sum(axis=0) <= high).all()
    assert RandomK(keep).bits(40) == pytest.approx(48 * 40 * keep, rel=1e-15)


@pytest.mark.parametrize("make", [TopK, RandomK])
@pytest.mark.parametrize("keep", [0, 1, 1.5, -0.1, None, float("nan"), True])
def test_shares_are_between_nothing_and_everything(make, keep):
    with pytest.raises(ValueError, match=r"keep must be above 0 and below 1, found .*0\.01 sends 1 %"):
        make(keep)


@pytest.mark.parametrize("share", [0, 1.1, "a"])
def test_measured_shares_are_shares(share):
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, .*leave it out to have it measured"):
        TopK(0.1, share=share)
    assert TopK(0.1, share=1).share == 1
