"""The real thing: the same rounds, with the gradients of real networks."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ntkp2p import measures
from ntkp2p.algorithms import World
from ntkp2p.experiment import Experiment
from ntkp2p.precision import in_float64
from ntkp2p.trajectory import Trajectory


class DivergedError(ValueError):
    """Training has left the finite numbers.

    Attributes
    ----------
    trajectory
        What was recorded until then, marked as not stable.
    """

    def __init__(self, message: str, trajectory: Trajectory):
        super().__init__(message)
        self.trajectory = trajectory


@in_float64
def train(
    experiment: Experiment,
    /,
    *,
    progress: Callable[[int, int], None] | None = None,
    observe: Callable[[int, np.ndarray], None] | None = None,
) -> Trajectory:
    """Train every agent's network on its own data, by full-batch gradients.

    All agents advance together in one compiled loop over rounds; only the recorded rounds are evaluated.

    Parameters
    ----------
    experiment
        What to train.
    progress
        Called with (round, rounds) at every recorded round.
    observe
        Called with the round and all agents' parameters, shape (Q, P), at every recorded round.

    Raises
    ------
    DivergedError
        As soon as a recorded loss is no longer finite; what was recorded is on the exception.
    """
    advance, evaluate, state = _compiled(experiment)
    rounds, recorded = experiment.recorded, []
    for before, now in zip([0, *rounds], rounds, strict=False):
        state = advance(state, now - before)
        measured = {name: np.asarray(value, float) for name, value in evaluate(state).items()}
        recorded.append(measured)
        if progress is not None:
            progress(int(now), int(rounds[-1]))
        if observe is not None:
            observe(int(now), np.asarray(experiment.algorithm.model(state)))
        lost = np.flatnonzero(~np.isfinite(measured["local_loss"]))
        if len(lost):
            raise DivergedError(
                f"training diverges: at round {now} the local loss of agent {lost[0]} is no longer finite "
                f"with {type(experiment.algorithm).__name__}(step_size={float(experiment.algorithm.step_size):g}): "
                f"use a smaller step size, `predict` states a stable one",
                _trajectory(experiment, recorded, stable=False, diverged_at=int(now)),
            )
    return _trajectory(experiment, recorded, stable=True)


def _trajectory(experiment: Experiment, recorded: list[dict], **attributes) -> Trajectory:
    measured = {name: np.stack([m[name] for m in recorded]) for name in recorded[0]}
    rounds = experiment.recorded[: len(recorded)]
    return Trajectory.of(experiment, "trained", rounds, measured, precision=experiment.precision, **attributes)


def _compiled(experiment: Experiment):
    data, algorithm, dtype = experiment.data, experiment.algorithm, jnp.dtype(experiment.precision)
    theta, apply = experiment.initialise().astype(experiment.precision).flat()
    mixing = jnp.asarray(experiment.mixing, dtype)
    samples = data.inputs, data.targets, 1 / data.sizes[data.owner]
    inputs, targets, weights = (jnp.asarray(data.per_agent(a), dtype) for a in samples)
    every, tests = jnp.asarray(data.inputs, dtype), jnp.asarray(data.test_inputs, dtype)

    def local_loss(theta, inputs, targets, weights):
        errors = jnp.sum((apply(theta, inputs) - targets) ** 2, axis=-1)
        return weights @ errors / 2

    gradients = jax.vmap(jax.grad(local_loss))
    # Accelerators would multiply float32 in fewer bits, and agents agree to no more than that.
    mix = partial(jnp.matmul, mixing, precision="highest")
    world = World(mix=mix, grad=lambda x: gradients(x, inputs, targets, weights))

    @jax.jit
    def advance(state, rounds):
        return jax.lax.fori_loop(0, rounds, lambda _, state: algorithm.round(state, world), state)

    @jax.jit
    def evaluate(state):
        x = algorithm.model(state)
        measured = measures.losses(jax.lax.map(lambda theta: apply(theta, every), x), data)
        if len(tests):
            measured |= measures.test_measures(jax.lax.map(lambda theta: apply(theta, tests), x), data)
        return measured | measures.distances(x, theta)

    start = algorithm.init(jnp.broadcast_to(theta, (data.agents, theta.size)))
    # Constants such as a step size are weakly typed; the state must keep its type from round to round.
    return advance, evaluate, jax.tree.map(jnp.asarray, start)
