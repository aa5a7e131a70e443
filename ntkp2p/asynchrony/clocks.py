"""Clocks of unsynchronised agents: when a thing that begins now ends, or an opportunity comes again.

A clock describes; `Clock.ticks` starts one of its kind, with random numbers of its own, drawn in blocks. All times are
wall-clock times in one unit, the user's choice; rates are per that unit.

Examples
--------
>>> import numpy as np
>>> import ntkp2p as p2p
>>> tick = p2p.clocks.Deterministic(0.5).ticks(np.random.default_rng(0))
>>> tick(0.0), tick(0.5)
(0.5, 1.0)
"""

import csv
import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import gamma

from ntkp2p.base.checks import is_real, shortened
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.reading import parsing, text_of

#: Random numbers of one agent's process that are drawn at a time: at most 4 KiB as Python's numbers.
_BLOCK = 128


class Clock(ABC):
    """When an agent's process ticks: `Exponential`, `Deterministic`, `Weibull` or `Trace`."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """The mean interval between ticks."""

    @property
    def memoryless(self) -> bool:
        """Whether the ticks are those of a Poisson process."""
        return False

    @abstractmethod
    def ticks(self, rng: np.random.Generator, /) -> Callable[[float], float]:
        """Start a clock, with random numbers of `rng`: a function from when something begins to when it ticks."""


@dataclass(frozen=True)
class Exponential(Clock):
    """A fixed time and then an exponential one: shift + Exp(rate). Without a shift, the ticks are a Poisson process.

    Attributes
    ----------
    rate
        Of the exponential time, above 0: its mean is 1/rate.
    shift
        The least interval, 0 or more.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.clocks.Exponential(2.0, shift=0.25).mean
    0.75
    """

    rate: Any
    shift: Any = 0.0

    def __post_init__(self):
        _keep(self, "rate", positive=True)
        _keep(self, "shift")

    @property
    def mean(self) -> float:
        return self.shift + 1 / self.rate

    @property
    def memoryless(self) -> bool:
        return self.shift == 0

    def ticks(self, rng: np.random.Generator, /) -> Callable[[float], float]:
        return _renewed(in_blocks(lambda size: self.shift + rng.exponential(1 / self.rate, size)))


@dataclass(frozen=True)
class Deterministic(Clock):
    """The same interval every time.

    Attributes
    ----------
    interval
        Above 0.
    random_phase
        Whether the first tick comes uniformly at random within the interval, so that agents are not in step.
    """

    interval: Any
    random_phase: Any = False

    def __post_init__(self):
        _keep(self, "interval", positive=True)
        if not isinstance(self.random_phase, bool):
            raise InputTypeError(f"random_phase is True or False, got {self.random_phase!r}")

    @property
    def mean(self) -> float:
        return self.interval

    def ticks(self, rng: np.random.Generator, /) -> Callable[[float], float]:
        first = [self.interval * rng.random()] if self.random_phase else []
        return _renewed(chain(first, repeat(self.interval)))


@dataclass(frozen=True)
class Weibull(Clock):
    """shift + scale · X, with P(X > x) = exp(−x^shape): a shape below 1 has heavy tails, and 1 is exponential.

    Attributes
    ----------
    shape, scale
        Above 0.
    shift
        The least interval, 0 or more.

    Examples
    --------
    Of shape 2 and scale 2, the mean is 2 Γ(3/2) = √π:

    >>> import ntkp2p as p2p
    >>> round(p2p.clocks.Weibull(shape=2.0, scale=2.0).mean ** 2, 6)
    3.141593
    """

    shape: Any
    scale: Any
    shift: Any = 0.0

    def __post_init__(self):
        _keep(self, "shape", positive=True)
        _keep(self, "scale", positive=True)
        _keep(self, "shift")

    @property
    def mean(self) -> float:
        return self.shift + self.scale * float(gamma(1 + 1 / self.shape))

    def ticks(self, rng: np.random.Generator, /) -> Callable[[float], float]:
        return _renewed(in_blocks(lambda size: self.shift + self.scale * rng.weibull(self.shape, size)))


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Clock):
    """Ticks at given times, and none after the last; what was measured, for instance.

    A computation ends with the first tick since it began. Ticks during an absence are lost.

    Attributes
    ----------
    times
        Of the ticks, ascending, above 0, shape (T,).
    receivers
        For a gossip clock: the receiver at each tick, shape (T,). By default receivers are random.
    """

    times: Any
    receivers: Any = None

    def __post_init__(self):
        times = np.array(self.times, np.float64)
        if times.ndim != 1 or not times.size:
            raise InputError(f"a trace has one time or more, found shape {times.shape}: give it a list of times")
        if not np.isfinite(times).all() or times[0] <= 0:
            wrong = times[~np.isfinite(times) | (times <= 0)][0]
            raise InputError(f"a trace's times are finite and above 0, where agents begin, found {wrong}: drop it")
        late = np.flatnonzero(np.diff(times) < 0)
        if late.size:
            raise InputError(
                f"times[{late[0] + 1}] = {times[late[0] + 1]} of a trace comes before times[{late[0]}] = "
                f"{times[late[0]]}: sort them"
            )
        object.__setattr__(self, "times", _frozen(times))
        if self.receivers is not None:
            receivers = np.array(self.receivers)
            if receivers.shape != times.shape or receivers.dtype.kind not in "iu":
                raise InputError(
                    f"a trace of {len(times)} times has as many receivers, numbers of agents, found shape "
                    f"{receivers.shape} of {receivers.dtype}"
                )
            object.__setattr__(self, "receivers", _frozen(receivers.astype(np.int64)))

    @property
    def mean(self) -> float:
        return float(self.times[-1]) / len(self.times)

    def ticks(self, rng: np.random.Generator, /) -> Callable[[float], float]:
        times, place = self.times.tolist(), -1

        def tick(now: float) -> float:
            nonlocal place
            # The last tick may be still to come, if what it was to end has been given up.
            if place < 0 or times[place] <= now:
                place += 1
            while place < len(times) and times[place] < now:
                place += 1
            if place == len(times):
                times.append(math.inf)
            return times[place]

        return tick

    def __repr__(self) -> str:
        return f"Trace({len(self.times)} ticks until {self.times[-1]:.4g})"


def load_trace(path: str | os.PathLike[str], agents: int, /) -> tuple[Trace, ...]:
    """Read when agents tick from a CSV file.

    Parameters
    ----------
    path
        With the header ``agent,time`` or ``agent,time,receiver``; agents are numbered from 0. Each agent's lines are
        sorted by time; lines of different agents may be interleaved.
    agents
        n, how many there are.

    Returns
    -------
    tuple of Trace
        One for each agent.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the header is another one, a line does not hold numbers, its agent or receiver is none of the n, or its time
        is before an earlier one of its agent; lines are counted from 1, as an editor counts them. Or if an agent has no
        line.

    Examples
    --------
    >>> from tempfile import NamedTemporaryFile
    >>> import ntkp2p as p2p
    >>> with NamedTemporaryFile("w", suffix=".csv") as file:
    ...     _ = file.write("agent,time\\n0,0.5\\n1,0.7\\n0,1.5\\n")
    ...     file.flush()
    ...     p2p.clocks.load_trace(file.name, 2)
    (Trace(2 ticks until 1.5), Trace(1 ticks until 0.7))
    """
    times: list[list[float]] = [[] for _ in range(agents)]
    receivers: list[list[int]] = [[] for _ in range(agents)]
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"a trace is read from a path in quotes, found {shortened(path)}")
    text = text_of(Path(path))
    with parsing(path, "a CSV file", "save it as plain text"):
        lines = csv.reader(io.StringIO(text, newline=""))
        (_, names), *rows = [(lines.line_num, cells) for cells in lines] or [(1, [])]
    header = [name.strip() for name in names]
    if header not in (["agent", "time"], ["agent", "time", "receiver"]):
        found = shortened(",".join(header)) if header else "nothing"
        raise InputError(f"{path}: a trace's first line is agent,time or agent,time,receiver, found {found}")
    for number, cells in rows:
        if not cells:
            continue
        where = f"{path}, line {number}"
        agent, time, *receiver = _tick(cells, len(header), agents, where)
        if times[agent] and time < times[agent][-1]:
            raise InputError(f"{where}: agent {agent} ticks at {times[agent][-1]}, then at {time}: sort the lines")
        times[agent].append(time)
        receivers[agent] += receiver
    silent = next((agent for agent in range(agents) if not times[agent]), None)
    if silent is not None:
        raise InputError(
            f"{path}: agent {silent} has no line, so that it never updates: add one, or leave the agent out"
        )
    heard = len(header) == 3
    return tuple(Trace(t, r if heard else None) for t, r in zip(times, receivers, strict=True))


def in_blocks(draw: Callable[[int], np.ndarray], /) -> Iterator[Any]:
    """Random numbers one by one, drawn many at a time.

    Parameters
    ----------
    draw
        How many ↦ so many of them.
    """
    while True:
        yield from draw(_BLOCK).tolist()


def _renewed(intervals: Iterator[float]) -> Callable[[float], float]:
    """Ticks that come one interval after what began."""
    following = intervals.__next__
    return lambda now: now + following()


def _tick(cells: list[str], columns: int, agents: int, where: str) -> list[Any]:
    """A line as numbers: agent, time, and if there is a column for it the receiver."""
    try:
        agent, time, *receiver = (kind(cell) for kind, cell in zip((int, float, int), cells, strict=False))
    except ValueError:
        agent, time, receiver = -1, math.nan, []
    if len(cells) != columns or not 0 < time < math.inf:
        expected = ",".join(("agent", "time", "receiver")[:columns])
        raise InputError(f"{where} is {','.join(cells)!r}: expected {expected} as numbers, with a time above 0")
    for number in (agent, *receiver):
        if not 0 <= number < agents:
            raise InputError(f"{where} names agent {number}, and there are the agents 0, …, {agents - 1}")
    return [agent, time, *receiver]


def _keep(clock: Clock, name: str, *, positive: bool = False) -> None:
    """Keep a field as a float, or say why it is none."""
    value = getattr(clock, name)
    kind = f"{type(clock).__name__}'s {name}"
    if not is_real(value):
        raise InputTypeError(f"{kind} is a number, got {value!r}")
    if value < 0 or (positive and value == 0) or not math.isfinite(value):
        raise InputError(f"{kind} is finite and {'above 0' if positive else '0 or more'}, got {value}")
    object.__setattr__(clock, name, float(value))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
