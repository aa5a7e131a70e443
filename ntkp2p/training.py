"""The real thing: the same rounds, with the gradients of real networks.

The agents are divided over a mesh of devices. Gradients and evaluations stay with an agent's device; mixing is where
the devices talk, as the agents do.
"""

import itertools
import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jax.tree_util import Partial
from jaxtyping import PyTree

from ntkp2p import measures
from ntkp2p.algorithms import Algorithm, World
from ntkp2p.algorithms.awake import awake_round
from ntkp2p.asynchrony import Events, Steps
from ntkp2p.communication import sent_until
from ntkp2p.data.datasets import whole
from ntkp2p.devices import AXIS, agree, all_devices, one_device, place
from ntkp2p.experiment import Experiment
from ntkp2p.losses import LOSSES
from ntkp2p.precision import in_float64
from ntkp2p.topology import Schedule, schedules
from ntkp2p.trajectory import Trajectory

#: Agents whose networks each keep more bytes than this for a gradient's way back take theirs one after another: for
#: ResNet-20 and VGG-11 on a CPU that was nearly twice as fast as together, in a seventh and in half of the memory.
TOGETHER = 2**24


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


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training, after its first recorded round.

    Attributes
    ----------
    trajectory
        What was recorded until then; its attribute `interrupted_at` is the last recorded round.
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
    draw: int = 0,
    mesh: Mesh | None = None,
) -> Trajectory:
    """Train every agent's network on its own data, by gradients of all of them or of mini-batches.

    All agents advance together in one compiled loop over rounds; only the recorded rounds are evaluated.

    Parameters
    ----------
    experiment
        What to train.
    progress
        Called with (round, rounds) at every recorded round.
    observe
        Called with the round and all agents' parameters, shape (Q, P), at every recorded round.
    draw
        The seed of what is drawn on the way, mini-batches and the entries of messages: other draws of the same
        experiment, from the same θ₀, have other numbers.
    mesh
        The devices that share the agents, of this process or of several; by default all that JAX sees.

    Returns
    -------
    Trajectory
        Of source "trained".

    Raises
    ------
    ValueError
        If the mesh has other axes than `ntkp2p.devices.AXIS`, or its processes were given different experiments.
    DivergedError
        As soon as a recorded loss is no longer finite; what was recorded is on the exception.
    TrainingInterrupted
        Upon Ctrl-C, a KeyboardInterrupt; what was recorded is on the exception.

    Examples
    --------
    Agents with the numbers 0, 3 and 6 come to rest at 2, 3 and 4, with the losses (2 − 0)²/2, 0 and (4 − 6)²/2:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.array([[0.0], [3.0], [6.0]]))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=40,
    ... )
    >>> trained = p2p.train(experiment)
    >>> [round(float(loss), 6) for loss in trained.local_loss[-1]]
    [2.0, 0.0, 2.0]
    """
    whole(draw, "draw", least=0)
    drawn = experiment.drawn(draw)
    mesh = (one_device() if isinstance(drawn.mixing, Events) else all_devices()) if mesh is None else mesh
    if mesh.axis_names != (AXIS,):
        raise ValueError(f"the mesh must have the one axis {AXIS!r}, found {mesh.axis_names}: see ntkp2p.devices")
    if isinstance(drawn.mixing, Events) and mesh.size > 1:
        raise ValueError("of agents on their own clocks two act at a time: train them on one device, leave mesh out")
    if jax.process_count() > 1:
        _must_agree(experiment, draw, mesh)
    model = experiment.initialise().astype(experiment.precision)
    theta, apply = model.flat()
    theta = place(np.asarray(theta), mesh)
    key = jax.random.fold_in(jax.random.key(experiment.seed), draw)
    turn, state = _turn(drawn, theta, apply, model.layers, key, mesh), _start(drawn, theta.size, mesh)
    advance, evaluate, models = _compiled(drawn, apply, state, mesh)
    rounds, recorded = experiment.recorded, []
    try:
        for before, now in zip(np.append(0, rounds), rounds, strict=False):
            state = advance(state, turn, before, now)
            measured = {name: np.asarray(value, float) for name, value in evaluate(state, theta).items()}
            recorded.append(measured)
            if progress is not None:
                progress(int(now), int(rounds[-1]))
            if observe is not None:
                observe(int(now), np.asarray(models(state, theta)))
            lost = np.flatnonzero(~np.isfinite(measured["local_loss"]))
            if len(lost):
                raise DivergedError(
                    f"training diverges: at round {now} the local loss of agent {lost[0]} is no longer finite "
                    f"with {experiment.algorithm.name}(step_size={float(experiment.algorithm.step_size):g}): "
                    f"use a smaller step size, `predict` states a stable one",
                    _trajectory(experiment, drawn, recorded, stable=False, diverged_at=int(now)),
                )
    except KeyboardInterrupt as interruption:
        if not recorded:
            raise
        now = int(rounds[len(recorded) - 1])
        kept = _trajectory(experiment, drawn, recorded, stable=True, interrupted_at=now)
        raise TrainingInterrupted(f"training was interrupted at round {now} of {rounds[-1]}", kept) from interruption
    return _trajectory(experiment, drawn, recorded, stable=True)


def _trajectory(experiment: Experiment, drawn: Experiment, recorded: list[dict], **attributes) -> Trajectory:
    measured = {name: np.stack([m[name] for m in recorded]) for name in recorded[0]}
    rounds = experiment.recorded[: len(recorded)]
    measured |= sent_until(drawn, rounds)
    times, precision = drawn.time(rounds), experiment.precision
    return Trajectory.of(experiment, "trained", rounds, measured, times=times, precision=precision, **attributes)


def _must_agree(experiment: Experiment, draw: int, mesh: Mesh) -> None:
    # Without data and weights: their last digits may differ from one kind of machine to another.
    facts, data = experiment.describe(), experiment.data
    words = [facts[name] for name in ("model", "split", "algorithm", "constants", "loss", "seed")]
    words += [
        experiment.precision,
        experiment.batch_size,
        draw,
        data.inputs.shape,
        data.test_inputs.shape,
        data.targets.shape,
    ]
    words = [re.sub(r"0x[0-9a-f]+", "", str(word)) for word in words]  # addresses of a user's objects
    if not agree(zlib.crc32(repr([*words, experiment.recorded.tolist()]).encode()), mesh):
        raise ValueError("the processes were given different experiments: give every process the same")


def _turn(
    experiment: Experiment, theta: jax.Array, apply: Callable, layers: tuple[int, ...], key: jax.Array, mesh: Mesh
) -> Callable[[Any, PyTree], PyTree]:
    """(round, state) ↦ the next state, with what every device holds for its agents: rows of W, or data."""
    data, agents, loss = experiment.data, experiment.agents, LOSSES[experiment.loss]
    # Idle agents fill the last devices: they mix with nobody, and hold somebody's data with weight 0.
    idle = -agents % mesh.size
    holder = np.minimum(np.arange(agents + idle), agents - 1)
    samples = data.inputs, data.targets, 1 / data.sizes[data.owner]
    inputs, targets, weights = (data.per_agent(a)[holder] for a in samples)
    weights[agents:] = 0

    def local_loss(theta, inputs, targets, weights):
        return weights @ loss(apply(theta, inputs), targets)

    def gradient(inputs, targets, weights, theta, key):
        if experiment.batch_size is not None:
            # Without replacement, every round anew; padding comes last.
            order = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1)
            batch = jax.lax.top_k(order, experiment.batch_size)[1]
            inputs, targets = inputs[batch], targets[batch]
            weights = jnp.where(weights[batch] > 0, 1 / experiment.batch_size, 0).astype(inputs.dtype)
        return jax.grad(local_loss)(theta, inputs, targets, weights)

    def held(array, *axes):
        return place(array.astype(experiment.precision), mesh, *axes, AXIS)

    own = tuple(map(held, (inputs, targets, weights)))
    if isinstance(experiment.mixing, Events):
        steps = jax.tree.map(partial(place, mesh=mesh), experiment.mixing.steps(0, int(experiment.rounds)))
        return Partial(partial(_event, experiment.algorithm, gradient, key), steps, own, theta)

    together = _kept_on_the_way(experiment, local_loss, theta, [a[0] for a in (inputs, targets, weights)]) <= TOGETHER

    @partial(_on_devices, mesh=mesh)
    def gradients(*own):
        return jax.vmap(gradient)(*own) if together else jax.lax.map(lambda own: gradient(*own), own)

    mixing = experiment.mixing
    schedule = mixing if isinstance(mixing, Schedule) else schedules.periodic([mixing])
    matrices = np.tile(np.eye(agents + idle), (len(schedule.matrices), 1, 1))
    matrices[:, :agents, :agents] = schedule.matrices
    if len(matrices) == 1:  # nothing to look up, round by round
        mixing_at = Partial(lambda W, k: W, held(matrices[0]))
    else:
        mixing_at = Partial(
            lambda W, order, k: W[order[k % len(order)]], held(matrices, None), place(schedule.order, mesh)
        )
    everyone = held(np.append(np.full(agents, 1 / agents), np.zeros(idle)))
    keys = Partial(partial(_keys, key), place(np.arange(agents + idle), mesh, AXIS))
    world = Partial(partial(_verbs, layers, mesh), mixing_at, Partial(gradients, *own), keys, everyone, theta)
    return Partial(partial(_together, experiment.algorithm), world)


def _together(algorithm: Algorithm, world: Callable[[Any], World], k: Any, state: PyTree) -> PyTree:
    """A round of all agents."""
    return algorithm.round(state, world(k))


def _event(algorithm, gradient, key, steps: Steps, own: tuple, theta, k: Any, state: PyTree) -> PyTree:
    """A round of those who are awake in it."""
    draw = itertools.count()

    def gradient_of(user, x):
        key_of = _keys(key, user[None], k, next(draw))[0]
        return gradient(*(array[user] for array in own), theta + x, key_of)

    return awake_round(algorithm, state, jax.tree.map(lambda part: part[k], steps), gradient_of)


def _kept_on_the_way(experiment: Experiment, local_loss: Callable, theta: jax.Array, held: list[np.ndarray]) -> int:
    """Bytes that one agent's network keeps for the way back of a gradient, beside its parameters."""
    batch = [jnp.asarray(a[: experiment.batch_size], experiment.precision) for a in held]
    back = jax.eval_shape(lambda theta: jax.vjp(lambda theta: local_loss(theta, *batch), theta)[1], theta)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back)) - theta.nbytes


def _verbs(layers, mesh, mixing_at, gradients, keys, everyone, theta, k: Any) -> World:
    # Rows of W times everybody's x: the compiler gathers these, the only time that devices talk in a round.
    # Accelerators would multiply float32 in fewer bits, and agents agree to no more than that.
    W = mixing_at(k)
    matmul = partial(jnp.matmul, precision="highest")
    draw = itertools.count()

    def grad(x, /, *, when=True):
        own, model = keys(k, next(draw)), theta + x
        if when is True:
            return gradients(model, own)
        return jax.lax.cond(when, gradients, lambda model, _: jnp.zeros_like(model), model, own)

    def compress(x, by, /, *, everything=False):
        def few(x, own):
            return _on_devices(jax.vmap(lambda x, key: by.by_layer(x, layers, key)), mesh)(x, own)

        own = keys(k, next(draw))
        return few(x, own) if everything is False else jax.lax.cond(everything, lambda x, _: x, few, x, own)

    def average(x, /, *, when=True):
        return jnp.where(when, jnp.broadcast_to(matmul(everyone, x), x.shape), x)

    return World(partial(matmul, W), grad, lambda x: jnp.diagonal(W)[:, None] * x, compress, average)


def _keys(key, agents, k, draw):
    """A key for every agent, for one of a round's draws: the same whatever devices there are."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(jax.random.fold_in(key, k), draw)))(agents)


def _start(experiment: Experiment, size: int, mesh: Mesh) -> PyTree:
    """The first state: leaves that have the agents first are divided, others are on every device."""
    mixing = experiment.mixing
    seats = mixing.rows if isinstance(mixing, Events) else -(-experiment.agents // mesh.size) * mesh.size

    def start():
        state = experiment.algorithm.init(jnp.zeros((seats, size), experiment.precision))
        # Constants such as a step size are weakly typed; the state must keep its type from round to round.
        return jax.tree.map(jnp.asarray, state)

    def sharding(leaf):
        return NamedSharding(mesh, Spec(AXIS) if leaf.shape[:1] == (seats,) else Spec())

    return jax.jit(start, out_shardings=jax.tree.map(sharding, jax.eval_shape(start)))()


def _compiled(experiment: Experiment, apply: Callable, state: PyTree, mesh: Mesh):
    data, algorithm, agents = experiment.data, experiment.algorithm, experiment.agents
    every, tests = (a.astype(experiment.precision) for a in (data.inputs, data.test_inputs))
    # What the host reads is on every device, so that every process can read it.
    for_host = partial(jax.jit, out_shardings=NamedSharding(mesh, Spec()))

    def outputs(x, inputs):  # every agent's on the same inputs, one agent at a time
        return _on_devices(partial(jax.lax.map, lambda theta: apply(theta, inputs)), mesh)(x)[:agents]

    @partial(jax.jit, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state))
    def advance(state, turn, first, end):
        return jax.lax.fori_loop(first, end, turn, state)

    @for_host
    def models(state, theta):
        return theta + algorithm.model(state)[:agents]

    @for_host
    def evaluate(state, theta):
        moved = algorithm.model(state)
        if isinstance(experiment.mixing, Events):  # messages on their way are nobody's models
            moved = moved[:agents]
        x = theta + moved
        measured = measures.losses(outputs(x, every), data, experiment.loss)
        if len(tests):
            measured |= measures.test_measures(outputs(x, tests), data, experiment.loss)
        return measured | measures.distances(moved[:agents], jnp.zeros_like(theta))

    return advance, evaluate, models


def _on_devices(function: Callable, mesh: Mesh) -> Callable:
    """`function` of arrays that have the agents first, each device on its own rows of them."""
    if mesh.size == 1:  # there it would only keep the compiler from fusing: a third of a round, as measured
        return function
    # Unchecked, for a network may do inside what the check does not follow, such as loops.
    return jax.shard_map(function, mesh=mesh, in_specs=Spec(AXIS), out_specs=Spec(AXIS), check_vma=False)
