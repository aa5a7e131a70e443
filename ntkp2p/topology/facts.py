r"""What is true of a mixing matrix: connection, period, spectrum, Perron vectors, and what follows from them.

Every function takes W as a dense array or a sparse one. Sparse ones stay sparse: of their spectrum only the extremes
are found, by ARPACK, and what needs all of it or a power of W is left to the dense ones.

References
----------
L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging", Systems & Control Letters 53 (2004).
D. Levin, Y. Peres, "Markov Chains and Mixing Times", 2nd edition, AMS 2017.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float, Inexact
from scipy.sparse import csr_array, eye_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

#: How far a row or column sum may be from one, and an entry from its mirror image or from its sign.
TOLERANCE = 1e-8
# A defective matrix's eigenvalues are only good to about the square root of the rounding.
EIGENVALUE_TOLERANCE = 1e-6
#: The residual at which the iteration for an extreme eigenvalue of a large matrix stops.
RESIDUAL = 1e-9
#: How far outside of the spectrum an inverse is taken, where eigenvalues crowd at its end.
OUTSIDE = 1e-6
#: Random probes that a large matrix's trace is estimated by.
PROBES = 64
#: Mixing that takes longer than 2^DOUBLINGS rounds is not followed: rounding would have the say.
DOUBLINGS = 40

Matrix = np.ndarray | csr_array


class Spectrum(NamedTuple):
    """Eigenvalues of W.

    Attributes
    ----------
    eigenvalues : ndarray
        By descending modulus; real when W is symmetric. All of a dense W, the extreme ones of a sparse W.
    second_modulus
        The largest modulus once the eigenvalue nearest to 1 is set aside; 0 for one agent; NaN if it was not found.
    smallest
        The smallest real part; NaN if it was not found.
    """

    eigenvalues: Inexact[np.ndarray, " k"]
    second_modulus: float
    smallest: float


def sums(W: Matrix, axis: int) -> Float[np.ndarray, " Q"]:
    """Row sums (axis 1) or column sums (axis 0)."""
    return np.asarray(W.sum(axis=axis)).ravel()


def is_symmetric(W: Matrix) -> bool:
    """W = Wᵀ within `TOLERANCE`."""
    return float(abs(W - W.T).max()) <= TOLERANCE


def components(W: Matrix) -> list[list[int]]:
    """Strongly connected components of the nonzeros, each sorted, by their smallest agent."""
    _, labels = connected_components(csr_array(W != 0), connection="strong")
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))[:-1]
    return sorted(group.tolist() for group in np.split(order, ends))


def period(W: Matrix, parts: list[list[int]]) -> int:
    """The number of rounds after which W returns what it is given to where it came from: of all parts together.

    In one strong component it is the greatest common divisor of the closed walks' lengths: with ℓ the distance from
    any node, that of ℓ(i) + 1 − ℓ(j) over the links i → j (Denardo 1977).
    """
    part = np.zeros(W.shape[0], dtype=int)
    for number, agents in enumerate(parts):
        part[agents] = number
    tails, heads = csr_array(W).nonzero()
    inside = part[tails] == part[heads]
    tails, heads = tails[inside], heads[inside]
    level = _levels(csr_array((np.ones(len(tails)), (tails, heads)), W.shape), parts)
    laps = np.zeros(len(parts), dtype=int)
    np.gcd.at(laps, part[tails], level[tails] + 1 - level[heads])
    return int(np.lcm.reduce(np.maximum(laps, 1)))


def _levels(links: csr_array, parts: list[list[int]]) -> np.ndarray:
    """Every agent's distance from the first one of its part."""
    level = np.zeros(links.shape[0], dtype=int)
    for agents in parts:
        order, parent = breadth_first_order(links, agents[0])
        for node in order[1:]:
            level[node] = level[parent[node]] + 1
    return level


def spectrum(W: Matrix, *, lap: int = 1) -> Spectrum:
    """The eigenvalues of W: all of a dense one; of a sparse one the two or more largest, and the smallest.

    Parameters
    ----------
    lap
        The period of a W of which it is known, by Perron and Frobenius, that its eigenvalues of modulus 1 are the
        lap-th roots of one: there an iteration would search in vain.
    """
    if isinstance(W, np.ndarray):
        values = np.linalg.eigvalsh((W + W.T) / 2) if is_symmetric(W) else np.linalg.eigvals(W)
        values = values[np.argsort(-abs(values), kind="stable")]
        return Spectrum(values, float(abs(without_one(values)).max(initial=0.0)), float(np.real(values).min()))
    if is_symmetric(W):
        top, bottom = extremes(W, 2, "LA"), extremes(W, 1, "SA")
        second = np.append(without_one(top), bottom) if len(top) and len(bottom) else np.array([np.nan])
        values, smallest = np.append(top, bottom), bottom
    else:
        turning = np.exp(2j * np.pi * np.arange(lap) / lap)
        top, bottom = turning if lap > 1 else extremes(W, 3, "LM"), extremes(W, 1, "SR")
        second = without_one(top) if len(top) else np.array([np.nan])
        values, smallest = np.append(top, bottom), np.real(bottom)
    values = values[np.argsort(-abs(values), kind="stable")]
    return Spectrum(values, float(abs(second).max()), float(smallest[0]) if len(smallest) else float("nan"))


def without_one(eigenvalues: Inexact[np.ndarray, " k"]) -> Inexact[np.ndarray, " l"]:
    """All but the one nearest to 1."""
    return eigenvalues if not len(eigenvalues) else np.delete(eigenvalues, abs(eigenvalues - 1).argmin())


def extremes(W: csr_array, count: int, which: str) -> Inexact[np.ndarray, " k"]:
    """Some eigenvalues at one end of a sparse W's spectrum, by ARPACK; none if they are not found.

    Parameters
    ----------
    which
        "LA", "SA": the largest or smallest of a symmetric W; "LM", "SR": the largest modulus, the smallest real part.

    Notes
    -----
    Where eigenvalues crowd at the end, as those of a long ring do at 1, the iteration on W stalls and one on
    (W − σI)⁻¹, σ just outside of Gershgorin's discs, does not. For symmetric W that is as good. Otherwise it finds
    those nearest to σ and no others: of the smallest real parts one is taken that is within 1e-5 of the discs' end.
    """
    values = _arpack(W, count, which=which)
    if len(values):
        return values
    side = -1 if which in ("SA", "SR") else 1
    end = _gershgorin(W, side)
    values = _arpack(W, count, sigma=end + side * OUTSIDE, which="LM")
    return values if which != "SR" or np.all(np.real(values) < end + 1e-5) else np.empty(0)


def _gershgorin(W: csr_array, side: int) -> float:
    """No eigenvalue's real part is farther to that side, −1 left or 1 right."""
    own = W.diagonal()
    radius = np.asarray(abs(W).sum(axis=1)).ravel() - abs(own)
    return float(side * np.max(side * own + radius))


def _arpack(W: csr_array, count: int, **options: Any) -> np.ndarray:
    solver: Callable = scipy.sparse.linalg.eigsh if is_symmetric(W) else scipy.sparse.linalg.eigs
    start = np.random.default_rng(0).normal(size=W.shape[0])
    operator = W.tocsc() if "sigma" in options else W
    try:
        return solver(operator, count, v0=start, ncv=30, tol=RESIDUAL, maxiter=30, return_eigenvectors=False, **options)
    except (scipy.sparse.linalg.ArpackError, RuntimeError):  # it did not converge, or W − σI has no inverse
        return np.empty(0)


def perron_left(W: Matrix, root: float = 1.0) -> Float[np.ndarray, " Q"] | None:
    """π with πᵀ W = root · πᵀ and Σ π_q = 1, of a connected W that has this eigenvalue once; None if it is not found."""
    size = W.shape[0]
    if isinstance(W, np.ndarray):
        system = root * np.eye(size) - W.T
        system[-1] = 1.0  # the equations depend on one another, so any one of them makes room for the sum
        return np.linalg.solve(system, np.eye(size)[-1])
    start = np.full(size, 1 / size)
    # What is nonnegative and connected has no other eigenvalue of this modulus once it is lazy.
    lazy = (root * eye_array(size) + W.T) / 2
    for options in ({"which": "LM"}, {"sigma": root + OUTSIDE}):
        try:
            _, vector = scipy.sparse.linalg.eigs(csr_array(lazy).tocsc(), 1, v0=start, maxiter=60, **options)
        except (scipy.sparse.linalg.ArpackError, RuntimeError):
            continue
        vector = np.real(vector[:, 0])
        return vector / vector.sum()
    return None


def mixing_time(W: Float[np.ndarray, "Q Q"], limit: Float[np.ndarray, " Q"]) -> int | None:
    r"""The rounds k until no row of W^k is farther than 1/4 from its limit π in total variation.

    :math:`\max_q \tfrac12 \sum_r |W^k_{qr} - \pi_r| \le \tfrac14` [Levin & Peres, section 4.5], for a nonnegative
    row-stochastic W, where the distance never grows: by squaring until it is reached, and bisecting.

    Returns
    -------
    int or None
        None if it takes more than 2^40 rounds.
    """

    def far(power: np.ndarray) -> bool:
        return abs(power - limit).sum(axis=1).max() / 2 > 1 / 4

    squares = [W]
    while far(squares[-1]):
        if len(squares) > DOUBLINGS:
            return None
        squares.append(squares[-1] @ squares[-1])
    if not far(np.eye(len(W))):
        return 0
    # The largest k that is still far, from its highest binary digit down: it is below 2^(len − 1).
    power, rounds = np.eye(len(W)), 0
    for digit in range(len(squares) - 2, -1, -1):
        longer = power @ squares[digit]
        if far(longer):
            power, rounds = longer, rounds + 2**digit
    return rounds + 1


def effective_neighbours(W: Matrix, eigenvalues: Inexact[np.ndarray, " k"], decay: float) -> float:
    r"""The agents that one effectively averages with, n_W(γ), for noise that is forgotten at the rate γ = decay.

    Every agent walks, :math:`z^+ = W(\sqrt\gamma\, z + \xi)` with independent unit noise ξ. Alone its variance comes to
    1/(1 − γ); averaged it is that much smaller [Vogels, Hendrikx, Jaggi, "Beyond spectral gap", NeurIPS 2022]:

    .. math:: n_W(\gamma) = \frac{1/(1-\gamma)}{\tfrac1Q \sum_{k \ge 0} \gamma^k \|W^{k+1}\|_F^2}

    For symmetric W the sum is :math:`\sum_i \lambda_i^2 / (1 - \gamma \lambda_i^2)`. It is 1 for W = I and Q for the
    complete graph's 11ᵀ/Q. Of a sparse W it is an estimate from 64 random probes.

    Returns
    -------
    float
        NaN if the variance has no limit, γ ρ(W)² ≥ 1.
    """
    squares = abs(eigenvalues) ** 2
    if decay * squares.max(initial=0.0) >= 1:
        return float("nan")
    if not isinstance(W, np.ndarray):
        energy = _probed(W, decay)
    elif is_symmetric(W):
        energy = np.sum(squares / (1 - decay * squares))
    else:
        energy = np.trace(_stein(W, decay))
    return float(W.shape[0] / ((1 - decay) * energy))


def _stein(W: np.ndarray, decay: float) -> np.ndarray:
    """X = Σ_k γ^k W^{k+1} W^{k+1}ᵀ, twice as many of its terms with each step."""
    power, total = np.sqrt(decay) * W, W @ W.T
    while np.linalg.norm(power) ** 2 > np.finfo(float).eps:
        total = total + power @ total @ power.T
        power = power @ power
    return total


def _probed(W: csr_array, decay: float) -> float:
    """Hutchinson's estimate of Σ_k γ^k ‖W^{k+1}‖_F²: the mean of ‖W^{k+1} z‖² over random signs z."""
    z = np.random.default_rng(0).choice([-1.0, 1.0], size=(W.shape[0], PROBES))
    energy, weight = 0.0, 1.0
    while weight > 1e-6 * (1 - decay):
        z = W @ z
        energy, weight = energy + weight * float(np.sum(z**2)) / PROBES, weight * decay
    return energy


def departure_from_normality(W: Float[np.ndarray, "Q Q"], eigenvalues: Inexact[np.ndarray, " Q"]) -> float:
    """Henrici's √(‖W‖_F² − Σ|λ_i|²): 0 exactly if W has orthogonal eigenvectors, as a symmetric W has."""
    total = np.sum(W**2)
    departure = total - np.sum(abs(eigenvalues) ** 2)
    # What rounding leaves of a difference that is none would look like 1e-8 under the root.
    return float(np.sqrt(departure)) if departure > 10 * W.shape[0] * np.finfo(float).eps * total else 0.0


def numerical_abscissa(W: Matrix) -> float:
    """The largest eigenvalue of (W + Wᵀ)/2: above 1, some differences grow before they shrink; NaN if not found."""
    symmetric = (W + W.T) / 2
    if symmetric.min() >= 0 and abs(sums(symmetric, 1) - 1).max() <= TOLERANCE:
        return 1.0  # a doubly stochastic matrix
    if isinstance(symmetric, np.ndarray):
        return float(np.linalg.eigvalsh(symmetric)[-1])
    top = extremes(csr_array(symmetric), 1, "LA")
    return float(top[0]) if len(top) else float("nan")


def largest_step(eigenvalues: Inexact[np.ndarray, " k"]) -> float:
    """Below which η h the rounds W − η h I are stable: DGD on losses of the one curvature h.

    An eigenvalue a + ib of W gives η h < a + √(1 − b²). The smallest of a symmetric W decides, 1 + λ_min, and that
    suffices for losses of any curvatures up to h (Yuan, Ling & Yin 2016). Zero or less: no step size is stable.
    """
    a, b = np.real(eigenvalues), np.imag(eigenvalues)
    return float(np.min(a + np.sqrt(np.maximum(1 - b**2, 0)), initial=2.0))
