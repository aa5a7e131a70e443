"""A whole run, predicted: features, linear system, transition, and the measures along it."""

from collections.abc import Sequence

import jax
import numpy as np

from ntkp2p import measures
from ntkp2p.dynamics.stability import EDGE, Spectrum, spectrum
from ntkp2p.dynamics.system import linear_system
from ntkp2p.dynamics.transition import Method, Solution, Time, solve
from ntkp2p.experiment import Experiment
from ntkp2p.initialisations import over_initialisations
from ntkp2p.models import Features
from ntkp2p.precision import in_float64
from ntkp2p.trajectory import Trajectory

#: Bytes of outputs that are evaluated at a time.
CHUNK = 2**28


def predict(
    experiment: Experiment,
    /,
    *,
    time: Time = "rounds",
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> Trajectory:
    """Every agent's losses and distances in closed form, without training.

    Parameters
    ----------
    experiment
        What to predict.
    time
        "rounds": the algorithm's own discrete rounds. "flow": its gradient flow at t = η k.
    features
        Those of an experiment that differs in algorithm or mixing only, or computed with options of one's own
        (`experiment.features(cache=..., memory=...)`); by default computed here, which is most of the work.
    method, rtol
        How the linear system is solved, and how accurately: see `ntkp2p.dynamics.solve`.

    Returns
    -------
    trajectory
        With `error_estimate` and `converged` of the solver, `stable`, the `spectral_radius` of the rounds
        (NaN where the iteration for it did not converge; such a run is not called unstable), the
        `spectral_abscissa` of the flow, and the textbook's `stable_step_size` among its attributes. An unstable run is
        predicted like any other, and flagged.

        At infinite width it is the mean over initialisations, with the standard deviations `local_loss_std`,
        `global_loss_std` and `test_loss_std` between them; distances are root mean squares. Its attributes then have
        `width` "infinite" and `spread_error`, the share of the outputs' initial variance that is left out. The same
        for a network of any width, or an affine model, with
        `features=models.infinite_features(experiment.model, experiment.data.inputs, experiment.data.outputs)`.

    Raises
    ------
    ValueError
        If the algorithm's rounds are not affine, the time is neither "rounds" nor "flow", or the features are not of
        this experiment's data.
    ImportError
        For infinite width without neural-tangents.
    """
    return predictions(experiment, times=(time,), features=features, method=method, rtol=rtol)[time]


@in_float64
def predictions(
    experiment: Experiment,
    /,
    *,
    times: Sequence[Time] = ("rounds", "flow"),
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> dict[Time, Trajectory]:
    """`predict` for several notions of time, all from one basis."""
    for time in times:
        if time not in ("rounds", "flow"):
            raise ValueError(f'time must be "rounds" or "flow", found {time!r}')
    if features is None:
        features = experiment.features()
    elif not _are_of(features, experiment.data.inputs):
        raise ValueError("these features are of other data or another order of them: leave features out")
    system = linear_system(experiment.algorithm, experiment.mixing, features, experiment.data)
    solution = solve(system, experiment.recorded, times=times, method=method, rtol=rtol)
    extremes = spectrum(system)
    verdicts = {time: _verdict(features, solution, extremes, time) for time in times}
    if features.spread is None:
        measured = _measure(experiment, features, solution, times)
    else:
        measured, error, converged = over_initialisations(experiment, features, solution, times, rtol=rtol)
        for verdict in verdicts.values():
            verdict["error_estimate"] = max(verdict["error_estimate"], error)
            verdict["converged"] = verdict["converged"] and converged
    return {time: Trajectory.of(experiment, time, solution.rounds, measured[time], **verdicts[time]) for time in times}


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
    directions = np.concatenate([system.model(system.initial)[None], system.directions(solution.basis)])
    errors = (features.initial - data.targets).reshape(-1, features.columns)
    factors = measures.factors(directions, features.matrix, errors, data, squared=True)
    c = {time: np.pad(solution.coefficients[time], ((0, 0), (1, 0)), constant_values=1.0) for time in times}
    measured: dict[Time, dict[str, np.ndarray]] = {time: factors(c[time]) for time in times}
    if len(tests := data.test_inputs):
        initial, matrix = features.initial_at(tests), features.matrix_at(tests)
        z = directions.reshape(len(directions), data.agents, features.rank, features.columns)
        moved = np.moveaxis(np.tensordot(matrix, z, (1, 2)), (0, 1, 2, 3), (2, 0, 1, 3))
        moved = moved.reshape(len(directions), data.agents, *initial.shape)
        evaluate = jax.jit(lambda outputs: measures.test_measures(outputs, data))
        step = max(1, CHUNK // (8 * data.agents * initial.size))
        for time in times:
            chunks = []
            for first in range(0, len(solution.rounds), step):
                with np.errstate(over="ignore", invalid="ignore"):  # an unstable system has overflowed
                    outputs = initial + np.tensordot(c[time][first : first + step], moved, 1)
                chunks.append(evaluate(outputs))
            measured[time] |= {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return measured


def _verdict(features: Features, solution: Solution, extremes: Spectrum, time: str) -> dict:
    unstable = extremes.radius > 1 + EDGE if time == "rounds" else extremes.abscissa * solution.system.step_size > EDGE
    shared = {} if features.sharing_error is None else {"sharing_error": features.sharing_error}
    of_the_mean = {} if features.spread is None else {"width": "infinite", "spread_error": features.spread.error}
    return {
        "closed_form": True,
        "stable": not unstable,
        "spectral_radius": extremes.radius,
        "spectral_abscissa": extremes.abscissa,
        "stable_step_size": solution.system.stable_step_size,
        "method": solution.method,
        "states": solution.system.size,
        "basis": solution.size,
        "rank": features.rank,
        "kernel_error": features.error,
        "error_estimate": solution.error,
        "converged": solution.converged,
        **shared,
        **of_the_mean,
    }
