"""The interface of mixing: its matrices by round, its number of rounds, and the duration of a round.

A `Schedule` of matrices, the `Events` of asynchronous agents, and their clocks (`AsynchronousGossip`) give
the same answers. A matrix becomes a schedule of one where it enters.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mixing(ABC):
    """Mixing that is sampled for each run. A subclass defines `agents` and `sample`, and can then be trained,
    predicted and analysed as a schedule or events can.

    Examples
    --------
    In every round one link of a complete graph, drawn at random, averages its two agents:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> class OneLink(p2p.Mixing):
    ...     def __init__(self, agents):
    ...         self.agents = agents
    ...     def sample(self, rounds, seed, /):
    ...         rng, matrices = np.random.default_rng(seed), np.tile(np.eye(self.agents), (rounds, 1, 1))
    ...         for W in matrices:
    ...             pair = rng.choice(self.agents, 2, replace=False)
    ...             W[np.ix_(pair, pair)] = 0.5
    ...         return p2p.schedules.sequence(matrices)
    >>> OneLink(4).sample(100, 0)
    Schedule(4 agents, 100 rounds, 6 matrices)
    """

    #: Q, the number of agents.
    agents: Any

    @abstractmethod
    def sample(self, rounds: int, seed: int, /) -> "RunMixing":
        """The mixing of one run.

        Parameters
        ----------
        rounds
            How many rounds the run has.
        seed
            Of what is drawn: the same seed gives the same mixing.

        Returns
        -------
        RunMixing
            A `Schedule`, or `Events`.
        """

    def resolved(self, rounds: int, seed: int, /) -> "RunMixing":
        """As `drawn`, but itself where the mean over its draws has a closed form.

        Parameters
        ----------
        rounds, seed
            As for `drawn`.
        """
        return self.sample(rounds, seed)


class RunMixing(Mixing):
    """Mixing as a run has it.

    Attributes
    ----------
    asynchronous
        Whether agents are asynchronous: a round is then an event, in which at most two of them act.
    matrix
        W, shape (Q, Q), if all rounds mix with it; otherwise None.
    horizon
        How many rounds there are; None if they have no end.
    period
        T; 1 where rounds are not of a schedule.
    matrices, order, periodic
        Of rounds of all agents: the distinct matrices, shape (D, Q, Q); which of them each round has, shape (T,); and
        whether they repeat after these T rounds. See `Schedule`.
    why_sampled
        Why only single draws have a closed form; empty if there is nothing to draw, or the mean has one.
    topics
        What of it is cited: keys of `ntkp2p.runs.citation.KEYS`.
    """

    asynchronous: ClassVar[bool] = False
    matrix: Any = None
    horizon: Any = None
    period: Any = 1
    matrices: Any = None
    order: Any = None
    periodic: Any = True
    why_sampled: Any = ""
    topics: Any = ()

    @property
    def rows(self) -> int:
        """Agents, and places for messages on their way."""
        return self.agents

    def resolved(self, rounds: int, seed: int, /) -> "RunMixing":
        """Itself.

        Parameters
        ----------
        rounds, seed
            As for `Mixing.resolved`.
        """
        return self

    @abstractmethod
    def must_suit(self, algorithm: Any, /, *, agents: int, rounds: int) -> None:
        """Refuse a run that cannot be.

        Parameters
        ----------
        algorithm
            What the agents do.
        agents, rounds
            Of the run.

        Raises
        ------
        InputError
            With the remedy.
        """

    @abstractmethod
    def has_flow(self, algorithm: Any, /) -> bool:
        """Whether the algorithm's rounds discretise a flow: of gradients, or of the mean over memoryless clocks.

        Parameters
        ----------
        algorithm
            What the agents do.
        """

    @abstractmethod
    def length(self, step_size: float, /) -> float:
        """How long a round is: η in flow time, or with clocks the mean wall-clock time between two events.

        Parameters
        ----------
        step_size
            η.
        """

    def times(self, rounds: np.ndarray, step_size: float, /) -> Float[np.ndarray, " times"]:
        """When some rounds are over, in the units of `length`.

        Parameters
        ----------
        rounds
            Their numbers, shape (times,).
        step_size
            η.
        """
        return self.length(step_size) * np.asarray(rounds)

    def of_rounds(self, most: int | None = None, /) -> tuple[Any, int | None]:
        """With clocks: what happens in the first `most` rounds, and how many these are; None if all are alike."""
        raise NotImplementedError("these are rounds of all agents")

    def sent_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times Q"]:
        """With clocks: the messages that every agent has sent before some ascending `rounds`."""
        raise NotImplementedError("these are rounds of all agents")

    def computed_until(self, rounds: np.ndarray, /) -> Float[np.ndarray, "times Q"]:
        """With clocks: the updates that every agent has computed before some ascending `rounds`."""
        raise NotImplementedError("these are rounds of all agents")

    @abstractmethod
    def facts(self) -> tuple[np.ndarray, ...]:
        """All that makes it what it is, as arrays."""

    @abstractmethod
    def draw_links(self, ax: "Axes", /) -> None:
        """Draw the links, and their weights if these are fixed, into `ax`."""
