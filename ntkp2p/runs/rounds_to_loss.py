"""How many rounds until the loss is low enough? Predicted, without training."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ntkp2p.base.checks import real, whole_rounds
from ntkp2p.kernels import Features
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.instability import no_instability_warning
from ntkp2p.runs.prediction import features_of, predict

#: Up to so many rounds every one is looked at; a longer run is looked at so many times.
CHECKPOINTS = 10_000
#: The longest run that is considered, unless told otherwise.
MOST = 10**6
#: A loss that exceeds the target by no more than this share of it has reached it: rounding decides no tie.
TIE = 1e-9
#: The rounds that are predicted first; each further prediction is ten times as long.
FIRST = 1000


def rounds_to_loss(
    experiment: Experiment, target: float, /, *, features: Features | None = None, most: int = MOST
) -> int | None:
    """The first round after which the agents' mean global loss is at most `target` to rounding, as predicted.

    Parameters
    ----------
    experiment
        What is run; its own rounds and records do not matter.
    target
        The training loss. A loss that exceeds it by no more than a share of 1e-9 has reached it, so that the same round
        is returned whatever the processor rounds.
    features
        As for `ntkp2p.predict`.
    most
        The longest run that is considered; over a schedule or events that end, their number if that is less.

    Returns
    -------
    int or None
        Exact up to 10,000 rounds. Beyond, the loss is looked at in every (K/10,000)-th round, K the next power of ten,
        and in all rounds between the last look above the target and the first one below it: a dip between two looks is
        missed. None if the loss stays above the target.

    Raises
    ------
    ValueError
        If the target is not a positive number, or `most` is not a whole number of at least 1; or as `predict`.

    Examples
    --------
    Where all agents have the number 0, a round takes their constant to 1 − η = 1/2 of it and the loss to 1/4: to less
    than a thousandth in five rounds:

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
