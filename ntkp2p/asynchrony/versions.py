"""Version vectors over a series of events, and what staleness follows from them; see `ntkp2p.asynchrony.staleness`."""

import numpy as np
from jaxtyping import Float

from ntkp2p.asynchrony.events import Events, Kind

# Intervals between the times at which the mean over the pairs is kept.
_POINTS = 400

# Kind's members are slow to compare.
_UPDATE, _MESSAGE, _EXCHANGE, _SEND, _ARRIVE = (
    int(kind) for kind in (Kind.UPDATE, Kind.MESSAGE, Kind.EXCHANGE, Kind.SEND, Kind.ARRIVE)
)


class Count:
    """Version vectors, event by event, and the sums from which the averages follow.

    ∫ V[j] dt is summed when row j changes, with what it was since its last change. Own versions V[j, j] = N_j change
    with every update; their integrals come from the updates' times.
    """

    def __init__(self, events: Events, since: float, until: float, distribution: bool):
        n = self.agents = events.agents
        self.events, self.since, self.until = events, since, until
        self.made = np.zeros((events.rows, n))
        self.rows = list(self.made)
        self.integrals = np.zeros((n, n))
        self.sums = list(self.integrals)
        self.changed = [since] * n
        self.levels = _Levels(self.made[:n], since) if distribution else None
        self.part = np.empty(n)
        self.times = np.linspace(since, until, _POINTS + 1)

    def run(self) -> Float[np.ndarray, " T"]:
        """Go through all events; the mean over all pairs at `times`."""
        n = self.agents
        history, first = np.empty(len(self.times)), 0
        for point, end in enumerate(np.searchsorted(self.events.time, self.times, side="right").tolist()):
            self._advance(first, end)
            first = end
            history[point] = n * np.trace(self.made) - self.made[:n].sum()
        for agent in range(n):
            self._add_up(self.until, agent)
        if self.levels is not None:
            self.levels.add_up(self.until)
        return history / (n * (n - 1))

    def means(self) -> Float[np.ndarray, "n n"]:
        """The time average of S[i, j]."""
        means = (self._own_integrals()[:, None] - self.integrals.T) / (self.until - self.since)
        np.fill_diagonal(means, 0)
        return means

    def shares(self) -> Float[np.ndarray, " S"] | None:
        """Of time and pairs, at each S, if that is counted."""
        return None if self.levels is None else self.levels.shares()

    def _advance(self, first: int, end: int) -> None:
        part, since, rows = slice(first, end), self.since, self.rows
        columns = (getattr(self.events, name)[part].tolist() for name in ("time", "kind", "agent", "peer", "relay"))
        for now, kind, agent, peer, relay in zip(*columns, strict=True):
            if kind == _UPDATE:
                rows[agent][agent] += 1
                if self.levels is not None:
                    self.levels.update(now, agent)
            elif kind == _MESSAGE:
                self._merge(max(now, since), agent, rows[peer])
            elif kind == _ARRIVE:
                self._merge(max(now, since), agent, rows[self.agents + relay])
            elif kind == _SEND:
                rows[self.agents + relay][:] = rows[peer]
            elif kind == _EXCHANGE:
                self._merge(max(now, since), agent, rows[peer])
                self._merge(max(now, since), peer, rows[agent])

    def _merge(self, now: float, agent: int, heard: np.ndarray) -> None:
        self._add_up(now, agent)
        if self.levels is not None:
            self.levels.merge(now, agent, heard)
        row = self.rows[agent]
        np.maximum(row, heard, out=row)

    def _add_up(self, now: float, agent: int) -> None:
        """Sum what row `agent` was until now."""
        np.multiply(self.rows[agent], now - self.changed[agent], out=self.part)
        self.sums[agent] += self.part
        self.changed[agent] = now

    def _own_integrals(self) -> Float[np.ndarray, " n"]:
        """∫ N_i dt of each agent."""
        mine = (self.events.kind == _UPDATE) & (self.events.time <= self.until)
        lasts = self.until - np.maximum(self.events.time[mine], self.since)
        return np.bincount(self.events.agent[mine], weights=lasts, minlength=self.agents)


class _Levels:
    """How many pairs are at S = 0, 1, 2, …, and for how long."""

    def __init__(self, made: np.ndarray, since: float):
        self.made, self.own = made, np.diagonal(made)
        self.last = since
        self.pairs, self.times = np.zeros(64, np.int64), np.zeros(64)
        self.pairs[0] = len(made) * (len(made) - 1)

    def update(self, now: float, agent: int) -> None:
        """After the agent's update: the others are one more behind."""
        self.add_up(now)
        levels = np.bincount((self.own[agent] - self.made[:, agent]).astype(np.intp))
        levels[0] = 0  # its own version, which is no pair
        if len(levels) > len(self.pairs):
            self.pairs, self.times = (np.concatenate([a, np.zeros_like(a)]) for a in (self.pairs, self.times))
        self.pairs[: len(levels)] += levels
        self.pairs[: len(levels) - 1] -= levels[1:]

    def merge(self, now: float, agent: int, heard: np.ndarray) -> None:
        """Before the agent's row becomes the larger of what it was and what it hears."""
        self.add_up(now)
        row = self.made[agent]
        news = np.flatnonzero(heard > row)
        for sign, version in ((-1, row), (1, heard)):
            levels = np.bincount((self.own[news] - version[news]).astype(np.intp))
            self.pairs[: len(levels)] += sign * levels

    def add_up(self, now: float) -> None:
        """Count the time since the last change."""
        if now > self.last:
            self.times += (now - self.last) * self.pairs
            self.last = now

    def shares(self) -> Float[np.ndarray, " S"]:
        """Of all time and pairs."""
        most = np.flatnonzero(self.times)[-1]
        return self.times[: most + 1] / self.times.sum()
