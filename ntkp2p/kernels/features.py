r"""A wide network as a linear model in features.

Around θ₀, f(x; θ) ≈ f₀(x) + J(x)(θ − θ₀). Mixing and gradients stay in the row space of the training data's J, so
agent q is described by coordinates z_q, and with K = J Jᵀ = S Sᵀ

    f(x) = f₀(x) + S(x) z_q,    S(x) = K(x, X) S⁻ᵀ,    ‖θ_q − θ₀‖ = ‖z_q‖  exactly.

S is J itself if this is the smaller matrix (without directions that change no output), else a pivoted Cholesky factor.
The factor reveals the rank r; new inputs need the kernel with the pivots only, S(x) = K(x, X_pivots) L⁻ᵀ; and the
omitted trace bounds the error of K (Harbrecht, Peters and Schneider, 2012).

If the C outputs share one kernel, S has N rows and acts on C columns. The exact kernel of a finite network couples the
outputs: S has N·C rows and acts on one column. In both cases outputs are `(S @ z).reshape(N, C)` with z of shape
(r, columns).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.linalg
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ntkp2p.base.errors import InputError
from ntkp2p.models.networks import Model

Map = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Spread:
    """The distribution of f₀ over initialisations: each output is N(0, Σ), with Σ = L Lᵀ on the training inputs.

    Attributes
    ----------
    inputs
        The training inputs, shape (N, ...).
    factor
        L, shape (N, R).
    error
        trace(Σ − L Lᵀ) / trace(Σ): the share of the variance that the factor omits.
    at
        Maps new inputs to (L', Σ'), shapes (M, R) and (M, M): their f₀ is L' u + N(0, Σ'), where f₀ on the training
        inputs is L u and u is standard normal.
    """

    inputs: np.ndarray
    factor: Float[np.ndarray, "N R"]
    error: float
    at: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Features:
    """The linear model f(x; z) = f₀(x) + S(x) z, for the training inputs X and for new inputs.

    Attributes
    ----------
    matrix
        S on the training inputs, shape (N·C / columns, r).
    columns
        The columns of z: 1 for an exact kernel, C for a shared one.
    initial
        f₀(X), shape (N, C).
    error
        trace(K − S Sᵀ) / trace(K): the share of the kernel that the factor omits; 0 for a Jacobian.
    initial_at, matrix_at
        f₀ and S at new inputs.
    parameters
        Maps z of shape (r, columns) to θ − θ₀ of shape (P,), by one VJP; None for a shared kernel of several outputs,
        which does not belong to parameters.
    sharing_error
        The error of a kernel that several outputs share, ‖K − K_shared ⊗ I‖ / ‖K‖ on some of the inputs; None for an
        exact kernel.
    spread
        The distribution of f₀ about its mean `initial`, for the average over initialisations. None for one θ₀.
    """

    matrix: Float[np.ndarray, "rows rank"]
    columns: int
    initial: Float[np.ndarray, "N C"]
    error: float
    initial_at: Map
    matrix_at: Map
    parameters: Map | None
    sharing_error: float | None = None
    spread: Spread | None = None

    @property
    def rank(self) -> int:
        """r, the number of features."""
        return self.matrix.shape[1]

    def dealt(self, samples: Int[np.ndarray, " n"], /) -> "Features":
        """The same model for some of its training inputs, without any new computation.

        Parameters
        ----------
        samples
            Which of them, by number, in their new order.
        """
        each = len(self.matrix) // len(self.initial)
        rows = (samples[:, None] * each + np.arange(each)).reshape(-1)
        spread = self.spread and replace(
            self.spread, inputs=self.spread.inputs[samples], factor=self.spread.factor[samples]
        )
        return replace(self, matrix=self.matrix[rows], initial=self.initial[samples], spread=spread)

    @staticmethod
    def of(
        model: Model,
        x: np.ndarray,
        /,
        *,
        kernel: Literal["exact", "shared"] = "exact",
        rtol: float | None = None,
        memory: int | None = None,
        mesh: Mesh | None = None,
        cache: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Features":
        """The features of a model at θ₀ on the training inputs.

        Parameters
        ----------
        model
            The network at θ₀.
        x
            The training inputs, shape (N, ...).
        kernel
            "exact", or "shared": the mean over outputs, N × N in place of N·C × N·C.
        rtol
            The Cholesky factor stops when no remaining pivot exceeds `rtol` times the largest diagonal entry; columns
            are computed in batches until then: K is never formed. By default K is formed as a whole and factorised
            to rounding level, rows · 2.2e-16.
        memory, mesh, cache, progress
            As for `TangentKernel`.

        Raises
        ------
        ValueError
            If the kernel or its factor does not fit into the memory, or the kernel is zero or not finite.
        """
        from ntkp2p.kernels.linearise import linearised

        options = {"memory": memory, "mesh": mesh, "cache": cache, "progress": progress}
        return linearised(model, x, kernel=kernel, rtol=rtol, **options)


def pivoted_cholesky(
    diagonal: Float[np.ndarray, " n"],
    columns: Callable[[np.ndarray], np.ndarray],
    /,
    *,
    per_sample: int = 1,
    batch: int = 256,
    rtol: float | None = None,
    memory: int | None = None,
) -> tuple[Float[np.ndarray, "n rank"], np.ndarray, float]:
    """The factor S of K ≈ S Sᵀ by diagonal pivoting, K symmetric positive semidefinite.

    Columns are asked for in batches: those of the samples with the largest remaining diagonal. Of these, as many become
    pivots as stay within a factor of the largest, and the others wait, so that K is seen through its pivots' columns.

    Parameters
    ----------
    diagonal
        Of K.
    columns
        Samples ↦ K[:, their rows]; sample s has the rows s·per_sample and following.
    per_sample
        Rows of K that a sample has.
    batch
        Samples whose columns are asked for together.
    rtol
        No pivot is left above `rtol · max(diagonal)`; by default n · 2.2e-16.
    memory
        Bytes that S may take; by default as many as it needs.

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
        If the kernel is not finite, or has no positive diagonal entry, or S does not fit.
    """
    if not np.isfinite(diagonal).all():
        raise InputError("the kernel is not finite: look for extreme inputs or weights")
    if diagonal.max() <= 0:
        raise InputError("the kernel is zero: the outputs do not depend on the parameters")
    n = len(diagonal)
    most = n if memory is None else min(n, memory // (8 * n))
    tolerance = max(n * np.finfo(float).eps, rtol or 0) * diagonal.max()
    factor = np.empty((n, most), order="F")  # pages of columns that are never written take no memory
    remaining, pivots = diagonal.astype(float), np.empty(0, int)
    while remaining.max() > tolerance:
        rank = len(pivots)
        of_samples = remaining.reshape(-1, per_sample).max(axis=1)
        asked = np.argsort(-of_samples, kind="stable")[: min(batch, np.count_nonzero(of_samples > tolerance))]
        rows = (asked[:, None] * per_sample + np.arange(per_sample)).reshape(-1)
        new = ~np.isin(rows, pivots)
        block, rows = columns(asked)[:, new], rows[new]
        block = block - factor[:, :rank] @ factor[rows, :rank].T
        if not np.isfinite(block).all():
            raise InputError("the kernel is not finite: look for extreme inputs or weights")
        # What remains of these rows is known better now; the largest of all is among them, or has just become smaller.
        remaining[rows] = np.clip(block[rows, np.arange(len(rows))], 0, None)
        triangle, order = _accepted(block[rows], max(tolerance, KEEP * remaining.max()))
        chosen = rows[order]
        if rank + len(chosen) > most:
            raise InputError(
                f"the kernel has more than {most} features at this tolerance, and {most} fit into the memory: raise "
                "rtol (kernel_rtol in an experiment), take fewer samples, or give it more with memory="
            )
        part = scipy.linalg.solve_triangular(triangle, block[:, order].T, lower=True).T
        part[pivots], part[chosen] = 0, triangle
        factor[:, rank : rank + len(chosen)] = part
        pivots = np.concatenate([pivots, chosen])
        remaining = np.clip(remaining - np.sum(part**2, axis=1), 0, None)
        remaining[pivots] = 0
    return factor[:, : len(pivots)], pivots, float(remaining.sum() / diagonal.sum())


#: Of the columns that were asked for, those become pivots that are at least this share of the largest remaining one.
KEEP = 0.1


def _accepted(small: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The pivots of a small matrix that exceed the tolerance, if any: their triangle and their order."""
    if small.diagonal().max() <= tolerance:  # LAPACK would take the first of them all the same
        return np.empty((0, 0)), np.empty(0, int)
    (dpstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (small,))
    lower, permutation, rank, _ = dpstrf(small, lower=1, tol=tolerance)
    return np.tril(lower)[:rank, :rank], permutation[:rank] - 1


def by_columns(kernel: np.ndarray, per_sample: int = 1, /) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The diagonal of a kernel that is there as a whole, and its columns by samples: what `pivoted_cholesky` takes."""

    def columns(samples):
        return kernel.reshape(len(kernel), -1, per_sample)[:, samples].reshape(len(kernel), -1)

    return np.diagonal(kernel), columns
