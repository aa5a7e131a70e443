"""What the agents minimise: a loss of one sample's outputs and targets; agent q's local loss is its mean over N_q."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry

Loss = Callable[[Float[Array, "*rows C"], Float[Array, "*rows C"]], Float[Array, "*rows"]]


def squared(outputs: Float[Any, "*rows C"], targets: Float[Any, "*rows C"], /) -> Float[Any, "*rows"]:
    """‖f − y‖² / 2 of arrays of NumPy or of JAX: its gradient is affine in the outputs, so that linear models have a
    closed form.
    """
    return ((outputs - targets) ** 2).sum(axis=-1) / 2


def cross_entropy(outputs: Float[Array, "*rows C"], targets: Float[Array, "*rows C"], /) -> Float[Array, "*rows"]:
    """−log p(right class), the outputs being logits: log(1 + exp(−y f)) for one output, else logsumexp(f) − f_c.

    Targets as `ntkp2p.data` has them: y = −1 or +1 for two classes; for several the right class c has the largest, in
    rows that are one-hot up to a constant.
    """
    if outputs.shape[-1] == 1:
        return jax.nn.softplus(-(targets * outputs)[..., 0])
    right = targets == jnp.max(targets, axis=-1, keepdims=True)
    return -jnp.sum(jnp.where(right, jax.nn.log_softmax(outputs), 0), axis=-1)


#: The losses that a name can ask for; the one place that knows the names.
LOSSES: Registry[Loss] = Registry("loss", {"squared": squared, "cross_entropy": cross_entropy})


def must_be_loss(name: str, /, *, outputs: int) -> None:
    """Refuse an unknown name, and a user-defined function that does not return one value for each row."""
    loss = LOSSES[name]
    if name in LOSSES:
        return
    rows = jax.ShapeDtypeStruct((2, 3, outputs), jnp.float32)
    found = getattr(jax.eval_shape(loss, rows, rows), "shape", None)
    if found != (2, 3):
        raise InputError(
            f"the loss {name!r} returns shape {found} for outputs of shape {rows.shape}: it must return one value for "
            "each row, shape (2, 3), since the mean over an agent's samples is taken afterwards"
        )


def name_classes(targets: Float[np.ndarray, "rows C"], /) -> bool:
    """Whether these are targets of `cross_entropy`: all −1 or +1, or rows that are one-hot up to a constant."""
    if targets.shape[1] == 1:
        return bool(np.all(np.abs(targets) == 1))
    above = np.sort(targets - targets.min(axis=1, keepdims=True), axis=1)
    return bool(np.allclose(above, np.eye(targets.shape[1])[-1]))
