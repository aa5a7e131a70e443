"""What events do to rows, how old gradients are, and what is counted."""

import numpy as np
import pytest

from ntkp2p.asynchrony import AsynchronousGossip, Deterministic, Events, Exponential, Kind

MATRIX = np.array([[0.4, 0.1, 0.2, 0.3], [0.5, 0.25, 0.15, 0.1], [0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.4]])
PLANS = {
    "push": {"weight": 0.3},
    "push-pull": {"scheme": "push-pull", "weight": MATRIX},
    "late": {"transmission": Exponential(1.0), "weight": MATRIX, "absences": [(2, 4.0, 9.0)], "cap": (2, 1.0)},
    "late push-pull": {"transmission": 0.5, "scheme": "push-pull"},
    "dropped": {"bound": 2, "beyond": "drop", "absences": [(1, 3.0, 6.0)]},
}


def draw(name, **options):
    options = {"update": Exponential(2.0), "gossip": Exponential(1.5), "agents": 4} | PLANS[name] | options
    return AsynchronousGossip(**options).simulate(duration=25.0, seed=5)


def columns(events):
    return zip(events.time, events.kind, events.agent, events.peer, events.relay, strict=True)


@pytest.mark.parametrize("name", PLANS)
def test_steps_average_what_meets(name):
    events = draw(name)
    share = np.broadcast_to(events.weight, (4, 4))
    rows, weights, finished, begins = events.steps()
    assert rows.min() >= 0
    assert rows.max() == events.rows
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-15)
    found = np.random.default_rng(0).normal(size=events.rows + 1)
    models, way = found[:4].copy(), {}
    for k, (_, kind, agent, peer, relay) in enumerate(columns(events)):
        before = models.copy()
        if kind in (Kind.MESSAGE, Kind.EXCHANGE):
            models[agent] += share[agent, peer] * (before[peer] - before[agent])
        if kind == Kind.EXCHANGE:
            models[peer] += share[peer, agent] * (before[agent] - before[peer])
        if kind == Kind.SEND:
            way[relay] = before[peer]
        if kind == Kind.ARRIVE:
            models[agent] += share[agent, peer] * (way[relay] - before[agent])
        found[rows[k]] = weights[k] @ found[rows[k]]
        np.testing.assert_allclose(found[:4], models, rtol=1e-12)
        assert finished[k] == (kind == Kind.UPDATE)
        assert begins[k] == (kind in (Kind.UPDATE, Kind.DROP, Kind.RETURN))
        assert not begins[k] or rows[k, 0] == agent
    later = events.steps(7, 20)
    for part, whole in zip(later, (rows, weights, finished, begins), strict=True):
        np.testing.assert_array_equal(part, whole[7:20])


@pytest.mark.parametrize("name", PLANS)
def test_ages_and_counts_one_by_one(name):
    events = draw(name)
    begun, averagings = dict.fromkeys(range(4), (0.0, 0)), [0] * 4
    ages, updates, messages = [], [0] * 4, [0] * 4
    for time, kind, agent, peer, relay in columns(events):
        if kind in (Kind.MESSAGE, Kind.EXCHANGE, Kind.ARRIVE):
            averagings[agent] += 1
        if kind == Kind.EXCHANGE:
            averagings[peer] += 1
            messages[agent] += 1
        if kind in (Kind.MESSAGE, Kind.EXCHANGE, Kind.SEND) or (kind == Kind.LOST and relay < 0):
            messages[peer] += 1
        if kind == Kind.UPDATE:
            updates[agent] += 1
            ages.append((agent, time - begun[agent][0], averagings[agent] - begun[agent][1]))
        if kind in (Kind.UPDATE, Kind.DROP, Kind.RETURN):
            begun[agent] = time, averagings[agent]
    found = events.ages()
    assert len(ages) > 50
    np.testing.assert_array_equal(np.stack(found, axis=1), ages)
    np.testing.assert_array_equal(events.updates, updates)
    np.testing.assert_array_equal(events.messages, messages)


def test_a_deterministic_computation_is_as_old_as_it_takes():
    ages = draw("push", update=Deterministic(0.75)).ages()
    np.testing.assert_allclose(ages.time, 0.75, rtol=1e-12)


def test_a_run_names_who_is_not_in_it():
    events = draw("push")
    events.must_all_participate()
    with pytest.raises(ValueError, match=r"agent . never updates in 1 events: draw more of them, or give a fast"):
        events.until(1).must_all_participate()
    slow = draw("push", update=[Exponential(2.0), Deterministic(24.0), Exponential(2.0), Exponential(2.0)])
    with pytest.raises(ValueError, match="agent 1 never updates in 100 events"):
        slow.until(100).must_all_participate()
    slow.must_all_participate()
    quiet = draw("push", gossip=[Exponential(1.0), *[Exponential(1e-6)] * 3], update=Exponential(5.0))
    with pytest.raises(ValueError, match=r"agent 0 is never reached in .* neighbours that talk more often"):
        quiet.must_all_participate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": [2.0, 1.0]}, "ascending: sort them"),
        ({"agent": [0, 7]}, "event 1 has kind 1, agent 7, peer 0"),
        ({"peer": [-1, 1]}, "event 1 has kind 1, agent 1, peer 1"),
        ({"kind": [0, 9]}, "event 1 has kind 9"),
        ({"kind": [0, 4]}, "event 1 has kind 4, agent 1, peer 0 and relay -1"),
    ],
)
def test_what_cannot_have_happened(change, message):
    given = {"time": [1.0, 2.0], "kind": [0, 1], "agent": [0, 1], "peer": [-1, 0], "relay": [-1, -1]} | change
    arrays = {name: np.array(value) for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        Events(agents=3, **arrays, relays=0, weight=0.5, duration=3.0, silent=np.zeros(3, int))


def test_events_with_labels():
    events = draw("late")
    found = events.to_dataset()
    for name in ("time", "kind", "peer", "relay"):
        np.testing.assert_array_equal(found[name], getattr(events, name))
    np.testing.assert_array_equal(found["event_agent"], events.agent)
    assert found["kind"].attrs["flag_meanings"].split()[Kind.LOST] == "lost"
    assert dict(found.sizes) == {"event": len(events), "agent": 4, "neighbour": 4}
    np.testing.assert_array_equal(found["weight"], MATRIX)
    assert draw("push").to_dataset()["weight"] == 0.3
    assert (found.attrs["relays"], found.attrs["duration"]) == (events.relays, 25.0)
