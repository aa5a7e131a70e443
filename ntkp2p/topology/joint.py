"""What mixing does that changes over the rounds: of one period, or of a sequence as a whole.

No one matrix of a schedule need be connected. It is the product Π = W_{T−1} … W_0 that tells whether the agents come to
agree, and how fast: its second-largest eigenvalue modulus ρ shrinks disagreement by ρ^(1/T) a round in the long run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ntkp2p.base.reports import Report, Verdict, as_plain
from ntkp2p.topology import spectrum
from ntkp2p.topology.schedules import Schedule
from ntkp2p.topology.spectrum import EIGENVALUE_TOLERANCE, TOLERANCE
from ntkp2p.topology.verdicts import (
    ALGORITHMS,
    agreement,
    bias,
    connection_fault,
    judged,
    needed_sums,
    silence_fault,
    slowness,
    sums_fault,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The step size, in units of one over the curvature, at which it is tried whether gradients make disagreement grow.
SMALL = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class ScheduleReport(Report):
    """What `check_mixing` found out about a schedule; print it for a table and the verdicts.

    Attributes
    ----------
    schedule : Schedule
        What was checked, T rounds long.
    components : list of lists of int
        The agents, grouped by who can reach one another over all rounds together.
    connected_rounds : int
        How many of the T rounds are connected by themselves.
    product : ndarray, shape (Q, Q)
        Π = W_{T−1} … W_0.
    eigenvalues : ndarray, shape (Q,)
        Those of Π, by descending modulus.
    contraction : float
        By how much the T rounds shrink disagreement at worst: max ‖Πx − mean‖ / ‖x − mean‖ for row sums one, and
        max ‖Πx‖ / ‖x‖ over x of sum zero for column sums one only; NaN for neither.
    loss_weights : ndarray, shape (Q,), or None
        How the agents' losses count in what DGD, CTA and ATC minimise for small steps: π, πᵀΠ = πᵀ, averaged over the
        rounds of a period at which it can be taken. None unless Π has row sums one and its eigenvalue 1 once.
    """

    schedule: Schedule
    components: list[list[int]]
    connected_rounds: int
    product: Float[np.ndarray, "Q Q"]
    eigenvalues: np.ndarray
    contraction: float
    loss_weights: Float[np.ndarray, " Q"] | None

    @classmethod
    def of(cls, schedule: Schedule, /) -> ScheduleReport:
        """Check a `schedule`."""
        matrices = schedule.matrices
        rounds = np.bincount(schedule.order, minlength=len(matrices))
        each = [len(spectrum.components(W)) == 1 for W in matrices]
        product = reduce(lambda so_far, k: matrices[k] @ so_far, schedule.order, np.eye(schedule.agents))
        values = spectrum.spectrum(product).eigenvalues
        return cls(
            schedule=schedule,
            components=spectrum.components(schedule.union),
            connected_rounds=int(rounds[each].sum()),
            product=product,
            eigenvalues=values,
            contraction=_contraction(product),
            loss_weights=_loss_weights(schedule, product, values),
        )

    @property
    def size(self) -> int:
        """Q, the number of agents."""
        return self.schedule.agents

    @cached_property
    def row_stochastic(self) -> bool:
        """All row sums are one in every round."""
        return self._fault_of_sums("row") is None

    @cached_property
    def column_stochastic(self) -> bool:
        """All column sums are one in every round."""
        return self._fault_of_sums("column") is None

    @property
    def nonnegative(self) -> bool:
        """No weight is below −`TOLERANCE` in any round."""
        return bool(self.schedule.matrices.min() >= -TOLERANCE)

    @property
    def connected(self) -> bool:
        """Every agent reaches every other over all rounds together."""
        return len(self.components) == 1

    @property
    def radius(self) -> float:
        """ρ, the largest eigenvalue modulus of Π once the eigenvalue 1 is set aside."""
        found = float(abs(spectrum.without_one(self.eigenvalues)).max(initial=0.0))
        return found if found > self.size * np.finfo(float).eps else 0.0  # else the T-th root would make much of it

    @property
    def rate(self) -> float:
        """ρ^(1/T), the modulus that a single matrix as fast would have."""
        return self.radius ** (1 / self.schedule.period)

    @property
    def agree_on(self) -> str:
        """As for a `MixingReport`."""
        return agreement(self.row_stochastic, self.column_stochastic, self._converges and self.connected)

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Whether the schedule works for "DGD", "CTA", "ATC" and "push-sum", why (not), and the remedy."""
        return {a: judged(a, self._fault(a), list(self._doubts(a))) for a in ALGORITHMS}

    def to_dict(self) -> dict[str, Any]:
        """Everything in numbers, texts and lists that JSON has; what is not known or not finite is None."""
        names = "size row_stochastic column_stochastic nonnegative connected components connected_rounds radius rate"
        names += " contraction agree_on loss_weights eigenvalues"
        return as_plain(
            {name: getattr(self, name) for name in names.split()}
            | {"rounds": self.schedule.period, "periodic": self.schedule.periodic}
            | {"verdicts": self.verdicts}
        )

    def plot(self) -> list[Axes]:
        """The eigenvalues of Π in the unit disc, and the graph of the rounds' mean weights; returns both axes."""
        from ntkp2p.topology import plots

        matrices, order = self.schedule.matrices, self.schedule.order
        return plots.mixing(np.mean([matrices[k] for k in order], axis=0), self.eigenvalues)

    def _used(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first round that mixes with each matrix, and the matrix."""
        for index, first in zip(*np.unique(self.schedule.order, return_index=True), strict=True):
            yield int(first), self.schedule.matrices[index]

    def _fault_of_sums(self, line: str) -> tuple[str, str] | None:
        for first, W in sorted(self._used(), key=lambda found: found[0]):
            if fault := sums_fault(W, "row" if line == "row" else "column"):
                return f"in round {first}, {fault[0]}", fault[1]
        return None

    def _fault(self, algorithm: str) -> tuple[str, str] | None:
        needed = needed_sums(algorithm)
        if fault := self._fault_of_sums(needed) or connection_fault(self.schedule.union):
            return fault
        if self.radius > 1 + EIGENVALUE_TOLERANCE:
            return (
                f"a period makes some disagreement {self.radius:.6g} times as large",
                "metropolis(graph) in each round",
            )
        if algorithm == "push-sum" and (fault := self._fault_of_shares()):
            return fault
        if algorithm != "push-sum" and self.loss_weights is not None and self.loss_weights.min() < -TOLERANCE:
            agent = int(self.loss_weights.argmin())
            low = self.loss_weights[agent]
            return (
                f"agent {agent}'s loss has the weight {low:.4g} < 0 in what they minimise",
                "metropolis(graph) in each round",
            )
        if not self._leaves:
            return None
        if not self.nonnegative:
            return (
                "a period leaves some disagreement as large as it was, and with weights below 0 the gradients may "
                "leave it or make it grow, at any step size",
                "metropolis(graph) in each round",
            )
        if algorithm == "DGD" and self._grows:
            return (
                "a period leaves some disagreement as large as it was, and the gradients at the models before mixing "
                "make it grow, at small steps already",
                "schedules.periodic(lazy(W) for W in matrices), or ATC or CTA",
            )
        return None

    @cached_property
    def _converges(self) -> bool:
        """Whether Π^k tends to a matrix of rank one: of nonnegative weights its links say so, however slow it is."""
        if self.nonnegative and (self.row_stochastic or self.column_stochastic):
            return spectrum.forgets(self.product if self.row_stochastic else self.product.T)
        return self.radius < 1 - EIGENVALUE_TOLERANCE

    @property
    def _leaves(self) -> bool:
        """Whether a period, one of endlessly many, leaves some disagreement as large as it was."""
        return self.schedule.periodic and not self._converges

    @cached_property
    def _grows(self) -> bool:
        """Whether small steps of DGD on the plainest losses, x²/2 of every agent, make it grow.

        The modulus of the eigenvalues of Π does not tell: the gradients of one round may undo what those of another do.
        """
        identity = np.eye(self.size)
        rounds = [W - SMALL * identity for W in self.schedule.matrices]
        period = reduce(lambda so_far, k: rounds[k] @ so_far, self.schedule.order, identity)
        return float(abs(np.linalg.eigvals(period)).max()) > 1 + EIGENVALUE_TOLERANCE

    def _fault_of_shares(self) -> tuple[str, str] | None:
        """What lets push-sum's weights w vanish."""
        if self.row_stochastic:
            return None
        for first, W in self._used():
            if W.min() < -TOLERANCE:
                return (
                    f"in round {first}, weights below 0 let push-sum's own weights w pass through 0",
                    "push_weights(graph) in each round",
                )
            if fault := silence_fault(W):
                return f"in round {first} {fault[0]}", fault[1]
        return None

    def _doubts(self, algorithm: str) -> Iterator[tuple[str, str]]:
        if algorithm != "push-sum":
            yield from bias(self.loss_weights, self.size)
        if not self.schedule.periodic and self.contraction >= 1 - EIGENVALUE_TOLERANCE:
            yield (
                "too short: after its rounds some disagreement is as large as before",
                "more rounds, or schedules.periodic(matrices)",
            )
        elif self._leaves:
            effect = (
                "the gradients may damp it or make it grow" if algorithm == "DGD" else "only the gradients can damp it"
            )
            yield (
                f"a period leaves some disagreement as large as it was, and {effect}",
                "schedules.periodic(lazy(W) for W in matrices)",
            )
        else:
            yield from slowness(self.radius, self.size, rounds=self.schedule.period)

    @property
    def title(self) -> str:
        """What is reported on."""
        kind = "Periodic" if self.schedule.periodic else "Finite"
        return f"{kind} mixing, {self.schedule.period} rounds of {self.size} × {self.size}"

    @property
    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """The facts and their values in words."""
        rows, columns = (self._fault_of_sums(line) for line in ("row", "column"))
        apart = connection_fault(self.schedule.union)
        found = [
            ("row sums are 1", f"no, {rows[0]}" if rows else "yes"),
            ("column sums are 1", f"no, {columns[0]}" if columns else "yes"),
            ("nonnegative", "yes" if self.nonnegative else f"no, down to {self.schedule.matrices.min():.6g}"),
            ("jointly connected", f"no, {apart[0].partition(', so')[0]}" if apart else "yes"),
            ("connected rounds", f"{self.connected_rounds} of {self.schedule.period}"),
            ("contraction", f"{self.contraction:.6g} at worst over the {self.schedule.period} rounds"),
            ("spectral radius", f"{self.radius:.6g} of the product, 1 set aside"),
            ("rate", f"{self.rate:.6g} a round"),
            ("agents agree on", self.agree_on),
        ]
        weights = self.loss_weights
        if weights is not None and np.ptp(weights) > TOLERANCE:
            found.append(("losses' weights", f"{weights.min():.6g} to {weights.max():.6g}"))
        return {"": found}


def _contraction(product: np.ndarray) -> float:
    size = len(product)
    centred = np.eye(size) - 1 / size
    rows, columns = (float(abs(product.sum(axis=axis) - 1).max()) <= TOLERANCE * size for axis in (1, 0))
    if not (rows or columns):
        return float("nan")
    return float(np.linalg.norm(centred @ product if rows else product @ centred, 2))


def _loss_weights(schedule: Schedule, product: np.ndarray, values: np.ndarray) -> Float[np.ndarray, " Q"] | None:
    """The mean of πᵀ W_{T−1} … W_k over k: the gradients of round k act on what the rounds after it do to them."""
    repeated = abs(spectrum.without_one(values) - 1).min(initial=np.inf) <= EIGENVALUE_TOLERANCE
    if repeated or abs(product.sum(axis=1) - 1).max() > TOLERANCE * len(product):
        return None
    if (left := spectrum.perron_left(product)) is None:
        return None
    weights = [left]
    for index in schedule.order[:0:-1]:
        weights.append(weights[-1] @ schedule.matrices[index])
    return np.mean(weights, axis=0)
