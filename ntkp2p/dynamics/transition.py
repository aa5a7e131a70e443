r"""State transition: a linear system at all requested times, from one reduced problem.

Written for the deviation e = s − s_0 from the start, with v = M s_0 + b − s_0,

    rounds  e_{k+1} = M e_k + v,        flow  de/dt = (M − I) e/η + v/η,

both are orbits of one augmented map T = [[M, v], [0, 1]]: after k rounds e is T^k applied to the last unit vector, and
in the flow, k rounds later, it is exp(T − I)^k applied to it. Both therefore live in the Krylov space of M and v, and
one basis V with M V ≈ V H serves both at all times: replace M by H and v by ‖v‖ e₁.

The reduction is M itself for small systems, Lanczos' three-term recurrence where M is symmetric (for functions of a
matrix the loss of orthogonality does no harm: Druskin and Knizhnerman, 1991), and Arnoldi's otherwise
(Saad, "Analysis of some Krylov subspace approximations to the matrix exponential operator", 1992).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Float
from numpy.typing import ArrayLike

from ntkp2p.dynamics.system import LinearSystem

Time = Literal["rounds", "flow"]
Method = Literal["auto", "dense", "krylov"]

#: Up to this many states the dense route is the quicker one.
DENSE_SIZE = 400
#: The largest Krylov basis that is tried.
KRYLOV_SIZE = 1200


@dataclass(frozen=True)
class Reduction:
    """M restricted to a subspace: M V ≈ V H, with a vector v = V start.

    Attributes
    ----------
    basis
        V, shape (n, m), or None for the identity.
    matrix
        H, shape (m, m).
    start
        v in the basis, shape (m,).
    remainder
        ‖M V − V H‖: the next subdiagonal entry of the recurrence, 0 when the space is invariant.
    """

    basis: Float[np.ndarray, "n m"] | None
    matrix: Float[np.ndarray, "m m"]
    start: Float[np.ndarray, " m"]
    remainder: float = 0.0

    def expand(self, coefficients: Float[np.ndarray, "times m"], /) -> Float[np.ndarray, "times n"]:
        """Vectors of the full space from their coefficients."""
        with np.errstate(over="ignore", invalid="ignore"):  # an unstable system has overflowed
            return coefficients if self.basis is None else coefficients @ self.basis.T


@dataclass(frozen=True)
class Solution:
    """A linear system at the requested rounds, as coefficients in one basis.

    Attributes
    ----------
    system, reduction
        What was solved, and in which basis.
    rounds
        The rounds asked for, ascending, shape (times,).
    coefficients
        For "rounds" and "flow": e at those rounds, shape (times, m).
    method
        "dense" or "krylov".
    error
        Estimate of max_t ‖e(t) − ẽ(t)‖ / max_{τ ≤ t} ‖e(τ)‖ over both.
    converged
        Whether that estimate meets the tolerance asked for.
    """

    system: LinearSystem
    reduction: Reduction
    rounds: np.ndarray
    coefficients: dict[str, np.ndarray]
    method: str
    error: float
    converged: bool

    def states(self, time: str, at: slice = slice(None), /) -> Float[np.ndarray, "times n"]:
        """The states at some of the rounds."""
        return self.system.initial + self.reduction.expand(self.coefficients[time][at])


def solve(
    system: LinearSystem,
    rounds: ArrayLike,
    /,
    *,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> Solution:
    """The system at the given rounds, in rounds and in flow at t = η k.

    Parameters
    ----------
    rounds
        Ascending whole numbers k ≥ 0.
    method
        "dense", "krylov", or "auto": dense up to `DENSE_SIZE` states.
    rtol
        The relative accuracy to which a Krylov basis is grown.

    Raises
    ------
    ValueError
        For rounds that are not ascending whole numbers, or an unknown method.
    """
    rounds = np.asarray(rounds)
    if rounds.size == 0 or rounds.dtype.kind not in "iu" or rounds[0] < 0 or (np.diff(rounds) < 0).any():
        raise ValueError("rounds must be ascending whole numbers, for instance range(0, 101, 10)")
    start = system.apply(system.initial) + system.offset - system.initial

    def evaluate(matrix, start):
        scale = np.linalg.norm(start) or 1.0
        column, last = start[:, None] / scale, np.eye(1, len(start) + 1, len(start))
        augmented = np.block([[np.block([matrix, column])], [last]])
        orbits = {time: orbit(augmented, scale * last[0], rounds, time) for time in ("rounds", "flow")}
        return {time: states[:, :-1] for time, (states, _) in orbits.items()}, max(
            growth for _, growth in orbits.values()
        )

    reduction, coefficients, error = _reduce(system, start, evaluate, method, rtol, float(rounds[-1]))
    return Solution(
        system=system,
        reduction=reduction,
        rounds=rounds,
        coefficients=coefficients,
        method="dense" if reduction.basis is None else "krylov",
        error=error,
        converged=error <= rtol,
    )


@dataclass(frozen=True)
class Transition:
    """Φ(t, t₀): where the homogeneous system takes a state from t₀ to t. `transition @ s` applies it.

    Attributes
    ----------
    system
        The system, time-invariant.
    duration
        t − t₀, in flow time, or in rounds.
    time
        "flow": Φ = exp(A (t − t₀)). "rounds": Φ = M^(k − k₀).
    """

    system: LinearSystem
    duration: float | int
    time: Time = "flow"

    def matrix(self) -> Float[np.ndarray, "n n"]:
        """Φ as a matrix: for small systems."""
        return self._of(self.system.matrix())

    def __matmul__(self, state: np.ndarray) -> np.ndarray:
        return self.apply(state)

    def apply(
        self, state: Float[np.ndarray, " n"], /, *, method: Method = "auto", rtol: float = 1e-8
    ) -> Float[np.ndarray, " n"]:
        """Φ s, by the method of `solve`."""

        def evaluate(matrix, start):
            return {self.time: (self._of(matrix) @ start)[None]}, 1.0

        steps = float(self.duration if self.time == "rounds" else self.duration / self.system.step_size)
        reduction, coefficients, _ = _reduce(self.system, state, evaluate, method, rtol, steps)
        return reduction.expand(coefficients[self.time])[0]

    def _of(self, matrix):
        if self.time == "rounds":
            return np.linalg.matrix_power(matrix, int(self.duration))
        generator = (matrix - np.eye(len(matrix))) / self.system.step_size
        return scipy.linalg.expm(self.duration * generator)


def transition(system: LinearSystem, t: float | int, t0: float | int = 0, /, *, time: Time = "flow") -> Transition:
    """Φ(t, t₀) of a system, for t ≥ t₀ in flow time or in whole rounds.

    Raises
    ------
    ValueError
        If t < t₀, or rounds are not whole numbers.
    """
    if t < t0:
        raise ValueError(f"transition(t, t0) runs forward: found t = {t:g} before t0 = {t0:g}")
    if time == "rounds" and (int(t) != t or int(t0) != t0):
        raise ValueError(f'rounds are whole numbers, found {t:g} and {t0:g}: use time="flow" in between')
    return Transition(system, t - t0, time)


def orbit(
    matrix: Float[np.ndarray, "m m"], start: Float[np.ndarray, " m"], rounds: np.ndarray, time: Time, /
) -> tuple[Float[np.ndarray, "times m"], float]:
    """M^k s, or its flow exp(M − I)^k s, at ascending rounds k, by repeated squaring of one round's map.

    Returns
    -------
    states
        At the given rounds.
    growth
        max ‖(M/ρ)^k‖ over the powers that were formed, ρ = max(1, spectral radius): by so much may a rounding error in
        M be amplified. About 1 for a normal matrix; the transient growth of a non-normal one.
    """
    one = matrix if time == "rounds" else scipy.linalg.expm(matrix - np.eye(len(matrix)))
    radius = max(1.0, np.abs(np.linalg.eigvals(one)).max())
    powers, growth = [one], _norm(one / radius)
    state, reached, states = start, 0, []
    with np.errstate(over="ignore", invalid="ignore"):  # an unstable system overflows: flagged, not an error
        for k in rounds:
            for bit, digit in enumerate(reversed(f"{k - reached:b}")):
                if bit == len(powers):
                    powers.append(powers[-1] @ powers[-1])
                    norm = _norm(powers[-1] / radius ** float(2**bit))
                    growth = max(growth, norm) if np.isfinite(norm) else growth
                if digit == "1":
                    state = powers[bit] @ state
            reached = k
            states.append(state)
    return np.array(states), float(growth)


def _norm(matrix: np.ndarray) -> float:
    """An upper bound of the spectral norm."""
    return float(np.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf)))


def _reduce(
    system: LinearSystem,
    start: np.ndarray,
    evaluate: Callable[[np.ndarray, np.ndarray], tuple[dict[str, np.ndarray], float]],
    method: Method,
    rtol: float,
    rounds: float,
) -> tuple[Reduction, dict[str, np.ndarray], float]:
    """A reduction of the system for `start`, the coefficients that `evaluate` finds in it, and their error.

    `evaluate` also tells by how much rounding errors are amplified.
    """
    if method not in ("auto", "dense", "krylov"):
        raise ValueError(f'method must be "auto", "dense" or "krylov", found {method!r}')
    rounding = float(np.finfo(float).eps) * (system.size + rounds)  # of `rounds` products with M, at ‖M‖ about 1
    if method == "dense" or (method == "auto" and system.size <= DENSE_SIZE):
        reduction = Reduction(None, system.matrix(), start)
        coefficients, growth = evaluate(reduction.matrix, start)
        return reduction, coefficients, rounding * growth

    growing = _krylov(system.apply, start, system.symmetric)
    smaller, previous = None, float("inf")
    while True:
        reduction = next(growing)
        coefficients, growth = evaluate(reduction.matrix, reduction.start)
        if reduction.remainder == 0:
            return reduction, coefficients, rounding * growth
        floor = rounding * growth  # below which no larger basis helps
        change = float("inf")
        if smaller is not None:
            change = max(_distance(smaller[time], coefficients[time]) for time in coefficients)
        # What is still to come if it goes on falling at the rate seen: Σ change · ratio^j, at least the change itself.
        ratio = min(change / previous, 1.0) if previous > 0 and change < float("inf") else 0.0
        error = change * max(1.0, ratio / (1 - ratio) if ratio < 1 else float("inf"))
        if max(error, floor) <= max(rtol, floor) or len(reduction.matrix) >= KRYLOV_SIZE:
            return reduction, coefficients, max(error, floor)
        smaller, previous = coefficients, change


def _distance(smaller: np.ndarray, larger: np.ndarray) -> float:
    """The largest change of the coefficients over time, relative to the largest vector so far.

    A basis contains the smaller one it grew from; once it converges, its error is smaller than the change that its
    growth made.
    """
    change = larger.copy()
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        change[:, : smaller.shape[1]] -= smaller
        scale = np.maximum.accumulate(np.linalg.norm(larger, axis=1))
        relative = np.linalg.norm(change, axis=1) / scale
    # Nothing can be said, nor need be, where nothing has moved yet or where an unstable system has overflowed.
    return float(np.max(relative[np.isfinite(relative)], initial=0.0))


def _krylov(apply, start: np.ndarray, symmetric: bool):
    """Grow a basis of span{v, M v, M² v, …}; yields a `Reduction` at growing sizes."""
    norm = np.linalg.norm(start)
    basis = np.zeros((64, len(start)))
    hessenberg = np.zeros((65, 64))
    basis[0] = start / norm if norm > 0 else start
    # Without re-orthogonalisation Lanczos may need more vectors than there are states.
    size, largest = 0, KRYLOV_SIZE if symmetric else min(KRYLOV_SIZE, len(start))
    goal = min(24, largest)

    def reduction(remainder):
        first = norm * np.eye(size)[0] if size else np.zeros(0)
        return Reduction(basis[:size].T, hessenberg[:size, :size], first, remainder)

    if norm == 0:
        size = 1
        yield reduction(0.0)
        return
    while True:
        w = apply(basis[size])
        scale = np.linalg.norm(w)
        first = max(0, size - 1) if symmetric else 0
        for _ in range(1 if symmetric else 2):  # twice is enough
            overlap = basis[first : size + 1] @ w
            hessenberg[first : size + 1, size] += overlap
            w = w - overlap @ basis[first : size + 1]
        remainder = float(np.linalg.norm(w))
        size += 1
        invariant = remainder <= 1e-14 * scale or (not symmetric and size == len(start))
        if invariant or size == largest:
            yield reduction(0.0 if invariant else remainder)
            return
        if size == goal:
            yield reduction(remainder)
            goal = min(goal * 3 // 2, largest)
        if size == len(basis):
            basis = np.concatenate([basis, np.zeros_like(basis)])
            hessenberg = np.pad(hessenberg, ((0, size), (0, size)))
        hessenberg[size, size - 1] = remainder
        basis[size] = w / remainder
