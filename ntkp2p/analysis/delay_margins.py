"""How late gradients, or messages, may be: the delay margins of a run over one mixing matrix."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntkp2p.algorithms import Delayed
from ntkp2p.algorithms.delayed import LATE
from ntkp2p.dynamics.delay import delay_margin, delay_margin_in_rounds, delay_matrices, sufficient_delay
from ntkp2p.dynamics.minimality import PBH_SIZE
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.kernels import Features

if TYPE_CHECKING:
    from ntkp2p.runs.experiment import Experiment

#: The largest augmented system with delay whose eigenvalues are computed.
AUGMENTED = 600
#: Up to this many states the flow's margin is computed: it sweeps over many eigenvalue problems.
SWEEP_SIZE = 64
#: Rounds of delay beyond which a margin is not followed.
DELAYS = 20


@dataclass(frozen=True)
class Margin:
    """How late gradients, or messages, may be.

    Attributes
    ----------
    rounds
        The largest delay up to which the rounds are stable for all, −1 if they are unstable without; a lower bound of
        it where it is not exact.
    flow_time
        The delay below which the flow is stable; inf if none makes it unstable, NaN where it was not computed.
    sufficient
        The textbook's bound of `flow_time`, π / (2 h): of DGD with symmetric W and late gradients, NaN for others.
    exact
        Whether the next delay is known to be unstable. It is not looked for beyond 20 rounds, nor in a system that is
        large with so much on its way: then a sufficient bound is all there is.
    """

    rounds: int
    flow_time: float
    sufficient: float
    exact: bool

    def __str__(self) -> str:
        if self.rounds < 0:
            rounds = "none: the rounds are unstable without"
        else:
            rounds = f"{self.rounds} rounds" + ("" if self.exact else " at least")
        flow = ""
        if not np.isnan(self.flow_time):
            flow = "; flow: any" if np.isinf(self.flow_time) else f"; flow: below {self.flow_time:.6g}"
        sufficient = "" if np.isnan(self.sufficient) else f"; flow, by the bound π/(2h): below {self.sufficient:.6g}"
        return rounds + flow + sufficient


def margins(experiment: Experiment, features: Features, system: LinearSystem, stable: bool, /) -> dict[str, Margin]:
    """How late "gradients" and "messages" may be, without what the algorithm asks for more than once a round.

    Parameters
    ----------
    system
        Of the experiment, over one mixing matrix.
    stable
        Whether its rounds are, without delay.
    """
    found = {}
    for late in LATE.values():
        # What has been assembled without delay can only fail for a round that calls the late verb more than once.
        with suppress(ValueError):
            found[late] = _margin(experiment, features, system, late, stable)
    return found


def _margin(experiment: Experiment, features: Features, system: LinearSystem, late: str, stable: bool) -> Margin:
    algorithm, mixing, eta = experiment.algorithm, experiment.topology.matrix, system.step_size
    matrices, unknown = None, float("nan")
    if system.size <= PBH_SIZE:
        matrices = delay_matrices(algorithm, mixing, features, experiment.data, late=late)
    if stable:
        lates = (Delayed(algorithm, **{late: delay}) for delay in range(1, DELAYS + 1))
        bounds = [delayed.sufficient_step_size(mixing, system.curvature) for delayed in lates]
        rounds = next((delay for delay, bound in enumerate(bounds) if not eta < bound), DELAYS)
        most = rounds
        if matrices:
            seen = max(1, int(np.linalg.matrix_rank(matrices[1])))
            most = max(rounds, min(DELAYS, (AUGMENTED - system.size) // seen))
            rounds = delay_margin_in_rounds(*matrices, eta, known=rounds, most=most)
        exact = rounds < most
    else:
        rounds, exact = -1, True
    flow_time = delay_margin(*matrices) if matrices and system.size <= SWEEP_SIZE else unknown
    sufficient = sufficient_delay(*matrices) if matrices else unknown
    return Margin(rounds, flow_time, sufficient, exact)
