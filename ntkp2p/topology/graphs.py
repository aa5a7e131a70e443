"""Graphs of agents: networkx graphs with the nodes 0, 1, …, n − 1.

An edge u → v of a directed graph says that u sends to v; undirected links go both ways. Any other networkx graph serves
as well; these are the ones with a name, which `from_spec` reads, and which show and draw themselves.

Examples
--------
>>> import ntkp2p as p2p
>>> p2p.graphs.star(4)
Graph(star:4, 4 agents, 3 links)
>>> sorted(p2p.graphs.star(4).edges)
[(0, 1), (0, 2), (0, 3)]
>>> p2p.graphs.from_spec("grid:4,5").number_of_nodes()
20
"""

import math
from collections.abc import Callable
from typing import TypeVar

import networkx as nx
import numpy as np

from ntkp2p.base.checks import Count
from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry, parameters_of
from ntkp2p.base.specs import arguments_of, named_in, required
from ntkp2p.topology.graph import DiGraph, Graph
from ntkp2p.topology.sizes import sizes_of
from ntkp2p.topology.weights import links_of

AnyGraph = TypeVar("AnyGraph", bound=nx.Graph)


def cycle(n: Count) -> Graph:
    """Ring of n ≥ 3 agents, each linked to the one before and the one after.

    Parameters
    ----------
    n
        The number of agents.

    Returns
    -------
    Graph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 3.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.cycle(4).edges)
    [(0, 1), (0, 3), (1, 2), (2, 3)]
    """
    (n,) = sizes_of("cycle", -math.inf, n=n)
    if n < 3:
        raise InputError(f"cycle(n) needs n >= 3, got {n}: use path({max(n, 1)})")
    return Graph.of(nx.cycle_graph(n), f"cycle:{n}")


def star(n: Count) -> Graph:
    """Star of n ≥ 2 agents: node 0 is the hub, the other n − 1 are its leaves.

    Parameters
    ----------
    n
        The number of agents.

    Returns
    -------
    Graph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 2.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.star(4).edges)
    [(0, 1), (0, 2), (0, 3)]
    """
    (n,) = sizes_of("star", -math.inf, n=n)
    if n < 2:
        raise InputError(f"star(n) needs n >= 2, got {n}: use path(1) for a single agent")
    return Graph.of(nx.star_graph(n - 1), f"star:{n}")


def complete(n: Count) -> Graph:
    """All n ≥ 1 agents linked to one another.

    Parameters
    ----------
    n
        The number of agents.

    Returns
    -------
    Graph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1.

    Examples
    --------
    The n (n − 1)/2 links of all pairs:

    >>> import ntkp2p as p2p
    >>> p2p.graphs.complete(6).number_of_edges()
    15
    """
    (n,) = sizes_of("complete", 1, n=n)
    return Graph.of(nx.complete_graph(n), f"complete:{n}")


def path(n: Count) -> Graph:
    """Line of n ≥ 1 agents.

    Parameters
    ----------
    n
        The number of agents.

    Returns
    -------
    Graph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.path(4).edges)
    [(0, 1), (1, 2), (2, 3)]
    """
    (n,) = sizes_of("path", 1, n=n)
    return Graph.of(nx.path_graph(n), f"path:{n}")


def grid(rows: Count, columns: Count) -> Graph:
    """Rectangular grid; the agent in row i and column j is node i · columns + j.

    Parameters
    ----------
    rows, columns
        Its sizes, both at least 1.

    Returns
    -------
    Graph
        On the nodes 0, …, rows · columns − 1.

    Raises
    ------
    ValueError
        If a size is below 1.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.grid(2, 3).neighbors(4))
    [1, 3, 5]
    """
    rows, columns = sizes_of("grid", 1, rows=rows, columns=columns)
    return _numbered(nx.grid_2d_graph(rows, columns), f"grid:{rows},{columns}")


def torus(rows: Count, columns: Count) -> Graph:
    """Grid whose rows and columns close into rings; numbered as `grid`.

    Parameters
    ----------
    rows, columns
        Its sizes, both at least 3.

    Returns
    -------
    Graph
        On the nodes 0, …, rows · columns − 1; every agent has 4 neighbours.

    Raises
    ------
    ValueError
        If a size is below 3.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.torus(3, 4).neighbors(0))
    [1, 3, 4, 8]
    """
    rows, columns = sizes_of("torus", -math.inf, rows=rows, columns=columns)
    if rows < 3 or columns < 3:
        raise InputError(
            f"torus(rows, columns) needs both >= 3, got {rows} and {columns}: "
            f"use grid({max(rows, 1)}, {max(columns, 1)})"
        )
    return _numbered(nx.grid_2d_graph(rows, columns, periodic=True), f"torus:{rows},{columns}")


def hypercube(dimension: Count) -> Graph:
    """Hypercube of 2^dimension agents: i and j are linked when they differ in one binary digit.

    Parameters
    ----------
    dimension
        The number of binary digits, at least 1, and of every agent's neighbours.

    Returns
    -------
    Graph
        On the nodes 0, …, 2^dimension − 1.

    Raises
    ------
    ValueError
        If the dimension is below 1.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.hypercube(3).neighbors(0))
    [1, 2, 4]
    """
    (dimension,) = sizes_of("hypercube", -math.inf, dimension=dimension)
    if dimension < 1:
        raise InputError(f"hypercube(dimension) needs dimension >= 1, got {dimension}: use path(1) for a single agent")
    return _numbered(nx.hypercube_graph(dimension), f"hypercube:{dimension}")


def exponential(n: Count) -> Graph:
    """Undirected exponential graph: i is linked to i ± 2^j mod n for every 2^j < n.

    The static exponential graph of [1]_ with its links taken both ways.

    Parameters
    ----------
    n
        The number of agents, at least 1.

    Returns
    -------
    Graph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.exponential(8).neighbors(0))
    [1, 2, 4, 6, 7]

    References
    ----------
    .. [1] B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential graph is provably
       efficient for decentralized deep training", NeurIPS 2021.
    """
    (n,) = sizes_of("exponential", 1, n=n)
    return Graph.of(nx.circulant_graph(n, [2**j for j in range((n - 1).bit_length())]), f"exponential:{n}")


def erdos_renyi(n: Count, p: float, *, seed: int = 0) -> Graph:
    """Random graph in which each pair of n agents is linked with probability p.

    Parameters
    ----------
    n
        The number of agents, at least 1.
    p
        The probability of a link.
    seed
        Of the draw.

    Returns
    -------
    Graph
        Connected, on the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1 or p is no probability, or if the draw is not connected: another seed or a larger p helps.
        As n grows, p > log(n)/n is where draws begin to be connected.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.graphs.erdos_renyi(5, 1.0).number_of_edges()  # with certainty all of them
    10
    """
    (n,) = sizes_of("erdos_renyi", 1, n=n)
    if not 0 <= p <= 1:
        raise InputError(f"erdos_renyi(n, p) needs a probability 0 <= p <= 1, got {p}")
    graph = Graph.of(nx.gnp_random_graph(n, p, seed=seed), f"erdos_renyi:{n},{p},seed={seed}")
    return _connected(graph, f"erdos_renyi({n}, {p}, seed={seed})", larger="p")


def random_geometric(n: Count, radius: float, *, seed: int = 0) -> Graph:
    """n agents dropped uniformly on the unit square, linked when at most `radius` apart.

    The positions are kept as the node attribute ``"pos"``, where networkx draws from.

    Parameters
    ----------
    n
        The number of agents, at least 1.
    radius
        The reach of an agent, above 0, the square's sides being 1.
    seed
        Of the draw.

    Returns
    -------
    Graph
        Connected, on the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1 or the radius is not positive, or if the draw is not connected: another seed or a larger
        radius helps.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.graphs.random_geometric(5, 1.5).number_of_edges()  # beyond √2 all are in reach
    10
    """
    (n,) = sizes_of("random_geometric", 1, n=n)
    if not radius > 0:
        raise InputError(f"random_geometric(n, radius) needs radius > 0, got {radius}")
    graph = Graph.of(nx.random_geometric_graph(n, radius, seed=seed), f"random_geometric:{n},{radius},seed={seed}")
    return _connected(graph, f"random_geometric({n}, {radius}, seed={seed})", larger="radius")


def directed_ring(n: Count) -> DiGraph:
    """Ring of n ≥ 2 agents, each of which sends to the next: i → i + 1 mod n.

    Parameters
    ----------
    n
        The number of agents.

    Returns
    -------
    DiGraph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 2.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.directed_ring(3).edges)
    [(0, 1), (1, 2), (2, 0)]
    """
    (n,) = sizes_of("directed_ring", -math.inf, n=n)
    if n < 2:
        raise InputError(f"directed_ring(n) needs n >= 2, got {n}: use path(1) for a single agent")
    return DiGraph.of(nx.cycle_graph(n, create_using=nx.DiGraph), f"directed_ring:{n}")


def directed_exponential(n: Count) -> DiGraph:
    """Exponential graph: i → i + 2^j mod n for every 2^j < n, so that everyone sends to ⌈log₂ n⌉ others.

    The static exponential graph of [1]_, in the direction in which an agent sends.

    Parameters
    ----------
    n
        The number of agents, at least 1.

    Returns
    -------
    DiGraph
        On the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.directed_exponential(8).successors(6))
    [0, 2, 7]

    References
    ----------
    .. [1] B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin, "Exponential graph is provably
       efficient for decentralized deep training", NeurIPS 2021.
    """
    (n,) = sizes_of("directed_exponential", 1, n=n)
    graph = DiGraph.of(nx.empty_graph(n, create_using=nx.DiGraph), f"directed_exponential:{n}")
    graph.add_edges_from((i, (i + 2**j) % n) for i in range(n) for j in range((n - 1).bit_length()))
    return graph


def directed_random(n: Count, p: float, *, seed: int = 0) -> DiGraph:
    """Random directed graph in which each of n agents sends to each other one with probability p.

    Parameters
    ----------
    n
        The number of agents, at least 1.
    p
        The probability of an edge, each direction by itself.
    seed
        Of the draw.

    Returns
    -------
    DiGraph
        Strongly connected, on the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If n < 1 or p is no probability, or if the draw is not strongly connected: another seed or a larger p
        helps. As n grows, p > log(n)/n is where draws begin to be.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.graphs.directed_random(5, 1.0).number_of_edges()  # with certainty all of them
    20
    """
    (n,) = sizes_of("directed_random", 1, n=n)
    if not 0 <= p <= 1:
        raise InputError(f"directed_random(n, p) needs a probability 0 <= p <= 1, got {p}")
    graph = DiGraph.of(nx.gnp_random_graph(n, p, seed=seed, directed=True), f"directed_random:{n},{p},seed={seed}")
    return _connected(graph, f"directed_random({n}, {p}, seed={seed})", larger="p")


def one_way(graph: nx.Graph, share: float, *, seed: int = 0) -> DiGraph:
    """Make a share of a graph's links one-way, at random, such that every agent still reaches every other.

    Of m links, round(share · m) that are no bridges lose one of their directions, whichever the toss of a coin says or,
    where that would cut some agents off, the other one: one of the two never does [1]_.

    Parameters
    ----------
    graph
        Connected, undirected and without self-loops. Nodes keep their order and attributes, edges lose theirs.
    share
        Between 0 and the share of links that are no bridges: a bridge is needed in both directions.
    seed
        Of all draws; the one-way links of a smaller share are among those of a larger one.

    Returns
    -------
    DiGraph
        Strongly connected; u → v: u sends to v.

    Raises
    ------
    TypeError, ValueError
        If the graph is none that `metropolis` takes, or not connected; if the share is not between 0 and 1, or larger
        than can be had: the message says which can.

    Examples
    --------
    Of 4 links, 2 keep one direction and 2 have both:

    >>> import ntkp2p as p2p
    >>> sorted(p2p.graphs.one_way(p2p.graphs.cycle(4), 0.5).edges)
    [(0, 3), (1, 0), (2, 1), (2, 3), (3, 0), (3, 2)]

    References
    ----------
    .. [1] F. Boesch, R. Tindell, "Robbins's theorem for mixed multigraphs",
       American Mathematical Monthly 87 (1980).
    """
    links_of(graph)  # refuses what has no links that go both ways
    if not 0 <= share <= 1:
        raise InputError(f"one_way(graph, share) needs a share 0 <= share <= 1, got {share}")
    if not nx.is_connected(graph):
        components = nx.number_connected_components(graph)
        raise InputError(f"one_way(graph, share) needs a connected graph, got {components} components: add links")
    bridges = {frozenset(link) for link in nx.bridges(graph)}
    others = [link for link in graph.edges if frozenset(link) not in bridges]
    links = graph.number_of_edges()
    count = round(share * links)
    if count > len(others):
        raise InputError(
            f"one_way(graph, {share}): {len(bridges)} of the {links} links are bridges, which some agents need in both "
            f"directions: take share <= {len(others)}/{links}, or add links"
        )
    directed = DiGraph()
    directed.add_nodes_from(graph.nodes(data=True))
    directed.add_edges_from(nx.DiGraph(graph).edges)
    rng = np.random.default_rng(seed)
    for place in rng.permutation(len(others))[:count]:
        u, v = others[place] if rng.random() < 0.5 else others[place][::-1]
        directed.remove_edge(u, v)
        if not nx.has_path(directed, u, v):
            directed.add_edge(u, v)
            directed.remove_edge(v, u)
    return directed


UNDIRECTED = (cycle, star, complete, path, grid, torus, hypercube, exponential, erdos_renyi, random_geometric)
DIRECTED = (directed_ring, directed_exponential, directed_random)

#: The graphs that a name can ask for; the one place that knows the names.
GRAPHS: Registry[Callable[..., nx.Graph]] = Registry(
    "graph", {build.__name__: build for build in (*UNDIRECTED, *DIRECTED)}, makes=nx.Graph
)


def from_spec(spec: str, /) -> nx.Graph:
    """Build a graph from text such as ``cycle:10`` or ``erdos_renyi:20,0.3,seed=1``.

    Parameters
    ----------
    spec
        A name in `GRAPHS`, a colon, and that function's arguments separated by commas. In place of the name
        ``package.module:Name``, a function of your own that returns a networkx graph: ``my.graphs:wheel:8``.

    Returns
    -------
    networkx.Graph or networkx.DiGraph
        The graph; those of `GRAPHS` are on the nodes 0, …, n − 1.

    Raises
    ------
    ValueError
        If the name is unknown, an argument is missing, unknown, given twice or not a number, or
        the function itself refuses the sizes.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.graphs.from_spec("hypercube:3").number_of_edges()
    12
    """
    name, arguments = arguments_of(GRAPHS, spec)
    return GRAPHS.make(name, **arguments)


def sized(spec: object, agents: int, /) -> str:
    """The text of a graph of an experiment: one that is named without a size takes the number of agents for it.

    Parameters
    ----------
    spec
        As for `from_spec`, or a name alone.
    agents
        Q, the number of agents.
    """
    name, sizes = named_in(GRAPHS, str(spec))
    if sizes is not None or not required(parameters_of(GRAPHS[name])):
        return str(spec)
    return f"{name}:{agents}"


def _numbered(graph: nx.Graph, spec: str) -> Graph:
    """Number tuple nodes in lexicographic order: row by row in a grid, as binary in a hypercube."""
    return Graph.of(nx.convert_node_labels_to_integers(graph, ordering="sorted"), spec)


def _connected(graph: AnyGraph, call: str, *, larger: str) -> AnyGraph:
    if isinstance(graph, nx.DiGraph):
        fault, components = "not strongly connected", nx.number_strongly_connected_components(graph)
    else:
        fault, components = "disconnected", nx.number_connected_components(graph)
    if components > 1:
        raise InputError(f"{call} came out {fault}, in {components} components: take another seed or a larger {larger}")
    return graph
