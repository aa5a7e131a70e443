"""JAX's random numbers, computed by NumPy: the same draws of a key, without a program to compile.

JAX compiles a program for every shape that is drawn, a quarter of a second each. That was the largest part of the
first prediction in a process. The bits are those of JAX's default generator, Threefry-2x32 in its partitionable form,
whatever the process's `jax_default_prng_impl` and `jax_threefry_partitionable` are.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import UInt32
from scipy.special import erfinv

Key = UInt32[np.ndarray, "2"]

#: Bits by which the second word turns, in the rounds 0–3, 8–11, 16–19 and in the others.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
#: The key schedule's parity constant, of Skein.
PARITY = np.uint32(0x1BD11BDA)


def seeded(seed: int, /) -> Key:
    """The key of a seed, as by `jax.random.key`."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def key_of(words: Key, /) -> jax.Array:
    """The key as one of JAX's own."""
    return jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")


def words_of(key: jax.Array | Key, /) -> Key:
    """The two words of one of JAX's Threefry keys."""
    return key if isinstance(key, np.ndarray) else np.asarray(jax.random.key_data(key), np.uint32)


def fold_in(key: Key, number: int, /) -> Key:
    """A new key for a number, as by `jax.random.fold_in`."""
    return np.concatenate(_threefry(key, np.array([number], np.uint64)))


def split(key: Any, count: int, /) -> Any:
    """New keys, as by `jax.random.split`, of a key as `normal` takes it."""
    if isinstance(key, Tracer):
        return jax.random.split(key, count)
    return np.stack(_threefry(words_of(key), np.arange(count, dtype=np.uint64)), axis=-1)


def normal(key: Any, shape: tuple[int, ...], /) -> Any:
    """Standard normal numbers in float64, as by `jax.random.normal`, to rounding.

    Parameters
    ----------
    key
        One of JAX's, or its words. Of a key that JAX traces, the draw is traced as well.
    shape
        Of the result.
    """
    if isinstance(key, Tracer):
        return jax.random.normal(key, shape)
    key = words_of(key)
    high, low = _threefry(key, np.arange(math.prod(shape), dtype=np.uint64))
    bits = (high.astype(np.uint64) << np.uint64(32)) | low
    # 52 random bits as the mantissa of a number in [1, 2), stretched to (−1, 1).
    unit = ((bits >> np.uint64(12)) | np.uint64(0x3FF0000000000000)).view(np.float64) - 1
    least = np.nextafter(-1.0, 0.0)
    return math.sqrt(2) * erfinv(np.maximum(least, unit * (1 - least) + least)).reshape(shape)


def _threefry(key: Key, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with twenty rounds: two words for each counter of 64 bits."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x = (counters >> np.uint64(32)).astype(np.uint32) + schedule[0]
    y = counters.astype(np.uint32) + schedule[1]
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x += y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y ^= x
        x += schedule[(block + 1) % 3]
        y += schedule[(block + 2) % 3]
        y += np.uint32(block + 1)
    return x, y
