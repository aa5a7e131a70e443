r"""A constant linear system over a horizon: windows of times, each with one reduced problem that reaches the tolerance.

Where the basis for the whole horizon would outgrow the memory, the horizon is cut: where a window ends, the next one
starts. See `ntkp2p.dynamics.krylov` for the reduction.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ntkp2p.base.devices import free_memory
from ntkp2p.base.errors import InputError
from ntkp2p.dynamics import krylov
from ntkp2p.dynamics.krylov import Reduction, Time
from ntkp2p.dynamics.span import Parts, Span, relative_rows, row_space
from ntkp2p.dynamics.system import LinearSystem

#: Up to this many states the dense route is the quicker one.
DENSE_SIZE = 400
#: The largest Krylov basis, with short recurrences and without: a longer horizon is cut.
KRYLOV_SIZE = {True: 1600, False: 500}
#: The smallest basis with which a horizon can be covered in windows.
LEAST_BASIS = 16
#: Vectors that are kept free of the basis for what is made of it, or half of the memory if that is less.
RESERVE = 192
NEGLIGIBLE = 1e-3
#: From how many times on some of them stand for all, if they foresee so many others to that accuracy.
MANY, CHECKED, FORESEEN = 1000, 100, 1e-12

METHODS = ("auto", "dense", "krylov")
Method = str


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


def constant(system: LinearSystem) -> Step:
    def affine(s):
        return system.apply(s) + system.offset

    def grow(start, most):
        return krylov.lanczos(system, start, most) if system.symmetric else krylov.arnoldi(system.apply, start, most)

    return Step(system.initial, affine, system.apply, system.matrix, grow, system.symmetric, system.growth)


class Asked(NamedTuple):
    """What of a run is wanted, and how.

    Attributes
    ----------
    rounds
        Ascending, shape (times,).
    times
        "rounds", "flow" or both.
    method, rtol
        As for `solve`.
    memory
        Bytes that it may take.
    """

    rounds: np.ndarray
    times: tuple[Time, ...]
    method: Method
    rtol: float
    memory: int


class _Window(NamedTuple):
    """A window that is still to be taken: the round where it begins, the deviation there, its error and size so far."""

    times: tuple[Time, ...]
    begin: float = 0.0
    deviation: np.ndarray | None = None
    carried: float = 0.0
    size: float = 0.0


@dataclass
class Found:
    method: str
    errors: dict[Time, float]
    size: int = 0


def windows(step: Step, asked: Asked, span: "Span") -> Found:
    """All deviations from the start, window by window, each of which the span takes in."""
    rounds, all_times, method, rtol, memory = asked
    n, horizon = len(step.initial), float(rounds[-1])
    dense = is_dense(n, method)
    found = Found("dense" if dense else "krylov", dict.fromkeys(all_times, 0.0))
    most = _most(n, step.symmetric, memory)
    if not dense and most < min(LEAST_BASIS, n):
        raise InputError(
            f"a basis of {n} states needs at least {2 * LEAST_BASIS * 8 * n / 1e6:.3g} MB and may take "
            f"{memory / 1e6:.3g} MB: raise memory, or take fewer agents, samples or outputs"
        )
    open_windows = [_Window(all_times)]
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
        since: dict[Time, np.ndarray] = {t: rounds[at] - begin for t, at in covered.items()}
        space, missed = _span_of_many(reduction, since, span.rounding)
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
                open_windows.append(_Window((time,), begin + reach[time], end, error + carried, largest))
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
        return np.concatenate([relative_rows(np.where(np.isfinite(c), c, 0.0), 0.0) for c in found])

    rng = np.random.default_rng(0)
    some = {
        t: k[np.unique(np.searchsorted(k, krylov.checkpoints(k[-1], 64)).clip(max=len(k) - 1))]
        for t, k in rounds.items()
    }
    others = {time: np.sort(rng.choice(k, min(len(k), CHECKED), replace=False)) for time, k in rounds.items()}
    _, space, missed = row_space(rows(some), rounding)
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
        raise InputError("where the mixing changes over time there is no derivative yet: use one mixing matrix")
    if not start.any():
        return _at_rest(system.size)
    if is_dense(system.size, "auto"):
        matrix = system.matrix()
        return Reduction(None, matrix.T if transposed else matrix, start, 0.0, system.symmetric)
    step = constant(system)
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
        raise InputError(
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


def is_dense(size: int, method: Method) -> bool:
    return method == "dense" or (method == "auto" and size <= DENSE_SIZE)


def must_be_method(method: str) -> None:
    if method not in METHODS:
        raise InputError(f'method must be "auto", "dense" or "krylov", found {method!r}')
