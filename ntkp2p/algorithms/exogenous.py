"""The model-independent part of a run: weights and counters in the state, and message counts.

The leaves of a state whose shape depends on d, the size of a model, depend on the models. The other leaves are
model-independent, or exogenous: they take the same values in every run over the same mixing matrices, so they can be
computed before the run.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms.algorithm import Algorithm, World, without_constants
from ntkp2p.algorithms.compression import Compressor
from ntkp2p.base.arrays import LACKING, fixed, namespace

#: The relative tolerance for equal values of exogenous floats, times √rounds; counters must be equal.
ROUNDING = 4 * np.finfo(float).eps
#: Runs of at most this many rounds use NumPy. A compiled program is faster, but its compilation takes longer.
FEW = 64
#: The largest number of rounds in which a repetition is searched for.
LONGEST = 2**16


class Form(NamedTuple):
    """The partition of an algorithm's state into a model-dependent and an exogenous part.

    Attributes
    ----------
    tree
        The structure of the state.
    moves
        For each leaf, whether it depends on the models.
    """

    tree: Any
    moves: tuple[bool, ...]

    @staticmethod
    def of(algorithm: Algorithm, agents: int) -> "Form":
        """Return the partition for an algorithm.

        Parameters
        ----------
        algorithm
            The algorithm.
        agents
            Q, the number of agents.
        """
        leaves, trees = zip(
            *(jax.tree.flatten(jax.eval_shape(_initial(algorithm, agents, d))) for d in (3, 5)), strict=True
        )
        return Form(trees[0], tuple(a.shape != b.shape for a, b in zip(*leaves, strict=True)))

    def split(self, state: PyTree) -> tuple[list, list]:
        """Return the model-dependent leaves of a `state`, and the exogenous leaves."""
        leaves = jax.tree.leaves(state)
        return [x for x, m in zip(leaves, self.moves, strict=True) if m], [
            x for x, m in zip(leaves, self.moves, strict=True) if not m
        ]

    def join(self, moving: list, exogenous: list) -> PyTree:
        """Return the state with the given leaves.

        Parameters
        ----------
        moving, exogenous
            The model-dependent and the exogenous leaves, as returned by `split`.
        """
        parts = {True: iter(moving), False: iter(exogenous)}
        return jax.tree.unflatten(self.tree, [next(parts[m]) for m in self.moves])


class MessageCounts(NamedTuple):
    """Messages, bytes and gradients per agent and round: a number each, or an array with one number per round.

    Attributes
    ----------
    messages, bytes
        Messages and bytes that an agent sends to each of its out-neighbours.
    merges, merged
        Messages and bytes that an agent sends for averages over all agents.
    gradients
        The number of gradients that an agent computes.
    """

    messages: Any = 0.0
    bytes: Any = 0.0
    merges: Any = 0.0
    merged: Any = 0.0
    gradients: Any = 0.0


#: The bytes of an entry that is sent as a float32.
DENSE_ENTRY = 4


class _CountingWorld:
    """The operations of a `World` without models, which count messages and gradients."""

    def __init__(self, layers: tuple[int, ...], mix: Callable, *, known: bool):
        # With known=False, the values of conditions are unknown, and conditions count as true.
        self.layers, self._mix, self._known = layers, mix, known
        self.total, self.compressed = MessageCounts(), []

    def world(self) -> World:
        return World(mix=self.mix, grad=self.grad, own=self._own, compress=self.compress, average=self.average)

    def _add(self, **more: Any) -> None:
        self.total = self.total._replace(**{name: getattr(self.total, name) + value for name, value in more.items()})

    def mix(self, x):
        candidates = [message for message in self.compressed if message[0].shape == x.shape]
        message = next((m for m in candidates if m[0] is x), candidates[0] if candidates else None)
        sent = DENSE_ENTRY * x.shape[1] if message is None else message[1]
        self.compressed = [m for m in self.compressed if m is not message]
        # All values for a neighbour in one round count as one message.
        self.total = self.total._replace(messages=1.0)
        self._add(bytes=sent)
        return self._mix(x)

    def grad(self, x, /, *, when=True):
        self._add(gradients=self._where(when, 1.0, 0.0))
        return namespace(x).zeros_like(x)

    def _own(self, x):
        return x

    def compress(self, x, by: Compressor, /, *, everything=False):
        compressed_bytes = sum(by.bits(size) for size in self.layers) / 8
        sent = namespace(x).zeros_like(x)
        self.compressed.append((sent, self._where(everything, DENSE_ENTRY * x.shape[1], compressed_bytes)))
        return sent

    def _where(self, condition: Any, yes: Any, no: Any) -> Any:
        """Select one of two numbers; the result is a Python number if the condition is a Python bool."""
        if isinstance(condition, bool) or not self._known:
            return no if condition is False else yes
        return namespace(condition).where(condition, yes, no)

    def average(self, x, /, *, when=True):
        # Ring all-reduce: every agent forwards Q − 1 of Q parts of the sum, and then Q − 1 parts of the mean.
        steps = 2.0 * (len(x) - 1)
        part = DENSE_ENTRY * x.shape[1] / len(x)
        self._add(merged=self._where(when, steps * part, 0.0))
        # As for messages to neighbours, all averages of one round count as one exchange.
        merges = self._where(when, steps, 0.0)
        if not isinstance(merges, float):
            merges = namespace(merges, self.total.merges).maximum(merges, self.total.merges)
        self.total = self.total._replace(merges=merges)
        return World._field_defaults["average"](x, when=when)


class Course(NamedTuple):
    """The exogenous part of a run.

    Attributes
    ----------
    states
        The exogenous leaves before the rounds 0, …, T, each of shape (T + 1, ...).
    message_counts
        The message counts of the rounds 0, …, T − 1.
    """

    states: list[np.ndarray]
    message_counts: MessageCounts


def course(
    algorithm: Algorithm,
    matrices: Float[np.ndarray, "D Q Q"],
    order: np.ndarray,
    /,
    *,
    layers: tuple[int, ...] = (1,),
) -> Course:
    """Compute the exogenous part of a run.

    Parameters
    ----------
    algorithm
        The algorithm.
    matrices, order
        The mixing matrix of round k is matrices[order[k]].
    layers
        The sizes of a model's layers, which determine the sizes of messages; empty to skip the message counts.
    """
    if (one := message_counts_of_any_round(algorithm, matrices.shape[1], layers=layers)) is not None:
        return Course([], MessageCounts(*(np.full(len(order), value) for value in one)))
    form = Form.of(algorithm, matrices.shape[1])
    if not layers and len(order) <= FEW and (states := _with_numpy(algorithm, form, matrices, order)) is not None:
        return Course(states, MessageCounts())
    constants, rest = without_constants(algorithm) if layers else eqx.partition(algorithm, eqx.is_inexact_array_like)
    states, message_counts = _compiled(rest, layers, form, constants, jnp.asarray(matrices), jnp.asarray(order))
    return Course([np.asarray(leaf) for leaf in states], MessageCounts(*map(np.asarray, message_counts)))


def message_counts_of_any_round(
    algorithm: Algorithm, agents: int, /, *, layers: tuple[int, ...]
) -> MessageCounts | None:
    """Return the message counts of a round if no part of the state is exogenous, so all rounds agree; else None."""
    try:
        return _message_counts_of_any_round(_with_floats(algorithm), agents, layers)
    except TypeError:  # an algorithm that cannot be hashed
        return _message_counts_of_any_round.__wrapped__(algorithm, agents, layers)


@lru_cache(maxsize=256)
def _message_counts_of_any_round(algorithm: Algorithm, agents: int, layers: tuple[int, ...]) -> MessageCounts | None:
    if not all(Form.of(algorithm, agents).moves):
        return None
    counting = _CountingWorld(layers, lambda x: x, known=False)
    start = _initial(algorithm, agents, sum(layers))
    jax.eval_shape(lambda: algorithm.round(start(), counting.world()))
    return MessageCounts(*map(float, counting.total))


def _with_floats(algorithm: Algorithm) -> Algorithm:
    """Return the algorithm with Python floats as constants, which makes it hashable."""
    return jax.tree.map(lambda leaf: float(leaf) if eqx.is_inexact_array(leaf) else leaf, algorithm)


@np.errstate(all="ignore")  # as JAX does
def _with_numpy(algorithm: Algorithm, form: Form, matrices: np.ndarray, order: np.ndarray) -> list[np.ndarray] | None:
    """Compute the exogenous leaves before every round with NumPy; None if the round needs JAX's functions."""
    states = []
    try:
        parts = form.split(algorithm.init(fixed(np.zeros((matrices.shape[1], 1)))))
        models, after = ([fixed(leaf) for leaf in part] for part in parts)
        states.append(after)
        for index in order:
            world = _CountingWorld((), partial(np.matmul, matrices[index]), known=True).world()
            after = form.split(algorithm.round(form.join(models, states[-1]), world))[1]
            if any(isinstance(leaf, jax.Array) for leaf in after):
                return None
            states.append([fixed(np.asarray(new, old.dtype)) for new, old in zip(after, states[-1], strict=True)])
    except LACKING:
        return None
    return [np.stack(leaves) for leaves in zip(*states, strict=True)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(rest: Algorithm, layers: tuple[int, ...], form: Form, constants: PyTree, matrices: Array, order: Array):
    algorithm = eqx.combine(constants, rest)
    initial = _initial(algorithm, matrices.shape[1], max(1, sum(layers)))
    # No output depends on the models, so the compiler removes them.
    models = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in form.split(jax.eval_shape(initial))[0]]

    def advance(exogenous, index):
        counting = _CountingWorld(layers, partial(jnp.matmul, matrices[index]), known=True)
        after = algorithm.round(form.join(models, exogenous), counting.world())
        new = [jnp.asarray(x, old.dtype) for x, old in zip(form.split(after)[1], exogenous, strict=True)]
        return new, (exogenous, MessageCounts(*(jnp.asarray(value, float) for value in counting.total)))

    start = [jnp.asarray(leaf) for leaf in form.split(initial())[1]]
    last, (before, message_counts) = jax.lax.scan(advance, start, order)
    return [jnp.concatenate([leaf, end[None]]) for leaf, end in zip(before, last, strict=True)], message_counts


def _initial(algorithm: Algorithm, agents: int, size: int) -> Callable[[], PyTree]:
    return lambda: algorithm.init(jnp.zeros((agents, size)))


class Repetition(NamedTuple):
    """The exogenous part of a run that becomes periodic: the first round of the period, and its length.

    Attributes
    ----------
    begin, length
        The first round of the first period, and the number of rounds in a period; length 0 if there is no period.
    states
        The exogenous leaves before the rounds 0, …, begin + length − 1; without a period, before all rounds computed.
    """

    begin: int
    length: int
    states: list[np.ndarray]


def repetition(
    algorithm: Algorithm,
    matrices: Float[np.ndarray, "D Q Q"],
    order: np.ndarray,
    periodic: bool,
    /,
    *,
    most: int | None = None,
) -> Repetition:
    """Find the round from which the exogenous state over a schedule is periodic, up to rounding errors.

    Weights count as converged to a limit, or to a periodic orbit, when they stay within rounding errors of it for at
    least as many rounds as it took to reach it. If columns sum to one only up to rounding, the total weight changes
    by this error in every round; this also counts as rounding.

    Parameters
    ----------
    algorithm
        The algorithm.
    matrices, order
        The mixing matrix of round k is matrices[order[k]].
    periodic
        Whether the order repeats after its end.
    most
        The number of rounds needed. By default, up to the larger of `LONGEST` and four periods are computed.
    """
    period = len(order)
    if all(Form.of(algorithm, matrices.shape[1]).moves):
        return Repetition(0, period if periodic else 0, [])
    if not periodic:
        return Repetition(period, 0, course(algorithm, matrices, order, layers=()).states)
    most = max(LONGEST, 4 * period) if most is None else most
    rounds, states, sum_error = 0, [], _sum_error(matrices)
    while rounds < most:
        rounds = min(most, max(64, 4 * period, 4 * rounds))
        states = course(algorithm, matrices, order[np.arange(rounds) % period], layers=()).states
        rows = np.concatenate([np.reshape(leaf, (len(leaf), -1)).astype(float) for leaf in states], axis=1)
        floats = np.concatenate([np.full(leaf[0].size, leaf.dtype.kind == "f") for leaf in states])
        # The tolerance is relative for every entry, since a model is divided by its weight, which may be small.
        relative = ROUNDING * np.sqrt(rounds) + rounds * sum_error
        tolerance = np.where(floats, relative * np.abs(rows[-1]), 0.0)
        for length in range(period, rounds // 4 + 1, period):
            if (np.abs(rows[-1 - length] - rows[-1]) > tolerance).any():
                continue
            # Compare each row with the last row of the same phase, to detect slow changes.
            last = rounds - (rounds - np.arange(rounds + 1)) % length
            differs = np.flatnonzero((np.abs(rows - rows[last]) > tolerance).any(axis=1))
            begin = int(differs[-1]) + 1 if len(differs) else 0
            if begin <= rounds // 2:
                return Repetition(begin, length, [leaf[: begin + length] for leaf in states])
    return Repetition(rounds, 0, states)


def _sum_error(matrices: Float[np.ndarray, "D Q Q"]) -> float:
    """The largest |sum − 1| over the columns, or over the rows if that is smaller; 0 if it exceeds rounding errors."""
    exact = matrices.astype(np.longdouble)  # in float64, rounding would hide these differences
    error = min(float(abs(exact.sum(axis) - 1).max()) for axis in (1, 2))
    return error if error < 1e-12 else 0.0
