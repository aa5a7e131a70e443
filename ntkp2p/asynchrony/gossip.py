"""Asynchronous gossip: the times of computations and messages, the receivers, and the fate of messages.

Examples
--------
>>> import ntkp2p as p2p
>>> each, talk = p2p.clocks.Exponential(1.0), p2p.clocks.Exponential(2.0)
>>> gossip = p2p.AsynchronousGossip(agents=5, update=each, gossip=talk)
>>> gossip
AsynchronousGossip(5 agents, push, 1 updates and 2 opportunities each per time)
>>> gossip.simulate(events=1000)
Events(1000 of 5 agents until 70.46)
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import scipy.sparse
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ntkp2p.algorithms import Algorithm
from ntkp2p.asynchrony.clocks import Clock, Deterministic, Trace
from ntkp2p.asynchrony.events import Events, Kind, MeanStep, must_suit_clocks
from ntkp2p.asynchrony.simulation import Simulation, streams
from ntkp2p.base.checks import LARGEST_SEED, is_real, lookup, shortened, whole
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.reports import html_table
from ntkp2p.topology.matrix import square_matrix
from ntkp2p.topology.mixing import RunMixing
from ntkp2p.topology.spectrum import TOLERANCE
from ntkp2p.topology.weights import links_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMES = {name: name for name in ("push", "pull", "push-pull", "opportunistic")}
BEYOND = {name: name for name in ("wait", "drop")}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AsynchronousGossip(RunMixing):
    """Asynchronous agents, each with an update clock and a gossip clock.

    Each agent has two independent processes [1]_. A computation starts from the agent's current model and takes one
    interval of the update clock; its update is then added to the current model, and the next computation starts. At
    each tick of the gossip clock the agent may communicate.

    Attributes
    ----------
    agents
        n ≥ 2.
    update, gossip
        A `Clock` for all agents, or a sequence with one clock per agent, for instance for stragglers.
    graph
        A networkx graph, agents in node order: over an edge u → v, u sends to v. The receiver is a uniformly random
        neighbour. None: the complete graph.
    scheme
        The action at a tick of the gossip clock.

        ``"push"``: it sends its model, and the receiver averages with it: randomised gossip [1]_.
        ``"pull"``: it requests a model, and averages with it. The request takes no time.
        ``"push-pull"``: both send, and both average. The graph must be undirected.
        ``"opportunistic"``: as push, but only an agent with one of the freshest models transmits, one that reflects
        the most recent update of any agent. The others stay silent. This is our reading of opportunistic schemes such
        as ASUMAN [2]_.
    weight
        The weight of a received model, above 0 and at most 1. Or a matrix of shape (n, n) whose rows sum to one: agent
        j gives the weight W[j, i] to a model from agent i.
    transmission
        The duration of a message: a number, or a `Clock`. The message contains the model at the time of sending.
    absences
        Triples (agent, leaves, returns). In between, the agent neither computes nor sends nor receives. Its current
        computation is lost and restarts on return; messages to it are lost. An agent that never comes back returns at
        infinity.
    bound
        A bound on the staleness, 1 or more: S[i, j] ≤ bound at all times, for all agents i and j that are present. An
        agent that returns may exceed the bound; the others then make no update until it has received enough. None: no
        bound.
    beyond
        What happens to an update that would violate the bound. ``"wait"``: it is applied once the others have received
        enough, and only then the next computation starts. ``"drop"``: it is dropped.
    cap
        (messages, window): in each window of wall-clock time, 0 … window, window … 2 window, …, a receiver accepts at
        most this many messages [3]_. The others are lost.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    One agent computes every 2 units of time and the other every 3; neither communicates before 100:

    >>> import ntkp2p as p2p
    >>> computes = p2p.clocks.Deterministic(2.0), p2p.clocks.Deterministic(3.0)
    >>> agents = p2p.AsynchronousGossip(agents=2, update=computes, gossip=p2p.clocks.Deterministic(100.0))
    >>> agents.simulate(duration=7.0).time.tolist()
    [2.0, 3.0, 4.0, 6.0, 6.0]

    References
    ----------
    .. [1] Mitra and Ulukus, "Scale-robust timely asynchronous decentralized learning", arXiv:2404.19749.
    .. [2] Mitra and Ulukus, "ASUMAN: age sense updating multiple access in networks", Allerton Conference 2022.
    .. [3] "DRACO: decentralized asynchronous federated learning over row-stochastic wireless networks",
       arXiv:2406.13533.
    """

    agents: Any
    update: Any
    gossip: Any
    graph: Any = None
    scheme: str = "push"
    weight: Any = 0.5
    transmission: Any = 0.0
    absences: Any = ()
    bound: Any = None
    beyond: str = "wait"
    cap: Any = None

    def __post_init__(self):
        whole(self.agents, "agents", least=2)
        lookup(SCHEMES, self.scheme, "scheme")
        lookup(BEYOND, self.beyond, "beyond")
        if self.bound is not None:
            whole(self.bound, "bound", least=1)
        kept = {
            "update": _clocks("update", self.update, self.agents),
            "gossip": _clocks("gossip", self.gossip, self.agents),
            "weight": _weight(self.weight, self.agents),
            "absences": _absences(self.absences, self.agents),
            "cap": _cap(self.cap),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)
        _transmission(self.transmission)
        self._check_links()

    # --- what there is ---

    @property
    def update_clocks(self) -> tuple[Clock, ...]:
        """One for each agent."""
        return (self.update,) * self.agents if isinstance(self.update, Clock) else self.update

    @property
    def gossip_clocks(self) -> tuple[Clock, ...]:
        """One for each agent."""
        return (self.gossip,) * self.agents if isinstance(self.gossip, Clock) else self.gossip

    @property
    def transmission_clock(self) -> Clock | None:
        """How long messages take; None if they arrive at once."""
        return _transmission(self.transmission)

    @property
    def update_rates(self) -> Float[np.ndarray, " n"]:
        """Computations of each agent that end per unit of time, on average."""
        return np.array([1 / clock.mean for clock in self.update_clocks])

    @property
    def gossip_rates(self) -> Float[np.ndarray, " n"]:
        """Opportunities of each agent per unit of time, on average."""
        return np.array([1 / clock.mean for clock in self.gossip_clocks])

    def neighbours(self) -> list[np.ndarray] | None:
        """The possible receivers of each agent; None for the complete graph."""
        if self.graph is None:
            return None
        links = links_of(self.graph, directed=True).tocsr()
        links = links.T.tocsr() if self.scheme == "pull" else links
        links.sort_indices()
        return np.split(links.indices, links.indptr[1:-1])

    # --- what happens ---

    def simulate(self, *, events: Any = None, duration: Any = None, seed: int = 0) -> Events:
        """Simulate the events, up to a number of events or a duration.

        Needs 21 bytes an event, 20 KiB an agent and, with a bound, 8 n² bytes; about 3 µs an event, 7 with a bound.

        Parameters
        ----------
        events
            How many events, 1 or more; or
        duration
            until when, in the clocks' unit of time.
        seed
            Of all draws. Each agent's clocks, choices and transmissions have streams of their own, so that they do not
            depend on the other agents.

        Returns
        -------
        Events
            The same for the same seed.

        Raises
        ------
        TypeError, ValueError
            If neither or both are given; if so many events do not happen, or none in this time; or if messages take
            longer than the duration.
        """
        if (events is None) == (duration is None):
            raise InputTypeError("draw takes either events=1000 or duration=100.0, and exactly one of them")
        whole(seed, "seed", least=0, most=LARGEST_SEED)
        if events is not None:
            whole(events, "events", least=1)
        if duration is not None:
            _positive("duration", duration)
            self._check_time(duration)
        simulation = Simulation(self, seed)
        simulation.run(*(math.inf if end is None else end for end in (events, duration)))
        found = len(simulation.time)
        if not found:
            raise InputError(
                f"nothing happens {'at all' if duration is None else f'until {duration:g}'}: agents compute for "
                f"{1 / self.update_rates.max():.4g} on average, or longer; draw for longer, or give faster clocks"
            )
        if events is not None and found < events:
            raise InputError(f"there are {found} events and no more, so that {events} are not: ask for events={found}")
        return simulation.events(events, None if duration is None else float(duration), self.weight)

    def synchronous_times(self, rounds: int, seed: int = 0) -> Float[np.ndarray, " times"]:
        """When synchronous rounds with the same clocks would end.

        A round waits for the slowest agent's computation, and then for the slowest of n messages, one of each agent.
        Absences do not enter, nor do gossip clocks.

        Parameters
        ----------
        rounds
            R ≥ 0.
        seed
            As for `draw`: the agents' computations take as long as there.

        Returns
        -------
        ndarray, shape (R + 1,)
            Wall-clock time of the rounds' ends, from 0.

        Raises
        ------
        TypeError, ValueError
            If the rounds are no such number, or a trace ends before.
        """
        whole(rounds, "rounds", least=0)
        computing, _, _, sending = zip(*streams(seed, self.agents), strict=True)
        stages = [[clock.ticks(rng) for clock, rng in zip(self.update_clocks, computing, strict=True)]]
        if self.transmission_clock is not None:
            stages.append([self.transmission_clock.ticks(rng) for rng in sending])
        times = np.zeros(rounds + 1)
        for k in range(rounds):
            now = float(times[k])
            for stage in stages:
                now = max(tick(now) for tick in stage)
            if now == math.inf:
                raise InputError(f"an agent's trace ends in round {k}: ask for synchronous_times(rounds={k})")
            times[k + 1] = now
        return times

    # --- what a run asks ---

    asynchronous = True

    @property
    def topics(self) -> tuple[str, ...]:
        """What of it is cited."""
        return ("clocks", self.scheme, *(() if self.cap is None else ("cap",)))

    def sample(self, rounds: int, seed: int, /) -> Events:
        """So many events."""
        return self.simulate(events=rounds, seed=seed)

    def must_suit(self, algorithm: Algorithm, /, *, agents: int, rounds: int) -> None:
        """Refuse other agents, and an algorithm that needs all of them at once."""
        must_suit_clocks(algorithm, self.agents, agents)

    def has_flow(self, algorithm: Algorithm, /) -> bool:
        """Yes: of the mean over the clocks."""
        return True

    def length(self, step_size: float, /) -> float:
        """The mean wall-clock time between two events."""
        return float(1 / self.kinds_of_events()[1].sum())

    def of_rounds(self, most: int | None = None, /) -> tuple[MeanStep, None]:
        """What the next event may be: the same in every round."""
        events, rates = self.kinds_of_events()
        return MeanStep(events.steps(), rates / rates.sum()), None

    def sent_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times n"]:
        """The mean of the messages that every agent has sent before some `rounds`, shape (times, n)."""
        return self._mean_until(Events.sent_until, rounds)

    def computed_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times n"]:
        """The mean of the updates that every agent has computed before some `rounds`, shape (times, n)."""
        return self._mean_until(Events.computed_until, rounds)

    def _mean_until(self, count: Callable, rounds: np.ndarray) -> np.ndarray:
        events, rates = self.kinds_of_events()
        each = np.diff(count(events, np.arange(len(events) + 1)), axis=0)
        return rounds[:, None] * (rates / rates.sum() @ each)

    def draw_links(self, ax: "Axes", /) -> None:
        """Draw the links from sender to receiver into `ax`."""
        from ntkp2p.asynchrony import plots

        plots.senders(nx.complete_graph(self.agents) if self.graph is None else self.graph, ax=ax)

    # --- what can be said without a draw ---

    @property
    def why_sampled(self) -> str:
        """What stands in the way of a closed form of the expectation over the clocks; empty if nothing does."""
        reasons = {
            "its update clocks are not memoryless": not all(clock.memoryless for clock in self.update_clocks),
            "its gossip clocks are not memoryless": not all(clock.memoryless for clock in self.gossip_clocks),
            "only agents with the freshest model transmit": self.scheme == "opportunistic",
            "messages take time": self.transmission_clock is not None,
            "agents are absent": bool(self.absences),
            "staleness is bounded": self.bound is not None,
            "messages beyond a cap are lost": self.cap is not None,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def kinds_of_events(self) -> tuple[Events, Float[np.ndarray, " K"]]:
        """Every event that can happen, once, and its rate, where all clocks are memoryless.

        An expectation then follows ds/dt = Σ_e rate_e (M_e − I) s, with M_e what event e does.

        Returns
        -------
        events, rates
            One update of each agent; one message for each ordered pair in which one talks to the other, and for
            ``"push-pull"`` one exchange for each pair, at the sum of their rates. The times are 0. Rates have shape
            (K,), in events per unit of time.

        Raises
        ------
        ValueError
            If the clocks are not memoryless, or something else stands in the way: see `why_sampled`.
        """
        if self.why_sampled:
            raise InputError(
                f"the expectation over clocks is not closed, since {self.why_sampled}: predict single draws, "
                "experiment.sampled(0), or in a file seed = 0 in [mixing]"
            )
        n = self.agents
        turns = self._turns()
        rates = (turns * (self.gossip_rates / np.maximum(turns.sum(axis=1), 1))[:, None]).astype(np.float64)
        kind = Kind.MESSAGE
        if self.scheme == "push-pull":
            rates, kind = np.triu(rates + rates.T), Kind.EXCHANGE
        active, other = np.nonzero(rates)
        agent, peer = (active, other) if self.scheme == "pull" else (other, active)
        every, none = np.arange(n), np.full(n, -1)
        events = Events(
            agents=n,
            time=np.zeros(n + len(agent)),
            kind=np.repeat(np.array([Kind.UPDATE, kind], np.int8), [n, len(agent)]),
            agent=np.concatenate([every, agent]).astype(np.int32),
            peer=np.concatenate([none, peer]).astype(np.int32),
            relay=np.full(n + len(agent), -1, np.int32),
            relays=0,
            weight=self.weight,
            duration=0.0,
            silent=np.zeros(n, np.int64),
        )
        return events, np.concatenate([self.update_rates, rates[active, other]])

    # --- checks ---

    def _turns(self) -> np.ndarray:
        """Ones at [u, v] where agent u may turn to v."""
        if self.graph is None:
            return 1 - np.eye(self.agents, dtype=np.int8)
        links = links_of(self.graph, directed=True).toarray().astype(np.int8)
        return links.T if self.scheme == "pull" else links

    def _check_links(self) -> None:
        if self.graph is not None:
            self._check_graph(links_of(self.graph, directed=True))
        given = [clock.receivers if isinstance(clock, Trace) else None for clock in self.gossip_clocks]
        if np.ndim(self.weight) == 0 and all(receivers is None for receivers in given):
            return
        turns = self._turns()
        for agent, receivers in enumerate(given):
            for peer in () if receivers is None else np.unique(receivers).tolist():
                if not (0 <= peer < self.agents and turns[agent, peer]):
                    raise InputError(
                        f"the trace of agent {agent} turns to {peer}, which is none of its neighbours: "
                        "drop these ticks, or add the link to the graph"
                    )
        sends = turns.T if self.scheme == "pull" else turns
        weightless = [] if np.ndim(self.weight) == 0 else np.argwhere(sends.T * (self.weight == 0))
        if len(weightless):
            agent, peer = weightless[0]
            raise InputError(
                f"weight[{agent}, {peer}] is 0 and agent {peer} sends to agent {agent}: give it a weight, or a graph "
                "without this link"
            )

    def _check_graph(self, links: coo_array) -> None:
        names = list(self.graph)
        if len(names) != self.agents:
            raise InputError(
                f"the graph has {len(names)} nodes and there are {self.agents} agents: give it one node for each"
            )
        deaf = np.flatnonzero(links.sum(axis=0) == 0)
        if deaf.size:
            raise InputError(f"agent {deaf[0]} (node {names[deaf[0]]!r}) is never reached: add a link to it")
        if self.scheme == "push-pull" and (links != links.T).nnz:
            i, j = ((links - links.T).tocoo() > 0).nonzero()
            raise InputError(
                f"the graph has the link {names[i[0]]} → {names[j[0]]} and none back: push-pull needs links that go "
                "both ways; use graph.to_undirected(), or push"
            )
        if connected_components(links, connection="strong", return_labels=False) > 1:
            raise InputError(
                "the graph is not strongly connected, so that some agents never hear of what others learn: add links"
            )

    def _check_time(self, duration: float) -> None:
        fixed = self.transmission_clock
        if isinstance(fixed, Deterministic) and fixed.interval > duration:
            raise InputError(
                f"a message takes {fixed.interval:g}, longer than the duration {duration:g}: no message would arrive"
            )

    def facts(self) -> tuple[np.ndarray, ...]:
        """All that makes these agents what they are, as arrays."""
        clocks = [*self.update_clocks, *self.gossip_clocks, self.transmission_clock]
        words = [f"{clock!r}" for clock in clocks] + [self.scheme, self.beyond]
        words += [f"{value!r}" for value in (self.absences, self.bound, self.cap)]
        traced = [a for clock in clocks if isinstance(clock, Trace) for a in (clock.times, clock.receivers)]
        numbers = [self._turns(), self.weight, *(a for a in traced if a is not None)]
        return np.frombuffer("|".join(words).encode(), np.uint8), *(np.asarray(a, float) for a in numbers)

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Every agent's mean rates of updates and of chances to talk, into `ax` or new axes; returns them."""
        from ntkp2p.asynchrony import plots

        return plots.clocks(self, ax=ax)

    def _repr_html_(self) -> str:
        rows = [(f.name, self._in_words(f.name)) for f in fields(self)]
        return html_table(["AsynchronousGossip", ""], rows)

    def _in_words(self, name: str) -> str:
        """A field; of a sequence with one for each agent, how many and between which means."""
        value: Any = getattr(self, name)
        if name in ("update", "gossip") and not isinstance(value, Clock):
            means = [clock.mean for clock in value]
            return f"{len(value)} clocks, mean intervals {min(means):.4g} to {max(means):.4g}"
        if isinstance(value, np.ndarray):
            return f"a matrix, {len(value)} × {len(value)}"
        if name == "graph" and value is None:
            return "all of them"
        if isinstance(value, nx.Graph):
            return f"{len(value)} agents, {value.number_of_edges()} links"
        return f"{value}"

    def __repr__(self) -> str:
        rates = f"{self.update_rates.mean():.4g} updates and {self.gossip_rates.mean():.4g} opportunities each per time"
        options = [
            f"transmission {self.transmission}" if self.transmission_clock else "",
            f"{len(self.absences)} absences" if self.absences else "",
            f"staleness at most {self.bound}, else {self.beyond}" if self.bound else "",
            "at most {} messages in {:g}".format(*self.cap) if self.cap else "",
        ]
        return f"AsynchronousGossip({', '.join([f'{self.agents} agents', self.scheme, rates, *filter(None, options)])})"


def _clocks(name: str, clocks: Any, agents: int) -> Clock | tuple[Clock, ...]:
    """One clock for all, or one for each."""
    given = tuple(clocks) if isinstance(clocks, Sequence) else (clocks,)
    for clock in given:
        if not isinstance(clock, Clock):
            raise InputTypeError(
                f"{name} is a clock, or one for each agent, got {clock!r}: for instance Exponential(1.0)"
            )
        if name == "update" and isinstance(clock, Trace) and clock.receivers is not None:
            raise InputError("a trace of updates has no receivers: give it as a gossip clock, or without them")
    if isinstance(clocks, Clock):
        return clocks
    if len(given) != agents:
        raise InputError(f"{name} has {len(given)} clocks for {agents} agents: give one for each, or one for all")
    return given


def _transmission(transmission: object) -> Clock | None:
    if isinstance(transmission, Trace):
        raise InputTypeError(
            "transmission is a number or a clock that goes on, got a trace: give its mean, or Exponential"
        )
    if isinstance(transmission, Clock):
        return transmission
    if not is_real(transmission) or not 0 <= transmission < math.inf:
        raise InputError(f"transmission is a time of 0 or more, or a clock, got {transmission!r}: for instance 0.1")
    return Deterministic(transmission) if transmission else None


def _weight(weight: object, agents: int) -> float | np.ndarray:
    if np.ndim(weight) == 0 and not scipy.sparse.issparse(weight):  # pyright: ignore[reportArgumentType]
        if not is_real(weight) or not 0 < weight <= 1:
            raise InputError(f"weight is above 0 and at most 1, or a matrix, got {weight!r}: 0.5 takes the mean")
        return float(weight)
    matrix = np.array(square_matrix(weight, name="weight"))
    if len(matrix) != agents:
        raise InputError(f"weight is {len(matrix)} × {len(matrix)} and there are {agents} agents: give a row for each")
    if matrix.min() < 0:
        row, column = np.argwhere(matrix < 0)[0]
        raise InputError(f"weight[{row}, {column}] is {matrix[row, column]:g}: no weight is negative")
    wrong = np.flatnonzero(abs(matrix.sum(axis=1) - 1) > TOLERANCE)
    if wrong.size:
        raise InputError(f"weight row {wrong[0]} sums to {matrix[wrong[0]].sum():g}, not 1: divide it by its sum")
    matrix.flags.writeable = False
    return matrix


def _absences(absences: object, agents: int) -> tuple[tuple[int, float, float], ...]:
    """In the order of time for each agent."""
    if not isinstance(absences, Iterable):
        raise InputTypeError(f"absences are triples (agent, leaves, returns), got {absences!r}")
    found: dict[int, float] = {}
    kept = sorted((_absence(absence, agents) for absence in absences), key=lambda absence: absence[1])
    for agent, leaves, returns in kept:
        if leaves < found.get(agent, 0):
            raise InputError(
                f"agent {agent} leaves at {leaves:g}, and is away until {found[agent]:g} already: join them"
            )
        found[agent] = returns
    return tuple(kept)


def _absence(absence: Any, agents: int) -> tuple[int, float, float]:
    if np.shape(absence) != (3,) or not all(map(is_real, absence)):
        raise InputError(f"an absence is (agent, leaves, returns), got {absence!r}: for instance (2, 10.0, 25.0)")
    agent, leaves, returns = absence
    if agent not in range(agents):
        raise InputError(f"there is no agent {agent} to be absent: there are 0, …, {agents - 1}")
    if not 0 <= leaves < returns:
        raise InputError(
            f"an absence needs 0 <= leaves < returns, got leaves = {leaves:g} and returns = {returns:g}: "
            "returns = math.inf means never"
        )
    return int(agent), float(leaves), float(returns)


def _cap(cap: Any) -> tuple[int, float] | None:
    if cap is None:
        return None
    if np.shape(cap) != (2,):
        raise InputError(f"cap is (messages, window), got {cap!r}: for instance (3, 1.0)")
    whole(cap[0], "cap's messages", least=1)
    _positive("cap's window", cap[1])
    return int(cap[0]), float(cap[1])


def _positive(name: str, value: object) -> None:
    if not is_real(value) or not 0 < value < math.inf:
        raise InputError(f"{name} is a time above 0, got {shortened(value)}")
