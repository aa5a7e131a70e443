"""Staleness against counting by hand, and its theory against the count."""

import math

import numpy as np
import pytest

from ntkp2p.asynchrony import (
    AsynchronousGossip,
    Deterministic,
    Events,
    Exponential,
    Kind,
    Weibull,
    expected_staleness,
    gossip_rate_for,
    staleness,
)

PLANS = {
    "push": {},
    "pull": {"scheme": "pull"},
    "push-pull": {"scheme": "push-pull"},
    "late": {"transmission": Exponential(1.0), "absences": [(1, 3.0, 6.0), (0, 8.0, math.inf)], "cap": (2, 1.0)},
    "late push-pull": {"transmission": 0.7, "scheme": "push-pull"},
}


def plan(agents=4, update=2.0, gossip=1.0, **options):
    return AsynchronousGossip(agents=agents, update=Exponential(update), gossip=Exponential(gossip), **options)


def by_hand(events, replay, since, until):
    """∫ S dt of all pairs, and the time × pairs at each S, interval by interval."""
    n, total, levels = events.agents, np.zeros((events.agents,) * 2), {}
    ends = [*events.time[1:].tolist(), until]
    eventual = {0: max(0.0, min(events.time[0], until) - since) * n * (n - 1)}
    levels.update(eventual)
    for begin, end, (*_, models, _) in zip(events.time.tolist(), ends, replay(events), strict=True):
        dt = max(0.0, min(end, until) - max(begin, since))
        for i in range(n):
            mine = {update for update in models[i] if update[0] == i}
            for j in set(range(n)) - {i}:
                behind = len(mine - models[j])
                total[i, j] += dt * behind
                levels[behind] = levels.get(behind, 0.0) + dt
    return total / (until - since), levels


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("since", "until"), [(0.0, None), (2.5, 9.0)])
def test_staleness_as_counted_by_hand(name, since, until, replay):
    events = plan(**PLANS[name]).simulate(duration=12.0, seed=3)
    end = 12.0 if until is None else until
    mean, levels = by_hand(events, replay, since, end)
    found = staleness(events, since=since, until=until)
    np.testing.assert_allclose(found.mean_by_pair, mean, rtol=1e-11, atol=1e-13)
    assert found.mean == pytest.approx(mean.sum() / 12, rel=1e-11)
    np.testing.assert_allclose(found.by_agent.about, mean.sum(axis=1) / 3, rtol=1e-11)
    np.testing.assert_allclose(found.by_agent.known, mean.sum(axis=0) / 3, rtol=1e-11)
    largest = max(level for level, time in levels.items() if time)
    shares = np.array([levels.get(level, 0.0) for level in range(largest + 1)]) / (12 * (end - since))
    np.testing.assert_allclose(found.distribution, shares, rtol=0, atol=1e-13)
    assert found.largest == largest
    for share in (0.0, 0.3, 0.9):
        assert found.quantile(share) == np.flatnonzero(np.cumsum(shares) >= share)[0]
    assert found.quantile(1.0) == largest
    again = staleness(events, since=since, until=until, distribution=False)
    np.testing.assert_array_equal(again.mean_by_pair, found.mean_by_pair)
    # The history at a time is what a moment from then on averages.
    at = found.times[57]
    moment = staleness(events, since=at, until=np.nextafter(at, np.inf))
    assert found.history[57] == pytest.approx(moment.mean, rel=1e-6)


def test_a_few_events_by_head():
    kind = [Kind.UPDATE, Kind.UPDATE, Kind.MESSAGE, Kind.UPDATE]
    events = Events(
        agents=2,
        time=np.array([1.0, 2.0, 4.0, 5.0]),
        kind=np.array(kind, np.int8),
        agent=np.array([0, 0, 1, 0], np.int32),
        peer=np.array([-1, -1, 0, -1], np.int32),
        relay=np.full(4, -1, np.int32),
        relays=0,
        weight=0.5,
        duration=7.0,
        silent=np.zeros(2, np.int64),
    )
    # S[0, 1] is 0 until 1, 1 until 2, 2 until 4, 0 until 5, 1 until 7; S[1, 0] is 0.
    found = staleness(events)
    np.testing.assert_allclose(found.mean_by_pair, [[0, 7 / 7], [0, 0]], rtol=1e-15)
    np.testing.assert_allclose(found.distribution, [(2 + 7) / 14, 3 / 14, 2 / 14], rtol=1e-15)
    assert repr(found) == "Staleness(2 agents from 0 to 7: mean 0.5, 95 % at most 2, largest 2)"
    assert "95" not in repr(staleness(events, distribution=False))


@pytest.mark.parametrize(
    ("agents", "scheme", "events"),
    [
        (5, "push", 120_000),
        (20, "push", 200_000),
        (60, "push", 200_000),
        (10, "pull", 120_000),
        (10, "push-pull", 120_000),
    ],
)
def test_the_mean_is_the_harmonic_number(agents, scheme, events):
    drawn = plan(agents, 1.0, 2.0, scheme=scheme).simulate(events=events, seed=1)
    found = staleness(drawn, since=20.0, distribution=False)
    harmonic = sum(1 / k for k in range(1, agents))
    expected = harmonic / (4 if scheme == "push-pull" else 2)
    assert expected_staleness(agents, 1.0, 2.0, scheme=scheme) == pytest.approx(expected, rel=1e-12)
    assert found.mean == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("update", [Exponential(2.0, shift=0.5), Deterministic(1.0), Weibull(0.6, 0.66464)])
def test_the_update_clock_enters_by_its_rate_alone(update):
    drawn = AsynchronousGossip(agents=10, update=update, gossip=Exponential(2.0)).simulate(events=120_000, seed=1)
    found = staleness(drawn, since=20.0, distribution=False)
    # By the rate that was drawn, which differs from the mean one where intervals have heavy tails.
    rate = drawn.updates.sum() / (10 * drawn.duration)
    assert rate == pytest.approx(1, rel=0.02)
    assert found.mean == pytest.approx(expected_staleness(10, rate, 2.0), rel=0.02)
    assert expected_staleness(10, 2.0, 2.0, update_shift=0.5) == pytest.approx(expected_staleness(10, 1.0, 2.0))


def test_shifted_gossip_is_fresher_than_its_rate_says():
    drawn = AsynchronousGossip(agents=20, update=Exponential(1.0), gossip=Exponential(4.0, 0.25)).simulate(
        events=150_000
    )
    found = staleness(drawn, since=20.0, distribution=False)
    assert 0.85 < found.mean / expected_staleness(20, 1.0, 4.0, gossip_shift=0.25) < 0.98


def test_the_rate_that_holds_a_staleness():
    assert gossip_rate_for(1.5, 4, 3.0) == pytest.approx(3 * (1 + 1 / 2 + 1 / 3) / 1.5, rel=1e-12)
    assert expected_staleness(50, 2.0, gossip_rate_for(0.7, 50, 2.0)) == pytest.approx(0.7, rel=1e-12)
    assert expected_staleness(10**6, 1.0, 1.0) == pytest.approx(np.sum(1 / np.arange(1.0, 10**6)), rel=1e-12)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda events: staleness(events, since=5.0, until=5.0), "since < until <= 10, got since = 5 and until = 5"),
        (lambda events: staleness(events, until=11.0), "until = 11: draw for longer"),
        (lambda events: staleness(events, since=-1.0), "got since = -1"),
        (lambda events: staleness(events, distribution=False).largest, r"use staleness\(events\)"),
        (lambda events: staleness(events).quantile(95), "between 0 and 1, got 95: 0.95"),
        (lambda _: expected_staleness(1, 1.0, 1.0), "agents must be a whole number of at least 2, found 1"),
        (lambda _: expected_staleness(5, 0.0, 1.0), "update_rate must be a finite number above 0, found 0"),
        (lambda _: expected_staleness(5, 1.0, math.nan), "gossip_rate must be a finite number above 0, found nan"),
        (
            lambda _: expected_staleness(5, 1.0, 1.0, update_shift=-1.0),
            "update_shift must be a finite number of at least 0, found -1",
        ),
        (lambda _: expected_staleness(5, 1.0, 1.0, scheme="opportunistic"), "unknown scheme 'opportunistic'"),
        (lambda _: gossip_rate_for(0.0, 5, 1.0), "staleness must be a finite number above 0, found 0"),
    ],
)
def test_what_has_no_staleness(ask, message):
    events = plan().simulate(duration=10.0)
    with pytest.raises(ValueError, match=message):
        ask(events)
