"""One round of the linear model as an affine map of the stacked state, assembled from the agents' data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ntkp2p.algorithms import Algorithm, Compressor, World
from ntkp2p.algorithms.exogenous import Form
from ntkp2p.base.arrays import namespace
from ntkp2p.base.errors import InputError
from ntkp2p.data import AgentData
from ntkp2p.dynamics.timetable import Timetable, timetable_of
from ntkp2p.kernels import Features
from ntkp2p.models.losses import LOSSES
from ntkp2p.topology.mixing import RunMixing
from ntkp2p.topology.schedules import as_run_mixing


@dataclass(frozen=True)
class Round:
    """One round of linear models in features, of the state as a vector; hashable, so that JAX compiles it once.

    Attributes
    ----------
    algorithm
        Without its real constants, which are among the parameters.
    shape
        (Q, rank, columns) of the agents' coordinates.
    loss
        A name of `ntkp2p.models.losses.LOSSES`.
    relays
        Rows of the state beside those of the agents, which hold messages on their way.
    asynchronous
        Whether a round is an event of asynchronous agents; its mixing is then a `Steps` or a `MeanStep`.
    """

    algorithm: Algorithm
    shape: tuple[int, int, int]
    loss: str = "squared"
    relays: int = 0
    asynchronous: bool = False

    def __call__(self, parameters: PyTree, s: Float[Array, " n"], /) -> Float[Array, " n"]:
        """The state after one round; `parameters` as `assemble` makes them, of that round."""
        return ravel_pytree(self.both(parameters, s)[0])[0]

    def both(self, parameters: PyTree, s: Float[Array, " n"], /) -> tuple[list, list]:
        """The leaves of the state after one round, those that move with the models and the exogenous ones.

        Parameters
        ----------
        parameters
            As `assemble` makes them, of this round.
        s
            The state before it, shape (n,).
        """
        algorithm = eqx.combine(parameters["algorithm"], self.algorithm)
        form, mixing = self.form(algorithm), parameters["mixing"]
        state = self._state(algorithm, form, parameters, s)
        held = tuple(parameters[name] for name in ("matrix", "outputs", "targets", "weights"))
        slope = jax.grad(lambda f, y: jnp.sum(LOSSES[self.loss](f, y)))

        def gradient(z, matrix, outputs, targets, weights):
            f = outputs + (matrix @ z.reshape(self.shape[1:])).reshape(outputs.shape)
            pull = (slope(f, targets) * weights[:, None]).reshape(len(matrix), -1)
            return (matrix.T @ pull).reshape(-1)

        def own(agent, z):
            return gradient(z, *(array[agent] for array in held))

        if self.asynchronous:
            return form.split(mixing.advance(algorithm, state, own))

        def grad(z, /, *, when=True):
            return jnp.where(when, jax.vmap(gradient)(z, *held), 0)

        return form.split(algorithm.round(state, world_of(mixing, grad)))

    def start(self, algorithm: Algorithm, /) -> Float[Array, " n"]:
        """The first state of an `algorithm`: all agents at θ₀."""
        return ravel_pytree(self.form(algorithm).split(self._first(algorithm))[0])[0]

    def model(self, parameters: PyTree, s: Float[Array, " n"], /) -> Float[Array, "Q d"]:
        """The agents' coordinates, each agent's as one row, in a state.

        Parameters
        ----------
        parameters
            As `assemble` makes them, of this round.
        s
            The state before it, shape (n,).
        """
        algorithm = eqx.combine(parameters["algorithm"], self.algorithm)
        return algorithm.model(self._state(algorithm, self.form(algorithm), parameters, s))[: self.shape[0]]

    def form(self, algorithm: Algorithm, /) -> Form:
        """What of the state of an `algorithm` is in the vector, and what is exogenous."""
        return Form.of(algorithm, self.shape[0] + self.relays)

    def _state(self, algorithm: Algorithm, form: Form, parameters: PyTree, s: Float[Array, " n"]) -> PyTree:
        moving = form.split(jax.eval_shape(self._first, algorithm))[0]
        unravel = ravel_pytree([jnp.zeros(leaf.shape) for leaf in moving])[1]
        return form.join(unravel(s), parameters["exogenous"])

    def _first(self, algorithm):
        agents, rank, columns = self.shape
        return algorithm.init(jnp.zeros((agents + self.relays, rank * columns)))


@dataclass(frozen=True)
class Affine:
    """A round that is given as matrix and offset, of a single agent whose model is the state."""

    asynchronous: ClassVar[bool] = False

    def __call__(self, parameters: PyTree, s: Float[Array, " n"], /) -> Float[Array, " n"]:
        """The state after one round."""
        return parameters["matrix"] @ s + parameters["offset"]

    def model(self, parameters: PyTree, s: Float[Array, " n"], /) -> Float[Array, "1 n"]:
        """The state as one row.

        Parameters
        ----------
        parameters
            M and b.
        s
            The state, shape (n,).
        """
        return s[None]


def assemble(
    algorithm: Algorithm,
    mixing: RunMixing | np.ndarray,
    features: Features,
    data: AgentData,
    /,
    *,
    columns: Float[np.ndarray, "rows _"] | None = None,
    loss: str = "squared",
    rounds: int | None = None,
) -> tuple[Round, dict[str, Any], "Timetable"]:
    """A round of linear models, its parameters (constants, mixing and data), and which of them are in which round.

    Parameters
    ----------
    mixing, columns, rounds
        As for `linear_system`.

    Returns
    -------
    round
        The function of parameters and state.
    parameters
        "algorithm": its real constants. "mixing": W, or a schedule's distinct matrices (D, Q, Q); `Steps` of the
        events, or a `MeanStep` of clocks. "exogenous": the
        exogenous leaves of the state, or those before each round of the timetable. "matrix": S_q,
        (Q, rows, rank), padded with zero rows to the largest agent. "outputs", "targets": f₀ and y, (Q, samples, C).
        "weights": 1/N_q, and 0 for padding, (Q, samples).
    timetable
        Of what changes over time; of no rounds if nothing does.
    """
    mixing = as_run_mixing(mixing)
    constants, rest = eqx.partition(algorithm, lambda leaf: eqx.is_inexact_array_like(leaf))
    outputs, targets = (features.initial, data.targets) if columns is None else (columns, 0 * columns)
    if columns is not None:  # a sample's rows, each its own column: a loss of the rows of one column is their sum
        outputs, targets = (rows.reshape(data.samples, -1) for rows in (outputs, targets))
    matrices, timetable, exogenous = timetable_of(algorithm, mixing, rounds)
    parameters = {
        "algorithm": jax.tree.map(jnp.asarray, constants),
        "mixing": jax.tree.map(jnp.asarray, matrices),
        "exogenous": [jnp.asarray(leaf) for leaf in exogenous],
        "matrix": jnp.asarray(agent_blocks(features.matrix, data)),
        "outputs": jnp.asarray(data.per_agent(outputs)),
        "targets": jnp.asarray(data.per_agent(targets)),
        "weights": jnp.asarray(data.per_agent(1 / data.sizes[data.owner])),
    }
    width = features.columns if columns is None else columns.shape[1]
    shape = data.agents, features.rank, width
    return Round(rest, shape, loss, mixing.rows - data.agents, mixing.asynchronous), parameters, timetable


def agent_blocks(rows: np.ndarray, data: AgentData, /) -> np.ndarray:
    """Every agent's rows, padded with zeros to the largest; an exact kernel of C outputs has C rows for a sample."""
    blocks = data.per_agent(rows.reshape(data.samples, -1, rows.shape[-1]))
    return blocks.reshape(data.agents, -1, rows.shape[-1])


def world_of(mixing: Any, grad: Callable, /) -> World:
    """The world of linear models over a mixing matrix, whose verbs take arrays of NumPy or of JAX.

    Parameters
    ----------
    mixing
        W, shape (Q, Q).
    grad
        The models' gradients.
    """

    def compress(z, by, /, *, everything: Any = False):
        share = share_of(by)
        return namespace(everything, share).where(everything, 1.0, share) * z

    return World(
        mix=lambda z: mixing @ z,
        grad=grad,
        own=lambda z: mixing.diagonal()[:, None] * z,
        compress=compress,
    )


def share_of(compressor: Compressor, /) -> Any:
    """δ, as which a compressor enters the linear model.

    Raises
    ------
    ValueError
        If it is not known.
    """
    if compressor.share is not None:
        return compressor.share
    if compressor.unbiased:
        return 1.0
    raise InputError(
        f"{type(compressor).__name__} has no closed form: a mean-field prediction takes the share δ of ‖v‖² in "
        "what is sent, TopK(keep, share=...); predict(experiment) measures it"
    )
