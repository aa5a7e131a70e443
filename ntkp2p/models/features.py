r"""A wide network as a linear model in features.

Around θ₀, f(x; θ) ≈ f₀(x) + J(x)(θ − θ₀). Mixing and gradients never leave the row space of the training data's J, so
that agent q is described by coordinates z_q, and with K = J Jᵀ = S Sᵀ

    f(x) = f₀(x) + S(x) z_q,    S(x) = K(x, X) S⁻ᵀ,    ‖θ_q − θ₀‖ = ‖z_q‖  exactly.

S is J itself where it is the smaller matrix, else a pivoted Cholesky factor: it reveals the rank r, new inputs need
the kernel with the pivots only, S(x) = K(x, X_pivots) L⁻ᵀ, and the trace that it leaves out bounds the error of K
(Harbrecht, Peters and Schneider, 2012).

When the C outputs share one kernel, S has N rows and acts on C columns; the exact kernel of a finite network couples
the outputs: N·C rows and one column. Either way outputs are `(S @ z).reshape(N, C)` with z of shape (r, columns).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ntkp2p.models.networks import Model
from ntkp2p.models.ntk import empirical_ntk, jacobian
from ntkp2p.precision import in_float64

Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Spread:
    """How f₀ varies over initialisations: every output by itself is N(0, Σ), with Σ = L Lᵀ on the training inputs.

    Attributes
    ----------
    inputs
        The training inputs, shape (N, ...).
    factor
        L, shape (N, R).
    error
        trace(Σ − L Lᵀ) / trace(Σ): the share of the variance that the factor leaves out.
    at
        New inputs ↦ (L', Σ'): f₀ there is L' u + N(0, Σ'), shapes (M, R) and (M, M), where f₀ on the training inputs
        is L u, u standard normal.
    """

    inputs: np.ndarray
    factor: Float[np.ndarray, "N R"]
    error: float
    at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Features:
    """f(x; z) = f₀(x) + S(x) z for the training inputs X and for new ones.

    Attributes
    ----------
    matrix
        S on the training inputs, shape (N·C / columns, r).
    columns
        The columns of z: 1 for an exact kernel, C for a shared one.
    initial
        f₀(X), shape (N, C).
    error
        trace(K − S Sᵀ) / trace(K): what the factor leaves out, 0 for a Jacobian.
    initial_at, matrix_at
        f₀ and S at new inputs.
    parameters
        z of shape (r, columns) ↦ θ − θ₀ of shape (P,), by one VJP; None for the mean kernel of several outputs,
        which is no network's own.
    spread
        For the average over initialisations, whose `initial` is a mean: how f₀ varies about it. None for one θ₀.
    """

    matrix: Float[np.ndarray, "rows rank"]
    columns: int
    initial: Float[np.ndarray, "N C"]
    error: float
    initial_at: Map
    matrix_at: Map
    parameters: Map | None
    spread: Spread | None = None

    @property
    def rank(self) -> int:
        """r, the number of features."""
        return self.matrix.shape[1]

    @staticmethod
    @in_float64
    def of(
        model: Model,
        x: np.ndarray,
        /,
        *,
        kernel: Literal["exact", "shared"] = "exact",
        rtol: float | None = None,
    ) -> "Features":
        """The features of a model at θ₀ on the training inputs x of shape (N, ...).

        Parameters
        ----------
        kernel
            "exact", or "shared": the mean over outputs, N × N in place of N·C × N·C.
        rtol
            The Cholesky factor stops when no remaining pivot exceeds `rtol` times the largest diagonal entry;
            by default at rounding level, rows · 2.2e-16.
        """
        initial_at = jax.jit(lambda x: model.apply(model.params, x))

        @in_float64
        def outputs_at(x):
            return np.asarray(initial_at(jnp.asarray(x, jnp.float64)))

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
            return Features(jacobian_at(x), columns, initial, 0.0, outputs_at, jacobian_at, assemble)

        full = empirical_ntk(apply, params, x, outputs=outputs)
        factor, pivots, error = pivoted_cholesky(full, rtol=rtol)
        per_sample = rows // len(x)
        samples = np.unique(pivots // per_sample)
        chosen = np.searchsorted(samples, pivots // per_sample) * per_sample + pivots % per_sample
        triangle = factor[pivots]  # lower triangular, by the order of the pivots

        def matrix_at(new):
            columns_at = empirical_ntk(apply, params, new, x[samples], outputs=outputs)[:, chosen]
            return scipy.linalg.solve_triangular(triangle, columns_at.T, lower=True).T

        @in_float64
        def parameters(z):
            cotangent = np.zeros((len(samples) * per_sample, columns))
            cotangent[chosen] = scipy.linalg.solve_triangular(triangle.T, z, lower=False)
            _, pull = jax.vjp(lambda p: model.apply(p, jnp.asarray(x[samples])), model.params)
            (change,) = pull(jnp.asarray(cotangent.reshape(len(samples), -1)))
            return np.asarray(ravel_pytree(change)[0])

        own = outputs == "exact"
        return Features(factor, columns, initial, error, outputs_at, matrix_at, parameters if own else None)


def pivoted_cholesky(
    kernel: Float[np.ndarray, "n n"], /, *, rtol: float | None = None
) -> tuple[Float[np.ndarray, "n rank"], np.ndarray, float]:
    """The factor S of K ≈ S Sᵀ by diagonal pivoting, K symmetric positive semidefinite.

    Returns
    -------
    factor
        S, shape (n, r), rows in the order of K.
    pivots
        The r pivots; `factor[pivots]` is lower triangular.
    error
        trace(K − S Sᵀ) / trace(K), which bounds the relative error of K in the nuclear norm.

    Raises
    ------
    ValueError
        If the kernel is not finite, or has no positive diagonal entry.
    """
    if not np.isfinite(kernel).all():
        raise ValueError("the kernel is not finite: look for extreme inputs or weights")
    diagonal = np.diagonal(kernel)
    if diagonal.max() <= 0:
        raise ValueError("the kernel is zero: the outputs do not depend on the parameters")
    n = len(kernel)
    tolerance = (n * np.finfo(float).eps if rtol is None else rtol) * diagonal.max()
    (dpstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (kernel,))
    lower, permutation, rank, _ = dpstrf(kernel, lower=1, tol=tolerance)
    order = permutation - 1
    factor = np.empty((n, rank))
    factor[order] = np.tril(lower)[:, :rank]
    left_out = np.clip(diagonal - np.sum(factor**2, axis=1), 0, None).sum() / diagonal.sum()
    return factor, order[:rank], float(left_out)


def _jacobian_map(apply, params) -> Map:
    @in_float64
    def matrix_at(new):
        return np.asarray(jacobian(apply, params, jnp.asarray(new, jnp.float64)))

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
