"""A round of those active agents: asynchronous agents act one event after another.

In an event at most two rows of the state take part, and all others stay as they are: the algorithm's round is taken of
these rows alone, in a world of their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms.algorithm import Algorithm, World
from ntkp2p.base.errors import InputError

#: An agent's number and model ↦ its gradient there.
Gradient = Callable[[Any, Float[Array, " d"]], Float[Array, " d"]]


def active_round(algorithm: Algorithm, state: PyTree, step: Any, gradient: Gradient, /) -> PyTree:
    """One event.

    Parameters
    ----------
    state
        Of all rows, which every leaf has first.
    step
        One of `ntkp2p.asynchrony.Steps`: which rows, what they take of each other, and whether the first one's agent
        ends a computation, or begins one.
    gradient
        Of an agent's local loss; it is asked for where a computation ends.
    """
    before = _taken(state, step.rows)
    after = algorithm.round(before, _world(step, gradient))
    return jax.tree.map(lambda leaf, new: leaf.at[step.rows].set(new, mode="drop"), state, after)


def mean_round(algorithm: Algorithm, state: PyTree, steps: Any, shares: Any, gradient: Gradient, /) -> PyTree:
    """The mean of the state after one event, where each of some events is the next one with a probability.

    Parameters
    ----------
    steps
        The events.
    shares
        Their probabilities, shape (E,).
    """

    def add(total, event):
        step, share = event
        before = _taken(state, step.rows)
        after = algorithm.round(before, _world(step, gradient))
        change = jax.tree.map(lambda new, old: share * (new - old), after, before)
        return jax.tree.map(lambda leaf, more: leaf.at[step.rows].add(more, mode="drop"), total, change), None

    return jax.lax.scan(add, state, (steps, shares))[0]


def must_be_asynchronous(algorithm: Algorithm, /) -> None:
    """Refuse an algorithm whose agents cannot be asynchronous."""
    reason = algorithm.synchronous or algorithm.static
    if algorithm.stochastic != "row":
        sums = {"column": "column sums", "doubly": "row and column sums"}[algorithm.stochastic]
        reason = f"it needs {sums} of one, and who hears something takes an average of it"
    # A leaf of other form, such as a count of rounds, is not an agent's own.
    leaves = jax.tree.leaves(jax.eval_shape(lambda: algorithm.init(jnp.zeros((5, 3)))))
    if not reason and not all(leaf.shape[:1] == (5,) for leaf in leaves):
        reason = "its state has parts that are not an agent's own"
    if reason:
        raise InputError(f"{algorithm.name} is not for asynchronous agents: {reason}; LocalSGD is")


def _taken(state: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="fill", fill_value=0), state)


def _world(step: Any, gradient: Gradient) -> World:
    first = jnp.arange(2)[:, None] == 0

    def grad(x, /, *, when=True):
        asked = step.finished & jnp.asarray(when)
        # A function of its own for every call: of one that it knows JAX would take what it has traced, with its draw.
        asked_for = (lambda agent, v: gradient(agent, v), lambda agent, v: jnp.zeros_like(v))
        return jnp.where(first, jax.lax.cond(asked, *asked_for, step.rows[0], x[0]), 0)

    def mix(x):
        return step.weights.astype(x.dtype) @ x

    def own(x):
        return jnp.diagonal(step.weights).astype(x.dtype)[:, None] * x

    return World(
        mix=mix,
        grad=grad,
        own=own,
        compress=refused("world.compress"),
        average=refused("world.average"),
        finished=first & step.finished,
        begins=first & step.begins,
    )


def refused(verb: str, /) -> Callable[..., Any]:
    """A verb that refuses to act on asynchronous agents."""

    def refuse(*_, **__):
        raise InputError(f"{verb} is for rounds of all agents, and asynchronous agents act at most two at a time")

    return refuse
