"""Stability of a run, its reasons and remedies, for algorithm, mixing, data and network together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ntkp2p.algorithms import DGD, Delayed
from ntkp2p.analysis.delay_margins import Margin, margins
from ntkp2p.analysis.stability_report import Hypothesis, StabilityReport, hidden_in_words
from ntkp2p.analysis.timeliness import timeliness
from ntkp2p.base.checks import whole
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.base.threads import one_thread
from ntkp2p.dynamics.delay import CharacteristicRoots, characteristic_roots, delay_matrices
from ntkp2p.dynamics.lyapunov import Certificate, certificate, largest_transient
from ntkp2p.dynamics.mean_square import (
    MOMENTS,
    Gossip,
    draws,
    gossip,
    largest_mean_square_step_size,
    mean_square_radius,
)
from ntkp2p.dynamics.minimality import PBH_SIZE, Hidden, hidden_modes, realisation
from ntkp2p.dynamics.spectrum import (
    DENSE,
    Mode,
    Spectrum,
    slowest_modes,
    spectrum_and_eigenvalues,
    spectrum_of,
    stability_tolerance,
)
from ntkp2p.dynamics.step_size import largest_step_size
from ntkp2p.dynamics.system import LinearSystem, linear_system
from ntkp2p.dynamics.windows import DENSE_SIZE
from ntkp2p.kernels import Features
from ntkp2p.kernels.ntk import jacobian
from ntkp2p.runs.mean_field import with_measured_shares
from ntkp2p.runs.prediction import features_of
from ntkp2p.runs.rounds_to_loss import rounds_to_loss
from ntkp2p.topology import MixingReport, check_mixing

if TYPE_CHECKING:
    from ntkp2p.runs.experiment import Experiment


@in_float64
@one_thread()  # threads wait for one another in many small decompositions
def stability(
    experiment: Experiment, /, *, features: Features | None = None, modes: int = 5, target: Any = None
) -> StabilityReport:
    """Analyse the stability of a run in rounds and in flow, and its largest stable step size and delays.

    The analysis is that of the linear system: the algorithm applied to the linear models of this network on these data
    and this mixing. It depends neither on the targets nor on the number of rounds.

    Parameters
    ----------
    experiment
        The run.
    features
        As for `ntkp2p.predict`.
    modes
        The number of slowest modes in the report.
    target
        A loss for which the number of rounds is predicted, as by `ntkp2p.rounds_to_loss`.

    Returns
    -------
    report
        A report that prints as text and as HTML, with `to_dict()` for JSON and `plot()`.

    Raises
    ------
    ValueError
        If the loss is not squared error or the algorithm's rounds are not affine.

    Notes
    -----
    All eigenvalues are computed up to 1,500 states of a symmetric system and 600 states of other systems. For larger
    systems the extreme eigenvalues are found by iteration, with their residuals. Eigenvalues close to 1 are then known
    from one side only, or, for nonsymmetric M, up to the residual; the report states this, and gives no verdict where
    the residual exceeds the margin.

    Examples
    --------
    With W = 11ᵀ/3, all Hessians 1 and η = 0.9, M = W − η I has the eigenvalues 0.1 and −0.9. The rounds are stable for
    η < 1 + λ_min(W) = 1:

    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> numbers = p2p.data.Dataset(name="numbers", inputs=np.zeros((3, 1)), targets=np.array([[0.0], [3.0], [6.0]]))
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=numbers.split(3, by="label"),
    ...     mixing=p2p.metropolis(p2p.graphs.complete(3)),
    ...     algorithm=p2p.DGD(step_size=0.9),
    ...     rounds=40,
    ... )
    >>> report = p2p.stability(experiment)
    >>> report.stable
    {'rounds': True, 'flow': True}
    >>> round(report.spectrum.radius, 6), round(report.step_size_limit, 6)
    (0.9, 1.0)
    """
    must_be_linear(experiment)
    if experiment.topology.why_sampled:
        experiment = experiment.sampled()
    whole(modes, "modes", least=1)
    features = features_of(experiment, features)
    met = None if target is None else rounds_to_loss(experiment, target, features=features)
    experiment = with_measured_shares(experiment)
    mixing = experiment.topology
    system = linear_system(experiment.algorithm, mixing, features, experiment.data).eventual
    run = _Analysis(experiment, features, system, None if mixing.matrix is None else check_mixing(mixing.matrix))
    removed, removal = _removed(experiment, features)
    extremal, values = spectrum_and_eigenvalues(system, dense=run.dense)
    slowest = [] if system.varying else slowest_modes(system, count=modes, dense=run.dense)
    extremal = _with_all_found(extremal, system, values, slowest)
    tolerance, hidden = stability_tolerance(system, extremal), run.hidden_modes()
    return StabilityReport(
        experiment=experiment,
        states=system.size,
        removed=removed,
        removal=removal,
        hidden=hidden,
        spectrum=extremal,
        stability_tolerance=tolerance,
        eigenvalues=values,
        step_size_limit=run.step_size_limit(),
        sufficient_step_size=system.sufficient_step_size,
        certificates=run.certificates(),
        transient=run.transient(),
        modes=slowest,
        gossip=run.gossip_rates(),
        hypotheses=run.hypotheses(hidden),
        margins=run.delay_margins(stable=extremal.radius <= 1 + tolerance),
        roots=_roots(experiment, features, system),
        mean_square=mean_square_radius(system) if run.has_moments else float("nan"),
        timeliness=timeliness(experiment, features=features) if experiment.asynchronous else None,
        target=target,
        rounds_to_target=met,
    )


@dataclass(frozen=True)
class _Analysis:
    """What a report is computed from; each part that does not apply to the run is None, NaN or empty."""

    experiment: Experiment
    features: Features
    system: LinearSystem
    mixing: MixingReport | None

    @property
    def dense(self) -> int:
        """The number of states up to which all eigenvalues are computed."""
        return DENSE[self.system.symmetric]

    @property
    def sampled(self) -> bool:
        """Whether the rounds are a sample of random ones, without a period."""
        return self.system.varying and not self.system.timetable.periodic

    @property
    def has_moments(self) -> bool:
        """Whether the second moments over memoryless clocks are small enough to be computed."""
        return self.system.over_clocks and self.system.size <= MOMENTS

    @property
    def constant_flow(self) -> bool:
        return self.experiment.has_flow and not self.system.varying

    def hidden_modes(self) -> list[Hidden] | None:
        if not self.constant_flow or self.system.size > PBH_SIZE:
            return None
        return hidden_modes(*realisation(self.system, self.experiment.data))

    def step_size_limit(self) -> float:
        if self.sampled:
            return float("nan")
        if self.has_moments:
            return largest_mean_square_step_size(self.system)
        # For a symmetric system the iteration is as accurate as the dense computation, and faster.
        return largest_step_size(self.system, dense=min(self.dense, DENSE[False]))

    def certificates(self) -> dict[str, Certificate]:
        if self.mixing is None or self.system.varying:
            return {}
        return _certificates(self.system, self.mixing, self.dense)

    def transient(self) -> tuple[float, float] | None:
        applies = self.constant_flow and self.system.size <= DENSE_SIZE
        return largest_transient(self.system) if applies else None

    def gossip_rates(self) -> Gossip | None:
        mixing = self.experiment.topology
        applies = self.sampled and not mixing.asynchronous and self.experiment.algorithm.stochastic == "row"
        return gossip(*draws(mixing)) if applies else None

    def hypotheses(self, hidden: list[Hidden] | None) -> list[Hypothesis]:
        if self.mixing is None or not self.experiment.has_flow:
            return []
        return _hypotheses(self.experiment, self.mixing, hidden)

    def delay_margins(self, *, stable: bool) -> dict[str, Margin]:
        applies = self.mixing is not None and self.experiment.has_flow
        return margins(self.experiment, self.features, self.system, stable) if applies else {}


def _with_all_found(found: Spectrum, system: LinearSystem, values: np.ndarray, slowest: list[Mode]) -> Spectrum:
    """Of iterated extremes the farthest that the report has found: it is not to contradict itself."""
    if not found.residual:
        return found
    best = spectrum_of(system, np.append(values, [mode.eigenvalue for mode in slowest]))
    residual = max([found.residual, *(mode.residual for mode in slowest)])
    radius, abscissa = max(found.radius, best.radius), max(found.abscissa, best.abscissa)
    return Spectrum(radius, abscissa, residual, found.from_below)


def must_be_linear(experiment: Experiment) -> None:
    if experiment.loss != "squared":
        raise InputError(f"under {experiment.loss} the rounds are not linear: ask for stability with squared error")


def _roots(experiment: Experiment, features: Features, system: LinearSystem) -> CharacteristicRoots | None:
    late = experiment.algorithm
    if not isinstance(late, Delayed) or late.has_flow or system.varying or system.size > PBH_SIZE:
        return None
    if late.gradients and late.messages:
        return None
    kind, delay = ("gradients", late.gradients) if late.gradients else ("messages", late.messages)
    matrices = delay_matrices(late.algorithm, experiment.topology, features, experiment.data, late=kind)
    return characteristic_roots(*matrices, delay * system.step_size)


def _removed(experiment: Experiment, features: Features) -> tuple[int | None, str]:
    """How many marginal modes the features leave out, and how that is known."""
    if features.spread is not None:
        return None, "there are no parameters at infinite width"
    if features.sharing_error is not None or experiment.kernel_rtol is not None:
        return None, "the kernel is an approximation"
    size = sum(experiment.layers)
    removed = size - features.rank * features.columns
    if experiment.agents * size > PBH_SIZE or experiment.topology.matrix is None:
        return removed, "by construction"
    theta, apply = experiment.initialise().flat()
    # The system in the parameters themselves: its features are the Jacobian, one column of every output's rows.
    J = np.asarray(jacobian(apply, theta, jnp.asarray(experiment.data.inputs, float)))
    every = replace(features, matrix=J, columns=1)
    system = linear_system(experiment.algorithm, experiment.topology, every, experiment.data).eventual
    if system.varying:
        return removed, "by construction"
    marginal = hidden_modes(*realisation(system, experiment.data), at=0.0)
    found = min(marginal[0].uncontrollable, marginal[0].unobservable) if marginal else 0
    return removed, "shown by rank tests" if found == removed else f"by construction, where rank tests find {found}"


def _certificates(system: LinearSystem, report: MixingReport, dense: int) -> dict[str, Certificate]:
    if system.model(system.initial).size != system.size:
        return {}
    weights = {"uniform": np.full(report.size, 1 / report.size)}
    perron = report.perron_left
    if perron is not None and perron.min() > 0 and not report.doubly_stochastic:
        weights["Perron"] = perron
    return {name: certificate(system, pi, dense=dense) for name, pi in weights.items()}


def _hypotheses(experiment: Experiment, report: MixingReport, hidden: list[Hidden] | None) -> list[Hypothesis]:
    def sums(line: str, worst: tuple[int, float]) -> str:
        return f"{line} {worst[0]} sums to {1 + worst[1]:.6g}"

    algorithm = experiment.algorithm
    if isinstance(algorithm, Delayed):  # without delay, for it has a flow
        algorithm = algorithm.algorithm
    minimal = report.connected if hidden is None else all(h.eigenvalue.real < 0 for h in hidden)
    found = "marginal modes are left out" if hidden is None else hidden_in_words(hidden)
    return [
        Hypothesis("the algorithm is DGD", type(algorithm) is DGD, repr(algorithm)),
        Hypothesis("W has no negative weight", report.nonnegative, f"the smallest is {report.lowest:.4g}"),
        Hypothesis("row sums of W are one", report.row_stochastic, sums("row", report.worst_row)),
        Hypothesis("column sums of W are one", report.column_stochastic, sums("column", report.worst_column)),
        Hypothesis("W connects the agents", report.connected, f"{len(report.components)} strong component(s)"),
        Hypothesis("the system is minimal, but for modes that decay", minimal, found),
    ]
