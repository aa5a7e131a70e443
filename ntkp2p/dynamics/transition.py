"""The state transition Φ(t, t₀) of a linear system: applied to states, or as a matrix."""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy.typing import ArrayLike

from ntkp2p.base.devices import free_memory
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics.krylov import Time, checked_time
from ntkp2p.dynamics.span import ROUNDING, Span
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.varying import PERIODS, WHOLE, advance_over, last_round, period
from ntkp2p.dynamics.windows import Asked, Method, Step, constant, must_be_method, windows


@dataclass(frozen=True)
class Transition:
    """Φ(t, t₀): where the homogeneous system takes a state from t₀ to t. `transition @ s` applies it.

    Attributes
    ----------
    system
        The system.
    end, begin
        t and t₀, in flow time or in rounds.
    time
        "flow": Φ = exp(A (t − t₀)). "rounds": Φ = M^(k − k₀). Ordered products of such where the mixing changes.
    """

    system: LinearSystem
    end: float | int
    begin: float | int
    time: Time = "flow"

    @in_float64
    def matrix(self) -> Float[np.ndarray, "n n"]:
        """Φ as a matrix: for small systems."""
        if self.system.varying:
            return self._varying(np.eye(self.system.size), "dense", 1e-8).T
        matrix = self.system.matrix()
        if self.time == "rounds":
            return np.linalg.matrix_power(matrix, int(self.end - self.begin))
        return scipy.linalg.expm(self._rounds * (matrix - np.eye(len(matrix))))

    def __matmul__(self, state: ArrayLike) -> np.ndarray:
        return self.apply(state)

    @in_float64
    def apply(
        self, state: ArrayLike, /, *, method: Method = "auto", rtol: float = 1e-8
    ) -> Float[np.ndarray, "n *columns"]:
        """Φ s, by the method of `solve` and as accurately.

        Parameters
        ----------
        state
            s, shape (n,), or several of them as columns, shape (n, p).
        method, rtol
            As for `solve`.

        Raises
        ------
        ValueError
            If the states are not of this system or not finite, or for an unknown method.

        Warns
        -----
        RuntimeWarning
            If the error is larger than `rtol`, as that of a strongly non-normal system may be.
        """
        state = np.asarray(state)
        if not (np.isrealobj(state) and np.isfinite(state).all()):
            raise InputError("states must be finite real numbers")
        if state.ndim not in (1, 2) or len(state) != self.system.size:
            raise InputError(f"states have shape {state.shape}: ({self.system.size},), or columns of it, is needed")
        must_be_method(method)
        columns = state.astype(float).reshape(len(state), -1).T
        if self.system.varying:
            moved = self._varying(columns, method, rtol)
        else:
            moved = np.array(
                [self._power(constant(self.system), s, self._rounds, method, rtol, self.time) for s in columns]
            )
        return moved.T.reshape(state.shape)

    @property
    def _rounds(self) -> float:
        length = self.end - self.begin
        return float(length if self.time == "rounds" else length / self.system.step_size)

    def _power(self, step: Step, state, power, method, rtol, time: Time) -> np.ndarray:
        """The step without its offset, `power` times."""
        span = Span(len(state), (time,), 1, 2**63, ROUNDING)
        homogeneous = replace(step, initial=state, affine=step.linear)
        found = windows(homogeneous, Asked(np.array([power]), (time,), method, rtol, free_memory() // 2), span)
        if found.errors[time] > rtol:
            warnings.warn(
                f"Φ s is accurate to {found.errors[time]:.1g} in place of {rtol:g}", RuntimeWarning, stacklevel=4
            )
        return state + (span.coefficients[time] @ span.basis)[0]

    def _varying(self, states, method, rtol) -> np.ndarray:
        """An ordered product: what is left of the first round, whole rounds or periods, and a part of the last one."""
        system, scale = self.system, 1 if self.time == "rounds" else self.system.step_size
        begin, end = self.begin / scale, self.end / scale
        over = partial(advance_over, system, time=self.time, driven=False)
        first, last = math.ceil(begin - WHOLE), math.floor(end + WHOLE)
        if last < first:  # within one round
            return over(states, begin=last, count=1, length=end - begin)
        if first - begin > WHOLE:
            states = over(states, begin=first - 1, count=1, length=first - begin)
        order, beginning, periodic = system.timetable
        if periodic and first < beginning <= last:
            states, first = over(states, begin=first, count=int(beginning) - first), int(beginning)
        length = len(order) - beginning
        periods = (last - first) // length
        if periodic and first >= beginning and periods >= PERIODS:
            # Periods that begin at this phase are those of the same system with its order turned.
            then = system.shifted(first)
            step = period(then, self.time) if then.varying else constant(then)
            states = np.array([self._power(step, s, periods, method, rtol, "rounds") for s in states])
            first += periods * length
        states = over(states, begin=first, count=last - first)
        if end - last > WHOLE:
            states = over(states, begin=last, count=1, length=end - last)
        return states


def transition(system: LinearSystem, t: float | int, t0: float | int = 0, /, *, time: Time = "flow") -> Transition:
    """Φ(t, t₀) of a system: Φ s is where the system without its offset takes the state s from t₀ to t.

    Parameters
    ----------
    system
        For instance of `ntkp2p.linear_system`.
    t, t0
        t ≥ t₀ ≥ 0, in flow time or in whole rounds.
    time
        "flow" or "rounds".

    Returns
    -------
    Transition
        `transition @ s` applies it, `.matrix()` forms it.

    Raises
    ------
    ValueError
        If t < t₀, rounds are not whole numbers, t is beyond the end of a mixing sequence, or the system has no flow.

    Examples
    --------
    M = 1/2 with η = 1/2 is A = (M − 1)/η = −1:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> from ntkp2p.dynamics import LinearSystem
    >>> system = LinearSystem.of(np.array([[0.5]]), np.array([1.0]), np.array([0.0]), step_size=0.5)
    >>> bool(np.isclose(p2p.transition(system, 3.0).matrix()[0, 0], np.exp(-3.0)))
    True
    >>> p2p.transition(system, 3, time="rounds") @ np.array([1.0])
    array([0.125])
    """
    time = checked_time(time, has_flow=system.has_flow)
    if not 0 <= t0 <= t < math.inf:
        raise InputError(
            f"transition(t, t0) runs forward from t0 ≥ 0 to a finite t, found t = {t:g} and t0 = {t0:g}; "
            "steady_state is for t = ∞"
        )
    if time == "rounds" and (int(t) != t or int(t0) != t0):
        raise InputError(f'rounds are whole numbers, found {t:g} and {t0:g}: use time="flow" in between')
    end = t if time == "rounds" else t / system.step_size
    if system.varying and end > (last := last_round(system)) + WHOLE:
        raise InputError(f"the mixing is given for {last} rounds, and t = {t:g} is round {end:g}")
    return Transition(system, t, t0, time)
