"""Compression of messages: send the largest entries of each layer, or random entries.

A compressor C maps the values of a layer to the values that the receiver obtains. A prediction uses C(v) ≈ δ v. For an
unbiased compressor, E C(v) = δ v over its draws, for instance if every entry is sent with the same probability δ; the
linear prediction is then the mean over the draws. For other compressors, such as the largest entries, C(v) ≈ δ v is a
mean-field approximation: the nearest multiple of v has δ = ⟨v, C(v)⟩/‖v‖², which is ‖C(v)‖²/‖v‖² if the entries that
are sent are unchanged.

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

#: The bits of a float32 value, and of the position of an entry in a sparse message.
VALUE, PLACE = 32, 16


class Compressor(eqx.Module):
    """A compressor C of one layer's values. It may be random, independently for every agent and round.

    A subclass defines the compression, `__call__(values, key)`; everything else has a default.

    Attributes
    ----------
    unbiased
        Whether E C(v) = δ v for every v, over the draws. If it is true, a linear prediction is exactly the mean over
        the draws; otherwise it is a mean-field approximation. False by default.
    share
        δ of the linear prediction, C(v) ≈ δ v. The default, None, means 1 for an unbiased compressor; for others, δ is
        measured on the first messages of a run, δ = Σ ⟨v, C(v)⟩ / Σ ‖v‖².
    averaging_rate
        The default γ of `SparsePush` and `CHOCO`: the share of the entries that a message contains, 1 by default.

    Examples
    --------
    Numbers between −16 and 16, randomly rounded up or down to multiples of 1/8 so that the mean is exact, one byte
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

    # No annotations, so that a subclass may define fields or properties with these names.
    unbiased = False
    share = None
    averaging_rate = 1.0

    @abstractmethod
    def __call__(self, values: Float[Array, " n"], key: Any, /) -> Float[Array, " n"]:
        """Compress the values of one layer; `key` is JAX's key for the draws."""

    def bits(self, size: int, /) -> int | float:
        """The mean number of bits, over the draws, of a message with one layer of `size` values.

        It includes everything that the receiver needs. By default every value is sent as a float32.
        """
        return VALUE * size

    def with_share(self, share: float, /) -> "Compressor":
        """Return the same compressor with a measured `share` δ."""
        return Measured(self, share)

    def by_layer(self, x: Float[Array, " d"], layers: tuple[int, ...], key: Any, /) -> Float[Array, " d"]:
        """Compress one agent's x, layer by layer.

        Parameters
        ----------
        x
            The concatenated layers, shape (d,).
        layers
            The sizes of the layers, which sum to d.
        key
            JAX's key for the draws.
        """
        ends = np.cumsum(layers)
        keys = jax.random.split(key, len(layers))
        parts = (self(x[end - size : end], k) for size, end, k in zip(layers, ends, keys, strict=True))
        return jnp.concatenate(list(parts))


class Measured(Compressor):
    """A compressor whose share was measured on the first messages of a run.

    Parameters
    ----------
    compressor
        The compressor.
    share
        δ.
    """

    compressor: Compressor
    share: Any

    def __check_init__(self):
        if not is_number(self.share):
            raise InputError(
                f"the share of {self.compressor!r}, measured on the first messages, is {self.share!r}: define `share`"
            )

    @property
    def averaging_rate(self):
        return self.compressor.averaging_rate

    def __call__(self, values, key, /):
        return self.compressor(values, key)

    def bits(self, size, /):
        return self.compressor.bits(size)


class TopK(Compressor):
    """Top-k compression: send the entries of largest modulus in every layer, max(1, ⌊d · keep⌋) of d.

    Parameters
    ----------
    keep
        The share of the entries that is sent, above 0 and below 1.
    share
        δ of the mean-field prediction, the share of ‖v‖² that is sent. By default it is measured on the first messages,
        which are the agents' gradients at initialisation.

    Raises
    ------
    ValueError
        If keep is not above 0 and below 1, or share not above 0 and at most 1.

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
        _must_be_valid_keep(keep)
        if share is not None:
            must_be_share("share", share, "leave it out to have it measured", one=True)
        self.keep, self.share = keep, share

    @property
    def averaging_rate(self):
        """The default γ, equal to `keep`."""
        return self.keep

    def bits(self, size, /):
        return (VALUE + PLACE) * self._count(size)

    def with_share(self, share, /):
        return TopK(self.keep, share=share)

    def _count(self, size: int) -> int:
        # Without the factor, a product slightly below an integer due to rounding would lose one entry.
        return max(1, math.floor(size * self.keep * (1 + 1e-12)))

    def __call__(self, values, key, /):
        _, largest = jax.lax.top_k(jnp.abs(values), self._count(len(values)))
        return jnp.zeros_like(values).at[largest].set(values[largest])


class RandomK(Compressor):
    """Random-k compression: send random entries of every layer, without replacement.

    The draws are independent for every agent and round. The number of entries sent is d · keep, randomly rounded up or
    down so that the mean is exact: every entry is sent with probability `keep`.

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
    Two or three of 10 entries are sent, with equal probability:

    >>> import ntkp2p as p2p
    >>> compressor = p2p.RandomK(0.25)
    >>> compressor.bits(10) / 48, compressor.share
    (2.5, 0.25)
    """

    keep: Any
    unbiased = True

    def __init__(self, keep: Any):
        _must_be_valid_keep(keep)
        self.keep = keep

    @property
    def share(self):
        """δ, equal to `keep`."""
        return self.keep

    @property
    def averaging_rate(self):
        """The default γ, equal to `keep`."""
        return self.keep

    def bits(self, size, /):
        return (VALUE + PLACE) * size * self.keep

    def __call__(self, values, key, /):
        order, rounding = jax.random.split(key)
        sent = len(values) * self.keep
        whole = math.floor(sent)
        one_more = jax.random.bernoulli(rounding, sent - whole)
        _, drawn = jax.lax.top_k(jax.random.uniform(order, values.shape), min(whole + 1, len(values)))
        received = jnp.where((jnp.arange(len(drawn)) < whole) | one_more, values[drawn], 0)
        return jnp.zeros_like(values).at[drawn].set(received)


def with_error_feedback(world: Any, x: Any, memory: Any, by: Compressor, /, *, everything: Any = False) -> tuple:
    """Compress with error feedback: a memory e keeps the part that is not sent, and adds it to the next message.

    With v = x + e, the message is C(v), and e⁺ = v − C(v) (Stich, Cordonnier and Jaggi 2018).

    Parameters
    ----------
    world
        The `World`, as in `Algorithm.round`.
    x, memory
        Every agent's model and e, shape (Q, d).
    by
        C.
    everything
        Whether this round sends all of v, so that the memory becomes 0.

    Returns
    -------
    sent, memory
        C(v) and e⁺.
    """
    value = x + memory
    sent = world.compress(value, by, everything=everything)
    return sent, value - sent


#: The compressors by name.
COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compression", {"top_k": TopK, "random_k": RandomK}, makes=Compressor
)


def is_compressor(part: Any, /) -> bool:
    """Whether part of an algorithm is a compressor."""
    return isinstance(part, Compressor)


def compressors_of(algorithm: PyTree, /) -> list[Compressor]:
    """Return the compressors of an algorithm."""
    return [part for part in jax.tree.leaves(algorithm, is_leaf=is_compressor) if is_compressor(part)]


def with_compressors(algorithm: PyTree, replaced: Callable[[Compressor], Compressor], /) -> PyTree:
    """Return the algorithm with its compressors replaced by `replaced(compressor)`."""
    return jax.tree.map(lambda part: replaced(part) if is_compressor(part) else part, algorithm, is_leaf=is_compressor)


def must_be_compressor(value: Any, /) -> Compressor:
    """Return `value` if it is a compressor, else raise `InputTypeError`."""
    if not is_compressor(value):
        raise InputTypeError(
            f"compression must be a compressor of ntkp2p or of your own, found {value!r}: for instance TopK(0.01)"
        )
    return value


def _must_be_valid_keep(keep: Any) -> None:
    must_be_share("keep", keep, "0.01 sends 1 % of the entries; an algorithm without compression sends all of them")
