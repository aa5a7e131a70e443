"""How stale agents are about one another, counted from what every model reflects; and what theory says of it.

S[i, j](t) = N_i(t) − V[j, i](t): the updates that agent i has made until t, less those of i that agent j's model
reflects [1]_. After averaging, a model reflects every update that either model did: versions V[j] merge by maximum. A
message carries the versions at the time it was sent.

References
----------
.. [1] Mitra and Ulukus, "Scale-robust timely asynchronous decentralized learning", arXiv:2404.19749.

Examples
--------
>>> import ntkp2p as p2p
>>> round(p2p.expected_staleness(agents=10, update_rate=1.0, gossip_rate=2.0), 3)
1.414
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import digamma

from ntkp2p.asynchrony.events import Events
from ntkp2p.asynchrony.versions import Count
from ntkp2p.base.checks import lookup, real, whole
from ntkp2p.base.errors import InputError

# How often a pair of agents speaks where each turns to others at rate 1, in each direction, relative to push.
_DIRECTIONS = {"push": 1, "pull": 1, "push-pull": 2}


class ByAgent(NamedTuple):
    """Means over an agent's n − 1 pairs, shape (n,) each.

    Attributes
    ----------
    about
        How stale the others are about agent i.
    known
        How stale agent j is about the others.
    """

    about: Float[np.ndarray, " n"]
    known: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, repr=False)
class Staleness:
    """The staleness of all pairs of agents over a time; `staleness` counts it.

    Attributes
    ----------
    mean_by_pair
        The time average of S[i, j], how stale agent j is about agent i; zeros on the diagonal. Shape (n, n).
    distribution
        Share of time and of the pairs i ≠ j in which S = 0, 1, 2, …, exactly; None if it was not asked for.
    times, history
        Points in time, evenly spaced, and the mean over the pairs at each; shape (T,) each.
    """

    mean_by_pair: Float[np.ndarray, "n n"]
    distribution: Float[np.ndarray, " S"] | None
    times: Float[np.ndarray, " T"]
    history: Float[np.ndarray, " T"]

    @property
    def agents(self) -> int:
        """n, the number of agents."""
        return len(self.mean_by_pair)

    @property
    def mean(self) -> float:
        """Over time and all pairs i ≠ j."""
        return float(self.mean_by_pair.sum() / (self.agents * (self.agents - 1)))

    @property
    def by_agent(self) -> ByAgent:
        """Over time, and over the pairs that an agent is in."""
        return ByAgent(*(self.mean_by_pair.sum(axis=axis) / (self.agents - 1) for axis in (1, 0)))

    @property
    def largest(self) -> int:
        """The most that any pair had; ValueError without the distribution."""
        return int(np.flatnonzero(self._shares())[-1])

    def quantile(self, share: int | float, /) -> int:
        """The least S that is not exceeded in this `share` of time and pairs; ValueError without the distribution."""
        if not 0 <= share <= 1:
            raise InputError(f"a quantile is of a share between 0 and 1, got {share}: 0.95 for 95 %")
        reached = np.cumsum(self._shares())
        # All of them are one, but for rounding.
        return int(np.searchsorted(reached, min(share, reached[-1])))

    def _shares(self) -> Float[np.ndarray, " S"]:
        if self.distribution is None:
            raise InputError("the distribution was not counted: use staleness(events)")
        return self.distribution

    def __repr__(self) -> str:
        counted = self.distribution is not None
        known = f", 95 % at most {self.quantile(0.95)}, largest {self.largest}" if counted else ""
        span = f"from {self.times[0]:.4g} to {self.times[-1]:.4g}"
        return f"Staleness({self.agents} agents {span}: mean {self.mean:.4g}{known})"


def staleness(
    events: Events, *, since: int | float = 0.0, until: int | float | None = None, distribution: bool = True
) -> Staleness:
    """Count how stale agents were about one another over a time.

    Exact: every change counts from when it happened. Who is absent stays in the count, and grows stale. O(n) per event
    and 16 n² bytes; with the distribution about seven times as long.

    Parameters
    ----------
    events
        What has happened, since all agents were equal.
    since, until
        Wall-clock times between which to average; by default all. A start after 0 leaves out the time in which
        staleness grows from nothing.
    distribution
        Whether to count how often S has each value.

    Returns
    -------
    Staleness
        Of every pair, and over time.

    Raises
    ------
    ValueError
        If there is no such time among the events.

    Examples
    --------
    Agent 0 makes updates at 1 and 2, and its message at 3 tells agent 1 of both. So S[0, 1] is 0, 1, 2 and 0
    again, for one unit of time each:

    >>> import ntkp2p as p2p
    >>> made = p2p.clocks.Trace([1.0, 2.0]), p2p.clocks.Trace([4.0])
    >>> talk = p2p.clocks.Trace([3.0]), p2p.clocks.Trace([3.5])
    >>> events = p2p.AsynchronousGossip(agents=2, update=made, gossip=talk).simulate(duration=4.0)
    >>> p2p.staleness(events).mean_by_pair
    array([[0.  , 0.75],
           [0.  , 0.  ]])
    """
    end = events.duration if until is None else float(until)
    if not 0 <= since < end <= events.duration:
        raise InputError(
            f"staleness needs 0 <= since < until <= {events.duration:g}, got since = {since:g} and until = {end:g}: "
            "draw for longer"
        )
    count = Count(events, float(since), end, distribution)
    history = count.run()
    return Staleness(count.means(), count.shares(), count.times, history)


def expected_staleness(
    agents: int,
    update_rate: int | float,
    gossip_rate: int | float,
    *,
    update_shift: int | float = 0.0,
    gossip_shift: int | float = 0.0,
    scheme: str = "push",
) -> float:
    """The mean staleness of agents that turn to one another uniformly at random: (μ/λ) H_{n−1}.

    H is the harmonic number, which grows like log n: so must λ for the staleness to stay. An update that k agents
    reflect spreads to one more at rate λ k (n − k)/(n − 1), whether they push or pull; until a given agent reflects it
    takes Σ_k 1/(λ k) = H_{n−1}/λ on average, and an agent makes μ updates in a unit of time (Little's law). So it is
    exact for Poisson gossip, whatever the update clock's intervals are.

    Parameters
    ----------
    agents
        n ≥ 2.
    update_rate, gossip_rate
        μ and λ, the rates of the clocks' exponential times.
    update_shift, gossip_shift
        The clocks' shifts, c and d. The rates are then 1/(c + 1/μ), which is exact, and 1/(d + 1/λ), which
        over-estimates the staleness: where half of the mean gossip interval is shift, by 22 % for 5 agents, 12 % for 20
        and 8 % for 100; where three quarters are, by 15 % for 20 (as simulated).
    scheme
        ``"push"``, ``"pull"``, or ``"push-pull"``, which is twice as fast.

    Returns
    -------
    float
        E[S], in updates.

    Raises
    ------
    ValueError
        If there are fewer than two agents, a rate is not above 0 or a shift below, or the scheme is another one.

    Examples
    --------
    Of four agents whose clocks are as fast as one another, H₃ = 1 + 1/2 + 1/3:

    >>> import ntkp2p as p2p
    >>> round(p2p.expected_staleness(agents=4, update_rate=1.0, gossip_rate=1.0), 6)
    1.833333
    """
    for name, value in {"update_rate": update_rate, "gossip_rate": gossip_rate}.items():
        real(value, name, above=0)
    for name, value in {"update_shift": update_shift, "gossip_shift": gossip_shift}.items():
        real(value, name, least=0)
    directions = lookup(_DIRECTIONS, scheme, "scheme")
    return _harmonic(agents) * (gossip_shift + 1 / gossip_rate) / (update_shift + 1 / update_rate) / directions


def gossip_rate_for(staleness: int | float, agents: int, update_rate: int | float) -> float:
    """The gossip rate λ = μ H_{n−1} / S of each agent that holds the mean staleness at S, for Poisson clocks and push.

    Parameters
    ----------
    staleness
        S > 0.
    agents, update_rate
        n and μ, as for `expected_staleness`.

    Returns
    -------
    float
        λ, per unit of the update rate's time.

    Raises
    ------
    ValueError
        As `expected_staleness`; or if the staleness is not above 0.

    Examples
    --------
    For a mean staleness of 1/2 among four agents, twice H₃ = 11/6:

    >>> import ntkp2p as p2p
    >>> round(p2p.gossip_rate_for(0.5, agents=4, update_rate=1.0), 6)
    3.666667
    """
    real(staleness, "staleness", above=0)
    # S = (μ/λ) H is λ = (μ/S) H.
    return expected_staleness(agents, update_rate, staleness)


def _harmonic(agents: int) -> float:
    """H_{n−1}."""
    return float(digamma(whole(agents, "agents", least=2)) + np.euler_gamma)
