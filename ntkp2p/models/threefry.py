"""JAX's random numbers, computed by NumPy: the same draws of a key, without a program to compile.

JAX compiles a program for every shape that is drawn, a quarter of a second each. That was the largest part of the
first prediction in a process. The bits are those of JAX's default generator, Threefry-2x32 in its partitionable form,
whatever the process's `jax_default_prng_impl` and `jax_threefry_partitionable` are.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import jax
import numpy as np
from jaxtyping import Float, UInt32
from scipy.special import erfinv

Key = UInt32[np.ndarray, "2"]

#: Bits by which the second word turns, in the rounds 0–3, 8–11, 16–19 and in the others.
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
#: The key schedule's parity constant, of Skein.
PARITY = np.uint32(0x1BD11BDA)


def words_of(key: jax.Array, /) -> Key:
    """The two words of one of JAX's Threefry keys."""
    return np.asarray(jax.random.key_data(key), np.uint32)


def split(key: Key, count: int, /) -> UInt32[np.ndarray, "count 2"]:
    """New keys, as by `jax.random.split`."""
    return np.stack(_threefry(key, np.arange(count, dtype=np.uint64)), axis=-1)


def normal(key: Key, shape: tuple[int, ...], /) -> Float[np.ndarray, "..."]:
    """Standard normal numbers in float64, as by `jax.random.normal`, to rounding."""
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
