"""Schedules: which matrix a round mixes with, what the named ones average, and what is refused."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkp2p.topology import Schedule, graphs, metropolis, push_weights, schedules, validate_mixing
from ntkp2p.topology.schedules import (
    absence,
    failing_links,
    one_peer_exponential,
    periodic,
    random_matchings,
    rotating_ring,
    sequence,
)

RING, STAR = metropolis(graphs.cycle(4)), metropolis(graphs.star(4))
PAIRS = np.kron(np.eye(2), np.full((2, 2), 0.5))
OTHER_PAIRS = np.roll(PAIRS, (1, 1), axis=(0, 1))


@given(pattern=st.lists(st.integers(0, 2), min_size=1, max_size=12), rounds=st.integers(0, 40))
def test_rounds_take_the_matrices_in_turn_and_equal_ones_are_stored_once(pattern, rounds):
    choices = RING, STAR, PAIRS.tolist()
    given = [choices[i] for i in pattern]
    repeated, once = periodic(given), sequence(given)
    for schedule in (repeated, once):
        assert (schedule.agents, schedule.period) == (4, len(pattern))
        assert len(schedule.matrices) == len(set(pattern))
        assert schedule.symmetric
    assert repeated.covers(rounds)
    assert once.covers(rounds) == (rounds <= len(pattern))
    for k, index in enumerate(repeated.indices(rounds)):
        np.testing.assert_array_equal(repeated.at(k), given[k % len(pattern)])
        np.testing.assert_array_equal(repeated.matrices[index], repeated.at(k))
    reached = min(rounds, len(pattern))
    np.testing.assert_array_equal(once.indices(reached), repeated.indices(reached))


def test_no_round_past_the_end_nor_before_the_start():
    once = sequence([RING, STAR])
    np.testing.assert_array_equal(once.at(1), STAR)
    for beyond in (lambda: once.at(2), lambda: once.indices(3)):
        with pytest.raises(IndexError, match=r"2 rounds has no round 2: give it more .*schedules.periodic\(matrices\)"):
            beyond()
    for schedule in (once, periodic([RING])):
        with pytest.raises(IndexError, match="no round -1: rounds count from 0"):
            schedule.at(-1)


def test_is_a_copy_that_cannot_be_written_to():
    W = RING.copy()
    schedule = periodic([W, STAR])
    W[:] = 0
    np.testing.assert_array_equal(schedule.at(0), RING)
    for array in (schedule.matrices, schedule.order, schedule.at(0)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_symmetric_is_to_rounding():
    assert not periodic([RING, one_peer_exponential(4).at(0)]).symmetric
    for change, symmetric in ((1e-15, True), (1e-13, False)):
        tilted = RING.copy()
        tilted[0, 1] += change
        assert periodic([tilted]).symmetric is symmetric


def test_says_what_it_is():
    assert repr(periodic([RING, STAR, RING])) == "Schedule(4 agents, periodic over 3 rounds, 2 matrices)"
    assert repr(sequence([RING, STAR])) == "Schedule(4 agents, 2 rounds, 2 matrices)"


# --- the named ones ---


@pytest.mark.parametrize("agents", [1, 2, 4, 8, 32])
def test_one_peer_exponential_averages_exactly_over_a_period(agents):
    schedule = one_peer_exponential(agents)
    assert schedule.period == max(1, np.log2(agents))
    for start in range(schedule.period):  # whichever round comes first
        product = np.eye(agents)
        for k in range(start, start + schedule.period):
            product = schedule.at(k) @ product
        np.testing.assert_allclose(product, 1 / agents, rtol=0, atol=1e-15)


@pytest.mark.parametrize("agents", [3, 6, 10, 33])
def test_one_peer_exponential_is_circulant_with_one_neighbour(agents):
    schedule = one_peer_exponential(agents)
    assert schedule.period == np.ceil(np.log2(agents))
    for k in range(2 * schedule.period):
        W = schedule.at(k)
        expected = np.zeros(agents)
        expected[[0, 2 ** (k % schedule.period)]] = 0.5
        for q in range(agents):
            np.testing.assert_array_equal(W[q], np.roll(expected, q))
    assert validate_mixing(schedule, agents=agents, stochastic="doubly") is schedule


@pytest.mark.parametrize("agents", [2, 3, 5, 8])
def test_rotating_ring_sends_half_to_everyone_in_turn(agents):
    schedule = rotating_ring(agents)
    assert (schedule.period, schedule.periodic) == (agents - 1, True)
    assert validate_mixing(schedule, agents=agents, stochastic="doubly") is schedule
    for k in range(2 * agents):
        expected = np.zeros((agents, agents))
        for i in range(agents):
            expected[i, i] += 0.5
            expected[(i + 1 + k % (agents - 1)) % agents, i] += 0.5
        np.testing.assert_array_equal(schedule.at(k), expected)
    np.testing.assert_array_equal(schedule.union, 0.5)  # every ordered pair once


def test_rotating_ring_of_one():
    np.testing.assert_array_equal(rotating_ring(1).matrices, [[[1]]])


@given(n=st.integers(1, 12), p=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_matchings_are_maximal_and_average_pairs(n, p, seed):
    graph = nx.gnp_random_graph(n, p, seed=seed)
    schedule = random_matchings(graph, 5, seed=seed)
    assert (schedule.agents, schedule.period, schedule.periodic) == (n, 5, False)
    assert schedule.symmetric
    for k in range(5):
        W = schedule.at(k)
        pairs = {tuple(sorted(pair)) for pair in np.argwhere(W - np.diag(np.diag(W))).tolist()}
        assert nx.is_maximal_matching(graph, pairs)
        np.testing.assert_array_equal(W.sum(axis=1), 1)
        np.testing.assert_array_equal(W @ W, W)  # a projection: pairs average
        assert set(W[W > 0]) <= {0.5, 1.0}


def test_matchings_by_seed_and_in_the_graphs_own_node_order():
    graph = graphs.cycle(10)
    first, again, other = (random_matchings(graph, 20, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.matrices, again.matrices)
    assert not np.array_equal(first.at(0), other.at(0))
    np.testing.assert_array_equal(random_matchings(graph, 5, seed=3).at(4), first.at(4))
    named = nx.relabel_nodes(graph, dict(enumerate("jihgfedcba")))
    np.testing.assert_array_equal(random_matchings(named, 20, seed=3).matrices, first.matrices)
    assert validate_mixing(first, agents=10, rounds=20, stochastic="doubly") is first


def test_every_link_is_drawn():
    graph = graphs.star(5)
    schedule = random_matchings(graph, 200)
    drawn = sum(schedule.at(k) for k in range(200))
    counts = 2 * drawn[0, 1:]  # a round of a star pairs the hub with one leaf
    assert counts.sum() == 200
    assert counts.min() > 30


# --- links that fail, agents that leave ---

DIRECTED = push_weights(graphs.directed_random(6, 0.5, seed=1))
MIXINGS = {
    "column": DIRECTED,
    "row": DIRECTED.T,
    "symmetric": metropolis(graphs.erdos_renyi(6, 0.6, seed=1)),
    "schedule": rotating_ring(6),
}


def without(W, failed, line):
    """W with the links (v, u) of `failed` gone, entry by entry."""
    left = np.array(W)
    for v, u in failed:
        left[v, u] = 0
        left[(u, u) if line == "column" else (v, v)] += W[v, u]
    return left


def links_of(W):
    return {(v, u) for v, u in np.argwhere(W).tolist() if v != u}


@pytest.mark.parametrize("name", MIXINGS)
@given(probability=st.floats(0, 1), seed=st.integers(0, 2**31), agent=st.integers(0, 5))
@settings(max_examples=10)
def test_what_a_failing_link_does_not_carry_stays(name, probability, seed, agent):
    mixing = MIXINGS[name]
    whole = mixing if isinstance(mixing, Schedule) else periodic([mixing])
    line = "row" if name == "row" else "column"
    x = np.random.default_rng(seed).normal(size=6)
    failing = failing_links(mixing, 6, probability, seed=seed)
    # Either one of the two, and each of the other one's.
    for schedule in (failing, absence(mixing, 6, agent, 1, 4), absence(failing, 6, agent, 1, 4)):
        assert (schedule.period, schedule.periodic) == (6, False)
        for k in range(6):
            W, left = whole.at(k), schedule.at(k)
            failed = links_of(W) - links_of(left)
            np.testing.assert_allclose(left, without(W, failed, line), rtol=0, atol=1e-15)
            assert left.min() >= 0
            if name != "row":
                np.testing.assert_allclose(left.sum(axis=0), 1, rtol=0, atol=1e-15)
                np.testing.assert_allclose((left @ x).sum(), x.sum(), rtol=0, atol=1e-13)
            if name in ("row", "symmetric"):
                np.testing.assert_allclose(left.sum(axis=1), 1, rtol=0, atol=1e-15)
            if name == "symmetric":
                np.testing.assert_array_equal(left, left.T)
            if schedule is not failing and 1 <= k < 4:
                assert left[agent, agent] == pytest.approx(1, abs=1e-15)
                assert not links_of(left) & {(i, j) for i in range(6) for j in range(6) if agent in (i, j)}


@pytest.mark.parametrize(("stochastic", "opposite"), [(None, 0.3), ("row", 0.3**2), ("column", 0.3**2)])
def test_links_fail_as_often_as_they_are_said_to(stochastic, opposite):
    W, rounds = metropolis(graphs.cycle(5)), 2000
    links = sorted(links_of(W))
    schedule = failing_links(W, rounds, 0.3, seed=8, stochastic=stochastic)
    failed = np.stack([schedule.at(k) for k in range(rounds)])[:, *np.transpose(links)] == 0
    expected = np.full((10, 10), 0.3**2)
    for i, (v, u) in enumerate(links):
        expected[i, i], expected[i, links.index((u, v))] = 0.3, opposite
    # Hoeffding: that one of the 110 frequencies is farther off than this has a probability of 1e-9 at most.
    far = math.sqrt(math.log(2 * 110 / 1e-9) / (2 * rounds))
    np.testing.assert_allclose(failed.T.astype(float) @ failed / rounds, expected, rtol=0, atol=far)
    in_both_of_two = (failed[::2] & failed[1::2]).mean(axis=0)
    np.testing.assert_allclose(in_both_of_two, 0.3**2, rtol=0, atol=far * math.sqrt(2))


@pytest.mark.parametrize("name", MIXINGS)
def test_failing_links_by_seed_and_the_first_rounds_whatever_follows(name):
    first, again, other = (failing_links(MIXINGS[name], 20, 0.3, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.matrices, again.matrices)
    assert not np.array_equal(first.at(0), other.at(0))
    short = failing_links(MIXINGS[name], 5, 0.3, seed=3)
    for k in range(5):
        np.testing.assert_array_equal(short.at(k), first.at(k))


def test_none_and_all_fail():
    never, always = (failing_links(DIRECTED, 3, p) for p in (0.0, 1.0))
    np.testing.assert_array_equal(never.at(2), DIRECTED)
    np.testing.assert_allclose(always.at(2), np.eye(6), rtol=0, atol=1e-15)


def test_the_sums_to_keep_can_be_said():
    ring = rotating_ring(4)
    for stochastic, other in (("row", "column"), ("column", "row")):
        for schedule in (
            failing_links(ring, 30, 0.2, stochastic=stochastic),
            absence(ring, 30, 1, 3, 9, stochastic=stochastic),
        ):
            assert validate_mixing(schedule, rounds=30, stochastic=stochastic) is schedule
            with pytest.raises(ValueError, match=f"{other} . sums to"):
                validate_mixing(schedule, stochastic=other)
    default, column = failing_links(ring, 30, 0.2), failing_links(ring, 30, 0.2, stochastic="column")
    np.testing.assert_array_equal(default.matrices, column.matrices)


def test_who_is_away_is_away_for_these_rounds_only():
    schedule = absence(RING, 10, 2, 3, 7)
    assert len(schedule.matrices) == 2
    np.testing.assert_array_equal(schedule.order, [0, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(schedule.at(0), RING)
    third = 1 / 3
    expected = [[third, third, 0, third], [third, 2 * third, 0, 0], [0, 0, 1, 0], [third, 0, 0, 2 * third]]
    np.testing.assert_allclose(schedule.at(3), expected, rtol=0, atol=1e-15)


def test_push_sum_finds_the_mean_over_links_that_fail_and_around_an_absence():
    schedule = absence(failing_links(DIRECTED, 200, 0.3), 200, agent=2, leaves=10, returns=60)
    x, w = np.arange(6.0), np.ones(6)
    for k in range(200):
        x, w = schedule.at(k) @ x, schedule.at(k) @ w
    np.testing.assert_allclose(x / w, 2.5, rtol=1e-12)


def test_schedules_names_its_functions():
    assert all(getattr(schedules, name) is build for name, build in schedules.SCHEDULES.items())


# --- refusals ---


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: periodic([]), ValueError, "at least one matrix"),
        (lambda: sequence([RING, np.eye(3)]), ValueError, r"matrices\[1\] is 3 × 3 where matrices\[0\] is 4 × 4"),
        (lambda: periodic(RING), ValueError, r"matrices\[0\] is 4, not square"),
        (lambda: periodic([RING, np.full((4, 4), np.inf)]), ValueError, r"matrices\[1\]\[0, 0\] is inf"),
        (lambda: periodic([graphs.cycle(4)]), TypeError, r"matrices\[0\] is a graph.*metropolis\(graph\)"),
        (lambda: one_peer_exponential(0), ValueError, "agents must be a whole number of at least 1, found 0"),
        (lambda: rotating_ring(0), ValueError, "agents must be a whole number of at least 1, found 0"),
        (lambda: failing_links(RING, 0, 0.1), ValueError, "rounds >= 1, got 0"),
        (lambda: failing_links(RING, 3, 1.5), ValueError, "needs 0 <= probability <= 1, got 1.5"),
        (lambda: failing_links(RING, 3, math.nan), ValueError, "got nan"),
        (
            lambda: failing_links(2 * RING + PAIRS.cumsum(axis=0), 3, 0.1),
            ValueError,
            "neither row nor column sums of one",
        ),
        (lambda: failing_links(RING, 3, 0.1, stochastic="rows"), ValueError, r"'rows' \(did you mean 'row'\?\)"),
        (lambda: failing_links(sequence([RING]), 3, 0.1), ValueError, "of 1 rounds, and 3 are asked for: give it 3"),
        (
            lambda: failing_links(graphs.directed_ring(3), 3, 0.1),
            TypeError,
            r"mixing is a graph.*push_weights\(graph\)",
        ),
        (lambda: failing_links(RING[:2], 3, 0.1), ValueError, "mixing is 2 × 4, not square"),
        (lambda: absence(RING, 5, 4, 1, 2), ValueError, "no agent 4 to leave: mixing has the agents 0, …, 3"),
        (lambda: absence(RING, 5, 0, 2, 2), ValueError, "leaves < returns .* leaves = 2 and returns = 2"),
        (lambda: absence(RING, 5, 0, 2, 6), ValueError, "returns <= rounds = 5, .*returns = 5 is for the rest"),
        (lambda: random_matchings(graphs.cycle(4), 0), ValueError, "rounds >= 1, got 0"),
        (lambda: random_matchings(nx.DiGraph([(0, 1)]), 3), ValueError, "directed"),
        (lambda: Schedule(RING[None], np.array([0, 1]), True), ValueError, r"an order of numbers below D"),
        (lambda: Schedule(RING[None], np.array([-1]), True), ValueError, r"use schedules.periodic\(matrices\)"),
        (lambda: Schedule(RING[None], np.array([], int), False), ValueError, r"found shapes \(1, 4, 4\) and \(0,\)"),
    ],
)
def test_what_is_no_schedule(build, error, message):
    with pytest.raises(error, match=message):
        build()


ROW = np.array([[0.5, 0.5], [0.2, 0.8]])


def test_the_door_lets_in_what_is_connected_over_all_rounds():
    for schedule in (periodic([PAIRS, OTHER_PAIRS]), sequence([PAIRS, PAIRS, OTHER_PAIRS])):
        assert validate_mixing(schedule, agents=4, stochastic="doubly") is schedule
    assert validate_mixing(periodic([ROW.T]), stochastic="column").agents == 2


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (periodic([PAIRS, PAIRS]), {}, r"mixing falls into 2 components, \{0, 1\} \{2, 3\}"),
        (periodic([RING, STAR]), {"agents": 5}, "4 × 4 but the data are split over 5 agents"),
        (sequence([RING, RING, 2 * STAR]), {}, "mixing in round 2 row 0 sums to 2, not 1"),
        (periodic([np.eye(2), ROW]), {"stochastic": "doubly"}, "mixing in round 1 column 0 sums to 0.7, not 1"),
        (Schedule(np.full((1, 4, 4), np.nan), np.array([0]), True), {}, r"mixing\[0, 0\] is nan"),
        (
            periodic([[[1, 0.5, 0], [0, 0.5, 0], [0, 0, 1]], np.eye(3), [[0.5, 0, 0], [0, 1, 0], [0.5, 0, 1]]]),
            {"stochastic": "column"},
            r"over all its rounds falls into 3 components, \{0\} \{1\} \{2\}, so .* agent 1 receives from no agent",
        ),
        (
            periodic([[[0.5, 0.5], [0.5, 0.5]], [[0, 0], [1, 1]]]),
            {"stochastic": "column"},
            "mixing in round 1: agent 0 receives nothing, not even from itself, .*: give agent 0 a self-weight",
        ),
        (sequence([RING, STAR]), {"rounds": 3}, r"2 rounds for a run of 3: give it 3 matrices, .* or set rounds = 2"),
    ],
)
def test_the_door_names_the_round_at_fault(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        validate_mixing(schedule, **options)


def test_the_door_asks_a_run_of_what_a_schedule_covers():
    for schedule, rounds in ((sequence([RING, STAR]), 2), (periodic([RING, STAR]), 300)):
        assert validate_mixing(schedule, rounds=rounds) is schedule
