r"""Gradients or messages that are late: characteristic roots of the delayed flow, and how much delay is too much.

With what is late a time τ old, the flow of linear models is a delay differential equation, and the rounds are those of
`ntkp2p.Delayed`, τ being a number of them:

    flow    dx/dt = A₀ x(t) + A₁ x(t − τ),              roots s of det(s I − A₀ − A₁ e^{−sτ}) = 0
    rounds  x_{k+1} = x_k + η (A₀ x_k + A₁ x_{k−τ}),    roots z of det((z − 1) I − η A₀ − η A₁ z^{−τ}) = 0

(without the constant parts). Stable is what has its roots left of the imaginary axis, or inside the unit circle.

References
----------
Corless, Gonnet, Hare, Jeffrey and Knuth, "On the Lambert W function", Adv. Comput. Math. 1996.
Breda, Maset and Vermiglio, "Pseudospectral differencing methods for characteristic roots of delay differential
equations", SIAM J. Sci. Comput. 2005.
Ruhe, "Algorithms for the nonlinear eigenvalue problem", SIAM J. Numer. Anal. 1973.
Gu, Kharitonov and Chen, "Stability of Time-Delay Systems", 2003 (delay margins by frequency sweeping).
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Complex, Float
from numpy.typing import ArrayLike

from ntkp2p.algorithms import Algorithm, Delayed
from ntkp2p.algorithms.delayed import LATE
from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputError
from ntkp2p.base.threads import one_thread
from ntkp2p.data import AgentData
from ntkp2p.dynamics.spectrum import STABILITY_TOLERANCE
from ntkp2p.dynamics.system import linear_system
from ntkp2p.kernels import Features
from ntkp2p.topology.matrix import symmetric
from ntkp2p.topology.mixing import RunMixing
from ntkp2p.topology.schedules import as_run_mixing

#: What is left of two matrices off the diagonal, relative to them, in eigenvectors that they have in common.
DECOUPLED = 1e-10
#: How near to the imaginary axis, relative to ‖A₀‖ + ‖A₁‖, a root counts as on it.
ON_AXIS = 1e-9
#: The largest matrix whose eigenvalues are computed.
LARGEST = 4000
#: How far Newton's method may take a root from where the discretisation has it, relative to |s| + 1/τ.
RESOLVED = 1e-4
#: Angles ωτ in (0, π) from which crossings of the imaginary axis are looked for.
ANGLES = 90
#: A crossing is refined if its estimated delay is at most so many times the smallest one.
NEAR = 1.1
#: The last of Newton's steps, in radians.
CONVERGED = 1e-9


class CharacteristicRoots(NamedTuple):
    """The rightmost roots of a delayed flow.

    Attributes
    ----------
    values
        s, per unit of flow time, in descending order of their real parts: modes e^{st}.
    residuals
        ``‖(s I − A₀ − A₁ e^{−sτ}) v‖ / ((|s| + ‖A₀‖ + ‖A₁‖ |e^{−sτ}|) ‖v‖)`` with their vectors v.
    method
        "eigenvalues" without delay, "Lambert W" where the modes decouple, "discretisation" elsewhere.
    """

    values: Complex[np.ndarray, " roots"]
    residuals: Float[np.ndarray, " roots"]
    method: str


def delay_matrices(
    algorithm: Algorithm,
    mixing: np.ndarray | RunMixing,
    features: Features,
    data: AgentData,
    /,
    *,
    late: str = "gradients",
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """A₀ and A₁ of linear models whose gradients or messages are late, from the algorithm's own round.

    A round x⁺ = B x + C v_late, where v = D x is what is late, has the flow η dx/dt = (B − I) x + C D x(t − τ): then
    A₀ = (B − I)/η and A₁ = C D/η. B, C and D are blocks of a round with a delay of one.

    Parameters
    ----------
    algorithm
        Without delay.
    mixing
        W, shape (Q, Q).
    features, data
        As for `linear_system`. Outputs that share a kernel have the same modes, and one of them is taken.
    late
        "gradients" or "messages".

    Returns
    -------
    A0, A1
        Per unit of flow time; n = Q · rank for an algorithm whose state is its model.

    Raises
    ------
    ValueError
        If the mixing changes over time, the algorithm has a delay, the matrices would be too large, or as for `Delayed`
        and `linear_system`.
    """
    lookup(dict.fromkeys(LATE.values()), late, "late part of a round")
    if as_run_mixing(mixing).matrix is None:
        raise InputError("A₀ and A₁ are of one mixing matrix, and this is a schedule: take one of its matrices")
    if not algorithm.has_flow:
        raise InputError(f"{algorithm.name} has a delay already: give the algorithm without")
    one = np.zeros((len(features.matrix), 1))
    system = linear_system(Delayed(algorithm, **{late: 1}), mixing, features, data, columns=one)
    n = system.size - data.agents * features.rank
    _must_be_small(system.size, f"A₀ and A₁ of {n} states")
    M, eta = system.matrix(), system.step_size
    return (M[:n, :n] - np.eye(n)) / eta, M[:n, n:] @ M[n:, :n] / eta


@one_thread()
def characteristic_roots(A0: ArrayLike, A1: ArrayLike, delay: float | int, /, *, count: int = 6) -> CharacteristicRoots:
    """The rightmost characteristic roots of dx/dt = A₀ x(t) + A₁ x(t − τ).

    Where A₀ and A₁ have common eigenvectors, with eigenvalues a and b, every mode has roots s = a + W_k(b τ e^{−aτ})/τ,
    one for each branch k of the Lambert W function. Elsewhere the roots are the eigenvalues of d/dθ on functions over
    [−τ, 0]: approximated on Chebyshev's points (Breda, Maset and Vermiglio, 2005), and refined one by one by successive
    linear problems (Ruhe, 1973).

    Parameters
    ----------
    A0, A1
        For instance of `delay_matrices`.
    delay
        τ ≥ 0 in the same unit of time: rounds times η for flow time.
    count
        How many roots; without delay there are n only.

    Raises
    ------
    ValueError
        If the matrices are not square, finite and of one size, the delay is negative or not finite, there is nothing to
        count, or the discretisation would be too large.
    """
    A0, A1 = _checked(A0, A1)
    if not 0 <= delay < np.inf:
        raise InputError(f"delay must be a finite time ≥ 0, found {delay!r}")
    if count < 1:
        raise InputError(f"count must be at least 1, found {count}")
    if delay == 0:
        method, (values, vectors) = "eigenvalues", np.linalg.eig(A0 + A1)
    elif (modes := _common_modes(A0, A1)) is not None:
        method, (values, vectors) = "Lambert W", _of_modes(*modes, delay, count)
    else:
        method, (values, vectors) = "discretisation", _discretised(A0, A1, delay, count)
    order = np.lexsort((-np.imag(values), -np.real(values)))[:count]
    values, vectors = values[order].astype(complex), vectors[:, order]
    return CharacteristicRoots(values, _residuals(A0, A1, delay, values, vectors), method)


@one_thread()
def delay_margin(A0: ArrayLike, A1: ArrayLike, /) -> float:
    """The smallest τ at which dx/dt = A₀ x(t) + A₁ x(t − τ) has a root iω on the imaginary axis: it is stable below.

    There iω is an eigenvalue of A₀ + A₁ e^{−iθ} with θ = ωτ. As θ goes from 0 to 2π, Newton's method is started from
    every eigenvalue that is about to cross the axis, and of all crossings the smallest θ/ω is taken. A curve of
    eigenvalues that touches the axis without crossing is not a crossing.

    Roots that are 0 at every delay, where A₀ + A₁ is singular, are left out: nothing moves them.

    Parameters
    ----------
    A0, A1
        Shape (n, n) each, for instance of `delay_matrices`.

    Returns
    -------
    delay
        In the unit of time of A₀ and A₁; inf if no delay makes it unstable, and 0 if it is not stable without.

    Raises
    ------
    ValueError
        If the matrices are not square, finite and of one size.

    Examples
    --------
    The flow dx/dt = −a x(t − τ) is stable for a τ < π/2:

    >>> from ntkp2p.dynamics import delay_margin
    >>> round(delay_margin([[0.0]], [[-2.0]]) * 4, 6)
    3.141593
    """
    A0, A1 = _checked(A0, A1)
    still = ON_AXIS * float(np.linalg.norm(A0, 2) + np.linalg.norm(A1, 2))
    values, left, right = _eigenvectors(A0 + A1)
    zero = np.abs(values) <= still
    if np.any(np.real(values[~zero]) >= -still):
        return 0.0
    margin = _second_zero(A1, left[:, zero], right[:, zero]) if zero.any() else np.inf
    spacing, crossings = np.pi / ANGLES, []
    for angle in spacing * (np.arange(ANGLES) + 0.5):  # for θ > π they are the conjugates
        steps, frequencies = _newton(A0, A1, angle)
        near = (np.abs(steps) <= spacing) & (np.abs(frequencies) > still)
        angles, frequencies = angle + steps[near], frequencies[near]
        crossings += zip(_delay(angles, frequencies), angles, frequencies, strict=True)
    for estimate, angle, frequency in sorted(crossings):
        if estimate > NEAR * margin:
            break
        margin = min(margin, _crossing(A0, A1, angle, frequency, still))
    return float(margin)


def sufficient_delay(A0: ArrayLike, A1: ArrayLike, /) -> float:
    """π / (2 h), a delay below which the flow is stable where −A₀ and −A₁ are symmetric, with eigenvalues ≥ 0 and ≤ h.

    So they are for late gradients in DGD with symmetric W, h being the largest eigenvalue of any agent's Hessian. With
    the Rayleigh quotients α and β of a mode, s + α + β e^{−sτ} = 0: on the axis α + β cos ωτ = 0 and ω = β sin ωτ, so
    that ωτ ≥ π/2 while ω ≤ h.

    Parameters
    ----------
    A0, A1
        Shape (n, n) each, for instance of `delay_matrices`.

    Returns
    -------
    delay
        In the unit of time of A₀ and A₁; nan for other matrices.

    Raises
    ------
    ValueError
        If the matrices are not square, finite and of one size.
    """
    A0, A1 = _checked(A0, A1)
    if not all(np.allclose(A, A.T, rtol=0, atol=ON_AXIS * np.abs(A).max()) for A in (A0, A1)):
        return float("nan")
    drift, pull = np.linalg.eigvalsh(A0), np.linalg.eigvalsh(A1)
    if max(drift[-1], pull[-1]) > ON_AXIS * max(-drift[0], -pull[0]):
        return float("nan")
    return float(np.pi / (-2 * pull[0])) if pull[0] < 0 else float("inf")


@one_thread()
def delayed_radius(A0: ArrayLike, A1: ArrayLike, step_size: float | int, delay: int, /) -> float:
    """The spectral radius of the rounds x_{k+1} = x_k + η (A₀ x_k + A₁ x_{k−τ}): they are unstable above 1.

    Of the augmented system that `Delayed` makes, without most of its zeros: of x_{k−τ}, …, x_{k−1} only what A₁ sees is
    carried on, rank(A₁) numbers each.

    Parameters
    ----------
    A0, A1
        Of `delay_matrices`.
    step_size
        η, of the same algorithm.
    delay
        τ ≥ 0, in rounds.

    Raises
    ------
    ValueError
        If the matrices are not square, finite and of one size, or the augmented system would be too large.
    """
    A0, A1 = _checked(A0, A1)
    if delay < 0:
        raise InputError(f"delay must be a number of rounds ≥ 0, found {delay}")
    n = len(A0)
    if delay == 0:
        augmented = np.eye(n) + step_size * (A0 + A1)
    else:
        U, sizes, V = np.linalg.svd(A1)
        seen = sizes > n * np.finfo(float).eps * sizes[0]
        U, V = U[:, seen] * sizes[seen], V[seen]
        rank = len(V)
        rows = n + delay * rank
        _must_be_small(rows, f"{n} states with {delay} rounds of what is late")
        augmented = np.eye(rows, k=-rank)  # every round, what is on its way goes one place on
        augmented[: n + rank] = 0
        augmented[:n, :n], augmented[:n, rows - rank :] = np.eye(n) + step_size * A0, step_size * U
        augmented[n : n + rank, :n] = V
    return float(np.abs(np.linalg.eigvals(augmented)).max())


@one_thread()
def delay_margin_in_rounds(
    A0: ArrayLike, A1: ArrayLike, step_size: float | int, /, *, known: int = -1, most: int = 50
) -> int:
    """The largest delay in rounds up to which every delay, from 0 on, leaves the rounds stable: by `delayed_radius`.

    Parameters
    ----------
    A0, A1, step_size
        As for `delayed_radius`.
    known
        A delay up to which all are known to be stable, by a sufficient bound; they are not looked at.
    most
        The largest delay that is looked at, in rounds.

    Returns
    -------
    rounds
        `most` if all delays up to there are stable, and −1 if the rounds are unstable without delay.

    Raises
    ------
    ValueError
        As for `delayed_radius`.
    """
    for delay in range(known + 1, most + 1):
        if delayed_radius(A0, A1, step_size, delay) > 1 + STABILITY_TOLERANCE:
            return delay - 1
    return most


def _must_be_small(rows: int, what: str) -> None:
    if rows > LARGEST:
        raise InputError(
            f"{what} take a matrix of {rows} rows, more than {LARGEST}: take fewer samples or agents; the rounds alone "
            "have spectrum(linear_system(Delayed(...), ...))"
        )


def _checked(A0: Any, A1: Any) -> tuple[np.ndarray, np.ndarray]:
    A0, A1 = np.asarray(A0), np.asarray(A1)
    for A in (A0, A1):
        if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape != A0.shape or A.dtype.kind not in "iuf" or not A.size:
            raise InputError(f"A₀ and A₁ must be real square matrices of one size, found shapes {A0.shape}, {A1.shape}")
        if not np.isfinite(A).all():
            raise InputError("A₀ and A₁ must be finite: what is not a number has no roots")
    return A0.astype(float), A1.astype(float)


def _common_modes(A0: np.ndarray, A1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Eigenvalues a and b, and the eigenvectors that both have in common; None if they have not."""
    sizes = np.linalg.norm(A0), np.linalg.norm(A1)
    # Eigenvectors of both are those of a combination; an irrational one has no eigenvalues that coincide by chance.
    combined = A0 / (sizes[0] or 1) + np.sqrt(2) * A1 / (sizes[1] or 1)
    V = (np.linalg.eigh if symmetric(combined) else np.linalg.eig)(combined)[1]
    try:
        D0, D1 = np.linalg.solve(V, A0 @ V), np.linalg.solve(V, A1 @ V)
    except np.linalg.LinAlgError:
        return None
    a, b = np.diagonal(D0), np.diagonal(D1)
    if np.linalg.norm(D0 - np.diag(a)) > DECOUPLED * sizes[0] or np.linalg.norm(D1 - np.diag(b)) > DECOUPLED * sizes[1]:
        return None
    return a, np.where(np.abs(b) > len(b) * np.finfo(float).eps * sizes[1], b, 0), V


def _of_modes(a: np.ndarray, b: np.ndarray, V: np.ndarray, delay: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """s = a + W_k(b τ e^{−aτ})/τ, with W_k(e^z) = ω(z + 2πi k): e^{−aτ} itself may overflow."""
    pulled = b != 0  # elsewhere s = a, and no branch beside it
    a, late, branches = a[:, None], np.log(b[pulled].astype(complex) * delay)[:, None], np.arange(-count, count + 1)
    roots = a[pulled] + scipy.special.wrightomega(late - a[pulled] * delay + 2j * np.pi * branches) / delay
    values = np.concatenate([a[~pulled].ravel(), roots.ravel()])
    return values, np.concatenate([V[:, ~pulled], np.repeat(V[:, pulled], len(branches), axis=1)], axis=1)


def _discretised(A0: np.ndarray, A1: np.ndarray, delay: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rightmost eigenvalues of d/dθ on polynomials over [−τ, 0], refined; more points until both agree."""
    points = 12 + count
    while True:
        _must_be_small(len(A0) * (points + 1), f"{len(A0)} states at {points + 1} points")
        found = np.linalg.eigvals(_generator(A0, A1, delay, points))
        found = found[np.argsort(-found.real)][:count]
        refined = [_refined(A0, A1, delay, s) for s in found]
        values = np.array([s for s, _ in refined])
        if (np.abs(values - found) <= RESOLVED * (np.abs(found) + 1 / delay)).all():
            return values, np.stack([v for _, v in refined], axis=1)
        points *= 2


def _generator(A0: np.ndarray, A1: np.ndarray, delay: float, points: int) -> np.ndarray:
    """x ↦ dx/dθ at Chebyshev's points θ from 0 to −τ, with the equation itself in place of the derivative at 0."""
    x = np.cos(np.pi * np.arange(points + 1) / points)
    weights = (-1.0) ** np.arange(points + 1)
    weights[[0, -1]] /= 2
    D = weights / weights[:, None] / (np.subtract.outer(x, x) + np.eye(points + 1))
    D -= np.diag(D.sum(axis=1))
    n = len(A0)
    generator = np.kron(2 / delay * D, np.eye(n))
    generator[:n] = 0
    generator[:n, :n], generator[:n, -n:] = A0, A1
    return generator


def _refined(A0: np.ndarray, A1: np.ndarray, delay: float, s: complex) -> tuple[complex, np.ndarray]:
    """A root and its vector, by successive linear problems: N(s − μ) v ≈ (N(s) − μ N'(s)) v = 0."""
    one = np.eye(len(A0))
    for _ in range(10):
        late = np.exp(-s * delay) * A1
        steps, vectors = scipy.linalg.eig(s * one - A0 - late, one + delay * late)  # pyright: ignore
        nearest = np.argmin(np.where(np.isfinite(steps), np.abs(steps), np.inf))
        s, vector = s - steps[nearest], vectors[:, nearest]
        if np.abs(steps[nearest]) <= 1e-15 * (np.abs(s) + 1 / delay):
            break
    return s, vector


def _residuals(A0: np.ndarray, A1: np.ndarray, delay: float, values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    late = np.exp(-values * delay)
    sizes = np.abs(values) + np.linalg.norm(A0, 2) + np.linalg.norm(A1, 2) * np.abs(late)
    left = values * vectors - A0 @ vectors - (A1 @ vectors) * late
    return np.linalg.norm(left, axis=0) / np.maximum(sizes, np.finfo(float).tiny) / np.linalg.norm(vectors, axis=0)


def _eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, and left and right eigenvectors."""
    values, left, right = (np.asarray(part) for part in scipy.linalg.eig(matrix, left=True))
    return values, left, right


def _newton(A0: np.ndarray, A1: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """From each eigenvalue of A₀ + A₁ e^{−iθ}, the step in θ to the imaginary axis, and where on it: ω."""
    late = np.exp(-1j * angle) * A1
    values, left, right = _eigenvectors(A0 + late)
    with np.errstate(divide="ignore", invalid="ignore"):  # curves that do not move, or meet
        slopes = -1j * np.sum(left.conj() * (late @ right), axis=0) / np.sum(left.conj() * right, axis=0)
        steps = -np.real(values) / slopes.real
        return steps, (values + steps * slopes).imag


def _crossing(A0: np.ndarray, A1: np.ndarray, angle: float, frequency: float, still: float) -> float:
    """The delay of the crossing of the axis near one that is estimated; inf if there is none."""
    for _ in range(20):
        steps, frequencies = _newton(A0, A1, angle)
        nearest = np.nanargmin(np.abs(frequencies - frequency))
        angle, frequency = angle + steps[nearest], frequencies[nearest]
        if np.abs(steps[nearest]) <= CONVERGED:  # quadratically: what is left is its square
            return float(_delay(angle, frequency)) if np.abs(frequency) > still else np.inf
    return np.inf


def _delay(angle: Any, frequency: Any) -> Any:
    """The smallest τ > 0 with ωτ = θ up to whole turns."""
    return np.mod(np.sign(frequency) * angle, 2 * np.pi) / np.abs(frequency)


def _second_zero(A1: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """The delay at which another root passes through one that stays at 0: s (1 + τ c) = O(s²), c = wᴴ A₁ v / wᴴ v."""
    overlap = left.conj().T @ right
    if np.linalg.matrix_rank(overlap, tol=np.sqrt(np.finfo(float).eps)) < len(overlap):
        return 0.0  # a chain of vectors, along which the flow grows like t
    rates = np.linalg.eigvals(np.linalg.solve(overlap, left.conj().T @ A1 @ right)).real
    return float(np.min(-1 / rates[rates < -ON_AXIS * np.linalg.norm(A1)], initial=np.inf))
