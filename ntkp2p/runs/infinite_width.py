r"""The average over initialisations, and the spread between them, by the system that predicts a single one.

At infinite width the outputs at initialisation are Gaussian, f₀ = L u with u standard normal, each output by itself,
and every agent's outputs stay affine in f₀:

    f(k) = m(k) + G(k) u,    V(k) = G Gᵀ.

The mean m starts from 0 and learns the targets; column j of G starts from column j of L and learns 0. The outputs share
one kernel, whose system acts on every column by itself, so that the columns of G are further outputs to it: no new
dynamics. On new inputs, what f₀ has beyond its part in the span of L moves with nothing, and only adds to V.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntkp2p.data import AgentData
from ntkp2p.dynamics.krylov import Time
from ntkp2p.dynamics.solve import Solution, solve
from ntkp2p.dynamics.system import linear_system
from ntkp2p.kernels import Features
from ntkp2p.runs import measures
from ntkp2p.runs.experiment import Experiment

#: Bytes that the covariances of a block of rounds, or the Krylov basis of a group of columns, may take.
MEMORY = 2**29
#: The basis vectors that a group of columns is expected to need.
BASIS = 300


class Spread(NamedTuple):
    """The measures over initialisations by time, and what the solver says of the columns of G."""

    measured: dict[Time, dict[str, np.ndarray]]
    error: float
    converged: bool


class Moments(NamedTuple):
    """Per round and agent: V on training and on test inputs, and ‖z‖², ‖z − z̄‖² summed over the columns of G."""

    train: jax.Array
    test: jax.Array
    parameter: jax.Array
    consensus: jax.Array


def over_initialisations(
    experiment: Experiment, features: Features, mean: Solution, times: Sequence[Time], /, *, rtol: float
) -> Spread:
    """Mean and standard deviation of what is measured, over initialisations.

    Parameters
    ----------
    features
        With a spread.
    mean
        The system of these features, solved: m.
    times
        Some of "rounds" and "flow".
    rtol
        The accuracy of the columns of G; see `ntkp2p.dynamics.solve`.

    Returns
    -------
    spread
        The measures of `measures.gaussian_losses` and `measures.gaussian_test_measures`, each of shape
        (rounds, agents). Distances are root mean squares over initialisations.
    """
    data, spread = experiment.data, features.spread
    assert spread is not None
    matrix, start, beyond = features.matrix, spread.factor, np.zeros((0, 0))
    if len(tests := data.test_inputs):
        own, beyond = spread.at(tests)
        matrix, start = np.concatenate([matrix, features.matrix_at(tests)]), np.concatenate([start, own])
    matrix = jnp.asarray(matrix)
    moments, measure = jax.jit(partial(_moments, data.samples)), jax.jit(partial(_measure, data, features.columns))

    groups = _columns(experiment, features)
    systems = [
        linear_system(
            experiment.algorithm,
            experiment.topology,
            features,
            data,
            columns=spread.factor[:, group],
            rounds=int(experiment.rounds),
        )
        for group in groups
    ]
    parts: dict[Time, list] = {time: [] for time in times}
    errors = [0.0]
    for block, pieces in _rounds(data, len(mean.rounds)):
        totals: dict[tuple[Time, int], Moments] = {}
        for group, system in zip(groups, systems, strict=True):
            solution = solve(system, mean.rounds[block], times=times, rtol=rtol)
            errors.append(solution.error)
            for time, (i, piece) in product(times, enumerate(pieces)):
                found = moments(
                    matrix, start[:, group], system.models(solution.states(time, piece), solution.rounds[piece])
                )
                totals[time, i] = jax.tree.map(jnp.add, totals[time, i], found) if (time, i) in totals else found
        for time, (i, piece) in product(times, enumerate(pieces)):
            total = totals[time, i]._replace(test=totals[time, i].test + beyond)
            at = slice(block.start + piece.start, block.start + piece.stop)
            parts[time].append(measure(matrix, mean.system.models(mean.states(time, at), mean.rounds[at]), total))
    measured: dict[Time, dict[str, np.ndarray]] = {
        t: {name: np.concatenate([p[name] for p in parts[t]]) for name in parts[t][0]} for t in times
    }
    return Spread(measured, max(errors), max(errors) <= rtol)


def _moments(samples: int, matrix: jax.Array, start: jax.Array, x: jax.Array) -> Moments:
    """What a group of columns of G, from where they start and the models x that follow them, adds to the moments."""
    g = start + matrix @ x.reshape(*x.shape[:2], matrix.shape[1], -1)
    train, test = g[..., :samples, :], g[..., samples:, :]
    away = measures.distances(x, jnp.zeros(x.shape[-1]))
    return Moments(
        train @ jnp.swapaxes(train, -1, -2),
        test @ jnp.swapaxes(test, -1, -2),
        away["parameter_distance"] ** 2,
        away["consensus_distance"] ** 2,
    )


def _measure(data: AgentData, columns: int, matrix: jax.Array, x: jax.Array, moments: Moments) -> measures.PerAgent:
    """The measures of the mean models x and the moments about them."""
    mean = matrix @ x.reshape(*x.shape[:2], matrix.shape[1], columns)
    measured = measures.gaussian_losses(mean[..., : data.samples, :], moments.train, data)
    if len(data.test_inputs):
        measured |= measures.gaussian_test_measures(mean[..., data.samples :, :], moments.test, data)
    centre = measures.distances(x, jnp.zeros(x.shape[-1]))
    # The C outputs vary alike and independently.
    squares = {"consensus_distance": moments.consensus, "parameter_distance": moments.parameter}
    return measured | {name: jnp.sqrt(centre[name] ** 2 + columns * square) for name, square in squares.items()}


def _columns(experiment: Experiment, features: Features) -> list[slice]:
    """Groups of the columns of L, so small that a Krylov basis fits."""
    assert features.spread is not None
    size = MEMORY // (8 * BASIS * experiment.agents * features.rank)
    return _slices(features.spread.factor.shape[1], size)


def _rounds(data: AgentData, rounds: int) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of the recorded rounds, so small that all agents' covariances fit, each with its pieces.

    A block is solved for at once. A piece is measured at once, which takes about six arrays of its covariances' size.
    """
    size = MEMORY // (8 * data.agents * (data.samples**2 + len(data.test_inputs) ** 2))
    return ((block, _slices(block.stop - block.start, size // 6)) for block in _slices(rounds, size))


def _slices(total: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]
