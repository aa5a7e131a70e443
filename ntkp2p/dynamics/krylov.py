r"""A large linear problem in a small subspace, and a bound of what that leaves out.

For e' = M e + v from e = 0, in rounds or as the flow de/dτ = (M − I) e + v (τ = k, one unit a round), a basis V of the
Krylov space of M and v with

    M V = V H + h u wᵀ,   w the last unit vector, ‖u‖ = 1,   v = ‖v‖ V e₁

gives the approximation V c with c' = H c + ‖v‖ e₁. Its residual is ``h |w·c(τ)|`` and known at all times, so that the
error obeys the same system, driven by the residual alone::

    ‖e(k) − V c(k)‖ ≤ G h Σ_{j<k} ρ^(k−1−j) |w·c_j|,   ‖M^i‖ ≤ G ρ^i,

with an integral in place of the sum for the flow. This is a bound where G and ρ are known (an algorithm declares them);
elsewhere they are taken from the powers H^(2^i), and it is an estimate. So it is where the residual is not looked at in
every round, but in pairs of them: beyond twice the size of the basis.

V is Lanczos' where M is symmetric: without re-orthogonalisation, whose absence does functions of a matrix no harm
(Druskin and Knizhnerman, 1991), and Arnoldi's otherwise (Saad, 1992).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from ntkp2p.base.errors import InputError
from ntkp2p.dynamics.system import LinearSystem, linear

Time = Literal["rounds", "flow"]
TIMES: tuple[Time, ...] = get_args(Time)


def checked_time(time: str, /, *, has_flow: bool = True) -> Time:
    """The same, if it is one of `TIMES` that an algorithm has; otherwise a ValueError."""
    if time not in TIMES:
        raise InputError(f'time must be "rounds" or "flow", found {time!r}')
    if time == "flow" and not has_flow:
        raise InputError('its rounds discretise no gradient flow of the present state: take time="rounds"')
    return time


def times_of(has_flow: bool, /) -> tuple[Time, ...]:
    """The notions of time that an algorithm has."""
    return TIMES if has_flow else ("rounds",)


#: Steps of Lanczos' recurrence that are compiled as one.
STEPS = 8
#: By what factor a basis grows from one look at its error to the next.
GROWTH = 1.3
#: Rounds whose coefficients are computed together: what is made on the way stays in a cache.
AT_ONCE = 512
#: The smallest basis that is looked at.
LEAST = 24


@dataclass(frozen=True)
class Reduction:
    """M restricted to a subspace: M V ≈ V H, with a vector v = V start.

    Attributes
    ----------
    basis
        Vᵀ, shape (m, n), or None for the identity.
    matrix
        H, shape (m, m).
    start
        v in the basis, shape (m,).
    remainder
        h = ‖M V − V H‖: 0 when the space is invariant.
    symmetric
        Whether H is, as M was declared to be.
    """

    basis: Float[np.ndarray, "m n"] | None
    matrix: Float[np.ndarray, "m m"]
    start: Float[np.ndarray, " m"]
    remainder: float
    symmetric: bool

    def coefficients(
        self,
        rounds: Float[np.ndarray, " times"],
        time: Time,
        /,
        *,
        driven: bool = True,
        within: Float[np.ndarray, "p m"] | None = None,
    ) -> Float[np.ndarray, "times _"]:
        """c at the given rounds: of c' = H c + start from 0, or if not driven of c' = H c from `start`.

        Parameters
        ----------
        within
            Orthonormal rows: the coefficients are then of c's part in their span, (times, p).
        """
        with np.errstate(over="ignore", invalid="ignore"):  # an unstable system overflows: flagged, not an error
            if not self.symmetric:
                c = self._orbit(np.asarray(rounds), time, driven)[:, : len(self.start)]
                return c if within is None else c @ within.T
            modes, vectors = self._modes
            start, into = self.start @ vectors, vectors.T if within is None else (within @ vectors).T
            blocks = np.array_split(rounds, len(rounds) // AT_ONCE + 1)
            return np.concatenate([(_scalar_orbits(modes, k, time, driven) * start) @ into for k in blocks])

    def growth(self, time: Time, horizon: float, /) -> tuple[float, float]:
        """G and ρ ≥ 1 with ‖H^k‖ ≤ G ρ^k, as the powers k = 2^i up to a horizon show it; in the flow, exp(H − I)^k."""
        if self.symmetric:
            values = np.linalg.eigvalsh(self.matrix)
            radius = np.abs(values).max() if time == "rounds" else np.exp(values.max() - 1)
            return 1.0, max(1.0, float(radius))
        powers = self._powers(time)
        powers.upto(int(horizon).bit_length() - 1)
        m = len(self.start)
        radius = max(1.0, float(np.abs(np.linalg.eigvals(powers[0][:m, :m])).max()))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # an unstable system's powers overflow
            sizes = [np.log(_norm(power[:m, :m])) - 2**i * np.log(radius) for i, power in enumerate(powers)]
        return float(np.exp(max([0.0, *(size for size in sizes if np.isfinite(size))]))), radius

    def expand(self, coefficients: Float[np.ndarray, "*times m"], /) -> Float[np.ndarray, "*times n"]:
        """Vectors of the full space from their coefficients."""
        return coefficients if self.basis is None else coefficients @ self.basis

    def last_and_size(
        self, rounds: Float[np.ndarray, " times"], time: Time, /, *, driven: bool = True
    ) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
        """w·c and ‖c‖ at the given rounds: of a recurrence of Lanczos without c itself, which costs less."""
        if not self.symmetric or self.basis is None:
            c = self.coefficients(rounds, time, driven=driven)
            with np.errstate(over="ignore", invalid="ignore"):
                return c[:, -1], np.linalg.norm(c, axis=1)
        beside = np.diagonal(self.matrix, 1)
        modes, vectors = scipy.linalg.eigh_tridiagonal(1 - np.diagonal(self.matrix), -beside)
        with np.errstate(over="ignore", invalid="ignore"):
            amplitudes = _scalar_orbits(modes, rounds, time, driven) * (self.start @ vectors)
            return amplitudes @ vectors[-1], np.linalg.norm(amplitudes, axis=1)

    @cached_property
    def _modes(self):
        """Eigenvalues of I − H, and eigenvectors."""
        return scipy.linalg.eigh(np.eye(len(self.start)) - self.matrix)

    def _orbit(self, rounds, time, driven):
        first = np.append(np.zeros_like(self.start), self.scale) if driven else np.append(self.start, 0.0)
        whole = np.floor(rounds)
        states = _orbit(self._powers(time), first, whole)
        for part in set(rounds - whole) - {0.0}:  # only the flow has times between rounds
            some = rounds - whole == part
            states[some] = states[some] @ scipy.linalg.expm(part * self._generator).T
        return states

    @property
    def scale(self) -> float:
        """‖v‖, or 1 if that is 0."""
        return float(np.linalg.norm(self.start)) or 1.0

    @cached_property
    def augmented(self):
        """[[H, v/‖v‖], [0, 1]], whose orbit from (0, ‖v‖) has c, and from (c, 0) the powers of H."""
        last = np.eye(1, len(self.start) + 1, len(self.start))
        return np.block([[np.block([self.matrix, self.start[:, None] / self.scale])], [last]])

    @property
    def _generator(self):
        return self.augmented - np.eye(len(self.augmented))

    def _powers(self, time: Time) -> "_Powers":
        return self._of_rounds if time == "rounds" else self._of_flow

    @cached_property
    def _of_rounds(self):
        return _Powers(self.augmented)

    @cached_property
    def _of_flow(self):
        return _Powers(scipy.linalg.expm(self._generator))


class _Powers(list):
    """P^(2^i), formed as they are asked for."""

    def __init__(self, one: np.ndarray):
        super().__init__([one])

    def upto(self, i: int) -> np.ndarray:
        """P^(2^i)."""
        with np.errstate(over="ignore", invalid="ignore"):
            while len(self) <= i:
                self.append(self[-1] @ self[-1])
        return self[max(i, 0)]


def _orbit(powers: _Powers, start: np.ndarray, rounds: np.ndarray) -> np.ndarray:
    """P^k s for all k at once: one product for each binary digit."""
    states = np.repeat(start[:, None], len(rounds), axis=1)
    for i in range(int(rounds.max(initial=0)).bit_length()):
        has = (rounds.astype(np.int64) >> i) & 1 == 1
        states[:, has] = powers.upto(i) @ states[:, has]
    return states.T


def _scalar_orbits(modes: np.ndarray, rounds: np.ndarray, time: Time, driven: bool) -> np.ndarray:
    """λ^k, or (1 − λ^k)/(1 − λ), of the eigenvalues λ = 1 − μ of M at all rounds k; in the flow with exp(−k μ)."""
    k, mu = np.asarray(rounds, float)[:, None], modes[None, :]
    positive = mu < 1
    logarithm = -mu if time == "flow" else np.log1p(-np.where(positive, mu, 0.0))
    if time == "flow":
        positive = np.full_like(positive, True)
    negative = ~positive[0]  # no logarithm there; elsewhere a power would cost several exponentials
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        power = (1 - mu[:, negative]) ** k
        # −expm1 keeps the digits of eigenvalues near 1.
        orbits = -np.expm1(k * logarithm) if driven else np.exp(k * logarithm)
        orbits[:, negative] = 1 - power if driven else power
        return np.where(mu == 0, k, orbits / np.where(mu == 0, 1, mu)) if driven else orbits


def _norm(matrix: np.ndarray) -> float:
    """An upper bound of the spectral norm."""
    return float(np.sqrt(np.linalg.norm(matrix, 1) * np.linalg.norm(matrix, np.inf)))


@dataclass(frozen=True)
class ErrorCurve:
    """How the bound of the error grows along a run.

    Attributes
    ----------
    rounds
        Where it is known, from 0 to the horizon.
    error
        The bound of ‖e − V c‖ there.
    size
        The largest ‖c‖ so far.
    growth
        G, by which a rounding error may be amplified as well.
    """

    rounds: np.ndarray
    error: np.ndarray
    size: np.ndarray
    growth: float


def error_curve(
    reduction: Reduction, horizon: float, time: Time, growth: float, /, *, driven: bool = True
) -> ErrorCurve:
    """The bound of the error up to a horizon; see the head of this module.

    Parameters
    ----------
    growth
        G for ρ = 1, as it is declared, or nan to take both from the reduction.
    """
    rounds = checkpoints(horizon, 2 * len(reduction.start))
    if np.isnan(growth):
        growth, radius = reduction.growth(time, horizon)
    else:
        radius = 1.0
    last, sizes = reduction.last_and_size(rounds, time, driven=driven)
    with np.errstate(over="ignore", invalid="ignore"):
        last = reduction.remainder * np.abs(last)
        gaps = np.diff(rounds)
        # Between two looks the residual is taken to be at most the larger of both.
        added = gaps * np.maximum(last[:-1], last[1:])
        error = np.zeros(len(rounds))
        for i, (gap, more) in enumerate(zip(gaps, added, strict=True)):
            error[i + 1] = radius**gap * (error[i] + more)
        size = np.maximum.accumulate(sizes)
    finite = np.isfinite(error) & np.isfinite(size)  # where an unstable system has overflowed, nothing can be said
    return ErrorCurve(rounds[finite], growth * error[finite], size[finite], growth)


def checkpoints(horizon: float, every: int) -> np.ndarray:
    """Every early round, in which a pulse may cross the basis; then pairs of neighbours, two dozen an octave.

    Pairs, for residuals may alternate from round to round.
    """
    early = np.arange(min(horizon, every) + 1)
    octaves = max(0.0, np.log2(max(horizon, 1) / every))
    later = np.floor(np.geomspace(every, max(horizon, every), int(24 * octaves) + 1)) if octaves else np.empty(0)
    return np.unique(np.clip(np.concatenate([early, later, later + 1, [horizon]]), 0, horizon))


def lanczos(system: LinearSystem, start: Float[np.ndarray, " n"], most: int, /) -> Iterator[Reduction]:
    """Grow a basis of span{v, M v, M² v, …} for symmetric M by its three-term recurrence, up to `most` vectors."""
    norm = float(np.linalg.norm(start))
    basis, diagonal, beside = np.empty((most + STEPS, len(start))), np.empty(0), np.empty(0)
    goal = min(LEAST, most)
    previous, current, beta = jnp.zeros(len(start)), jnp.asarray(start / norm), jnp.zeros(())
    while True:
        previous, current, beta, (vectors, alphas, betas) = _lanczos_steps(
            system.advance, system.parameters, previous, current, beta
        )
        size = len(diagonal)
        basis[size : size + STEPS] = vectors
        diagonal, beside = np.append(diagonal, alphas), np.append(beside, betas)
        if len(ends := np.flatnonzero(beside[size:] <= 1e-14 * np.abs(diagonal).max())):
            size += int(ends[0]) + 1
            yield _tridiagonal(basis, diagonal, beside, norm, size, 0.0)
            return
        size = min(size + STEPS, most)
        if size >= goal:
            yield _tridiagonal(basis, diagonal, beside, norm, size, beside[size - 1])
            goal = min(max(size + STEPS, int(goal * GROWTH)), most)
        if size == most:
            return


@partial(jax.jit, static_argnums=0)
def _lanczos_steps(advance, parameters, previous, current, beta):
    def step(carry, _):
        previous, current, beta = carry
        w = linear(advance, parameters, current) - beta * previous
        alpha = w @ current
        w = w - alpha * current
        norm = jnp.linalg.norm(w)
        return (current, w / jnp.where(norm > 0, norm, 1.0), norm), (current, alpha, norm)

    (previous, current, beta), rows = jax.lax.scan(step, (previous, current, beta), length=STEPS)
    return previous, current, beta, rows


def _tridiagonal(basis, diagonal, beside, norm, size, remainder) -> Reduction:
    off = beside[: size - 1]
    matrix = np.diag(diagonal[:size]) + np.diag(off, 1) + np.diag(off, -1)
    return Reduction(basis[:size], matrix, norm * np.eye(1, size)[0], float(remainder), True)


def arnoldi(
    apply: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, " n"], most: int, /
) -> Iterator[Reduction]:
    """Grow an orthonormal basis of span{v, M v, M² v, …}, up to `most` vectors."""
    norm, most = float(np.linalg.norm(start)), min(most, len(start))
    basis, hessenberg = np.empty((most + 1, len(start))), np.zeros((most + 1, most))
    basis[0] = start / norm
    goal = min(LEAST, most)
    for size in range(1, most + 1):
        w = apply(basis[size - 1])
        scale = np.linalg.norm(w)
        for _ in range(2):  # twice is enough
            overlap = basis[:size] @ w
            hessenberg[:size, size - 1] += overlap
            w = w - overlap @ basis[:size]
        remainder = float(np.linalg.norm(w))
        if invariant := remainder <= 1e-14 * scale or size == len(start):
            remainder = 0.0
        if invariant or size == goal:
            yield Reduction(basis[:size], hessenberg[:size, :size], norm * np.eye(1, size)[0], remainder, False)
            goal = min(int(goal * 1.5) + 1, most)  # each look forms powers
        if invariant or size == most:
            return
        hessenberg[size, size - 1] = remainder
        basis[size] = w / remainder
