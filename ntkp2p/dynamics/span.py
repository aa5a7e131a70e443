"""The row space of many states, found by sketching, in which they are stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from ntkp2p.base.errors import InputError
from ntkp2p.dynamics import krylov
from ntkp2p.dynamics.krylov import Time

#: What of a trajectory needs no vector of its own: rounding, or beside a Krylov basis this share of its tolerance.
ROUNDING = 1e-15

#: Random sums of the requested times' coefficients that stand for all of them.
SKETCH = 192
#: By how many times more times than vectors there must be for the latter to be kept as they are.
FEW = 8


#: By time: which of the rounds are made, and the coefficients with which they are.
Parts = dict[Time, tuple[np.ndarray, np.ndarray]]


@dataclass
class Span:
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
        rows = np.concatenate([relative_rows(np.where(finite[time], c, 0.0), offset) for time, (_, c) in parts.items()])
        first = not len(self.basis) and origin is None
        if first and vectors is not None and FEW * len(vectors) < len(rows):  # so few need no smaller span
            weights, space, fresh = np.ones(len(vectors)), np.eye(len(vectors)), vectors
        else:
            weights, space, missed = row_space(rows, self.rounding)
            self.error = max(self.error, missed)
            fresh = weights[:, None] * (space if vectors is None else space @ vectors)
        if origin is not None and offset > 0:
            fresh, weights = np.concatenate([fresh, origin[None] / offset]), np.append(weights, 1.0)
        before = len(self.basis)
        if 8 * self.n * (before + len(fresh)) > self.memory:
            raise InputError(
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


def relative_rows(rows: np.ndarray, least: float) -> np.ndarray:
    """Each relative to the longest of those until then, as the error is; their squares may overflow."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    unit = rows / np.where(largest > 0, largest, 1.0)[:, None]
    lengths = np.linalg.norm(unit, axis=1) * np.minimum(largest, np.finfo(float).max / rows.shape[1])
    longest = np.maximum(np.maximum.accumulate(lengths), least)
    return rows / np.where(longest > 0, longest, 1.0)[:, None]


def row_space(rows: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray, float]:
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
