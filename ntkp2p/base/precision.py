"""Float64 for kernels and dynamics, whatever the user's JAX flags say.

JAX computes in float32 unless told otherwise, process-wide. A prediction that is to agree with training to 1e-10
cannot, so every public function that computes opens a float64 context for its own duration and leaves the process's
flags as they were.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(function: Callable[P, R], /) -> Callable[P, R]:
    """Run `function` with 64-bit types enabled, in this thread and for this call only."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wrapped
