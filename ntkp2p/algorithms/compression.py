"""What a lossy link lets through: the largest entries of each layer, or some of them at random.

A compressor C sets the entries of a layer's values that are not sent to 0. In a prediction it is C(v) ≈ δ v. For
entries that are drawn, each with the same probability δ, this is their mean, and so is a linear prediction with it.
For the largest entries it is a mean-field approximation, the nearest multiple of v having
δ = ⟨v, C(v)⟩/‖v‖² = ‖C(v)‖²/‖v‖².

References
----------
Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (top-k, random-k, error feedback).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ntkp2p.algorithms.algorithm import Compressor
from ntkp2p.base.checks import must_be_share
from ntkp2p.base.registry import Registry


class TopK(Compressor):
    """The entries of largest modulus in every layer, max(1, ⌊d · keep⌋) of d.

    Parameters
    ----------
    keep
        The share of the entries that is sent, above 0 and below 1.
    share
        δ of the mean-field prediction, the share of ‖v‖² in what is sent; if left out, it is measured on the agents'
        gradients at the start, which are the first messages.

    Raises
    ------
    ValueError
        If keep or share is not above 0 and below 1, or at most 1.

    Examples
    --------
    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> p2p.TopK(0.5)(np.array([3.0, -4.0, 1.0, 0.0]), None).tolist()
    [3.0, -4.0, 0.0, 0.0]
    """

    share: Any

    def __init__(self, keep: Any, *, share: Any = None):
        if share is not None:
            must_be_share("share", share, "leave it out to have it measured", one=True)
        self.keep, self.share = keep, share

    def kept(self, size, /):
        # A product that falls short of a whole number by rounding is that number.
        return max(1, math.floor(size * self.keep * (1 + 1e-12)))

    def __call__(self, values, key, /):
        _, largest = jax.lax.top_k(jnp.abs(values), self.kept(len(values)))
        return jnp.zeros_like(values).at[largest].set(values[largest])


class RandomK(Compressor):
    """Entries drawn at random, without replacement, in every layer, every round and by every agent anew.

    Of d entries d · keep are sent, rounded up or down at random such that this is the mean: every entry is sent with
    the probability `keep`, exactly.

    Parameters
    ----------
    keep
        The share of the entries that is sent, above 0 and below 1.

    Raises
    ------
    ValueError
        If keep is not above 0 and below 1.

    Examples
    --------
    Of 10 entries two or three are sent, each as likely:

    >>> import ntkp2p as p2p
    >>> compressor = p2p.RandomK(0.25)
    >>> compressor.kept(10), compressor.share
    (2.5, 0.25)
    """

    def __init__(self, keep: Any):
        self.keep = keep

    @property
    def share(self):
        """δ, which is `keep`."""
        return self.keep

    def kept(self, size, /):
        return size * self.keep

    def __call__(self, values, key, /):
        order, rounding = jax.random.split(key)
        whole = math.floor(self.kept(len(values)))
        one_more = jax.random.bernoulli(rounding, self.kept(len(values)) - whole)
        _, drawn = jax.lax.top_k(jax.random.uniform(order, values.shape), min(whole + 1, len(values)))
        sent = jnp.where((jnp.arange(len(drawn)) < whole) | one_more, values[drawn], 0)
        return jnp.zeros_like(values).at[drawn].set(sent)


#: The compressors that a name can ask for; the one place that knows the names.
COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compression", {"top_k": TopK, "random_k": RandomK}, makes=Compressor
)
