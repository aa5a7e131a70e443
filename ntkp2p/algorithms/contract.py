"""What an algorithm must keep to, so that it trains and predicts alike; checked without computing anything.

`init` makes a state, `round` returns one of the same form, and `model` gives the agents' models in it. Parts of the
state whose shape does not grow with the models must not depend on the models. Abstract evaluation shows all of this.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from ntkp2p.algorithms.algorithm import Algorithm, World, without_constants
from ntkp2p.algorithms.event_round import refused
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.models.networks import is_hashable


@in_float64
def check_algorithm(
    algorithm: Algorithm, agents: int, /, *, precision: str = "float64", asynchronous: bool = False
) -> None:
    """Refuse an algorithm whose `init`, `round` and `model` do not fit together.

    What these functions raise by themselves is not caught. Algorithms that differ in their real constants only are
    checked once.

    Parameters
    ----------
    algorithm
        The algorithm to check.
    agents
        Q.
    precision
        The floating-point type in which it trains.
    asynchronous
        Whether a round is an event of asynchronous agents.

    Raises
    ------
    ValueError
        If `model` does not return all agents' models, if `round` returns a state of another form than `init`, or if a
        part of the state depends on the models although its shape does not grow with them.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> from ntkp2p.algorithms.contract import check_algorithm
    >>> class Plain(p2p.Algorithm):
    ...     def round(self, x, world):
    ...         return [world.mix(x) - self.step_size * world.grad(x)]
    >>> check_algorithm(Plain(0.1), 3)
    Traceback (most recent call last):
    ...
    ntkp2p.InputError: Plain.round returns a state of another form than init does, [f64[3,4]] in place of f64[3,4]: return the same parts with the same shapes and dtypes
    """  # noqa: E501
    constants, rest = without_constants(algorithm)
    leaves, tree = jax.tree.flatten(constants)
    kinds = tuple((np.shape(leaf), str(getattr(leaf, "dtype", ""))) for leaf in leaves)
    check = _check if is_hashable(rest) else _check.__wrapped__
    rows = 2 if asynchronous else agents  # in an event two agents act
    check(rest, tree, kinds, rows, precision, asynchronous, bool(algorithm.nonlinear))


@lru_cache(maxsize=256)
def _check(
    rest: Algorithm, tree: Any, kinds: tuple, agents: int, precision: str, asynchronous: bool, nonlinear: bool
) -> None:
    # Numbers take the precision of what they are multiplied with, arrays have their own.
    constants = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*kind) if kind[0] else 1.0 for kind in kinds])
    mixing = jax.ShapeDtypeStruct((agents, agents), precision)

    def begin(constants, x):
        algorithm = eqx.combine(constants, rest)
        state = algorithm.init(x)
        return state, algorithm.model(state)

    def advance(constants, state, mixing):
        return eqx.combine(constants, rest).round(state, _world(mixing, asynchronous))

    # One more column than rows, so that a transposed model is not taken for a model.
    x, longer = (jax.ShapeDtypeStruct((agents, d), precision) for d in (agents + 1, agents + 2))
    state, model = jax.eval_shape(begin, constants, x)
    _must_be_models(rest, model, x)
    _must_be_same(rest, state, jax.eval_shape(advance, constants, state, mixing))
    larger = jax.tree.leaves(jax.eval_shape(begin, constants, longer)[0])
    moves = [leaf.shape != more.shape for leaf, more in zip(jax.tree.leaves(state), larger, strict=True)]
    if not (all(moves) or nonlinear):

        def once(constants, state):
            return advance(constants, state, jnp.eye(agents, dtype=precision))

        _must_not_depend(rest, constants, state, moves, once)


def _world(mixing: Any, asynchronous: bool) -> World:
    """A world of the same shapes as any other, in which all that a verb returns depends on what it is handed."""
    first = jnp.arange(len(mixing))[:, None] == 0
    events: dict[str, Any] = {"finished": first, "begins": first}
    events |= {name: refused(f"world.{name}") for name in ("compress", "average")}
    return World(
        mix=lambda x: mixing @ x,
        grad=lambda x, /, *, when=True: jnp.where(when, x, 0),
        own=lambda x: jnp.diagonal(mixing)[:, None] * x,
        **(events if asynchronous else {}),
    )


def _must_be_models(algorithm: Algorithm, found: PyTree, expected: Any) -> None:
    if getattr(found, "shape", None) != expected.shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(
            f"{algorithm.name}.model returns {_in_words(found)} in place of the agents' models {_in_words(expected)}: "
            "define model(self, state) such that it returns these, a part of the state"
        )


def _must_be_same(algorithm: Algorithm, before: PyTree, after: PyTree) -> None:
    same = jax.tree.structure(before) == jax.tree.structure(after)
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=same)
    if not same or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in leaves):
        raise InputError(
            f"{algorithm.name}.round returns a state of another form than init does, {_in_words(after)} in place of "
            f"{_in_words(before)}: return the same parts with the same shapes and dtypes"
        )


def _must_not_depend(
    algorithm: Algorithm, constants: PyTree, state: PyTree, moves: list[bool], advance: Callable
) -> None:
    """Refuse a round in which leaves that do not move with the models depend on those that do."""
    leaves, tree = jax.tree.flatten(state)
    names = [keystr(path) for path, _ in tree_flatten_with_path(state)[0]]
    depend = []

    def watched(name: str) -> Callable:
        # Under vmap over models, the rule is called only for values that depend on them.
        watch = custom_vmap(lambda leaf: leaf)
        watch.def_vmap(lambda size, batched, leaf: (depend.append(name), (leaf, True))[1])
        return watch

    def still_after(constants, still, moving):
        parts = {True: iter(moving), False: iter(still)}
        after = jax.tree.leaves(advance(constants, jax.tree.unflatten(tree, [next(parts[move]) for move in moves])))
        return [watched(name)(leaf) for name, leaf, move in zip(names, after, moves, strict=True) if not move]

    def of_two_models(constants, still, moving):
        return jax.vmap(partial(still_after, constants, still))(moving)

    still = [leaf for leaf, move in zip(leaves, moves, strict=True) if not move]
    moving = [
        jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype) for leaf, move in zip(leaves, moves, strict=True) if move
    ]
    jax.eval_shape(of_two_models, constants, still, moving)
    if depend:
        raise InputError(
            f"{algorithm.name}.round makes state{depend[0]} depend on the models, and its shape does not grow with "
            "them, which is for what can be followed without models: keep it as an array of shape (Q, d), or say in "
            "`nonlinear` why the algorithm can only be trained"
        )


def _in_words(form: PyTree) -> str:
    return eqx.tree_pformat(form, width=10_000, struct_as_array=True)
