"""Which agent holds which samples.

How unlike the agents' data are decides how hard they must work to agree: `iid` deals them alike,
`label` gives each agent a class or two, `dirichlet` and `skew` reach everything between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape

import numpy as np
from jaxtyping import Float64, Int64

from ntkp2p.base.checks import LARGEST_SEED, Count, is_number, real, whole
from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry, parameters_of
from ntkp2p.base.reports import html_table
from ntkp2p.data.datasets import Dataset


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AgentData:
    """A data set and the rows that each agent holds.

    Parameters
    ----------
    dataset
        The samples.
    indices
        For each agent the rows of ``dataset.inputs`` that it holds. No row twice; rows that no agent
        holds are left out of `inputs`, `targets` and `labels`.
    by
        How they were dealt, for reports.

    Raises
    ------
    ValueError
        For no agents, an agent without samples, rows that do not exist, or a row held twice.

    Examples
    --------
    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> line = p2p.data.Dataset(name="line", inputs=np.ones((4, 3)), targets=np.ones((4, 1)))
    >>> p2p.data.AgentData(dataset=line, indices=(np.array([0]), np.array([3, 1])))
    AgentData('line': 3 samples, 2 agents with 1 to 2 each, dealt by hand)
    """

    dataset: Dataset
    indices: tuple[np.ndarray, ...]
    by: str = "hand"

    def __post_init__(self):
        indices = tuple(_row_numbers(agent, rows) for agent, rows in enumerate(self.indices))
        if not indices:
            raise InputError("indices name no agents: give one array of rows for each agent")
        rows, counts = np.unique(np.concatenate(indices), return_counts=True)
        if rows[0] < 0 or rows[-1] >= self.dataset.samples:
            wrong = rows[0] if rows[0] < 0 else rows[-1]
            raise InputError(
                f"indices contain row {wrong}, but the rows of {self.dataset.name} are 0 to "
                f"{self.dataset.samples - 1}: leave it out"
            )
        if counts.max() > 1:
            raise InputError(
                f"indices contain row {rows[counts > 1][0]} more than once "
                f"(first of {np.sum(counts > 1)}): deal every row to one agent"
            )
        object.__setattr__(self, "indices", indices)

    @property
    def agents(self) -> int:
        """Q, the number of agents."""
        return len(self.indices)

    @cached_property
    def sizes(self) -> Int64[np.ndarray, "Q"]:
        """N_q, how many samples each agent holds."""
        return np.array([rows.size for rows in self.indices], np.int64)

    @cached_property
    def owner(self) -> Int64[np.ndarray, "N"]:
        """The agent that holds each row of `inputs`: 0 … 0, 1 … 1, …"""
        return np.repeat(np.arange(self.agents, dtype=np.int64), self.sizes)

    @cached_property
    def inputs(self) -> Float64[np.ndarray, "N ..."]:
        """The agents' inputs, agent 0's first."""
        return self.dataset.inputs[np.concatenate(self.indices)]

    @cached_property
    def targets(self) -> Float64[np.ndarray, "N C"]:
        """The agents' targets, in the order of `inputs`."""
        return self.dataset.targets[np.concatenate(self.indices)]

    @cached_property
    def labels(self) -> Int64[np.ndarray, "N"] | None:
        """The agents' labels, in the order of `inputs`; None for a regression."""
        labels = self.dataset.labels
        return None if labels is None else labels[np.concatenate(self.indices)]

    def per_agent(self, array: np.ndarray, /) -> np.ndarray:
        """One block of rows for each agent.

        Parameters
        ----------
        array
            Rows in the order of `inputs`, shape (N, ...).

        Returns
        -------
        ndarray, shape (Q, largest N_q, ...)
            Zeros after the rows of smaller agents.
        """
        blocks = np.zeros((self.agents, self.sizes.max(), *array.shape[1:]), array.dtype)
        within = np.arange(self.samples) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
        blocks[self.owner, within] = array
        return blocks

    @property
    def test_inputs(self) -> Float64[np.ndarray, "M ..."]:
        """The test inputs, which belong to no agent."""
        return self.dataset.test_inputs

    @property
    def test_targets(self) -> Float64[np.ndarray, "M C"]:
        """The test targets."""
        return self.dataset.test_targets

    @property
    def test_labels(self) -> Int64[np.ndarray, "M"] | None:
        """The test labels; None for a regression."""
        return self.dataset.test_labels

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.dataset.name

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The classes' original labels; None for a regression."""
        return self.dataset.classes

    @property
    def samples(self) -> int:
        """N, how many samples the agents hold together."""
        return int(self.sizes.sum())

    @property
    def outputs(self) -> int:
        """C, the number of outputs of a model of these data."""
        return self.dataset.outputs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.dataset.input_shape

    def __repr__(self) -> str:
        least, most = self.sizes.min(), self.sizes.max()
        each = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"AgentData({self.name!r}: {self.samples} samples, {self.agents} agents with {each} "
            f"each, dealt by {self.by})"
        )

    def _repr_html_(self) -> str:
        title = f"<b>{escape(self.name)}</b>, dealt by {escape(self.by)}"
        if self.labels is None or self.classes is None:
            return title + html_table(["agent", "samples"], enumerate(self.sizes))
        counts = np.zeros((self.agents, len(self.classes)), np.int64)
        np.add.at(counts, (self.owner, self.labels), 1)
        rows = ([agent, *row, row.sum()] for agent, row in enumerate(counts))
        return title + html_table(["agent", *(f"class {c}" for c in self.classes), "all"], rows)


def split(
    dataset: Dataset,
    agents: Count,
    *,
    by: str = "iid",
    seed: Count = 0,
    alpha: int | float | None = None,
    skew: int | float | None = None,
) -> AgentData:
    """Deal every training sample to one of the agents.

    Parameters
    ----------
    dataset
        What to deal.
    agents
        Q, how many agents there are.
    by
        One of `PARTITIONS`:

        ============= ==============================================================================
        ``iid``       shuffled, in equal parts
        ``label``     sorted by label (a regression by its first target), in equal parts
        ``dirichlet`` each class in proportions drawn from Dir(alpha, …, alpha), so that small
                      alpha gives a class to few agents, large alpha alike to all
        ``skew``      the share `skew` of each class as by ``label``, the rest as by ``iid``
        ============= ==============================================================================

        Equal parts differ by one sample at most. ``"package.module:Name"`` is a function of your own:
        `Name(dataset, agents, rng)` returns the rows of each agent, and may take alpha or skew.
    seed
        Shuffles and draws.
    alpha
        Concentration, positive: for ``dirichlet`` only.
    skew
        From 0 (``iid``) to 1 (``label``): for ``skew`` only.

    Returns
    -------
    AgentData
        The same for the same seed.

    Raises
    ------
    ValueError
        For fewer samples than agents, an unknown `by`, or an option that is missing, out of range
        or of no use to `by`.

    Notes
    -----
    Every agent gets at least one sample. A Dirichlet draw that leaves one without is drawn again,
    up to 100 times; the draws are thus conditioned on every agent having samples.

    Examples
    --------
    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> line = p2p.data.Dataset(name="line", inputs=np.ones((4, 3)), targets=np.arange(4.0)[:, None])
    >>> p2p.data.split(line, 2, by="label").targets.ravel()
    array([0., 1., 2., 3.])
    """
    agents = whole(agents, "agents", least=1)
    if dataset.samples < agents:
        raise InputError(
            f"{dataset.samples} samples cannot be dealt to {agents} agents: take fewer agents or more samples"
        )
    deal = PARTITIONS[by]
    takes = parameters_of(deal)
    options = {}
    for name, value in (("alpha", alpha), ("skew", skew)):
        if name in takes and value is None:
            raise InputError(f"by={by!r} needs {name}: split(…, by={by!r}, {name}=…)")
        if name not in takes and value is not None:
            raise InputError(f"by={by!r} takes no {name}: leave it out, or choose another by")
        if name in takes:
            options[name] = value
    rng = np.random.default_rng(whole(seed, "seed", least=0, most=LARGEST_SEED))
    described = ", ".join([by, *(f"{name}={value}" for name, value in options.items())])
    return AgentData(dataset=dataset, indices=tuple(deal(dataset, agents, rng, **options)), by=described)


def _iid(dataset: Dataset, agents: int, rng: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(rng.permutation(dataset.samples), agents)


def _label(dataset: Dataset, agents: int, rng: np.random.Generator) -> list[np.ndarray]:
    return np.array_split(_sorted(dataset, rng.permutation(dataset.samples)), agents)


def _dirichlet(dataset: Dataset, agents: int, rng: np.random.Generator, *, alpha: int | float) -> list[np.ndarray]:
    alpha = real(alpha, "alpha", above=0)
    if dataset.labels is None:
        raise InputError(
            f"by='dirichlet' needs classes and {dataset.name} has none (regression): use by='skew' or by='label'"
        )
    for _ in range(100):
        owner = np.empty(dataset.samples, np.int64)
        for label in np.unique(dataset.labels):
            rows = rng.permutation(np.flatnonzero(dataset.labels == label))
            shares = np.cumsum(rng.dirichlet(np.full(agents, float(alpha))))[:-1]
            for agent, part in enumerate(np.split(rows, np.rint(shares * rows.size).astype(int))):
                owner[part] = agent
        if np.unique(owner).size == agents:
            return [np.flatnonzero(owner == agent) for agent in range(agents)]
    raise InputError(
        f"in 100 draws with alpha={alpha} one of the {agents} agents got no sample: "
        "raise alpha, or take fewer agents or more samples"
    )


def _skew(dataset: Dataset, agents: int, rng: np.random.Generator, *, skew: int | float) -> list[np.ndarray]:
    if not is_number(skew) or not 0 <= skew <= 1:
        raise InputError(f"skew must be a number from 0 to 1, found {skew!r}")
    shuffled = rng.permutation(dataset.samples)
    # A regression counts as one class: a random share of it is dealt in the order of the targets.
    labels = np.zeros(dataset.samples) if dataset.labels is None else dataset.labels
    groups = [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
    sizes = [round(skew * group.size) for group in groups]
    by_label = _sorted(dataset, np.concatenate([g[:n] for g, n in zip(groups, sizes, strict=True)]))
    rest = rng.permutation(np.concatenate([g[n:] for g, n in zip(groups, sizes, strict=True)]))
    chunks = np.array_split(by_label, agents)
    # The rest fills the agents up to equal parts of all samples.
    full = [part.size for part in np.array_split(shuffled, agents)]
    free = [size - chunk.size for size, chunk in zip(full, chunks, strict=True)]
    fills = np.split(rest, np.cumsum(free)[:-1])
    return [np.concatenate(pair) for pair in zip(chunks, fills, strict=True)]


PARTITIONS: Registry[Callable[..., list[np.ndarray]]] = Registry(
    "partition", {"iid": _iid, "label": _label, "dirichlet": _dirichlet, "skew": _skew}
)


def _sorted(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows by label or first target; equal ones keep the order in which they come."""
    key = dataset.targets[:, 0] if dataset.labels is None else dataset.labels
    return rows[np.argsort(key[rows], kind="stable")]


def _row_numbers(agent: int, rows: object) -> Int64[np.ndarray, "_"]:
    array = np.asarray(rows)
    if array.size == 0:
        raise InputError(f"agent {agent} has no samples: give it some or leave it out")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"agent {agent}'s rows must be whole numbers in one dimension, not {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)
