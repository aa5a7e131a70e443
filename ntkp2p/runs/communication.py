"""What a run sends: messages and bytes of every agent in every round, and what they would cost in energy.

Nothing is measured on a network. An algorithm's round is followed without its models, and what it mixes is counted: 4
bytes for a number of a dense message, push-sum's weight among them, and 6 for an entry that a compressor keeps, 4 for
its value and 2 for its place. A message goes to every agent r that hears q, W[r, q] ≠ 0; what a round sends to one
neighbour travels together. An average of all agents is counted as a ring does it: 2 (Q − 1) messages of an agent, each
with one of Q parts of its model. For asynchronous agents, every message sent is counted, whether it is
taken or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntkp2p.algorithms.exogenous import DENSE_ENTRY, MessageCounts, course, message_counts_of_any_round
from ntkp2p.base.checks import is_number
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.reports import Report, Rows, Verdict
from ntkp2p.models.losses import LOSSES
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.measures import COUNTERS
from ntkp2p.topology.mixing import RunMixing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Communication(Report):
    """What the agents of a run send and compute; print it for the totals.

    Attributes
    ----------
    experiment
        The run.
    messages, bytes
        That every agent sends in every round, shape (K, Q). Of a compressor that draws how many entries it sends, the
        mean.
    dense
        The bytes of the same messages to neighbours, were each the model in float32 and nothing else, shape (K, Q).
    gradients
        That every agent takes in every round, shape (K, Q).
    """

    experiment: Experiment
    messages: Float[np.ndarray, "K Q"]
    bytes: Float[np.ndarray, "K Q"]
    dense: Float[np.ndarray, "K Q"]
    gradients: Float[np.ndarray, "K Q"]

    @property
    def reduction(self) -> float:
        """How many times fewer bytes than dense float32 exchange over the same links in the same rounds."""
        return float(self.dense.sum() / self.bytes.sum()) if self.bytes.any() else float("inf")

    @cached_property
    def gradient_flops(self) -> float:
        """Floating-point operations of one gradient of one agent, the mean over agents, as XLA counts them."""
        return _flops(self.experiment)

    def energy(self, *, picojoules_per_bit: float, picojoules_per_flop: float) -> dict[str, np.ndarray]:
        """What sending and computing would take at constants that are stated, not measured.

        Parameters
        ----------
        picojoules_per_bit
            Of a bit that is sent.
        picojoules_per_flop
            Of a floating-point operation of a gradient.

        Returns
        -------
        dict
            "communication" and "computation" of every agent over the run, in joules, each of shape (Q,).

        Raises
        ------
        ValueError
            If a constant is not a finite number ≥ 0.
        """
        constants = {"picojoules_per_bit": picojoules_per_bit, "picojoules_per_flop": picojoules_per_flop}
        for name, value in constants.items():
            if not (is_number(value) and value >= 0):
                raise InputError(f"{name} must be a finite number ≥ 0, found {value!r}")
        return {
            "communication": 8 * self.bytes.sum(axis=0) * picojoules_per_bit * 1e-12,
            "computation": self.gradients.sum(axis=0) * self.gradient_flops * picojoules_per_flop * 1e-12,
        }

    def to_dataset(self) -> "xr.Dataset":
        """Messages, bytes and gradients by round and agent."""
        import xarray as xr

        return xr.Dataset(
            {name: (("round", "agent"), getattr(self, name)) for name in ("messages", "bytes", "dense", "gradients")}
        )

    def plot(self) -> "list[Axes]":
        """The bytes that are sent by each round, and by each agent, beside dense exchange; returns both axes."""
        from ntkp2p.runs import plots

        return plots.communication(self)

    @property
    def title(self) -> str:
        run = self.experiment
        return f"Communication of {run.algorithm.name}, {run.agents} agents, {run.rounds} rounds"

    @property
    def sections(self) -> Mapping[str, Rows]:
        run, agents = self.experiment, self.bytes.shape[1]
        busiest = int(self.bytes.sum(axis=0).argmax())
        return {
            "": [
                ("parameters of a model", f"{sum(run.layers):,}"),
                ("messages of an agent", f"{self.messages.sum() / agents:,.0f} in all, on average"),
                ("bytes of an agent", f"{self.bytes.sum() / agents:,.0f} in all, on average"),
                ("busiest agent", f"{busiest}, {self.bytes[:, busiest].sum():,.0f} bytes"),
                ("a round", f"{self.bytes.mean():,.0f} bytes of an agent, on average"),
                ("dense float32 exchange", f"{self.dense.sum() / agents:,.0f} bytes of an agent, on average"),
                ("reduction", f"{self.reduction:.4g}×"),
                ("gradients of an agent", f"{self.gradients.sum() / agents:,.0f} in all, on average"),
            ]
        }

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        return {}


@in_float64
def _flops(run: Experiment) -> float:
    theta, apply = run.initialise().astype(run.precision).flat()
    samples = float(run.data.sizes.mean() if run.batch_size is None else run.batch_size)
    batch = round(samples)
    inputs, targets = (jnp.asarray(a[:batch], run.precision) for a in (run.data.inputs, run.data.targets))

    def loss(theta):
        return jnp.mean(LOSSES[run.loss](apply(theta, inputs), targets))

    counted = jax.jit(jax.grad(loss)).lower(theta).compile().cost_analysis()
    return float((counted or {}).get("flops", np.nan)) * samples / batch


@in_float64
def communication(experiment: Experiment, /) -> Communication:
    """Count the messages, bytes and gradients of a run, without training.

    Parameters
    ----------
    experiment
        The run. For asynchronous agents, the events are those of its training.

    Returns
    -------
    communication
        Messages, bytes and gradients by round, the `reduction` relative to dense messages, and `energy(...)`.

    Raises
    ------
    ValueError
        If the network has infinite width, and hence no parameters to send.

    Examples
    --------
    The model has 64 weights and a bias. An eighth of the entries of each, at least one, is sent with 6 bytes per entry,
    and push-sum's weight with 4 bytes: 6 (8 + 1) + 4 = 58 bytes instead of 260:

    >>> import ntkp2p as p2p
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=p2p.data.load("regression", samples=6, test_samples=0, features=64).split(3),
    ...     mixing=p2p.push_weights(p2p.graphs.directed_ring(3)),
    ...     algorithm=p2p.SparsePush(step_size=0.1, compression=p2p.TopK(0.125)),
    ...     rounds=20,
    ... )
    >>> sent = p2p.communication(experiment)
    >>> sent.messages.shape, float(sent.bytes[0, 0]), round(sent.reduction, 3)
    ((20, 3), 58.0, 4.483)
    """
    experiment = experiment.sampled()
    size = sum(experiment.layers)
    if experiment.asynchronous:
        every = sent_until(experiment, np.arange(int(experiment.rounds) + 1))
        messages, sent_bytes, gradients = (np.diff(every[name], axis=0) for name in COUNTERS)
        return Communication(experiment, messages, sent_bytes, DENSE_ENTRY * size * messages, gradients)
    sent, hearers, order = _followed(experiment, int(experiment.rounds))
    hearers = hearers[order]
    return Communication(
        experiment,
        messages=sent.messages[:, None] * hearers + sent.merges[:, None],
        bytes=sent.bytes[:, None] * hearers + sent.merged[:, None],
        dense=DENSE_ENTRY * size * sent.messages[:, None] * hearers,
        gradients=np.tile(sent.gradients[:, None], experiment.agents),
    )


@in_float64
def sent_until(experiment: Experiment, rounds: np.ndarray, /) -> dict[str, np.ndarray]:
    """The totals of `measures.COUNTERS` before some ascending rounds, shape (times, Q).

    For clocks without given events, the mean.
    """
    if experiment.asynchronous:
        messages, updates = experiment.topology.sent_until(rounds), experiment.topology.computed_until(rounds)
        # All rounds are alike: a message is one of any of them, and an update takes the gradients of one.
        alike = np.eye(experiment.agents)[None], np.zeros(1, int)
        one = course(experiment.algorithm, *alike, layers=experiment.layers).message_counts
        return {
            "messages": messages,
            "bytes_sent": float(one.bytes[0]) * messages,
            "gradients": float(one.gradients[0]) * updates,
        }
    schedule = experiment.topology
    layers = experiment.layers
    if (one := message_counts_of_any_round(experiment.algorithm, experiment.agents, layers=layers)) is not None:
        heard, every = _heard_until(schedule, rounds), rounds[:, None]
        return {
            "messages": one.messages * heard + one.merges * every,
            "bytes_sent": one.bytes * heard + one.merged * every,
            "gradients": np.tile(one.gradients * every, experiment.agents),
        }
    sent, hearers, order = _followed(experiment, int(rounds[-1]))
    totals = {"messages": (sent.messages, sent.merges), "bytes_sent": (sent.bytes, sent.merged)}
    found = {}
    for name, (to_each, merged) in totals.items():
        until, counted, total = 0, [], np.zeros(experiment.agents)
        for k in map(int, rounds):
            by_matrix = np.bincount(order[until:k], weights=to_each[until:k], minlength=len(hearers))
            total = total + by_matrix @ hearers + merged[until:k].sum()
            until = k
            counted.append(total)
        found[name] = np.array(counted)
    gradients = np.append(0.0, np.cumsum(sent.gradients))[rounds]
    return found | {"gradients": np.tile(gradients[:, None], experiment.agents)}


def _followed(experiment: Experiment, rounds: int) -> tuple[MessageCounts, np.ndarray, np.ndarray]:
    """Message counts of the rounds, each agent's receivers by distinct matrix, and each round's matrix."""
    schedule = experiment.topology
    order = schedule.order[np.arange(rounds) % len(schedule.order)]
    layers = experiment.layers
    return (
        course(experiment.algorithm, schedule.matrices, order, layers=layers).message_counts,
        _hearers(schedule),
        order,
    )


def _hearers(schedule: RunMixing) -> np.ndarray:
    """How many hear each agent, by distinct matrix, shape (D, Q)."""
    return ((schedule.matrices != 0) & ~np.eye(schedule.agents, dtype=bool)).sum(axis=1)


def _heard_until(schedule: RunMixing, rounds: np.ndarray) -> np.ndarray:
    """How many have heard each agent before some rounds if it sends once a round, shape (times, Q)."""
    once = np.zeros((schedule.period + 1, schedule.agents))
    np.cumsum(_hearers(schedule)[schedule.order], axis=0, out=once[1:])
    periods, rest = np.divmod(rounds, schedule.period)
    return periods[:, None] * once[-1] + once[rest]
