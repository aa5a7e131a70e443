"""The refusals of the validation, and the report against independent oracles."""

import json
import re
from functools import reduce
from io import StringIO

import networkx as nx
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ntkp2p.topology import (
    best_constant,
    check,
    check_mixing,
    fastest_mixing,
    graphs,
    lazy,
    metropolis,
    push_weights,
    schedules,
    validate_mixing,
)
from ntkp2p.topology import spectrum as topology_spectrum
from ntkp2p.topology.weights import mixing_of

many = settings(max_examples=200)

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
def test_lets_in_exactly_the_connected(W):
    if nx.is_strongly_connected(digraph(W)):
        assert validate_mixing(W) is W
    else:
        with pytest.raises(ValueError, match="not connected"):
            validate_mixing(W)


RAGGED = [[1, 0], [1]]
NOT_A_MATRIX = [
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
    (scipy.sparse.csr_array([[1, 0], [np.nan, 1]]), ValueError, r"mixing\[1, 0\] is nan"),
    (scipy.sparse.csr_array(np.eye(2) * 1j), TypeError, "real numbers, got csr_array with entries of type complex128"),
    (scipy.sparse.csr_array((2, 3)), ValueError, "2 × 3, not square"),
]


@pytest.mark.parametrize("check", [validate_mixing, check_mixing])
@pytest.mark.parametrize(("W", "error", "message"), NOT_A_MATRIX)
def test_both_refuse_what_is_no_matrix(check, W, error, message):
    with pytest.raises(error, match=message) as raised:
        check(W)
    assert "\n" not in str(raised.value)


def test_the_door_takes_no_graph():
    for graph, remedy in [(graphs.cycle(4), "metropolis"), (graphs.directed_ring(4), "push_weights")]:
        with pytest.raises(TypeError, match=rf"is a graph.* {remedy}\(graph\)"):
            validate_mixing(graph, stochastic="column")


def test_the_door_makes_sparse_matrices_dense():
    assert np.array_equal(validate_mixing(scipy.sparse.csr_array(ROW)), ROW)


@pytest.mark.parametrize(
    ("W", "stochastic", "message"),
    [
        (ROW.T, "row", r"row 0 .* 0.75, not 1, but the column sums are 1.*: push-sum takes it as.*transpose it, W\.T"),
        (ROW, "column", r"column 0 .* 0.75, not 1, but the row sums are 1.*: transpose.* W\.T, or .*push_weights\("),
        (
            [[0.5, 0.6], [0.5, 0.7]],
            "row",
            r"row 1 sums to 1.2,.*W / W.sum\(axis=1\).reshape\(-1, 1\)$",
        ),
        ([[0.5, 0.6], [0.7, 0.7]], "column", r"column 1 sums to 1.3,.*W / W.sum\(axis=0\).reshape\(1, -1\)$"),
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
        ([[1, 0], [0.5, 0.5]], "row", r"\{0\} \{1\}, so .* agent 0 receives from no agent: add an edge 1 → 0$"),
        (
            [[1, 0.5], [0, 0.5]],
            "column",
            r"\{0\} \{1\}, so .* agent 0 sends to no agent and agent 1 receives from no agent: add an edge 0 → 1$",
        ),
        (
            np.kron([[1, 0.5], [0, 0.5]], np.full((2, 2), 0.5)),
            "column",
            "so it is not connected: add an edge 0–2, both",
        ),
    ],
)
def test_refuses_bad_sums_and_connections(W, stochastic, message):
    with pytest.raises(ValueError, match=message):
        validate_mixing(W, stochastic=stochastic)


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array])
@pytest.mark.parametrize(
    ("edges", "fault", "remedy"),
    [
        (
            [(0, 1), (1, 2), (2, 3), (0, 2)],
            "agent 3 sends to no agent and agent 0 receives from no agent",
            "3 → 0, and so on",
        ),
        ([(0, 1), (1, 2), (2, 0), (0, 3)], "agent 3 sends to no agent", "3 → 0"),
        ([(0, 1), (1, 2), (2, 0), (3, 0)], "agent 3 receives from no agent", "0 → 3"),
        ([(1, 2), (2, 3), (3, 1), (1, 0)], "agent 0 sends to no agent", "0 → 1"),
        ([(0, 1), (1, 2), (2, 0)], "agent 3 neither sends nor receives", "3–0, both ways"),
    ],
)
def test_who_does_not_send_or_receive_is_named_and_the_edge_is_what_lacks(kind, edges, fault, remedy):
    graph = nx.empty_graph(4, create_using=nx.DiGraph)
    graph.add_edges_from(edges)
    P = push_weights(graph)
    with pytest.raises(ValueError, match=f", as {fault}: add an edge {remedy}$"):
        validate_mixing(kind(P), stochastic="column")
    assert f"as {fault} → add an edge {remedy}" in say(P, "push-sum")
    sender, receiver = map(int, re.findall(r"\d", remedy))
    graph.add_edges_from([(sender, receiver)] + [(receiver, sender)] * ("both" in remedy))
    validate_mixing(push_weights(graph), stochastic="column")


def test_refuses_another_size_than_the_agents():
    with pytest.raises(ValueError, match="3 × 3 but the data are split over 10 agents: build it on"):
        validate_mixing(ROW, agents=10)


@given(sparse_rows(), st.integers(0, 2**31))
def test_the_remedies_for_sums_work(W, seed):
    assume(nx.is_strongly_connected(digraph(W)))
    scaled = W * np.random.default_rng(seed).uniform(0.5, 2, (len(W), 1))
    validate_mixing(scaled / scaled.sum(axis=1, keepdims=True))
    validate_mixing(W.T, stochastic="column")


@pytest.mark.parametrize("kind", [np.array, scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.coo_array])
@pytest.mark.parametrize("algorithm", ["DGD", "push-sum"])
def test_the_remedy_for_sums_can_be_typed(kind, algorithm):
    W = kind(np.array([[0.5, 0.75], [1.5, 1]]))
    remedy = check_mixing(W).verdicts[algorithm].remedy.removeprefix("scale it, in float64, ")
    assert re.match("works", say(eval(remedy, {"W": W}), algorithm))


def test_the_edge_that_is_named_connects_two_components():
    W = TWO_PAIRS.copy()
    W[0, 2] = W[2, 0] = 0.5
    validate_mixing(W / W.sum(axis=1, keepdims=True))


# --- check_mixing ---


@given(sparse_rows())
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
def test_perron_weights_of_a_reversible_chain_are_the_degrees(n, seed):
    flows = np.random.default_rng(seed).uniform(0.1, 1, (n, n))
    flows = flows + flows.T
    degrees = flows.sum(axis=1)
    report = check_mixing(flows / degrees[:, None])
    assert report.perron_left == pytest.approx(degrees / degrees.sum())


def laplacian_weights(alpha):
    L = nx.laplacian_matrix(nx.Graph(BOYD), nodelist=range(8)).toarray()
    return np.eye(8) - alpha(L) * L


@pytest.mark.parametrize(
    ("W", "value"),
    [
        (laplacian_weights(lambda L: 1 / L.max()), 0.77925),
        (metropolis(nx.Graph(BOYD)), 0.81255),
    ],
)
def test_second_modulus_on_boyds_graph(W, value):
    report = check_mixing(W)
    assert report.second_modulus == pytest.approx(value, abs=1e-5)
    assert report.symmetric
    assert report.doubly_stochastic
    assert {v.answer for v in report.verdicts.values()} == {"works"}


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


def say(W, algorithm):
    return str(check_mixing(W).verdicts[algorithm])


@pytest.mark.parametrize(
    ("W", "algorithms", "verdict"),
    [
        (metropolis(graphs.cycle(10)), "DGD CTA ATC push-sum", "works: "),
        ([[1]], "DGD CTA ATC push-sum", "works: "),
        (metropolis(graphs.cycle(100)), "DGD ATC push-sum", r"works, but slow: .* 527 rounds.*exponential\(100\)"),
        (ROW, "DGD CTA ATC", r"works, but biased to π: .*from 0.125 to 0.625.*1/3.*metropolis\(graph\).*push_weights"),
        (ROW, "push-sum", r"does not work: column 0 sums to 0.75.*transpose it, W\.T, or take push_weights\(graph\)"),
        (ROW.T, "DGD CTA ATC", r"does not work: row 0 .*push-sum takes it as it is; or transpose it, W\.T"),
        (ROW.T, "push-sum", "works: "),
        (EVEN_RING, "DGD", r"does not work: W has period 2.*any step size → lazy\(W\)"),
        (EVEN_RING, "CTA ATC push-sum", r"works, but oscillates: W has period 2.*lazy\(W\)"),
        (SHIFT, "DGD", "does not work: W has period 5"),
        ([[0.01, 0.99], [0.99, 0.01]], "DGD", r"works, but oscillates: λ_min = -0.98.*below 0.02/h.*lazy\(W\)"),
        ([[0.01, 0.99], [0.99, 0.01]], "CTA ATC push-sum", "works: "),
        ([[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]], "CTA ATC", "works, but biased to π: .*; and oscillates: "),
        (1.01 * ROW, "DGD CTA ATC", r"does not work: row 0 sums to 1.01.*W / W.sum"),
        (TWO_PAIRS, "DGD CTA ATC push-sum", "does not work: falls into 2 components.*add an edge 0–2"),
        ([[-0.5, 1.5], [1.5, -0.5]], "DGD ATC push-sum", r"does not work: an eigenvalue of modulus 2 .*lazy\(W\)"),
        ([[2.5, -1.5], [-1.5, 2.5]], "DGD ATC push-sum", r"does not work: .*modulus 4 .*→ metropolis\(graph\)"),
        ([[2, -1], [1, 0]], "DGD ATC", "does not work: the eigenvalue 1 is repeated"),
        ([[0.75, 0.25], [-0.25, 1.25]], "DGD ATC", "does not work: the eigenvalue 1 is repeated"),
        ([[0.5, 0.5], [-0.1, 1.1]], "DGD ATC", r"does not work: agent 0's loss has the weight -0.25 < 0"),
        ([[0.5, -0.1], [0.5, 1.1]], "push-sum", r"does not work: weights down to -0.1 < 0.*push_weights\(graph\)"),
        ([[0.9, 0.01], [0.1, 0.99]], "push-sum", r"works: "),
        ([[0.1, 0.01], [0.9, 0.99]], "push-sum", r"works, but agent 0's weight w converges to 0.022.*below 0.044/h"),
    ],
)
def test_verdict_says_why_and_what_to_do(W, algorithms, verdict):
    for algorithm in algorithms.split():
        assert re.match(verdict, say(W, algorithm))


@pytest.mark.parametrize("W", [EVEN_RING, SHIFT, np.array([[-0.5, 1.5], [1.5, -0.5]])])
def test_lazy_is_a_remedy(W):
    assert {v.answer for v in check_mixing(lazy(W)).verdicts.values()} == {"works"}


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


def round_of(algorithm, W, eta, curvatures):
    """The matrix of one round, with losses h_q x²/2: push-sum's in x/w, at its limit of w."""
    H, identity = np.diag(curvatures), np.eye(len(W))
    if algorithm == "push-sum":
        w = check_mixing(W).perron_right
        return np.diag(1 / w) @ W @ np.diag(w) @ (identity - eta * H / w[:, None])
    return {"DGD": W - eta * H, "CTA": (identity - eta * H) @ W, "ATC": W @ (identity - eta * H)}[algorithm]


@given(sparse_rows(), st.booleans(), st.integers(0, 2**31))
@many
def test_what_works_has_stable_rounds_and_what_does_not_has_none(W, columns, seed):
    W = np.array(W.T if columns else W)
    report = check_mixing(W)
    assume(report.connected)
    curvatures = np.random.default_rng(seed).uniform(0.1, 1, len(W))
    # Where DGD has no stable step the others have one; its 0 is computed with rounding.
    step = 1e-3 * (min(1, report.largest_step) if report.largest_step > 1e-12 else 1)
    for algorithm, verdict in report.verdicts.items():
        sums_fit = report.column_stochastic if algorithm == "push-sum" else report.row_stochastic
        assert (verdict.answer == "does not work") == (not sums_fit or (algorithm == "DGD" and not report.aperiodic))
        if verdict.answer != "does not work":
            assert radius(round_of(algorithm, W, step, curvatures)) < 1
        elif sums_fit:  # DGD over a periodic matrix
            for eta in (1e-3, 0.1, 1.0):
                assert radius(round_of("DGD", W, eta, curvatures)) > 1


# Row sums one, π uniform, the eigenvalues 1, 0 and −1.
SIGNED = np.array([[4, -3, 2], [4, -3, 2], [-5, 9, -1]]) / 3
REFLECTION = np.full((3, 3), 2 / 3) - np.eye(3)


def test_gradients_need_not_damp_what_signed_weights_turn():
    for eta in (1e-3, 1e-2, 0.1):
        for algorithm in ("CTA", "ATC"):
            assert radius(round_of(algorithm, SIGNED, eta, [3, 0.1, 0.1])) > 1
    # Every agent's Hessian is singular, though their sum is not: what each does not see stays.
    sees = np.array([[1, 0], [0, 1], [1, 1]])
    hessian = scipy.linalg.block_diag(*(np.outer(v, v) for v in sees))
    assert radius(np.kron(REFLECTION, np.eye(2)) @ (np.eye(6) - 0.1 * hessian)) == pytest.approx(1)
    for W in (SIGNED, REFLECTION):
        verdicts = check_mixing(W).verdicts
        assert re.match(r"does not work: the eigenvalue -1.*may leave it or make it grow", str(verdicts["ATC"]))
        assert {v.answer for v in verdicts.values()} == {"does not work"}
        assert "ATC" not in verdicts["DGD"].remedy
    assert {v.remedy for v in check_mixing(REFLECTION).verdicts.values()} == {"lazy(W)"}
    assert {v.answer for v in check_mixing(lazy(REFLECTION)).verdicts.values()} == {"works"}


def test_signed_weights_that_leave_small_steps_are_not_sent_to_atc():
    nearly = 1.99 * np.full((3, 3), 1 / 3) - 0.99 * np.eye(3)
    assert re.match(r"works, but oscillates: .* → lazy\(W\)$", say(nearly, "DGD"))


@pytest.mark.parametrize(
    "P",
    [
        [[0, 0, 0.95], [0, 0, 0.05], [1, 1, 0]],
        [[0, 0, 0, 0.95], [0, 0, 0, 0.05], [1, 1, 0, 0], [0, 0, 1, 0]],  # period 3
        [[0, 0, 1, 0.99], [0, 0, 0, 0.01], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]],  # classes alike
    ],
)
def test_the_least_of_push_sums_weights_over_a_period(P):
    w, P, seen = np.ones(len(P)), np.array(P), []
    for k in range(2000):
        w = P @ w
        seen.append(w.min()) if k >= 1990 else None
    period = check_mixing(P).period
    expected = rf"agent 1's weight w goes round with period {period}, down to {min(seen):.3g}, .* {2 * min(seen):.3g}/h"
    assert re.search(expected, say(P, "push-sum"))


def test_lazy_is_no_remedy_for_weights_below_zero_in_what_is_minimised():
    # The eigenvalues 1 and −1.25, which lazy(W) would tame, and π = (−1.25, 2.25).
    W = np.array([[-4.0625, 5.0625], [-2.8125, 3.8125]])
    assert np.linalg.eigvals(W) == pytest.approx([-1.25, 1])
    assert re.match(r"does not work: agent 0's loss has the weight -1.25 < 0.*metropolis", say(W, "ATC"))


@given(sparse_rows(), st.integers(0, 2**31))
def test_the_steps_that_the_verdicts_name(W, seed):
    assume(check_mixing(W).connected)
    W = np.array(W.T)
    w, curvatures = check_mixing(W).perron_right, np.random.default_rng(seed).uniform(0, 1, len(W))
    assert radius(round_of("push-sum", W, 1.99 * w.min(), curvatures)) <= 1 + 1e-9
    step = check_mixing(W.T).largest_step
    assert step <= 2
    if step > 1e-3:
        assert radius(W.T - 0.999 * step * np.eye(len(W))) < 1 < radius(W.T - 1.001 * step * np.eye(len(W)))


def almost_still(Q, link):
    """A ring whose agents listen to the next one with the weight `link` only."""
    return (1 - link) * np.eye(Q) + link * np.roll(np.eye(Q), 1, axis=0)


@pytest.mark.parametrize("W", [almost_still(2, 1e-7), almost_still(5, 1e-9), lazy(almost_still(3, 1e-8))])
def test_what_is_aperiodic_settles_however_slowly(W):
    report = check_mixing(W)
    assert report.second_modulus > 1 - 1e-6
    assert not report.oscillates
    assert report.agree_on == "the mean"
    assert all(re.match("works, but slow", str(v)) for v in report.verdicts.values())


def test_a_small_step_is_a_step():
    verdict = say([[1e-8, 1 - 1e-8], [1 - 1e-8, 1e-8]], "DGD")
    assert re.match(r"works, but oscillates: λ_min = -1 leaves only step sizes below 2e-08/h", verdict)
    assert re.match("does not work", say([[1e-17, 1], [1, 1e-17]], "DGD"))


def test_a_long_lazy_directed_ring_is_slow():
    Q = 3000
    ring = scipy.sparse.csr_array((np.ones(Q), ((np.arange(Q) + 1) % Q, np.arange(Q))), (Q, Q))
    report = check_mixing((scipy.sparse.eye_array(Q) + ring) / 2)
    assert report.second_modulus == pytest.approx(np.cos(np.pi / Q), abs=1e-8)
    assert re.match("works, but slow", str(report.verdicts["DGD"]))
    assert report.agree_on == "the mean"


# --- further facts ---


@given(sparse_rows())
@many
def test_both_perron_vectors(W):
    report = check_mixing(W)
    assume(report.connected)
    np.testing.assert_allclose(report.perron_right, 1, rtol=0, atol=1e-12)
    turned = check_mixing(W.T)
    np.testing.assert_allclose(turned.perron_right, len(W) * report.perron_left, rtol=0, atol=1e-10)
    assert report.perron_distance == pytest.approx(abs(report.perron_left - 1 / len(W)).sum() / 2)
    scaled = check_mixing(3 * W)  # neither sums are one: the spectral radius takes the place of 1
    np.testing.assert_allclose(scaled.perron_left, report.perron_left, rtol=0, atol=1e-10)


@given(sparse_rows(), st.booleans())
@many
def test_mixing_time_is_the_first_round_within_a_quarter(W, columns):
    report = check_mixing(W.T if columns else W)
    if not (report.connected and report.aperiodic):
        assert report.mixing_time is None
        return
    assume(report.mixing_time < 10**4)
    power, pi = np.eye(len(W)), check_mixing(W).perron_left
    for rounds in range(report.mixing_time + 1):
        far = abs(power - pi).sum(axis=1).max() / 2
        assert (far > 0.25 - 1e-12) if rounds < report.mixing_time else (far <= 0.25 + 1e-12)
        power = W @ power


@given(sparse_rows(), st.floats(0, 0.95))
@many
def test_effective_neighbours_are_the_variances_ratio(W, decay):
    """The covariance of z⁺ = W(√γ z + ξ), round by round from 0."""
    covariance = np.zeros_like(W)
    for _ in range(600):  # 0.95^600 = 4e-14
        covariance = W @ (decay * covariance + np.eye(len(W))) @ W.T
    alone = 1 / (1 - decay)
    assert check_mixing(W).effective_neighbours(decay) == pytest.approx(alone / np.diag(covariance).mean(), rel=1e-9)


def test_effective_neighbours_of_nobody_and_all():
    assert check_mixing(np.eye(4)).effective_neighbours() == pytest.approx(1)
    assert check_mixing(np.full((7, 7), 1 / 7)).effective_neighbours(0.99) == pytest.approx(7)
    assert np.isnan(check_mixing(2 * np.eye(2)).effective_neighbours())
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1, found 1"):
        check_mixing(np.eye(2)).effective_neighbours(1)


def test_effective_neighbours_where_there_is_no_variance_or_no_limit(sparse):
    for W in (np.zeros((3, 3)), np.zeros((1, 1)), np.zeros((9, 9)), 2 * np.eye(9), 1e75 * np.eye(2)):
        assert np.isnan(check_mixing(W).effective_neighbours()), W
    for decay in (0, 0.5, 0.99):
        assert check_mixing(np.eye(9)).effective_neighbours(decay) == pytest.approx(1, rel=1e-5)
        assert np.isnan(check_mixing(0.5 * np.eye(9)).effective_neighbours(decay))  # it shrinks, and does not average


def test_links_that_are_lost_in_rounding_are_reported():
    block = np.array([[0.5, 0.5], [0.25, 0.75]])
    W = np.kron(np.eye(2), block)
    W[0, 2] = W[3, 1] = 1e-17
    report = check_mixing(W)
    assert report.connected
    assert report.perron_left is None
    assert any("lost in rounding" in what for what in report.left_out)
    assert re.match("works, but slow", str(report.verdicts["DGD"]))
    json.dumps(report.to_dict(), allow_nan=False)
    assert re.match("works, but slow", str(check_mixing(schedules.periodic([W])).verdicts["DGD"]))


def test_non_normality():
    normal, not_normal = check_mixing(lazy(SHIFT)), check_mixing(ROW)
    assert (normal.departure_from_normality, normal.numerical_abscissa) == (0, 1)
    assert check_mixing(metropolis(graphs.cycle(5))).departure_from_normality == 0
    # Schur's triangular form has the departure above its diagonal.
    upper = np.triu(scipy.linalg.schur(ROW, output="complex")[0], 1)
    assert not_normal.departure_from_normality == pytest.approx(np.linalg.norm(upper))
    turns = np.random.default_rng(0).normal(size=(2000, 3))
    values = np.sum(turns * (turns @ ROW.T), axis=1) / np.sum(turns**2, axis=1)
    assert max(values) <= not_normal.numerical_abscissa == pytest.approx(max(values), rel=1e-3)


@pytest.mark.parametrize(
    ("W", "agreed"),
    [
        (metropolis(graphs.cycle(4)), "the mean"),
        (ROW, "a π-weighted mean"),
        (ROW.T, "the mean, by push-sum only"),
        (SHIFT, "nothing"),
        (TWO_PAIRS, "nothing"),
        (2 * ROW, "nothing"),
    ],
)
def test_what_the_agents_agree_on(W, agreed):
    assert check_mixing(W).agree_on == agreed


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (best_constant, 0.71186),
        pytest.param(fastest_mixing, 0.68096, marks=pytest.mark.needs("cvxpy")),
        pytest.param(lambda g: fastest_mixing(g, nonnegative=False), 0.64333, marks=pytest.mark.needs("cvxpy")),
    ],
)
def test_negative_weights_that_work(build, value):
    report = check_mixing(build(nx.Graph(sorted(map(sorted, BOYD)))))
    assert report.second_modulus == pytest.approx(value, abs=1e-5)
    assert {v.answer for v in report.verdicts.values()} == {"works"}


# --- graphs ---


def test_a_graphs_weights_are_its_matrix():
    W = ROW.copy()
    graph = nx.from_numpy_array(W.T, create_using=nx.DiGraph)  # the edge u → v is W[v, u]
    report = check_mixing(graph)
    assert np.array_equal(report.matrix, W)
    assert report.source == "weights of the graph's edges"
    undirected = nx.Graph()
    undirected.add_weighted_edges_from([(0, 1, 0.25), (0, 0, 0.75), (1, 1, 0.75)])
    assert np.array_equal(check_mixing(undirected).matrix, [[0.75, 0.25], [0.25, 0.75]])


def test_a_graph_without_weights_is_given_the_usual_ones():
    report = check_mixing(graphs.cycle(5))
    assert np.array_equal(report.matrix, metropolis(graphs.cycle(5)))
    assert "metropolis(graph)" in str(report)
    ring = nx.cycle_graph(4, create_using=nx.DiGraph)
    report = check_mixing(ring)
    assert np.array_equal(report.matrix, push_weights(ring))
    assert np.array_equal(report.matrix, (np.eye(4) + np.roll(np.eye(4), 1, axis=0)) / 2)
    assert "push_weights(graph)" in report.source


def test_push_weights():
    graph = nx.DiGraph([(0, 1), (0, 2), (1, 0), (2, 0)])
    assert push_weights(graph) == pytest.approx(np.array([[2, 3, 3], [2, 3, 0], [2, 0, 3]]) / 6)
    assert {v.answer for a, v in check_mixing(graph).verdicts.items() if a == "push-sum"} == {"works"}


@pytest.mark.parametrize(
    ("edges", "kind", "error", "message"),
    [
        ([(0, 1, {"weight": 0.5}), (1, 2, {})], nx.Graph, ValueError, "edge 1–2 has no weight and others have"),
        ([(0, 1, {"weight": "a"})], nx.DiGraph, TypeError, "edge 0–1 has the weight 'a'"),
        ([(0, 1, {"weight": 1j})], nx.DiGraph, TypeError, "edge 0–1 has the weight 1j"),
        ([(0, 1, {"weight": np.inf})], nx.DiGraph, ValueError, r"mixing\[1, 0\] is inf"),
        ([(0, 1), (1, 1)], nx.Graph, ValueError, "self-loop at node 1"),
        ([(0, 1), (1, 1)], nx.DiGraph, ValueError, "self-loop at node 1"),
        ([(0, 1), (0, 1)], nx.MultiGraph, ValueError, r"multigraph.*nx.Graph\(graph\)"),
        ([(0, 1), (0, 1)], nx.MultiDiGraph, ValueError, r"multigraph.*nx.DiGraph\(graph\)"),
        ([], nx.Graph, ValueError, "no nodes"),
    ],
)
def test_refuses_other_graphs(edges, kind, error, message):
    with pytest.raises(error, match=message):
        check_mixing(kind(edges))


# --- large matrices ---


@pytest.fixture
def sparse(monkeypatch):
    """Whatever has more than five agents is large."""
    monkeypatch.setattr(check, "DENSE", 5)


LARGE = {
    "symmetric": metropolis(nx.random_regular_graph(4, 60, seed=0)),
    "long ring": metropolis(graphs.cycle(400)),
    "bipartite": nx.to_numpy_array(graphs.cycle(60)) / 2,
    "directed": push_weights(nx.DiGraph(nx.gnp_random_graph(100, 0.1, seed=1, directed=True))),
    "directed rows": push_weights(nx.DiGraph(nx.gnp_random_graph(100, 0.1, seed=1, directed=True))).T,
    "directed ring": np.roll(np.eye(60), 1, axis=0),
    "lazy directed ring": lazy(np.roll(np.eye(60), 1, axis=0)),
    "scaled": 0.5 * push_weights(nx.DiGraph(nx.gnp_random_graph(100, 0.1, seed=1, directed=True))),
    "apart": np.kron(np.eye(2), np.full((20, 20), 0.05)),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_matrix_is_reported_like_a_small_one(name, monkeypatch):
    W = LARGE[name]
    small = check_mixing(W)
    monkeypatch.setattr(check, "DENSE", 5)
    large = check_mixing(scipy.sparse.csr_array(W))
    assert isinstance(large.matrix, scipy.sparse.csr_array)
    exact = "size symmetric nonnegative components period row_stochastic column_stochastic agree_on"
    for fact in exact.split():
        assert getattr(large, fact) == getattr(small, fact), fact
    assert large.numerical_abscissa == pytest.approx(small.numerical_abscissa, abs=1e-8)
    rough = any("residual" in what for what in large.left_out)
    for fact in ("second_modulus", "smallest_eigenvalue"):
        if name != "apart":
            assert getattr(large, fact) == pytest.approx(getattr(small, fact), abs=1e-2 if rough else 1e-8), fact
    for fact in ("perron_left", "perron_right"):
        expected, found = getattr(small, fact), getattr(large, fact)
        if expected is not None:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert [v.answer for v in large.verdicts.values()] == [v.answer for v in small.verdicts.values()]
    assert large.left_out
    json.dumps(large.to_dict(), allow_nan=False)


def test_effective_neighbours_of_a_large_matrix_are_estimated(sparse):
    # 64 probes of 60 signs: the estimate of a trace of such a size is good to a few per cent.
    for name in ("symmetric", "directed rows"):
        W = LARGE[name]
        exact = topology_spectrum.effective_neighbours(W, np.linalg.eigvals(W), 0.9)
        assert check_mixing(W).effective_neighbours() == pytest.approx(exact, rel=0.1)


def test_ten_thousand_agents():
    graph = nx.cycle_graph(10_000)
    report = check_mixing(mixing_of(graph)[0])
    assert report.spectral_gap == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / 10_000)), rel=1e-6)
    assert report.smallest_eigenvalue == pytest.approx(-1 / 3, abs=1e-8)
    assert re.match("works, but slow", str(report.verdicts["DGD"]))
    assert "all eigenvalues but the extreme ones" in str(report).replace("\n", " ")


# --- schedules ---


def rounds_of(W):
    return [W.matrices[k] for k in W.order]


def test_a_periodic_schedule_that_averages_exactly():
    report = check_mixing(schedules.one_peer_exponential(8))
    assert (report.radius, report.agree_on) == (0, "the mean")
    assert report.contraction == pytest.approx(0, abs=1e-12)
    assert {v.answer for v in report.verdicts.values()} == {"works"}
    assert report.connected_rounds == 1
    assert "Periodic mixing, 3 rounds of 8 × 8" in str(report)


@st.composite
def row_schedules(draw):
    n, rounds = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    matrices = rng.uniform(0.1, 1, (rounds, n, n)) * (rng.random((rounds, n, n)) < 0.5) + 0.3 * np.eye(n)
    return schedules.periodic(matrices / matrices.sum(axis=2, keepdims=True))


@given(row_schedules(), st.integers(0, 2**31))
@many
def test_a_schedules_facts_are_those_of_its_product(schedule, seed):
    report = check_mixing(schedule)
    product = reduce(lambda so_far, W: W @ so_far, rounds_of(schedule))
    np.testing.assert_allclose(report.product, product, rtol=0, atol=1e-12)
    union = digraph(sum(rounds_of(schedule)))
    assert report.components == sorted(map(sorted, nx.strongly_connected_components(union)))
    assert report.rate**schedule.period == pytest.approx(report.radius, abs=1e-12)
    x = np.random.default_rng(seed).normal(size=(schedule.agents, 20))
    before, after = (np.linalg.norm(y - y.mean(axis=0), axis=0) for y in (x, product @ x))
    assert np.all(after <= (report.contraction + 1e-9) * before)
    if report.connected:
        # Self-weights and joint connection: what the losses weigh is where DGD goes with small steps.
        targets, eta = np.random.default_rng(seed).normal(size=schedule.agents), 1e-5
        change = np.eye(schedule.agents)
        offset = np.zeros(schedule.agents)
        for W in rounds_of(schedule):
            step = W - eta * np.eye(schedule.agents)
            change, offset = step @ change, step @ offset + eta * targets
        rest = np.linalg.solve(np.eye(schedule.agents) - change, offset)
        scale = max(1, 1 / (1 - report.radius))
        np.testing.assert_allclose(rest, report.loss_weights @ targets, atol=1e-3 * scale**2)


SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])
ONE_WAY = [np.array([[1, 0], [0.5, 0.5]]), np.array([[0.7, 0.3], [0, 1]])]


@given(sparse_rows())
def test_forgetting_is_that_only_one_eigenvalue_has_modulus_one(W):
    assert topology_spectrum.forgets(W) == (np.sum(abs(np.linalg.eigvals(W)) > 1 - 1e-6) == 1)


@pytest.mark.parametrize(("matrices", "grows"), [([SWAP], True), ([SWAP, SWAP], True), ([SWAP, np.eye(2)], False)])
def test_what_is_said_of_dgd_over_a_period_that_leaves_disagreement_is_true(matrices, grows):
    for eta in (1e-2, 0.1, 0.5):
        H = eta * np.diag([1, 0.3])
        assert (radius(reduce(lambda so_far, W: (W - H) @ so_far, matrices, np.eye(2))) > 1) == grows
    assert (check_mixing(schedules.periodic(matrices)).verdicts["DGD"].answer == "does not work") == grows


@pytest.mark.parametrize(
    ("schedule", "algorithms", "verdict"),
    [
        (schedules.periodic(ONE_WAY), "DGD CTA ATC", "works, but biased to π"),
        (schedules.periodic(ONE_WAY), "push-sum", "does not work: in round 0, column 0 sums to 1.5"),
        (schedules.periodic([W.T for W in ONE_WAY]), "push-sum", "works: "),
        (schedules.periodic([W.T for W in ONE_WAY]), "DGD", r"does not.* round 0, row 0 sums.*push-sum takes.*W\.T"),
        (schedules.periodic([SWAP]), "DGD", "does not work: a period leaves some disagreement"),
        (schedules.periodic([SWAP, SWAP]), "DGD", "does not work: a period leaves.*make it grow"),
        (
            schedules.periodic([SWAP, SWAP]),
            "CTA ATC push-sum",
            r"works, but a period leaves.*can damp it → .*lazy\(W\)",
        ),
        (schedules.periodic([SWAP, np.eye(2)]), "DGD", "works, but a period leaves.*may damp it or make it grow"),
        (
            schedules.periodic([REFLECTION]),
            "DGD ATC push-sum",
            "does not work: a period leaves.*below 0.*may leave it or",
        ),
        (schedules.periodic([almost_still(3, 1e-8)]), "DGD ATC push-sum", "works, but slow"),
        (schedules.periodic([TWO_PAIRS, TWO_PAIRS]), "DGD ATC push-sum", "does not work: falls into 2 comp.*edge 0–2"),
        (schedules.sequence([SWAP]), "DGD ATC push-sum", "works, but too short: .*more rounds"),
        (schedules.sequence([lazy(SWAP)] * 3), "DGD ATC push-sum", "works: "),
        (
            schedules.periodic([metropolis(graphs.cycle(60))] * 2),
            "DGD",
            "works, but slow: mixing takes about 189 rounds",
        ),
        (schedules.periodic([[[2.0, -1.0], [-1.0, 2.0]]]), "DGD push-sum", "does not work: a period makes some"),
        (schedules.periodic([[[0.5, 0.5], [-0.1, 1.1]]]), "ATC", "does not work: agent 0's loss has the weight -0.25"),
        (schedules.periodic([[[0.5, -0.1], [0.5, 1.1]]]), "push-sum", r"does not.* weights below 0.*push_weights\("),
        (
            schedules.periodic([[[0, 0], [1, 1]], [[0.5, 0.5], [0.5, 0.5]]]),
            "push-sum",
            "does not.* agent 0 receives noth",
        ),
    ],
)
def test_verdicts_of_schedules(schedule, algorithms, verdict):
    report = check_mixing(schedule)
    for algorithm in algorithms.split():
        assert re.match(verdict, str(report.verdicts[algorithm])), report
    json.dumps(report.to_dict(), allow_nan=False)
    assert report._repr_html_().startswith("<table>")


# --- text, HTML, JSON, plots ---


def test_text_is_aligned_and_complete():
    report = check_mixing(ROW.T)
    lines = str(report).splitlines()
    assert lines[0] == "Mixing matrix, 3 × 3"
    assert "  row sums are 1         no, row 0 sums to 0.75" in lines
    assert "  column sums are 1      yes" in lines
    assert "  push-sum: works: the agents come to agree, and every agent's loss counts alike" in lines
    text = " ".join(line.strip() for line in lines)
    assert f"DGD, CTA, ATC: {report.verdicts['DGD']!s}" in text
    assert max(map(len, lines)) <= 80
    assert repr(report) == str(report)


def test_html_is_two_tables_with_escaped_text():
    page = check_mixing([[0.5, 0.5], [-0.1, 1.1]])._repr_html_()
    assert page.startswith("<table>")
    assert ">nonnegative</td>" in page
    assert ">no, down to -0.1</td>" in page
    assert "-0.25 &lt; 0" in page


def test_rich_shows_the_same():
    for what in (ROW, schedules.one_peer_exponential(4)):
        out = StringIO()
        Console(file=out, width=200).print(check_mixing(what))
        assert "push-sum" in out.getvalue()
        assert "row sums are 1" in out.getvalue()


@given(sparse_rows(most=5))
def test_to_dict_is_json(W):
    report = check_mixing(W)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["worst_row"] == {"index": report.worst_row[0], "defect": report.worst_row[1]}
    assert [v["about"] for v in found["verdicts"].values()] == ["DGD", "CTA", "ATC", "push-sum"]
    values = [complex(*v) if isinstance(v, list) else v for v in found["eigenvalues"]]
    np.testing.assert_array_equal(values, report.eigenvalues)


@pytest.mark.parametrize(
    "what",
    [ROW, metropolis(graphs.cycle(6)), TWO_PAIRS, [[1]], best_constant(graphs.star(6)), metropolis(graphs.cycle(101))],
    ids=["directed", "undirected", "apart", "one", "negative", "many"],
)
def test_the_plot_shows_every_eigenvalue_and_edge(what):
    report = check_mixing(what)
    disc, graph = report.plot()
    drawn = np.concatenate([line.get_xydata() for line in disc.lines if line.get_marker() in "os"])
    values = report.eigenvalues.astype(complex)
    np.testing.assert_allclose(np.sort_complex(drawn @ [1, 1j]), np.sort_complex(values), atol=1e-9)
    agents = {text.get_text() for text in graph.texts} - {""}
    assert len(agents) == (len(what) if len(what) <= 100 else 1)
    disc.figure.clf()
