"""Float64 for kernels and dynamics, and the same numbers whatever JAX's flags.

By default JAX computes in float32, process-wide, which is not accurate enough for a prediction that agrees with
training to 1e-10. So every public function that computes sets float64, and the other flags that change results or fail,
for the duration of the call; the flags of the process stay unchanged.
"""

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ParamSpec, TypeVar

import jax

from ntkp2p.base.errors import InputError

#: Flags and their values: the seed gives the same numbers, and no flag for debugging makes a valid computation fail.
FLAGS: tuple[tuple[Callable[[Any], AbstractContextManager], Any], ...] = (
    (jax.enable_x64, True),
    (jax.threefry_partitionable, True),
    (jax.numpy_rank_promotion, "allow"),
    (jax.numpy_dtype_promotion, "standard"),
    (jax.debug_nans, False),
    (jax.debug_infs, False),
    (jax.disable_jit, False),
)

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(function: Callable[P, R], /) -> Callable[P, R]:
    """Run `function` with 64-bit types and JAX's default flags, in this thread and for this call only.

    Raises
    ------
    InputError
        If JAX has no device on the platform that the environment variable JAX_PLATFORMS names.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as flags:
            for flag, value in FLAGS:
                flags.enter_context(flag(value))
            try:
                return function(*args, **kwargs)
            except (RuntimeError, AssertionError) as error:
                if (platforms := os.environ.get("JAX_PLATFORMS")) and not _has_device():
                    raise InputError(
                        f"JAX finds no device for JAX_PLATFORMS={platforms}: unset it, or set JAX_PLATFORMS=cpu"
                    ) from error
                raise

    return wrapped


def _has_device() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):  # the latter without any plugin for the platform
        return False
