"""The draw of `AsynchronousGossip`: one heap of what is due, in the order of time, and what has happened, as recorded.

What is due at the same time has an order as well: absences, computations, arrivals, opportunities, each by number.
"""

import math
import sys
from array import array
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkp2p.asynchrony.clocks import Clock, Trace, in_blocks
from ntkp2p.asynchrony.events import Events, Kind
from ntkp2p.base.errors import InputError

if TYPE_CHECKING:
    from ntkp2p.asynchrony.gossip import AsynchronousGossip

# What is due is known by a number: from this one on it is an opportunity, and so the last at its time.
_OPPORTUNITIES = 1 << 30
# Opportunities for each agent that may pass in vain before it is asked whether anything can still happen.
_PATIENCE = 1000

# Kind's members are slow to compare and to store.
_UPDATE, _MESSAGE, _EXCHANGE, _SEND, _ARRIVE, _LOST, _DROP, _RETURN = (int(kind) for kind in Kind)


def streams(seed: int, agents: int) -> list[list[np.random.Generator]]:
    """For each agent one generator each for its computations, opportunities, peers and transmissions.

    An agent's do not depend on the other agents, nor on how many there are.
    """
    seeds = np.random.SeedSequence(seed).spawn(agents)
    return [[np.random.default_rng(process) for process in agent.spawn(4)] for agent in seeds]


class Simulation:
    """One draw: what is present, on its way and due."""

    def __init__(self, plan: "AsynchronousGossip", seed: int):
        n = self.agents = plan.agents
        self.scheme = plan.scheme
        self.drops = plan.beyond == "drop"
        self.time, self.kind = array("d"), array("b")
        self.agent, self.peer, self.relay = array("i"), array("i"), array("i")
        self.silent = [0] * n
        self.present = [True] * n
        # The number of the latest update that the model of an agent, or in a relay, reflects.
        self.stamps = [0] * n
        self.updates = 0
        self.versions = None if plan.bound is None else _Versions(n, plan.bound)
        self.cap = plan.cap
        self.windows, self.taken = [-1] * n, [0] * n
        self.way: list[tuple[int, int]] = []
        self.free: list[int] = []
        self.in_vain = self.recorded = 0
        self._start(plan, seed)

    def _start(self, plan: "AsynchronousGossip", seed: int) -> None:
        """Clocks, and what is due first."""
        computing, meeting, choosing, sending = zip(*streams(seed, self.agents), strict=True)
        delay = plan.transmission_clock
        self.compute = [clock.ticks(rng) for clock, rng in zip(plan.update_clocks, computing, strict=True)]
        self.meet = [clock.ticks(rng) for clock, rng in zip(plan.gossip_clocks, meeting, strict=True)]
        self.carry = None if delay is None else [delay.ticks(rng) for rng in sending]
        neighbours = plan.neighbours()
        self.choose = [
            _peers(agent, self.agents, None if neighbours is None else neighbours[agent], clock, rng)
            for agent, (clock, rng) in enumerate(zip(plan.gossip_clocks, choosing, strict=True))
        ]
        self.leaving = sorted(plan.absences, key=lambda absence: absence[1:])
        self.computations = 2 * len(self.leaving)
        self.arrivals = self.computations + self.agents
        # The last entry is never due, and leaves no heap empty.
        self.heap = [(math.inf, -1)]
        for number, (_, leaves, returns) in enumerate(self.leaving):
            self.heap += [(leaves, 2 * number), (returns, 2 * number + 1)]
        for agent in range(self.agents):
            self.heap.append((self.compute[agent](0.0), self.computations + agent))
            if neighbours is None or len(neighbours[agent]):
                self.heap.append((self.meet[agent](0.0), _OPPORTUNITIES + agent))
        heapify(self.heap)

    def run(self, events: int | float, duration: int | float) -> None:
        """Until so many events, or so much time; or until nothing is due any more."""
        heap, time = self.heap, self.time
        end = min(duration, sys.float_info.max)
        computations, arrivals = self.computations, self.arrivals
        while len(time) < events:
            now, due = heap[0]
            if now > end:
                break
            if due >= _OPPORTUNITIES:
                self._opportunity(now, due - _OPPORTUNITIES)
            elif due >= arrivals:
                self._arrive(now, due - arrivals)
            elif due >= computations:
                self._finish(now, due - computations)
            else:
                heappop(heap)
                agent, _, returns = self.leaving[due // 2]
                if due % 2:
                    self._return(now, agent)
                else:
                    self._leave(now, agent, returns)

    def events(self, most: int | None, duration: float | None, weight: Any) -> Events:
        """What has happened, at most so much of it."""
        time = np.frombuffer(self.time, np.float64)[:most]
        kind = np.frombuffer(self.kind, np.int8)[:most]
        agent, peer, relay = (np.frombuffer(a, np.int32)[:most] for a in (self.agent, self.peer, self.relay))
        until = float(time[-1]) if duration is None else duration
        relays = int(relay.max(initial=-1)) + 1
        return Events(self.agents, time, kind, agent, peer, relay, relays, weight, until, np.array(self.silent))

    # --- what happens when something is due ---

    def _finish(self, now: float, agent: int) -> None:
        versions = self.versions
        if versions is None:
            heapreplace(self.heap, (self.compute[agent](now), self.computations + agent))
            self._updated(now, agent)
            return
        heappop(self.heap)
        behind = versions.behind(agent)
        if not behind:
            self._apply(now, agent)
        elif self.drops:
            self._record(now, _DROP, agent, -1, -1)
            self._compute(now, agent)
        else:
            versions.hold_back(agent, behind)

    def _opportunity(self, now: float, agent: int) -> None:
        heapreplace(self.heap, (self.meet[agent](now), _OPPORTUNITIES + agent))
        # Chosen whatever comes of it, so that the next choice does not depend on that.
        peer = self.choose[agent]()
        if not self.present[agent]:
            return
        scheme = self.scheme
        if scheme == "push":
            self._send(now, agent, peer)
        elif scheme == "opportunistic":
            if self.stamps[agent] == self.updates:
                self._send(now, agent, peer)
            else:
                self.silent[agent] += 1
                self._skip(now)
        elif scheme == "pull":
            if self.present[peer]:
                self._send(now, peer, agent)
            else:
                self._skip(now)
        elif self.present[peer] and self.carry is None:
            self._exchange(now, peer, agent)
        else:
            self._send(now, agent, peer)
            if self.present[peer]:
                self._send(now, peer, agent)

    def _arrive(self, now: float, relay: int) -> None:
        heappop(self.heap)
        agent, peer = self.way[relay]
        self.free.append(relay)
        if self._takes(now, agent):
            self._record(now, _ARRIVE, agent, peer, relay)
            self._hear(now, agent, self.agents + relay)
        else:
            self._record(now, _LOST, agent, peer, relay)

    def _leave(self, now: float, agent: int, returns: float) -> None:
        self.present[agent] = False
        # Its computation is lost, and with it its place in the heap; so are its opportunities if it stays away.
        gone = {self.computations + agent} | ({_OPPORTUNITIES + agent} if returns == math.inf else set())
        self.heap[:] = [entry for entry in self.heap if entry[1] not in gone]
        heapify(self.heap)
        if self.versions is not None:
            self._release(now, self.versions.leave(agent))

    def _return(self, now: float, agent: int) -> None:
        self.present[agent] = True
        self._record(now, _RETURN, agent, -1, -1)
        self._compute(now, agent)
        if self.versions is not None:
            self.versions.come_back(agent)

    # --- what it is made of ---

    def _record(self, now: float, kind: int, agent: int, peer: int, relay: int) -> None:
        self.time.append(now)
        self.kind.append(kind)
        self.agent.append(agent)
        self.peer.append(peer)
        self.relay.append(relay)

    def _compute(self, now: float, agent: int) -> None:
        heappush(self.heap, (self.compute[agent](now), self.computations + agent))

    def _updated(self, now: float, agent: int) -> None:
        self._record(now, _UPDATE, agent, -1, -1)
        self.updates += 1
        self.stamps[agent] = self.updates

    def _apply(self, now: float, agent: int) -> None:
        self._updated(now, agent)
        if self.versions is not None:
            self.versions.update(agent)
        self._compute(now, agent)

    def _release(self, now: float, agents: list[int]) -> None:
        for agent in agents:
            self._apply(now, agent)

    def _send(self, now: float, peer: int, agent: int) -> None:
        """`peer` sends to `agent`."""
        if self.carry is not None:
            relay = self._load(peer, agent)
            heappush(self.heap, (self.carry[peer](now), self.arrivals + relay))
            self._record(now, _SEND, agent, peer, relay)
        elif self._takes(now, agent):
            self._record(now, _MESSAGE, agent, peer, -1)
            self._hear(now, agent, peer)
        else:
            self._record(now, _LOST, agent, peer, -1)

    def _exchange(self, now: float, agent: int, peer: int) -> None:
        """At once; if one of them has heard enough, only the other one takes."""
        takes, gives = self._takes(now, agent), self._takes(now, peer)
        if takes and gives:
            self._record(now, _EXCHANGE, agent, peer, -1)
        else:
            self._record(now, _MESSAGE if takes else _LOST, agent, peer, -1)
            self._record(now, _MESSAGE if gives else _LOST, peer, agent, -1)
        if takes:
            self._hear(now, agent, peer)
        if gives:
            self._hear(now, peer, agent)

    def _takes(self, now: float, agent: int) -> bool:
        """Whether a message that reaches `agent` now is taken; if so, it counts."""
        if not self.present[agent]:
            return False
        if self.cap is None:
            return True
        most, length = self.cap
        window = int(now // length)
        if window != self.windows[agent]:
            self.windows[agent], self.taken[agent] = window, 0
        self.taken[agent] += 1
        return self.taken[agent] <= most

    def _load(self, peer: int, agent: int) -> int:
        """Put the model of `peer` into a relay."""
        if self.free:
            relay = self.free.pop()
        else:
            relay = len(self.way)
            self.way.append((-1, -1))
            self.stamps.append(0)
            if self.versions is not None:
                self.versions.add_relay()
        self.way[relay] = agent, peer
        self.stamps[self.agents + relay] = self.stamps[peer]
        if self.versions is not None:
            self.versions.copy(self.agents + relay, peer)
        return relay

    def _hear(self, now: float, agent: int, row: int) -> None:
        """`agent` reflects from now on what the model in a row reflects."""
        if self.stamps[row] > self.stamps[agent]:
            self.stamps[agent] = self.stamps[row]
        if self.versions is not None:
            self._release(now, self.versions.hear(agent, row))

    def _skip(self, now: float) -> None:
        """Advance the time when all pending opportunities pass unused, which would otherwise never end."""
        if self.recorded != len(self.time):
            self.recorded, self.in_vain = len(self.time), 0
        self.in_vain += 1
        if self.in_vain % (_PATIENCE * self.agents):
            return
        if not any(due < _OPPORTUNITIES and time < math.inf for time, due in self.heap):
            raise InputError(
                f"nothing happens any more after {self.recorded} events, at time {now:.4g}: who is away has the newest "
                "model, or is the only one that is asked; let it return"
            )


class _Versions:
    """How many updates of each agent every model reflects, and who has to wait until others have heard enough."""

    def __init__(self, agents: int, bound: int):
        self.bound = bound
        self.made = np.zeros((agents, agents), np.int64)
        self.rows = list(self.made)
        self.present = np.ones(agents, bool)
        # Of an agent that waits: what the others are to know of it, and how many present ones do not.
        self.need = np.zeros(agents, np.int64)
        self.missing = np.zeros(agents, np.int64)
        self.waiting = 0
        # What all those present are known to reflect of each agent, at least: versions only grow.
        self.least = np.zeros(agents, np.int64)

    def behind(self, agent: int) -> int:
        """How many of those present would be too far behind, were this update applied."""
        needed = self._needed(agent)
        if self.least[agent] >= needed:
            return 0
        known = self.made[self.present, agent]
        self.least[agent] = known.min(initial=self.made[agent, agent])
        return int(np.count_nonzero(known < needed))

    def hold_back(self, agent: int, behind: int) -> None:
        self.need[agent], self.missing[agent] = self._needed(agent), behind
        self.waiting += 1

    def update(self, agent: int) -> None:
        self.made[agent, agent] += 1

    def add_relay(self) -> None:
        self.rows.append(np.zeros_like(self.need))

    def copy(self, row: int, source: int) -> None:
        self.rows[row][:] = self.rows[source]

    def hear(self, agent: int, source: int) -> list[int]:
        """Merge versions, by maximum; who need not wait any longer."""
        known = self.rows[agent]
        if not self.waiting:
            np.maximum(known, self.rows[source], out=known)
            return []
        lacked = known < self.need
        np.maximum(known, self.rows[source], out=known)
        return self._enough(lacked & (known >= self.need))

    def leave(self, agent: int) -> list[int]:
        """Remove an absent agent from the waiting lists; return the agents that need not wait any longer."""
        self.present[agent] = False
        self.waiting -= int(self.need[agent] > 0)
        self.need[agent] = 0
        return self._enough(self.rows[agent] < self.need)

    def come_back(self, agent: int) -> None:
        self.present[agent] = True
        np.minimum(self.least, self.rows[agent], out=self.least)
        self.missing += self.rows[agent] < self.need

    def _needed(self, agent: int) -> int:
        return int(self.made[agent, agent]) + 1 - self.bound

    def _enough(self, met: np.ndarray) -> list[int]:
        """For the agents in `met` one other agent less is missing."""
        self.missing -= met
        free = np.flatnonzero(met & (self.missing == 0))
        self.need[free] = 0
        self.waiting -= len(free)
        return free.tolist()


def _peers(
    agent: int, agents: int, neighbours: np.ndarray | None, clock: Clock, rng: np.random.Generator
) -> Callable[[], int]:
    """The sequence of an agent's receivers."""
    if isinstance(clock, Trace) and clock.receivers is not None:
        return iter(clock.receivers.tolist()).__next__
    if neighbours is not None:
        return in_blocks(lambda size: neighbours[rng.integers(len(neighbours), size=size)]).__next__

    def others(size: int) -> np.ndarray:
        drawn = rng.integers(agents - 1, size=size)
        return drawn + (drawn >= agent)

    return in_blocks(others).__next__
