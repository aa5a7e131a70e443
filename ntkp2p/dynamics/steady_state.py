r"""Where a run comes to rest: s* = M s* + b, the same point for the rounds and for their flow.

For a constant step size this is not the minimiser of the global loss. The distance between them is DGD's bias, O(η).
"""

import warnings

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float

from ntkp2p.base.errors import InputError, NotConvergedError
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics.krylov import checked_time
from ntkp2p.dynamics.spectrum import STABILITY_TOLERANCE, extremes, spectrum, stability_tolerance
from ntkp2p.dynamics.system import LinearSystem

#: Up to this many states a dense solve is the quicker one.
DENSE_SOLVE = 3000
#: How near to the edge of stability an eigenvalue other than 1 is looked for.
CLOSE = 1e-3
#: Iterations of MINRES or GMRES at most.
ITERATIONS = 20_000


class NoSteadyStateError(InputError):
    """The run never rests: the message says why."""


@in_float64
def steady_state(
    system: LinearSystem, /, *, time: str = "rounds", rtol: float = 1e-10
) -> tuple[Float[np.ndarray, " n"], float]:
    """The state s* at t = ∞, from (I − M)(s* − s_0) = M s_0 + b − s_0.

    Where M has eigenvalues 1, s* is what the run from s_0 goes to: s* − s_0 stays in the range of I − M.

    Parameters
    ----------
    system
        For instance of `ntkp2p.linear_system`.
    time
        "rounds" or "flow": they rest in the same state, but one may be stable and the other not.
    rtol
        The relative residual at which an iteration for a large system stops.

    Returns
    -------
    state
        s*, shape (n,).
    residual
        ‖M s* + b − s*‖ / ‖M s_0 + b − s_0‖.

    Raises
    ------
    NoSteadyStateError
        If the run is unstable, keeps oscillating or drifting, or its mixing changes over time.
    NotConvergedError
        If the iteration does not reach `rtol`.
    """
    time = checked_time(time, has_flow=system.has_flow)
    if system.varying:
        raise NoSteadyStateError("mixing that changes over time has no steady state: predict a long run instead")
    ends = spectrum(system)
    if time == "rounds" and ends.radius > 1 + stability_tolerance(system, ends):
        raise NoSteadyStateError(
            f"the rounds have no steady state: their spectral radius is {ends.radius:.6g} > 1; use a smaller step "
            'size, or time="flow"'
        )
    if time == "flow" and ends.abscissa * system.step_size > stability_tolerance(system, ends):
        raise NoSteadyStateError(
            f"the flow has no steady state: its spectral abscissa is {ends.abscissa:.3g} > 0; see check_mixing(W)"
        )
    start = system.apply(system.initial) + system.offset - system.initial
    if not start.any():
        return system.initial, 0.0
    if time == "rounds" and ends.radius > 1 - CLOSE:
        _must_not_oscillate(system)
    change = (_dense if system.size <= DENSE_SOLVE else _iterated)(system, start, rtol)
    residual = float(np.linalg.norm(start - change + system.apply(change)) / np.linalg.norm(start))
    if residual > max(1e-6, rtol):
        raise NoSteadyStateError(
            f"no state rests: a part of the drive ({residual:.2g} of it) acts on modes that nothing damps, and they "
            "drift without limit"
        )
    return system.initial + change, residual


def _must_not_oscillate(system: LinearSystem) -> None:
    """Refuse eigenvalues of modulus 1 other than 1: −1 in a large symmetric system, in others the largest one."""
    if system.size <= DENSE_SOLVE:
        values = np.linalg.eigvals(system.matrix())
    else:
        which = "SA" if system.symmetric else "LM"
        values = extremes(system.apply, system.size, which, symmetric=system.symmetric, rtol=STABILITY_TOLERANCE).values
    values = values[(np.abs(values) > 1 - STABILITY_TOLERANCE) & (np.abs(values - 1) > CLOSE)]
    if len(values):
        raise NoSteadyStateError(
            f"the rounds have no steady state: the eigenvalue {values[0]:.4g} keeps oscillating; try lazy(W) or "
            'time="flow"'
        )


def _dense(system: LinearSystem, start: np.ndarray, rtol: float) -> np.ndarray:
    """(I − M)⁻¹ start."""
    matrix = system.matrix()
    away = np.eye(system.size) - matrix
    try:
        with warnings.catch_warnings(action="error", category=scipy.linalg.LinAlgWarning):
            return scipy.linalg.solve(away, start)
    except (scipy.linalg.LinAlgError, scipy.linalg.LinAlgWarning):
        change = np.linalg.lstsq(away, start, rcond=1e-10)[0]
        still, left = (scipy.linalg.null_space(m, rcond=1e-10) for m in (away, away.T))
        # What rests anyway is not moved: its part in the change is taken out along the range of I − M.
        return change - still @ np.linalg.lstsq(left.T @ still, left.T @ change)[0]


def _iterated(system: LinearSystem, start: np.ndarray, rtol: float) -> np.ndarray:
    shape = (system.size, system.size)
    away = scipy.sparse.linalg.LinearOperator(shape, matvec=lambda s: s - system.apply(s), dtype=float)  # pyright: ignore
    if system.symmetric:
        change, failed = scipy.sparse.linalg.minres(away, start, rtol=rtol, maxiter=ITERATIONS)
    else:
        change, failed = scipy.sparse.linalg.gmres(away, start, rtol=rtol, restart=100, maxiter=ITERATIONS // 100)
    if failed:
        residual = np.linalg.norm(start - away.matvec(change)) / np.linalg.norm(start)
        raise NotConvergedError(
            f"the steady state was not found to {rtol:g} within {ITERATIONS} products: the residual is {residual:.2g}; "
            "raise rtol, or predict a long run instead"
        )
    return change
