"""Checks of a user-defined algorithm: the requirements for training and prediction, verified by abstract evaluation.

`init` returns a state, `round` returns a state of the same structure, and `model` returns the agents' models in it.
Parts of the state whose shape does not depend on the model size must not depend on the models. No values are computed.
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
    """Check that the `init`, `round` and `model` of an algorithm fit together.

    Exceptions that these functions raise are not caught. Algorithms that differ only in their real constants are
    checked once.

    Parameters
    ----------
    algorithm
        The algorithm to check.
    agents
        Q.
    precision
        The floating-point type of the training.
    asynchronous
        Whether a round is an event of asynchronous agents.

    Raises
    ------
    ValueError
        If `model` does not return all agents' models, if `round` and `init` return states of different structure,
        shapes or dtypes, or if a part of the state depends on the models although its shape does not depend on their
        size.

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
    ntkp2p.InputError: Plain.round must return a state like that of init, f64[3,4], found [f64[3,4]]: return the same parts with the same shapes and dtypes
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
    # Python numbers take the precision of the other operand; arrays keep their own.
    constants = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*kind) if kind[0] else 1.0 for kind in kinds])
    mixing = jax.ShapeDtypeStruct((agents, agents), precision)

    def begin(constants, x):
        algorithm = eqx.combine(constants, rest)
        state = algorithm.init(x)
        return state, algorithm.model(state)

    def advance(constants, state, mixing):
        return eqx.combine(constants, rest).round(state, _world(mixing, asynchronous))

    # More columns than rows, so that a transposed model is detected.
    x, longer = (jax.ShapeDtypeStruct((agents, d), precision) for d in (agents + 1, agents + 2))
    state, model = jax.eval_shape(begin, constants, x)
    _must_be_models(rest, model, x)
    _must_be_same(rest, state, jax.eval_shape(advance, constants, state, mixing))
    larger = jax.tree.leaves(jax.eval_shape(begin, constants, longer)[0])
    dependent = [leaf.shape != more.shape for leaf, more in zip(jax.tree.leaves(state), larger, strict=True)]
    if not (all(dependent) or nonlinear):

        def one_round(constants, state):
            return advance(constants, state, jnp.eye(agents, dtype=precision))

        _must_not_depend(rest, constants, state, dependent, one_round)


def _world(mixing: Any, asynchronous: bool) -> World:
    """A world with the usual shapes, in which every result of an operation depends on its argument."""
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
            f"{algorithm.name}.model must return the agents' models, {_described(expected)}, found "
            f"{_described(found)}: define model(self, state) so that it returns this part of the state"
        )


def _must_be_same(algorithm: Algorithm, before: PyTree, after: PyTree) -> None:
    same = jax.tree.structure(before) == jax.tree.structure(after)
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=same)
    if not same or any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in leaves):
        raise InputError(
            f"{algorithm.name}.round must return a state like that of init, {_described(before)}, found "
            f"{_described(after)}: return the same parts with the same shapes and dtypes"
        )


def _must_not_depend(
    algorithm: Algorithm, constants: PyTree, state: PyTree, dependent: list[bool], advance: Callable
) -> None:
    """Raise `InputError` if a round makes model-independent leaves depend on model-dependent ones."""
    leaves, tree = jax.tree.flatten(state)
    names = [keystr(path) for path, _ in tree_flatten_with_path(state)[0]]
    found = []

    def recorded(name: str) -> Callable:
        # Under vmap over models, the rule is called only for values that depend on them.
        identity = custom_vmap(lambda leaf: leaf)
        identity.def_vmap(lambda size, batched, leaf: (found.append(name), (leaf, True))[1])
        return identity

    def independent_after(constants, independent, models):
        parts = {True: iter(models), False: iter(independent)}
        after = jax.tree.leaves(advance(constants, jax.tree.unflatten(tree, [next(parts[of]) for of in dependent])))
        return [recorded(name)(leaf) for name, leaf, of in zip(names, after, dependent, strict=True) if not of]

    def over_two_models(constants, independent, models):
        return jax.vmap(partial(independent_after, constants, independent))(models)

    independent = [leaf for leaf, of in zip(leaves, dependent, strict=True) if not of]
    models = [
        jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype) for leaf, of in zip(leaves, dependent, strict=True) if of
    ]
    jax.eval_shape(over_two_models, constants, independent, models)
    if found:
        raise InputError(
            f"{algorithm.name}.round makes state{found[0]} depend on the models, but its shape does not depend on "
            "their size, which is reserved for model-independent state: store it as an array of shape (Q, d), or "
            "explain in `nonlinear` why the algorithm can only be trained"
        )


def _described(structure: PyTree) -> str:
    return eqx.tree_pformat(structure, width=10_000, struct_as_array=True)
