r"""Does a mixing matrix do what the algorithms need? `validate_mixing` asks, `check_mixing` tells.

With row sums one, agreement is kept, :math:`W 1 = 1`. When W is also nonnegative, connected and
aperiodic, :math:`W^k \to 1 \pi^\top`, where :math:`\pi^\top W = \pi^\top` is the left Perron
vector. The agents then agree at the rate of the second-largest eigenvalue modulus, and for small
steps they minimise :math:`\sum_q \pi_q L_q`: the plain mean, if W is doubly stochastic.

Examples
--------
>>> report = check_mixing([[0.5, 0.5], [0.5, 0.5]])
>>> report.doubly_stochastic, round(report.spectral_gap, 12)
(True, 1.0)
"""

import html
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Inexact
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from ntkp2p.topology._matrix import square_matrix
from ntkp2p.topology.schedules import Schedule

#: How far a row or column sum may be from one, and an entry from its mirror image or from its sign.
TOLERANCE = 1e-8

# A defective matrix's eigenvalues are only good to about the square root of the rounding.
_EIGENVALUE_TOLERANCE = 1e-6

# Mixing that needs more rounds than this to halve the disagreement is called slow.
_SLOW_ROUNDS = 100


def validate_mixing(
    W: object,
    /,
    *,
    agents: int | None = None,
    rounds: int | None = None,
    stochastic: Literal["row", "column", "doubly"] = "row",
) -> Float[np.ndarray, "Q Q"] | Schedule:
    """Check a mixing matrix, or a schedule of them, at the door, and return it, never repaired.

    Parameters
    ----------
    W
        Array-like, shape (Q, Q); row q receives. Negative weights are allowed. Or a `Schedule`, whose matrices need
        not be connected one by one: their union is to be.
    agents
        The Q that the data are split over, where it is known.
    rounds
        The rounds of the run, where they are known: a schedule that ends is to last as long.
    stochastic
        Which sums are to be one, within `TOLERANCE`: ``"row"`` (DGD, CTA, ATC), ``"column"``
        (push-sum), or ``"doubly"`` for both.

    Returns
    -------
    ndarray, shape (Q, Q), or Schedule
        W as a float64 array, itself where it already is one; a schedule as it is.

    Raises
    ------
    TypeError
        If W is a graph, or does not consist of real numbers.
    ValueError
        If W is not square and finite, is of another size than `agents`, has a row or column sum
        that is not one, or is not strongly connected; or if a schedule is too short. The message ends with the
        remedy, and names the first round that uses a matrix at fault.
    """
    given: dict[str, object] = {"mixing": W}
    if isinstance(W, Schedule):
        used = zip(*np.unique(W.order, return_index=True), strict=True)
        given = {f"mixing in round {first}": W.matrices[index] for index, first in used}
    matrices = {name: square_matrix(matrix, name=name) for name, matrix in given.items()}
    size = len(next(iter(matrices.values())))
    if agents is not None and size != agents:
        raise ValueError(
            f"mixing is {size} × {size} but the data are split over {agents} agents: "
            f"build it on {agents} nodes, or split the data over {size}"
        )
    if isinstance(W, Schedule) and rounds is not None and not W.covers(rounds):
        raise ValueError(
            f"mixing is a schedule of {W.period} rounds for a run of {rounds}: "
            f"give it {rounds} matrices, repeat it with schedules.periodic(matrices), or set rounds = {W.period}"
        )
    for name, matrix in matrices.items():
        if fault := _sums_fault(matrix, stochastic):
            raise ValueError(f"{name} {fault}")
    if fault := _connection_fault(_components(reduce(np.maximum, map(np.abs, matrices.values())))):
        raise ValueError(f"mixing {'over all its rounds ' if isinstance(W, Schedule) else ''}{fault}")
    return W if isinstance(W, Schedule) else matrices["mixing"]


@dataclass(frozen=True, eq=False, repr=False)
class MixingReport:
    """What `check_mixing` found out about a mixing matrix; print it for a table and the verdict.

    Attributes
    ----------
    matrix : ndarray, shape (Q, Q)
        A copy of the matrix, row q receives.
    worst_row, worst_column : (int, float)
        The row (column) whose sum is farthest from one, and that sum − 1.
    components : list of lists of int
        The agents, grouped by who can reach one another (strong components of W's nonzeros).
    aperiodic : bool
        No number above one divides the lengths of all closed walks in a component. Any positive
        self-weight makes its component aperiodic.
    eigenvalues : ndarray, shape (Q,)
        By descending modulus; real when W is symmetric.
    perron_left : ndarray, shape (Q,), or None
        π with πᵀW = πᵀ and Σ π_q = 1: the agents' weights in what they minimise together. None
        unless W is row-stochastic and connected (or if, with negative weights, π is not unique).
    """

    matrix: Float[np.ndarray, "Q Q"]
    worst_row: tuple[int, float]
    worst_column: tuple[int, float]
    components: list[list[int]]
    aperiodic: bool
    eigenvalues: Inexact[np.ndarray, " Q"]
    perron_left: Float[np.ndarray, " Q"] | None

    @property
    def size(self) -> int:
        """Q, the number of agents."""
        return len(self.matrix)

    @property
    def symmetric(self) -> bool:
        """W = Wᵀ within `TOLERANCE`."""
        return _symmetric(self.matrix)

    @property
    def nonnegative(self) -> bool:
        """No weight below −`TOLERANCE`. Fastest-averaging weights can be negative and work."""
        return bool(self.matrix.min() >= -TOLERANCE)

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
    def second_modulus(self) -> float:
        """The largest eigenvalue modulus once the eigenvalue 1 is set aside; 0 for one agent.

        Disagreement shrinks like second_modulus^k over k rounds of mixing. Without row or column
        sums one, the eigenvalue nearest to 1 is the one set aside.
        """
        return float(abs(_without_one(self.eigenvalues)).max(initial=0.0))

    @property
    def spectral_gap(self) -> float:
        """1 − second_modulus."""
        return 1 - self.second_modulus

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest real part of an eigenvalue.

        For symmetric W and a loss of curvature at most h, the rounds of DGD are stable as long as
        step_size · h < 1 + smallest_eigenvalue (Yuan, Ling & Yin 2016).
        """
        return float(np.real(self.eigenvalues).min())

    @property
    def verdict(self) -> str:
        """Whether W works for DGD, CTA and ATC, why (not), and the remedy."""
        if obstacle := _obstacle(self):
            return f"does not work: {obstacle}"
        if reservations := list(_reservations(self)):
            return f"works, but {'; and '.join(reservations)}"
        return "works: the agents come to agree, and every agent's loss counts alike"

    def __str__(self) -> str:
        rows = _rows(self)
        width = max(len(label) for label, _ in rows)
        verdict = textwrap.fill(self.verdict, 78, initial_indent="  ", subsequent_indent="  ")
        return "\n".join(
            [
                f"Mixing matrix, {self.size} × {self.size}, for DGD, CTA and ATC",
                *(f"  {label:<{width}}   {value}" for label, value in rows),
                verdict,
            ]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(label)}</td><td>{html.escape(value)}</td></tr>"
            for label, value in [*_rows(self), ("verdict", self.verdict)]
        )
        return (
            f"<table><caption>Mixing matrix, {self.size} × {self.size}, for DGD, CTA and ATC</caption>{cells}</table>"
        )


def check_mixing(W: object, /) -> MixingReport:
    """Report on a mixing matrix: its sums, its connections, its spectrum, and a verdict.

    Parameters
    ----------
    W
        Array-like, shape (Q, Q); row q receives.

    Returns
    -------
    MixingReport
        With a text form for the terminal and a table for the notebook.

    Raises
    ------
    TypeError, ValueError
        Only if W is not a square matrix of finite real numbers; all else is reported.

    Notes
    -----
    Costs one eigenvalue decomposition, O(Q³).

    Examples
    --------
    >>> print(check_mixing([[0, 1], [1, 0]]).verdict[:28])
    works, but oscillates: an ei

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    .. [2] K. Yuan, Q. Ling, W. Yin, "On the convergence of decentralized gradient descent",
       SIAM Journal on Optimization 26 (2016).
    """
    matrix = square_matrix(W).copy()
    components = _components(matrix)
    worst_row, worst_column = (_worst(matrix.sum(axis=axis)) for axis in (1, 0))
    eigenvalues = _eigenvalues(matrix)
    has_perron = len(components) == 1 and abs(worst_row[1]) <= TOLERANCE
    return MixingReport(
        matrix=matrix,
        worst_row=worst_row,
        worst_column=worst_column,
        components=components,
        aperiodic=all(_period(matrix[np.ix_(c, c)] != 0) <= 1 for c in components),
        eigenvalues=eigenvalues,
        perron_left=_perron_left(matrix, eigenvalues) if has_perron else None,
    )


# --- what can be wrong, and what to do: shared by the door and the report ---


def _sums_fault(W: np.ndarray, stochastic: Literal["row", "column", "doubly"]) -> str | None:
    """Name the line whose sum is farthest from one, and the remedy; None if all sums are one."""
    sums = {"row": W.sum(axis=1), "column": W.sum(axis=0)}
    failing = [line for line in sums if abs(_worst(sums[line])[1]) > TOLERANCE]
    required = list(sums) if stochastic == "doubly" else [stochastic]
    line = next((line for line in required if line in failing), None)
    if line is None:
        return None
    worst, _ = _worst(sums[line])
    found = f"{line} {worst} sums to {sums[line][worst]:.12g}, not 1"
    if stochastic == "doubly":
        return f"{found}: metropolis(graph) of an undirected graph has row and column sums 1"
    if len(failing) == 1:
        other = "column" if line == "row" else "row"
        return f"{found}, but the {other} sums are 1 (row q receives): transpose it, W.T"
    unscalable = np.flatnonzero(abs(sums[line]) <= TOLERANCE)
    if len(unscalable):
        return f"{found}: give {line} {unscalable[0]} weights, now they sum to 0"
    axis = 1 if line == "row" else 0
    return f"{found}: scale it, in float64, W / W.sum(axis={axis}, keepdims=True)"


def _connection_fault(components: list[list[int]]) -> str | None:
    if len(components) == 1:
        return None
    first, second = components[0][0], components[1][0]
    return (
        f"falls into {len(components)} components, {_shortened(components)}, so it is not "
        f"connected: add an edge {first}–{second}, both ways" + (", and so on" if len(components) > 2 else "")
    )


def _obstacle(report: MixingReport) -> str | None:
    """The first reason why W cannot work, with its remedy."""
    if fault := _sums_fault(report.matrix, "row") or _connection_fault(report.components):
        return fault
    # Stochastic weights on a connected graph pass the rest: only negative ones can break it.
    if report.nonnegative:
        return None
    others = _without_one(report.eigenvalues)
    if report.second_modulus > 1 + _EIGENVALUE_TOLERANCE:
        tamed = abs(1 + others).max() / 2 < 1 - _EIGENVALUE_TOLERANCE
        return f"an eigenvalue of modulus {report.second_modulus:.6g} makes disagreement grow: " + (
            "use lazy(W)" if tamed else "use metropolis(graph)"
        )
    if report.perron_left is None:
        return "the eigenvalue 1 is repeated, so disagreement persists: use metropolis(graph)"
    agent = int(report.perron_left.argmin())
    if report.perron_left[agent] < -TOLERANCE:
        return (
            f"agent {agent}'s loss has the weight {report.perron_left[agent]:.4g} < 0 in what the "
            "agents minimise: use metropolis(graph)"
        )
    return None


def _reservations(report: MixingReport) -> Iterator[str]:
    """What a user of a W that works will wonder at, each with its remedy."""
    if not report.column_stochastic and report.perron_left is not None:
        low, high = report.perron_left.min(), report.perron_left.max()
        yield (
            f"biased: agent q's loss counts with weight π_q, from {low:.4g} to {high:.4g}, instead "
            f"of {1 / report.size:.4g} (metropolis(graph) counts all alike)"
        )
    others = _without_one(report.eigenvalues)
    at_one = abs(others - 1) <= _EIGENVALUE_TOLERANCE
    on_circle = abs(others) >= 1 - _EIGENVALUE_TOLERANCE
    if not report.aperiodic or np.any(on_circle & ~at_one):
        yield (
            "oscillates: an eigenvalue other than 1 has modulus 1, so mixing alone never damps "
            "that part of the disagreement, and DGD can diverge at any step size (use lazy(W))"
        )
    elif report.second_modulus > 0.5 ** (1 / _SLOW_ROUNDS):
        rounds = np.log(2) / max(report.spectral_gap, np.finfo(float).eps)
        yield (
            f"slow: mixing takes about {rounds:.3g} rounds to halve the disagreement "
            f"(add links, as in exponential({report.size}))"
        )


# --- the linear algebra ---


def _worst(sums: Float[np.ndarray, " Q"]) -> tuple[int, float]:
    worst = int(abs(sums - 1).argmax())
    return worst, float(sums[worst] - 1)


def _symmetric(W: np.ndarray) -> bool:
    return bool(np.allclose(W, W.T, rtol=0, atol=TOLERANCE))


def _components(W: Float[np.ndarray, "Q Q"]) -> list[list[int]]:
    """Strongly connected components of the nonzeros, each sorted, by their smallest agent."""
    _, labels = connected_components(csr_array(W != 0), connection="strong")
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels))[:-1]
    return sorted(group.tolist() for group in np.split(order, ends))


def _period(links: Bool[np.ndarray, "q q"]) -> int:
    """Greatest common divisor of the closed walks' lengths in a strong component (0: it has none).

    With ℓ the distance from any fixed node, it is the gcd of ℓ(i) + 1 − ℓ(j) over the links i → j
    (Denardo 1977).
    """
    order, parent = breadth_first_order(csr_array(links), 0)
    level = np.zeros(len(links), dtype=int)
    for node in order[1:]:
        level[node] = level[parent[node]] + 1
    tails, heads = np.nonzero(links)
    return int(np.gcd.reduce(level[tails] + 1 - level[heads]))


def _eigenvalues(W: Float[np.ndarray, "Q Q"]) -> Inexact[np.ndarray, " Q"]:
    values = np.linalg.eigvalsh((W + W.T) / 2) if _symmetric(W) else np.linalg.eigvals(W)
    return values[np.argsort(-abs(values), kind="stable")]


def _without_one(eigenvalues: Inexact[np.ndarray, " Q"]) -> np.ndarray:
    return np.delete(eigenvalues, abs(eigenvalues - 1).argmin())


def _perron_left(W: Float[np.ndarray, "Q Q"], eigenvalues: Inexact[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"] | None:
    """Solve (I − Wᵀ) π = 0 with Σ π_q = 1, for a W with row sums one on a connected graph."""
    repeated = abs(_without_one(eigenvalues) - 1).min(initial=np.inf) <= _EIGENVALUE_TOLERANCE
    if repeated and W.min() < 0:  # nonnegative weights cannot repeat it, they can only come close
        return None
    system = np.eye(len(W)) - W.T
    system[-1] = 1.0  # the equations add up to 0 = 0, so any one of them makes room for the sum
    return np.linalg.solve(system, np.eye(len(W))[-1])


# --- text ---


def _rows(report: MixingReport) -> list[tuple[str, str]]:
    def yes(fact: bool, otherwise: str = "") -> str:
        return "yes" if fact else "no" + (f", {otherwise}" if otherwise else "")

    def sum_of(line: str, worst: tuple[int, float]) -> str:
        return f"{line} {worst[0]} sums to {1 + worst[1]:.12g}"

    rows = [
        ("row sums are 1", yes(report.row_stochastic, sum_of("row", report.worst_row))),
        ("column sums are 1", yes(report.column_stochastic, sum_of("column", report.worst_column))),
        ("symmetric", yes(report.symmetric)),
        ("nonnegative", yes(report.nonnegative, f"down to {report.matrix.min():.6g}")),
        ("connected", yes(report.connected, f"{len(report.components)} components")),
        ("aperiodic", yes(report.aperiodic)),
        ("second modulus", f"{report.second_modulus:.6g}"),
        ("spectral gap", f"{report.spectral_gap:.6g}"),
        ("smallest eigenvalue", f"{report.smallest_eigenvalue:.6g}"),
    ]
    if report.perron_left is not None:
        low, high = report.perron_left.min(), report.perron_left.max()
        even = high - low <= TOLERANCE
        rows.append(("Perron weights π", f"{low:.6g} each" if even else f"{low:.6g} to {high:.6g}"))
    return rows


def _shortened(components: list[list[int]], most: int = 4) -> str:
    """{0, 1, 2} {3, 4} …, with the middle of long lists left out."""
    shown = ["{" + ", ".join(map(str, c[:most])) + (", …" if len(c) > most else "") + "}" for c in components[:most]]
    return " ".join(shown) + (" …" if len(components) > most else "")
