r"""What is true of a mixing matrix: connection, period, spectrum, Perron vectors, and what follows from them.

Every function takes W as a dense array or a sparse one. Sparse ones stay sparse: of their spectrum only the extremes
are found, by ARPACK, and what needs all of it or a power of W is left to the dense ones.

References
----------
L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging", Systems & Control Letters 53 (2004).
D. Levin, Y. Peres, "Markov Chains and Mixing Times", 2nd edition, AMS 2017.
"""

from collections.abc import Callable
from typing import NamedTuple

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
#: The one that does where eigenvalues crowd.
ROUGH = 1e-3
#: From what distance on they are said to crowd at the end of Gershgorin's discs.
CROWDED = 1e-2
#: How far outside of the spectrum an inverse is taken, where eigenvalues crowd at its end.
OUTSIDE = 1e-6
#: Random probes that a large matrix's trace is estimated by.
PROBES = 64
#: Of a sum whose last term is a larger share the terms do not die away.
DEAD = 1e-3
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
    residual
        The largest one of what an iteration found.
    """

    eigenvalues: Inexact[np.ndarray, " k"]
    second_modulus: float
    smallest: float
    residual: float = 0.0


def agents(W: Matrix) -> int:
    """Q, the number of agents."""
    return W.shape[0]  # pyright: ignore[reportOptionalSubscript] (the stubs of sparse arrays)


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
    part = np.zeros(agents(W), dtype=int)
    for number, members in enumerate(parts):
        part[members] = number
    tails, heads = csr_array(W).nonzero()
    inside = part[tails] == part[heads]
    tails, heads = tails[inside], heads[inside]
    level = _levels(csr_array((np.ones(len(tails)), (tails, heads)), W.shape), parts)
    periods = np.zeros(len(parts), dtype=int)
    np.gcd.at(periods, part[tails], level[tails] + 1 - level[heads])
    return int(np.lcm.reduce(np.maximum(periods, 1)))


def forgets(W: Float[np.ndarray, "Q Q"]) -> bool:
    """Whether the powers of a nonnegative row-stochastic W tend to 1 πᵀ: all listen to one aperiodic group."""
    groups = components(W)
    closed = [group for group in groups if not np.delete(W[group], group, axis=1).any()]
    return len(closed) == 1 and period(W[np.ix_(closed[0], closed[0])], [list(range(len(closed[0])))]) == 1


def smallest_class(W: Matrix, period: int) -> int:
    """Of a connected W with this period: the agents in the smallest of the classes that it leads round in turn."""
    level = _levels(csr_array(W != 0), [list(range(agents(W)))])
    return int(np.bincount(level % period, minlength=period).min())


def _levels(links: csr_array, parts: list[list[int]]) -> np.ndarray:
    """Every agent's distance from the first one of its part."""
    level = np.zeros(agents(links), dtype=int)
    for members in parts:
        order, parent = breadth_first_order(links, members[0])
        for node in order[1:]:
            level[node] = level[parent[node]] + 1
    return level


def spectrum(W: Matrix, *, period: int = 1) -> Spectrum:
    """The eigenvalues of W: all of a dense one; of a sparse one the two or more largest, and the smallest.

    Parameters
    ----------
    period
        The period of a W of which it is known, by Perron and Frobenius, that its eigenvalues of modulus 1 are the
        period-th roots of one: there an iteration would search in vain.
    """
    if isinstance(W, np.ndarray):
        values = np.linalg.eigvalsh((W + W.T) / 2) if is_symmetric(W) else np.linalg.eigvals(W)
        values = values[np.argsort(-abs(values), kind="stable")]
        return Spectrum(values, float(abs(without_one(values)).max(initial=0.0)), float(np.real(values).min()))
    symmetric = is_symmetric(W)
    if period > 1 and not symmetric:
        top = Extremes(np.exp(2j * np.pi * np.arange(period) / period), 0.0)
    else:
        top = extremes(W, 2, "LA") if symmetric else extremes(W, 3, "LM")
    bottom = extremes(W, 1, "SA" if symmetric else "SR")
    values = np.append(top.values, bottom.values)
    found = len(top.values) and (len(bottom.values) or not symmetric)
    second = abs(without_one(values)).max() if found else float("nan")
    smallest = np.real(bottom.values).min() if len(bottom.values) else float("nan")
    values = values[np.argsort(-abs(values), kind="stable")]
    return Spectrum(values, float(second), float(smallest), max(top.residual, bottom.residual))


def without_one(eigenvalues: Inexact[np.ndarray, " k"]) -> Inexact[np.ndarray, " l"]:
    """All but the one nearest to 1."""
    return eigenvalues if not len(eigenvalues) else np.delete(eigenvalues, abs(eigenvalues - 1).argmin())


class Extremes(NamedTuple):
    """Some eigenvalues at one end of a spectrum, none if they were not found, and their residual."""

    values: Inexact[np.ndarray, " k"]
    residual: float


def extremes(W: csr_array, count: int, which: str) -> Extremes:
    """Some eigenvalues at one end of a sparse W's spectrum, by ARPACK.

    Parameters
    ----------
    which
        "LA", "SA": the largest or smallest of a symmetric W; "LM", "SR": the largest modulus, the smallest real part.

    Notes
    -----
    Where eigenvalues crowd at the end, the iteration on W stalls. At the end of Gershgorin's discs, as those of a long
    ring crowd at 1, one on (W − σI)⁻¹ with σ just outside does not: such a W is thin, and so are its factors. For
    symmetric W that is as good. Otherwise it finds those nearest to σ and no others: the smallest real part is taken
    if it is within 1e-5 of the discs' end. Elsewhere, as at the edge of a random graph's, a larger residual does.
    """
    values = _arpack(W, count, RESIDUAL, which=which)
    if len(values):
        return Extremes(values, RESIDUAL)
    rough = _arpack(W, count, ROUGH, which=which)
    side = -1 if which in ("SA", "SR") else 1
    end = _gershgorin(W, side)
    if np.all(abs(rough - end) < CROWDED):
        values = _arpack(W, count, RESIDUAL, sigma=end + side * OUTSIDE)
        if len(values) and (which != "SR" or np.real(values).min() < end + 1e-5):
            return Extremes(values, RESIDUAL)
    return Extremes(rough, ROUGH)


def _gershgorin(W: csr_array, side: int) -> float:
    """No eigenvalue's real part is farther to that side, −1 left or 1 right."""
    own = W.diagonal()
    radius = np.asarray(abs(W).sum(axis=1)).ravel() - abs(own)
    return float(side * np.max(side * own + radius))


def _arpack(W: csr_array, count: int, residual: float, *, which: str = "LM", sigma: float | None = None) -> np.ndarray:
    symmetric = is_symmetric(W)
    solver: Callable = scipy.sparse.linalg.eigsh if symmetric else scipy.sparse.linalg.eigs
    flipped = which == "SR"  # the iteration passes over an eigenvalue 0 of W, and finds it as one of I − W
    operator = csr_array(eye_array(agents(W))) - W if flipped else W
    options = {"which": "LR" if flipped else which, "sigma": sigma, "tol": residual, "maxiter": 30}
    options["ncv"] = min(30 if symmetric else 80, agents(W) - 1)
    options["v0"] = np.random.default_rng(0).normal(size=agents(W))
    try:
        found = solver(operator if sigma is None else operator.tocsc(), count, return_eigenvectors=False, **options)
    except (scipy.sparse.linalg.ArpackError, RuntimeError):  # it did not converge, or W − σI has no inverse
        return np.empty(0)
    return 1 - found if flipped else found


def perron_left(W: Matrix, root: float = 1.0) -> Float[np.ndarray, " Q"] | None:
    """π with πᵀ W = root · πᵀ and Σ π_q = 1, of a connected W that has this eigenvalue once; None if not found."""
    size = agents(W)
    if isinstance(W, np.ndarray):
        system = root * np.eye(size) - W.T
        system[-1] = 1.0  # the equations depend on one another, so any one of them can be replaced by the sum
        try:
            return np.linalg.solve(system, np.eye(size)[-1])
        except np.linalg.LinAlgError:  # links so weak that rounding takes W for one that is not connected
            return None
    start = np.full(size, 1 / size)
    # What is nonnegative and connected has no other eigenvalue of this modulus once it is lazy.
    lazy = (root * eye_array(size) + W.T) / 2
    solver: Callable = scipy.sparse.linalg.eigs
    for options in ({"which": "LM"}, {"sigma": root + OUTSIDE}):
        try:
            _, vector = solver(csr_array(lazy).tocsc(), 1, v0=start, maxiter=60, **options)
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
        return bool(abs(power - limit).sum(axis=1).max() / 2 > 1 / 4)

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
        NaN if the variance has no limit, γ ρ(W)² ≥ 1, or if there is none, W = 0.
    """
    if np.sqrt(decay) * abs(eigenvalues).max(initial=0.0) >= 1:
        return float("nan")
    squares = abs(eigenvalues) ** 2
    if not isinstance(W, np.ndarray):
        energy = _probed(W, decay)
    elif is_symmetric(W):
        energy = np.sum(squares / (1 - decay * squares))
    else:
        energy = np.trace(_stein(W, decay))
    return float(agents(W) / ((1 - decay) * energy)) if energy > 0 else float("nan")


def _stein(W: np.ndarray, decay: float) -> np.ndarray:
    """X = Σ_k γ^k W^{k+1} W^{k+1}ᵀ, twice as many of its terms with each step."""
    power, total = np.sqrt(decay) * W, W @ W.T
    while np.linalg.norm(power) ** 2 > np.finfo(float).eps:
        total = total + power @ total @ power.T
        power = power @ power
    return total


def _probed(W: csr_array, decay: float) -> float:
    """Hutchinson's estimate of Σ_k γ^k ‖W^{k+1}‖_F²: the mean of ‖W^{k+1} z‖² over random signs z.

    NaN where its terms do not die away: of what is not connected no eigenvalue is known that would say so.
    """
    z = np.random.default_rng(0).choice([-1.0, 1.0], size=(agents(W), PROBES))
    energy, term, weight = 0.0, 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        while weight > 1e-6 * (1 - decay):
            z = W @ z
            term = weight * float(np.sum(z**2)) / PROBES
            energy, weight = energy + term, weight * decay
    return energy if decay * term < DEAD * energy else float("nan")


def departure_from_normality(W: Float[np.ndarray, "Q Q"], eigenvalues: Inexact[np.ndarray, " Q"]) -> float:
    """Henrici's √(‖W‖_F² − Σ|λ_i|²): 0 exactly if W has orthogonal eigenvectors, as a symmetric W has."""
    total = np.sum(W**2)
    departure = total - np.sum(abs(eigenvalues) ** 2)
    # What rounding leaves of a difference that is none would look like 1e-8 under the root.
    return float(np.sqrt(departure)) if departure > 10 * agents(W) * np.finfo(float).eps * total else 0.0


def numerical_abscissa(W: Matrix) -> float:
    """The largest eigenvalue of (W + Wᵀ)/2: above 1, some differences grow before they shrink; NaN if not found."""
    symmetric = (W + W.T) / 2 if isinstance(W, np.ndarray) else csr_array((W + W.T) / 2)
    if symmetric.min() >= 0 and abs(sums(symmetric, 1) - 1).max() <= TOLERANCE:
        return 1.0  # a doubly stochastic matrix
    if isinstance(symmetric, np.ndarray):
        return float(np.linalg.eigvalsh(symmetric)[-1])
    top = extremes(symmetric, 1, "LA").values
    return float(top[0]) if len(top) else float("nan")


def largest_step(eigenvalues: Inexact[np.ndarray, " k"]) -> float:
    """Below which η h the rounds W − η h I are stable: DGD on losses of the one curvature h.

    An eigenvalue a + ib of W gives η h < a + √(1 − b²). The smallest of a symmetric W decides, 1 + λ_min, and that
    suffices for losses of any curvatures up to h (Yuan, Ling & Yin 2016). Zero or less: no step size is stable.
    """
    a, b = np.real(eigenvalues), np.imag(eigenvalues)
    return float(np.min(a + np.sqrt(np.maximum(1 - b**2, 0)), initial=2.0))
