"""Graphs against their definitions and against products of simpler graphs."""

import math
from functools import reduce

import networkx as nx
import pytest

from ntkp2p.topology import graphs


def product(*factors):
    return reduce(nx.cartesian_product, factors)


LINK = nx.Graph([(0, 1)])


@pytest.mark.parametrize(
    ("graph", "oracle"),
    [
        (graphs.cycle(7), nx.Graph([(i, (i + 1) % 7) for i in range(7)])),
        (graphs.star(6), nx.complete_bipartite_graph(1, 5)),
        (graphs.complete(5), nx.complement(nx.empty_graph(5))),
        (graphs.path(4), nx.Graph([(0, 1), (1, 2), (2, 3)])),
        (graphs.path(1), nx.empty_graph(1)),
        (graphs.grid(3, 5), product(graphs.path(3), graphs.path(5))),
        (graphs.torus(3, 4), product(graphs.cycle(3), graphs.cycle(4))),
        (graphs.hypercube(4), product(LINK, LINK, LINK, LINK)),
        (graphs.hypercube(1), LINK),
        (graphs.erdos_renyi(6, 1.0), graphs.complete(6)),
        (graphs.random_geometric(6, 1.5), graphs.complete(6)),
    ],
)
def test_is_the_graph_of_that_name(graph, oracle):
    assert list(graph.nodes) == list(range(len(oracle)))
    assert nx.is_isomorphic(graph, oracle)


def test_star_has_its_hub_at_node_0():
    assert graphs.star(6).degree(0) == 5


def test_grid_is_numbered_row_by_row():
    links = {frozenset(edge) for edge in graphs.grid(3, 4).edges}
    below = {frozenset((4 * i + j, 4 * (i + 1) + j)) for i in range(2) for j in range(4)}
    beside = {frozenset((4 * i + j, 4 * i + j + 1)) for i in range(3) for j in range(3)}
    assert links == below | beside


def test_hypercube_is_numbered_in_binary():
    graph = graphs.hypercube(4)
    assert all((i ^ j).bit_count() == 1 for i, j in graph.edges)
    assert graph.number_of_edges() == 4 * 2**3


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 9, 20])
def test_exponential_links_powers_of_two_both_ways(n):
    graph = graphs.exponential(n)
    powers = [2**j for j in range(10) if 2**j < n]
    for i in range(n):
        expected = {(i + s) % n for s in powers} | {(i - s) % n for s in powers}
        assert set(graph[i]) == expected
    assert list(graph.nodes) == list(range(n))


def test_random_geometric_links_by_distance_and_keeps_positions():
    graph = graphs.random_geometric(25, 0.4, seed=3)
    place = nx.get_node_attributes(graph, "pos")
    for i in range(25):
        for j in range(i):
            assert graph.has_edge(i, j) == (math.dist(place[i], place[j]) <= 0.4)


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: graphs.erdos_renyi(20, 0.4, seed=seed),
        lambda seed: graphs.random_geometric(20, 0.6, seed=seed),
    ],
)
def test_seed_decides_the_draw(draw):
    assert nx.utils.graphs_equal(draw(1), draw(1))
    assert not nx.utils.graphs_equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: graphs.cycle(2), r"cycle\(n\) needs n >= 3, got 2: use path\(2\)"),
        (lambda: graphs.cycle(0), r"got 0: use path\(1\)"),
        (lambda: graphs.star(1), r"star\(n\) needs n >= 2, got 1"),
        (lambda: graphs.complete(0), r"complete\(n\) needs n >= 1, got 0"),
        (lambda: graphs.path(-1), r"path\(n\) needs n >= 1, got -1"),
        (lambda: graphs.grid(3, 0), r"grid\(rows, columns\) needs columns >= 1, got 0"),
        (lambda: graphs.torus(2, 5), r"needs both >= 3, got 2 and 5: use grid\(2, 5\)"),
        (lambda: graphs.hypercube(0), r"hypercube\(dimension\) needs dimension >= 1, got 0"),
        (lambda: graphs.exponential(0), r"exponential\(n\) needs n >= 1"),
        (lambda: graphs.erdos_renyi(0, 0.5), r"erdos_renyi\(n\) needs n >= 1"),
        (lambda: graphs.erdos_renyi(5, 1.5), r"probability 0 <= p <= 1, got 1.5"),
        (lambda: graphs.erdos_renyi(5, math.nan), r"probability 0 <= p <= 1, got nan"),
        (lambda: graphs.random_geometric(0, 0.5), r"random_geometric\(n\) needs n >= 1"),
        (lambda: graphs.random_geometric(5, 0.0), r"needs radius > 0, got 0.0"),
        (lambda: graphs.random_geometric(5, math.nan), r"needs radius > 0, got nan"),
    ],
)
def test_refuses_sizes(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: graphs.erdos_renyi(4, 0.0, seed=7), r"seed=7\).*4 comp.*another seed.*larger p$"),
        (
            lambda: graphs.random_geometric(5, 1e-6),
            r"disconnected, in 5 components.*another seed or a larger radius$",
        ),
    ],
)
def test_refuses_a_disconnected_draw_with_the_remedy(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("spec", "oracle"),
    [
        ("cycle:10", graphs.cycle(10)),
        (" grid : 4 , 5 ", graphs.grid(4, 5)),
        ("grid:columns=5,rows=4", graphs.grid(4, 5)),
        ("hypercube:dimension=3", graphs.hypercube(3)),
        ("erdos_renyi:20,0.3", graphs.erdos_renyi(20, 0.3, seed=0)),
        ("erdos_renyi:20,0.3,seed=1", graphs.erdos_renyi(20, 0.3, seed=1)),
        ("random_geometric:9,1", graphs.random_geometric(9, 1.0)),
    ],
)
def test_from_spec_builds_what_the_function_builds(spec, oracle):
    assert nx.utils.graphs_equal(graphs.from_spec(spec), oracle)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "cycel:10",
            r"unknown graph 'cycel' \(did you mean 'cycle'\?\); known: cycle, star,",
        ),
        ("zzz", r"unknown graph 'zzz'; known: .*random_geometric$"),
        ("", r"unknown graph ''"),
        ("cycle", r"'cycle' lacks n; write cycle:n$"),
        ("grid:", r"lacks rows, columns; write grid:rows,columns"),
        ("grid:4", r"'grid:4' lacks columns; write grid:rows,columns"),
        ("grid:4,5,6", r"cannot place '6'; write grid:rows,columns"),
        ("erdos_renyi:20,0.3,1", r"cannot place '1'; write erdos_renyi:n,p\[,seed=…\]"),
        ("cycle:4,n=5", r"cannot place 'n=5'"),
        ("cycle:4,m=5", r"cannot place 'm=5'"),
        ("cycle:2.5", r"n is a whole number, got '2.5'"),
        ("erdos_renyi:20,often", r"p is a number, got 'often'"),
        ("cycle:2", r"cycle\(n\) needs n >= 3"),
    ],
)
def test_from_spec_refuses(spec, message):
    with pytest.raises(ValueError, match=message):
        graphs.from_spec(spec)


def test_graphs_names_its_functions():
    assert all(getattr(graphs, name) is build for name, build in graphs.GRAPHS.items())
    assert len(graphs.GRAPHS) == 10
