r"""Stability of a system, its rate of convergence, and its largest stable step size.

The spectral radius of M decides for the rounds, the spectral abscissa of A = (M − I)/η for the flow. A mode M v = λ v
decays like :math:`|\lambda|^k`, with the time constant −1/ln|λ| in rounds and −η/Re(λ − 1) in flow time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float, Inexact

from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.threads import one_thread
from ntkp2p.dynamics.krylov import Time, times_of
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.varying import period
from ntkp2p.dynamics.windows import DENSE_SIZE, Step

#: By how much an eigenvalue may pass the edge of stability by rounding.
STABILITY_TOLERANCE = 1e-6
#: The residual, relative to the eigenvalue, at which the iteration for a large system stops: eigenvalues crowd below 1,
#: where the last digits cost most and decide nothing, while one that makes a run diverge stands apart.
TOLERANCE = 1e-3


class Spectrum(NamedTuple):
    """The extremes of M's spectrum.

    Attributes
    ----------
    radius
        The largest modulus of M's eigenvalues: the rounds are unstable above 1. NaN if the iteration has not found it.
    abscissa
        max Re λ(A), A = (M − I)/η, per unit of flow time: the flow is unstable above 0. NaN likewise, or where the
        algorithm has no such flow.
    residual
        The larger ‖M v − λ v‖ of their unit eigenvectors, M's and not A's; 0 where all eigenvalues were computed.
        Iterated, eigenvalues are hard to tell apart, for they crowd about 1.
    from_below
        Whether what is iterated is a lower bound, as Ritz values of a symmetric system are. Others may lie beyond the
        true ones as well, by about the residual.
    """

    radius: float
    abscissa: float
    residual: float = 0.0
    from_below: bool = True


def stability_tolerance(system: LinearSystem, found: Spectrum, /) -> float:
    """By how much ρ(M), or Re λ(M), may exceed 1 in a stable system: by rounding, or as far as iteration may err.

    Less by rounding for small steps, which do little else.
    """
    if found.residual:
        return STABILITY_TOLERANCE if found.from_below else max(STABILITY_TOLERANCE, found.residual)
    # Of clocks a round is as long as an event takes, and its step is the algorithm's all the same.
    algorithm = system.parameters.get("algorithm")
    step_size = system.step_size if algorithm is None else float(algorithm.step_size)
    return max(1e-12, STABILITY_TOLERANCE * min(1.0, step_size * float(np.nan_to_num(system.curvature, nan=np.inf))))


#: Up to so many states all eigenvalues are computed: of a symmetric system, and of others.
DENSE = {True: 1500, False: 600}


def spectrum(system: LinearSystem, /, *, dense: int | None = None) -> Spectrum:
    """The spectral radius of the rounds and the spectral abscissa of the flow.

    All eigenvalues of a system of up to `dense` states; of a large one its extreme ones to a residual of 1e-3, by
    implicitly restarted Lanczos or Arnoldi (ARPACK), which never forms M. Where the mixing repeats itself every T
    rounds, those of the period's map, Floquet's multipliers, as one round's T-th root; NaN where it changes without
    repeating.

    Parameters
    ----------
    system
        For instance of `ntkp2p.linear_system`.
    dense
        Up to so many states all eigenvalues are computed; by default 1,500 if M is symmetric and 600 if not.
    """
    return spectrum_and_eigenvalues(system, dense=dense, count=1)[0]


@in_float64
@one_thread()  # as for `extremes`
def spectrum_and_eigenvalues(
    system: LinearSystem, /, *, dense: int | None = None, count: int = 6
) -> tuple[Spectrum, Inexact[np.ndarray, " m"]]:
    """`spectrum` and `eigenvalues` from one computation.

    Parameters
    ----------
    dense
        As for both.
    count
        How many eigenvalues of a large system are found; of a symmetric one half of them at each end.
    """
    system, unknown, eta = system.eventual, float("nan"), system.step_size
    if system.varying:
        if not system.timetable.periodic:
            return Spectrum(unknown, unknown), np.empty(0)
        length = len(system.timetable.order)
        found = {time: multipliers(system, time) for time in times_of(system.has_flow)}
        radii = {time: float(np.abs(values).max()) for time, values in found.items()}
        abscissa = float(np.log(radii["flow"]) / (length * eta)) if system.has_flow else unknown
        return Spectrum(radii["rounds"] ** (1 / length), abscissa), found["rounds"]
    if system.size <= (DENSE[system.symmetric] if dense is None else dense):
        values = (np.linalg.eigvalsh if system.symmetric else np.linalg.eigvals)(system.matrix())
        return spectrum_of(system, values), values[np.argsort(-np.abs(values), kind="stable")]
    # The two ends of a real spectrum tell both.
    ends = {"LA": -(-count // 2), "SA": -(-count // 2)} if system.symmetric else {"LM": count}
    if system.has_flow and not system.symmetric:
        ends = {"LR": 1} | ends
    pairs = [
        extremes(system.apply, system.size, end, count=many, symmetric=system.symmetric) for end, many in ends.items()
    ]
    residual = float(max(found.residuals[0] for found in pairs))
    if not system.symmetric:  # the rightmost one is larger than the largest only if this was not found
        rightmost, largest = pairs[0].values[:1], pairs[-1].values
        return Spectrum(float(np.abs(largest[0])), _abscissa(rightmost, system), residual, from_below=False), largest
    values = np.concatenate([found.values for found in pairs])
    return spectrum_of(system, values, residual), values


def spectrum_of(system: LinearSystem, values: Inexact[np.ndarray, " m"], residual: float = 0.0, /) -> Spectrum:
    """What the eigenvalues of a round say, all of them or those that matter."""
    return Spectrum(float(np.abs(values).max()), _abscissa(values, system), residual)


def _abscissa(values: np.ndarray, system: LinearSystem) -> float:
    return float((np.real(values).max() - 1) / system.step_size) if system.has_flow else float("nan")


def multipliers(system: LinearSystem, time: Time, /) -> Inexact[np.ndarray, " m"]:
    """Floquet's multipliers, the eigenvalues of a period's map, by falling modulus: the largest only of a large system.

    Raises
    ------
    ValueError
        If the mixing does not change and repeat itself.
    """
    system = system.eventual
    if not (system.varying and system.timetable.periodic):
        raise InputError("multipliers are of mixing that repeats itself: see spectrum(system) for a single matrix")
    step: Step = period(system, time)
    if system.size <= DENSE_SIZE:
        values = np.linalg.eigvals(step.matrix())
        return values[np.argsort(-np.abs(values), kind="stable")]
    return extremes(step.linear, system.size, "LM").values


def eigenvalues(system: LinearSystem, /, *, dense: int | None = None) -> Inexact[np.ndarray, " m"]:
    """All eigenvalues of M, or of a period's map, by falling modulus; of a large system the extreme ones by iteration.

    None where the mixing changes without repeating itself.

    Parameters
    ----------
    dense
        Up to so many states all are computed; by default 1,500 if M is symmetric and 600 if not, a matter of seconds.
    """
    return spectrum_and_eigenvalues(system, dense=dense)[1]


class Eigenpairs(NamedTuple):
    """Some eigenvalues (count,), unit eigenvectors (n, count), and ‖M v − λ v‖ of each."""

    values: Inexact[np.ndarray, " count"]
    vectors: Inexact[np.ndarray, "n count"]
    residuals: Float[np.ndarray, " count"]


def extremes(
    apply: Callable[[np.ndarray], np.ndarray],
    size: int,
    which: str,
    /,
    *,
    count: int = 1,
    symmetric: bool = False,
    rtol: float = TOLERANCE,
) -> Eigenpairs:
    """Some eigenvalues of a large operator, by ARPACK; a single NaN if it finds none.

    Parameters
    ----------
    apply, size
        s ↦ M s, for s of shape (size,).
    which
        "LM", "LR", "LA" or "SA": the largest modulus or real part, or the end of a real spectrum.
    count
        How many at most.
    symmetric
        Whether M is.
    rtol
        The residual, relative to the eigenvalue, at which it stops.
    """
    operator = scipy.sparse.linalg.LinearOperator((size, size), matvec=apply, dtype=float)  # pyright: ignore
    solver: Callable = scipy.sparse.linalg.eigsh if symmetric else scipy.sparse.linalg.eigs
    start = np.random.default_rng(0).normal(size=size)
    basis = min(size - 1, max(30, 3 * count))
    try:
        # ARPACK's products of a few vectors are too short for threads: waiting for them takes most of the time.
        with one_thread():
            values, vectors = solver(operator, count, which=which, v0=start, ncv=basis, tol=rtol, maxiter=100)
    except scipy.sparse.linalg.ArpackNoConvergence as stopped:
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
    if not len(values):
        return Eigenpairs(np.full(1, np.nan), np.full((size, 1), np.nan), np.full(1, np.nan))
    order = np.argsort({"LM": -np.abs(values), "SA": np.real(values)}.get(which, -np.real(values)), kind="stable")
    values, vectors = values[order], vectors[:, order] / np.linalg.norm(vectors[:, order], axis=0)
    images = [_applied(apply, v) - value * v for value, v in zip(values, vectors.T, strict=True)]
    return Eigenpairs(values, vectors, np.linalg.norm(images, axis=1))


def _applied(apply: Callable, v: np.ndarray) -> np.ndarray:
    return apply(np.real(v)) + 1j * apply(np.imag(v)) if np.iscomplexobj(v) else apply(v)


@dataclass(frozen=True, eq=False)
class Mode:
    """A way of approaching the steady state, M v = λ v, read as agents × data directions.

    Attributes
    ----------
    eigenvalue
        λ.
    residual
        ‖M v − λ v‖ for unit v; 0 where all eigenvalues were computed.
    agents
        The agents' pattern, shape (Q,), and
    direction
        the direction in the models' coordinates, shape (d,): unit vectors whose product is nearest to v.
    separable
        Their product's share of ‖v‖².
    agreement
        The share of ‖v‖² in which all agents move alike; the rest is disagreement.
    step_size
        η.
    """

    eigenvalue: complex
    residual: float
    agents: Inexact[np.ndarray, " Q"]
    direction: Inexact[np.ndarray, " d"]
    separable: float
    agreement: float
    step_size: float

    @property
    def rounds(self) -> float:
        """The rounds after which it has fallen to 1/e: −1/ln|λ|; inf if it does not fall."""
        size = abs(self.eigenvalue)
        return float("inf") if size >= 1 else float(-1 / np.log(size)) if size else 0.0

    @property
    def flow_time(self) -> float:
        """The flow time after which it has fallen to 1/e: −η/Re(λ − 1); inf if it does not fall."""
        rate = 1 - np.real(self.eigenvalue)
        return float("inf") if rate <= 0 else float(self.step_size / rate)


def slowest_modes(system: LinearSystem, /, *, count: int = 5, dense: int = DENSE_SIZE) -> list[Mode]:
    """The modes whose eigenvalues are the largest in modulus, one for a conjugate pair, the slowest first.

    Parameters
    ----------
    count
        How many; fewer if there are not as many, or if the iteration for a large system finds fewer.
    dense
        Up to so many states all modes are computed. Beyond, they are the slowest that iteration finds to a residual of
        1e-3; slower ones may hide in the crowd below 1.

    Raises
    ------
    ValueError
        If the mixing changes over time: see `multipliers`.
    """
    if system.varying:
        raise InputError("where the mixing changes over time a round has no modes: see multipliers(system, time)")
    found = [
        (complex(value), vector, float(residual))
        for pairs in _slow(system, count, dense)
        for value, vector, residual in zip(pairs.values, pairs.vectors.T, pairs.residuals, strict=True)
        if np.isfinite(value) and np.imag(value) >= 0
    ]
    return [_mode(system, *pair) for pair in sorted(found, key=lambda pair: -abs(pair[0]))[:count]]


def _slow(system: LinearSystem, count: int, dense: int) -> list[Eigenpairs]:
    if system.size <= dense:
        matrix = system.matrix()
        values, vectors = np.linalg.eigh(matrix) if system.symmetric else np.linalg.eig(matrix)
        return [Eigenpairs(values, vectors, np.zeros(len(values)))]
    if system.symmetric:
        return [extremes(system.apply, system.size, end, count=count, symmetric=True) for end in ("LA", "SA")]
    return [extremes(system.apply, system.size, "LM", count=2 * count)]


def _mode(system: LinearSystem, value: complex, vector: np.ndarray, residual: float) -> Mode:
    models = system.directions(np.stack([np.real(vector), np.imag(vector)]))
    v = models[0] + 1j * models[1] if np.iscomplexobj(vector) else models[0]
    left, sizes, right = np.linalg.svd(v, full_matrices=False)
    whole = max(np.sum(sizes**2), np.finfo(float).tiny)
    turn = np.abs(left[:, 0]).argmax()  # the strongest agent's sign is plus
    phase = left[turn, 0] / abs(left[turn, 0])
    return Mode(
        eigenvalue=complex(value),
        residual=float(residual),
        agents=left[:, 0] / phase,
        direction=right[0] * phase,
        separable=float(sizes[0] ** 2 / whole),
        agreement=float(len(v) * np.linalg.norm(v.mean(axis=0)) ** 2 / whole),
        step_size=system.step_size,
    )
