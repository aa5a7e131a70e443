"""A whole run, predicted: features, linear system, transition, and the measures along it."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ntkp2p.algorithms import Algorithm
from ntkp2p.algorithms.compression import compressors_of
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.threads import one_thread
from ntkp2p.dynamics.eager import EagerSystem, eager_system
from ntkp2p.dynamics.krylov import Time, checked_time, times_of
from ntkp2p.dynamics.mean_square import MOMENTS, mean_square_radius
from ntkp2p.dynamics.nonlinear import Integration, integrate
from ntkp2p.dynamics.round import assemble
from ntkp2p.dynamics.solve import Solution, solve
from ntkp2p.dynamics.spectrum import Spectrum, spectrum, spectrum_and_eigenvalues, stability_tolerance
from ntkp2p.dynamics.steady_state import steady_state as solve_steady
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.varying import eventual
from ntkp2p.dynamics.windows import DENSE_SIZE, Method
from ntkp2p.kernels import Features
from ntkp2p.runs import measures
from ntkp2p.runs.communication import sent_until
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.infinite_width import over_initialisations
from ntkp2p.runs.instability import warn_if_unstable
from ntkp2p.runs.mean_field import drawn_by, with_measured_shares
from ntkp2p.runs.trajectory import Trajectory

#: Up to so many states all eigenvalues are computed within a blink: of a symmetric system, and of others.
QUICK = {True: 800, False: 400}
#: Bytes of outputs that are evaluated at a time.
CHUNK = 2**28


def predict(
    experiment: Experiment,
    /,
    *,
    time: str = "rounds",
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> Trajectory:
    """Predict every agent's losses and distances without training.

    For squared error the prediction is a closed form of the linear model; for other losses it is integrated.

    Parameters
    ----------
    experiment
        The run.
    time
        "rounds": the algorithm's own discrete rounds. "flow": its gradient flow at the flow time t = η k, which
        `Delayed` algorithms and `Events` do not have.
    features
        The linear model, from `experiment.features(cache=..., memory=...)`. It depends on the network and the data
        only, so it can be shared between algorithms and mixings. By default it is computed here, which is most of the
        work.
    method, rtol
        The method and the tolerance of the solver: see `ntkp2p.dynamics.solve`; for other losses than squared error
        see `ntkp2p.dynamics.nonlinear`, where the only method is "auto".

    Warns
    -----
    UnstableWarning
        If the linear model is unstable in rounds. The prediction is returned all the same.

    Returns
    -------
    trajectory
        Its attributes include the solver's `error_estimate` and `converged`, `stable`, the `spectral_radius` of the
        rounds, the `spectral_abscissa` of the flow if there is one, and the `sufficient_step_size` of the literature.
        Above 1,500 states (600 if M is not symmetric) the eigenvalues are found by iteration, to a residual of about
        1e-3 (`spectral_residual`), and are NaN where it did not converge. A run counts as stable if its radius is not
        known, or exceeds 1 by no more than the residual of a nonsymmetric M.

        At infinite width the prediction is the mean over initialisations, with the standard deviations
        `local_loss_std`, `global_loss_std` and `test_loss_std`; distances are root mean squares. The attribute `width`
        is "infinite", and `spread_error` is the share of the outputs' initial variance that is omitted. The same holds
        for a network of any width, or an affine model, with
        `features=kernels.infinite_features(experiment.model, experiment.data.inputs, experiment.data.outputs)`.

        With mini-batches, asynchronous agents or random entries of messages, the prediction is the mean model over the
        draws, and the measures are those of the mean model: attribute `mean_over` (for cross-entropy this is a
        mean-field approximation, `mean_field_over`). With `AsynchronousGossip`, "rounds" are events and "flow" is
        wall-clock time; both means are exact. For small systems `mean_square_radius` is the growth factor of the mean
        square per event, and `stable` states whether it is below 1. Top-k compression enters as a mean-field
        approximation, C(v) ≈ δ v, where δ is its share of ‖v‖² in the agents' initial gradients: attribute
        `mean_field_share`.

        For cross-entropy `closed_form` is 0. There is no spectrum; `stable` states whether the recorded states stay
        bounded, and `failure`, if present, why the integration of the flow ended early.

    Raises
    ------
    ValueError
        If the algorithm's rounds are not affine, the algorithm has no flow, `time` is unknown, or the features belong
        to other data; for cross-entropy at infinite width, or with a method for linear systems.
    ImportError
        For infinite width without neural-tangents.

    Examples
    --------
    Three agents with the numbers 0, 3 and 6 learn a constant over a complete graph; η/(1 + η) of their differences
    remains:

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
    >>> predicted = p2p.predict(experiment)
    >>> predicted.outputs(np.zeros((1, 1))).ravel().round(6)
    array([2., 3., 4.])
    >>> predicted.stable
    True
    """
    return predictions(experiment, times=(time,), features=features, method=method, rtol=rtol)[time]


@in_float64
def predictions(
    experiment: Experiment,
    /,
    *,
    times: Sequence[str] | None = None,
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> Mapping[Any, Trajectory]:
    """`predict` for several notions of time, all from one basis.

    Parameters
    ----------
    experiment
        What to predict.
    times
        Some of "rounds" and "flow"; by default those that the algorithm has.
    features, method, rtol
        As for `predict`.

    Returns
    -------
    dict
        Trajectories by time.

    Raises
    ------
    ValueError, ImportError
        As `predict`.

    Examples
    --------
    The rounds and their flow end at the same point:

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
    >>> both = p2p.predictions(experiment)
    >>> for time in sorted(both):
    ...     print(time, both[time].outputs(np.zeros((1, 1))).ravel().round(6).tolist())
    flow [2.0, 3.0, 4.0]
    rounds [2.0, 3.0, 4.0]
    """
    has_flow = experiment.has_flow
    times = times_of(has_flow) if times is None else times
    asked: list[Time] = [checked_time(time, has_flow=has_flow) for time in times]
    found = predictions_in(features_of(experiment, features), experiment, asked, method, rtol)
    warn_if_unstable(experiment, found)
    return found


def predictions_in(
    features: Features, experiment: Experiment, asked: Sequence[Time], method: Method, rtol: float, /
) -> dict[Time, Trajectory]:
    """`predictions` in features that are known to be of this experiment's data."""
    run, averages = _averaged(experiment)
    if experiment.loss != "squared":
        return _integrated(experiment, run.algorithm, features, asked, method, rtol, averages)
    system = _system_of(run, features, quick=DENSE_SIZE if method in ("auto", "dense") else 0)
    solution = solve(system, experiment.recorded, times=asked, method=method, rtol=rtol)
    measured, verdicts = _found(experiment, run, features, solution, spectrum(system), averages)
    counted = {time: measured[time] | _counters(experiment, features, time, solution.rounds) for time in asked}
    return _trajectories(experiment, features, solution, counted, verdicts)


def _system_of(run: Experiment, features: Features, *, quick: int | float) -> LinearSystem:
    """The linear system of a run: up to so many states one that NumPy takes, for which little is compiled."""
    W, rounds = run.topology.matrix, int(run.rounds)
    if W is not None and features.spread is None and run.agents * features.rank * features.columns <= quick:
        system = eager_system(run.algorithm, W, features, run.data, rounds=rounds)
        if system is not None and system.size <= quick:
            return system
    return linear_system(run.algorithm, run.topology, features, run.data, rounds=rounds)


def _found(
    experiment: Experiment,
    run: Experiment,
    features: Features,
    solution: Solution,
    extremes: Spectrum,
    averages: dict[str, Any],
) -> tuple[dict[Time, dict[str, np.ndarray]], dict[Time, dict[str, Any]]]:
    """What a solution says by time: the measures at all rounds, and what is said of the whole run."""
    asked = tuple(solution.coefficients)
    verdicts: dict[Time, dict[str, Any]] = {
        time: _verdict(features, solution, extremes, time) | averages for time in asked
    }
    if features.spread is None:
        return _measure(experiment, features, solution, asked), verdicts
    measured, error, converged = over_initialisations(run, features, solution, asked, rtol=solution.rtol)
    for verdict in verdicts.values():
        verdict["error_estimate"] = max(verdict["error_estimate"], error)
        verdict["converged"] = verdict["converged"] and converged
    return measured, verdicts


def _trajectories(
    experiment: Experiment,
    features: Features,
    solution: Solution,
    measured: Mapping[Any, dict[str, np.ndarray]],
    verdicts: Mapping[Any, dict[str, Any]],
) -> dict[Time, Trajectory]:
    return {
        time: Trajectory.of(
            experiment,
            time,
            solution.rounds,
            measured[time],
            models=_Models.of(experiment, features, solution, time),
            **verdicts[time],
        )
        for time in measured
    }


@in_float64
@one_thread()  # many small products
def explored(experiment: Experiment, features: Features, /) -> tuple[Mapping[Any, Trajectory], np.ndarray]:
    """`predictions` without counters, as accurate or more so, and eigenvalues of their rounds: in a blink.

    Of large systems the eigenvalues are the largest only; there are none of cross-entropy, nor where rounds differ
    without repeating themselves.

    Parameters
    ----------
    features
        Known to be of this experiment's data.
    """
    asked = times_of(experiment.has_flow)
    if experiment.loss != "squared":
        return predictions_in(features, experiment, asked, "auto", 1e-8), np.empty(0)
    run, averages = _averaged(experiment)
    system = _system_of(run, features, quick=np.inf)
    extremes, values = spectrum_and_eigenvalues(system, dense=QUICK[system.symmetric])
    if isinstance(system, EagerSystem):  # Arnoldi: Lanczos's steps would be compiled
        arnoldi = replace(system, symmetric=False)
        solution = solve(arnoldi, experiment.recorded, times=asked, method="krylov", rtol=1e-10)
    else:
        solution = solve(system, experiment.recorded, times=asked)
    measured, verdicts = _found(experiment, run, features, solution, extremes, averages)
    return _trajectories(experiment, features, solution, measured, verdicts), values


@in_float64
def steady_state(
    experiment: Experiment, /, *, time: str = "rounds", features: Features | None = None, rtol: float = 1e-10
) -> Trajectory:
    """Where a run comes to rest, t = ∞, by one linear solve: its losses, disagreement and bias.

    Parameters
    ----------
    experiment
        What to predict; its rounds do not matter.
    time
        "rounds" or "flow": they rest at the same point, but the flow may be stable where the rounds are not.
    features
        As for `predict`.
    rtol
        The relative residual of the solve; see `ntkp2p.dynamics.steady_state`.

    Returns
    -------
    trajectory
        With the one round ∞, source "steady", and beside the usual variables `bias`: every agent's distance from the
        minimiser of the global loss (of all minimisers the one nearest to θ₀). `trajectory.plot()` draws levels.

    Raises
    ------
    NoSteadyStateError
        A ValueError that says why the run never rests.
    ValueError
        If the loss is not squared error, or for the average over initialisations.
    NotConvergedError
        If the solve of a large system does not converge.

    Examples
    --------
    The best constant for 0, 3 and 6 is 3, and with η = 1/2 the agents rest at 2, 3 and 4:

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
    >>> [round(float(bias), 6) for bias in p2p.steady_state(experiment).bias[0]]
    [1.0, 0.0, 1.0]
    """
    if experiment.loss != "squared":
        raise InputError(f"under {experiment.loss} there is no linear solve for the steady state: predict a long run")
    features = features_of(experiment, features)
    if features.spread is not None:
        raise InputError("the steady state is that of one initialisation: give the network a finite width")
    clock = checked_time(time)
    run, averages = _averaged(experiment)
    system = eventual(linear_system(run.algorithm, run.topology, features, run.data), clock)
    state, residual = solve_steady(system, time=time, rtol=rtol)
    basis = (state - system.initial)[None]
    solution = Solution(
        system, np.array([np.inf]), basis, {clock: np.ones((1, 1))}, "steady", 1, {clock: residual}, rtol
    )
    measured = _measure(experiment, features, solution, (clock,))[clock]
    share = np.repeat(np.sqrt(1 / experiment.data.sizes[experiment.data.owner]), _rows_per_sample(experiment, features))
    errors = (features.initial - experiment.data.targets).reshape(-1, features.columns)
    best = -np.linalg.lstsq(share[:, None] * features.matrix, share[:, None] * errors)[0]
    measured["bias"] = np.linalg.norm(system.model(state) - best.reshape(-1), axis=1)[None]
    models = _Models.of(experiment, features, solution, clock)
    facts = {"closed_form": True, "states": system.size, "residual": residual, "time": time, **averages}
    return Trajectory.of(experiment, "steady", solution.rounds, measured, models=models, **facts)


def _rows_per_sample(experiment: Experiment, features: Features) -> int:
    return len(features.matrix) // experiment.data.samples


@dataclass(frozen=True)
class _Models:
    """The agents' models at the recorded rounds: `coordinates` takes the number of one, and gives (Q, d)."""

    experiment: Experiment
    known_features: Features | None
    rounds: np.ndarray
    coordinates: Callable[[int], np.ndarray]
    checksum: int | None = None

    @classmethod
    def of(cls, experiment: Experiment, features: Features, solution: Solution, time: Time) -> "_Models":
        def coordinates(at):
            here = slice(at, at + 1)
            return solution.system.models(solution.states(time, here), solution.rounds[here])[0]

        return cls(experiment, features, solution.rounds, coordinates)

    @in_float64
    def parameters(self, agent: int, round: float, /) -> Any:
        if self.features.parameters is None:
            raise InputError("these models have no parameters of their own: take a finite width and kernel='exact'")
        theta, unravel = ravel_pytree(self.experiment.initialise().params)
        return unravel(theta + self.features.parameters(self._coordinates(round)[agent]))

    @in_float64
    def outputs(self, x: np.ndarray, round: float, /) -> np.ndarray:
        initial, z = self.features.initial_at(x), self._coordinates(round)
        return initial + (self.features.matrix_at(x) @ z).reshape(len(z), *initial.shape)

    @property
    def features(self) -> Features:
        """The linear model; a copy from another process computes it again, from the same data and network."""
        if self.known_features is None:
            found = self.experiment.features()
            if _checksum(found) != self.checksum:
                raise InputError("the features were given to predict and are not in the copy: predict again")
            object.__setattr__(self, "known_features", found)
        assert self.known_features is not None
        return self.known_features

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the features, whose functions cannot be pickled; the models' coordinates in full."""
        checksum = self.checksum if self.known_features is None else _checksum(self.known_features)
        coordinates = np.stack([self.coordinates(at) for at in range(len(self.rounds))])
        changed = {"known_features": None, "coordinates": coordinates.__getitem__, "checksum": checksum}
        return self.__dict__ | changed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _coordinates(self, round: float) -> np.ndarray:
        z = self.coordinates(int(np.flatnonzero(self.rounds == round)[0]))
        return z.reshape(len(z), self.features.rank, self.features.columns)


def _checksum(features: Features) -> int:
    return zlib.crc32(np.ascontiguousarray(features.matrix).tobytes())


def features_of(experiment: Experiment, features: Features | None, /) -> Features:
    """Those given, if they are of this experiment's data, or else computed."""
    if features is None:
        return experiment.features()
    if not _are_of(features, experiment.data.inputs):
        raise InputError("these features are of other data or another order of them: leave features out")
    return features


def _integrated(
    experiment: Experiment,
    algorithm: Algorithm,
    features: Features,
    times: Sequence[Time],
    method: Method,
    rtol: float,
    averages: dict[str, Any],
) -> dict[Time, Trajectory]:
    """What has no closed form: the same linear models, followed step by step."""
    if method != "auto":
        raise InputError(f"method {method!r} is for squared error: leave it out, {experiment.loss} is integrated")
    if features.spread is not None:
        raise InputError(
            f"at infinite width {experiment.loss} has no average over initialisations: take a finite width, or squared "
            "error"
        )
    advance, parameters, timetable = assemble(
        algorithm, experiment.topology, features, experiment.data, loss=experiment.loss, rounds=int(experiment.rounds)
    )
    predicted = {}
    start, recorded = advance.start(algorithm), experiment.recorded
    for time in times:
        found = integrate(advance, parameters, start, recorded, timetable=timetable, time=time, rtol=rtol)
        predicted[time] = Trajectory.of(
            experiment,
            time,
            found.rounds,
            _measure_models(experiment, features, found.models) | _counters(experiment, features, time, found.rounds),
            models=_Models(experiment, features, found.rounds, found.models.__getitem__),
            **_verdict_of_integration(features, found),
            **averages,
        )
    return predicted


def _counters(experiment: Experiment, features: Features, time: Time, rounds: np.ndarray) -> dict[str, np.ndarray]:
    """What has been sent; a flow sends nothing, nor does an average over initialisations have parameters to send."""
    return sent_until(experiment, rounds) if time == "rounds" and features.spread is None else {}


@in_float64
def _averaged(experiment: Experiment) -> tuple[Experiment, dict[str, Any]]:
    """The experiment with the measured shares of its compressors, and over what its prediction is a mean."""
    means = ["clocks"] if experiment.asynchronous and experiment.topology.horizon is None else []
    means += [] if experiment.batch_size is None else ["mini-batches"]
    means += [names] if (names := drawn_by(experiment.algorithm)) else []
    # Where rounds are not affine, following the mean gradients and messages is no mean of the runs.
    label = "mean_over" if experiment.loss == "squared" else "mean_field_over"
    averages: dict[str, Any] = {label: ", ".join(means)} if means else {}
    experiment = with_measured_shares(experiment)
    shares: list[Any] = [by.share for by in compressors_of(experiment.algorithm) if not by.unbiased]
    return experiment, averages | ({"mean_field_share": float(shares[0])} if shares else {})


def _are_of(features: Features, inputs: np.ndarray) -> bool:
    """Whether the features are of these training inputs."""
    if features.spread is not None:
        return np.array_equal(features.spread.inputs, inputs)
    return np.array_equal(features.initial_at(inputs), features.initial)


def _measure(
    experiment: Experiment, features: Features, solution: Solution, times: Sequence[Time]
) -> dict[Time, dict[str, np.ndarray]]:
    """What is measured at all rounds: quadratic forms of few coefficients, and outputs on test samples."""
    system, data = solution.system, experiment.data
    if system.models_vary:  # no few directions that the models take
        return {
            time: _measure_models(experiment, features, system.models(solution.states(time), solution.rounds))
            for time in times
        }
    directions = np.concatenate([system.model(system.initial)[None], system.directions(solution.basis)])
    errors = (features.initial - data.targets).reshape(-1, features.columns)
    factors = measures.factors(directions, features.matrix, errors, data)
    c = {time: np.pad(solution.coefficients[time], ((0, 0), (1, 0)), constant_values=1.0) for time in times}
    measured: dict[Time, dict[str, np.ndarray]] = {time: factors(c[time]) for time in times}
    if len(tests := data.test_inputs):
        initial, matrix = features.initial_at(tests), features.matrix_at(tests)
        z = directions.reshape(len(directions), data.agents, features.rank, features.columns)
        moved = np.moveaxis(np.tensordot(matrix, z, (1, 2)), (0, 1, 2, 3), (2, 0, 1, 3))
        moved = moved.reshape(len(directions), data.agents, *initial.shape)
        step = max(1, CHUNK // (8 * data.agents * initial.size))
        for time in times:
            chunks = []
            for first in range(0, len(solution.rounds), step):
                with np.errstate(over="ignore", invalid="ignore"):  # an unstable system has overflowed
                    outputs = initial + np.tensordot(c[time][first : first + step], moved, 1)
                    chunks.append(measures.test_measures(outputs, data, "squared"))
            measured[time] |= {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return measured


def _measure_models(experiment: Experiment, features: Features, models: np.ndarray) -> dict[str, np.ndarray]:
    """What is measured of models (times, Q, d)."""
    data = experiment.data
    initial, matrix = features.initial, features.matrix
    if len(tests := data.test_inputs):
        initial = np.concatenate([initial, features.initial_at(tests)])
        matrix = np.concatenate([matrix, features.matrix_at(tests)])
    step = max(1, CHUNK // (8 * data.agents * initial.size))

    seen = (data.targets, 1 / data.sizes[data.owner], data.owner, data.test_targets if len(tests) else None)
    labels = data.test_labels if len(tests) and data.classes is not None else None
    chunks = [
        _measured(models[first : first + step], initial, matrix, *seen, labels, loss=experiment.loss)
        for first in range(0, len(models), step)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


@partial(jax.jit, static_argnames="loss")
def _measured(models, initial, matrix, targets, weights, owner, test_targets, test_labels, *, loss: str):
    """The measures of models (times, Q, d) whose outputs are `initial` + `matrix` z, training samples first."""
    z = models.reshape(*models.shape[:2], matrix.shape[1], -1)
    outputs = initial + (matrix @ z).reshape(*models.shape[:2], *initial.shape)
    samples = len(targets)
    measured = measures.losses_of(outputs[..., :samples, :], targets, weights, owner, loss)
    if test_targets is not None:
        measured |= measures.test_measures_of(outputs[..., samples:, :], test_targets, test_labels, loss=loss)
    return measured | measures.distances(models, jnp.zeros(models.shape[-1]))


def _verdict(features: Features, solution: Solution, extremes: Spectrum, time: Time) -> dict:
    eta, tolerance = solution.system.step_size, stability_tolerance(solution.system, extremes)
    unstable = extremes.radius > 1 + tolerance if time == "rounds" else extremes.abscissa * eta > tolerance
    of_runs = {}
    if solution.system.over_clocks and solution.system.size <= MOMENTS:
        of_runs["mean_square_radius"] = mean_square_radius(solution.system)
        unstable = unstable or of_runs["mean_square_radius"] > 1 + tolerance
    of_the_mean = {} if features.spread is None else {"width": "infinite", "spread_error": features.spread.error}
    return {
        "closed_form": True,
        "stable": not unstable,
        "spectral_radius": extremes.radius,
        **({"spectral_residual": extremes.residual} if extremes.residual else {}),
        **({"spectral_abscissa": extremes.abscissa} if solution.system.has_flow else {}),
        "sufficient_step_size": solution.system.sufficient_step_size,
        **of_runs,
        "method": solution.method,
        "states": solution.system.size,
        "basis": solution.size,
        "error_estimate": solution.errors[time],
        "converged": solution.errors[time] <= solution.rtol,
        **_of(features),
        **of_the_mean,
    }


def _verdict_of_integration(features: Features, found: Integration) -> dict:
    return {
        "closed_form": False,
        "stable": found.stable,
        "method": found.method,
        "states": found.size,
        "error_estimate": found.error,
        "converged": found.converged,
        **_of(features),
        **({"failure": found.failure} if found.failure else {}),
    }


def _of(features: Features) -> dict:
    shared = {} if features.sharing_error is None else {"sharing_error": features.sharing_error}
    return {"rank": features.rank, "kernel_error": features.error, **shared}
