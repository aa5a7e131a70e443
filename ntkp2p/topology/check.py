r"""Does a mixing matrix do what the algorithms need? `validate_mixing` asks, `check_mixing` tells.

With row sums one, agreement is kept, :math:`W 1 = 1`. When W is also nonnegative, connected and
aperiodic, :math:`W^k \to 1 \pi^\top`, where :math:`\pi^\top W = \pi^\top` is the left Perron
vector. The agents then agree at the rate of the second-largest eigenvalue modulus, and for small
steps they minimise :math:`\sum_q \pi_q L_q`: the plain mean, if W is doubly stochastic.

Examples
--------
>>> import ntkp2p as p2p
>>> report = p2p.check_mixing([[0.5, 0.5], [0.5, 0.5]])
>>> report.doubly_stochastic, round(report.spectral_gap, 12)
(True, 1.0)
>>> report.verdicts["DGD"].answer
'works'
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import networkx as nx
import numpy as np
from jaxtyping import Float, Inexact
from scipy.sparse import csr_array

from ntkp2p.base.errors import InputError
from ntkp2p.base.reports import Report, Verdict, as_plain
from ntkp2p.topology import spectrum as topology_spectrum
from ntkp2p.topology.joint import ScheduleReport
from ntkp2p.topology.matrix import square, square_matrix
from ntkp2p.topology.schedules import Schedule, periodic
from ntkp2p.topology.spectrum import EIGENVALUE_TOLERANCE, TOLERANCE, Matrix
from ntkp2p.topology.verdicts import ALGORITHMS, agreement, connection_fault, verdict, worst
from ntkp2p.topology.weights import mixing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Above this number of agents a matrix is kept sparse, and only quantities that this allows are computed.
DENSE = 1500
#: The decay γ of noise for the effective neighbours: noise lasts for about 1/(1 − γ) = 10 rounds.
DECAY = 0.9


def validate_mixing(
    W: object,
    /,
    *,
    agents: int | None = None,
    rounds: int | None = None,
    stochastic: Literal["row", "column", "doubly"] = "row",
) -> Float[np.ndarray, "Q Q"] | Schedule:
    """Validate a mixing matrix, or a schedule, and return it unchanged.

    Parameters
    ----------
    W
        Array-like or sparse, shape (Q, Q); row q receives. Negative weights are allowed. Or a `Schedule`, for which
        the union of the matrices must be connected, not each matrix.
    agents
        The number of agents Q of the data, if known.
    rounds
        The number of rounds of the run, if known: a finite schedule must be at least as long.
    stochastic
        The sums that must be one, within `TOLERANCE`: ``"row"`` (DGD, CTA, ATC), ``"column"`` (push-sum), or
        ``"doubly"`` for both.

    Returns
    -------
    ndarray, shape (Q, Q), or Schedule
        W as a float64 array (W itself if it already is one), or the schedule.

    Raises
    ------
    TypeError
        If W is a graph, or does not consist of real numbers.
    ValueError
        If W is not square and finite, has another size than `agents`, has a row or column sum that is not one, or is
        not strongly connected; if a schedule is too short; or if, with column sums of one, an agent receives nothing in
        some round, not even from itself. The message ends with the remedy, and names the first round with the fault.

    Examples
    --------
    >>> from ntkp2p.topology import validate_mixing
    >>> validate_mixing([[0.5, 0.5], [0.3, 0.6]])
    Traceback (most recent call last):
    ...
    ntkp2p.InputError: mixing row 1 sums to 0.9, not 1: scale it, in float64, W / W.sum(axis=1).reshape(-1, 1)
    """
    mixing = W if isinstance(W, Schedule) else square_matrix(W)
    schedule = mixing if isinstance(mixing, Schedule) else periodic([mixing])
    schedule.must_be_valid(agents=agents, rounds=rounds, stochastic=stochastic)
    return mixing


@dataclass(frozen=True, eq=False, repr=False)
class MixingReport(Report):
    """The result of `check_mixing`; print it for a table and the verdicts.

    Attributes
    ----------
    matrix : ndarray or scipy.sparse.csr_array, shape (Q, Q)
        A copy of the matrix, row q receives; sparse above 1,500 agents.
    source : str
        The name of a graph's weights; empty for a matrix.
    worst_row, worst_column : (int, float)
        The row (column) whose sum differs most from one, and that sum − 1.
    components : list of lists of int
        The strongly connected components of W's nonzeros.
    period : int
        The greatest common divisor of the lengths of all closed walks; 1 means aperiodic, and a positive self-weight
        makes its component aperiodic. For several components, the least common multiple of their periods.
    eigenvalues : ndarray, shape (Q,)
        In descending order of modulus; real if W is symmetric. For a sparse matrix only the extreme ones.
    second_modulus : float
        The largest eigenvalue modulus apart from the eigenvalue 1; 0 for one agent. Disagreement decays like
        second_modulus^k over k rounds of mixing. If neither row nor column sums are one, the eigenvalue nearest to 1
        is left out. NaN if it was not found.
    smallest_eigenvalue : float
        The smallest real part of an eigenvalue. For symmetric W and a loss of curvature at most h, the rounds of DGD
        are stable as long as step_size · h < 1 + smallest_eigenvalue [1]_.
    perron_left : ndarray, shape (Q,), or None
        π with πᵀW = πᵀ and Σ π_q = 1: the agents' weights in what they minimise together. If neither row nor column
        sums are one, the spectral radius takes the place of the eigenvalue 1. None unless W is connected (or if, with
        negative weights, π is not unique).
    perron_right : ndarray, shape (Q,), or None
        w with W w = w and mean 1: all ones for row sums one, and what push-sum's weights tend to for column sums one;
        if W is periodic they go round, and this is their mean over a period.
    numerical_abscissa : float
        The largest eigenvalue of (W + Wᵀ)/2: above 1, some differences grow before they shrink.
    mixing_time : int or None
        Rounds until no agent's weights in what it holds are farther than 1/4 in total variation from their limit
        [2]_. None if that never comes, takes more than 10¹² rounds, has no meaning (negative weights, or neither row
        nor column sums one), or is left out.
    left_out : tuple of str
        What was not computed, because the matrix is large, an iteration for it did not converge, or links are lost in
        rounding.

    References
    ----------
    .. [1] K. Yuan, Q. Ling, W. Yin, "On the convergence of decentralized gradient descent",
       SIAM Journal on Optimization 26 (2016).
    .. [2] Levin and Peres, "Markov Chains and Mixing Times", 2nd edition, AMS 2017, section 4.5.
    """

    matrix: Matrix
    source: str
    worst_row: tuple[int, float]
    worst_column: tuple[int, float]
    components: list[list[int]]
    period: int
    eigenvalues: Inexact[np.ndarray, " k"]
    second_modulus: float
    smallest_eigenvalue: float
    perron_left: Float[np.ndarray, " Q"] | None
    perron_right: Float[np.ndarray, " Q"] | None
    numerical_abscissa: float
    mixing_time: int | None
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        """Q, the number of agents."""
        return topology_spectrum.agents(self.matrix)

    @cached_property
    def symmetric(self) -> bool:
        """W = Wᵀ within `TOLERANCE`."""
        return topology_spectrum.is_symmetric(self.matrix)

    @cached_property
    def lowest(self) -> float:
        """The smallest entry."""
        return float(self.matrix.min())

    @property
    def nonnegative(self) -> bool:
        """No weight below −`TOLERANCE`. Fastest-averaging weights can be negative and work."""
        return self.lowest >= -TOLERANCE

    @property
    def row_stochastic(self) -> bool:
        """All row sums are one within `TOLERANCE`, of whatever sign the weights are."""
        return abs(self.worst_row[1]) <= TOLERANCE

    @property
    def column_stochastic(self) -> bool:
        """All column sums are one within `TOLERANCE`, of whatever sign the weights are."""
        return abs(self.worst_column[1]) <= TOLERANCE

    @property
    def doubly_stochastic(self) -> bool:
        """Row and column sums are one, so that mixing keeps the average."""
        return self.row_stochastic and self.column_stochastic

    @property
    def connected(self) -> bool:
        """Every agent reaches every other."""
        return len(self.components) == 1

    @property
    def aperiodic(self) -> bool:
        """The period is 1."""
        return self.period == 1

    @property
    def spectral_gap(self) -> float:
        """1 − second_modulus."""
        return 1 - self.second_modulus

    @property
    def full_spectrum(self) -> bool:
        """Whether all eigenvalues are there."""
        return len(self.eigenvalues) == self.size

    @property
    def stochastic(self) -> bool:
        """Nonnegative, with row or column sums one: connection and period then decide exactly whether W^k converges."""
        return self.nonnegative and (self.row_stochastic or self.column_stochastic)

    @property
    def oscillates(self) -> bool:
        """Whether an eigenvalue other than 1 has modulus 1, so some disagreement never decays.

        Of stochastic weights the period says so, by Perron and Frobenius, however close to 1 the second modulus is. Of
        others the eigenvalues do, within 1e-6.
        """
        if self.stochastic:
            return not self.aperiodic
        others = topology_spectrum.without_one(self.eigenvalues)
        away = abs(others - 1) > EIGENVALUE_TOLERANCE
        return bool(np.any(away & (abs(others) >= 1 - EIGENVALUE_TOLERANCE)))

    @property
    def converges(self) -> bool:
        """Whether W^k tends to a matrix of rank one, however slowly: judged as `oscillates` is."""
        if self.stochastic:
            return self.connected and self.aperiodic
        return self.connected and self.second_modulus < 1 - EIGENVALUE_TOLERANCE

    @property
    def largest_step(self) -> float:
        """Below which step_size · h the rounds of DGD are stable, h the one curvature of all losses.

        1 + smallest_eigenvalue for symmetric W, where it suffices for all curvatures up to h; 0 or less if no step size
        is stable. Judged by the eigenvalues that were found.
        """
        return topology_spectrum.largest_step(self.eigenvalues)

    @property
    def departure_from_normality(self) -> float:
        """Henrici's √(‖W‖_F² − Σ|λ|²), 0 for symmetric W; NaN where not all eigenvalues are there."""
        if self.symmetric:
            return 0.0
        if not isinstance(self.matrix, np.ndarray):
            return float("nan")
        return topology_spectrum.departure_from_normality(self.matrix, self.eigenvalues)

    @property
    def perron_distance(self) -> float:
        """How far π is from uniform in total variation, ½ Σ|π_q − 1/Q|, between 0 and 1; NaN without π."""
        return float("nan") if self.perron_left is None else float(abs(self.perron_left - 1 / self.size).sum() / 2)

    @property
    def agree_on(self) -> str:
        """What the agents come to agree on when they only mix.

        "the mean", "a π-weighted mean", "the mean, by push-sum only" or "nothing".
        """
        return agreement(self.row_stochastic, self.column_stochastic, self.converges)

    def effective_neighbours(self, decay: float | int = DECAY, /) -> float:
        """The agents that one effectively averages with, n_W(γ) [1]_: 1 for W = I, and Q for the complete graph.

        By how much averaging, z⁺ = W(√γ z + ξ), lowers the variance of a random walk that forgets its noise ξ.

        Parameters
        ----------
        decay
            γ, 0 ≤ γ < 1: noise lasts for about 1/(1 − γ) rounds, which should be the longer the smaller the step size.

        Returns
        -------
        float
            For a sparse matrix an estimate from 64 random probes. NaN where it is undefined: if neither row nor column
            sums are one, so that W does not average, or if the variance has no limit or is zero.

        Raises
        ------
        ValueError
            If γ is not in [0, 1).

        Examples
        --------
        Who averages with all Q at once, has Q:

        >>> import ntkp2p as p2p
        >>> report = p2p.check_mixing(p2p.metropolis(p2p.graphs.complete(7)))
        >>> round(report.effective_neighbours(), 9)
        7.0

        References
        ----------
        .. [1] Vogels, Hendrikx and Jaggi, "Beyond spectral gap", NeurIPS 2022.
        """
        if not 0 <= decay < 1:
            raise InputError(f"decay must be at least 0 and below 1, found {decay}: {DECAY} is usual")
        if not (self.row_stochastic or self.column_stochastic):
            return float("nan")
        return topology_spectrum.effective_neighbours(self.matrix, self.eigenvalues, float(decay))

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Whether W works for "DGD", "CTA", "ATC" and "push-sum", why (not), and the remedy."""
        return {algorithm: verdict(self, algorithm) for algorithm in ALGORITHMS}

    def to_dict(self) -> dict[str, Any]:
        """Everything in numbers, texts and lists that JSON has; what is not known or not finite is None."""
        names = "size source row_stochastic column_stochastic symmetric nonnegative lowest connected components period"
        names += " second_modulus spectral_gap smallest_eigenvalue largest_step mixing_time agree_on perron_distance"
        names += " perron_left perron_right departure_from_normality numerical_abscissa eigenvalues left_out"
        return as_plain(
            {name: getattr(self, name) for name in names.split()}
            | {line: dict(zip(("index", "defect"), getattr(self, line), strict=True)) for line in _WORST}
            | {"effective_neighbours": self.effective_neighbours(), "decay": DECAY}
            | {"verdicts": self.verdicts}
        )

    def plot(self) -> list[Axes]:
        """The eigenvalues in the unit disc, and the graph with its weights (up to 100 agents); returns both axes."""
        from ntkp2p.topology import plots

        return plots.mixing(self.matrix, self.eigenvalues, full=self.full_spectrum)

    @property
    def title(self) -> str:
        """What is reported on."""
        return f"Mixing matrix, {self.size} × {self.size}"

    @property
    def sections(self) -> dict[str, list[tuple[str, str]]]:
        """The facts and their values in words."""
        return {"": _rows(self)}


_WORST = ("worst_row", "worst_column")


@overload
def check_mixing(W: Schedule, /) -> ScheduleReport: ...
@overload
def check_mixing(W: object, /) -> MixingReport: ...
def check_mixing(W: object, /) -> MixingReport | ScheduleReport:
    """Report on a mixing matrix or a schedule of them: its sums, connections and spectrum, and verdicts.

    Parameters
    ----------
    W
        Array-like or sparse, shape (Q, Q); row q receives. Or a networkx graph: the edge u → v with the attribute
        ``weight`` is W[v, u]; without weights an undirected graph has Metropolis weights and a directed one
        `push_weights`, and the report says so. Or a `Schedule`.

    Returns
    -------
    MixingReport or, of a schedule, ScheduleReport
        With a text form for the terminal and tables for the notebook.

    Raises
    ------
    TypeError, ValueError
        Only if W is not a square matrix of finite real numbers, or the graph is none that has one; all else is
        reported.

    Notes
    -----
    Costs one eigenvalue decomposition and the powers for the mixing time, O(Q³), up to 1,500 agents. A larger matrix
    is kept sparse, and only the extremes of its spectrum are found; `left_out` says what is not.

    Examples
    --------
    Two agents that swap their values never agree. Metropolis weights of a cycle of Q have the eigenvalues
    (1 + 2 cos(2πj/Q))/3:

    >>> import ntkp2p as p2p
    >>> p2p.check_mixing([[0, 1], [1, 0]]).verdicts["DGD"].remedy
    'lazy(W), or ATC or CTA over this one'
    >>> report = p2p.check_mixing(p2p.metropolis(p2p.graphs.cycle(6)))
    >>> round(report.spectral_gap, 10), round(report.smallest_eigenvalue, 10)
    (0.3333333333, -0.3333333333)

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    """
    if isinstance(W, Schedule):
        return ScheduleReport.of(W)
    matrix, source = mixing_of(W) if isinstance(W, nx.Graph) else (W, "")
    return report_on(_stored(matrix), source)


def report_on(matrix: Matrix, source: str = "") -> MixingReport:
    """The report on a square matrix of finite real numbers."""
    dense = isinstance(matrix, np.ndarray)
    parts = topology_spectrum.components(matrix)
    period = topology_spectrum.period(matrix, parts)
    worst_row, worst_column = (worst(topology_spectrum.sums(matrix, axis)) for axis in (1, 0))
    rows, columns = (abs(defect) <= TOLERANCE for _, defect in (worst_row, worst_column))
    positive, connected = matrix.min() >= -TOLERANCE, len(parts) == 1
    known_period = period if positive and (rows or columns) else 1
    nothing = topology_spectrum.Spectrum(np.empty(0), float("nan"), float("nan"))
    spectrum = topology_spectrum.spectrum(matrix, period=known_period) if dense or connected else nothing
    left, right = _perron(matrix, spectrum, rows, columns) if connected else (None, None)
    limit = left if rows else right
    time = None
    if dense and positive and connected and period == 1 and limit is not None and (rows or columns):
        time = (
            topology_spectrum.mixing_time(matrix, limit)
            if rows
            else topology_spectrum.mixing_time(matrix.T, limit / len(limit))
        )
    no_vectors = connected and (positive or not dense) and (left is None or right is None)
    return MixingReport(
        matrix=matrix,
        source=source,
        worst_row=worst_row,
        worst_column=worst_column,
        components=parts,
        period=period,
        eigenvalues=spectrum.eigenvalues,
        second_modulus=spectrum.second_modulus,
        smallest_eigenvalue=spectrum.smallest,
        perron_left=left,
        perron_right=right,
        numerical_abscissa=topology_spectrum.numerical_abscissa(matrix),
        mixing_time=time,
        left_out=_left_out(matrix, spectrum, connected, no_vectors),
    )


def _stored(W: object) -> Matrix:
    """A copy of W, dense up to `DENSE` agents and sparse above."""
    matrix = square(W)
    if topology_spectrum.agents(matrix) > DENSE:
        return csr_array(matrix, copy=isinstance(matrix, csr_array))
    return matrix.toarray() if isinstance(matrix, csr_array) else matrix.copy()


def _perron(
    W: Matrix, spectrum: topology_spectrum.Spectrum, rows: bool, columns: bool
) -> tuple[Float[np.ndarray, " Q"] | None, Float[np.ndarray, " Q"] | None]:
    """Left and right Perron vectors of a connected W: at the eigenvalue 1, or else at the spectral radius."""
    size, values = topology_spectrum.agents(W), spectrum.eigenvalues
    positive = W.min() >= 0
    repeated = abs(topology_spectrum.without_one(values) - 1).min(initial=np.inf) <= EIGENVALUE_TOLERANCE
    if not positive and (repeated or not (rows or columns)):
        return None, None  # nonnegative weights cannot repeat the eigenvalue 1, they can only come close
    root = 1.0 if rows or columns else float(abs(values).max(initial=0.0))
    left = np.full(size, 1 / size) if columns else topology_spectrum.perron_left(W, root)
    right = (
        np.full(size, 1 / size)
        if rows
        else topology_spectrum.perron_left(W.T if isinstance(W, np.ndarray) else W.T.tocsr(), root)
    )
    return left, None if right is None else size * right


def _left_out(
    matrix: Matrix, spectrum: topology_spectrum.Spectrum, connected: bool, no_vectors: bool
) -> tuple[str, ...]:
    if isinstance(matrix, np.ndarray):
        return ("the Perron vectors, and what needs them: its weakest links are lost in rounding",) * no_vectors
    missing = {
        "all eigenvalues, since it is not connected": not connected,
        "all eigenvalues but the extreme ones": connected,
        "the second modulus, not found": connected and np.isnan(spectrum.second_modulus),
        "the smallest eigenvalue, not found": connected and np.isnan(spectrum.smallest),
        "the last digits of the eigenvalues, found to a residual of 1e-3": spectrum.residual
        > topology_spectrum.RESIDUAL,
        "the Perron vectors, not found": no_vectors,
        "the mixing time": True,
        "the departure from normality": not topology_spectrum.is_symmetric(matrix),
    }
    return tuple(name for name, absent in missing.items() if absent)


# --- text ---


def yes(fact: bool, otherwise: str = "") -> str:
    """ "yes", or "no" and what is there instead."""
    return "yes" if fact else "no" + (f", {otherwise}" if otherwise else "")


def _rows(report: MixingReport) -> list[tuple[str, str]]:
    def sum_of(line: str, worst: tuple[int, float]) -> str:
        return f"{line} {worst[0]} sums to {1 + worst[1]:.12g}"

    def known(value: float | int | None, unit: str = "") -> str:
        return "—" if value is None or np.isnan(value) else f"{value:.6g}{unit}"

    weights, time = report.perron_left, report.mixing_time
    components = connection_fault(report.matrix)
    rows = [
        ("weights", report.source),
        ("row sums are 1", yes(report.row_stochastic, sum_of("row", report.worst_row))),
        ("column sums are 1", yes(report.column_stochastic, sum_of("column", report.worst_column))),
        ("symmetric", yes(report.symmetric)),
        ("nonnegative", yes(report.nonnegative, f"down to {report.lowest:.6g}")),
        ("connected", yes(report.connected, components[0].partition(", so")[0] if components else "")),
        ("aperiodic", yes(report.aperiodic, f"period {report.period}")),
        ("second modulus", known(report.second_modulus)),
        ("spectral gap", known(report.spectral_gap)),
        ("smallest eigenvalue", known(report.smallest_eigenvalue)),
        ("mixing time", known(time, " rounds, to within 1/4 in total variation")),
        ("effective neighbours", known(report.effective_neighbours(), f" of {report.size}, at decay γ = {DECAY}")),
        ("agents agree on", report.agree_on),
        ("non-normality", known(report.departure_from_normality, " departure, ")),
        ("left out", "; ".join(report.left_out)),
    ]
    if weights is not None and report.perron_distance > TOLERANCE * report.size:
        at = rows.index(("agents agree on", report.agree_on)) + 1
        found = f"{weights.min():.6g} to {weights.max():.6g}, {report.perron_distance:.3g} from uniform"
        rows.insert(at, ("Perron weights π", found))
    rows = [(k, v + f"{report.numerical_abscissa:.6g} numerical abscissa" * (k == "non-normality")) for k, v in rows]
    return [(label, value) for label, value in rows if value]
