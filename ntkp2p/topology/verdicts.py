"""Will it work? What DGD, CTA, ATC and push-sum need of a mixing matrix, why one fails, and what to type instead.

With losses of curvature at most h (the largest eigenvalue of any agent's Hessian) and W's row sums one:

- DGD, x⁺ = W x − η g(x), is stable for symmetric W if η h < 1 + λ_min(W) [1]_. At λ_min = −1, and wherever W is
  periodic, some disagreement never decays and the gradients amplify it: no step size is stable.
- CTA and ATC apply (I − ηH) to what is mixed, or mix what (I − ηH) leaves. For nonnegative W both contract in the norm
  Σ π_q ‖x_q‖², πᵀW = πᵀ, if η h < 2, whatever λ_min is; but an eigenvalue −1 is damped by the gradients only. Negative
  weights need not contract in that norm, and where they leave an eigenvalue of modulus one the rounds may diverge.
- Push-sum, x⁺ = P(x − η g(x/w)), w⁺ = P w, needs column sums one, and then keeps the averages of x and w. The models
  x/w contract in the norm Σ w_q ‖x_q/w_q‖² if η h < 2 min w, w the right Perron vector of P with mean one. Where P has
  a period T, w never converges: T classes of agents hand on their sums of w, which are their sizes at first and Q/T
  in the Perron vector. The least w of a period counts.

References
----------
.. [1] K. Yuan, Q. Ling, W. Yin, "On the convergence of decentralized gradient descent",
   SIAM Journal on Optimization 26 (2016).
.. [2] A. Nedić, A. Olshevsky, "Distributed optimization over time-varying directed graphs",
   IEEE Transactions on Automatic Control 60 (2015).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_array

from ntkp2p.base.reports import Verdict
from ntkp2p.topology import spectrum
from ntkp2p.topology.spectrum import EIGENVALUE_TOLERANCE, TOLERANCE, Matrix, smallest_class, sums, without_one

if TYPE_CHECKING:
    from ntkp2p.topology.check import MixingReport

#: What has a verdict.
ALGORITHMS = ("DGD", "CTA", "ATC", "push-sum")
#: Mixing that needs more rounds than this to halve the disagreement is called slow.
SLOW_ROUNDS = 100
#: Where less than this share of the usual step size is stable, the verdict says so.
SMALL_STEP = 0.1

Sums = Literal["row", "column", "doubly"]


def judged(algorithm: str, fault: tuple[str, str] | None, doubts: list[tuple[str, str]]) -> Verdict:
    """From what makes it fail and what a user of it will wonder at, each a reason and its remedy."""
    if fault:
        return Verdict(algorithm, "does not work", *fault)
    if doubts:
        reasons, remedies = zip(*doubts, strict=True)
        return Verdict(algorithm, "works, but", "; and ".join(reasons), "; ".join(dict.fromkeys(remedies)))
    return Verdict(algorithm, "works", "the agents come to agree, and every agent's loss counts alike")


def verdict(report: "MixingReport", algorithm: str) -> Verdict:
    """Of one algorithm over one matrix."""
    return judged(algorithm, _fault(report, algorithm), list(_doubts(report, algorithm)))


def needed_sums(algorithm: str) -> Literal["row", "column"]:
    """Which sums of W are to be one."""
    return "column" if algorithm == "push-sum" else "row"


def sums_fault(W: Matrix, needed: Sums) -> tuple[str, str] | None:
    """The line whose sum is farthest from one, and the remedy; None if all sums are one."""
    found = {"row": sums(W, 1), "column": sums(W, 0)}
    failing = [line for line in found if abs(worst(found[line])[1]) > TOLERANCE]
    required = list(found) if needed == "doubly" else [needed]
    line = next((line for line in required if line in failing), None)
    if line is None:
        return None
    at, _ = worst(found[line])
    reason = f"{line} {at} sums to {found[line][at]:.12g}, not 1"
    if needed == "doubly":
        return reason, "metropolis(graph) of an undirected graph has row and column sums 1"
    if len(failing) == 1:
        other = "column" if line == "row" else "row"
        return f"{reason}, but the {other} sums are 1 (row q receives)", _OTHER_SUMS[line]
    unscalable = np.flatnonzero(abs(found[line]) <= TOLERANCE)
    if len(unscalable):
        return reason, f"give {line} {unscalable[0]} weights, now they sum to 0"
    # Sparse arrays have no keepdims.
    scaled = "W / W.sum(axis=1).reshape(-1, 1)" if line == "row" else "W / W.sum(axis=0).reshape(1, -1)"
    return reason, f"scale it, in float64, {scaled}"


# What to do about rows or columns that do not sum to one when the others do.
_OTHER_SUMS = {
    "row": "push-sum takes it as it is; or transpose it, W.T",
    "column": "transpose it, W.T, or take push_weights(graph)",
}


def connection_fault(W: Matrix) -> tuple[str, str] | None:
    """That there are several strong components, and which edge would help."""
    parts = spectrum.components(W)
    if len(parts) == 1:
        return None
    cut_off, edge = _missing_edge(W, parts)
    return (
        f"falls into {len(parts)} components, {shortened(parts)}, so it is not connected{cut_off}",
        f"add an edge {edge}" + (", and so on" if len(parts) > 2 else ""),
    )


def silence_fault(W: Matrix) -> tuple[str, str] | None:
    """That some agent receives nothing: then its weight w in push-sum is 0, which the model x/w divides by."""
    deaf = np.flatnonzero(sums(abs(W), 1) <= TOLERANCE)
    if not len(deaf):
        return None
    return (
        f"agent {deaf[0]} receives nothing, not even from itself, and push-sum divides by what it receives",
        f"give agent {deaf[0]} a self-weight",
    )


def agreement(rows: bool, columns: bool, converges: bool) -> str:
    """What the agents agree on if W^k converges, by which of its sums are one."""
    if not converges or not (rows or columns):
        return "nothing"
    if not rows:
        return "the mean, by push-sum only"
    return "the mean" if columns else "a π-weighted mean"


def shortened(components: list[list[int]], most: int = 4) -> str:
    """{0, 1, 2} {3, 4} …, with the middle of long lists left out."""
    shown = ["{" + ", ".join(map(str, c[:most])) + (", …" if len(c) > most else "") + "}" for c in components[:most]]
    return " ".join(shown) + (" …" if len(components) > most else "")


def worst(found: np.ndarray) -> tuple[int, float]:
    """The sum that is farthest from one, and by how much."""
    at = int(abs(found - 1).argmax())
    return at, float(found[at] - 1)


def _fault(report: "MixingReport", algorithm: str) -> tuple[str, str] | None:
    """The first reason why W cannot work, with its remedy."""
    if fault := sums_fault(report.matrix, needed_sums(algorithm)) or connection_fault(report.matrix):
        return fault
    if not report.nonnegative and (fault := _fault_of_signs(report, algorithm)):
        return fault
    if algorithm == "DGD" and report.nonnegative and (report.oscillates or report.largest_step <= _rounding(report)):
        return (
            f"{_oscillating(report)}, so mixing never damps that part of the disagreement, and the gradients at the "
            "models before mixing make it grow, at any step size",
            "lazy(W), or ATC or CTA over this one",
        )
    return None


def _fault_of_signs(report: "MixingReport", algorithm: str) -> tuple[str, str] | None:
    """Stochastic weights on a connected graph have none of these: only negative ones can."""
    if report.perron_left is None or report.perron_right is None:
        return "the eigenvalue 1 is repeated, so disagreement persists", "metropolis(graph)"
    if algorithm == "push-sum" and not report.row_stochastic:  # otherwise w stays 1
        return (
            f"weights down to {report.lowest:.4g} < 0 let push-sum's own weights w pass through 0, which it divides by",
            "push_weights(graph)",
        )
    agent = int(report.perron_left.argmin())
    if report.perron_left[agent] < -TOLERANCE:
        return (
            f"agent {agent}'s loss has the weight {report.perron_left[agent]:.4g} < 0 in what the agents minimise",
            "metropolis(graph)",
        )
    if report.second_modulus > 1 + EIGENVALUE_TOLERANCE:
        reason = f"an eigenvalue of modulus {report.second_modulus:.6g} makes disagreement grow"
    elif report.oscillates:
        reason = (
            f"{_oscillating(report)}, so mixing never damps that part of the disagreement, and with weights down to "
            f"{report.lowest:.4g} < 0 the gradients may leave it or make it grow, at any step size"
        )
    else:
        return None
    # lazy(W) keeps π and its signs, and shrinks what is left if all other eigenvalues come inside the circle.
    others = without_one(report.eigenvalues)
    tamed = report.full_spectrum and abs(1 + others).max() / 2 < 1 - EIGENVALUE_TOLERANCE
    return reason, "lazy(W)" if tamed else "metropolis(graph)"


def _doubts(report: "MixingReport", algorithm: str) -> Iterator[tuple[str, str]]:
    """What a user of a W that works will wonder at, each with its remedy."""
    if algorithm == "push-sum":
        yield from _small_shares(report)
    else:
        yield from bias(report.perron_left, report.size)
    if report.oscillates:
        yield (
            f"oscillates: {_oscillating(report)}, so mixing alone never damps that part of the disagreement, only the "
            "gradients do",
            "lazy(W)",
        )
        return
    if algorithm == "DGD" and report.largest_step < SMALL_STEP:
        at = f"λ_min = {report.smallest_eigenvalue:.6g}" if report.symmetric else "an eigenvalue near the unit circle"
        yield (
            f"oscillates: {at} leaves only step sizes below {report.largest_step:.3g}/h, h the losses' curvature",
            "lazy(W), or ATC or CTA, stable up to 2/h" if report.nonnegative else "lazy(W)",
        )
    yield from slowness(report.second_modulus, report.size)


def bias(weights: np.ndarray | None, agents: int) -> Iterator[tuple[str, str]]:
    """That the agents' losses do not count alike."""
    if weights is None or weights.max() - weights.min() <= TOLERANCE:
        return
    yield (
        f"biased to π: agent q's loss counts with π_q, from {weights.min():.4g} to {weights.max():.4g}, instead of "
        f"1/{agents} = {1 / agents:.4g}",
        "metropolis(graph) counts all alike, and so does push-sum over push_weights(graph)",
    )


def slowness(modulus: float, agents: int, *, rounds: int = 1) -> Iterator[tuple[str, str]]:
    """That disagreement shrinks by `modulus` in so many rounds, which is slow, or that it is not known how fast."""
    if np.isnan(modulus):
        yield "how fast is not known: its largest eigenvalues crowd so closely that they were not found", "lazy(W)"
    elif modulus > 0.5 ** (rounds / SLOW_ROUNDS):
        halving = rounds * np.log(2) / max(-np.log(modulus), np.finfo(float).eps)
        yield (
            f"slow: mixing takes about {halving:.3g} rounds to halve the disagreement",
            f"add links, as in graphs.exponential({agents})",
        )


def _small_shares(report: "MixingReport") -> Iterator[tuple[str, str]]:
    if report.perron_right is None:
        return
    agent = int(report.perron_right.argmin())
    share, course = report.perron_right[agent], "converges to"
    if report.period > 1 and not report.row_stochastic:
        share *= smallest_class(report.matrix, report.period) * report.period / report.size
        course = f"goes round with period {report.period}, down to"
    if share < SMALL_STEP:
        yield (
            f"agent {agent}'s weight w {course} {share:.3g}, which leaves only step sizes below {2 * share:.3g}/h, h "
            "the losses' curvature",
            f"add edges to agent {agent}",
        )


def _missing_edge(W: Matrix, parts: list[list[int]]) -> tuple[str, str]:
    """Who does not send or does not receive, if anyone, and an edge between the first parts, or of that agent."""
    links = csr_array(W != 0, dtype=float)
    sends, receives = (sums(links, axis) > links.diagonal() for axis in (0, 1))
    first, second = parts[0][0], parts[1][0]
    cut_off = np.flatnonzero(~(sends & receives))
    if not len(cut_off):
        return "", f"{first}–{second}, both ways"
    mute, deaf = np.flatnonzero(~sends & receives), np.flatnonzero(sends & ~receives)
    if len(mute) and len(deaf):
        reason = f", as agent {mute[0]} sends to no agent and agent {deaf[0]} receives from no agent"
        return reason, f"{mute[0]} → {deaf[0]}"
    agent = cut_off[0]
    other = second if agent == first else first
    if receives[agent]:
        return f", as agent {agent} sends to no agent", f"{agent} → {other}"
    if sends[agent]:
        return f", as agent {agent} receives from no agent", f"{other} → {agent}"
    return f", as agent {agent} neither sends nor receives", f"{agent}–{other}, both ways"


def _rounding(report: "MixingReport") -> float:
    """What is left of a step size of 0 when it is computed from eigenvalues."""
    return report.size * float(np.finfo(float).eps)


def _oscillating(report: "MixingReport") -> str:
    """Which eigenvalues have modulus one beside 1 itself."""
    if report.period > 1:
        return f"W has period {report.period}"
    on_circle = [v for v in without_one(report.eigenvalues) if abs(v) >= 1 - EIGENVALUE_TOLERANCE]
    value = min(on_circle, key=lambda v: v.real, default=np.nan)
    return f"the eigenvalue {value:.4g} has modulus 1"
