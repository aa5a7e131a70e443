"""Is the system stable? Its spectral radius decides for the rounds, its spectral abscissa for the flow."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg

from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.transition import DENSE_SIZE, Step, period

#: By how much an eigenvalue may pass the edge of stability by rounding.
EDGE = 1e-6
#: The residual, relative to the eigenvalue, at which the iteration for a large system stops: eigenvalues crowd below 1,
#: where the last digits cost most and decide nothing, while one that makes a run diverge stands apart.
TOLERANCE = 1e-3


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

    All eigenvalues of a small system; of a large one its extreme ones to a residual of 1e-3, by implicitly restarted
    Lanczos or Arnoldi (ARPACK), which never forms M. Where the mixing repeats itself every T rounds, those of the
    period's map, Floquet's multipliers, as one round's T-th root; NaN where it changes without repeating.
    """
    if system.varying:
        if not system.periodic:
            return Spectrum(float("nan"), float("nan"))
        radii = {time: _radius(period(system, time)) for time in ("rounds", "flow")}
        length = len(system.order)
        abscissa = np.log(radii["flow"]) / (length * system.step_size)
        return Spectrum(float(radii["rounds"] ** (1 / length)), float(abscissa))
    if system.size <= DENSE_SIZE:
        values = np.linalg.eigvals(system.matrix())
        radius, rightmost = np.abs(values).max(), np.real(values).max()
    elif system.symmetric:  # the two ends of a real spectrum tell both
        rightmost = extreme(system.apply, system.size, "LA", symmetric=True).real
        radius = max(abs(rightmost), abs(extreme(system.apply, system.size, "SA", symmetric=True)))
    else:
        radius = abs(extreme(system.apply, system.size, "LM"))
        rightmost = extreme(system.apply, system.size, "LR").real
    return Spectrum(float(radius), float((rightmost - 1) / system.step_size))


def _radius(step: Step) -> float:
    size = len(step.initial)
    if size <= DENSE_SIZE:
        return float(np.abs(np.linalg.eigvals(step.matrix())).max())
    return abs(extreme(step.linear, size, "LM"))


def extreme(
    apply: Callable[[np.ndarray], np.ndarray],
    size: int,
    which: str,
    /,
    *,
    symmetric: bool = False,
    rtol: float = TOLERANCE,
) -> complex:
    """One eigenvalue of a large operator, by ARPACK; NaN if it is not found.

    Parameters
    ----------
    apply, size
        s ↦ M s, for s of shape (size,).
    which
        "LM", "LR", "LA" or "SA": the largest modulus or real part, or the end of a real spectrum.
    symmetric
        Whether M is.
    rtol
        The residual at which it stops.
    """
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=apply, dtype=float)  # pyright: ignore
    solver: Callable = scipy.sparse.linalg.eigsh if symmetric else scipy.sparse.linalg.eigs
    start = np.random.default_rng(0).normal(size=size)
    try:
        (value,) = solver(operator, 1, which=which, v0=start, ncv=30, tol=rtol, maxiter=100, return_eigenvectors=False)
    except scipy.sparse.linalg.ArpackNoConvergence:
        return complex("nan")
    return complex(value)
