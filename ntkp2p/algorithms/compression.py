"""What a lossy link lets through: the largest entries of each layer, or some of them at random.

A compressor C maps a layer's values to what arrives of them. In a prediction it is C(v) ≈ δ v. Where E C(v) = δ v over
what is drawn, as for entries that are drawn each with the same probability δ, this is the mean, and so is a linear
prediction with it. For others, such as the largest entries, it is a mean-field approximation: the nearest multiple of v
has δ = ⟨v, C(v)⟩/‖v‖², which for entries that are sent as they are is ‖C(v)‖²/‖v‖².

References
----------
Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018 (top-k, random-k, error feedback).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.base.checks import is_number, must_be_share
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.registry import Registry

#: Bits of a number that is sent as a float32, and of the place of one of few.
VALUE, PLACE = 32, 16


class Compressor(eqx.Module):
    """A compressor C of one layer's values. It may be random, independently for every agent and round.

    A subclass defines how values are compressed, `__call__(values, key)`; all else has a default.

    Attributes
    ----------
    unbiased
        Whether E C(v) = δ v for every v, over what is drawn. Linear predictions are then those of the mean over draws,
        exactly; otherwise they are mean-field approximations. False by default.
    share
        δ, as which the compressor enters a linear prediction, C(v) ≈ δ v. None, the default, is 1 for an unbiased
        compressor; for others it is measured on a run's first messages, δ = Σ ⟨v, C(v)⟩ / Σ ‖v‖².
    averaging_rate
        γ of `SparsePush` and `CHOCO` where none is given: the share of the entries that a message has, 1 by default.

    Examples
    --------
    Numbers between −16 and 16 rounded at random to multiples of 1/8, up or down such that the mean is exact, in a byte
    each:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import ntkp2p as p2p
    >>> class Grid(p2p.Compressor):
    ...     unbiased = True
    ...     def bits(self, size, /):
    ...         return 8 * size
    ...     def __call__(self, values, key, /):
    ...         return jnp.floor(8 * values + jax.random.uniform(key, values.shape)) / 8
    >>> Grid()(jnp.array([0.25, -0.5]), jax.random.key(0)).tolist()
    [0.25, -0.5]
    """

    # Without annotations, so that a subclass may have fields or properties of these names.
    unbiased = False
    share = None
    averaging_rate = 1.0

    @abstractmethod
    def __call__(self, values: Float[Array, " n"], key: Any, /) -> Float[Array, " n"]:
        """What arrives of the values of one layer; `key` is for what is drawn."""

    def bits(self, size: int, /) -> int | float:
        """The bits of a message of one layer of `size` numbers, the mean over draws: all that the receiver needs.

        By default every number is sent as a float32.
        """
        return VALUE * size

    def with_share(self, share: float, /) -> "Compressor":
        """The same compressor, of which a `share` δ has been measured."""
        return Measured(self, share)

    def by_layer(self, x: Float[Array, " d"], layers: tuple[int, ...], key: Any, /) -> Float[Array, " d"]:
        """What is let through of one agent's x, whose layers follow one another.

        Parameters
        ----------
        x
            Shape (d,).
        layers
            The sizes of the layers, which sum to d.
        key
            JAX's key of what is drawn.
        """
        ends = np.cumsum(layers)
        keys = jax.random.split(key, len(layers))
        parts = (self(x[end - size : end], k) for size, end, k in zip(layers, ends, keys, strict=True))
        return jnp.concatenate(list(parts))


class Measured(Compressor):
    """A compressor with a share that was measured on the first messages of a run.

    Parameters
    ----------
    compressor
        What compresses.
    share
        δ.
    """

    compressor: Compressor
    share: Any

    def __check_init__(self):
        if not is_number(self.share):
            raise InputError(
                f"the first messages of {self.compressor!r} give no share of them, found {self.share!r}: define it"
            )

    @property
    def averaging_rate(self):
        return self.compressor.averaging_rate

    def __call__(self, values, key, /):
        return self.compressor(values, key)

    def bits(self, size, /):
        return self.compressor.bits(size)


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

    keep: Any
    share: Any

    def __init__(self, keep: Any, *, share: Any = None):
        _must_be_kept(keep)
        if share is not None:
            must_be_share("share", share, "leave it out to have it measured", one=True)
        self.keep, self.share = keep, share

    @property
    def averaging_rate(self):
        """γ by default, which is `keep`."""
        return self.keep

    def bits(self, size, /):
        return (VALUE + PLACE) * self._sent(size)

    def with_share(self, share, /):
        return TopK(self.keep, share=share)

    def _sent(self, size: int) -> int:
        # A product that falls short of a whole number by rounding is that number.
        return max(1, math.floor(size * self.keep * (1 + 1e-12)))

    def __call__(self, values, key, /):
        _, largest = jax.lax.top_k(jnp.abs(values), self._sent(len(values)))
        return jnp.zeros_like(values).at[largest].set(values[largest])


class RandomK(Compressor):
    """Random entries of every layer, without replacement, independently for every agent and round.

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
    >>> compressor.bits(10) / 48, compressor.share
    (2.5, 0.25)
    """

    keep: Any
    unbiased = True

    def __init__(self, keep: Any):
        _must_be_kept(keep)
        self.keep = keep

    @property
    def share(self):
        """δ, which is `keep`."""
        return self.keep

    @property
    def averaging_rate(self):
        """γ by default, which is `keep`."""
        return self.keep

    def bits(self, size, /):
        return (VALUE + PLACE) * size * self.keep

    def __call__(self, values, key, /):
        order, rounding = jax.random.split(key)
        sent = len(values) * self.keep
        whole = math.floor(sent)
        one_more = jax.random.bernoulli(rounding, sent - whole)
        _, drawn = jax.lax.top_k(jax.random.uniform(order, values.shape), min(whole + 1, len(values)))
        arrives = jnp.where((jnp.arange(len(drawn)) < whole) | one_more, values[drawn], 0)
        return jnp.zeros_like(values).at[drawn].set(arrives)


def with_error_feedback(world: Any, x: Any, memory: Any, by: Compressor, /, *, everything: Any = False) -> tuple:
    """Error feedback: what compression drops of a message is kept in a memory e, and added to the next message.

    With v = x + e, what is sent is C(v), and e⁺ = v − C(v) (Stich, Cordonnier and Jaggi 2018).

    Parameters
    ----------
    world
        What sends, as in `Algorithm.round`.
    x, memory
        Every agent's model and e, shape (Q, d).
    by
        C.
    everything
        Whether all of v is sent in this round, so that nothing is kept.

    Returns
    -------
    sent, memory
        C(v) and e⁺.
    """
    value = x + memory
    sent = world.compress(value, by, everything=everything)
    return sent, value - sent


#: The compressors that a name can ask for; the one place that knows the names.
COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compression", {"top_k": TopK, "random_k": RandomK}, makes=Compressor
)


def is_compressor(part: Any, /) -> bool:
    """Whether part of an algorithm is a compressor."""
    return isinstance(part, Compressor)


def compressors_of(algorithm: PyTree, /) -> list[Compressor]:
    """The compressors that an algorithm has."""
    return [part for part in jax.tree.leaves(algorithm, is_leaf=is_compressor) if is_compressor(part)]


def with_compressors(algorithm: PyTree, replaced: Callable[[Compressor], Compressor], /) -> PyTree:
    """The algorithm with other compressors in place of its own."""
    return jax.tree.map(lambda part: replaced(part) if is_compressor(part) else part, algorithm, is_leaf=is_compressor)


def must_be_compressor(value: Any, /) -> Compressor:
    """The compressor, if it is one."""
    if not is_compressor(value):
        raise InputTypeError(
            f"compression is one of what ntkp2p has, or a Compressor of your own, found {value!r}: TopK(0.01)"
        )
    return value


def _must_be_kept(share: Any) -> None:
    must_be_share("keep", share, "0.01 sends 1 % of the entries, and an algorithm without compression all of them")
