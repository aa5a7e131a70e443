"""The real thing: the same rounds, with the gradients of real networks.

The agents are divided over a mesh of devices. Gradients and evaluations stay with an agent's device; mixing is where
the devices talk, as the agents do.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jaxtyping import Array, PyTree

from ntkp2p.algorithms import Algorithm, World
from ntkp2p.algorithms.algorithm import without_constants
from ntkp2p.base.checks import whole
from ntkp2p.base.devices import AXIS, agree, all_devices, one_device, place
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.models import threefry
from ntkp2p.models.losses import LOSSES
from ntkp2p.models.networks import Flat, is_hashable
from ntkp2p.runs import measures
from ntkp2p.runs.communication import sent_until
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.instability import advice_after_divergence
from ntkp2p.runs.trajectory import GROWN, Trajectory

#: Agents whose networks each keep more bytes than this for a gradient's way back take theirs one after another: for
#: ResNet-20 and VGG-11 on a CPU that was nearly twice as fast as together, in a seventh and in half of the memory.
TOGETHER = 2**24


class DivergedError(InputError):
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
    """Train every agent's network on its own data, with full gradients or mini-batches.

    All agents advance together in one compiled loop over rounds; only the recorded rounds are evaluated.

    Parameters
    ----------
    experiment
        The run.
    progress
        Called with (round, rounds) at every recorded round.
    observe
        Called with the round and all agents' parameters, shape (Q, P), at every recorded round.
    draw
        The number of the draw of mini-batches, random entries and events. The initialisation θ₀ does not depend on
        it.
    mesh
        The devices over which the agents are divided, of one or several processes; by default all devices.

    Returns
    -------
    Trajectory
        Of source "trained".

    Raises
    ------
    ValueError
        If the mesh has other axes than `ntkp2p.devices.AXIS`, or its processes were given different experiments.
    DivergedError
        When a recorded loss is not finite; the exception has the rounds recorded so far.
    TrainingInterrupted
        On Ctrl-C, a KeyboardInterrupt; the exception has the rounds recorded so far.

    Examples
    --------
    Agents with the numbers 0, 3 and 6 converge to 2, 3 and 4, with the losses (2 − 0)²/2, 0 and (4 − 6)²/2:

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
    drawn = experiment.sampled(draw)
    mesh = (one_device() if drawn.asynchronous else all_devices()) if mesh is None else mesh
    if mesh.axis_names != (AXIS,):
        raise InputError(f"the mesh must have the one axis {AXIS!r}, found {mesh.axis_names}: see ntkp2p.devices")
    if drawn.asynchronous and mesh.size > 1:
        raise InputError("of agents on their own clocks two act at a time: train them on one device, leave mesh out")
    if jax.process_count() > 1:
        _must_agree(experiment, draw, mesh)
    key = threefry.key_of(threefry.fold_in(threefry.seeded(int(experiment.seed)), int(draw)))
    run, given, seen = _placed(drawn, key, mesh)
    programs = _programs(run) if is_hashable(run) else _programs.__wrapped__(run)
    rounds, recorded = experiment.recorded, []
    state = programs.start(given)
    try:
        for before, now in zip(np.append(0, rounds), rounds, strict=False):
            state = programs.advance(given, state, before, now)
            measured = {name: np.asarray(value, float) for name, value in programs.evaluate(given, seen, state).items()}
            recorded.append(measured)
            if progress is not None:
                progress(int(now), int(rounds[-1]))
            if observe is not None:
                observe(int(now), np.asarray(programs.models(given, state)))
            lost = np.flatnonzero(~np.isfinite(measured["local_loss"]))
            if len(lost):
                raise DivergedError(
                    f"training diverges: at round {now} the local loss of agent {lost[0]} is no longer finite "
                    f"with {experiment.algorithm.name}(step_size={float(experiment.algorithm.step_size):g}): "
                    f"{advice_after_divergence(experiment)}",
                    _trajectory(experiment, drawn, recorded, diverged_at=int(now)),
                )
    except KeyboardInterrupt as interruption:
        if not recorded:
            raise
        now = int(rounds[len(recorded) - 1])
        kept = _trajectory(experiment, drawn, recorded, interrupted_at=now)
        raise TrainingInterrupted(f"training was interrupted at round {now} of {rounds[-1]}", kept) from interruption
    return _trajectory(experiment, drawn, recorded)


def _trajectory(experiment: Experiment, drawn: Experiment, recorded: list[dict], **attributes) -> Trajectory:
    measured = {name: np.stack([m[name] for m in recorded]) for name in recorded[0]}
    rounds = experiment.recorded[: len(recorded)]
    measured |= sent_until(drawn, rounds)
    times, precision, losses = drawn.time(rounds), experiment.precision, measured["local_loss"]
    diverged = not np.isfinite(losses).all() or bool(losses.max() > GROWN * losses[0].max() > 0)
    attributes |= {"precision": precision, "diverged": diverged}
    return Trajectory.of(experiment, "trained", rounds, measured, times=times, **attributes)


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
        raise InputError("the processes were given different experiments: give every process the same")


@dataclass(frozen=True)
class _Run:
    """What the programs of a training depend on beside the shapes of arrays: equal runs are compiled once.

    Attributes
    ----------
    algorithm
        Without its real constants, which are arguments of the programs. Those of compressors are part of it: they say
        how many entries are sent.
    network, layers
        The network, and the sizes of its parameter arrays.
    loss, batch_size
        As in the experiment.
    agents, rows
        Q, and the rows of the state: some may be idle agents, or messages on their way.
    held
        The shapes of one agent's inputs, targets and weights.
    precision
        Of the training.
    asynchronous
        Whether rounds are events of asynchronous agents.
    mesh
        The devices.
    """

    algorithm: Algorithm
    network: Flat
    layers: tuple[int, ...]
    loss: str
    batch_size: int | None
    agents: int
    rows: int
    held: tuple[tuple[int, ...], ...]
    precision: str
    asynchronous: bool
    mesh: Mesh

    @cached_property
    def together(self) -> bool:
        """Whether the agents take their gradients together: not where each keeps much for the way back."""
        theta = jax.ShapeDtypeStruct((sum(self.layers),), self.precision)
        samples = min(self.batch_size or self.held[0][0], self.held[0][0])
        batch = [jax.ShapeDtypeStruct((samples, *shape[1:]), self.precision) for shape in self.held]

        def way_back(theta, *batch):
            return jax.vjp(lambda parts: self.local_loss(parts, *batch), self.network.parts(theta))[1]

        back = jax.eval_shape(way_back, theta, *batch)
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))
        kept -= theta.size * theta.dtype.itemsize
        return kept <= TOGETHER

    def local_loss(self, parts: list[Array], inputs: Array, targets: Array, weights: Array) -> Array:
        """Of one agent, whose parameters are these arrays."""
        return weights @ LOSSES[self.loss](self.network.at(parts, inputs), targets)

    def gradient(self, inputs: Array, targets: Array, weights: Array, theta: Array, key: Any) -> Array:
        """Of one agent's local loss, or of a mini-batch of it."""
        if self.batch_size is not None:
            # Without replacement, independently in every round; padding comes last.
            order = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1)
            batch = jax.lax.top_k(order, self.batch_size)[1]
            inputs, targets = inputs[batch], targets[batch]
            weights = jnp.where(weights[batch] > 0, 1 / self.batch_size, 0).astype(inputs.dtype)
        # By arrays of the network: to a vector, every array would add as many zeros as there are parameters.
        slopes = jax.grad(self.local_loss)(self.network.parts(theta), inputs, targets, weights)
        return jnp.concatenate([slope.reshape(-1) for slope in slopes])

    def keys(self, given: _Given, agents: Array, k: Any, draw: int) -> Array:
        """A key for every agent, for one of a round's draws: the same whatever devices there are."""
        fold = jax.random.fold_in
        return jax.vmap(lambda agent: fold(fold(fold(given.key, k), draw), agent))(agents)

    def advanced(self, given: _Given, k: Any, state: PyTree) -> PyTree:
        """The state after round k."""
        algorithm = eqx.combine(given.constants, self.algorithm)
        if self.asynchronous:
            step = jax.tree.map(lambda part: part[k], given.mixing)
            return step.advance(algorithm, state, self._gradient_of_event(given, k))
        return algorithm.round(state, self._world(given, k))

    def _gradient_of_event(self, given: _Given, k: Any) -> Callable:
        draw = itertools.count()

        def gradient_of(agent, x):
            number = next(draw)
            key = None if self.batch_size is None else self.keys(given, agent[None], k, number)[0]
            inputs, targets, weights = (array[agent] for array in given.own)
            return self.gradient(inputs, targets, weights, given.theta + x, key)

        return gradient_of

    def _world(self, given: _Given, k: Any) -> World:
        # Rows of W times all agents' x: the compiler gathers these, the only communication between devices in a round.
        # Accelerators would multiply float32 in fewer bits, and agents agree to no more than that.
        matrices, order = given.mixing
        W = matrices[0] if len(matrices) == 1 else matrices[order[k % len(order)]]
        matmul = partial(jnp.matmul, precision="highest")
        draw = itertools.count()
        gradients = _on_devices(self._gradients, self.mesh)

        def grad(x, /, *, when=True):
            number = next(draw)
            keys = None if self.batch_size is None else self.keys(given, given.numbers, k, number)
            own = (*given.own, given.theta + x, keys)
            if when is True:
                return gradients(own)
            return jax.lax.cond(when, gradients, lambda own: jnp.zeros_like(own[3]), own)

        def compress(x, by, /, *, everything=False):
            keys = self.keys(given, given.numbers, k, next(draw))

            def few(x, keys):
                return _on_devices(jax.vmap(lambda x, key: by.by_layer(x, self.layers, key)), self.mesh)(x, keys)

            return few(x, keys) if everything is False else jax.lax.cond(everything, lambda x, _: x, few, x, keys)

        def average(x, /, *, when=True):
            return jnp.where(when, jnp.broadcast_to(matmul(given.everyone, x), x.shape), x)

        return World(partial(matmul, W), grad, lambda x: jnp.diagonal(W)[:, None] * x, compress, average)

    def _gradients(self, own: tuple) -> Array:
        if self.together:
            return jax.vmap(self.gradient)(*own)
        return jax.lax.map(lambda one: self.gradient(*one), own)


class _Given(NamedTuple):
    """The numbers of a training, on the devices.

    `constants` of the algorithm; `own` inputs, targets and weights of every agent; `theta`, θ₀; `key` of what is drawn;
    `mixing`, the events' `Steps` or a schedule's matrices and their order; `everyone`, the share of each row in an
    average of all; `numbers` of the rows.
    """

    constants: Any
    own: tuple
    theta: Any
    key: Any
    mixing: Any
    everyone: Any
    numbers: Any


class _Seen(NamedTuple):
    """What a model is evaluated on: all `inputs`, training samples first, and what `measures` takes beside."""

    inputs: Any
    targets: Any
    weights: Any
    owner: Any
    test_targets: Any
    test_labels: Any


def _placed(experiment: Experiment, key: Array, mesh: Mesh) -> tuple[_Run, _Given, _Seen]:
    """What the programs depend on, and what they are given."""
    data, agents, precision = experiment.data, experiment.agents, experiment.precision
    model = experiment.initialise().astype(precision)
    theta, network = model.flat()
    # Idle agents fill the last devices: they do not mix, and hold another agent's data with weight 0.
    idle = -agents % mesh.size
    holder = np.minimum(np.arange(agents + idle), agents - 1)
    samples = data.inputs, data.targets, 1 / data.sizes[data.owner]
    own = [data.per_agent(a)[holder] for a in samples]
    own[2][agents:] = 0

    def held(array, *axes):
        return place(array.astype(precision), mesh, *axes, AXIS)

    def seen(array):
        return place(np.asarray(array, precision if np.asarray(array).dtype.kind == "f" else None), mesh)

    mixing = experiment.topology
    if mixing.asynchronous:
        steps = jax.tree.map(partial(place, mesh=mesh), mixing.of_rounds(int(experiment.rounds))[0])
    else:
        matrices = np.tile(np.eye(agents + idle), (len(mixing.matrices), 1, 1))
        matrices[:, :agents, :agents] = mixing.matrices
        steps = held(matrices, None), place(mixing.order, mesh)
    constants, algorithm = without_constants(experiment.algorithm)
    run = _Run(
        algorithm,
        network,
        model.layers,
        experiment.loss,
        experiment.batch_size,
        agents,
        mixing.rows + idle,
        tuple(array.shape[1:] for array in own),
        precision,
        mixing.asynchronous,
        mesh,
    )
    given = _Given(
        constants,
        tuple(map(held, own)),
        place(theta, mesh),
        key,
        steps,
        held(np.append(np.full(agents, 1 / agents), np.zeros(idle))),
        place(np.arange(agents + idle), mesh, AXIS),
    )
    tests = (data.test_targets, data.test_labels) if len(data.test_inputs) else (None, None)
    labels = None if data.classes is None else tests[1]
    return (
        run,
        given,
        _Seen(
            seen(np.concatenate([data.inputs, data.test_inputs]) if tests[0] is not None else data.inputs),
            seen(data.targets),
            seen(samples[2]),
            seen(data.owner),
            None if tests[0] is None else seen(tests[0]),
            None if labels is None else seen(labels),
        ),
    )


class _Programs(NamedTuple):
    """The compiled functions of equal runs.

    `start(given)` makes the first state, `advance(given, state, first, end)` takes it over these rounds,
    `evaluate(given, seen, state)` measures all agents' models, and `models(given, state)` are their parameters, shape
    (Q, P).
    """

    start: Callable
    advance: Callable
    evaluate: Callable
    models: Callable


@lru_cache(maxsize=64)
def _programs(run: _Run) -> _Programs:
    mesh, agents = run.mesh, run.agents

    def start(given):
        algorithm = eqx.combine(given.constants, run.algorithm)
        state = algorithm.init(jnp.zeros((run.rows, given.theta.size), run.precision))
        # Constants such as a step size are weakly typed; the state must keep its type from round to round.
        return jax.tree.map(jnp.asarray, state)

    def sharding(leaf):
        # Leaves that have the agents first are divided, others are on every device.
        return NamedSharding(mesh, Spec(AXIS) if leaf.shape[:1] == (run.rows,) else Spec())

    def advance(given, state, first, end):
        return jax.lax.fori_loop(first, end, partial(run.advanced, given), state)

    def models_of(given, state):  # without messages in transit and idle agents
        return eqx.combine(given.constants, run.algorithm).model(state)[:agents]

    def evaluate(given, seen, state):
        moved = models_of(given, state)
        each = partial(jax.lax.map, lambda theta: run.network(theta, seen.inputs))  # one agent at a time
        x = given.theta + eqx.combine(given.constants, run.algorithm).model(state)
        outputs = (_on_devices(each, mesh)(x) if not run.asynchronous else each(x[:agents]))[:agents]
        samples = len(seen.targets)
        measured = measures.losses_of(outputs[:, :samples], seen.targets, seen.weights, seen.owner, run.loss)
        if seen.test_targets is not None:
            measured |= measures.test_measures_of(
                outputs[:, samples:], seen.test_targets, seen.test_labels, loss=run.loss
            )
        return measured | measures.distances(moved, jnp.zeros_like(given.theta))

    # What the host reads is on every device, so that every process can read it.
    for_host = partial(jax.jit, out_shardings=NamedSharding(mesh, Spec()))
    return _Programs(
        start=_divided(start, sharding),
        advance=_divided(advance, sharding),
        evaluate=for_host(evaluate),
        models=for_host(lambda given, state: given.theta + models_of(given, state)),
    )


def _divided(function: Callable, sharding: Callable) -> Callable:
    """`function` compiled so that its result lies on the devices as `sharding` says of each of its leaves."""
    compiled: list[Callable] = []

    def call(*arguments):
        if not compiled:
            shapes = jax.eval_shape(function, *arguments)
            compiled.append(jax.jit(function, out_shardings=jax.tree.map(sharding, shapes)))
        return compiled[0](*arguments)

    return call


def _on_devices(function: Any, mesh: Mesh) -> Callable[..., Array]:
    """`function` of arrays that have the agents first, each device on its own rows of them."""
    if mesh.size == 1:  # there it would only keep the compiler from fusing: a third of a round, as measured
        return function
    # Unchecked, for a network may do inside what the check does not follow, such as loops.
    return jax.shard_map(function, mesh=mesh, in_specs=Spec(AXIS), out_specs=Spec(AXIS), check_vma=False)
