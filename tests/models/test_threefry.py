"""Random numbers by NumPy, against JAX's own."""

import jax
import numpy as np
import pytest

from ntkp2p import models
from ntkp2p.models import threefry

SEEDS = (0, 1, 12345, 2**31 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_those_of_jax(seed):
    words = threefry.seeded(seed)
    key = jax.random.key(seed, impl="threefry2x32")
    np.testing.assert_array_equal(words, jax.random.key_data(key))
    assert threefry.key_of(words) == key
    np.testing.assert_array_equal(threefry.split(key, 5), jax.random.key_data(jax.random.split(key, 5)))
    for number in SEEDS:
        np.testing.assert_array_equal(
            threefry.fold_in(words, number), jax.random.key_data(jax.random.fold_in(key, number))
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_normal_numbers_are_those_of_jax(seed):
    with jax.enable_x64(True):
        key = jax.random.key(seed, impl="threefry2x32")
        expected = np.asarray(jax.random.normal(key, (300, 7)))
        np.testing.assert_array_equal(jax.jit(lambda key: threefry.normal(key, (300, 7)))(key), expected)
    # XLA's inverse error function is a rational approximation, off by up to 1e-12 far out in the tail.
    np.testing.assert_allclose(threefry.normal(key, (300, 7)), expected, rtol=2e-12)


def test_initialisation_does_not_depend_on_the_process_s_generator():
    def drawn():
        params = models.prepare(models.mlp(width=8, depth=1), np.ones((2, 3)), 1, seed=3).params
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])

    expected = drawn()
    for option, value in (("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False)):
        before = getattr(jax.config, option)
        try:
            jax.config.update(option, value)
            np.testing.assert_array_equal(drawn(), expected)
        finally:
            jax.config.update(option, before)
