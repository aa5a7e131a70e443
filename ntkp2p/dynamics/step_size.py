"""The largest step size for which a linear system is stable."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.threads import one_thread
from ntkp2p.dynamics.spectrum import (
    STABILITY_TOLERANCE,
    TOLERANCE,
    Spectrum,
    extremes,
    multipliers,
    stability_tolerance,
)
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.windows import DENSE_SIZE


def with_step_size(system: LinearSystem, step_size: float, /) -> LinearSystem:
    """The system of the same algorithm with another η."""
    algorithm = eqx.tree_at(lambda a: a.step_size, system.parameters["algorithm"], jnp.asarray(step_size, float))
    changed = system.with_parameters(system.parameters | {"algorithm": algorithm}, system.initial)
    return replace(changed, step_size=step_size, curvature=system.curvature)


@in_float64
@one_thread()
def largest_step_size(system: LinearSystem, /, *, dense: int = DENSE_SIZE) -> float:
    """The η below which the rounds are stable: where their spectral radius passes one.

    Found by Brent's method between a stable and an unstable step size, and checked at smaller ones between which it
    could pass one before. 0 if no step size is stable, because the mixing alone does not converge; inf if all step
    sizes that were tested are stable.

    Parameters
    ----------
    dense
        Up to so many states it is exact, by all eigenvalues, and beyond as far as iteration finds the eigenvalue that
        passes: the largest ``|λ − 1|`` and ``|λ|``. Eigenvalues crowd about 1, while an instability that a step size
        makes begins at −1, mostly. For symmetric M that is always so.

    Returns
    -------
    step_size
        NaN if the iteration finds nothing.

    Raises
    ------
    ValueError
        If the mixing changes over time without repeating itself.
    """
    system = system.eventual
    if system.varying and not system.timetable.periodic:
        raise InputError(
            "mixing that changes without repeating itself has no spectral radius, and no largest step size"
        )
    try:
        return _passage(system, dense)
    except _NotFound:
        return float("nan")


class _NotFound(ArithmeticError):
    """The iteration has found no eigenvalue."""


def _passage(system: LinearSystem, dense: int) -> float:
    def passed(eta: float) -> float:
        return _beyond_one(with_step_size(system, float(eta)), dense)

    stable, unstable = bracket(passed, system.curvature)
    if stable == unstable:
        return stable
    below = stable * np.arange(1, CHECKPOINTS) / CHECKPOINTS if system.size <= dense and not system.symmetric else []
    for earlier in below:  # where W is not symmetric the stable step sizes need not be an interval
        if passed(earlier) > 0:
            stable, unstable = earlier - stable / CHECKPOINTS, earlier
            if stable <= 0:
                return 0.0
            break
    from scipy.optimize import brentq  # which takes its time to import

    root: Any = brentq(passed, stable, unstable, xtol=1e-12 / system.curvature, rtol=np.float64(1e-7))
    return float(root)


def bracket(passed: Callable[[float], float], curvature: float, /) -> tuple[float, float]:
    """A stable step size and an unstable one, for which `passed` is above 0; both 0 if none is stable, inf if all are.

    Looked for from 1/h on, h the curvature, by factors of two.
    """
    stable = unstable = 1 / curvature
    if passed(unstable) > 0:
        while passed(stable) > 0:
            stable, unstable = stable / 2, stable
            if unstable * curvature < STABILITY_TOLERANCE:
                return 0.0, 0.0
    else:
        while passed(unstable) <= 0:
            stable, unstable = unstable, 2 * unstable
            if unstable * curvature > 1 / STABILITY_TOLERANCE:
                return float("inf"), float("inf")
    return stable, unstable


#: Smaller step sizes at which a stable one is looked at.
CHECKPOINTS = 5


def _beyond_one(system: LinearSystem, dense: int) -> float:
    """By how much the spectral radius exceeds one, beyond rounding."""
    if system.varying:
        return float(np.abs(multipliers(system, "rounds")).max() - 1 - STABILITY_TOLERANCE)
    if system.size <= dense:
        if system.symmetric:
            return _beyond_ends(*np.linalg.eigvalsh(system.matrix())[[0, -1]])
        found = Spectrum(float(np.abs(np.linalg.eigvals(system.matrix())).max()), float("nan"))
        return found.radius - 1 - stability_tolerance(system, found)
    if system.symmetric:
        low, high = (
            extremes(system.apply, system.size, end, symmetric=True, rtol=rtol).values[0]
            for end, rtol in (("SA", 1e-9), ("LA", TOLERANCE))
        )
        if np.isnan([low, high]).any():
            raise _NotFound
        return _beyond_ends(low, high)
    # One search finds what stands out far from 1; the other, roughly, what does beside the crowd about 1.
    away = _outermost(lambda s: system.apply(s) - s, system.size, (1e-5, TOLERANCE)) + 1
    found = np.abs([away, _outermost(system.apply, system.size, (TOLERANCE,))])
    if np.isnan(found).all():
        raise _NotFound
    return float(np.nanmax(found) - 1 - STABILITY_TOLERANCE)


def _outermost(apply: Callable, size: int, tolerances: Sequence[float]) -> complex:
    """The eigenvalue of largest modulus to the first of some residuals that is reached; NaN if none is."""
    found = (complex(extremes(apply, size, "LM", rtol=rtol).values[0]) for rtol in tolerances)
    return next((value for value in found if not np.isnan(value)), complex("nan"))


def _beyond_ends(low: float, high: float) -> float:
    # Steps move the lower end past −1, smoothly; the upper one is near 1 all the time and passes it only with W's own.
    return float(high - 1 if high > 1 + STABILITY_TOLERANCE else -low - 1)
