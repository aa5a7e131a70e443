"""The NTK linearises a network around its initialisation θ₀: f(x; θ) ≈ f₀(x) + J(x)(θ − θ₀), with the kernel J Jᵀ.

S, by which `Features` describe the linear model, is J itself where it is the smaller matrix, and else a factor of J Jᵀ.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ntkp2p.base.devices import all_devices, free_memory, least
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels.features import Features, Map, by_columns, pivoted_cholesky
from ntkp2p.kernels.ntk import TangentKernel, jacobian, must_fit
from ntkp2p.models.networks import Model, outputs_of

log = logging.getLogger(__name__)


@in_float64
def linearised(
    model: Model,
    x: np.ndarray,
    /,
    *,
    kernel: Literal["exact", "shared"],
    rtol: float | None,
    memory: int | None,
    mesh: Mesh | None,
    cache: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> Features:
    """The linear model f₀ + J (θ − θ₀) of a network at its initialisation θ₀, in features.

    Parameters
    ----------
    model, x, kernel, rtol, memory, mesh, cache, progress
        As for `Features.of`.
    """

    @in_float64
    def outputs_at(x):
        return outputs_of(model.apply, model.params, np.asarray(x, np.float64))

    initial = outputs_at(x)
    apply, params, outputs, columns = model.apply, model.params, kernel, 1
    if model.one_output is not None:  # a shared kernel, and yet exact
        params, outputs, columns = model.one_output, "exact", initial.shape[1]
    elif kernel == "shared":
        columns = initial.shape[1]

    rows = initial.size // columns
    if outputs == "exact" and sum(leaf.size for leaf in jax.tree.leaves(params)) <= rows:
        jacobian_at = _jacobian_map(apply, params)
        assemble = _assemble(params if model.one_output is not None else None)
        return _full_rank(Features(jacobian_at(x), columns, initial, 0.0, outputs_at, jacobian_at, assemble))

    devices_of = all_devices() if mesh is None else mesh
    limit = least(free_memory() // 2 if memory is None else memory, devices_of)
    per_sample = rows // len(x)
    if rtol is None:
        must_fit((rows, rows), 2 * 8, limit)
    # The factor's share, which is as large as a kernel that is formed.
    limit -= limit // 2 if rtol is not None else 8 * rows**2
    options = {"outputs": outputs, "memory": limit, "mesh": mesh, "cache": cache}
    tangent = TangentKernel(apply, params, x, progress=progress, **options)
    factor, pivots, error = _factorised(tangent, per_sample, rtol, limit)
    samples = np.unique(pivots // per_sample)
    chosen = np.searchsorted(samples, pivots // per_sample) * per_sample + pivots % per_sample
    if len(samples) < len(x):
        tangent = TangentKernel(apply, params, x[samples], **options)

    def solved(b, *, transposed=False):
        # L, lower triangular in the order of the pivots, is not kept: it may be as large as S.
        return scipy.linalg.solve_triangular(factor[pivots], b, lower=True, trans=int(transposed))

    def matrix_at(new):
        columns_at = tangent.against(new)[chosen]
        tangent.release()
        return solved(columns_at).T

    @in_float64
    def parameters(z):
        cotangent = np.zeros((len(samples) * per_sample, columns))
        cotangent[chosen] = solved(z, transposed=True)
        return np.asarray(_pulled_back(model.apply, model.params, x[samples], cotangent.reshape(len(samples), -1)))

    own, sharing = outputs == "exact", None
    if not own and columns > 1:
        sharing = _cost_of_sharing(apply, params, x, initial.shape[1], memory=limit, mesh=mesh)
    return Features(
        factor, columns, initial, error, outputs_at, matrix_at, parameters if own else None, sharing_error=sharing
    )


def _factorised(
    tangent: TangentKernel, per_sample: int, rtol: float | None, memory: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The pivoted Cholesky factor of a kernel, its pivots and its error; without `rtol` of the whole matrix."""
    if rtol is None:
        diagonal, columns_of = by_columns(tangent.matrix(), per_sample)
    else:
        diagonal, columns_of = tangent.diagonal(), tangent.columns
        stated = tangent.working / 1e6, tangent.batch, len(diagonal)
        log.info("columns of a tangent kernel take at most %.0f MB of memory beside the factor, %d of %d", *stated)
    options = {"per_sample": per_sample, "batch": tangent.batch, "rtol": rtol}
    found = pivoted_cholesky(diagonal, columns_of, memory=None if rtol is None else memory, **options)
    tangent.release()
    return found


@partial(jax.jit, static_argnums=0)
def _pulled_back(apply: Callable, params: PyTree, x: Array, cotangent: Array) -> Array:
    """Jᵀ v for v of shape (N, C), as a vector (P,)."""
    return ravel_pytree(jax.vjp(lambda p: apply(p, x), params)[1](cotangent)[0])[0]


def _full_rank(features: Features) -> Features:
    """The same model in coordinates none of which is idle, as where an input is always zero."""
    S = features.matrix
    _, sizes, right = np.linalg.svd(S, full_matrices=False)
    felt = right[sizes > max(S.shape) * np.finfo(float).eps * sizes[0]].T
    if felt.shape[1] == features.rank:
        return features
    at, parameters = features.matrix_at, features.parameters
    return replace(
        features,
        matrix=S @ felt,
        matrix_at=lambda x: at(x) @ felt,
        parameters=None if parameters is None else lambda z: parameters(felt @ z),
    )


def _cost_of_sharing(apply, params, x, outputs: int, **options) -> float:
    """‖K_exact − K_shared ⊗ I‖ / ‖K_exact‖ in the Frobenius norm, on a sample of the inputs."""
    most = max(2, min(SHARING_SAMPLE, SHARING_ROWS // outputs))
    few = np.unique(np.linspace(0, len(x) - 1, most).astype(int))
    exact = TangentKernel(apply, params, x[few], **options).matrix()
    shared = np.einsum("ncmc->nm", exact.reshape(len(few), outputs, len(few), outputs)) / outputs
    return float(np.linalg.norm(exact - np.kron(shared, np.eye(outputs))) / np.linalg.norm(exact))


#: Samples on which a shared kernel is set beside the exact one.
SHARING_SAMPLE = 32
SHARING_ROWS = 1024


#: Compiled once for all networks that are equal.
_jacobian = jax.jit(jacobian, static_argnums=0)


def _jacobian_map(apply, params) -> Map:
    @in_float64
    def matrix_at(new):
        return np.asarray(_jacobian(apply, params, np.asarray(new, np.float64)))

    return matrix_at


def _assemble(one_output) -> Map:
    """z → θ − θ₀ where S is the Jacobian: z itself, or a column of it for every output of a network like this one."""

    @in_float64
    def parameters(z):
        if one_output is None:
            return np.asarray(z[:, 0])
        _, unravel = ravel_pytree(one_output)
        columns = [unravel(jnp.asarray(column)) for column in z.T]
        return np.asarray(ravel_pytree(jax.tree.map(lambda *c: jnp.concatenate(c, axis=-1), *columns))[0])

    return parameters
