"""Is a whole run stable, why, and what to change: algorithm, mixing, data and network taken together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from ntkp2p.algorithms import DGD, Algorithm, Delayed
from ntkp2p.asynchrony import AsynchronousGossip, Events
from ntkp2p.compression import with_measured_shares
from ntkp2p.data.datasets import whole
from ntkp2p.dynamics.certificate import Certificate, certificate, largest_transient
from ntkp2p.dynamics.delay import (
    CharacteristicRoots,
    characteristic_roots,
    delay_matrices,
)
from ntkp2p.dynamics.gossip import (
    MOMENTS,
    Gossip,
    draws,
    gossip,
    largest_mean_square_step_size,
    mean_square_radius,
)
from ntkp2p.dynamics.realisation import PBH_SIZE, Hidden, hidden_modes, realisation
from ntkp2p.dynamics.stability import (
    DENSE,
    DENSE_SIZE,
    EDGE,
    Mode,
    Spectrum,
    edge,
    eigenvalues,
    largest_step_size,
    slowest_modes,
    spectrum,
    spectrum_of,
    with_step_size,
)
from ntkp2p.dynamics.system import LinearSystem, flow_time_of_a_round, linear_system
from ntkp2p.margins import Margin, margins
from ntkp2p.models import Features
from ntkp2p.models.ntk import jacobian
from ntkp2p.precision import in_float64
from ntkp2p.prediction import features_of
from ntkp2p.reports import Report, Rows, Verdict, as_plain, html_table
from ntkp2p.target import rounds_to_loss
from ntkp2p.threads import one_thread
from ntkp2p.timeliness import Timeliness, timeliness
from ntkp2p.topology import MixingReport, Schedule, check_mixing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ntkp2p.experiment import Experiment


@dataclass(frozen=True)
class Hypothesis:
    """One of those of Proposition 1 (Chaudhari, Pranav, Anand and Moura).

    Attributes
    ----------
    name
        What is supposed.
    holds
        Whether it does.
    found
        What was found, in words.
    """

    name: str
    holds: bool
    found: str


@dataclass(frozen=True, eq=False, repr=False)
class StabilityReport(Report):
    """What `stability` found out about a run; print it for a table and the verdicts.

    Attributes
    ----------
    experiment
        The run.
    states
        n of the minimal features.
    removed
        The marginal modes that features leave out: directions of the parameters, common to all agents, that no sample
        feels. None at infinite width, which has no parameters.
    removal
        "shown by rank tests" where these have found as many uncontrollable and unobservable ones in the parameters
        themselves, else "by construction"; or why there is no number.
    hidden
        Modes that stay uncontrollable or unobservable in features, for small systems, else None. They are
        disagreement that decays.
    spectrum
        Of the rounds and of the flow, on the minimal features.
    edge
        By how much the spectral radius may exceed 1 in a stable system: by rounding, or as far as iteration may err.
    eigenvalues
        All of M's, or of a period's map; the extreme ones of a large system.
    step_size_limit, textbook_limit
        The exact and the textbook's sufficient bound of stable step sizes; NaN where there is none. Of memoryless
        clocks the exact one is in the mean square, or of the mean alone where `mean_square` is NaN.
    certificates
        By "uniform" and, where W is row- but not doubly stochastic, "Perron" weights.
    transient
        The largest ‖exp(A t)‖ and ‖M^k‖ that were met, of small systems, else None.
    modes
        The slowest.
    gossip
        Rates of the mixing alone where a schedule does not repeat itself, its rounds read as independent draws.
    hypotheses
        Of Proposition 1, one by one; empty for a schedule.
    margins
        How late "gradients" and "messages" may be; empty for a schedule, or an algorithm that is late already, and
        without what the algorithm asks for more than once a round.
    roots
        The rightmost characteristic roots of the flow of an algorithm that is late, on a small system; else None.
    mean_square
        Of memoryless clocks, by which factor an event takes the mean square of deviations further: runs settle below 1;
        NaN for others, or a large system.
    timeliness
        Of agents with clocks of their own, how late their gradients and messages are; else None.
    target, rounds_to_target
        The loss that was asked for, and the first round with it as `rounds_to_loss` predicts; None if it is never met.
    """

    experiment: Experiment
    states: int
    removed: int | None
    removal: str
    hidden: list[Hidden] | None
    spectrum: Spectrum
    edge: float
    eigenvalues: np.ndarray
    step_size_limit: float
    textbook_limit: float
    certificates: dict[str, Certificate]
    transient: tuple[float, float] | None
    modes: list[Mode]
    gossip: Gossip | None
    hypotheses: list[Hypothesis]
    margins: dict[str, Margin]
    roots: CharacteristicRoots | None
    mean_square: float
    timeliness: Timeliness | None
    target: float | None
    rounds_to_target: int | None

    @property
    def stable(self) -> dict[str, bool | None]:
        """By notion of time; None where it is not known.

        That is mixing that changes without repeating itself, and an iterated eigenvalue so little beyond 1 that its
        residual leaves both answers open.
        """
        abscissa = self.spectrum.abscissa if self.roots is None else float(self.roots.values[0].real)
        beyond = {"rounds": self.spectrum.radius - 1, "flow": abscissa * self.round_length}
        if not np.isnan(self.mean_square):
            beyond["rounds"] = max(beyond["rounds"], self.mean_square - 1)
        if self.step_size_limit == 0:
            beyond["rounds"] = float("inf")
        doubtful = self.edge if self.edge > EDGE else 0.0  # iterated, and beyond 1 by no more than it may err
        return {
            time: None if np.isnan(far) or EDGE < far <= doubtful else bool(far <= self.edge)
            for time, far in beyond.items()
        }

    @property
    def step_size(self) -> float:
        """η."""
        return float(self.experiment.algorithm.step_size)

    @property
    def round_length(self) -> float:
        """η, or of clocks the mean wall-clock time between two events."""
        return flow_time_of_a_round(self.experiment.algorithm, self.experiment.mixing)

    @property
    def title(self) -> str:
        """What is reported on."""
        return f"Stability of {self.experiment.algorithm!r}: {self.experiment.agents} agents, {self.states} states"

    @property
    def sections(self) -> dict[str, Rows]:
        """The facts and their values in words."""
        return {title: rows for title, rows in _sections(self) if rows}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """A sentence each: on the rounds, the flow, and Proposition 1; what is wrong comes with its remedy."""
        said = {"rounds": _verdict_of_rounds(self), "flow": _verdict_of_flow(self)}
        if self.hypotheses:
            said["Proposition 1"] = _verdict_of_proposition(self)
        return said | ({} if self.timeliness is None else dict(self.timeliness.verdicts))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, lists and words, for JSON; NaN is None."""
        return as_plain(
            {
                "algorithm": repr(self.experiment.algorithm),
                "agents": self.experiment.agents,
                "states": self.states,
                "stable": self.stable,
                "spectral_radius": self.spectrum.radius,
                "spectral_abscissa": self.spectrum.abscissa,
                "residual": self.spectrum.residual,
                "step_size": self.step_size,
                "step_size_limit": self.step_size_limit,
                "textbook_limit": self.textbook_limit,
                "removed_marginal_modes": self.removed,
                "hidden_modes": self.hidden and [vars(hidden) for hidden in self.hidden],
                "certificates": {
                    name: {
                        "logarithmic_norm": c.logarithmic_norm,
                        "contraction": c.contraction,
                        "growth": c.growth,
                        "weights": c.weights,
                        "residual": c.residual,
                    }
                    for name, c in self.certificates.items()
                },
                "largest_transient": self.transient,
                "target": self.target,
                "rounds_to_target": self.rounds_to_target,
                "modes": [
                    {
                        "eigenvalue": mode.eigenvalue,
                        "rounds": mode.rounds,
                        "flow_time": mode.flow_time,
                        "agreement": mode.agreement,
                        "agents": mode.agents,
                        "direction": mode.direction,
                        "separable": mode.separable,
                        "residual": mode.residual,
                    }
                    for mode in self.modes
                ],
                "gossip": self.gossip and self.gossip._asdict(),
                "mean_square": self.mean_square,
                "lateness": {}
                if self.timeliness is None
                else {
                    late: vars(found) | {"margin": vars(found.margin)}
                    for late, found in self.timeliness.lateness.items()
                },
                "margins": {late: vars(margin) for late, margin in self.margins.items()},
                "characteristic_roots": self.roots and self.roots.values,
                "hypotheses": {h.name: {"holds": h.holds, "found": h.found} for h in self.hypotheses},
                "eigenvalues": self.eigenvalues,
                "verdicts": self.verdicts,
            }
        )

    def plot(self) -> list[Axes]:
        """The spectrum in the unit disc, and, where there are modes, the slowest by agent; returns the axes."""
        from ntkp2p import plotting

        return plotting.stability_report(self)


@in_float64
@one_thread()  # threads wait for one another in many small decompositions
def stability(
    experiment: Experiment, /, *, features: Features | None = None, modes: int = 5, target: Any = None
) -> StabilityReport:
    """Whether a run is stable, in rounds and in flow, why, and up to which step size and delay.

    All of it is of the assembled system: what the algorithm makes of linear models on this mixing, these data and this
    network. It does not depend on the targets, nor on the number of rounds.

    Parameters
    ----------
    experiment
        The run.
    features
        As for `ntkp2p.predict`.
    modes
        How many of the slowest modes are reported.
    target
        A loss whose round is to be predicted, as for `ntkp2p.rounds_to_loss`.

    Returns
    -------
    report
        With a text form, tables for the notebook, `to_dict()` for JSON and `plot()`.

    Raises
    ------
    ValueError
        If the loss is not squared error, whose rounds alone are linear, or the algorithm's rounds are not affine.

    Notes
    -----
    Up to 1,500 states of a symmetric system, and 600 of others, all eigenvalues are computed; beyond, the extreme ones
    by iteration, with their residuals. What crowds below 1 is then seen from one side only, or where M is not symmetric
    as well as the residual allows; the report says so, and gives no verdict where that decides it.

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
    _must_be_linear(experiment)
    if isinstance(experiment.mixing, AsynchronousGossip) and experiment.mixing.why_drawn:
        experiment = experiment.drawn()
    whole(modes, "modes", least=1)
    features = features_of(experiment, features)
    met = None if target is None else rounds_to_loss(experiment, target, features=features)
    mixing = experiment.mixing
    experiment = with_measured_shares(experiment)
    system = linear_system(experiment.algorithm, mixing, features, experiment.data).lasting
    dense = DENSE[system.symmetric]
    schedule = mixing if isinstance(mixing, Schedule) else None
    report = check_mixing(np.asarray(mixing)) if isinstance(mixing, np.ndarray) else None
    removed, removal = _removed(experiment, features)
    flows = experiment.has_flow
    small = system.size <= PBH_SIZE and not system.varying and flows
    values = eigenvalues(system, dense=dense)
    slowest = [] if system.varying else slowest_modes(system, count=modes, dense=dense)
    extremal = _with_all_found(spectrum(system, dense=dense), system, values, slowest)
    moments = isinstance(mixing, AsynchronousGossip) and system.size <= MOMENTS
    hidden = hidden_modes(*realisation(system, experiment.data)) if small else None
    drawn = system.varying and not system.timetable.periodic
    return StabilityReport(
        experiment=experiment,
        states=system.size,
        removed=removed,
        removal=removal,
        hidden=hidden,
        spectrum=extremal,
        edge=edge(system, extremal),
        eigenvalues=values,
        # Of a symmetric system the iteration is as exact, and quicker.
        step_size_limit=float("nan")
        if drawn
        else largest_mean_square_step_size(system)
        if moments
        else largest_step_size(system, dense=min(dense, DENSE[False])),
        textbook_limit=system.stable_step_size,
        certificates={} if report is None or system.varying else _certificates(system, report, dense),
        transient=largest_transient(system) if system.size <= DENSE_SIZE and not system.varying and flows else None,
        modes=slowest,
        gossip=gossip(*draws(schedule))
        if schedule is not None and drawn and experiment.algorithm.stochastic == "row"
        else None,
        hypotheses=[] if report is None or not flows else _hypotheses(experiment, report, hidden),
        margins={}
        if report is None or not flows
        else margins(experiment, features, system, extremal.radius <= 1 + edge(system, extremal)),
        roots=_roots(experiment, features, system),
        mean_square=mean_square_radius(system) if moments else float("nan"),
        timeliness=timeliness(experiment, features=features) if experiment.asynchronous else None,
        target=target,
        rounds_to_target=met,
    )


def _with_all_found(found: Spectrum, system: LinearSystem, values: np.ndarray, slowest: list[Mode]) -> Spectrum:
    """Of iterated extremes the farthest that the report has found: it is not to contradict itself."""
    if not found.residual:
        return found
    best = spectrum_of(system, np.append(values, [mode.eigenvalue for mode in slowest]))
    residual = max([found.residual, *(mode.residual for mode in slowest)])
    radius, abscissa = max(found.radius, best.radius), max(found.abscissa, best.abscissa)
    return Spectrum(radius, abscissa, residual, found.from_below)


def _must_be_linear(experiment: Experiment) -> None:
    if experiment.loss != "squared":
        raise ValueError(f"under {experiment.loss} the rounds are not linear: ask for stability with squared error")


def _roots(experiment: Experiment, features: Features, system: LinearSystem) -> CharacteristicRoots | None:
    late = experiment.algorithm
    if not isinstance(late, Delayed) or late.has_flow or system.varying or system.size > PBH_SIZE:
        return None
    if late.gradients and late.messages:
        return None
    kind, delay = ("gradients", late.gradients) if late.gradients else ("messages", late.messages)
    matrices = delay_matrices(late.algorithm, experiment.mixing, features, experiment.data, late=kind)
    return characteristic_roots(*matrices, delay * system.step_size)


def _removed(experiment: Experiment, features: Features) -> tuple[int | None, str]:
    """How many marginal modes the features leave out, and how that is known."""
    if features.spread is not None:
        return None, "there are no parameters at infinite width"
    if features.sharing_error is not None or experiment.kernel_rtol is not None:
        return None, "the kernel is an approximation"
    theta, apply = experiment.initialise().flat()
    removed = theta.size - features.rank * features.columns
    if experiment.agents * theta.size > PBH_SIZE or not isinstance(experiment.mixing, np.ndarray):
        return removed, "by construction"
    # The system in the parameters themselves: its features are the Jacobian, one column of every output's rows.
    J = np.asarray(jacobian(apply, theta, jnp.asarray(experiment.data.inputs, float)))
    every = replace(features, matrix=J, columns=1)
    system = linear_system(experiment.algorithm, experiment.mixing, every, experiment.data).lasting
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
    found = "marginal modes are left out" if hidden is None else _hidden_in_words(hidden)
    return [
        Hypothesis("the algorithm is DGD", type(algorithm) is DGD, repr(algorithm)),
        Hypothesis("W has no negative weight", report.nonnegative, f"the smallest is {report.lowest:.4g}"),
        Hypothesis("row sums of W are one", report.row_stochastic, sums("row", report.worst_row)),
        Hypothesis("column sums of W are one", report.column_stochastic, sums("column", report.worst_column)),
        Hypothesis("W connects the agents", report.connected, f"{len(report.components)} strong component(s)"),
        Hypothesis("the system is minimal, but for modes that decay", minimal, found),
    ]


# --- words ---


def _verdict_of_rounds(report: StabilityReport) -> Verdict:
    limit, eta = report.step_size_limit, report.step_size
    if (rates := report.gossip) is not None:
        settles = "settles" if rates.mean_square < 1 - EDGE else "does not settle"
        factor = f"{rates.mean_square:.6g} a round"
        return Verdict("rounds", "not known", f"the mixing alone {settles} in the mean square, by {factor}")
    if isinstance(report.experiment.mixing, Events):
        return Verdict("rounds", "not known", "events do not repeat themselves", "AsynchronousGossip(...) itself")
    if report.mean_square > 1 + report.edge:
        reason = f"an event multiplies the mean square of deviations by {report.mean_square:.8g}"
        return Verdict("rounds", "unstable", reason, f"step_size < {limit:.6g}")
    if report.stable["rounds"] is None:
        found = f"the spectral radius is {_radius(report)}"
        if np.isnan(report.spectrum.radius):
            found = "the iteration has not found the spectral radius"
        return Verdict("rounds", "not known", found)
    if report.stable["rounds"]:
        radius = f"spectral radius {_radius(report)}"
        share = "" if np.isnan(limit) else f"; step_size = {eta:g} is {eta / limit:.0%} of the limit"
        if not np.isnan(report.mean_square):
            share += f"; an event multiplies the mean square of deviations by {report.mean_square:.8g}"
        return Verdict("rounds", "stable", radius + share)
    if limit == 0:
        reason = "the mixing itself does not settle, whatever the step size"
        return Verdict("rounds", "unstable", reason, "lazy(W) or metropolis(graph)")
    remedy = "a smaller step_size" if np.isnan(limit) else f"step_size < {limit:.6g}"
    return Verdict("rounds", "unstable", f"spectral radius {report.spectrum.radius:.8g} > 1", remedy)


def _verdict_of_flow(report: StabilityReport) -> Verdict:
    stable = report.stable["flow"]
    answer = "not known" if stable is None else "stable" if stable else "unstable"
    if report.roots is not None:
        remedy = "" if stable else "less delay, or a smaller step_size"
        return Verdict(
            "flow", answer, f"the rightmost characteristic root is {_number(report.roots.values[0])}", remedy
        )
    if not report.experiment.has_flow:
        reason = "its rounds discretise no gradient flow"
        if isinstance(report.experiment.algorithm, Delayed):
            reason = "a delay differential equation, whose roots are computed of small systems with one kind of delay"
        return Verdict("flow", answer, reason)
    if stable is None:
        found = f"the spectral abscissa is {_abscissa(report)}"
        if np.isnan(report.spectrum.abscissa):
            found = "the iteration has not found it"
        reason = "the mixing changes without repeating itself" if report.gossip else found
        return Verdict("flow", answer, reason)
    if not stable:
        remedy = "metropolis(graph)" + ("" if type(report.experiment.algorithm) is DGD else ", or DGD")
        return Verdict("flow", answer, f"spectral abscissa {report.spectrum.abscissa:.4g} > 0", remedy)
    proved = [name for name, c in report.certificates.items() if c.flow]
    by = f", and a Lyapunov function with {proved[0]} weights proves it" if proved else ""
    return Verdict("flow", answer, f"spectral abscissa {_abscissa(report)}{by}")


def _verdict_of_proposition(report: StabilityReport) -> Verdict:
    failing = [h for h in report.hypotheses if not h.holds]
    stable = report.stable["flow"]
    if not failing:
        own = "" if stable else ", but not by its spectrum"
        return Verdict("Proposition 1", "applies", f"the flow is BIBO stable{own}")
    own = "the spectrum shows the flow stable all the same" if stable else "nor is the flow stable"
    first = failing[0]
    return Verdict("Proposition 1", "does not apply", f"it asks that {first.name} ({first.found}); {own}")


def _abscissa(report: StabilityReport) -> str:
    """Iterated, its residual is M's over η."""
    return _seen(f"{report.spectrum.abscissa:.6g}", report.spectrum, report.spectrum.residual / report.round_length)


def _radius(report: StabilityReport) -> str:
    return _seen(f"{report.spectrum.radius:.8g}", report.spectrum, report.spectrum.residual)


def _seen(value: str, spectrum: Spectrum, residual: float) -> str:
    about = "at least" if spectrum.from_below else "about"
    return f"{about} {value} (residual {residual:.1g})" if residual else value


def _sections(report: StabilityReport) -> Iterator[tuple[str, Rows]]:
    removed = f"not counted: {report.removal}" if report.removed is None else f"{report.removed}, {report.removal}"
    yield (
        "Realisation",
        [
            ("states", f"{report.states} in features of full rank"),
            ("marginal modes left out", f"{removed}: directions of the parameters that no sample feels"),
            *([] if report.hidden is None else [("hidden modes", _hidden_in_words(report.hidden))]),
        ],
    )
    clock = "wall-clock" if report.experiment.asynchronous else "flow"
    if not np.isnan(report.spectrum.abscissa):
        yield f"Flow, per unit of {clock} time", [("spectral abscissa", _abscissa(report)), *_flow(report)]
    textbook = report.textbook_limit
    clocks = isinstance(report.experiment.mixing, AsynchronousGossip)
    of_the_mean = ", of the mean" if clocks and np.isnan(report.mean_square) else ""
    yield (
        "Rounds",
        [
            *([] if report.gossip else [("spectral radius", _radius(report))]),
            *([] if np.isnan(report.mean_square) else [("of the mean square", f"{report.mean_square:.8g}")]),
            ("step size", f"{report.step_size:g}"),
            *([] if report.gossip else [(f"largest stable step size{of_the_mean}", f"{report.step_size_limit:.6g}")]),
            ("textbook's sufficient bound", "none for this mixing" if np.isnan(textbook) else f"{textbook:.6g}"),
            *(
                (f"contraction, {name} weights", f"{c.contraction:.8g}{_proof(c, c.rounds)}")
                for name, c in report.certificates.items()
            ),
            *([] if report.transient is None else [("largest transient met", f"{report.transient[1]:.6g}")]),
            *([] if report.target is None else [(f"rounds to the mean global loss {report.target:g}", _met(report))]),
        ],
    )
    yield "Delay that is stable", [(late, str(margin)) for late, margin in report.margins.items()]
    if report.roots is not None:
        listed = ", ".join(_number(value) for value in report.roots.values)
        yield "Delayed flow", [(f"characteristic roots ({report.roots.method})", listed)]
    yield "Slowest modes", [(f"λ = {_number(m.eigenvalue)}", _mode_in_words(m, clock)) for m in report.modes]
    if isinstance(report.experiment.mixing, Schedule) and len(report.eigenvalues):
        listed = ", ".join(_number(value) for value in report.eigenvalues[:5])
        yield "Floquet multipliers", [(f"over {report.experiment.mixing.period} rounds", listed)]
    if report.timeliness is not None:
        yield from report.timeliness.sections.items()
    if report.gossip is not None:
        rates = report.gossip
        yield (
            "Random mixing, without gradients",
            [
                ("read as", "independent draws of the schedule's matrices"),
                ("mean", f"{rates.mean:.6g} per round"),
                ("mean square", f"{rates.mean_square:.6g} per round"),
            ],
        )
    yield (
        "Proposition 1",
        [(h.name, ("yes" if h.holds else "no") + f", {h.found}") for h in report.hypotheses],
    )


def _proof(certificate: Certificate, proved: bool) -> str:
    if proved:
        return f": no transient above {certificate.growth:.4g}"
    seen = f" at least (residual of a round {certificate.residual:.1g})" if certificate.residual else ""
    return f"{seen}: proves nothing"


def _met(report: StabilityReport) -> str:
    return "never met" if report.rounds_to_target is None else f"{report.rounds_to_target}"


def _flow(report: StabilityReport) -> Iterator[tuple[str, str]]:
    for name, c in report.certificates.items():
        yield f"logarithmic norm, {name} weights", f"{c.logarithmic_norm:.6g}{_proof(c, c.flow)}"
    if report.transient is not None:
        yield "largest transient met", f"{report.transient[0]:.6g}"


def _hidden_in_words(hidden: Sequence[Hidden]) -> str:
    if not hidden:
        return "none: controllable and observable"
    first = hidden[0]
    return (
        f"{sum(h.uncontrollable for h in hidden)} uncontrollable, {sum(h.unobservable for h in hidden)} unobservable, "
        f"at Re λ ≤ {first.eigenvalue.real:.4g}"
    )


def _mode_in_words(mode: Mode, clock: str) -> str:
    lasts = "does not decay"
    if np.isfinite(mode.rounds):
        lasts = f"falls to 1/e in {mode.rounds:.4g} rounds, {mode.flow_time:.4g} of {clock} time"
    strongest = np.argsort(-np.abs(mode.agents), kind="stable")[:3]
    kind = f"agreement {mode.agreement:.0%}, one agent pattern × data direction {mode.separable:.0%}"
    residual = f", residual {mode.residual:.1g}" if mode.residual else ""
    return f"{lasts}; {kind}; most in agents {', '.join(map(str, strongest))}{residual}"


def _number(value: complex) -> str:
    return f"{value.real:.6g}" if value.imag == 0 else f"{value.real:.4g} ± {abs(value.imag):.4g}i"


@dataclass(frozen=True, eq=False)
class StabilityMap:
    """The spectral radius of the rounds over step size and delay, or over step size and λ_min(W).

    Attributes
    ----------
    radius
        An `xarray.DataArray` with the dimensions `gradient_delay`, `message_delay` or `smallest_eigenvalue`, and
        `step_size`.
    limits, textbook
        The exact and the textbook's sufficient bound of stable step sizes, one for each row; NaN where there is none.
    """

    radius: xr.DataArray
    limits: np.ndarray
    textbook: np.ndarray

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The map, white where it is stable, and both boundaries, into the axes `ax` or new ones; returns the axes."""
        from ntkp2p import plotting

        return plotting.stability_map(self, ax=ax)

    def __repr__(self) -> str:
        name, steps = str(self.radius.dims[0]), self.radius["step_size"].values
        up, stable = self.radius[name].values, int((self.radius <= 1 + EDGE).sum())
        return (
            f"StabilityMap(step sizes {steps.min():.4g} to {steps.max():.4g} × {name.replace('_', ' ')} "
            f"{up.min():.4g} to {up.max():.4g}, {stable} of {self.radius.size} stable)"
        )

    def _repr_html_(self) -> str:
        name = str(self.radius.dims[0])
        rows = zip(self.radius[name].values, self.limits, self.textbook, strict=True)
        header = [name.replace("_", " "), "largest stable step size", "textbook's sufficient bound"]
        return html_table(header, ([f"{value:.4g}" for value in row] for row in rows))


@in_float64
@one_thread()
def stability_map(
    experiment: Experiment,
    step_sizes: Any,
    /,
    *,
    gradient_delays: Any = None,
    message_delays: Any = None,
    smallest_eigenvalues: Any = None,
    features: Features | None = None,
) -> StabilityMap:
    """Where a run is stable: the spectral radius of its rounds over two of its constants.

    Parameters
    ----------
    experiment
        The run; its own step size does not matter.
    step_sizes
        η, across.
    gradient_delays, message_delays
        Rounds by which gradients or messages are late, up; see `ntkp2p.Delayed`.
    smallest_eigenvalues
        λ_min of the matrices (1 − a) I + a W, up: W made lazier or keener. W is to be symmetric.
    features
        As for `ntkp2p.predict`.

    Returns
    -------
    map
        With `.radius`, `.limits` and `.plot()`.

    Raises
    ------
    ValueError
        If not exactly one of the three is given, a value is not possible, or as `stability`.

    Notes
    -----
    Every point takes the eigenvalues of a system of (1 + delay) · n states: meant for up to a few hundred states.

    Examples
    --------
    Gradients that are two rounds late bear η < 2 sin(π/10) = 0.618:

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
    >>> plane = p2p.stability_map(experiment, [0.5, 0.7], gradient_delays=[2])
    >>> (plane.radius < 1).values
    array([[ True, False]])
    """
    given = {
        "gradient_delay": gradient_delays,
        "message_delay": message_delays,
        "smallest_eigenvalue": smallest_eigenvalues,
    }
    chosen = [name for name, values in given.items() if values is not None]
    if len(chosen) != 1:
        raise ValueError(
            "a map has one of gradient_delays, message_delays and smallest_eigenvalues beside the step sizes, found "
            f"{' and '.join(chosen) or 'none'}"
        )
    _must_be_linear(experiment)
    if experiment.asynchronous:
        raise ValueError("a map is of synchronous rounds: see stability(experiment) and timeliness(experiment)")
    (name,), etas = chosen, np.asarray(step_sizes, float)
    values = np.asarray(given[name])
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iuf":
        raise ValueError(f"{name}s must be a list of numbers, found {given[name]!r}")
    if etas.ndim != 1 or not len(etas) or not (np.isfinite(etas) & (etas > 0)).all():
        raise ValueError(f"step_sizes must be a list of positive numbers, found {step_sizes!r}")
    features, experiment = features_of(experiment, features), with_measured_shares(experiment)
    rows, limits, textbook = [], [], []
    for value in values:
        algorithm, mixing = _varied(experiment, name, value)
        system = linear_system(algorithm, mixing, features, experiment.data)
        rows.append([spectrum(with_step_size(system, float(eta))).radius for eta in etas])
        limits.append(largest_step_size(system))
        textbook.append(system.stable_step_size)
    radius = xr.DataArray(
        np.array(rows),
        dims=(name, "step_size"),
        coords={name: values, "step_size": etas},
        name="spectral_radius",
    )
    return StabilityMap(radius, np.array(limits), np.array(textbook))


def _varied(experiment: Experiment, name: str, value: Any) -> tuple[Algorithm, Any]:
    algorithm, mixing = experiment.algorithm, experiment.mixing
    if name.endswith("delay"):
        return Delayed(algorithm, **{"gradients" if name == "gradient_delay" else "messages": value}), mixing
    if isinstance(mixing, Schedule) or not np.array_equal(mixing, mixing.T):
        raise ValueError("smallest_eigenvalues are of one symmetric matrix: give the experiment one")
    least = float(np.linalg.eigvalsh(mixing)[0])
    if least > 1 - EDGE:
        raise ValueError("smallest_eigenvalues need mixing that mixes: this W is the identity")
    if not (np.isfinite(value) and value < 1):
        raise ValueError(f"λ_min of a mixing matrix lies below 1, found {value:g}")
    a = (1 - value) / (1 - least)
    return algorithm, (1 - a) * np.eye(len(mixing)) + a * mixing
