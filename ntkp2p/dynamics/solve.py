r"""State transition: a linear system at all requested times, from one reduced problem.

Written for the deviation e = s − s_0 from the start, with v = M s_0 + b − s_0,

    rounds  e_{k+1} = M e_k + v,        flow  de/dt = (M − I) e/η + v/η,

both live in the Krylov space of M and v, and one basis of it serves both at all times: see `ntkp2p.dynamics.krylov`. A
horizon for which the basis would outgrow the memory is cut: where a window ends, the next one starts.

Where the mixing changes over time, an ordered product of rounds, or of their exponentials, takes a state forward; if it
changes periodically, one period is a linear system again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ntkp2p.base.devices import free_memory
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics.krylov import Time, checked_time, times_of
from ntkp2p.dynamics.span import ROUNDING, Span
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.varying import solve_varying
from ntkp2p.dynamics.windows import NEGLIGIBLE, Asked, Method, constant, is_dense, must_be_method, windows


@dataclass(frozen=True)
class Solution:
    """A linear system at the requested rounds: s = s_0 + coefficients · basis.

    Attributes
    ----------
    system
        What was solved.
    rounds
        The rounds asked for, ascending, shape (times,).
    basis
        Shape (p, n): vectors that span all the deviations s − s_0.
    coefficients
        For "rounds", "flow" or both: of the deviations at those rounds, shape (times, p). Not finite where an unstable
        system has left the floating-point numbers.
    method
        "dense", "krylov", or "products" where the mixing changes and every round is taken.
    size
        The vectors of the largest reduction.
    errors
        By time: max_t ‖s(t) − s̃(t)‖ / max_{τ ≤ t} ‖s(τ) − s_0‖ is at most this; a bound where `system.growth` is known,
        otherwise an estimate.
    rtol
        The tolerance that was asked for.
    """

    system: LinearSystem
    rounds: np.ndarray
    basis: Float[np.ndarray, "p n"]
    coefficients: dict[Time, np.ndarray]
    method: str
    size: int
    errors: dict[Time, float]
    rtol: float

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())

    @property
    def converged(self) -> bool:
        """Whether all of them meet the tolerance."""
        return self.error <= self.rtol

    def states(self, time: Time, at: slice | np.ndarray = slice(None), /) -> Float[np.ndarray, "times n"]:
        """The states at some of the rounds.

        Parameters
        ----------
        time
            "rounds" or "flow".
        at
            Which of `rounds`, by place; by default all.

        Returns
        -------
        ndarray, shape (times, n)
        """
        with np.errstate(over="ignore", invalid="ignore"):  # an unstable system has overflowed
            return self.system.initial + self.coefficients[time][at] @ self.basis


@in_float64
def solve(
    system: LinearSystem,
    rounds: ArrayLike | int,
    /,
    *,
    times: Sequence[str] | str | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
    memory: int | None = None,
) -> Solution:
    """The system at the given rounds, in rounds and, if it has one, in flow at t = η k.

    Parameters
    ----------
    system
        For instance of `ntkp2p.linear_system`.
    rounds
        Ascending whole numbers k ≥ 0. Their number costs next to nothing.
    times
        "rounds", "flow", or both from one basis; by default those that it has.
    method
        "dense", "krylov", or "auto": dense up to `DENSE_SIZE` states.
    rtol
        The relative accuracy to which a Krylov basis is grown.
    memory
        Bytes for the basis; by default half of what is free. A horizon that needs more is cut into windows.

    Returns
    -------
    Solution
        The states at these rounds, with the bound or estimate of their error.

    Raises
    ------
    ValueError
        For rounds that are not ascending whole numbers or go beyond the end of a mixing sequence, an unknown method,
        the flow of a system without one, or a memory in which not even a short basis fits.

    Examples
    --------
    The round s⁺ = s/2 + 1 goes from 0 to s_k = 2 (1 − 2^{−k}), and its flow ds/dt = 2 − s, where t = k/2, to
    2 (1 − e^{−t}):

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> from ntkp2p.dynamics import LinearSystem
    >>> system = LinearSystem.of(np.array([[0.5]]), np.array([1.0]), np.array([0.0]), step_size=0.5)
    >>> solution = p2p.solve(system, [0, 1, 2, 40])
    >>> solution.states("rounds").ravel().round(9)
    array([0. , 1. , 1.5, 2. ])
    >>> solution.states("flow").ravel().round(3)
    array([0.   , 0.787, 1.264, 2.   ])
    """
    rounds = np.asarray(rounds)
    if (
        rounds.ndim != 1
        or rounds.size == 0
        or rounds.dtype.kind not in "iu"
        or rounds[0] < 0
        or (np.diff(rounds) < 0).any()
    ):
        raise InputError("rounds must be ascending whole numbers, for instance range(0, 101, 10)")
    times = times_of(system.has_flow) if times is None else times
    if isinstance(times, str) or not len(times):
        raise InputError(f'times must name one notion of time or both, as ("rounds", "flow"), found {times!r}')
    asked: list[Time] = [checked_time(time, has_flow=system.has_flow) for time in times]
    must_be_method(method)
    memory = free_memory() // 2 if memory is None else memory
    span = Span(
        system.size,
        asked,
        len(rounds),
        memory,
        ROUNDING if is_dense(system.size, method) else max(ROUNDING, NEGLIGIBLE * rtol),
    )
    task = Asked(rounds, tuple(asked), method, rtol, memory)
    found = solve_varying(system, task, span) if system.varying else windows(constant(system), task, span)
    return Solution(
        system=system,
        rounds=rounds,
        basis=span.basis,
        coefficients=span.coefficients,
        method=found.method,
        size=found.size,
        errors={time: found.errors[time] + span.error for time in asked},
        rtol=rtol,
    )
