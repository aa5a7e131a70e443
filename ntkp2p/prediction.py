"""A whole run, predicted: features, linear system, transition, and the measures along it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntkp2p import measures
from ntkp2p.dynamics.integrate import Integration, integrate
from ntkp2p.dynamics.stability import EDGE, Spectrum, spectrum
from ntkp2p.dynamics.system import assemble, linear_system
from ntkp2p.dynamics.transition import Method, Solution, solve
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
    time: str = "rounds",
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> Trajectory:
    """Every agent's losses and distances without training: in closed form, or for cross-entropy step by step.

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
        How the linear system is solved, and how accurately: see `ntkp2p.dynamics.solve`, and for another loss than
        squared error `ntkp2p.dynamics.integrate`, which knows no other method than "auto".

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

        For cross-entropy `closed_form` is 0: there is no spectrum, `stable` tells whether the states grow beyond bounds
        in these rounds, and `failure`, where there is one, why the flow was not followed to the end.

    Raises
    ------
    ValueError
        If the algorithm's rounds are not affine, the time is neither "rounds" nor "flow", or the features are not of
        this experiment's data; for cross-entropy at infinite width, or by a method for linear systems.
    ImportError
        For infinite width without neural-tangents.
    """
    return predictions(experiment, times=(time,), features=features, method=method, rtol=rtol)[time]


@in_float64
def predictions(
    experiment: Experiment,
    /,
    *,
    times: Sequence[str] = ("rounds", "flow"),
    features: Features | None = None,
    method: Method = "auto",
    rtol: float = 1e-8,
) -> dict[str, Trajectory]:
    """`predict` for several notions of time, all from one basis."""
    for time in times:
        if time not in ("rounds", "flow"):
            raise ValueError(f'time must be "rounds" or "flow", found {time!r}')
    if features is None:
        features = experiment.features()
    elif not _are_of(features, experiment.data.inputs):
        raise ValueError("these features are of other data or another order of them: leave features out")
    if experiment.loss != "squared":
        return _integrated(experiment, features, times, method, rtol)
    system = linear_system(experiment.algorithm, experiment.mixing, features, experiment.data)
    solution = solve(system, experiment.recorded, method=method, rtol=rtol)
    extremes = spectrum(system)
    verdicts = {time: _verdict(features, solution, extremes, time) for time in times}
    if features.spread is None:
        measure = _measure(experiment, features)
        measured = {time: measure(lambda at, time=time: system.models(solution.states(time, at))) for time in times}
    else:
        measured, error, converged = over_initialisations(experiment, features, solution, times, rtol=rtol)
        for verdict in verdicts.values():
            verdict["error_estimate"] = max(verdict["error_estimate"], error)
            verdict["converged"] = verdict["converged"] and converged
    return {time: Trajectory.of(experiment, time, solution.rounds, measured[time], **verdicts[time]) for time in times}


def _integrated(
    experiment: Experiment, features: Features, times: Sequence[str], method: Method, rtol: float
) -> dict[str, Trajectory]:
    """What has no closed form: the same linear models, followed step by step."""
    if method != "auto":
        raise ValueError(f"method {method!r} is for squared error: leave it out, {experiment.loss} is integrated")
    if features.spread is not None:
        raise ValueError(
            f"at infinite width {experiment.loss} has no average over initialisations: take a finite width, or squared "
            "error"
        )
    algorithm, measure = experiment.algorithm, _measure(experiment, features)
    advance, parameters = assemble(algorithm, experiment.mixing, features, experiment.data, loss=experiment.loss)
    predicted = {}
    for time in times:
        found = integrate(advance, parameters, advance.start(algorithm), experiment.recorded, time=time, rtol=rtol)
        verdict = _verdict_of_integration(features, found)
        predicted[time] = Trajectory.of(experiment, time, found.rounds, measure(found.models.__getitem__), **verdict)
    return predicted


def _are_of(features: Features, inputs: np.ndarray) -> bool:
    """Whether the features are of these training inputs."""
    if features.spread is not None:
        return np.array_equal(features.spread.inputs, inputs)
    return np.array_equal(features.initial_at(inputs), features.initial)


def _measure(experiment: Experiment, features: Features):
    """The function that measures models, given by slices of the recorded rounds, at all of these."""
    data = experiment.data
    initial, matrix = features.initial, features.matrix
    if len(tests := data.test_inputs):
        initial = np.concatenate([initial, features.initial_at(tests)])
        matrix = np.concatenate([matrix, features.matrix_at(tests)])
    step = max(1, CHUNK // (8 * data.agents * initial.size))

    @jax.jit
    def measure(x):
        z = x.reshape(*x.shape[:2], features.rank, features.columns)
        outputs = initial + (matrix @ z).reshape(*x.shape[:2], *initial.shape)
        measured = measures.losses(outputs[..., : data.samples, :], data, experiment.loss)
        if len(tests):
            measured |= measures.test_measures(outputs[..., data.samples :, :], data, experiment.loss)
        return measured | measures.distances(x, jnp.zeros(x.shape[-1]))

    def at_all_rounds(models: Callable[[slice], np.ndarray]) -> dict[str, np.ndarray]:
        starts = range(0, len(experiment.recorded), step)
        chunks = [measure(models(slice(first, first + step))) for first in starts]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    return at_all_rounds


def _verdict(features: Features, solution: Solution, extremes: Spectrum, time: str) -> dict:
    unstable = extremes.radius > 1 + EDGE if time == "rounds" else extremes.abscissa * solution.system.step_size > EDGE
    of_the_mean = {} if features.spread is None else {"width": "infinite", "spread_error": features.spread.error}
    return {
        "closed_form": True,
        "stable": not unstable,
        "spectral_radius": extremes.radius,
        "spectral_abscissa": extremes.abscissa,
        "stable_step_size": solution.system.stable_step_size,
        "method": solution.method,
        "states": solution.system.size,
        "basis": len(solution.reduction.matrix),
        "error_estimate": solution.error,
        "converged": solution.converged,
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
