"""From a graph to a mixing matrix W, in which row q receives: x_q ← Σ_r W[q, r] x_r.

Every function here returns a plain float64 array. The constructions from an undirected graph
give a symmetric W with row and column sums one, so that mixing keeps the average.

Examples
--------
>>> import networkx as nx
>>> metropolis(nx.path_graph(3)).round(3)
array([[0.667, 0.333, 0.   ],
       [0.333, 0.333, 0.333],
       [0.   , 0.333, 0.667]])
"""

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from ntkp2p._names import lookup
from ntkp2p.topology._matrix import square_matrix

# Weights of links that a solver finds smaller than this are none.
_SOLVER_ROUNDING = 1e-8


def metropolis(graph: nx.Graph, /) -> Float[np.ndarray, "Q Q"]:
    """Metropolis weights: each link weighs 1/(1 + the larger degree of its two ends).

    W[i, j] = 1 / (1 + max(d_i, d_j)) on the links, and W[i, i] = 1 − Σ_{j≠i} W[i, j].

    Parameters
    ----------
    graph
        An undirected graph without self-loops; rows follow the graph's own node order, and edge
        attributes are not read.

    Returns
    -------
    ndarray, shape (Q, Q)
        Symmetric, doubly stochastic, and nonnegative with a positive diagonal.

    Raises
    ------
    TypeError, ValueError
        If it is no networkx graph, or one that is directed, a multigraph, empty or with self-loops.

    Notes
    -----
    The variant with the 1 in the denominator, so that every agent keeps a positive weight on itself
    and no graph makes W periodic. Metropolis–Hastings is sometimes written 1/max(d_i, d_j) [2]_.

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    .. [2] S. Boyd, P. Diaconis, L. Xiao, "Fastest mixing Markov chain on a graph",
       SIAM Review 46 (2004).
    """
    links = adjacency(graph)
    degrees = links.sum(axis=1)
    return _completed(links / (1 + np.maximum.outer(degrees, degrees)))


def max_degree(graph: nx.Graph, /) -> Float[np.ndarray, "Q Q"]:
    """Maximum-degree weights: every link weighs 1/(1 + d_max).

    W = I − L/(1 + d_max) with L the graph's Laplacian and d_max its largest degree.

    Parameters
    ----------
    graph
        As in `metropolis`.

    Returns
    -------
    ndarray, shape (Q, Q)
        Symmetric, doubly stochastic, and nonnegative with a positive diagonal.

    Raises
    ------
    TypeError, ValueError
        As `metropolis`.

    Notes
    -----
    The variant with the 1 in the denominator. The 1/d_max of [1]_ mixes faster on some graphs, but
    leaves a regular bipartite graph, such as an even cycle, periodic.

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    """
    links = adjacency(graph)
    return _completed(links / (1 + links.sum(axis=1).max()))


def fastest_mixing(graph: nx.Graph, /, *, nonnegative: bool = True) -> Float[np.ndarray, "Q Q"]:
    """Symmetric weights of the fastest averaging: the second-largest eigenvalue modulus is the least possible.

    W = I − Σ_e w_e L_e, with one weight w_e for each link and L_e the Laplacian of that link alone, minimises
    ‖W − 11ᵀ/Q‖₂: a semidefinite program. In a disconnected graph, each component has its own.

    Parameters
    ----------
    graph
        As in `metropolis`.
    nonnegative
        True: no weight is negative, on the diagonal neither; the fastest mixing Markov chain [2]_. False: weights of
        any sign, the fastest distributed linear averaging [1]_, which is as fast or faster.

    Returns
    -------
    ndarray, shape (Q, Q)
        Symmetric, with row and column sums one, zero where there is no link. A link may weigh nothing, and so may an
        agent's own value.

    Raises
    ------
    ImportError
        Without cvxpy and Clarabel.
    RuntimeError
        If the solver does not reach its accuracy.
    TypeError, ValueError
        As `metropolis`.

    Notes
    -----
    The modulus is the least one to about 1e-8. Unlike the other weights it takes a solver: 6 seconds for 50 agents
    with 382 links on 2 cores, 18 seconds for 70 with 513.

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    .. [2] S. Boyd, P. Diaconis, L. Xiao, "Fastest mixing Markov chain on a graph",
       SIAM Review 46 (2004).
    """
    links = adjacency(graph)
    weights = np.zeros_like(links)
    for component in nx.connected_components(nx.from_numpy_array(links)):
        agents = sorted(component)
        ends = np.argwhere(np.triu(links[np.ix_(agents, agents)]))
        if len(ends):
            i, j = np.array(agents)[ends.T]
            weights[i, j] = weights[j, i] = _fastest_weights(ends, len(agents), nonnegative)
    return _completed(weights)


def lazy(W: ArrayLike, /) -> Float[np.ndarray, "Q Q"]:
    """Lazy version of a mixing matrix, (I + W)/2: each agent keeps half of its own value.

    Every eigenvalue λ becomes (1 + λ)/2, so that a symmetric stochastic W loses its negative
    eigenvalues (and with them its oscillation) at the price of half the spectral gap.

    Parameters
    ----------
    W
        Any square matrix of finite real numbers, shape (Q, Q).

    Returns
    -------
    ndarray, shape (Q, Q)
        Row and column sums that were one stay one.

    Raises
    ------
    TypeError, ValueError
        If W is not a square matrix of finite real numbers.

    References
    ----------
    .. [1] S. Boyd, P. Diaconis, L. Xiao, "Fastest mixing Markov chain on a graph",
       SIAM Review 46 (2004).
    """
    matrix = square_matrix(W)
    return (np.eye(len(matrix)) + matrix) / 2


def _lazy_metropolis(graph: nx.Graph) -> Float[np.ndarray, "Q Q"]:
    return lazy(metropolis(graph))


#: The weights that a name can ask for; the one place that knows the names.
WEIGHTS: Mapping[str, Callable[[nx.Graph], np.ndarray]] = {
    "metropolis": metropolis,
    "max_degree": max_degree,
    "lazy_metropolis": _lazy_metropolis,
    "fastest_mixing": fastest_mixing,
}


def from_graph(graph: nx.Graph, weights: str = "metropolis") -> Float[np.ndarray, "Q Q"]:
    """Weigh a graph's links by a name in `WEIGHTS`; an unknown name raises ValueError."""
    return lookup(WEIGHTS, weights, "weights")(graph)


def load_mixing(path: str | os.PathLike[str], /) -> Float[np.ndarray, "Q Q"]:
    """Read a mixing matrix from a file; `validate_mixing` says whether it suits an algorithm.

    Parameters
    ----------
    path
        ``.csv``: one line per row, numbers separated by commas, no header.
        ``.npy``: what ``np.save(path, W)`` wrote. Pickled (object) arrays are refused, because
        opening a pickle runs whatever code it carries.

    Returns
    -------
    ndarray, shape (Q, Q)
        Square and finite, in float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If the file does not hold one square matrix of finite real numbers; rows are counted from 1,
        as an editor counts them.
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        raise ValueError(
            f"{path}: a mixing matrix is read from .csv or .npy, not {path.suffix!r}: "
            "save it with np.save('W.npy', W) or np.savetxt('W.csv', W, delimiter=',')"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file to read a mixing matrix from")
    return square_matrix(_READERS[path.suffix.lower()](path), name=str(path))


def adjacency(graph: object) -> Float[np.ndarray, "Q Q"]:
    """Zeros and ones in the graph's node order, for a simple undirected graph and no other."""
    if not isinstance(graph, nx.Graph):
        raise TypeError(f"weights are built from a networkx Graph, got {type(graph).__name__}")
    if graph.is_directed():
        raise ValueError(
            "the graph is directed, and these weights are for links that go both ways: use graph.to_undirected()"
        )
    if graph.is_multigraph():
        raise ValueError("the graph is a multigraph: merge its parallel edges with nx.Graph(graph)")
    if len(graph) == 0:
        raise ValueError("the graph has no nodes: add one node per agent")
    loops = list(nx.nodes_with_selfloops(graph))
    if loops:
        raise ValueError(
            f"the graph has a self-loop at node {loops[0]!r}, where W puts what the links leave: "
            "drop them with graph.remove_edges_from(nx.selfloop_edges(graph))"
        )
    return nx.to_numpy_array(graph, weight=None)  # pyright: ignore[reportArgumentType] (stubs lag)


def _fastest_weights(links: Int[np.ndarray, "E 2"], agents: int, nonnegative: bool) -> Float[np.ndarray, " E"]:
    """One weight for each link of a connected graph, by the semidefinite program; free of the solver's rounding."""
    try:
        import clarabel  # noqa: F401  (cvxpy finds it by itself)
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("fastest_mixing needs cvxpy and Clarabel: pip install 'ntkp2p[optimal]'") from error
    incidence = np.eye(agents)[links[:, 0]] - np.eye(agents)[links[:, 1]]
    weights, modulus = cp.Variable(len(links)), cp.Variable()
    mixing, bound = np.eye(agents) - incidence.T @ cp.diag(weights) @ incidence, modulus * np.eye(agents)
    # Without 11ᵀ/Q below, where it changes nothing: so that matrix is as sparse as the graph.
    constraints: list[cp.Constraint] = [mixing - 1 / agents << bound, mixing >> -bound]
    if nonnegative:
        constraints += [weights >= 0, abs(incidence).T @ weights <= 1]
    problem = cp.Problem(cp.Minimize(modulus), constraints)
    problem.solve(solver=cp.CLARABEL)
    if problem.status != cp.OPTIMAL:
        raise RuntimeError(f"the solver for the fastest mixing ends as {problem.status}: use metropolis(graph)")
    found = np.array(weights.value)
    found[abs(found) < _SOLVER_ROUNDING] = 0
    if not nonnegative:
        return found
    found = found.clip(min=0)
    # If some agent's links weigh more than one, all are scaled to just below, which leaves its own weight nonnegative.
    return found / max(1.0, (abs(incidence).T @ found).max() + 1e-12)


def _completed(off_diagonal: Float[np.ndarray, "Q Q"]) -> Float[np.ndarray, "Q Q"]:
    """Fill the diagonal with what is left of one."""
    return off_diagonal + np.diag(1 - off_diagonal.sum(axis=1))


def _read_csv(path: Path) -> list[list[float]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text: a .csv holds numbers separated by commas") from None
    table = [(row, cells) for row, cells in enumerate(csv.reader(lines), start=1) if cells]
    if not table:
        raise ValueError(f"{path} is empty: write one line of comma-separated numbers per agent")
    first, header = table[0]
    if not any(_is_number(cell) for cell in header):
        raise ValueError(
            f"{path}, row {first} holds no number but {','.join(header)[:40]!r}: "
            "delete the header row, and separate numbers by commas"
        )
    return [_read_row(path, row, cells, width=len(header)) for row, cells in table]


def _read_row(path: Path, row: int, cells: list[str], *, width: int) -> list[float]:
    for column, cell in enumerate(cells, start=1):
        if not _is_number(cell):
            raise ValueError(
                f"{path}, row {row}, column {column} is {cell!r}, not a number: write numbers only "
                "(from pandas: to_csv(path, header=False, index=False))"
            )
    if len(cells) != width:
        raise ValueError(
            f"{path}, row {row} has {len(cells)} numbers where the first row has {width}: "
            "give every row one number per agent"
        )
    return [float(cell) for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_npy(path: Path) -> np.ndarray:
    # Not np.load: that would also open a zip archive which is merely called .npy.
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole .npy file of numbers; pickled arrays are refused: "
            "save it with np.save(path, W.astype(float))"
        ) from error


_READERS = {".csv": _read_csv, ".npy": _read_npy}
