"""Is the system stable? Its spectral radius decides for the rounds, its spectral abscissa for the flow."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg

from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.transition import DENSE_SIZE

#: By how much an eigenvalue may pass the edge by rounding, or by an iterative solver's tolerance.
EDGE = 1e-6


class Spectrum(NamedTuple):
    """The extremes of M's spectrum.

    Attributes
    ----------
    radius
        max |λ(M)|: the rounds are unstable above 1. NaN if the iteration has not found it.
    abscissa
        max Re λ(A), A = (M − I)/η, per unit of flow time: the flow is unstable above 0. NaN likewise.
    """

    radius: float
    abscissa: float


def spectrum(system: LinearSystem, /) -> Spectrum:
    """The spectral radius of the rounds and the spectral abscissa of the flow.

    All eigenvalues of a small system; of a large one its extreme eigenvalues by implicitly restarted Lanczos or Arnoldi
    (ARPACK), which never forms M.
    """
    if system.size <= DENSE_SIZE:
        values = np.linalg.eigvals(system.matrix())
        radius, rightmost = np.abs(values).max(), values.real.max()
    elif system.symmetric:  # the two ends of a real spectrum tell both
        ends = _extreme(system, "BE", 2)
        radius, rightmost = np.abs(ends).max(), ends.max()
    else:
        radius, rightmost = np.abs(_extreme(system, "LM", 1))[0], _extreme(system, "LR", 1).real[0]
    return Spectrum(float(radius), float((rightmost - 1) / system.step_size))


def _extreme(system: LinearSystem, which: str, count: int) -> np.ndarray:
    operator = scipy.sparse.linalg.LinearOperator((system.size, system.size), matvec=system.apply, dtype=float)
    solver: Callable = scipy.sparse.linalg.eigsh if system.symmetric else scipy.sparse.linalg.eigs
    start = np.random.default_rng(0).normal(size=system.size)
    try:
        return solver(
            operator, count, which=which, v0=start, ncv=40, tol=EDGE / 10, maxiter=50, return_eigenvectors=False
        )
    except scipy.sparse.linalg.ArpackNoConvergence:
        return np.full(count, np.nan)
