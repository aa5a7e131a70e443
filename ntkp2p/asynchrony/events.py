"""The events of asynchronous agents, and the round of learning that each event is.

One event is one round. The state has a row for each agent and for each *relay*, a message in transit. Sending copies
the sender's model into a relay, and arrival averages with it, so a late message is mixing like any other.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float, Int

from ntkp2p.algorithms import Algorithm, LocalSGD
from ntkp2p.algorithms.event_round import Gradient, active_round, mean_round, must_be_asynchronous
from ntkp2p.base.errors import InputError
from ntkp2p.base.reports import html_table
from ntkp2p.topology.mixing import RunMixing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


class Kind(IntEnum):
    """What happens in an event; `agent`, `peer` and `relay` are fields of `Events`.

    `UPDATE`
        `agent` ends a computation, applies its update and begins the next one.
    `MESSAGE`
        `agent` averages with the model of `peer`, which is sent and arrives at once.
    `EXCHANGE`
        `agent` and `peer` average with one another at once.
    `SEND`
        `peer` sends its model to `agent`: it is in `relay` from now on.
    `ARRIVE`
        The model in `relay`, which `peer` has sent, arrives, and `agent` averages with it.
    `LOST`
        What `peer` has sent is not taken by `agent`: it is away, or has heard enough.
    `DROP`
        `agent` ends a computation, drops its result and begins the next one.
    `RETURN`
        `agent` is back and begins a computation.
    """

    UPDATE = 0
    MESSAGE = 1
    EXCHANGE = 2
    SEND = 3
    ARRIVE = 4
    LOST = 5
    DROP = 6
    RETURN = 7


#: In these an agent averages with what it hears, and in these it begins a computation.
AVERAGES = (Kind.MESSAGE, Kind.EXCHANGE, Kind.ARRIVE)
BEGINS = (Kind.UPDATE, Kind.DROP, Kind.RETURN)


class Steps(NamedTuple):
    """What each of some events does with the rows that it touches, at most two.

    Attributes
    ----------
    rows
        Which rows, shape (K, 2): agents 0, …, n − 1, relays from n on; the number of rows stands for none.
    weights
        What they take of each other: row a becomes Σ_b weights[a, b] · row b, shape (K, 2, 2).
    finished, begins
        Whether the first row's agent applies an update, and begins a computation, shape (K,).
    """

    rows: Any
    weights: Any
    finished: Any
    begins: Any

    def advance(self, algorithm: Algorithm, state: Any, gradient: Gradient, /) -> Any:
        """The state after one event, of which these are the numbers.

        Parameters
        ----------
        algorithm, state, gradient
            As for `active_round`.
        """
        return active_round(algorithm, state, self, gradient)

    @property
    def different(self) -> list[int]:
        """Events of each kind of round: the first, and the first update."""
        return [0, int(np.argmax(self.finished))]


class MeanStep(NamedTuple):
    """What the next event of memoryless clocks may be.

    Attributes
    ----------
    steps
        Each of E events.
    shares
        Their probabilities, shape (E,).
    """

    steps: Steps
    shares: Any

    def advance(self, algorithm: Algorithm, state: Any, gradient: Gradient, /) -> Any:
        """The mean of the state after one event.

        Parameters
        ----------
        algorithm, state, gradient
            As for `mean_round`.
        """
        return mean_round(algorithm, state, self.steps, self.shares, gradient)

    @property
    def different(self) -> list[int]:
        """The first round: all are alike."""
        return [0]


class Ages(NamedTuple):
    """How old the gradients were that updates applied, in the order of the updates; shape (U,) each.

    Attributes
    ----------
    agent
        Whose update.
    time
        Wall-clock time from the computation's begin to the update, a wait for others included.
    averagings
        How often the agent averaged with others meanwhile.
    """

    agent: Int[np.ndarray, " U"]
    time: Float[np.ndarray, " U"]
    averagings: Int[np.ndarray, " U"]


@dataclass(frozen=True, eq=False, repr=False)
class Events(RunMixing):
    """Events in the order of time; `AsynchronousGossip.draw` makes them.

    Attributes
    ----------
    agents
        n, how many agents there are.
    time
        Wall-clock time of each event, ascending, shape (K,).
    kind
        A `Kind` of each, shape (K,).
    agent, peer, relay
        The participants, −1 for none, shape (K,) each.
    relays
        How many messages are on their way at most.
    weight
        What an agent takes of what it hears: one number, or W[agent, peer] of a matrix of shape (n, n).
    duration
        Until when events were drawn.
    silent
        Opportunities to send that each agent has let pass, shape (n,).

    Examples
    --------
    Where messages arrive at once, an event is an update or a message:

    >>> import ntkp2p as p2p
    >>> clock = p2p.clocks.Exponential(1.0)
    >>> events = p2p.AsynchronousGossip(agents=4, update=clock, gossip=clock).simulate(events=200)
    >>> len(events), int(events.updates.sum() + events.messages.sum()), events.rows
    (200, 200, 4)
    """

    agents: int
    time: Float[np.ndarray, " K"]
    kind: Int[np.ndarray, " K"]
    agent: Int[np.ndarray, " K"]
    peer: Int[np.ndarray, " K"]
    relay: Int[np.ndarray, " K"]
    relays: int
    weight: Any
    duration: float
    silent: Int[np.ndarray, " n"]

    def __post_init__(self):
        arrays = [np.asarray(getattr(self, name)) for name in ("time", "kind", "agent", "peer", "relay")]
        if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1:
            raise InputError(f"events have arrays of one length, found {[array.shape for array in arrays]}")
        time, kind, agent, peer, relay = arrays
        if len(time) and not (np.isfinite(time).all() and time[0] >= 0 and (np.diff(time) >= 0).all()):
            raise InputError("the times of events are finite, not negative and ascending: sort them")
        known = np.isin(kind, list(Kind)) & (agent >= 0) & (agent < self.agents) & (peer >= -1) & (peer < self.agents)
        known &= (relay >= -1) & (relay < self.relays) & (agent != peer)
        known &= (peer >= 0) | ~np.isin(kind, (*AVERAGES, Kind.SEND))
        known &= (relay >= 0) | ~np.isin(kind, (Kind.SEND, Kind.ARRIVE))
        if not known.all():
            k = int(np.argmin(known))
            raise InputError(
                f"event {k} has kind {kind[k]}, agent {agent[k]}, peer {peer[k]} and relay {relay[k]}: agents are 0 to "
                f"{self.agents - 1}, relays 0 to {self.relays - 1}, and −1 means none where a kind needs none"
            )

    @property
    def horizon(self) -> int:
        """How many events there are."""
        return len(self)

    asynchronous = True
    topics = ("clocks",)

    def sample(self, rounds: int, seed: int, /) -> "Events":
        """Themselves: nothing is left to be drawn."""
        return self

    def must_suit(self, algorithm: Algorithm, /, *, agents: int, rounds: int) -> None:
        """Refuse too few events, those of other agents, and an algorithm that needs all agents at once.

        Raises
        ------
        InputError
            That also names an agent who never updates, or is never reached.
        """
        must_suit_clocks(algorithm, self.agents, agents)
        if rounds > len(self):
            raise InputError(
                f"mixing has {len(self)} events for a run of {rounds}: one event is one round, draw more of them or "
                f"set rounds = {len(self)}"
            )
        self.must_all_participate()
        if isinstance(algorithm, LocalSGD) and (made := self.updates).min() <= algorithm.delay:
            raise InputError(
                f"agent {made.argmin()} makes {made.min()} updates in {len(self)} events, and each is applied "
                f"{algorithm.delay} of its updates later: draw more events, or take a delay below {made.min()}"
            )

    def has_flow(self, algorithm: Algorithm, /) -> bool:
        """No: they are taken one by one."""
        return False

    def length(self, step_size: float, /) -> float:
        """η; `times` has when the events are."""
        return float(step_size)

    def times(self, rounds: np.ndarray, step_size: float, /) -> Float[np.ndarray, " times"]:
        """Wall-clock time after some `rounds`."""
        return np.append(0.0, self.time)[rounds]

    def of_rounds(self, most: int | None = None, /) -> tuple[Steps, int | None]:
        """What each of the first `most` events does, and how many these are."""
        steps = self.steps(0, most)
        return steps, len(steps.rows)

    def senders(self) -> nx.Graph:
        """An edge u → v where agent u sends to agent v, undirected where all of them go both ways."""
        heard, exchanged = np.isin(self.kind, AVERAGES), self.kind == Kind.EXCHANGE
        links = set(zip(self.peer[heard].tolist(), self.agent[heard].tolist(), strict=True))
        links |= set(zip(self.agent[exchanged].tolist(), self.peer[exchanged].tolist(), strict=True))
        graph = nx.DiGraph() if links - {(v, u) for u, v in links} else nx.Graph()
        graph.add_nodes_from(range(self.agents))
        graph.add_edges_from(links)
        return graph

    def draw_links(self, ax: "Axes", /) -> None:
        """Draw the links from sender to receiver into `ax`."""
        from ntkp2p.asynchrony import plots

        plots.senders(self.senders(), ax=ax)

    @property
    def rows(self) -> int:
        """Agents and relays."""
        return self.agents + self.relays

    def __len__(self) -> int:
        return len(self.time)

    @property
    def updates(self) -> Int[np.ndarray, " n"]:
        """How many updates each agent applied."""
        return self._count(self.agent, self.kind == Kind.UPDATE)

    @property
    def messages(self) -> Int[np.ndarray, " n"]:
        """How many messages each agent sent, lost ones and those still on their way included; two in an exchange."""
        return self.sent_until(np.array([len(self)]))[0].astype(np.int64)

    def ages(self) -> Ages:
        """How old the gradients were that the updates applied, of algorithms that take them where they begin."""
        exchanges = np.flatnonzero(self.kind == Kind.EXCHANGE)
        # Everything that concerns an agent's own model, agent by agent; before all else, each begins a computation.
        place = np.concatenate([np.full(self.agents, -1), np.arange(len(self)), exchanges])
        agent = np.concatenate([np.arange(self.agents), self.agent, self.peer[exchanges]])
        place = place[np.lexsort((place, agent))]
        agent = np.sort(agent)
        start = place < 0
        kind = np.where(start, Kind.RETURN, self.kind[place])
        time = np.where(start, 0.0, self.time[place])
        averaged = np.cumsum(np.isin(kind, AVERAGES))
        begins = np.flatnonzero(np.isin(kind, BEGINS))
        ends = np.flatnonzero(kind[begins] == Kind.UPDATE)
        last, first = begins[ends], begins[ends - 1]
        order = np.argsort(place[last])
        return Ages(*(a[order] for a in (agent[last], time[last] - time[first], averaged[last] - averaged[first])))

    def must_all_participate(self) -> None:
        """Refuse events in which an agent makes no update, or no message reaches it.

        Raises
        ------
        ValueError
            That names the agent.
        """
        heard = self._count(self.agent, np.isin(self.kind, AVERAGES))
        heard += self._count(self.peer, self.kind == Kind.EXCHANGE)
        for verdict, times, clock in (
            ("never updates", self.updates, "a faster update clock"),
            ("is never reached", heard, "it neighbours that talk more often"),
        ):
            if not times.all():
                raise InputError(
                    f"agent {np.argmin(times)} {verdict} in {len(self)} events: draw more of them, or give {clock}"
                )

    def to_dataset(self) -> "xr.Dataset":
        """A data set: `time`, `kind`, `event_agent`, `peer` and `relay` along `event`, and `silent` by `agent`."""
        import xarray as xr

        columns = {name: ("event", getattr(self, name)) for name in ("time", "kind", "peer", "relay")}
        columns["event_agent"] = "event", self.agent
        kinds = {"flag_values": [int(kind) for kind in Kind], "flag_meanings": " ".join(Kind.__members__).lower()}
        weight = self.weight if np.ndim(self.weight) == 0 else (("agent", "neighbour"), self.weight)
        dataset = xr.Dataset(
            columns | {"weight": weight, "silent": ("agent", self.silent)},
            coords={"agent": np.arange(self.agents)},
            attrs={"duration": self.duration, "relays": self.relays},
        )
        dataset["kind"].attrs.update(kinds)
        return dataset

    def steps(self, first: int = 0, end: int | None = None, /) -> Steps:
        """What some events do, each as one round.

        Parameters
        ----------
        first, end
            The events first, …, end − 1; by default all.
        """
        part = slice(first, end)
        kind, agent, peer, relay = (getattr(self, name)[part] for name in ("kind", "agent", "peer", "relay"))
        sends, arrives = kind == Kind.SEND, kind == Kind.ARRIVE
        heard = np.isin(kind, AVERAGES)
        rows = np.stack([agent, np.full(len(kind), self.rows)], axis=1).astype(np.int32)
        rows[sends, 0] = self.agents + relay[sends]
        direct = heard & ~arrives | sends
        rows[direct, 1] = peer[direct]
        rows[arrives, 1] = self.agents + relay[arrives]
        weights = np.tile(np.eye(2), (len(kind), 1, 1))
        weights[heard, 0] = _shares(self._taken(agent[heard], peer[heard]))
        back = kind == Kind.EXCHANGE
        weights[back, 1] = _shares(self._taken(peer[back], agent[back]))[:, ::-1]
        weights[sends, 0] = 0, 1
        finished: Bool[np.ndarray, " K"] = kind == Kind.UPDATE
        return Steps(rows, weights, finished, np.isin(kind, BEGINS))

    def at(self, k: int, /) -> Float[np.ndarray, "rows rows"]:
        """W_k, with which event `k` mixes agents and relays, shape (rows, rows); row q receives."""
        (rows,), (weights,), *_ = self.steps(k, k + 1)
        own = np.flatnonzero(rows < self.rows)
        W = np.eye(self.rows)
        W[np.ix_(rows[own], rows[own])] = weights[np.ix_(own, own)]
        return W

    def until(self, rounds: int, /) -> "Events":
        """The first `rounds` of them, and `silent` as it is."""
        arrays = {name: getattr(self, name)[:rounds] for name in ("time", "kind", "agent", "peer", "relay")}
        return replace(self, **arrays, duration=float(self.time[rounds - 1]))

    def facts(self) -> tuple[np.ndarray, ...]:
        """All that makes these events what they are, as arrays."""
        weight = np.asarray(self.weight, float)
        return self.time, self.kind, self.agent, self.peer, self.relay, weight, np.array(self.agents)

    def sent_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times n"]:
        """The messages that every agent has sent before some rounds, whether they were taken or not.

        Parameters
        ----------
        rounds
            Ascending, shape (times,).

        Returns
        -------
        ndarray, shape (times, n)
        """
        # What was lost on arrival has been counted when it was sent.
        at_once = np.isin(self.kind, (Kind.MESSAGE, Kind.EXCHANGE, Kind.LOST)) & (self.relay < 0)
        sent, back = np.flatnonzero(at_once | (self.kind == Kind.SEND)), np.flatnonzero(self.kind == Kind.EXCHANGE)
        return self._until(rounds, np.append(sent, back), np.append(self.peer[sent], self.agent[back]))

    def computed_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times n"]:
        """The updates that every agent has computed before some rounds, those that it drops among them.

        Parameters
        ----------
        rounds
            Ascending, shape (times,).

        Returns
        -------
        ndarray, shape (times, n)
        """
        ended = np.flatnonzero(np.isin(self.kind, (Kind.UPDATE, Kind.DROP)))
        return self._until(rounds, ended, self.agent[ended])

    def _until(self, rounds: np.ndarray, when: np.ndarray, who: np.ndarray) -> Float[np.ndarray, "times n"]:
        counts = np.zeros((len(rounds) + 1, self.agents))
        np.add.at(counts, (np.searchsorted(rounds, when + 1), who), 1)
        return np.cumsum(counts[:-1], axis=0)

    def _count(self, who: np.ndarray, which: np.ndarray) -> Int[np.ndarray, " n"]:
        """How often each agent is one of those."""
        return np.bincount(who[which], minlength=self.agents)

    def _taken(self, agent: np.ndarray, peer: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.weight, (self.agents, self.agents))[agent, peer]

    def plot(self, *, ax: "Axes | None" = None) -> "Axes":
        """Updates and messages of every agent over time, of many their number, into `ax` or new axes; returns them.

        Up to 400 events are drawn one by one: `events.until(200).plot()` shows the first 200.
        """
        from ntkp2p.asynchrony import plots

        return plots.events(self, ax=ax)

    def _repr_html_(self) -> str:
        columns = np.arange(self.agents), self.updates, self.messages, self.silent
        return f"<p><code>{self!r}</code></p>" + html_table(_COUNTED, zip(*columns, strict=True))

    def __repr__(self) -> str:
        return f"Events({len(self)} of {self.agents} agents until {self.duration:.4g})"


_COUNTED = ("agent", "updates", "messages sent", "opportunities passed")


def must_suit_clocks(algorithm: Algorithm, clocks: int, agents: int) -> None:
    """Refuse an algorithm that needs all agents at once, and data split over another number of agents."""
    if clocks != agents:
        raise InputError(f"mixing has {clocks} agents but the data are split over {agents} agents: make them agree")
    must_be_asynchronous(algorithm)


def _shares(taken: np.ndarray) -> Float[np.ndarray, "K 2"]:
    return np.stack([1 - taken, taken], axis=1)
