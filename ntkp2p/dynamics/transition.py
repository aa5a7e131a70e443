r"""State transition: a linear system at all requested times, from one reduced problem.

Written for the deviation e = s − s_0 from the start, with v = M s_0 + b − s_0,

    rounds  e_{k+1} = M e_k + v,        flow  de/dt = (M − I) e/η + v/η,

both live in the Krylov space of M and v, and one basis of it serves both at all times: see `ntkp2p.dynamics.krylov`. A
horizon for which the basis would outgrow the memory is cut: where a window ends, the next one starts.

Where the mixing changes over time, an ordered product of rounds, or of their exponentials, takes a state forward; if it
changes periodically, one period is a linear system again.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from ntkp2p.devices import free_memory
from ntkp2p.dynamics import krylov
from ntkp2p.dynamics.krylov import Reduction, Time, checked_time, times_of
from ntkp2p.dynamics.system import BLOCK, LinearSystem, at_round, linear
from ntkp2p.precision import in_float64

#: Up to this many states the dense route is the quicker one.
DENSE_SIZE = 400
#: The largest Krylov basis, with short recurrences and without: a longer horizon is cut.
KRYLOV_SIZE = {True: 1600, False: 500}
#: The smallest basis with which a horizon can be covered in windows.
LEAST_BASIS = 16
#: Vectors that are kept free of the basis for what is made of it, or half of the memory if that is less.
RESERVE = 192
#: What of a trajectory needs no vector of its own: rounding, or beside a Krylov basis this share of its tolerance.
ROUNDING = 1e-15
NEGLIGIBLE = 1e-3

#: Random sums of the requested times' coefficients that stand for all of them.
SKETCH = 192
#: From how many times on some of them stand for all, if they foresee so many others to that accuracy.
MANY, CHECKED, FORESEEN = 1000, 100, 1e-12
#: By how many times more times than vectors there must be for the latter to be kept as they are.
FEW = 8
#: From how many periods on a period is taken as one step.
PERIODS = 4
#: By how much a number of rounds may differ from a whole one by rounding.
WHOLE = 1e-9

METHODS = ("auto", "dense", "krylov")
Method = str


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
        raise ValueError("rounds must be ascending whole numbers, for instance range(0, 101, 10)")
    times = times_of(system.has_flow) if times is None else times
    if isinstance(times, str) or not len(times):
        raise ValueError(f'times must name one notion of time or both, as ("rounds", "flow"), found {times!r}')
    asked: list[Time] = [checked_time(time, has_flow=system.has_flow) for time in times]
    _must_be_method(method)
    memory = free_memory() // 2 if memory is None else memory
    span = _Span(
        system.size,
        asked,
        len(rounds),
        memory,
        ROUNDING if _is_dense(system.size, method) else max(ROUNDING, NEGLIGIBLE * rtol),
    )
    if system.varying:
        found = _solve_varying(system, rounds, asked, method, rtol, memory, span)
    else:
        step = _constant(system)
        found = _windows(step, rounds, tuple(asked), method, rtol, memory, span)
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


@dataclass(frozen=True)
class Step:
    """An affine map of which many powers are wanted: one round, or one period of rounds.

    Attributes
    ----------
    initial
        Where it starts, shape (n,).
    affine, linear
        The map, and without its offset.
    matrix
        The latter as a matrix.
    grow
        A start and the most vectors ↦ reductions to growing Krylov spaces.
    symmetric, growth
        As for a `LinearSystem`.
    """

    initial: np.ndarray
    affine: Callable[[np.ndarray], np.ndarray]
    linear: Callable[[np.ndarray], np.ndarray]
    matrix: Callable[[], np.ndarray]
    grow: Callable[[np.ndarray, int], Iterator[Reduction]]
    symmetric: bool
    growth: float


def _constant(system: LinearSystem) -> Step:
    def affine(s):
        return system.apply(s) + system.offset

    def grow(start, most):
        return krylov.lanczos(system, start, most) if system.symmetric else krylov.arnoldi(system.apply, start, most)

    return Step(system.initial, affine, system.apply, system.matrix, grow, system.symmetric, system.growth)


@dataclass
class _Found:
    method: str
    errors: dict[Time, float]
    size: int = 0


#: By time: which of the rounds are made, and the coefficients with which they are.
Parts = dict[Time, tuple[np.ndarray, np.ndarray]]


def _windows(
    step: Step,
    rounds: np.ndarray,
    times: tuple[Time, ...],
    method: Method,
    rtol: float,
    memory: int,
    span: "_Span",
) -> _Found:
    """All deviations from the start, window by window, each of which the span takes in."""
    n, horizon = len(step.initial), float(rounds[-1])
    dense = _is_dense(n, method)
    found = _Found("dense" if dense else "krylov", dict.fromkeys(times, 0.0))
    most = _most(n, step.symmetric, memory)
    if not dense and most < min(LEAST_BASIS, n):
        raise ValueError(
            f"a basis of {n} states needs at least {2 * LEAST_BASIS * 8 * n / 1e6:.3g} MB and may take "
            f"{memory / 1e6:.3g} MB: raise memory, or take fewer agents, samples or outputs"
        )
    # (times, the round where the window begins, the deviation there, its error and size so far)
    open_windows: list[tuple[tuple[Time, ...], float, np.ndarray | None, float, float]] = [(times, 0.0, None, 0.0, 0.0)]
    while open_windows:
        times, begin, deviation, carried, size = open_windows.pop()
        here = step.initial if deviation is None else step.initial + deviation
        start = step.affine(here) - here
        left = horizon - begin
        if not start.any():  # it rests
            reduction, curves = _at_rest(n), {}
            reach = dict.fromkeys(times, left)
        elif dense:
            reduction = Reduction(None, step.matrix(), start, 0.0, step.symmetric)
            curves = {time: krylov.error_curve(reduction, left, time, step.growth) for time in times}
            reach = dict.fromkeys(times, left)
        else:
            reduction, curves, reach = _grown(step, start, left, horizon, times, rtol, carried, size, most)
        found.size = max(found.size, len(reduction.start))
        covered: dict[Time, np.ndarray] = {
            t: np.flatnonzero((rounds >= begin) & (rounds <= begin + reach[t])) for t in times
        }
        asked: dict[Time, np.ndarray] = {t: rounds[at] - begin for t, at in covered.items()}
        space, missed = _span_of_many(reduction, asked, span.rounding)
        parts: Parts = {}
        for time, at in covered.items():
            parts[time] = at, reduction.coefficients(rounds[at] - begin, time, within=space)
            error, largest, relative = (
                _errors(curves[time], reach[time], n, carried, size) if curves else (0.0, size, 0.0)
            )
            found.errors[time] = max(found.errors[time], relative + missed)
            if reach[time] < left:
                end = reduction.coefficients(np.array([reach[time]]), time) @ reduction.basis
                end = end[0] if deviation is None else end[0] + deviation
                open_windows.append(((time,), begin + reach[time], end, error + carried, largest))
        vectors = reduction.basis if space is None else reduction.expand(space)
        del reduction
        span.add(vectors, parts, deviation)
    return found


def _grown(
    step: Step,
    start,
    left: float,
    horizon: float,
    times: tuple[Time, ...],
    rtol: float,
    carried: float,
    size: float,
    most: int,
) -> tuple[Reduction, dict[Time, krylov.ErrorCurve], dict[Time, float]]:
    """A basis that covers what is left of the horizon, or as much of it as its size allows."""
    reduction, curves = None, {}
    for reduction in step.grow(start, most):
        curves: dict[Time, krylov.ErrorCurve] = {
            time: krylov.error_curve(reduction, left, time, step.growth) for time in times
        }
        errors = {time: _relative(curve, carried, size) for time, curve in curves.items()}
        if reduction.remainder == 0 or max(e.max() for e in errors.values()) <= rtol:
            return reduction, curves, dict.fromkeys(times, left)
    assert reduction is not None
    # Each window may add to the error in proportion to its length.
    reach = {}
    for time, curve in curves.items():
        good = (curve.error <= rtol * np.maximum(curve.size, size) * curve.rounds / horizon) & (curve.rounds >= 1)
        # Rounds within a Krylov space are exact; a flow that no window covers is taken as far as a good one goes.
        least = len(reduction.start) - 1 if time == "rounds" else max(1, len(reduction.start) // 4)
        reach[time] = min(left, max(float(least), float(np.floor(curve.rounds[good]).max(initial=0))))
    return reduction, curves, reach


def _span_of_many(
    reduction: Reduction, rounds: dict[Time, np.ndarray], rounding: float
) -> tuple[np.ndarray | None, float]:
    """What the coefficients at very many times span, from some of them, and by how much it misses others; or None."""
    rounds = {time: k for time, k in rounds.items() if len(k)}
    if sum(map(len, rounds.values())) <= MANY:
        return None, 0.0

    def rows(chosen: dict) -> np.ndarray:
        found = [reduction.coefficients(k, time) for time, k in chosen.items()]
        return np.concatenate([_relative_rows(np.where(np.isfinite(c), c, 0.0), 0.0) for c in found])

    rng = np.random.default_rng(0)
    some = {
        t: k[np.unique(np.searchsorted(k, krylov.looks(k[-1], 64)).clip(max=len(k) - 1))] for t, k in rounds.items()
    }
    others = {time: np.sort(rng.choice(k, min(len(k), CHECKED), replace=False)) for time, k in rounds.items()}
    _, space, missed = _row_space(rows(some), rounding)
    checks = rows(others)
    beyond = float(np.linalg.norm(checks - checks @ space.T @ space, axis=1).max())
    return (space, max(missed, beyond)) if beyond < max(FORESEEN, 10 * rounding) else (None, 0.0)


def _relative(curve: krylov.ErrorCurve, carried: float, size: float) -> np.ndarray:
    scale = np.maximum(curve.size, size)
    return (curve.error + carried) / np.where(scale > 0, scale, 1.0)


def _errors(curve: krylov.ErrorCurve, reach: float, n: int, carried: float, size: float) -> tuple[float, float, float]:
    """The bound of the error and the deviation's size when a window ends; the largest relative error until then."""
    until = curve.rounds <= reach
    rounding = np.finfo(float).eps * (n + reach) * curve.growth
    largest = max(float(curve.size[until][-1]), size)
    relative = _relative(curve, carried, size)[until] + rounding
    return float(curve.error[until][-1] + rounding * largest), largest, float(relative.max())


@dataclass
class _Span:
    """Vectors that span all that is found, and its coefficients in them: never more vectors than times."""

    n: int
    times: Sequence[Time]
    count: int
    memory: int
    rounding: float
    basis: np.ndarray = field(init=False)
    coefficients: dict[Time, np.ndarray] = field(init=False)
    #: What is left out, relative to the largest deviation so far.
    error: float = 0.0

    def __post_init__(self):
        self.basis = np.zeros((0, self.n))
        self.coefficients = {time: np.zeros((self.count, 0)) for time in self.times}

    def add(self, vectors: np.ndarray | None, parts: Parts, origin: np.ndarray | None = None, /) -> None:
        """Take in what some times are made of: c · vectors, with vectors (m, n) that are orthonormal but for rounding.

        Parameters
        ----------
        vectors
            None for the identity.
        parts
            The coefficients c.
        origin
            What is added to each of them, shape (n,).
        """
        offset = 0.0 if origin is None else float(np.linalg.norm(origin))
        finite = {time: np.isfinite(c).all(axis=1, keepdims=True) for time, (_, c) in parts.items()}
        rows = np.concatenate(
            [_relative_rows(np.where(finite[time], c, 0.0), offset) for time, (_, c) in parts.items()]
        )
        first = not len(self.basis) and origin is None
        if first and vectors is not None and FEW * len(vectors) < len(rows):  # so few need no smaller span
            weights, space, fresh = np.ones(len(vectors)), np.eye(len(vectors)), vectors
        else:
            weights, space, missed = _row_space(rows, self.rounding)
            self.error = max(self.error, missed)
            fresh = weights[:, None] * (space if vectors is None else space @ vectors)
        if origin is not None and offset > 0:
            fresh, weights = np.concatenate([fresh, origin[None] / offset]), np.append(weights, 1.0)
        before = len(self.basis)
        if 8 * self.n * (before + len(fresh)) > self.memory:
            raise ValueError(
                f"the states at the rounds asked for span {before + len(fresh)} vectors of {self.n} numbers, more than "
                f"the {self.memory / 1e6:.3g} MB they may take: ask for fewer rounds, or raise memory"
            )
        if before or offset > 0:
            unit = self._beyond(fresh)
        else:
            self.basis = fresh if len(fresh) else np.zeros((1, self.n))
            unit = np.eye(len(fresh), len(self.basis))
        for time in self.times:
            wider = np.pad(self.coefficients[time], ((0, 0), (0, len(self.basis) - before)))
            if time in parts:
                at, c = parts[time]
                with np.errstate(invalid="ignore", over="ignore"):
                    own = c @ space.T
                    if offset > 0:
                        own = np.append(own, np.full((len(at), 1), offset), axis=1)
                    wider[at] = np.where(finite[time], (own / weights) @ unit, np.nan)
            self.coefficients[time] = wider

    def _beyond(self, fresh: np.ndarray) -> np.ndarray:
        """Extend the basis, now orthonormal, by what new vectors have beyond it; gives their coefficients in it."""
        q, r = np.linalg.qr(self.basis.T)
        self.basis = q.T
        with np.errstate(invalid="ignore", over="ignore"):
            self.coefficients = {time: c @ r.T for time, c in self.coefficients.items()}
        old, rest = np.zeros((len(fresh), len(self.basis))), fresh
        for _ in range(2):  # twice is enough
            overlap = rest @ self.basis.T
            old, rest = old + overlap, rest - overlap @ self.basis
        q, r, order = scipy.linalg.qr(rest.T, mode="economic", pivoting=True)  # pyright: ignore
        kept = int((np.abs(np.diagonal(r)) > self.rounding).sum())
        new = np.zeros((len(fresh), kept))
        new[order] = r[:kept].T
        self.basis = np.concatenate([self.basis, q[:, :kept].T])  # pyright: ignore
        return np.concatenate([old, new], axis=1)


def _relative_rows(rows: np.ndarray, least: float) -> np.ndarray:
    """Each relative to the longest of those until then, as the error is; their squares may overflow."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    unit = rows / np.where(largest > 0, largest, 1.0)[:, None]
    lengths = np.linalg.norm(unit, axis=1) * np.minimum(largest, np.finfo(float).max / rows.shape[1])
    longest = np.maximum(np.maximum.accumulate(lengths), least)
    return rows / np.where(longest > 0, longest, 1.0)[:, None]


def _row_space(rows: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Singular values and an orthonormal basis (p, m) of the span of rows, no longer than 1, but for mere rounding.

    Also by how much any row is missed.
    """
    sketch = rows
    if len(rows) > 2 * SKETCH:  # so many times repeat themselves: random sums of them span the same
        sketch = np.random.default_rng(0).normal(size=(SKETCH, len(rows))) @ rows / math.sqrt(SKETCH)
    for chosen in (sketch, rows):
        _, weights, space = scipy.linalg.svd(chosen, full_matrices=False, check_finite=False)
        least = max(rounding, ROUNDING * weights.max(initial=0.0))
        kept = weights > least
        weights, space = weights[kept], space[kept]
        missed = max(
            (np.linalg.norm(some - some @ space.T @ space, axis=1).max(initial=0.0) for some in _blocks(rows)),
            default=0.0,
        )
        if missed <= 10 * least:
            break
    return weights, space, float(missed)


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, len(rows) // krylov.AT_ONCE + 1)


def reduction_for(
    system: LinearSystem,
    start: Float[np.ndarray, " n"],
    horizon: float,
    time: Time,
    rtol: float,
    /,
    *,
    transposed: bool = False,
) -> Reduction:
    """A reduction in which both e' = M e + v from 0 and M^k v, v = start, are accurate up to a horizon.

    Parameters
    ----------
    transposed
        Whether Mᵀ takes the place of M.

    Raises
    ------
    ValueError
        If the basis does not fit, or the mixing changes over time.
    """
    if system.varying:
        raise ValueError("where the mixing changes over time there is no derivative yet: use one mixing matrix")
    if not start.any():
        return _at_rest(system.size)
    if _is_dense(system.size, "auto"):
        matrix = system.matrix()
        return Reduction(None, matrix.T if transposed else matrix, start, 0.0, system.symmetric)
    step = _constant(system)
    grow = step.grow
    if transposed and not system.symmetric:
        grow = partial(krylov.arnoldi, system.transposed)
    reduction, error = None, math.inf
    for reduction in grow(start, _most(system.size, system.symmetric, free_memory() // 2)):
        curves = (krylov.error_curve(reduction, horizon, time, step.growth, driven=driven) for driven in (True, False))
        error = max(_relative(curve, 0.0, 0.0).max() for curve in curves)
        if error <= rtol:
            break
    if reduction is None or error > rtol:
        raise ValueError(
            f"a derivative over {horizon:g} rounds needs a larger basis than memory and limits allow (error "
            f"{error:.1g} in place of {rtol:g}): take fewer rounds, or a larger rtol"
        )
    return reduction


def _at_rest(n: int) -> Reduction:
    return Reduction(np.zeros((1, n)), np.zeros((1, 1)), np.zeros(1), 0.0, True)


def _most(n: int, symmetric: bool, memory: int) -> int:
    """The vectors that a basis may have."""
    fitting = memory // (8 * n)
    return min(KRYLOV_SIZE[symmetric], fitting - min(RESERVE, fitting // 2))


def _solve_varying(system, rounds, times, method, rtol, memory, span) -> _Found:
    """Deviations of a system whose mixing changes: period by period, or round by round."""
    found = _Found("products", {})
    if rounds[-1] > (last := last_round(system)):
        raise ValueError(f"the mixing is given for {last} rounds, and round {rounds[-1]} is asked for")
    order, begin, periodic = system.timetable
    length = len(order) - begin
    if periodic and begin and rounds[-1] - begin >= PERIODS * length:
        return _after_a_beginning(system, rounds, times, method, rtol, memory, span)
    if periodic and rounds[-1] - begin >= PERIODS * length:
        wholes, which = np.unique(rounds // length, return_inverse=True)
        for time in times:
            inner = _Span(system.size, ("rounds",), len(wholes), memory, ROUNDING)
            one = _windows(period(system, time), wholes, ("rounds",), method, rtol, memory, inner)
            found.method, found.size = one.method, max(found.size, one.size)
            vectors, start, reached, amplified = inner.basis, system.initial[None], 0, 1.0
            for phase in np.unique(rounds % length):
                more = int(phase) - reached
                vectors = advance_over(system, vectors, reached, more, time, driven=False)
                start = advance_over(system, start, reached, more, time)
                reached += more
                at = np.flatnonzero(rounds % length == phase)
                c = inner.coefficients["rounds"][which[at]]
                basis, r = np.linalg.qr(np.concatenate([start - system.initial, vectors]).T)
                amplified = max(
                    amplified, float(np.linalg.norm(r[:, 1:], 2) / max(np.linalg.norm(inner.basis, 2), 1e-300))
                )
                span.add(basis.T, {time: (at, np.append(np.ones((len(at), 1)), c, axis=1) @ r.T)})
            found.errors[time] = amplified * (one.errors["rounds"] + inner.error)
        return found
    for time in times:
        found.errors[time] = _round_by_round(system, rounds, np.arange(len(rounds)), time, span)
    return found


def _round_by_round(system: LinearSystem, rounds: np.ndarray, places: np.ndarray, time: Time, span: _Span) -> float:
    """Every round taken; the span has those asked for at these places. What rounding makes of it."""
    state, reached, block = system.initial[None], 0, max(1, BLOCK // (8 * system.size))
    for first in range(0, len(rounds), block):
        states = []
        for k in rounds[first : first + block]:
            state = advance_over(system, state, reached, int(k) - reached, time)
            reached = int(k)
            states.append(state[0] - system.initial)
        rows = np.array(states)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        rows = rows[finite]
        scale = np.abs(rows).max(axis=1, initial=0.0)  # their squares may overflow
        scale = np.where(scale > 0, scale, 1.0)[:, None]
        q, r = np.linalg.qr((rows / scale).T)
        c = np.full((len(finite), len(q.T)), np.nan)
        c[finite] = r.T * scale
        span.add(q.T, {time: (places[first : first + block], c)})
    rounding = np.finfo(float).eps * (system.size + rounds[-1])
    return float(rounding * np.nan_to_num(system.growth, nan=1.0))


def _after_a_beginning(system, rounds, times, method, rtol, memory, span) -> _Found:
    """What repeats itself from some round on only: the rounds until then, and from there a system of its own."""
    found, begin = _Found("products", {}), int(system.timetable.begin)
    early, late = np.flatnonzero(rounds <= begin), np.flatnonzero(rounds > begin)
    for time in times:
        rounding = _round_by_round(system, rounds[early], early, time, span) if len(early) else 0.0
        then, inner = lasting(system, time), _Span(system.size, (time,), len(late), memory, ROUNDING)
        rest = (rounds[late] - begin, (time,), method, rtol, memory, inner)
        one = _solve_varying(then, *rest) if then.varying else _windows(_constant(then), *rest)
        found.method, found.size = one.method, max(found.size, one.size)
        away = (then.initial - system.initial)[None]
        basis, r = np.linalg.qr(np.concatenate([away, inner.basis]).T)
        c = np.append(np.ones((len(late), 1)), inner.coefficients[time], axis=1)
        span.add(basis.T, {time: (late, c @ r.T)})
        # Relative to how far it is from where it then begins, which is at most twice as far as it has been from s_0.
        found.errors[time] = rounding + 2 * (one.errors[time] + inner.error)
    return found


def lasting(system: LinearSystem, time: Time, /) -> LinearSystem:
    """The system from the round on from which it repeats itself, and from the state that it has reached there."""
    begin = int(system.timetable.begin) if system.timetable.periodic else 0
    return system.since(begin, advance_over(system, system.initial[None], 0, begin, time)[0])


def last_round(system: LinearSystem, /) -> int | float:
    """The last round before which a system has a state."""
    order, begin, periodic = system.timetable
    return math.inf if periodic else begin or len(order)


def period(system: LinearSystem, time: Time, /) -> Step:
    """One period as one step."""
    over = partial(advance_over, system, begin=0, count=len(system.timetable.order), time=time)

    def linearly(s):
        return over(s[None], driven=False)[0]

    return Step(
        initial=system.initial,
        affine=lambda s: over(s[None])[0],
        linear=linearly,
        matrix=lambda: over(np.eye(system.size), driven=False).T,
        grow=lambda start, most: krylov.arnoldi(linearly, start, most),
        symmetric=False,
        growth=system.growth,
    )


@in_float64
def advance_over(
    system: LinearSystem,
    states: Float[np.ndarray, "p n"],
    begin: int,
    count: int,
    time: Time,
    *,
    driven: bool = True,
    length: float = 1.0,
) -> Float[np.ndarray, "p n"]:
    """States taken over `count` rounds from round `begin` on, in rounds or in flow, in one compiled loop.

    Parameters
    ----------
    driven
        Whether b takes part; without it, Φ is applied.
    length
        In flow, the share of each of these rounds that passes.
    """
    advanced = _advance_over(
        system.advance,
        time,
        driven,
        system.parameters,
        system.timetable,
        jnp.asarray(states, float),
        begin,
        count,
        length,
        math.ceil(system.rate / 2),
    )
    return np.asarray(advanced)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance_over(advance, time, driven, parameters, timetable, states, begin, count, length, parts):
    def one_round(k, states):
        now = at_round(parameters, timetable, k)
        if time == "rounds":
            step = partial(advance, now) if driven else partial(linear, advance, now)
        else:
            step = partial(_exponential, advance, now, driven, length / parts, parts)
        return jax.vmap(step)(states)

    return jax.lax.fori_loop(begin, begin + count, one_round, states)


def _exponential(advance, parameters, driven: bool, length, parts, s: Array) -> Array:
    """The flow over parts of one round: e^{ℓ (M − I)} as e^{−ℓ} Σ (ℓ M)^j / j!, with b as one more state.

    Parts are so short that no term is much larger than the sum.
    """
    offset = advance(parameters, jnp.zeros_like(s)) if driven else jnp.zeros_like(s)

    def more(carry):
        total, term, *_ = carry
        return jnp.linalg.norm(term) > jnp.finfo(float).eps / 8 * jnp.linalg.norm(total)

    def add(carry):
        total, term, unit, j = carry
        term = length / j * (linear(advance, parameters, term) + unit * offset)
        return total + term, term, length / j * unit, j + 1

    def part(_, s):
        weight = jnp.exp(-length)
        # The first term is counted even if it is 0: the offset may still drive what rests at 0.
        first = add((weight * s, weight * s, weight, 1.0))
        return jax.lax.while_loop(more, add, first)[0]

    return jax.lax.fori_loop(0, parts, part, s)


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
            raise ValueError("states must be finite real numbers")
        if state.ndim not in (1, 2) or len(state) != self.system.size:
            raise ValueError(f"states have shape {state.shape}: ({self.system.size},), or columns of it, is needed")
        _must_be_method(method)
        columns = state.astype(float).reshape(len(state), -1).T
        if self.system.varying:
            moved = self._varying(columns, method, rtol)
        else:
            moved = np.array(
                [self._power(_constant(self.system), s, self._rounds, method, rtol, self.time) for s in columns]
            )
        return moved.T.reshape(state.shape)

    @property
    def _rounds(self) -> float:
        length = self.end - self.begin
        return float(length if self.time == "rounds" else length / self.system.step_size)

    def _power(self, step: Step, state, power, method, rtol, time: Time) -> np.ndarray:
        """The step without its offset, `power` times."""
        span = _Span(len(state), (time,), 1, 2**63, ROUNDING)
        homogeneous = replace(step, initial=state, affine=step.linear)
        found = _windows(homogeneous, np.array([power]), (time,), method, rtol, free_memory() // 2, span)
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
            then = system.since(first)
            step = period(then, self.time) if then.varying else _constant(then)
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
        raise ValueError(
            f"transition(t, t0) runs forward from t0 ≥ 0 to a finite t, found t = {t:g} and t0 = {t0:g}; "
            "steady_state is for t = ∞"
        )
    if time == "rounds" and (int(t) != t or int(t0) != t0):
        raise ValueError(f'rounds are whole numbers, found {t:g} and {t0:g}: use time="flow" in between')
    end = t if time == "rounds" else t / system.step_size
    if system.varying and end > (last := last_round(system)) + WHOLE:
        raise ValueError(f"the mixing is given for {last} rounds, and t = {t:g} is round {end:g}")
    return Transition(system, t, t0, time)


def _is_dense(size: int, method: Method) -> bool:
    return method == "dense" or (method == "auto" and size <= DENSE_SIZE)


def _must_be_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f'method must be "auto", "dense" or "krylov", found {method!r}')
