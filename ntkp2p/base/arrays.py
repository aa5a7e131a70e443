"""Which of two libraries computes with given arrays, NumPy or JAX."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def namespace(*values: Any) -> ModuleType:
    """`jax.numpy` if any of the values is an array of JAX, or traced by it; else NumPy, which compiles nothing.

    Parameters
    ----------
    values
        Arrays and numbers.
    """
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


#: What a function that is written for JAX's arrays raises for NumPy's: for x.at, or where it changes `fixed` ones.
LACKING = (AttributeError, TypeError, ValueError)


def fixed(array: np.ndarray, /) -> np.ndarray:
    """The array itself, which cannot be changed in place from now on, as JAX's cannot."""
    array.flags.writeable = False
    return array
