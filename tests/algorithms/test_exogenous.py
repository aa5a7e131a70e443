"""What of a run goes its own way, and from when on it repeats itself."""

import jax
import networkx as nx
import numpy as np
import pytest

from ntkp2p import DGD, Delayed, PushSum, SkewCompensatedSparsePush, SparsePush, TopK, graphs, metropolis, push_weights
from ntkp2p.algorithms.exogenous import Form, course, repetition

Q = 5
GRAPH = nx.DiGraph([(i, (i + 1) % Q) for i in range(Q)] + [(0, 2), (3, 1), (3, 0)])
P = push_weights(GRAPH)
OTHER = push_weights(nx.DiGraph([(i, (i + 2) % Q) for i in range(Q)] + [(4, 0)]))
COMPENSATED = SkewCompensatedSparsePush(0.1, TopK(0.3), gradient_rounds=3, gossip_rounds=2, dense_rounds=4)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("algorithm", "moves"),
    [
        (DGD(0.1), [True]),
        (Delayed(DGD(0.1), gradients=2), [True, True, True]),
        (PushSum(0.1), [True, False]),
        (PushSum(0.1, momentum=0.9), [True, False, True]),
        (SparsePush(0.1, TopK(0.1)), [True, False, True, False, False]),
    ],
)
def test_what_depends_on_the_size_of_a_model_moves(algorithm, moves):
    assert Form.of(algorithm, Q).moves == tuple(moves)


@pytest.mark.parametrize("algorithm", [PushSum(0.1, momentum=0.9), COMPENSATED], ids=lambda a: a.name)
def test_a_course_by_numpy_is_the_one_that_is_compiled(algorithm):
    matrices, order = np.stack([P, OTHER]), np.arange(20) % 2
    found, expected = (course(algorithm, matrices, order, layers=layers).states for layers in ((), (1,)))
    for some, others in zip(found, expected, strict=True):
        assert some.dtype == others.dtype
        np.testing.assert_allclose(some, others, rtol=1e-14)


def test_weights_are_products_of_the_matrices():
    matrices, order = np.stack([P, OTHER]), np.array([0, 1, 1, 0])
    (weights,) = course(PushSum(0.1), matrices, order).states
    expected = [np.ones(Q)]
    for k in order:
        expected.append(matrices[k] @ expected[-1])
    np.testing.assert_allclose(weights[:, :, 0], expected, rtol=1e-14)


def test_weights_settle_at_the_perron_vector():
    found = repetition(PushSum(0.1), P[None], np.zeros(1, int), True)
    assert found.length == 1
    values, vectors = np.linalg.eig(P)
    perron = np.abs(vectors[:, np.argmax(values.real)])
    second = np.sort(np.abs(values))[-2]
    # They approach it like the second eigenvalue: to rounding after about log(ε)/log|λ₂| rounds.
    assert found.begin <= 1.2 * np.log(np.finfo(float).eps) / np.log(second)
    np.testing.assert_allclose(found.states[0][-1, :, 0], Q * perron / perron.sum(), rtol=1e-13)


@pytest.mark.parametrize(
    ("algorithm", "matrices", "order", "begin", "length"),
    [
        (DGD(0.1), [metropolis(graphs.cycle(Q))], [0], 0, 1),
        (PushSum(0.1), [push_weights(nx.cycle_graph(Q, create_using=nx.DiGraph))], [0], 0, 1),
        (SparsePush(0.1, TopK(0.3), dense_rounds=7), [metropolis(graphs.cycle(Q))], [0], 7, 1),
        (COMPENSATED, [metropolis(graphs.cycle(Q))], [0], 4, 6),
        (COMPENSATED, [metropolis(graphs.cycle(Q)), np.eye(Q)], [0, 1, 1, 1], 4, 12),
    ],
    ids=["none", "regular", "dense start", "cycles", "cycles over a schedule"],
)
def test_repetition_is_found(algorithm, matrices, order, begin, length):
    found = repetition(algorithm, np.stack(matrices), np.array(order), True)
    assert (found.begin, found.length) == (begin, length)
    assert all(len(leaf) == begin + length for leaf in found.states)


@pytest.mark.parametrize(("gain", "length"), [(1e-15, 1), (-1e-15, 1), (1e-9, 0)])
def test_what_all_weights_gain_by_rounding_is_not_growth(gain, length):
    found = repetition(PushSum(0.1), (1 + gain) * P[None], np.zeros(1, int), True, most=4096)
    assert found.length == length


@pytest.mark.parametrize("n", [12, 20])
def test_small_weights_settle_as_exactly_as_large_ones(n):
    """On i → i + 1, i → 0 the Perron vector falls like 3^−i: models are quotients, so shares of each entry count."""
    matrix = push_weights(nx.DiGraph([(i, i + 1) for i in range(n - 1)] + [(i, 0) for i in range(1, n)]))
    found = repetition(PushSum(0.1), matrix[None], np.zeros(1, int), True)
    assert found.length == 1
    # W w = w entry by entry, from the last agent back: w_{i+1} (1 − P_{i+1,i+1}) = P_{i+1,i} w_i.
    w = np.ones(n)
    for i in range(n - 1):
        w[i + 1] = matrix[i + 1, i] * w[i] / (1 - matrix[i + 1, i + 1])
    np.testing.assert_allclose(found.states[0][-1, :, 0], n * w / w.sum(), rtol=2e-13)


def test_a_period_longer_than_the_limit_is_followed_once():
    order = np.zeros(70_000, int)
    order[-1] = 1
    found = repetition(PushSum(0.1), np.stack([P, OTHER]), order, True, most=50)
    assert (found.length, len(found.states[0])) == (0, 51)


def test_a_schedule_repeats_its_weights_in_turn():
    matrices, order = np.stack([P, OTHER]), np.array([0, 1, 1])
    found = repetition(PushSum(0.1), matrices, order, True)
    assert found.length == 3
    (weights,) = course(PushSum(0.1), matrices, np.tile(order, 60)).states
    at = found.begin + (150 - found.begin) % 3
    np.testing.assert_allclose(found.states[0][at], weights[150], rtol=1e-13)


def test_what_never_repeats_is_followed_to_its_end():
    found = repetition(PushSum(0.1), np.stack([P, OTHER]), np.array([0, 1, 1]), False)
    assert (found.begin, found.length, len(found.states[0])) == (3, 0, 4)
