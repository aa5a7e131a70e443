"""Mixing that changes over the rounds: which matrix W_k the agents mix with in round k = 0, 1, …

Row q receives, as in a single matrix. The agents need not be connected in any one round, only over all of them.

Examples
--------
>>> import ntkp2p as p2p
>>> schedule = p2p.schedules.one_peer_exponential(8)
>>> schedule
Schedule(8 agents, periodic over 3 rounds, 3 matrices)
>>> (schedule.at(2) @ schedule.at(1) @ schedule.at(0))[0]
array([0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125, 0.125])
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float, Int

from ntkp2p.base.checks import lookup, whole
from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry
from ntkp2p.topology.matrix import square_matrix, symmetric
from ntkp2p.topology.mixing import Mixing, RunMixing
from ntkp2p.topology.spectrum import TOLERANCE
from ntkp2p.topology.verdicts import Sums, connection_fault, silence_fault, sums_fault
from ntkp2p.topology.weights import adjacency

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The largest schedules: their matrices, log₂ Q or Q of them, stay below some 2 GB.
MOST_IN_SCHEDULE, MOST_IN_ROTATION = 5000, 600


@dataclass(frozen=True, eq=False, repr=False)
class Schedule(RunMixing):
    """Mixing matrices over the rounds; `periodic`, `sequence` and the named schedules here build one.

    Attributes
    ----------
    matrices : ndarray, shape (D, Q, Q)
        The distinct matrices, read-only; row q receives.
    order : ndarray of int, shape (T,)
        Round k mixes with matrices[order[k]].
    periodic : bool
        Whether the rounds repeat after T, so that round k mixes with matrices[order[k mod T]]; otherwise the schedule
        is for the rounds k < T only.

    Raises
    ------
    ValueError
        If the arrays do not have these shapes, or the order asks for a matrix that there is not.
    """

    matrices: Float[np.ndarray, "D Q Q"]
    order: Int[np.ndarray, " T"]
    periodic: bool

    def __post_init__(self):
        matrices, order = np.array(self.matrices, np.float64), np.array(self.order)
        stacked = matrices.ndim == 3 and matrices.shape[1] == matrices.shape[2]
        known = order.ndim == 1 and order.dtype.kind in "iu" and np.isin(order, np.arange(len(matrices))).all()
        if not (stacked and known and order.size):
            raise InputError(
                f"a schedule has matrices of shape (D, Q, Q) and an order of numbers below D, found shapes "
                f"{matrices.shape} and {order.shape}: use schedules.periodic(matrices) or schedules.sequence(matrices)"
            )
        for name, array in (("matrices", matrices), ("order", order.astype(np.int64))):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def agents(self) -> int:
        """Q, the number of agents."""
        return self.matrices.shape[1]

    @property
    def period(self) -> int:
        """T, the rounds after which the schedule repeats or ends."""
        return len(self.order)

    @property
    def matrix(self) -> Float[np.ndarray, "Q Q"] | None:
        """W, if all rounds mix with it; otherwise None."""
        return self.matrices[0] if len(self.matrices) == 1 else None

    @property
    def horizon(self) -> int | None:
        """How many rounds there are; None if they have no end."""
        return None if self.periodic else self.period

    @property
    def symmetric(self) -> bool:
        """Whether every matrix equals its transpose to rounding."""
        return symmetric(self.matrices)

    @property
    def union(self) -> Float[np.ndarray, "Q Q"]:
        """The largest modulus of each weight in any round: where it is positive, there is a link at some time."""
        return abs(self.matrices[np.unique(self.order)]).max(axis=0)

    def covers(self, rounds: int, /) -> bool:
        """Whether a run of so many `rounds` has a matrix for each."""
        return self.periodic or rounds <= self.period

    def at(self, k: int, /) -> Float[np.ndarray, "Q Q"]:
        """W_k, the matrix of round `k`, shape (Q, Q); IndexError where there is none."""
        self._must_reach(k)
        return self.matrices[self.order[k % self.period]]

    def indices(self, rounds: int, /) -> Int[np.ndarray, " rounds"]:
        """Which of the matrices the rounds 0, …, `rounds` − 1 mix with; IndexError where one has none."""
        if rounds:
            self._must_reach(rounds - 1)
        return self.order[np.arange(rounds) % self.period]

    def sample(self, rounds: int, seed: int, /) -> "Schedule":
        """Itself: nothing is left to be drawn."""
        return self

    def must_suit(self, algorithm: Any, /, *, agents: int, rounds: int) -> None:
        """Refuse matrices that are not for these agents, rounds and algorithm, as `validate_mixing` does."""
        if self.matrix is None and algorithm.static:
            raise InputError(f"{algorithm.name} takes no mixing that changes over time: {algorithm.static}")
        self.must_be_valid(agents=agents, rounds=rounds, stochastic=algorithm.stochastic)

    def must_be_valid(self, *, agents: int | None, rounds: int | None, stochastic: Sums) -> None:
        """The checks of `validate_mixing`.

        Parameters
        ----------
        agents, rounds, stochastic
            As there.
        """
        first_of = zip(*np.unique(self.order, return_index=True), strict=True)
        alone = self.matrix is not None
        matrices = {"mixing" if alone else f"mixing in round {k}": self.matrices[index] for index, k in first_of}
        if agents is not None and self.agents != agents:
            raise InputError(
                f"mixing is {self.agents} × {self.agents} but the data are split over {agents} agents: "
                f"build it on {agents} nodes, or split the data over {self.agents}"
            )
        if rounds is not None and not self.covers(rounds):
            raise InputError(
                f"mixing is a schedule of {self.period} rounds for a run of {rounds}: give it {rounds} matrices, "
                f"repeat it with schedules.periodic(matrices), or set rounds = {self.period}"
            )
        for name, matrix in matrices.items():
            square_matrix(matrix, name=name)  # finite
            if fault := sums_fault(matrix, stochastic):
                raise InputError(f"{name} {': '.join(fault)}")
        if fault := connection_fault(self.union):
            raise InputError(f"mixing {'' if alone else 'over all its rounds '}{': '.join(fault)}")
        for name, matrix in matrices.items() if stochastic == "column" else ():
            if fault := silence_fault(matrix):
                raise InputError(f"{name}: {': '.join(fault)}")

    def has_flow(self, algorithm: Any, /) -> bool:
        """Whether the algorithm has one."""
        return algorithm.has_flow

    def length(self, step_size: float, /) -> float:
        """η."""
        return float(step_size)

    def facts(self) -> tuple[np.ndarray, ...]:
        """The matrices, and their order where there are several."""
        return (self.matrices[0],) if self.matrix is not None else (self.matrices, self.order)

    def draw_links(self, ax: "Axes", /) -> None:
        """Draw the matrix, or the mean over all rounds, into `ax`."""
        from ntkp2p.topology.plots import draw_mixing

        draw_mixing(np.mean(self.matrices[self.order], axis=0), ax)
        if self.matrix is None:
            ax.set_title(f"mean of {self.period} rounds: {ax.get_title()}")

    def _must_reach(self, k: int) -> None:
        if k < 0:
            raise IndexError(f"there is no round {k}: rounds count from 0")
        if not self.covers(k + 1):
            raise IndexError(
                f"the schedule of {self.period} rounds has no round {k}: "
                "give it more matrices, or repeat them with schedules.periodic(matrices)"
            )

    def __repr__(self) -> str:
        rounds = f"{'periodic over ' if self.periodic else ''}{self.period} rounds"
        return f"Schedule({self.agents} agents, {rounds}, {len(self.matrices)} matrices)"


def as_run_mixing(mixing: object, /) -> RunMixing:
    """A matrix as a schedule of it, and what is mixing as it is.

    Parameters
    ----------
    mixing
        W, shape (Q, Q), or a `RunMixing`.

    Raises
    ------
    InputError
        As `periodic`; or for user-defined mixing that was not sampled yet.
    """
    if isinstance(mixing, RunMixing):
        return mixing
    if isinstance(mixing, Mixing):
        name = type(mixing).__name__
        raise InputError(f"{name} is drawn for a run: give {name}.sample(rounds, seed), or experiment.topology")
    return Schedule(square_matrix(mixing)[None], np.zeros(1, int), True)


def periodic(matrices: Iterable[object], /) -> Schedule:
    """The matrices in turn, over and over: round k mixes with matrices[k mod T].

    Parameters
    ----------
    matrices
        T ≥ 1 square matrices of one size, shape (T, Q, Q); row q receives. Equal ones are kept once.

    Returns
    -------
    Schedule
        Of period T.

    Raises
    ------
    TypeError, ValueError
        If there is none, or one is not square and finite, or not of the first one's size. `validate_mixing` checks
        the rest.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> one, other = [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]
    >>> p2p.schedules.periodic([one, other]).at(5)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    return _schedule(matrices, repeats=True)


def sequence(matrices: Iterable[object], /) -> Schedule:
    """The matrices in turn, once: round k mixes with matrices[k], for k < T only.

    Parameters
    ----------
    matrices
        As for `periodic`.

    Returns
    -------
    Schedule
        Of T rounds.

    Raises
    ------
    TypeError, ValueError
        As `periodic`.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> one, other = [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]
    >>> schedule = p2p.schedules.sequence([one, one, other])
    >>> schedule
    Schedule(2 agents, 3 rounds, 2 matrices)
    >>> schedule.covers(4)
    False
    """
    return _schedule(matrices, repeats=False)


def one_peer_exponential(agents: int) -> Schedule:
    """In round k every agent takes the mean of its own value and that of the one agent 2^(k mod τ) places ahead.

    W_k = (I + P)/2 with P[q, (q + 2^(k mod τ)) mod Q] = 1 and τ = ⌈log₂ Q⌉: circulant and doubly stochastic. For Q a
    power of two the τ rounds of a period average exactly [1]_, Theorem 2.

    Parameters
    ----------
    agents
        Q ≥ 1.

    Returns
    -------
    Schedule
        Of period max(1, τ).

    Raises
    ------
    ValueError
        If there is no agent.

    Examples
    --------
    Three rounds average eight values:

    >>> import ntkp2p as p2p
    >>> import numpy as np
    >>> schedule = p2p.schedules.one_peer_exponential(8)
    >>> x = np.arange(8.0)
    >>> for k in range(3):
    ...     x = schedule.at(k) @ x
    >>> x
    array([3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5])

    References
    ----------
    .. [1] B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential graph is provably
       efficient for decentralized deep training", NeurIPS 2021.
    """
    agents = whole(agents, "agents", least=1, most=MOST_IN_SCHEDULE)
    own, hops = np.eye(agents), 2 ** np.arange(max(1, (agents - 1).bit_length()))
    return periodic([(own + np.roll(own, hop, axis=1)) / 2 for hop in hops])


def random_matchings(graph: nx.Graph, rounds: int, *, seed: int = 0) -> Schedule:
    """In every round neighbours pair up at random, as many as can, and each pair takes its mean.

    A round goes through the links in random order and pairs the ends of each that are both still alone: a maximal
    matching. Its matrix is symmetric and doubly stochastic, the gossip of [1]_ with many pairs at a time.

    Parameters
    ----------
    graph
        An undirected graph without self-loops; rows follow the graph's own node order.
    rounds
        How many rounds the schedule has; it does not repeat. They take 8 Q² bytes each.
    seed
        Of all draws; the first rounds do not depend on how many there are.

    Returns
    -------
    Schedule
        Of so many rounds.

    Raises
    ------
    TypeError, ValueError
        If the graph is none that `metropolis` takes, or there is no round.

    Examples
    --------
    Of 6 agents that all know one another, every round pairs all:

    >>> import ntkp2p as p2p
    >>> schedule = p2p.schedules.random_matchings(p2p.graphs.complete(6), rounds=20, seed=1)
    >>> bool((schedule.at(7).diagonal() == 0.5).all())
    True

    References
    ----------
    .. [1] S. Boyd, A. Ghosh, B. Prabhakar, D. Shah, "Randomized gossip algorithms",
       IEEE Transactions on Information Theory 52 (2006).
    """
    links = np.argwhere(np.triu(adjacency(graph)))
    if rounds < 1:
        raise InputError(f"random_matchings(graph, rounds) needs rounds >= 1, got {rounds}")
    rng = np.random.default_rng(seed)
    return sequence(_averaging_pairs(rng.permutation(links), len(graph)) for _ in range(rounds))


def rotating_ring(agents: int) -> Schedule:
    """In round k every agent keeps half of its value and sends half to the one agent 1 + (k mod (Q−1)) places ahead.

    P_k = (I + S)/2 with S[(q + 1 + (k mod (Q−1))) mod Q, q] = 1: circulant and doubly stochastic. In the Q − 1 rounds
    of a period every agent sends to every other one once.

    Parameters
    ----------
    agents
        Q ≥ 1. The period takes 8 (Q − 1) Q² bytes.

    Returns
    -------
    Schedule
        Of period max(1, Q − 1).

    Raises
    ------
    ValueError
        If there is no agent.

    Examples
    --------
    Four agents, and agent 0 hears agents 3, 2 and 1 in turn:

    >>> import ntkp2p as p2p
    >>> schedule = p2p.schedules.rotating_ring(4)
    >>> [schedule.at(k)[0].tolist() for k in range(3)]
    [[0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]]
    """
    agents = whole(agents, "agents", least=1, most=MOST_IN_ROTATION)
    own = np.eye(agents)
    return periodic([(own + np.roll(own, hop, axis=0)) / 2 for hop in range(1, max(agents, 2))])


def failing_links(
    mixing: object, rounds: int, probability: float, *, seed: int = 0, stochastic: str | None = None
) -> Schedule:
    """Links that fail at random: in every round, each independently of the others and of the past.

    What a failed link does not carry stays where it keeps the sums that the algorithm needs. Of column sums one, the
    sender keeps what it would have sent, P[u, u] + P[v, u], as it can if it knows its receivers in a round [1]_; of
    row sums one, the receiver takes its own value in place of the one that it misses, W[v, v] + W[v, u]. The two
    directions of a link fail separately, but for a symmetric W: its links fail in both directions at once, and it stays
    symmetric, so that both sums are kept.

    Parameters
    ----------
    mixing
        A matrix, array-like or sparse, shape (Q, Q), in which row q receives; or a `Schedule` that lasts long enough.
    rounds
        How many rounds the schedule has; it does not repeat. They take 8 Q² bytes each.
    probability
        Of a link to fail in a round, between 0 and 1.
    seed
        Of all draws; the first rounds do not depend on how many there are.
    stochastic
        Which sums are to be kept, ``"row"`` (DGD, CTA, ATC) or ``"column"`` (push-sum): then directions fail separately
        in a symmetric W, too. By default those that are one, and of both the column sums.

    Returns
    -------
    Schedule
        Of so many rounds.

    Raises
    ------
    TypeError, ValueError
        If the mixing is no matrix, or a schedule that is too short; if there is no round, or the probability is none;
        or if neither row nor column sums are one and it is not said which to keep.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.schedules.failing_links([[0.5, 0.5], [0.5, 0.5]], 2, 1.0).at(1)
    array([[1., 0.],
           [0., 1.]])

    References
    ----------
    .. [1] A. Nedić, A. Olshevsky, "Distributed optimization over time-varying directed graphs",
       IEEE Transactions on Automatic Control 60 (2015).
    """
    schedule = _lasting(mixing, rounds)
    if not 0 <= probability <= 1:
        raise InputError(f"failing_links(mixing, rounds, probability) needs 0 <= probability <= 1, got {probability}")
    line, pairs = _kept_sums(schedule, stochastic), stochastic is None and schedule.symmetric
    rng = np.random.default_rng(seed)

    def failed() -> Bool[np.ndarray, "Q Q"]:
        links = rng.random((schedule.agents, schedule.agents)) < probability
        return np.triu(links, 1) | np.triu(links, 1).T if pairs else links

    return sequence(_without(schedule.at(k), failed(), line) for k in range(rounds))


def absence(
    mixing: object, rounds: int, agent: int, leaves: int, returns: int, *, stochastic: str | None = None
) -> Schedule:
    """An agent that leaves and comes back: in the rounds leaves ≤ k < returns it neither sends nor receives.

    Meanwhile it goes on by itself. Its links fail in both directions, and `failing_links` says who keeps what they do
    not carry.

    Parameters
    ----------
    mixing, rounds, stochastic
        As for `failing_links`.
    agent
        Who leaves, 0, …, Q − 1.
    leaves, returns
        The first round without it, and the first one with it again: 0 ≤ leaves < returns ≤ rounds.

    Returns
    -------
    Schedule
        Of so many rounds.

    Raises
    ------
    TypeError, ValueError
        As `failing_links`; or if there is no such agent, or no such rounds.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.schedules.absence([[0.5, 0.5], [0.5, 0.5]], 5, agent=1, leaves=2, returns=4)
    Schedule(2 agents, 5 rounds, 2 matrices)
    """
    schedule = _lasting(mixing, rounds)
    if not 0 <= agent < schedule.agents:
        raise InputError(f"there is no agent {agent} to leave: mixing has the agents 0, …, {schedule.agents - 1}")
    if not 0 <= leaves < returns <= rounds:
        raise InputError(
            f"an absence needs 0 <= leaves < returns <= rounds = {rounds}, got leaves = {leaves} and returns = "
            f"{returns}: returns = {rounds} is for the rest of the run"
        )
    line = _kept_sums(schedule, stochastic)
    links = np.zeros((schedule.agents, schedule.agents), bool)
    links[agent] = links[:, agent] = True
    matrices = (schedule.at(k) for k in range(rounds))
    return sequence(_without(W, links, line) if leaves <= k < returns else W for k, W in enumerate(matrices))


#: The schedules that a name can ask for; the one place that knows the names.
SCHEDULES: Registry[Callable[..., Mixing]] = Registry(
    "schedule",
    {
        build.__name__: build
        for build in (one_peer_exponential, rotating_ring, random_matchings, failing_links, absence)
    },
    makes=Mixing,
)


def _averaging_pairs(links: Int[np.ndarray, "E 2"], agents: int) -> Float[np.ndarray, "Q Q"]:
    """The first of the links, their ends taken, and so on; each pair's mean, and the rest as they are."""
    W = np.eye(agents)
    for i, j in links:
        if W[i, i] == W[j, j] == 1:
            W[[i, i, j, j], [i, j, i, j]] = 0.5
    return W


def _lasting(mixing: object, rounds: int) -> Schedule:
    """A matrix as a schedule, or a schedule that has so many rounds."""
    if rounds < 1:
        raise InputError(f"a schedule needs rounds >= 1, got {rounds}")
    mixing = as_run_mixing(mixing)
    if not isinstance(mixing, Schedule):
        raise InputError(f"links fail, and agents leave, in a matrix or a schedule, not in {mixing!r}")
    if not mixing.covers(rounds):
        raise InputError(
            f"mixing is a schedule of {mixing.period} rounds, and {rounds} are asked for: "
            f"give it {rounds} matrices, or repeat it with schedules.periodic(matrices)"
        )
    return mixing


def _kept_sums(schedule: Schedule, stochastic: str | None) -> str:
    """Which sums a failing link is to leave as they are."""
    axes = {"column": 1, "row": 2}
    if stochastic is not None:
        lookup(axes, stochastic, "stochastic")
        return stochastic
    for line, axis in axes.items():
        if schedule.symmetric or abs(schedule.matrices.sum(axis=axis) - 1).max() <= TOLERANCE:
            return line
    raise InputError(
        "mixing has neither row nor column sums of one in every round: see check_mixing(mixing), "
        'or say which a failing link is to keep, stochastic="row" or stochastic="column"'
    )


def _without(W: np.ndarray, failed: Bool[np.ndarray, "Q Q"], line: str) -> Float[np.ndarray, "Q Q"]:
    """W without the links [v, u] that failed, whose weights the agents keep so that these sums stay."""
    lost = np.where(failed, W, 0.0)
    np.fill_diagonal(lost, 0)
    return W - lost + np.diag(lost.sum(axis=0 if line == "column" else 1))


def _schedule(matrices: Iterable[object], *, repeats: bool) -> Schedule:
    """Check the matrices one by one, and keep each distinct one once."""
    places: dict[bytes, int] = {}
    order, size = [], 0
    for number, W in enumerate(matrices):
        matrix = square_matrix(W, name=f"matrices[{number}]")
        size = size or len(matrix)
        if len(matrix) != size:
            raise InputError(
                f"matrices[{number}] is {len(matrix)} × {len(matrix)} where matrices[0] is {size} × {size}: "
                "every round mixes the same agents"
            )
        order.append(places.setdefault(matrix.tobytes(), len(places)))
    if not order:
        raise InputError("a schedule needs at least one matrix, got none")
    distinct = np.frombuffer(b"".join(places)).reshape(-1, size, size)
    return Schedule(distinct, np.array(order), repeats)
