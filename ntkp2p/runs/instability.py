"""What a run with unstable rounds is told, in Python, in the shell and when its training diverges."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkp2p.algorithms.algorithm import Algorithm
from ntkp2p.base.errors import UnstableWarning
from ntkp2p.dynamics.system import linear_system

if TYPE_CHECKING:
    from ntkp2p.runs.experiment import Experiment
    from ntkp2p.runs.trajectory import Trajectory

#: Data with at most this many outputs in all have a kernel that takes a second or two; a diverged training computes it.
QUICK_OUTPUTS = 1000
#: What finds the exact limit of the step size.
EXACT = "exact limit: ntkp2p stability"


def instability(experiment: "Experiment", rounds: "Trajectory", /) -> str:
    """The sentence for a prediction in rounds whose linear model is unstable; empty for any other.

    It states the cause, the spectral radius where there is one, and the remedy: other weights if the mixing matrix
    alone amplifies, else a step size.
    """
    if rounds.stable:
        return ""
    facts = rounds.dataset.attrs
    # Cross-entropy has no closed form, and so no spectrum.
    cause = f"spectral radius {facts['spectral_radius']:.4g} > 1" if facts["closed_form"] else "the models overflow"
    remedy = _other_weights(experiment) or in_words(facts.get("sufficient_step_size", np.nan))
    return f"the linear model's rounds are unstable: {cause}; {remedy}"


def warn_if_unstable(experiment: "Experiment", predicted: Mapping[Any, "Trajectory"], /) -> None:
    """Warn with `UnstableWarning` where the predicted rounds are unstable."""
    if "rounds" in predicted and (sentence := instability(experiment, predicted["rounds"])):
        warnings.warn(sentence, UnstableWarning, stacklevel=_frames_of_the_package())


def _frames_of_the_package() -> int:
    """The stack level for `warnings.warn` at which the caller of the package is, seen from `warn_if_unstable`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("ntkp2p."):
        frame, level = frame.f_back, level + 1
    return level


def in_words(sufficient: float, /) -> str:
    """How to choose a stable step size, given a sufficient bound or NaN."""
    return "use a smaller step size" + (f"; {EXACT}" if np.isnan(sufficient) else f": {_guaranteed(sufficient)}")


def advice_after_divergence(experiment: "Experiment", /) -> str:
    """How to choose the step size after training diverged; a small run's sufficient bound is computed."""
    sufficient = float("nan")
    outputs = experiment.data.samples * experiment.data.outputs
    has_bound = type(experiment.algorithm).sufficient_step_size is not Algorithm.sufficient_step_size
    linear = experiment.loss == "squared" and experiment.topology.matrix is not None
    if has_bound and linear and outputs <= QUICK_OUTPUTS:
        features = experiment.features()
        system = linear_system(experiment.algorithm, experiment.topology, features, experiment.data)
        sufficient = system.sufficient_step_size
    return _other_weights(experiment) or in_words(sufficient)


def _guaranteed(sufficient: float) -> str:
    return f"guaranteed below step_size = {sufficient:.4g}; {EXACT}"


def _other_weights(experiment: "Experiment") -> str:
    """The remedy for a single mixing matrix that amplifies; a schedule's matrices may compensate one another."""
    W = experiment.topology.matrix
    radius = 0.0 if W is None else max(abs(np.linalg.eigvals(W)))
    if radius <= 1 + 1e-9:
        return ""
    return (
        f"the mixing matrix alone has spectral radius {radius:.4g}, so no step size is stable: "
        "try lazy(W) or metropolis(graph)"
    )


@contextmanager
def no_instability_warning() -> Iterator[None]:
    """Predict without `UnstableWarning`, for callers that report instability in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableWarning)
        yield
