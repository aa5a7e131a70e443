"""The door-check's refusals, and the report against independent oracles."""

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ntkp2p.topology import check_mixing, graphs, lazy, metropolis, validate_mixing

quick = settings(deadline=None, max_examples=40)

EVEN_RING = nx.to_numpy_array(graphs.cycle(6)) / 2  # bipartite, no self-weights: period 2
SHIFT = np.roll(np.eye(5), 1, axis=0)  # a directed ring, period 5
TWO_PAIRS = np.kron(np.eye(2), np.full((2, 2), 0.5))
ROW = np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.1, 0.9]])
BOYD = [(0, 1), (1, 2), (2, 3), (0, 4), (1, 7), (1, 3), (4, 5)]
BOYD += [(4, 6), (2, 6), (3, 7), (5, 6), (6, 7), (1, 6)]


@st.composite
def sparse_rows(draw, most=9):
    """Row-stochastic, with random zeros, connected or not."""
    n, density = draw(st.integers(1, most)), draw(st.floats(0.1, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    W = rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < density)
    W[W.sum(axis=1) == 0] = np.eye(n)[W.sum(axis=1) == 0]
    return W / W.sum(axis=1, keepdims=True)


def digraph(W):
    return nx.from_numpy_array(np.asarray(W) != 0, create_using=nx.DiGraph)


def radius(M):
    return abs(np.linalg.eigvals(M)).max()


# --- validate_mixing ---


@pytest.mark.parametrize(
    ("W", "stochastic"),
    [
        (ROW, "row"),
        (ROW.T, "column"),
        (metropolis(graphs.cycle(5)), "doubly"),
        ([[1]], "doubly"),
        ([[True]], "row"),
        ([[0, 1], [1, 0]], "doubly"),
        ([[2.0, -1.0], [-1.0, 2.0]], "doubly"),
        (SHIFT, "doubly"),
        (ROW + 0.9e-8 * np.eye(3), "row"),
    ],
)
def test_lets_a_good_matrix_in_unchanged(W, stochastic):
    out = validate_mixing(W, agents=len(W), stochastic=stochastic)
    assert out.dtype == np.float64
    assert np.array_equal(out, W)


@given(sparse_rows())
@quick
def test_lets_in_exactly_the_connected(W):
    if nx.is_strongly_connected(digraph(W)):
        assert validate_mixing(W) is W
    else:
        with pytest.raises(ValueError, match="not connected"):
            validate_mixing(W)


RAGGED = [[1, 0], [1]]
NOT_A_MATRIX = [
    (graphs.cycle(4), TypeError, r"is a graph.*metropolis\(graph\)"),
    (np.eye(2) * 1j, TypeError, "real numbers, got ndarray with entries of type complex128"),
    (np.eye(2, dtype=object), TypeError, "entries of type object"),
    ([["a", "b"], ["c", "d"]], TypeError, "real numbers, got list"),
    (None, TypeError, "got NoneType"),
    (RAGGED, ValueError, "rows of unequal length"),
    ([0.5, 0.5], ValueError, "mixing is 2, not square"),
    (1.0, ValueError, "a single number, not square"),
    (np.ones((3, 2)), ValueError, "3 × 2, not square"),
    (np.ones((2, 2, 2)), ValueError, "2 × 2 × 2, not square"),
    (np.empty((0, 0)), ValueError, "0 × 0, not square"),
    ([[1, 0, 0], [0, 1, np.inf], [0, np.nan, 1]], ValueError, r"mixing\[1, 2\] is inf"),
    ([[1, 0], [np.nan, 1]], ValueError, r"mixing\[1, 0\] is nan"),
]


@pytest.mark.parametrize("check", [validate_mixing, check_mixing])
@pytest.mark.parametrize(("W", "error", "message"), NOT_A_MATRIX)
def test_both_refuse_what_is_no_matrix(check, W, error, message):
    with pytest.raises(error, match=message) as raised:
        check(W)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("W", "stochastic", "message"),
    [
        (ROW.T, "row", r"row 0 sums to 0.75, not 1, but the column sums are 1.*transpose it, W\.T"),
        (ROW, "column", r"column 0 sums to 0.75, not 1, but the row sums are 1.*W\.T"),
        (
            [[0.5, 0.6], [0.5, 0.7]],
            "row",
            r"row 1 sums to 1.2,.*W / W.sum\(axis=1, keepdims=True\)",
        ),
        ([[0.5, 0.6], [0.7, 0.7]], "column", r"column 1 sums to 1.3,.*W / W.sum\(axis=0, keepdims"),
        ([[0.0, 0.0], [0.5, 0.7]], "row", r"row 0 sums to 0, not 1: give row 0 weights"),
        ([[1.0, -1.0], [4.0, 1.0]], "row", r"row 1 sums to 5, not 1: give row 0 weights"),
        (ROW, "doubly", r"column 0 sums to 0.75, not 1: metropolis\(graph\)"),
        (ROW.T, "doubly", r"row 0 sums to 0.75, not 1: metropolis\(graph\)"),
        (ROW + 2e-8 * np.eye(3), "row", r"row \d sums to 1.00000002, not 1"),
        (np.full((3, 3), 1 / 3, np.float32), "row", r"sums to 1.0000000298, not 1.*in float64"),
        (
            TWO_PAIRS,
            "row",
            r"2 components, \{0, 1\} \{2, 3\}, so it is not connected: add an edge 0–2",
        ),
        (np.eye(9), "row", r"9 components, \{0\} \{1\} \{2\} \{3\} …,.*0–1, both ways, and so on"),
        (np.kron(np.eye(2), np.full((6, 6), 1 / 6)), "row", r"\{0, 1, 2, 3, …\} \{6, 7, 8, 9, …\}"),
        ([[1, 0], [0.5, 0.5]], "row", r"\{0\} \{1\}, so it is not connected: add an edge 0–1"),
    ],
)
def test_refuses_bad_sums_and_connections(W, stochastic, message):
    with pytest.raises(ValueError, match=message):
        validate_mixing(W, stochastic=stochastic)


def test_refuses_another_size_than_the_agents():
    with pytest.raises(ValueError, match="3 × 3 but the data are split over 10 agents: build it on"):
        validate_mixing(ROW, agents=10)


@given(sparse_rows(), st.integers(0, 2**31))
@quick
def test_the_remedies_for_sums_work(W, seed):
    assume(nx.is_strongly_connected(digraph(W)))
    scaled = W * np.random.default_rng(seed).uniform(0.5, 2, (len(W), 1))
    validate_mixing(scaled / scaled.sum(axis=1, keepdims=True))
    validate_mixing(W.T, stochastic="column")


def test_the_edge_that_is_named_connects_two_components():
    W = TWO_PAIRS.copy()
    W[0, 2] = W[2, 0] = 0.5
    validate_mixing(W / W.sum(axis=1, keepdims=True))


# --- check_mixing ---


@given(sparse_rows())
@quick
def test_components_and_periods_are_networkxs(W):
    report = check_mixing(W)
    links = digraph(W)
    assert report.components == sorted(map(sorted, nx.strongly_connected_components(links)))
    if report.connected:
        assert report.aperiodic == nx.is_aperiodic(links)
    assert report.row_stochastic
    assert report.nonnegative


@pytest.mark.parametrize(
    ("W", "aperiodic"),
    [
        (EVEN_RING, False),
        (SHIFT, False),
        (lazy(SHIFT), True),
        (np.kron(np.eye(2), SHIFT), False),
        (nx.to_numpy_array(graphs.cycle(5)) / 2, True),
        # Closed walks of the lengths 3 and 4 (aperiodic), or 2 and 4 (period 2), no self-weight.
        ([[0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5], [1, 0, 0, 0]], True),
        ([[0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [1, 0, 0, 0]], False),
    ],
)
def test_aperiodic(W, aperiodic):
    assert check_mixing(W).aperiodic is aperiodic


@given(sparse_rows())
@quick
def test_perron_weights_and_second_modulus(W):
    report = check_mixing(W)
    if not report.connected:
        assert report.perron_left is None
        return
    pi = report.perron_left
    assert pi @ W == pytest.approx(pi, abs=1e-12)
    assert pi.sum() == pytest.approx(1)
    assert pi.min() > 0
    # The limit of the lazy chain is 1 πᵀ; taking that part away leaves all other eigenvalues.
    assert report.second_modulus == pytest.approx(radius(W - pi), abs=1e-5)
    assert report.spectral_gap == 1 - report.second_modulus


@given(st.integers(2, 9), st.integers(0, 2**31))
@quick
def test_perron_weights_of_a_reversible_chain_are_the_degrees(n, seed):
    flows = np.random.default_rng(seed).uniform(0.1, 1, (n, n))
    flows = flows + flows.T
    degrees = flows.sum(axis=1)
    report = check_mixing(flows / degrees[:, None])
    assert report.perron_left == pytest.approx(degrees / degrees.sum())


def laplacian_weights(alpha):
    L = nx.laplacian_matrix(nx.Graph(BOYD), nodelist=range(8)).toarray()
    return np.eye(8) - alpha(L) * L


def best_constant(L):
    spectrum = np.linalg.eigvalsh(L)
    return 2 / (spectrum[1] + spectrum[-1])


@pytest.mark.parametrize(
    ("W", "value"),
    [
        (laplacian_weights(lambda L: 1 / L.max()), 0.77925),
        (laplacian_weights(best_constant), 0.71186),
        (metropolis(nx.Graph(BOYD)), 0.81255),
    ],
)
def test_second_modulus_on_boyds_graph(W, value):
    report = check_mixing(W)
    assert report.second_modulus == pytest.approx(value, abs=1e-5)
    assert report.symmetric
    assert report.doubly_stochastic
    assert report.verdict.startswith("works: ")


def test_report_of_a_cycle():
    n = 10
    report = check_mixing(metropolis(graphs.cycle(n)))
    spectrum = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(n) / n)
    by_modulus = spectrum[np.argsort(-abs(spectrum))]
    assert abs(report.eigenvalues) == pytest.approx(abs(by_modulus))
    assert report.second_modulus == pytest.approx(1 / 3 + 2 / 3 * np.cos(2 * np.pi / n))
    assert report.smallest_eigenvalue == pytest.approx(-1 / 3)
    assert report.perron_left == pytest.approx(1 / n)
    assert report.size == n


def test_second_modulus_counts_an_eigenvalue_below_minus_the_others():
    assert check_mixing([[0.1, 0.9], [0.9, 0.1]]).second_modulus == pytest.approx(0.8)
    assert check_mixing([[1]]).second_modulus == 0


def test_complex_eigenvalues():
    report = check_mixing(0.25 * np.eye(5) + 0.75 * SHIFT)
    roots = 0.25 + 0.75 * np.exp(2j * np.pi * np.arange(5) / 5)
    assert report.second_modulus == pytest.approx(abs(roots[1]))
    assert report.smallest_eigenvalue == pytest.approx(roots.real.min())
    assert not report.symmetric


def test_defects_are_reported_not_raised():
    report = check_mixing([[0.5, 0.75, 0.0], [-0.25, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert report.worst_row == (0, 0.25)
    assert report.worst_column == (0, -0.75)
    facts = "row_stochastic column_stochastic doubly_stochastic nonnegative symmetric connected"
    assert not any(getattr(report, fact) for fact in facts.split())
    assert report.components == [[0, 1], [2]]
    assert report.perron_left is None


def test_report_keeps_its_own_copy():
    W = metropolis(graphs.cycle(4))
    report = check_mixing(W)
    W[0, 0] = 7
    assert report.matrix[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("W", "verdict"),
    [
        (metropolis(graphs.cycle(10)), "works: "),
        ([[1]], "works: "),
        (metropolis(graphs.cycle(100)), r"works, but slow: .* 527 rounds.*exponential\(100\)"),
        (ROW, r"works, but biased: .*from 0.125 to 0.625, instead of 0.3333 \(metropolis\(graph\)"),
        (EVEN_RING, r"works, but oscillates: .*lazy\(W\)"),
        ([[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]], "works, but biased: .*; and oscillates: "),
        (1.01 * ROW, r"does not work: row 0 sums to 1.01.*W / W.sum"),
        (ROW.T, r"does not work: row 0 .*transpose it, W\.T"),
        (TWO_PAIRS, "does not work: falls into 2 components.*add an edge 0–2"),
        ([[-0.5, 1.5], [1.5, -0.5]], r"does not work: an eigenvalue of modulus 2 .*use lazy\(W\)"),
        ([[2.5, -1.5], [-1.5, 2.5]], r"does not work: .*modulus 4 .*use metropolis\(graph\)"),
        ([[2, -1], [1, 0]], "does not work: the eigenvalue 1 is repeated"),
        ([[0.75, 0.25], [-0.25, 1.25]], "does not work: the eigenvalue 1 is repeated"),
        ([[0.5, 0.5], [-0.1, 1.1]], r"does not work: agent 0's loss has the weight -0.25 < 0"),
    ],
)
def test_verdict_says_why_and_what_to_do(W, verdict):
    report = check_mixing(W)
    assert re.match(verdict, report.verdict)


@pytest.mark.parametrize("W", [EVEN_RING, SHIFT, np.array([[-0.5, 1.5], [1.5, -0.5]])])
def test_lazy_is_a_remedy(W):
    assert check_mixing(lazy(W)).verdict.startswith("works: ")


def test_what_the_verdict_says_of_oscillation_is_true():
    # DGD on equal quadratic losses of curvature 1: x⁺ = (W − ηI) x.
    for eta in (1e-3, 0.1, 1.0):
        assert radius(EVEN_RING - eta * np.eye(6)) > 1
        assert radius(SHIFT - eta * np.eye(5)) > 1
    assert radius(lazy(EVEN_RING) - 0.1 * np.eye(6)) < 1


def test_what_the_verdict_says_of_slowness_is_true():
    W = metropolis(graphs.cycle(100))
    x = np.cos(2 * np.pi * np.arange(100) / 100)
    mixed = np.linalg.matrix_power(W, 527) @ x
    assert np.linalg.norm(mixed) == pytest.approx(np.linalg.norm(x) / 2, rel=2e-3)


def test_smallest_eigenvalue_bounds_the_step_of_dgd():
    W = metropolis(graphs.cycle(8))
    limit = 1 + check_mixing(W).smallest_eigenvalue
    assert radius(W - 0.999 * limit * np.eye(8)) < 1 < radius(W - 1.001 * limit * np.eye(8))


def test_text_is_aligned_and_complete():
    report = check_mixing(ROW.T)
    lines = str(report).splitlines()
    assert lines[0] == "Mixing matrix, 3 × 3, for DGD, CTA and ATC"
    assert "  row sums are 1        no, row 0 sums to 0.75" in lines
    assert "  column sums are 1     yes" in lines
    assert " ".join(line.strip() for line in lines).endswith(report.verdict)
    assert max(map(len, lines)) <= 80
    assert repr(report) == str(report)


def test_html_is_a_table_with_escaped_text():
    page = check_mixing([[0.5, 0.5], [-0.1, 1.1]])._repr_html_()
    assert page.startswith("<table>")
    assert "<td>nonnegative</td><td>no, down to -0.1</td>" in page
    assert "-0.25 &lt; 0" in page
