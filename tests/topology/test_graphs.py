"""Graphs against their definitions and against products of simpler graphs."""

import inspect
import math
from functools import reduce

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkp2p.topology import graphs, metropolis


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


@pytest.mark.parametrize("n", [2, 3, 8])
def test_directed_ring_sends_to_the_next(n):
    ring = graphs.directed_ring(n)
    assert list(ring.nodes) == list(range(n))
    assert set(ring.edges) == {(i, (i + 1) % n) for i in range(n)}
    assert nx.is_strongly_connected(ring)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 8, 9, 20])
def test_directed_exponential_is_one_direction_of_the_exponential(n):
    graph = graphs.directed_exponential(n)
    degree = math.ceil(math.log2(n))
    assert dict(graph.out_degree) == dict(graph.in_degree) == dict.fromkeys(range(n), degree)
    assert all((j - i) % n in {2**k for k in range(degree)} for i, j in graph.edges)
    assert nx.is_strongly_connected(graph)
    assert nx.utils.graphs_equal(graph.to_undirected(), graphs.exponential(n))


def test_directed_random_links_each_ordered_pair():
    graph = graphs.directed_random(40, 0.3, seed=5)
    assert list(graph.nodes) == list(range(40))
    assert nx.is_strongly_connected(graph)
    pairs = 40 * 39
    # Hoeffding: farther off than this with probability 1e-9 only.
    far = math.sqrt(pairs * math.log(2e9) / 2)
    assert abs(graph.number_of_edges() - 0.3 * pairs) < far
    both = sum(graph.has_edge(j, i) for i, j in graph.edges) / 2
    assert abs(both - 0.3**2 * pairs / 2) < far / math.sqrt(2)
    assert nx.utils.graphs_equal(graphs.directed_random(6, 1.0), nx.complete_graph(6, create_using=nx.DiGraph))


# --- one-way links ---


@given(n=st.integers(1, 10), extra=st.floats(0, 1), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_one_way_takes_what_it_can_and_says_what_it_could(n, extra, share, seed):
    graph = nx.compose(nx.random_labeled_tree(n, seed=seed), nx.gnp_random_graph(n, extra, seed=seed))
    links, bridges = graph.number_of_edges(), sum(1 for _ in nx.bridges(graph))
    if round(share * links) > links - bridges:
        with pytest.raises(ValueError, match=rf"{bridges} of the {links} links are.* <= {links - bridges}/{links},"):
            graphs.one_way(graph, share, seed=seed)
        share = (links - bridges) / links
    directed = graphs.one_way(graph, share, seed=seed)
    assert list(directed.nodes) == list(graph.nodes)
    assert nx.utils.graphs_equal(nx.Graph(directed), graph)  # every link has a direction left
    assert nx.is_strongly_connected(directed)
    assert 2 * links - directed.number_of_edges() == round(share * links)


def test_every_link_of_a_graph_without_bridges_can_be_one_way():
    tournament = graphs.one_way(graphs.complete(9), 1.0, seed=2)
    assert nx.is_tournament(tournament)
    assert nx.is_strongly_connected(tournament)
    ring = graphs.one_way(graphs.cycle(9), 1.0)
    assert nx.is_isomorphic(ring, graphs.directed_ring(9))


def test_one_way_by_seed_and_growing_with_the_share():
    graph = graphs.erdos_renyi(12, 0.5, seed=1)
    few, again, more, other = (graphs.one_way(graph, p, seed=s) for p, s in [(0.3, 1), (0.3, 1), (0.6, 1), (0.3, 2)])
    assert nx.utils.graphs_equal(few, again)
    assert set(more.edges) < set(few.edges)
    assert not nx.utils.graphs_equal(few, other)


def test_both_directions_are_lost():
    first = {graphs.one_way(graphs.cycle(4), 1.0, seed=seed).has_edge(0, 1) for seed in range(20)}
    assert first == {True, False}


def test_one_way_keeps_places_and_drops_weights():
    graph = graphs.random_geometric(9, 0.9, seed=3)
    nx.set_edge_attributes(graph, 0.5, "weight")
    directed = graphs.one_way(graph, 0.2)
    assert dict(directed.nodes(data=True)) == dict(graph.nodes(data=True))
    assert not any(data for _, _, data in directed.edges(data=True))


@pytest.mark.parametrize(
    ("graph", "share", "error", "message"),
    [
        (graphs.path(4), 0.5, ValueError, r"3 of the 3 links are bridges.*take share <= 0/3, or add links"),
        (graphs.cycle(4), 1.5, ValueError, "needs a share 0 <= share <= 1, got 1.5"),
        (graphs.cycle(4), math.nan, ValueError, "got nan"),
        (nx.empty_graph(3), 0.0, ValueError, "needs a connected graph, got 3 components: add links"),
        (nx.empty_graph(0), 0.0, ValueError, "no nodes"),
        (graphs.directed_ring(4), 0.5, ValueError, "directed"),
        (metropolis(graphs.cycle(4)), 0.5, TypeError, "Graph"),
    ],
)
def test_one_way_refuses(graph, share, error, message):
    with pytest.raises(error, match=message):
        graphs.one_way(graph, share)


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
        lambda seed: graphs.directed_random(20, 0.4, seed=seed),
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
        (lambda: graphs.directed_ring(1), r"directed_ring\(n\) needs n >= 2, got 1: use path\(1\)"),
        (lambda: graphs.directed_exponential(0), r"directed_exponential\(n\) needs n >= 1"),
        (lambda: graphs.directed_random(0, 0.5), r"directed_random\(n\) needs n >= 1"),
        (lambda: graphs.directed_random(5, 1.5), r"probability 0 <= p <= 1, got 1.5"),
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
        (
            lambda: graphs.directed_random(4, 0.1, seed=7),
            r"directed_random\(4, 0.1, seed=7\) came out not strongly connected, in \d comp.*seed or a larger p$",
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
        ("directed_ring:8", graphs.directed_ring(8)),
        ("directed_exponential:6", graphs.directed_exponential(6)),
        ("directed_random:8,0.5,seed=2", graphs.directed_random(8, 0.5, seed=2)),
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
        ("zzz", r"unknown graph 'zzz'; known: .*directed_random, package.module:Name$"),
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
    made = (graphs.Graph, graphs.DiGraph)
    public = {name: f for name, f in vars(graphs).items() if name[0] != "_" and inspect.isfunction(f)}
    build = {name: f for name, f in public.items() if f.__annotations__.get("return") in made and name != "one_way"}
    assert dict(graphs.GRAPHS) == build  # `one_way` makes a graph of another one
