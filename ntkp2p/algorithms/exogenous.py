"""What of a run does not depend on its models: weights and counters in the state, and what is sent.

The leaves of a state whose shape depends on d, the size of a model, move with the models. The others are exogenous:
they take the same course in every run over the same mixing matrices, so that they can be followed beforehand.
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

#: By which share exogenous numbers that are the same may differ, times √rounds; counters may not.
ROUNDING = 4 * np.finfo(float).eps
#: Up to so many rounds NumPy takes, one after another: a compiled program is quicker, but has to be compiled first.
FEW = 64
#: Beyond so many rounds no repetition is looked for.
LONGEST = 2**16


class Form(NamedTuple):
    """How a state of an algorithm falls into two parts.

    Attributes
    ----------
    tree
        The structure of the state.
    moves
        By leaf: whether it moves with the models.
    """

    tree: Any
    moves: tuple[bool, ...]

    @staticmethod
    def of(algorithm: Algorithm, agents: int) -> "Form":
        """That of an algorithm's states.

        Parameters
        ----------
        algorithm
            Whose states they are.
        agents
            Q, how many there are.
        """
        leaves, trees = zip(
            *(jax.tree.flatten(jax.eval_shape(_first(algorithm, agents, d))) for d in (3, 5)), strict=True
        )
        return Form(trees[0], tuple(a.shape != b.shape for a, b in zip(*leaves, strict=True)))

    def split(self, state: PyTree) -> tuple[list, list]:
        """The leaves of a `state` that move with the models, and the exogenous ones."""
        leaves = jax.tree.leaves(state)
        return [x for x, m in zip(leaves, self.moves, strict=True) if m], [
            x for x, m in zip(leaves, self.moves, strict=True) if not m
        ]

    def join(self, moving: list, exogenous: list) -> PyTree:
        """The state with these leaves.

        Parameters
        ----------
        moving, exogenous
            As `split` returns them.
        """
        parts = {True: iter(moving), False: iter(exogenous)}
        return jax.tree.unflatten(self.tree, [next(parts[m]) for m in self.moves])


class MessageCounts(NamedTuple):
    """What every agent does in a round: one number each, or one a round.

    Attributes
    ----------
    messages, bytes
        To each of its out-neighbours.
    merges, merged
        Messages and bytes for averages of all.
    gradients
        How many gradients it takes.
    """

    messages: Any = 0.0
    bytes: Any = 0.0
    merges: Any = 0.0
    merged: Any = 0.0
    gradients: Any = 0.0


#: Bytes of an entry that is sent as a float32.
DENSE_ENTRY = 4


class _Counting:
    """A world without models, which notes what passes."""

    def __init__(self, layers: tuple[int, ...], mix: Callable, *, known: bool):
        # Conditions are known unless they depend on models; such ones count as if they held.
        self.layers, self._mix, self._known = layers, mix, known
        self.total, self.compressed = MessageCounts(), []

    def world(self) -> World:
        return World(mix=self.mix, grad=self.grad, own=self._own, compress=self.compress, average=self.average)

    def _add(self, **more: Any) -> None:
        self.total = self.total._replace(**{name: getattr(self.total, name) + value for name, value in more.items()})

    def mix(self, x):
        alike = [message for message in self.compressed if message[0].shape == x.shape]
        message = next((m for m in alike if m[0] is x), alike[0] if alike else None)
        sent = DENSE_ENTRY * x.shape[1] if message is None else message[1]
        self.compressed = [m for m in self.compressed if m is not message]
        # What one round sends to a neighbour travels together.
        self.total = self.total._replace(messages=1.0)
        self._add(bytes=sent)
        return self._mix(x)

    def grad(self, x, /, *, when=True):
        self._add(gradients=self._where(when, 1.0, 0.0))
        return namespace(x).zeros_like(x)

    def _own(self, x):
        return x

    def compress(self, x, by: Compressor, /, *, everything=False):
        few = sum(by.bits(size) for size in self.layers) / 8
        sent = namespace(x).zeros_like(x)
        self.compressed.append((sent, self._where(everything, DENSE_ENTRY * x.shape[1], few)))
        return sent

    def _where(self, condition: Any, yes: Any, no: Any) -> Any:
        """One of two numbers, which stays a number where the condition is one."""
        if isinstance(condition, bool) or not self._known:
            return no if condition is False else yes
        return namespace(condition).where(condition, yes, no)

    def average(self, x, /, *, when=True):
        # As rings do it: every agent passes on each of Q parts of the sum, and then each of the means, but its own.
        steps = 2.0 * (len(x) - 1)
        part = DENSE_ENTRY * x.shape[1] / len(x)
        self._add(merged=self._where(when, steps * part, 0.0))
        # As with messages to neighbours, what is averaged in one round travels together.
        now = self._where(when, steps, 0.0)
        most = now if isinstance(now, float) else namespace(now, self.total.merges).maximum(now, self.total.merges)
        self.total = self.total._replace(merges=most)
        return World._field_defaults["average"](x, when=when)


class Course(NamedTuple):
    """The exogenous part of a run.

    Attributes
    ----------
    states
        The exogenous leaves before the rounds 0, …, T, each of shape (T + 1, ...).
    message_counts
        Of the rounds 0, …, T − 1.
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
    """Follow a run over the mixing matrices matrices[order[k]] without any models.

    Parameters
    ----------
    layers
        The sizes of a model's layers, on which the messages' sizes depend; none if messages are not to be counted.
    """
    if (one := message_counts_of_any_round(algorithm, matrices.shape[1], layers=layers)) is not None:
        return Course([], MessageCounts(*(np.full(len(order), value) for value in one)))
    form = Form.of(algorithm, matrices.shape[1])
    if not layers and len(order) <= FEW and (plain := _by_numpy(algorithm, form, matrices, order)) is not None:
        return Course(plain, MessageCounts())
    constants, rest = without_constants(algorithm) if layers else eqx.partition(algorithm, eqx.is_inexact_array_like)
    states, message_counts = _follow(rest, layers, form, constants, jnp.asarray(matrices), jnp.asarray(order))
    return Course([np.asarray(leaf) for leaf in states], MessageCounts(*map(np.asarray, message_counts)))


def message_counts_of_any_round(
    algorithm: Algorithm, agents: int, /, *, layers: tuple[int, ...]
) -> MessageCounts | None:
    """What a round sends where all are alike, for nothing takes its course beside the models; otherwise None."""
    try:
        return _message_counts_of_any_round(_plain(algorithm), agents, layers)
    except TypeError:  # an algorithm that cannot be hashed
        return _message_counts_of_any_round.__wrapped__(algorithm, agents, layers)


@lru_cache(maxsize=256)
def _message_counts_of_any_round(algorithm: Algorithm, agents: int, layers: tuple[int, ...]) -> MessageCounts | None:
    if not all(Form.of(algorithm, agents).moves):
        return None
    counting = _Counting(layers, lambda x: x, known=False)
    start = _first(algorithm, agents, sum(layers))
    jax.eval_shape(lambda: algorithm.round(start(), counting.world()))
    return MessageCounts(*map(float, counting.total))


def _plain(algorithm: Algorithm) -> Algorithm:
    """With plain numbers for constants, by which it can be told from others."""
    return jax.tree.map(lambda leaf: float(leaf) if eqx.is_inexact_array(leaf) else leaf, algorithm)


@np.errstate(all="ignore")  # as JAX does
def _by_numpy(algorithm: Algorithm, form: Form, matrices: np.ndarray, order: np.ndarray) -> list[np.ndarray] | None:
    """The exogenous leaves before every round, without a compiler; None where a round takes JAX's own functions."""
    states = []
    try:
        parts = form.split(algorithm.init(fixed(np.zeros((matrices.shape[1], 1)))))
        still, after = ([fixed(leaf) for leaf in part] for part in parts)
        states.append(after)
        for which in order:
            world = _Counting((), partial(np.matmul, matrices[which]), known=True).world()
            after = form.split(algorithm.round(form.join(still, states[-1]), world))[1]
            if any(isinstance(leaf, jax.Array) for leaf in after):
                return None
            states.append([fixed(np.asarray(new, old.dtype)) for new, old in zip(after, states[-1], strict=True)])
    except LACKING:
        return None
    return [np.stack(leaves) for leaves in zip(*states, strict=True)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _follow(rest: Algorithm, layers: tuple[int, ...], form: Form, constants: PyTree, matrices: Array, order: Array):
    algorithm = eqx.combine(constants, rest)
    first = _first(algorithm, matrices.shape[1], max(1, sum(layers)))
    # Nothing comes out that depends on the models, so that the compiler leaves them out.
    still = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in form.split(jax.eval_shape(first))[0]]

    def advance(exogenous, which):
        counting = _Counting(layers, partial(jnp.matmul, matrices[which]), known=True)
        after = algorithm.round(form.join(still, exogenous), counting.world())
        now = [jnp.asarray(x, old.dtype) for x, old in zip(form.split(after)[1], exogenous, strict=True)]
        return now, (exogenous, MessageCounts(*(jnp.asarray(value, float) for value in counting.total)))

    start = [jnp.asarray(leaf) for leaf in form.split(first())[1]]
    last, (before, message_counts) = jax.lax.scan(advance, start, order)
    return [jnp.concatenate([some, end[None]]) for some, end in zip(before, last, strict=True)], message_counts


def _first(algorithm: Algorithm, agents: int, size: int) -> Callable[[], PyTree]:
    return lambda: algorithm.init(jnp.zeros((agents, size)))


class Repetition(NamedTuple):
    """From which round on a course repeats itself, and after how many rounds: 0 if it does not.

    The states are those before the rounds 0, …, begin + length − 1; of a course without end, as far as it was followed.
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
    """Where the course of an algorithm over a schedule begins to repeat itself, to rounding.

    Weights that approach a limit, or an orbit, are there once they stay within rounding of it for at least as many
    rounds as they have taken. Where the columns sum to one to rounding only, all weights together gain or lose as much
    in every round: that is rounding, too.

    Parameters
    ----------
    periodic
        Whether the order repeats after its end.
    most
        The rounds for which the course is wanted; without, it is followed for up to `LONGEST` or a little more.
    """
    period = len(order)
    if all(Form.of(algorithm, matrices.shape[1]).moves):
        return Repetition(0, period if periodic else 0, [])
    if not periodic:
        return Repetition(period, 0, course(algorithm, matrices, order, layers=()).states)
    most = max(LONGEST, 4 * period) if most is None else most
    rounds, states, gain = 0, [], _gain(matrices)
    while rounds < most:
        rounds = min(most, max(64, 4 * period, 4 * rounds))
        states = course(algorithm, matrices, order[np.arange(rounds) % period], layers=()).states
        rows = np.concatenate([np.reshape(leaf, (len(leaf), -1)).astype(float) for leaf in states], axis=1)
        rounded = np.concatenate([np.full(leaf[0].size, leaf.dtype.kind == "f") for leaf in states])
        # A share of every entry: of a weight, however small it is, its model is a quotient.
        share = ROUNDING * np.sqrt(rounds) + rounds * gain
        tolerance = np.where(rounded, share * np.abs(rows[-1]), 0.0)
        for length in range(period, rounds // 4 + 1, period):
            if (np.abs(rows[-1 - length] - rows[-1]) > tolerance).any():
                continue
            # Each row beside the last one of its phase: what creeps is not there yet, however slowly it does.
            last = rounds - (rounds - np.arange(rounds + 1)) % length
            differs = np.flatnonzero((np.abs(rows - rows[last]) > tolerance).any(axis=1))
            begin = int(differs[-1]) + 1 if len(differs) else 0
            if begin <= rounds // 2:
                return Repetition(begin, length, [leaf[: begin + length] for leaf in states])
    return Repetition(rounds, 0, states)


def _gain(matrices: Float[np.ndarray, "D Q Q"]) -> float:
    """By which share a round changes what it would keep if columns, or rows, summed to one; 0 if not by rounding."""
    exact = matrices.astype(np.longdouble)  # float64 would round these very differences
    gain = min(float(abs(exact.sum(axis) - 1).max()) for axis in (1, 2))
    return gain if gain < 1e-12 else 0.0
