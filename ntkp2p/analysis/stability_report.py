"""The report of a stability analysis: its verdicts, and how they are worded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ntkp2p.algorithms import DGD, Delayed
from ntkp2p.analysis.delay_margins import Margin
from ntkp2p.analysis.timeliness import Timeliness
from ntkp2p.base.reports import Report, Rows, Verdict, as_plain
from ntkp2p.dynamics.delay import CharacteristicRoots
from ntkp2p.dynamics.lyapunov import Certificate
from ntkp2p.dynamics.mean_square import Gossip
from ntkp2p.dynamics.minimality import Hidden
from ntkp2p.dynamics.spectrum import STABILITY_TOLERANCE, Mode, Spectrum
from ntkp2p.runs.mean_field import drawn_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ntkp2p.runs.experiment import Experiment


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis of Proposition 1 (Chaudhari, Pranav, Anand and Moura).

    Attributes
    ----------
    name
        The hypothesis in words.
    holds
        Whether it holds.
    found
        The finding in words.
    """

    name: str
    holds: bool
    found: str


@dataclass(frozen=True, eq=False, repr=False)
class StabilityReport(Report):
    """The result of `stability`; print it for a table and the verdicts.

    Attributes
    ----------
    experiment
        The run.
    states
        The number of states n, in minimal features.
    removed
        The number of marginal modes that the features omit: directions of the parameters, common to all agents, that
        do not change any output. None at infinite width, which has no parameters.
    removal
        "shown by rank tests" if these found the same number of uncontrollable and unobservable modes in the
        parameters, else "by construction"; or why there is no number.
    hidden
        Modes that are uncontrollable or unobservable in features, for small systems, else None. They are decaying
        disagreement.
    spectrum
        Spectral radius of the rounds and spectral abscissa of the flow, in minimal features.
    stability_tolerance
        The amount by which the computed spectral radius of a stable system may exceed 1, due to rounding or iteration.
    eigenvalues
        All eigenvalues of M, or of the map of a period; the extreme ones for a large system.
    step_size_limit, sufficient_step_size
        The largest stable step size of the linear model, and the sufficient bound of the literature; NaN if there is
        none. For memoryless clocks the former holds in the mean square, or in the mean where `mean_square` is NaN.
    certificates
        Lyapunov certificates with "uniform" weights and, if W is row but not doubly stochastic, "Perron" weights.
    transient
        The largest ‖exp(A t)‖ and ‖M^k‖ found, for small systems, else None.
    modes
        The slowest modes.
    gossip
        Rates of the mixing alone for a schedule without a period, whose rounds are treated as independent draws.
    hypotheses
        The hypotheses of Proposition 1; empty for a schedule.
    margins
        The delay margins of "gradients" and "messages"; empty for a schedule or an algorithm with delays. A verb that
        the algorithm uses more than once per round has no margin.
    roots
        The rightmost characteristic roots of the delayed flow, for small systems, else None.
    mean_square
        For memoryless clocks, the growth factor of the deviations' mean square per event: runs converge below 1. NaN
        for other mixing and for large systems.
    timeliness
        The delays of gradients and messages of asynchronous agents; else None.
    target, rounds_to_target
        The target loss, and the first round at which `rounds_to_loss` predicts it; None if it is never reached.
    """

    experiment: Experiment
    states: int
    removed: int | None
    removal: str
    hidden: list[Hidden] | None
    spectrum: Spectrum
    stability_tolerance: float
    eigenvalues: np.ndarray
    step_size_limit: float
    sufficient_step_size: float
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
        """Whether the linear model is stable, in rounds and in flow; None if this is not known.

        It is not known for mixing that changes without a period, and if an iterated eigenvalue exceeds 1 by less than
        its residual.
        """
        abscissa = self.spectrum.abscissa if self.roots is None else float(self.roots.values[0].real)
        beyond = {"rounds": self.spectrum.radius - 1, "flow": abscissa * self.round_length}
        if not np.isnan(self.mean_square):
            beyond["rounds"] = max(beyond["rounds"], self.mean_square - 1)
        if self.step_size_limit == 0:
            beyond["rounds"] = float("inf")
        doubtful = (
            self.stability_tolerance if self.stability_tolerance > STABILITY_TOLERANCE else 0.0
        )  # iterated, and beyond 1 by no more than it may err
        return {
            time: None
            if np.isnan(far) or STABILITY_TOLERANCE < far <= doubtful
            else bool(far <= self.stability_tolerance)
            for time, far in beyond.items()
        }

    @property
    def step_size(self) -> float:
        """η."""
        return float(self.experiment.algorithm.step_size)

    @property
    def round_length(self) -> float:
        """η, or of clocks the mean wall-clock time between two events."""
        return self.experiment.topology.length(float(self.experiment.algorithm.step_size))

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
                "sufficient_step_size": self.sufficient_step_size,
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
        from ntkp2p.analysis import plots

        return plots.stability_report(self)


def _verdict_of_rounds(report: StabilityReport) -> Verdict:
    limit, eta = report.step_size_limit, report.step_size
    if (rates := report.gossip) is not None:
        converges = "converges" if rates.mean_square < 1 - STABILITY_TOLERANCE else "does not converge"
        factor = f"{rates.mean_square:.6g} a round"
        return Verdict("rounds", "not known", f"the mixing alone {converges} in the mean square, by {factor}")
    if report.experiment.asynchronous and report.experiment.topology.horizon is not None:
        return Verdict("rounds", "not known", "events do not repeat themselves", "AsynchronousGossip(...) itself")
    if report.mean_square > 1 + report.stability_tolerance:
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
        reason = "the mixing itself does not converge, whatever the step size"
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
            *([] if report.hidden is None else [("hidden modes", hidden_in_words(report.hidden))]),
        ],
    )
    clock = "wall-clock" if report.experiment.asynchronous else "flow"
    if not np.isnan(report.spectrum.abscissa):
        yield f"Flow, per unit of {clock} time", [("spectral abscissa", _abscissa(report)), *_flow(report)]
    textbook = report.sufficient_step_size
    mixing = report.experiment.topology
    clocks = mixing.asynchronous and mixing.horizon is None
    of_the_mean = ", of the mean" if clocks and np.isnan(report.mean_square) else ""
    yield (
        "Rounds",
        [
            *([] if report.gossip else [("spectral radius", _radius(report))]),
            *([] if np.isnan(report.mean_square) else [("of the mean square", f"{report.mean_square:.8g}")]),
            *([("mean over draws", names)] if (names := drawn_by(report.experiment.algorithm)) else []),
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
    if mixing.matrix is None and mixing.period > 1 and len(report.eigenvalues):
        listed = ", ".join(_number(value) for value in report.eigenvalues[:5])
        yield "Floquet multipliers", [(f"over {mixing.period} rounds", listed)]
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


def hidden_in_words(hidden: Sequence[Hidden]) -> str:
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
