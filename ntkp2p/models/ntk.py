r"""The empirical neural tangent kernel, Θ(x, x') = J(x) J(x')ᵀ with J = ∂f/∂θ at θ₀.

Computed in blocks of samples, so that no more than two blocks' Jacobians are ever held, and only half of a symmetric
kernel's blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.precision import in_float64

Apply = Callable[[PyTree, Array], Array]


@in_float64
def empirical_ntk(
    apply: Apply,
    params: PyTree,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    /,
    *,
    outputs: Literal["exact", "shared"] = "exact",
    memory: int = 2**31,
) -> Float[np.ndarray, "rows1 rows2"]:
    """The tangent kernel between two sets of inputs.

    Parameters
    ----------
    apply
        `apply(params, x) -> (N, C)`.
    params
        θ₀, any pytree.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 defaults to x1, and half the work.
    outputs
        "exact": all pairs of outputs, shape (N1·C, N2·C), row n·C + c for output c of sample n.
        "shared": the mean over outputs of the kernel of each, shape (N1, N2).
    memory
        Bytes that two blocks of Jacobians may take together.

    Returns
    -------
    kernel
        float64.

    Raises
    ------
    ValueError
        If `outputs` is neither.
    """
    if outputs not in ("exact", "shared"):
        raise ValueError(f'outputs must be "exact" or "shared", found {outputs!r}')
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    symmetric = x2 is None
    blocks1 = _blocks(apply, params, x1, memory)
    blocks2 = blocks1 if x2 is None else _blocks(apply, params, x2, memory)
    product = jax.jit(partial(_block_product, apply, outputs == "shared"))

    grid: list[list[np.ndarray]] = [[] for _ in blocks1]
    for i, xi in enumerate(blocks1):
        for j, xj in enumerate(blocks2):
            mirrored = symmetric and j < i
            grid[i].append(grid[j][i].T if mirrored else np.asarray(product(params, xi, xj)))
    return np.block(grid)


def jacobian(apply: Apply, params: PyTree, x: Array, /) -> list[Float[Array, "N C _"]]:
    """∂f(x)/∂θ, one array (N, C, parameters) for each leaf of θ."""

    def one(x):
        return jax.jacrev(lambda p: apply(p, x[None])[0])(params)

    leaves = jax.tree.leaves(jax.vmap(one)(x))
    return [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]


def _block_product(apply, shared, params, xi, xj):
    kernel = 0.0
    for a, b in zip(jacobian(apply, params, xi), jacobian(apply, params, xj), strict=True):
        if shared:  # mean over c of J_c J_cᵀ: one product over outputs and parameters together
            kernel += a.reshape(len(a), -1) @ b.reshape(len(b), -1).T / a.shape[1]
        else:
            kernel += a.reshape(-1, a.shape[2]) @ b.reshape(-1, b.shape[2]).T
    return kernel


def _blocks(apply, params, x, memory) -> list[Array]:
    x = jnp.asarray(x, jnp.float64)
    outputs = jax.eval_shape(apply, params, x[:1]).shape[1]
    bytes_per_sample = 8 * outputs * sum(leaf.size for leaf in jax.tree.leaves(params))
    size = max(1, int(memory // (2 * bytes_per_sample)))
    return np.array_split(x, -(-len(x) // size))
