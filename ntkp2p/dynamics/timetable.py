"""Which mixing matrix, and which agents' steps, each round has; and how long a round is in flow time."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from ntkp2p.algorithms import Algorithm
from ntkp2p.algorithms.exogenous import repetition
from ntkp2p.base.arrays import namespace
from ntkp2p.topology.mixing import RunMixing
from ntkp2p.topology.schedules import periodic


class Timetable(NamedTuple):
    """What a system whose rounds differ has in which of them.

    Attributes
    ----------
    order
        Which of the stack `parameters["mixing"]` the rounds 0, …, T − 1 have, shape (T,); the leaves
        `parameters["exogenous"]` have a row for each of these. Empty if all rounds are alike.
    begin
        From which round on it repeats itself.
    periodic
        Whether it does: round T is like round `begin`. Otherwise it ends there.
    """

    order: Any
    begin: Any = 0
    periodic: Any = True

    def place(self, k: Any, /) -> Any:
        """The one of the rounds 0, …, T − 1 that round `k` is like."""
        xp = namespace(k, self.begin)
        period = xp.maximum(1, len(self.order) - self.begin)
        return xp.where(k < self.begin, k, self.begin + (k - self.begin) % period)


#: Of a system whose rounds are all alike.
CONSTANT = Timetable(np.zeros(0, int))


def timetable_of(algorithm: Algorithm, mixing: RunMixing, most: int | None) -> tuple[Any, Timetable, list[np.ndarray]]:
    """The distinct matrices, or the only one; which of them each round has; and the exogenous leaves before each.

    Of events, what each of them does; of clocks, what the next event may be.
    """
    if mixing.asynchronous:
        steps, end = mixing.of_rounds(most)
        return steps, CONSTANT if end is None else Timetable(np.arange(end), end, False), []
    if mixing.matrix is not None:
        mixing = periodic([mixing.matrix])
    begin, length, exogenous = repetition(algorithm, mixing.matrices, mixing.order, mixing.periodic, most=most)
    if (begin, length) == (0, 1):
        return mixing.matrices[mixing.order[0]], CONSTANT, [np.asarray(leaf[0]) for leaf in exogenous]
    rounds = np.arange(len(exogenous[0]) if exogenous else mixing.period)
    # Of mixing that ends, the last row is of the state after all rounds.
    order = mixing.order[rounds % mixing.period if mixing.periodic else np.minimum(rounds, mixing.period - 1)]
    return mixing.matrices, Timetable(order, begin, length > 0), exogenous


def at_round(parameters: PyTree, timetable: Timetable, k: Any) -> PyTree:
    """The parameters in round k: its mixing matrix and exogenous leaves, where rounds differ."""
    if not len(timetable.order):
        return parameters
    at = timetable.place(k)
    which = namespace(at, timetable.order).asarray(timetable.order)[at]
    return parameters | {
        "mixing": jax.tree.map(lambda part: part[which], parameters["mixing"]),
        "exogenous": [leaf[at] for leaf in parameters["exogenous"]],
    }
