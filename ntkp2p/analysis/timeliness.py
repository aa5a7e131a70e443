"""Is what agents on their own clocks work with recent enough? Measured lateness beside the delays that a run bears.

The delays that linear models bear are those of synchronous rounds. An asynchronous run is set beside the rounds that
are nearest to it: its own algorithm's, in which every agent makes one update, over what the events mix in T, one mean
interval between an agent's updates,

    W = exp(T G),    G[q, r] = rate at which r reaches q × what q takes of it,    G 1 = 0.

Lateness is counted in such rounds. Messages: S[i, j], the updates of agent i that agent j does not reflect yet.
Gradients of local SGD: a computation of one interval is the round itself; what is late is what it, and waiting for
`delay` further updates, takes beyond that, in units of T. Other algorithms take the gradient when they apply it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg
from jaxtyping import Float

from ntkp2p.algorithms import Algorithm, Delayed, LocalSGD
from ntkp2p.analysis.delay_margins import AUGMENTED, DELAYS, Margin
from ntkp2p.asynchrony import Events, Kind, staleness
from ntkp2p.asynchrony.events import AVERAGES
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.reports import Report, Rows, Verdict
from ntkp2p.dynamics.spectrum import spectrum, stability_tolerance
from ntkp2p.dynamics.system import linear_system
from ntkp2p.kernels import Features
from ntkp2p.runs.prediction import features_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ntkp2p.runs.experiment import Experiment

#: The share of all lateness that is called usual.
USUAL = 0.95


@dataclass(frozen=True)
class Lateness:
    """How late something is in a run, in rounds, and how late it may be.

    Attributes
    ----------
    mean, usual, largest
        As measured: on average, in 95 % of all cases at most, and at most.
    margin
        Of the synchronous rounds.
    """

    mean: float
    usual: float
    largest: float
    margin: Margin

    @property
    def inside(self) -> bool | None:
        """Whether all of it stays inside of the margin; None if only the mean does."""
        if self.largest <= self.margin.rounds:
            return True
        return None if self.mean <= self.margin.rounds else False


@dataclass(frozen=True, eq=False, repr=False)
class Timeliness(Report):
    """What `timeliness` found out about a run; print it for a table and the verdicts.

    Attributes
    ----------
    experiment
        The run, with its events.
    interval
        T, the mean wall-clock time between two updates of an agent.
    mixing
        W of the synchronous rounds beside it, shape (Q, Q).
    lateness
        Of "messages", and for local SGD of "gradients".
    """

    experiment: Experiment
    interval: float
    mixing: Float[np.ndarray, "Q Q"]
    lateness: Mapping[str, Lateness]

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Measured lateness beside the delays that are stable, into the axes `ax` or new ones; returns them."""
        from ntkp2p.analysis import plots

        return plots.timeliness(self, ax=ax)

    @property
    def title(self) -> str:
        run = self.experiment
        return f"Timeliness of {run.algorithm!r}: {run.agents} agents, {run.rounds} events"

    @property
    def sections(self) -> Mapping[str, Rows]:
        rows = [("mean interval between an agent's updates", f"{self.interval:.4g} of wall-clock time")]
        for late, found in self.lateness.items():
            measured = f"mean {found.mean:.3g}, 95 % at most {found.usual:.3g}, largest {found.largest:.3g} updates"
            rows += [(f"{late}, measured", measured), (f"{late}, delay that is stable", str(found.margin))]
        return {"Lateness, in rounds of one update of every agent": rows}

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        return {late: _verdict(late, found) for late, found in self.lateness.items()}


def _verdict(late: str, found: Lateness) -> Verdict:
    rounds = found.margin.rounds
    margin = f"{'' if found.margin.exact else 'at least '}{rounds} rounds"
    remedy = "a smaller step_size"
    if rounds < 0:
        return Verdict(late, "unstable", "synchronous rounds with this step size are, without any delay", remedy)
    if found.inside:
        return Verdict(late, "stable", f"always inside the margin of {margin}")
    if found.inside is None or not found.margin.exact:
        reason = f"on average {found.mean:.3g}, at times {found.largest:.3g}, and the margin is {margin}"
        return Verdict(late, "not known", reason, "" if found.inside is None else remedy)
    more = remedy if late == "gradients" else "a faster gossip clock"
    return Verdict(late, "unstable", f"on average {found.mean:.3g}, beyond the margin of {margin}", more)


@in_float64
def timeliness(experiment: Experiment, /, *, features: Features | None = None) -> Timeliness:
    """Whether what agents on their own clocks work with is recent enough.

    Parameters
    ----------
    experiment
        A run over `AsynchronousGossip`, of which the events that its training draws are taken, or over `Events`.
    features
        As for `ntkp2p.predict`.

    Returns
    -------
    report
        With measured lateness beside the delay margins, which are looked for as far as the largest lateness goes. They
        are of one delay of all, in rounds of all: lateness that stays inside is evidence, and not a proof. `stability`
        of memoryless clocks is exact.

    Raises
    ------
    ValueError
        If agents are not asynchronous, the loss is not squared error, or no agent applies an update.

    Examples
    --------
    Who computes every unit of time, and talks every 0.3 of it, is never more than one update ahead of what is
    known of it:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((2, 1)), targets=np.array([[0.0], [3.0]]))
    >>> computes, talks = p2p.clocks.Deterministic(1.0), p2p.clocks.Deterministic(0.3)
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(2),
    ...     mixing=p2p.AsynchronousGossip(agents=2, update=computes, gossip=talks),
    ...     algorithm=p2p.LocalSGD(step_size=0.05),
    ...     rounds=60,
    ... )
    >>> lateness = p2p.timeliness(experiment).lateness["messages"]
    >>> lateness.largest, lateness.inside
    (1.0, True)
    """
    if not experiment.asynchronous:
        raise InputError("timeliness is defined for asynchronous agents: see stability(experiment).margins")
    if experiment.loss != "squared":
        raise InputError(f"under {experiment.loss} the rounds are not linear: ask for timeliness with squared error")
    run = experiment.sampled()
    drawn: Any = run.topology
    events: Events = drawn.until(int(run.rounds))
    updates, delay = events.updates, getattr(run.algorithm, "delay", 0)
    if updates.max() <= delay:
        raise InputError(f"no agent applies an update in {run.rounds} events: take more rounds")
    features = features_of(run, features)
    interval = float(events.time[-1] * events.agents / updates.sum())
    W = scipy.linalg.expm(interval * mixing_rates(events))
    counted, measured = staleness(events), {}
    if isinstance(run.algorithm, LocalSGD):
        beyond = np.maximum(_ages(events, delay) / interval - 1, 0)
        measured["gradients"] = (float(beyond.mean()), float(np.quantile(beyond, USUAL)), float(beyond.max()))
    measured["messages"] = (counted.mean, float(counted.quantile(USUAL)), float(counted.largest))
    lateness = {}
    for late, (mean, usual, largest) in measured.items():
        margin = _margin(run, features, W, late, most=math.ceil(largest))
        lateness[late] = Lateness(mean, usual, largest, margin)
    return Timeliness(run, interval, W, lateness)


def _margin(run: Experiment, features: Features, W: np.ndarray, late: str, most: int) -> Margin:
    """The largest delay up to which the rounds are stable for all; it is not looked for beyond what is needed."""
    unknown, most = float("nan"), min(most, DELAYS)
    for delay in range(most + 1):
        system = linear_system(_delayed(run.algorithm, late, delay), W, features, run.data)
        if delay and system.size > AUGMENTED:
            return Margin(delay - 1, unknown, unknown, exact=False)
        extremal = spectrum(system, dense=AUGMENTED)
        if extremal.radius > 1 + stability_tolerance(system, extremal):
            return Margin(delay - 1, unknown, unknown, exact=True)
    return Margin(most, unknown, unknown, exact=False)


def _delayed(algorithm: Algorithm, late: str, delay: int) -> Algorithm:
    """The same with a delay of all gradients, or of all messages."""
    if late == "gradients":
        return replace(algorithm, delay=delay)
    undelayed = replace(algorithm, delay=0) if isinstance(algorithm, LocalSGD) else algorithm
    return Delayed(undelayed, messages=delay) if delay else undelayed


def mixing_rates(events: Events, /) -> Float[np.ndarray, "n n"]:
    """G, with which mixing by itself is dx/dt = G x on average: what agents hear of each other per wall-clock time."""
    heard = np.isin(events.kind, AVERAGES)
    agent, peer = events.agent[heard], events.peer[heard]
    back = events.kind[heard] == Kind.EXCHANGE
    rates = np.zeros((events.agents, events.agents))
    np.add.at(rates, (agent, peer), 1.0)
    np.add.at(rates, (peer[back], agent[back]), 1.0)
    rates *= np.broadcast_to(events.weight, rates.shape) / events.time[-1]
    return rates - np.diag(rates.sum(axis=1))


def _ages(events: Events, delay: int) -> Float[np.ndarray, " updates"]:
    """The wall-clock age of the gradients of every update when it is applied, so many updates of its agent later."""
    at = events.time[events.kind == Kind.UPDATE]
    agent, ages, _ = events.ages()
    late = []
    for q in range(events.agents):
        own = np.flatnonzero(agent == q)
        applied, made = own[delay:], own[: max(0, len(own) - delay)]
        late.append(ages[made] + at[applied] - at[made])
    return np.concatenate(late)
