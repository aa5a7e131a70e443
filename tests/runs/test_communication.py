"""The ledger of what a run sends, against counts by hand."""

import dataclasses

import networkx as nx
import numpy as np
import pytest

from ntkp2p import (
    ATC,
    CHOCO,
    DGD,
    Algorithm,
    Delayed,
    Experiment,
    PushSum,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    TopK,
    communication,
    graphs,
    metropolis,
    models,
    predict,
    push_weights,
    schedules,
    train,
)
from ntkp2p.runs.communication import sent_until

Q, ROUNDS = 5, 8
GRAPH = nx.DiGraph([(i, (i + 1) % Q) for i in range(Q)] + [(0, 2), (3, 1), (3, 0)])
P, W = push_weights(GRAPH), metropolis(graphs.cycle(Q))
HEARERS = np.array([GRAPH.out_degree(q) for q in range(Q)])
#: An affine model of 64 pixels: one weight each, and a bias.
SIZE = 65


@pytest.fixture(scope="module")
def run(digits):
    data = digits(agents=Q, samples=25, test_samples=5)

    def of(algorithm, mixing=P, **options):
        return Experiment(
            model=models.affine(), data=data, mixing=mixing, algorithm=algorithm, rounds=ROUNDS, record=3, **options
        )

    return of


class TwoMessages(Algorithm):
    """Gradient tracking: models and trackers are mixed in one round, and travel together."""

    def init(self, x):
        return x, 0 * x, 0 * x

    def model(self, state):
        return state[0]

    def round(self, state, world):
        x, y, g = state
        new = world.grad(x)
        y = world.mix(y) + new - g
        return world.mix(x) - self.step_size * y, y, new


MERGE = np.array([False] * 4 + [True] + [False] * 3)
#: Layers, in the order of the parameters: the bias (1) and the weights (64).
SPARSE = {0.1: 6 * (1 + 6), 0.01: 6 * (1 + 1)}
CASES = {
    "DGD": (DGD(0.1), W, 4 * SIZE, 0),
    "delayed": (Delayed(ATC(0.1), messages=2), W, 4 * SIZE, 0),
    "own": (TwoMessages(0.1), W, 8 * SIZE, 0),
    "push-sum": (PushSum(0.1), P, 4 * SIZE + 4, 0),
    "momentum": (PushSum(0.1, momentum=0.9), P, 4 * SIZE + 4, 0),
    "top-k": (SparsePush(0.1, TopK(0.1)), P, SPARSE[0.1] + 4, 0),
    "at least one": (SparsePush(0.1, TopK(0.01)), P, SPARSE[0.01] + 4, 0),
    "random-k": (SparsePush(0.1, RandomK(0.1)), P, 6 * 0.1 * SIZE + 4, 0),
    "dense start": (
        SparsePush(0.1, TopK(0.1), dense_rounds=3),
        P,
        np.where(np.arange(ROUNDS) < 3, 4 * SIZE, SPARSE[0.1]) + 4,
        0,
    ),
    "merge": (
        SkewCompensatedSparsePush(0.1, TopK(0.1), gradient_rounds=3, gossip_rounds=1),
        P,
        SPARSE[0.1] + 4,
        # Each agent passes on Q − 1 of Q parts of the numerators and weights, and as many of their means.
        MERGE * 2 * (Q - 1) / Q * 4 * (SIZE + 1),
    ),
    "CHOCO": (CHOCO(0.1, TopK(0.1)), W, SPARSE[0.1], 0),
    "late and sparse": (Delayed(CHOCO(0.1, TopK(0.1)), messages=1), W, SPARSE[0.1], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_what_is_mixed(name, run):
    algorithm, mixing, each, merged = CASES[name]
    found = communication(run(algorithm, mixing))
    hearers = HEARERS if mixing is P else np.full(Q, 2)
    expected = np.broadcast_to(each, ROUNDS)[:, None] * hearers + np.broadcast_to(merged, ROUNDS)[:, None]
    np.testing.assert_allclose(found.bytes, expected, rtol=1e-12)
    merges = (np.broadcast_to(merged, ROUNDS) > 0)[:, None] * 2 * (Q - 1)
    np.testing.assert_allclose(found.messages, hearers + merges, rtol=1e-12)
    dense = 4 * SIZE * np.tile(hearers, (ROUNDS, 1)).sum()
    assert found.reduction == pytest.approx(dense / expected.sum(), rel=1e-12)
    assert f"{found.reduction:.4g}×" in str(found)
    assert f"{found.reduction:.4g}×" in found._repr_html_()


def test_gradients_are_those_that_are_taken(run):
    compensated = SkewCompensatedSparsePush(0.1, TopK(0.1), gradient_rounds=3, gossip_rounds=1)
    taken = communication(run(compensated)).gradients
    np.testing.assert_array_equal(taken.T, np.tile([1, 1, 1, 0, 0, 1, 1, 1], (taken.shape[1], 1)))
    np.testing.assert_array_equal(communication(run(DGD(0.1), W)).gradients, np.ones(taken.shape))


def test_messages_follow_the_links_of_the_round(run):
    schedule = schedules.failing_links(P, ROUNDS, 0.4, seed=3)
    found = communication(run(PushSum(0.1), schedule))
    for k in range(ROUNDS):
        heard = (schedule.at(k) != 0) & ~np.eye(Q, dtype=bool)
        np.testing.assert_array_equal(found.messages[k], heard.sum(axis=0))
    np.testing.assert_allclose(found.bytes, found.messages * (4 * SIZE + 4))
    assert found.messages.sum() < ROUNDS * HEARERS.sum()


@pytest.mark.parametrize(
    ("algorithm", "mixing"),
    [
        (SparsePush(0.1, RandomK(0.1), dense_rounds=2), P),
        (DGD(0.1), schedules.failing_links(W, ROUNDS, 0.4, seed=3)),
        (ATC(0.1), schedules.periodic([W, np.eye(Q), np.full((Q, Q), 1 / Q)])),
    ],
)
def test_trajectories_count_what_has_been_sent_until_then(run, algorithm, mixing):
    experiment = run(algorithm, mixing)
    sent = communication(experiment)
    for trajectory in (train(experiment), predict(experiment)):
        for variable, each in (("bytes_sent", sent.bytes), ("messages", sent.messages)):
            expected = [each[:k].sum(axis=0) for k in experiment.recorded]
            np.testing.assert_allclose(trajectory.dataset[variable], expected, rtol=1e-12)
            trajectory.plot(variable)
    assert "bytes_sent" not in predict(run(DGD(0.1), W), time="flow").dataset


def test_counting_costs_nothing_over_any_horizon(run):
    """10¹² rounds could not be counted one by one."""
    mixing = schedules.periodic([W, np.full((Q, Q), 1 / Q)])
    long = dataclasses.replace(run(DGD(0.1), mixing), rounds=2**31 - 1, record=[2**31 - 1])
    sent = sent_until(long, np.array([0, 3, 10**12 + 1]))
    often = 10**12 // 2
    np.testing.assert_array_equal(sent["messages"][:, 0], [0, 2 + (Q - 1) + 2, often * (2 + Q - 1) + 2])
    np.testing.assert_array_equal(sent["bytes_sent"], 4 * SIZE * sent["messages"])
    np.testing.assert_array_equal(sent["gradients"][:, 0], [0, 3, 10**12 + 1])


def test_energy_is_at_stated_constants(run):
    found = communication(run(PushSum(0.1), batch_size=4))
    energy = found.energy(picojoules_per_bit=100, picojoules_per_flop=2)
    np.testing.assert_allclose(energy["communication"], 800e-12 * found.bytes.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(energy["computation"], 2e-12 * ROUNDS * found.gradient_flops, rtol=1e-12)
    # A forward and a backward product of 4 samples with 64 weights, two operations each, and little beside them.
    assert 2 * 2 * 4 * 64 <= found.gradient_flops <= 3 * 2 * 2 * 4 * 64
    for constants in (
        {"picojoules_per_bit": -1, "picojoules_per_flop": 1},
        {"picojoules_per_bit": 1, "picojoules_per_flop": "a"},
    ):
        with pytest.raises(ValueError, match=r"picojoules_per_.* must be a finite number ≥ 0"):
            found.energy(**constants)


def test_a_network_of_infinite_width_has_nothing_to_send(run):
    infinite = dataclasses.replace(run(PushSum(0.1)), model=models.mlp(width=float("inf"), depth=1))
    with pytest.raises(ValueError, match="no parameters"):
        communication(infinite)
