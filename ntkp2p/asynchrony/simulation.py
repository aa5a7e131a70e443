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
# Opportunities for each user that may pass in vain before it is asked whether anything can still happen.
_PATIENCE = 1000

# Kind's members are slow to compare and to store.
_UPDATE, _MESSAGE, _EXCHANGE, _SEND, _ARRIVE, _LOST, _DROP, _RETURN = (int(kind) for kind in Kind)


def streams(seed: int, users: int) -> list[list[np.random.Generator]]:
    """For each user one generator each for its computations, opportunities, peers and transmissions.

    A user's do not depend on the other users, nor on how many there are.
    """
    seeds = np.random.SeedSequence(seed).spawn(users)
    return [[np.random.default_rng(process) for process in user.spawn(4)] for user in seeds]


class Drawing:
    """One draw: what is present, on its way and due."""

    def __init__(self, plan: "AsynchronousGossip", seed: int):
        n = self.users = plan.users
        self.scheme = plan.scheme
        self.drops = plan.beyond == "drop"
        self.time, self.kind = array("d"), array("b")
        self.user, self.peer, self.relay = array("i"), array("i"), array("i")
        self.silent = [0] * n
        self.present = [True] * n
        # The number of the latest update that the model of a user, or in a relay, reflects.
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
        computing, meeting, choosing, sending = zip(*streams(seed, self.users), strict=True)
        delay = plan.transmission_clock
        self.compute = [clock.ticks(rng) for clock, rng in zip(plan.update_clocks, computing, strict=True)]
        self.meet = [clock.ticks(rng) for clock, rng in zip(plan.gossip_clocks, meeting, strict=True)]
        self.carry = None if delay is None else [delay.ticks(rng) for rng in sending]
        neighbours = plan.neighbours()
        self.choose = [
            _peers(user, self.users, None if neighbours is None else neighbours[user], clock, rng)
            for user, (clock, rng) in enumerate(zip(plan.gossip_clocks, choosing, strict=True))
        ]
        self.leaving = sorted(plan.absences, key=lambda absence: absence[1:])
        self.computations = 2 * len(self.leaving)
        self.arrivals = self.computations + self.users
        # The last entry is never due, and leaves no heap empty.
        self.heap = [(math.inf, -1)]
        for number, (_, leaves, returns) in enumerate(self.leaving):
            self.heap += [(leaves, 2 * number), (returns, 2 * number + 1)]
        for user in range(self.users):
            self.heap.append((self.compute[user](0.0), self.computations + user))
            if neighbours is None or len(neighbours[user]):
                self.heap.append((self.meet[user](0.0), _OPPORTUNITIES + user))
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
                user, _, returns = self.leaving[due // 2]
                if due % 2:
                    self._return(now, user)
                else:
                    self._leave(now, user, returns)

    def events(self, most: int | None, duration: float | None, weight: Any) -> Events:
        """What has happened, at most so much of it."""
        time = np.frombuffer(self.time, np.float64)[:most]
        kind = np.frombuffer(self.kind, np.int8)[:most]
        user, peer, relay = (np.frombuffer(a, np.int32)[:most] for a in (self.user, self.peer, self.relay))
        until = float(time[-1]) if duration is None else duration
        relays = int(relay.max(initial=-1)) + 1
        return Events(self.users, time, kind, user, peer, relay, relays, weight, until, np.array(self.silent))

    # --- what happens when something is due ---

    def _finish(self, now: float, user: int) -> None:
        versions = self.versions
        if versions is None:
            heapreplace(self.heap, (self.compute[user](now), self.computations + user))
            self._updated(now, user)
            return
        heappop(self.heap)
        behind = versions.behind(user)
        if not behind:
            self._apply(now, user)
        elif self.drops:
            self._record(now, _DROP, user, -1, -1)
            self._compute(now, user)
        else:
            versions.hold_back(user, behind)

    def _opportunity(self, now: float, user: int) -> None:
        heapreplace(self.heap, (self.meet[user](now), _OPPORTUNITIES + user))
        # Chosen whatever comes of it, so that the next choice does not depend on that.
        peer = self.choose[user]()
        if not self.present[user]:
            return
        scheme = self.scheme
        if scheme == "push":
            self._send(now, user, peer)
        elif scheme == "opportunistic":
            if self.stamps[user] == self.updates:
                self._send(now, user, peer)
            else:
                self.silent[user] += 1
                self._pass_in_vain(now)
        elif scheme == "pull":
            if self.present[peer]:
                self._send(now, peer, user)
            else:
                self._pass_in_vain(now)
        elif self.present[peer] and self.carry is None:
            self._exchange(now, peer, user)
        else:
            self._send(now, user, peer)
            if self.present[peer]:
                self._send(now, peer, user)

    def _arrive(self, now: float, relay: int) -> None:
        heappop(self.heap)
        user, peer = self.way[relay]
        self.free.append(relay)
        if self._takes(now, user):
            self._record(now, _ARRIVE, user, peer, relay)
            self._hear(now, user, self.users + relay)
        else:
            self._record(now, _LOST, user, peer, relay)

    def _leave(self, now: float, user: int, returns: float) -> None:
        self.present[user] = False
        # Its computation is lost, and with it its place in the heap; so are its opportunities if it stays away.
        gone = {self.computations + user} | ({_OPPORTUNITIES + user} if returns == math.inf else set())
        self.heap[:] = [entry for entry in self.heap if entry[1] not in gone]
        heapify(self.heap)
        if self.versions is not None:
            self._release(now, self.versions.leave(user))

    def _return(self, now: float, user: int) -> None:
        self.present[user] = True
        self._record(now, _RETURN, user, -1, -1)
        self._compute(now, user)
        if self.versions is not None:
            self.versions.come_back(user)

    # --- what it is made of ---

    def _record(self, now: float, kind: int, user: int, peer: int, relay: int) -> None:
        self.time.append(now)
        self.kind.append(kind)
        self.user.append(user)
        self.peer.append(peer)
        self.relay.append(relay)

    def _compute(self, now: float, user: int) -> None:
        heappush(self.heap, (self.compute[user](now), self.computations + user))

    def _updated(self, now: float, user: int) -> None:
        self._record(now, _UPDATE, user, -1, -1)
        self.updates += 1
        self.stamps[user] = self.updates

    def _apply(self, now: float, user: int) -> None:
        self._updated(now, user)
        if self.versions is not None:
            self.versions.update(user)
        self._compute(now, user)

    def _release(self, now: float, users: list[int]) -> None:
        for user in users:
            self._apply(now, user)

    def _send(self, now: float, peer: int, user: int) -> None:
        """`peer` sends to `user`."""
        if self.carry is not None:
            relay = self._load(peer, user)
            heappush(self.heap, (self.carry[peer](now), self.arrivals + relay))
            self._record(now, _SEND, user, peer, relay)
        elif self._takes(now, user):
            self._record(now, _MESSAGE, user, peer, -1)
            self._hear(now, user, peer)
        else:
            self._record(now, _LOST, user, peer, -1)

    def _exchange(self, now: float, user: int, peer: int) -> None:
        """At once; if one of them has heard enough, only the other one takes."""
        takes, gives = self._takes(now, user), self._takes(now, peer)
        if takes and gives:
            self._record(now, _EXCHANGE, user, peer, -1)
        else:
            self._record(now, _MESSAGE if takes else _LOST, user, peer, -1)
            self._record(now, _MESSAGE if gives else _LOST, peer, user, -1)
        if takes:
            self._hear(now, user, peer)
        if gives:
            self._hear(now, peer, user)

    def _takes(self, now: float, user: int) -> bool:
        """Whether a message that reaches `user` now is taken; if so, it counts."""
        if not self.present[user]:
            return False
        if self.cap is None:
            return True
        most, length = self.cap
        window = int(now // length)
        if window != self.windows[user]:
            self.windows[user], self.taken[user] = window, 0
        self.taken[user] += 1
        return self.taken[user] <= most

    def _load(self, peer: int, user: int) -> int:
        """Put the model of `peer` into a relay."""
        if self.free:
            relay = self.free.pop()
        else:
            relay = len(self.way)
            self.way.append((-1, -1))
            self.stamps.append(0)
            if self.versions is not None:
                self.versions.add_relay()
        self.way[relay] = user, peer
        self.stamps[self.users + relay] = self.stamps[peer]
        if self.versions is not None:
            self.versions.copy(self.users + relay, peer)
        return relay

    def _hear(self, now: float, user: int, row: int) -> None:
        """`user` reflects from now on what the model in a row reflects."""
        if self.stamps[row] > self.stamps[user]:
            self.stamps[user] = self.stamps[row]
        if self.versions is not None:
            self._release(now, self.versions.hear(user, row))

    def _pass_in_vain(self, now: float) -> None:
        """Where only opportunities are due that nobody takes, time would pass for ever."""
        if self.recorded != len(self.time):
            self.recorded, self.in_vain = len(self.time), 0
        self.in_vain += 1
        if self.in_vain % (_PATIENCE * self.users):
            return
        if not any(due < _OPPORTUNITIES and time < math.inf for time, due in self.heap):
            raise InputError(
                f"nothing happens any more after {self.recorded} events, at time {now:.4g}: who is away has the newest "
                "model, or is the only one that is asked; let it return"
            )


class _Versions:
    """How many updates of each user every model reflects, and who has to wait until others have heard enough."""

    def __init__(self, users: int, bound: int):
        self.bound = bound
        self.made = np.zeros((users, users), np.int64)
        self.rows = list(self.made)
        self.present = np.ones(users, bool)
        # Of a user that waits: what the others are to know of it, and how many present ones do not.
        self.need = np.zeros(users, np.int64)
        self.missing = np.zeros(users, np.int64)
        self.waiting = 0
        # What all those present are known to reflect of each user, at least: versions only grow.
        self.least = np.zeros(users, np.int64)

    def behind(self, user: int) -> int:
        """How many of those present would be too far behind, were this update applied."""
        needed = self._needed(user)
        if self.least[user] >= needed:
            return 0
        known = self.made[self.present, user]
        self.least[user] = known.min(initial=self.made[user, user])
        return int(np.count_nonzero(known < needed))

    def hold_back(self, user: int, behind: int) -> None:
        self.need[user], self.missing[user] = self._needed(user), behind
        self.waiting += 1

    def update(self, user: int) -> None:
        self.made[user, user] += 1

    def add_relay(self) -> None:
        self.rows.append(np.zeros_like(self.need))

    def copy(self, row: int, source: int) -> None:
        self.rows[row][:] = self.rows[source]

    def hear(self, user: int, source: int) -> list[int]:
        """Merge versions, by maximum; who need not wait any longer."""
        known = self.rows[user]
        if not self.waiting:
            np.maximum(known, self.rows[source], out=known)
            return []
        lacked = known < self.need
        np.maximum(known, self.rows[source], out=known)
        return self._enough(lacked & (known >= self.need))

    def leave(self, user: int) -> list[int]:
        """Nobody waits for who is away; who need not wait any longer."""
        self.present[user] = False
        self.waiting -= int(self.need[user] > 0)
        self.need[user] = 0
        return self._enough(self.rows[user] < self.need)

    def come_back(self, user: int) -> None:
        self.present[user] = True
        np.minimum(self.least, self.rows[user], out=self.least)
        self.missing += self.rows[user] < self.need

    def _needed(self, user: int) -> int:
        return int(self.made[user, user]) + 1 - self.bound

    def _enough(self, met: np.ndarray) -> list[int]:
        """For the users in `met` one other user less is missing."""
        self.missing -= met
        free = np.flatnonzero(met & (self.missing == 0))
        self.need[free] = 0
        self.waiting -= len(free)
        return free.tolist()


def _peers(
    user: int, users: int, neighbours: np.ndarray | None, clock: Clock, rng: np.random.Generator
) -> Callable[[], int]:
    """Whom a user turns to, one after the other."""
    if isinstance(clock, Trace) and clock.receivers is not None:
        return iter(clock.receivers.tolist()).__next__
    if neighbours is not None:
        return in_blocks(lambda size: neighbours[rng.integers(len(neighbours), size=size)]).__next__

    def others(size: int) -> np.ndarray:
        drawn = rng.integers(users - 1, size=size)
        return drawn + (drawn >= user)

    return in_blocks(others).__next__
