"""From a graph to a mixing matrix W, in which row q receives: x_q ← Σ_r W[q, r] x_r.

Every function here returns a plain float64 array. The constructions from an undirected graph
give a symmetric W with row and column sums one, so that mixing keeps the average.

Examples
--------
>>> import ntkp2p as p2p
>>> p2p.metropolis(p2p.graphs.path(3)).round(3)
array([[0.667, 0.333, 0.   ],
       [0.333, 0.333, 0.333],
       [0.   , 0.333, 0.667]])
"""

import warnings
from collections.abc import Callable

import networkx as nx
import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array, diags_array

from ntkp2p.base.checks import is_real
from ntkp2p.base.errors import InputError, InputTypeError, NotConvergedError
from ntkp2p.base.imports import needed
from ntkp2p.base.registry import Registry
from ntkp2p.topology.matrix import square_matrix, usual_weights

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

    Examples
    --------
    Of a complete graph, every weight is 1/Q:

    >>> import ntkp2p as p2p
    >>> p2p.metropolis(p2p.graphs.complete(4))
    array([[0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25],
           [0.25, 0.25, 0.25, 0.25]])

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    .. [2] S. Boyd, P. Diaconis, L. Xiao, "Fastest mixing Markov chain on a graph",
       SIAM Review 46 (2004).
    """
    return _metropolis(graph).toarray()


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

    Examples
    --------
    A star's hub has the degree 3:

    >>> import ntkp2p as p2p
    >>> p2p.max_degree(p2p.graphs.star(4))
    array([[0.25, 0.25, 0.25, 0.25],
           [0.25, 0.75, 0.  , 0.  ],
           [0.25, 0.  , 0.75, 0.  ],
           [0.25, 0.  , 0.  , 0.75]])

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    """
    links = adjacency(graph)
    return _completed(links / (1 + links.sum(axis=1).max()))


def best_constant(graph: nx.Graph, /) -> Float[np.ndarray, "Q Q"]:
    """The one weight on all links that averages fastest: W = I − α L with α = 2/(λ₂ + λ_n).

    L is the graph's Laplacian, λ₂ its smallest eigenvalue above 0, and λ_n its largest [1]_.

    Parameters
    ----------
    graph
        As in `metropolis`.

    Returns
    -------
    ndarray, shape (Q, Q)
        Symmetric, with row and column sums one. Self-weights may be negative, as in a star.

    Raises
    ------
    TypeError, ValueError
        As `metropolis`.

    Examples
    --------
    The Laplacian of a star of Q has the eigenvalues 0, 1 and Q, so that α = 2/(Q + 1):

    >>> import ntkp2p as p2p
    >>> p2p.best_constant(p2p.graphs.star(4)).round(10)
    array([[-0.2,  0.4,  0.4,  0.4],
           [ 0.4,  0.6,  0. ,  0. ],
           [ 0.4,  0. ,  0.6,  0. ],
           [ 0.4,  0. ,  0. ,  0.6]])

    References
    ----------
    .. [1] L. Xiao, S. Boyd, "Fast linear iterations for distributed averaging",
       Systems & Control Letters 53 (2004).
    """
    links = adjacency(graph)
    spectrum = np.linalg.eigvalsh(np.diag(links.sum(axis=1)) - links)
    # A component has one eigenvalue 0.
    ends = spectrum[nx.number_connected_components(graph) :]
    return _completed(links * (2 / (ends[0] + ends[-1]))) if len(ends) else np.eye(len(links))


def push_weights(graph: nx.Graph, /) -> Float[np.ndarray, "Q Q"]:
    """Push-sum's weights: every agent shares its value alike between itself and those that it sends to.

    P[v, u] = 1/(1 + d_u) for v = u and for every edge u → v, d_u the number of edges that leave u.

    Parameters
    ----------
    graph
        Without self-loops, directed or not, u sending to v over the edge u → v; rows follow the graph's own node order.

    Returns
    -------
    ndarray, shape (Q, Q)
        Nonnegative with a positive diagonal; the columns sum to one, the rows in general do not.

    Raises
    ------
    TypeError, ValueError
        If it is no networkx graph, or a multigraph, empty or with self-loops.

    Examples
    --------
    Who sends to one other keeps a half:

    >>> import ntkp2p as p2p
    >>> p2p.push_weights(p2p.graphs.directed_ring(3))
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])

    References
    ----------
    .. [1] A. Nedić, A. Olshevsky, "Distributed optimization over time-varying directed graphs",
       IEEE Transactions on Automatic Control 60 (2015).
    """
    return _push(graph).toarray()


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
    NotConvergedError
        If the solver does not reach its accuracy.
    TypeError, ValueError
        As `metropolis`.

    Notes
    -----
    The modulus is the least one to about 1e-8. Unlike the other weights it takes a solver: 6 seconds for 50 agents
    with 382 links on 2 cores, 18 seconds for 70 with 513.

    Examples
    --------
    On a cycle of 6 the least modulus is 0.6, where Metropolis weights have 2/3:

    >>> import ntkp2p as p2p
    >>> W = p2p.fastest_mixing(p2p.graphs.cycle(6))
    >>> round(p2p.check_mixing(W).second_modulus, 6)
    0.6

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

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.lazy([[0, 1], [1, 0]])
    array([[0.5, 0.5],
           [0.5, 0.5]])

    References
    ----------
    .. [1] S. Boyd, P. Diaconis, L. Xiao, "Fastest mixing Markov chain on a graph",
       SIAM Review 46 (2004).
    """
    matrix = square_matrix(W)
    return (np.eye(len(matrix)) + matrix) / 2


def mixing_of(graph: nx.Graph, /) -> tuple[csr_array, str]:
    """The matrix of a graph, sparse, in its own node order, and where its weights come from.

    Parameters
    ----------
    graph
        With the edge attribute ``weight`` on all edges: W[v, u] is that of the edge u → v, u sends to v; a self-loop's
        is the agent's weight on itself. Without weights: `metropolis` of an undirected graph, `push_weights` of a
        directed one.

    Raises
    ------
    TypeError, ValueError
        If some edges have weights and some have none, or a weight is no real number; or as `push_weights`.
    """
    given = [(u, v, weight) for u, v, weight in graph.edges(data="weight")]
    without = next(((u, v) for u, v, weight in given if weight is None), None)
    if graph.is_multigraph() or not given or all(weight is None for _, _, weight in given):
        return _usual(graph), f"the graph has no weights: {usual_weights(graph)}(graph)"
    if without is not None:
        raise InputError(
            f"the edge {without[0]}–{without[1]} has no weight and others have: give all edges one, or none"
        )
    for u, v, weight in given:
        if not is_real(weight):
            raise InputTypeError(f"the edge {u}–{v} has the weight {weight!r}: every weight is to be a real number")
    return csr_array(nx.to_scipy_sparse_array(graph, dtype=float).T), "weights of the graph's edges"


def _lazy_metropolis(graph: nx.Graph) -> Float[np.ndarray, "Q Q"]:
    return lazy(metropolis(graph))


#: The weights that a name can ask for; the one place that knows the names. ``lazy_NAME`` is `lazy` of those of NAME.
WEIGHTS: Registry[Callable[[nx.Graph], np.ndarray]] = Registry(
    "weights",
    {
        "metropolis": metropolis,
        "max_degree": max_degree,
        "best_constant": best_constant,
        "lazy_metropolis": _lazy_metropolis,
        "fastest_mixing": fastest_mixing,
        "push": push_weights,
    },
)


def from_graph(graph: nx.Graph, weights: str | None = None) -> Float[np.ndarray, "Q Q"]:
    """Weigh a graph's links by a name in `WEIGHTS`, or as `mixing_of` does.

    Raises
    ------
    InputError
        If the name is unknown, or a user-defined function returns no square matrix of finite numbers.
    """
    if weights is None:
        return _usual(graph).toarray()
    return square_matrix(WEIGHTS[weights](graph), name=f"what {weights} returns")


def usual_name(graph: nx.Graph) -> str:
    """The name in `WEIGHTS` of the weights that a graph has where none are named."""
    return next(name for name, weigh in WEIGHTS.items() if weigh.__name__ == usual_weights(graph))


def adjacency(graph: object) -> Float[np.ndarray, "Q Q"]:
    """Zeros and ones in the graph's node order, for a simple undirected graph and no other."""
    return links_of(graph).toarray().astype(np.float64)


def links_of(graph: object, *, directed: bool = False) -> coo_array:
    """Ones at [u, v] for the edges u → v of a simple graph, which may be directed only where that is said."""
    if not isinstance(graph, nx.Graph):
        raise InputTypeError(f"links are those of a networkx Graph, got {type(graph).__name__}")
    if graph.is_directed() and not directed:
        raise InputError(
            "the graph is directed, and this is for links that go both ways: take push_weights(graph) for push-sum, "
            "by name 'push', or use graph.to_undirected()"
        )
    if graph.is_multigraph():
        kind = "DiGraph" if graph.is_directed() else "Graph"
        raise InputError(f"the graph is a multigraph: merge its parallel edges with nx.{kind}(graph)")
    if len(graph) == 0:
        raise InputError("the graph has no nodes: add one node per agent")
    loops = list(nx.nodes_with_selfloops(graph))
    if loops:
        raise InputError(
            f"the graph has a self-loop at node {loops[0]!r}, where W puts what the links leave: "
            "drop them with graph.remove_edges_from(nx.selfloop_edges(graph))"
        )
    return coo_array(nx.to_scipy_sparse_array(graph, weight=None, format="coo"))  # pyright: ignore (stubs lag)


def _usual(graph: nx.Graph) -> csr_array:
    """What a graph is given where no weights are named."""
    return {"metropolis": _metropolis, "push_weights": _push}[usual_weights(graph)](graph)


def _metropolis(graph: object) -> csr_array:
    links = links_of(graph)
    degrees, (i, j) = links.sum(axis=1), links.coords
    weights = coo_array((1 / (1.0 + np.maximum(degrees[i], degrees[j])), (i, j)), links.shape)
    return csr_array(weights + diags_array(1 - weights.sum(axis=1)))


def _push(graph: object) -> csr_array:
    links = links_of(graph, directed=True)
    shares = diags_array(1 / (1.0 + links.sum(axis=1)))
    return csr_array(links.T @ shares + shares)


def _fastest_weights(links: Int[np.ndarray, "E 2"], agents: int, nonnegative: bool) -> Float[np.ndarray, " E"]:
    """One weight for each link of a connected graph, by the semidefinite program; free of the solver's rounding."""
    with needed("fastest_mixing", "optimal"):
        import clarabel  # noqa: F401  (cvxpy finds it by itself)
        import cvxpy as cp
    incidence = np.eye(agents)[links[:, 0]] - np.eye(agents)[links[:, 1]]
    weights, modulus = cp.Variable(len(links)), cp.Variable()
    mixing, bound = np.eye(agents) - incidence.T @ cp.diag(weights) @ incidence, modulus * np.eye(agents)
    # Without 11ᵀ/Q below, where it changes nothing: so that matrix is as sparse as the graph.
    constraints: list[cp.Constraint] = [mixing - 1 / agents << bound, mixing >> -bound]
    if nonnegative:
        constraints += [weights >= 0, abs(incidence).T @ weights <= 1]
    problem = cp.Problem(cp.Minimize(modulus), constraints)
    # A graph with almost all links can end just short of the accuracy asked for; unscaled, it gets there.
    for scaled in (True, False):
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the status says as much
            problem.solve(solver=cp.CLARABEL, equilibrate_enable=scaled)
        if problem.status == cp.OPTIMAL:
            break
    if problem.status != cp.OPTIMAL:
        raise NotConvergedError(f"the solver for the fastest mixing ends as {problem.status}: use metropolis(graph)")
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
