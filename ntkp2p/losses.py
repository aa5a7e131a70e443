"""What the agents minimise: a loss of one sample's outputs and targets; agent q's local loss is its mean over N_q."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Loss = Callable[[Float[Array, "*rows C"], Float[Array, "*rows C"]], Float[Array, "*rows"]]


def squared(outputs: Float[Array, "*rows C"], targets: Float[Array, "*rows C"], /) -> Float[Array, "*rows"]:
    """‖f − y‖² / 2: its gradient is affine in the outputs, so that linear models have a closed form."""
    return jnp.sum((outputs - targets) ** 2, axis=-1) / 2


#: The losses that an experiment can name.
LOSSES: dict[str, Loss] = {"squared": squared}
