"""One event of asynchronous agents, as a round of the active agents alone.

An event changes at most two rows of the state. The algorithm's round is applied to these rows, with a `World` that is
restricted to them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms.algorithm import Algorithm, World
from ntkp2p.base.errors import InputError

#: Maps an agent's number and model to the gradient of its local loss.
Gradient = Callable[[Any, Float[Array, " d"]], Float[Array, " d"]]


def active_round(algorithm: Algorithm, state: PyTree, step: Any, gradient: Gradient, /) -> PyTree:
    """Return the state after one event.

    Parameters
    ----------
    state
        The state; the first axis of every leaf is the row.
    step
        One of `ntkp2p.asynchrony.Steps`: the rows, their mixing weights, and whether the agent of the first row ends a
        computation, or begins one.
    gradient
        The gradient of an agent's local loss; it is evaluated when a computation ends.
    """
    before = _rows_of(state, step.rows)
    after = algorithm.round(before, _world(step, gradient))
    return jax.tree.map(lambda leaf, new: leaf.at[step.rows].set(new, mode="drop"), state, after)


def mean_round(algorithm: Algorithm, state: PyTree, steps: Any, shares: Any, gradient: Gradient, /) -> PyTree:
    """Return the mean state after one random event.

    Parameters
    ----------
    state, gradient
        As for `active_round`.
    steps
        The E possible events.
    shares
        The probabilities of the events, shape (E,).
    """

    def add(total, event):
        step, share = event
        before = _rows_of(state, step.rows)
        after = algorithm.round(before, _world(step, gradient))
        change = jax.tree.map(lambda new, old: share * (new - old), after, before)
        return jax.tree.map(lambda leaf, more: leaf.at[step.rows].add(more, mode="drop"), total, change), None

    return jax.lax.scan(add, state, (steps, shares))[0]


def must_be_asynchronous(algorithm: Algorithm, /) -> None:
    """Raise `InputError` if the agents of an algorithm cannot be asynchronous."""
    reason = algorithm.synchronous or algorithm.static
    if algorithm.stochastic != "row":
        sums = {"column": "column sums", "doubly": "row and column sums"}[algorithm.stochastic]
        reason = f"it needs {sums} of one, but a receiver averages with each message, so only rows sum to one"
    # A leaf without a row per agent, such as a count of rounds, does not belong to a single agent.
    leaves = jax.tree.leaves(jax.eval_shape(lambda: algorithm.init(jnp.zeros((5, 3)))))
    if not reason and not all(leaf.shape[:1] == (5,) for leaf in leaves):
        reason = "its state has parts that do not belong to a single agent"
    if reason:
        raise InputError(f"{algorithm.name} does not support asynchronous agents: {reason}; LocalSGD does")


def _rows_of(state: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="fill", fill_value=0), state)


def _world(step: Any, gradient: Gradient) -> World:
    first = jnp.arange(2)[:, None] == 0

    def grad(x, /, *, when=True):
        needed = step.finished & jnp.asarray(when)
        # New functions for every call: JAX would reuse the trace of a known function, and with it the draw.
        branches = (lambda agent, v: gradient(agent, v), lambda agent, v: jnp.zeros_like(v))
        return jnp.where(first, jax.lax.cond(needed, *branches, step.rows[0], x[0]), 0)

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


def refused(operation: str, /) -> Callable[..., Any]:
    """Return an operation that raises `InputError`, since asynchronous agents do not support it."""

    def refuse(*_, **__):
        raise InputError(f"{operation} needs all agents, but an event of asynchronous agents involves at most two")

    return refuse
