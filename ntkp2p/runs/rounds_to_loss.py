"""The number of rounds to a target loss, predicted without training."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ntkp2p.base.checks import real, whole_rounds
from ntkp2p.kernels import Features
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.instability import no_instability_warning
from ntkp2p.runs.prediction import features_of, predict

#: Runs up to this length are evaluated in every round, longer ones at this many rounds.
CHECKPOINTS = 10_000
#: The longest run that is considered by default.
MOST = 10**6
#: A loss has reached the target if it exceeds it by at most this relative amount, so that rounding decides no tie.
TIE = 1e-9
#: The length of the first prediction; each further prediction is ten times as long.
FIRST = 1000


def rounds_to_loss(
    experiment: Experiment, target: float, /, *, features: Features | None = None, most: int = MOST
) -> int | None:
    """Predict the first round after which the agents' mean global loss is at most `target`.

    Parameters
    ----------
    experiment
        The run; its `rounds` and `record` are ignored.
    target
        The training loss. A loss that exceeds it by a relative amount of at most 1e-9 has reached it, so the result
        does not depend on rounding.
    features
        As for `ntkp2p.predict`.
    most
        The longest run that is considered; at most the length of a finite schedule or of given events.

    Returns
    -------
    int or None
        The round, or None if the loss stays above the target. It is exact up to 10,000 rounds. Longer runs are
        evaluated in every (K/10,000)-th round, where K is the next power of ten, and in all rounds between the last
        checkpoint above the target and the first one below it; a minimum between two checkpoints is missed.

    Raises
    ------
    ValueError
        If the target is not a positive number, or `most` is not a whole number of at least 1; or as `predict`.

    Examples
    --------
    If all agents have the number 0, a round multiplies their constant by 1 − η = 1/2 and the loss by 1/4, so the loss
    falls below a thousandth in five rounds:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.zeros((3, 1)))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.5),
    ...     rounds=40,
    ... )
    >>> begin = float(p2p.predict(experiment).global_loss[0, 0])
    >>> p2p.rounds_to_loss(experiment, begin / 1000)
    5
    """
    target, most = real(target, "target", above=0), whole_rounds("most", most, least=1)
    if experiment.topology.horizon is not None:
        most = min(most, experiment.topology.horizon)
    features = features_of(experiment, features)
    last = 0
    for horizon in _horizons(int(most)):
        checkpoints = np.unique(np.linspace(last, horizon, min(horizon - last, CHECKPOINTS) + 1).round().astype(int))
        losses = mean_losses(experiment, checkpoints, features)
        reached = np.flatnonzero(losses <= target * (1 + TIE))
        if len(reached):
            return _first_between(experiment, features, target, checkpoints, int(reached[0]))
        if not np.isfinite(losses[-1]):
            return None
        last = horizon
    return None


def mean_losses(experiment: Experiment, rounds: np.ndarray, features: Features) -> np.ndarray:
    """The agents' mean predicted global loss after each of some ascending rounds."""
    run = dataclasses.replace(experiment, rounds=max(1, int(rounds[-1])), record=rounds)
    with no_instability_warning():
        loss = predict(run, features=features).dataset["global_loss"].mean("agent")
    return loss.sel(round=rounds).values


def _horizons(most: int) -> Iterator[int]:
    horizon = FIRST
    while horizon < most:
        yield horizon
        horizon *= 10
    yield most


def _first_between(
    experiment: Experiment, features: Features, target: float, checkpoints: np.ndarray, reached: int
) -> int:
    """The first round at the target among those after the look before it was reached."""
    if reached == 0 or checkpoints[reached] == checkpoints[reached - 1] + 1:
        return int(checkpoints[reached])
    between = np.arange(checkpoints[reached - 1], checkpoints[reached] + 1)
    losses = mean_losses(experiment, between, features)
    return int(between[np.argmax(losses <= target * (1 + TIE))])
