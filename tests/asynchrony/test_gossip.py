"""Who computes and talks when: rates, schemes, absences, bounds and caps, each replayed by other means."""

import math
from collections import Counter

import networkx as nx
import numpy as np
import pytest

from ntkp2p.asynchrony import AsynchronousGossip, Deterministic, Exponential, Kind, Trace, Weibull, staleness
from ntkp2p.topology import graphs, metropolis, push_weights

HEARD = (Kind.MESSAGE, Kind.EXCHANGE, Kind.ARRIVE)
DIRECTED = nx.DiGraph([(0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (3, 0)])
COLUMNS = ("time", "kind", "agent", "peer", "relay")


def clock(given):
    return Exponential(given) if isinstance(given, float) else given


def plan(agents=4, update=2.0, gossip=1.0, **options):
    options = {"agents": agents, "update": clock(update), "gossip": clock(gossip)} | options
    return AsynchronousGossip(**options)


def of_kind(events, *kinds):
    """Columns of the events of some kinds, one row each."""
    chosen = np.isin(events.kind, kinds)
    return np.stack([getattr(events, name)[chosen] for name in COLUMNS], axis=1)


def assert_same(one, two):
    for name in (*COLUMNS, "silent"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.relays, one.duration) == (two.relays, two.duration)


# --- closed forms ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"graph": DIRECTED},
        {"graph": DIRECTED, "scheme": "pull"},
        {"graph": graphs.star(4), "scheme": "push-pull"},
        {"gossip": [Exponential(rate) for rate in (1.0, 2.0, 0.5, 3.0)]},
    ],
)
def test_events_come_at_their_rates(options):
    gossip = plan(**options)
    kinds, rates = gossip.kinds_of_events()
    assert gossip.why_sampled == ""
    draws, total = 60_000, rates.sum()
    assert total == pytest.approx(8 + gossip.gossip_rates.sum(), rel=1e-12)
    events = gossip.simulate(events=draws, seed=2)

    def key(kind, agent, peer):
        return int(kind), *(sorted((int(agent), int(peer))) if kind == Kind.EXCHANGE else (int(agent), int(peer)))

    counts = Counter(map(key, events.kind, events.agent, events.peer))
    expected = dict(zip(map(key, kinds.kind, kinds.agent, kinds.peer), rates / total, strict=True))
    assert len(expected) == len(rates)
    assert set(counts) == set(expected)
    for kind, share in expected.items():
        assert abs(counts[kind] / draws - share) < 6 * math.sqrt(share / draws)
    assert events.duration == pytest.approx(draws / total, rel=6 / math.sqrt(draws))
    assert not kinds.relays
    assert len(kinds.steps().rows) == len(rates)


def test_exchanges_of_all_pairs_and_nothing_else():
    kinds, rates = plan(agents=3, scheme="push-pull").kinds_of_events()
    np.testing.assert_allclose(rates, [2, 2, 2, 1, 1, 1])
    assert {frozenset(pair) for pair in of_kind(kinds, Kind.EXCHANGE)[:, 2:4].tolist()} == {
        frozenset(pair) for pair in [(0, 1), (0, 2), (1, 2)]
    }


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"update": Exponential(1.0, 0.1)}, "its update clocks are not memoryless"),
        ({"gossip": [*[Exponential(1.0)] * 3, Weibull(1.0, 1.0)]}, "its gossip clocks are not memoryless"),
        ({"scheme": "opportunistic"}, "only agents with the freshest model transmit"),
        ({"transmission": 0.1}, "messages take time"),
        ({"absences": [(0, 1.0, 2.0)]}, "agents are absent"),
        ({"bound": 3}, "staleness is bounded"),
        ({"cap": (1, 1.0)}, "messages beyond a cap are lost"),
    ],
)
def test_what_has_no_closed_form_says_why(options, reason):
    gossip = plan(**options)
    assert gossip.why_sampled == reason
    with pytest.raises(ValueError, match=f"not closed, since {reason}"):
        gossip.kinds_of_events()


# --- streams ---


def test_draws_by_seed_and_the_first_events_whatever_follows():
    gossip = plan(transmission=Exponential(1.0), cap=(2, 1.0))
    first = gossip.simulate(events=400, seed=1)
    assert_same(first, gossip.simulate(events=400, seed=1))
    assert not np.array_equal(first.time, gossip.simulate(events=400, seed=2).time)
    short, long = gossip.simulate(events=150, seed=1), gossip.simulate(duration=first.duration, seed=1)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(short, name), getattr(first, name)[:150])
    assert_same(first, long)


def test_a_user_s_clocks_do_not_depend_on_the_others():
    one = plan().simulate(duration=50.0)
    changed = [Exponential(2.0), Weibull(0.5, 3.0), Exponential(2.0), Exponential(2.0)]
    other = plan(update=changed, gossip=[*changed[:0:-1], Exponential(1.0)]).simulate(duration=50.0)
    for agent, same in enumerate((True, False, True, True)):
        times = [events.time[(events.kind == Kind.UPDATE) & (events.agent == agent)] for events in (one, other)]
        assert np.array_equal(*times) == same
    sent = [events.time[(events.kind == Kind.MESSAGE) & (events.peer == 3)] for events in (one, other)]
    np.testing.assert_array_equal(*sent)


def test_ties_have_an_order():
    events = plan(agents=3, update=Deterministic(1.0), gossip=Deterministic(1.0), transmission=1.0).simulate(events=12)
    np.testing.assert_array_equal(events.kind[:6], [Kind.UPDATE] * 3 + [Kind.SEND] * 3)
    np.testing.assert_array_equal(events.kind[6:], [Kind.UPDATE] * 3 + [Kind.ARRIVE] * 3)
    np.testing.assert_array_equal(events.agent[[0, 1, 2, 6, 7, 8]], [0, 1, 2] * 2)


def test_a_trace_is_what_happens():
    traces = [Trace([1.0, 4.0], [1, 2]), Trace([2.0, 2.5], [0, 0]), Trace([3.0], [1])]
    gossip = plan(agents=3, update=[Trace([0.5]), Trace([2.0, 9.0]), Trace([6.0])], gossip=traces)
    events = gossip.simulate(events=9)
    np.testing.assert_array_equal(events.time, [0.5, 1, 2, 2, 2.5, 3, 4, 6, 9])
    np.testing.assert_array_equal(events.agent, [0, 1, 1, 0, 0, 1, 2, 2, 1])
    np.testing.assert_array_equal(events.peer, [-1, 0, -1, 1, 1, 2, 0, -1, -1])
    with pytest.raises(ValueError, match="there are 9 events and no more, so that 10 are not: ask for events=9"):
        gossip.simulate(events=10)


# --- schemes ---


def test_relays_are_the_messages_on_their_way(replay):
    events = plan(agents=6, transmission=Exponential(0.3), scheme="push-pull").simulate(events=2000, seed=1)
    on_way = [way for *_, way in replay(events)]
    assert max(on_way) == events.relays == events.relay.max() + 1
    times, taken = {}, []
    for time, kind, *_, relay in of_kind(events, Kind.SEND, Kind.ARRIVE):
        if kind == Kind.SEND:
            times[relay] = time
        else:
            taken.append(time - times[relay])
    assert np.mean(taken) == pytest.approx(1 / 0.3, rel=6 / math.sqrt(len(taken)))
    fixed = plan(transmission=0.4).simulate(events=500)
    sent, arrived = (of_kind(fixed, kind) for kind in (Kind.SEND, Kind.ARRIVE))
    np.testing.assert_allclose(arrived[:, 0], sent[: len(arrived), 0] + 0.4, rtol=1e-12)
    np.testing.assert_array_equal(arrived[:, 2:], sent[: len(arrived), 2:])


@pytest.mark.parametrize("transmission", [0.0, 0.5])
def test_only_the_freshest_transmit(transmission):
    options = {"agents": 6, "update": 0.5, "gossip": 3.0, "transmission": transmission}
    every, freshest = plan(**options), plan(**options, scheme="opportunistic")
    all_events, events = (gossip.simulate(duration=150.0, seed=4) for gossip in (every, freshest))
    # The same clocks and choices: of what push does, only that whose sender reflects the last update is left.
    models, latest, kept, silent, way = [{0} for _ in range(6)], 0, [], [0] * 6, {}
    columns = (getattr(all_events, name) for name in COLUMNS[1:])
    for k, (kind, agent, peer, relay) in enumerate(zip(*columns, strict=True)):
        if kind == Kind.UPDATE:
            latest += 1
            models[agent] = models[agent] | {latest}
        elif kind == Kind.ARRIVE:
            sent = way.pop(relay)
            if sent is None:
                continue
            models[agent] = models[agent] | sent
        elif latest not in models[peer]:
            silent[peer] += 1
            way[relay] = None
            continue
        elif kind == Kind.SEND:
            way[relay] = models[peer]
        else:
            models[agent] = models[agent] | models[peer]
        kept.append(k)
    for name in COLUMNS[:4]:
        np.testing.assert_array_equal(getattr(events, name), getattr(all_events, name)[kept])
    np.testing.assert_array_equal(events.silent, silent)
    assert min(silent) > 50
    assert not all_events.silent.any()


# --- absences, bounds, caps ---


@pytest.mark.parametrize("options", [{}, {"scheme": "pull"}, {"scheme": "push-pull"}, {"transmission": 0.3}])
def test_who_is_away_does_nothing(options):
    away = [(1, 0.0, 8.0), (2, 10.0, 20.0), (2, 30.0, math.inf)]
    gossip = plan(absences=away, **options)
    events = gossip.simulate(duration=60.0, seed=1)
    assert of_kind(events, Kind.RETURN)[:, [0, 2]].tolist() == [[8, 1], [20, 2]]
    for agent, leaves, returns in away:
        meanwhile = (events.time >= leaves) & (events.time < returns) & (events.kind != Kind.RETURN)
        kinds = {Kind(kind) for kind in events.kind[meanwhile & (events.agent == agent)]}
        assert kinds <= {Kind.LOST, Kind.SEND}
        assert (Kind.LOST in kinds) == (options.get("scheme") != "pull")
        talks = np.isin(events.kind, (Kind.MESSAGE, Kind.EXCHANGE, Kind.SEND))
        assert not (meanwhile & talks & (events.peer == agent)).any()
    lost = of_kind(events, Kind.LOST)
    assert all(any(agent == u and a <= time < b for u, a, b in away) for time, _, agent, *_ in lost)
    # A computation starts again on return, and takes the intervals that the agent's clock would have had next.
    ages = events.ages()
    undisturbed = plan(**options).simulate(duration=60.0, seed=1).ages()
    own = ages.time[ages.agent == 1]
    np.testing.assert_allclose(own, undisturbed.time[undisturbed.agent == 1][1 : len(own) + 1], rtol=1e-9)


def test_messages_on_their_way_to_who_has_left_are_lost():
    gossip = plan(agents=2, gossip=[Trace([1.0, 2.0]), Trace([50.0])], transmission=1.5, absences=[(1, 2.0, 3.0)])
    found = of_kind(gossip.simulate(duration=10.0), Kind.SEND, Kind.ARRIVE, Kind.LOST)
    expected = [(1.0, Kind.SEND, 1, 0, 0), (2.0, Kind.SEND, 1, 0, 1), (2.5, Kind.LOST, 1, 0, 0)]
    assert found.tolist() == [list(row) for row in [*expected, (3.5, Kind.ARRIVE, 1, 0, 1)]]


def test_a_trace_s_tick_ends_the_computation_that_began_on_return():
    gossip = plan(agents=2, update=[Trace([5.0, 7.0]), Exponential(1.0)], absences=[(0, 2.0, 3.0)])
    ages = gossip.simulate(duration=10.0).ages()
    np.testing.assert_array_equal(ages.time[ages.agent == 0], [2, 2])


@pytest.mark.parametrize("beyond", ["wait", "drop"])
@pytest.mark.parametrize("options", [{}, {"transmission": Exponential(2.0), "absences": [(1, 5.0, 30.0)]}])
def test_nobody_is_further_ahead_than_the_bound(beyond, options, replay):
    bound = 3
    events = plan(agents=5, bound=bound, beyond=beyond, **options).simulate(duration=60.0, seed=2)
    absences = options.get("absences", [])
    largest, before, held = 0, None, 0
    ticks = {agent: [] for agent in range(5)}
    for time, (kind, agent, _, models, _) in zip(events.time, replay(events), strict=True):
        made = [max((k for u, k in models[i] if u == i), default=0) for i in range(5)]
        knows = np.array([[max((k for u, k in models[j] if u == i), default=0) for j in range(5)] for i in range(5)])
        here = np.array([not any(u == i and a <= time < b for u, a, b in absences) for i in range(5)])
        behind = np.array(made)[:, None] - knows
        if kind == Kind.UPDATE:
            assert behind[agent][here].max() <= bound
            ticks[agent].append(time)
        if kind == Kind.DROP:
            assert behind[agent][here].max() == bound
        if not absences:
            assert behind.max() <= bound
        largest = max(largest, behind[np.ix_(here, here)].max())
        held += before is not None and kind == Kind.UPDATE and time == before
        before = time
    assert (Kind.DROP in events.kind) == (beyond == "drop")
    assert (held > 0) == (beyond == "wait")  # updates at the time of the message that let them go
    if not absences:
        assert largest == bound == staleness(events).largest
        assert staleness(plan(agents=5, **options).simulate(duration=60.0, seed=2)).largest > bound


def test_a_computation_that_waits_is_applied_when_the_last_has_heard():
    updates = [Trace([1.0, 2.0, 5.0, 6.0]), Trace([99.0]), Trace([99.0])]
    talks = [Trace([3.0, 4.0, 8.0], [1, 2, 1]), Trace([50.0]), Trace([50.0])]
    events = plan(agents=3, update=updates, gossip=talks, bound=1).simulate(duration=10.0)
    mine = of_kind(events, Kind.UPDATE)
    np.testing.assert_array_equal(mine[:, 0], [1, 4])  # 5 waits for agent 2 in vain
    np.testing.assert_array_equal(events.ages().time, [1, 3])
    dropped = plan(agents=3, update=updates, gossip=talks, bound=1, beyond="drop").simulate(duration=10.0)
    assert of_kind(dropped, Kind.UPDATE, Kind.DROP)[:, :2].tolist() == [[1, 0], [2, 6], [5, 0], [6, 6]]
    # No agent waits for those that have left.
    left = plan(agents=3, update=updates, gossip=talks, bound=1, absences=[(1, 2.5, 9.0), (2, 3.5, 9.0)])
    np.testing.assert_array_equal(of_kind(left.simulate(duration=7.0), Kind.UPDATE)[:, 0], [1, 3.5, 5, 6])


@pytest.mark.parametrize("options", [{}, {"scheme": "push-pull"}, {"transmission": 0.2}, {"scheme": "pull"}])
def test_nobody_hears_more_than_the_cap(options):
    events = plan(agents=5, gossip=3.0, cap=(2, 0.5), **options).simulate(duration=100.0)
    taken, lost = Counter(), Counter()
    for time, kind, agent, peer, _ in of_kind(events, *HEARD, Kind.LOST):
        for hearer in (agent, peer) if kind == Kind.EXCHANGE else (agent,):
            (lost if kind == Kind.LOST else taken)[int(hearer), time // 0.5] += 1
    assert max(taken.values()) == 2
    assert len(lost) > 50
    assert all(taken[window] == 2 for window in lost)


def test_synchronous_rounds_wait_for_the_slowest():
    clocks = [Exponential(1.0), Exponential(3.0), Deterministic(0.4)]
    gossip = plan(agents=3, update=clocks, transmission=0.25)
    times = gossip.synchronous_times(200, seed=3)
    events = plan(agents=3, update=clocks).simulate(duration=400.0, seed=3).ages()
    intervals = np.stack([events.time[events.agent == agent][:200] for agent in range(3)])
    np.testing.assert_allclose(np.diff(times), intervals.max(axis=0) + 0.25, rtol=1e-9)
    assert times[0] == 0
    many = plan(agents=30, update=1.0, transmission=Exponential(2.0)).synchronous_times(1000)
    harmonic = sum(1 / k for k in range(1, 31))
    # The slowest of n exponential times takes H_n on average, with a variance below π²/6.
    far = 6 * math.sqrt(math.pi**2 / 6 * (1 + 1 / 4) / 1000)
    assert many[-1] / 1000 == pytest.approx(1.5 * harmonic, abs=far)


# --- refusals ---

STAR = graphs.star(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agents": 1}, "agents must be a whole number of at least 2, found 1"),
        ({"agents": 2.5}, "agents must be a whole number"),
        ({"update": [Exponential(1.0)] * 3}, "update has 3 clocks for 4 agents: give one for each"),
        ({"gossip": [Exponential(1.0)] * 5}, "gossip has 5 clocks for 4 agents"),
        ({"update": Trace([1.0], [2])}, "a trace of updates has no receivers"),
        ({"gossip": Trace([1.0], [4])}, "the trace of agent 0 turns to 4, which is none of its neighbours"),
        ({"gossip": [Trace([1.0], [1])] * 4}, "the trace of agent 1 turns to 1"),
        ({"graph": STAR, "gossip": [*[Exponential(1.0)] * 3, Trace([1.0], [2])]}, "the trace of agent 3 turns to 2"),
        ({"graph": graphs.cycle(5)}, "the graph has 5 nodes and there are 4 agents"),
        ({"graph": nx.Graph([("a", "b"), ("b", "c")])}, "the graph has 3 nodes"),
        (
            {"graph": nx.DiGraph([("a", "b"), ("b", "c"), ("c", "b"), ("b", "d")])},
            "agent 0 .node 'a'. is never reached",
        ),
        ({"graph": DIRECTED, "scheme": "push-pull"}, "the link 0 → 1 and none back: push-pull needs"),
        ({"graph": nx.Graph([(0, 1), (2, 3)])}, "not strongly connected, so that some agents never hear"),
        ({"graph": nx.DiGraph([(0, 1), (1, 0), (0, 2), (1, 3)])}, "not strongly connected"),
        ({"scheme": "pul"}, r"unknown scheme 'pul' \(did you mean 'pull'"),
        ({"weight": 0}, "weight is above 0 and at most 1, or a matrix, got 0"),
        ({"weight": 1.2}, "got 1.2: 0.5 takes the mean"),
        ({"weight": True}, "got True"),
        ({"weight": np.eye(3)}, "weight is 3 × 3 and there are 4 agents"),
        ({"weight": np.ones((4, 4))}, "weight row 0 sums to 4, not 1"),
        ({"weight": np.eye(4) * 2 - 0.25}, r"weight\[0, 1\] is -0.25: no weight is negative"),
        (
            {"weight": metropolis(STAR)},
            r"weight\[1, 2\] is 0 and agent 2 sends to agent 1: give it a weight, or a graph",
        ),
        ({"weight": np.full((4, 3), 1 / 3)}, "weight is 4 × 3, not square"),
        ({"transmission": -1.0}, "transmission is a time of 0 or more, or a clock, got -1"),
        ({"transmission": math.inf}, "or a clock, got inf"),
        ({"absences": [(4, 1.0, 2.0)]}, "there is no agent 4 to be absent"),
        ({"absences": [(0, 2.0, 2.0)]}, "0 <= leaves < returns, got leaves = 2 and returns = 2"),
        ({"absences": [(0, 2.0, 5.0), (0, 4.0, 6.0)]}, "agent 0 leaves at 4, and is away until 5 already: join them"),
        ({"absences": [(0, 2.0)]}, r"an absence is \(agent, leaves, returns\), got \(0, 2.0\)"),
        ({"bound": 0}, "bound must be a whole number of at least 1, found 0"),
        ({"beyond": "stop"}, "unknown beyond 'stop'"),
        ({"cap": 3}, r"cap is \(messages, window\), got 3"),
        ({"cap": (0, 1.0)}, "cap's messages must be a whole number of at least 1"),
        ({"cap": (2, 0.0)}, "cap's window is a time above 0, got 0"),
    ],
)
def test_what_is_no_plan(options, message):
    with pytest.raises(ValueError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": 1.0}, "update is a clock, or one for each agent, got 1.0: for instance Exponential"),
        ({"gossip": [Exponential(1.0), 2.0]}, "gossip is a clock, .* got 2.0"),
        ({"transmission": Trace([1.0])}, "transmission is a number or a clock that goes on"),
        ({"graph": np.eye(4)}, "links are those of a networkx Graph, got ndarray"),
        ({"absences": 3}, "absences are triples"),
    ],
)
def test_what_is_of_no_use_in_a_plan(options, message):
    with pytest.raises(TypeError, match=message):
        AsynchronousGossip(**{"agents": 4, "update": Exponential(1.0), "gossip": Exponential(1.0)} | options)


@pytest.mark.parametrize(
    ("options", "ask", "error", "message"),
    [
        ({}, {}, TypeError, "exactly one of them"),
        ({}, {"events": 3, "duration": 3.0}, TypeError, "either events=1000 or duration=100.0"),
        ({}, {"events": 0}, ValueError, "events must be a whole number of at least 1, found 0"),
        ({}, {"duration": 0.0}, ValueError, "duration is a time above 0, got 0"),
        ({"transmission": 3.0}, {"duration": 2.0}, ValueError, "a message takes 3, longer than the duration 2"),
        ({}, {"duration": 1e-9}, ValueError, "nothing happens until 1e-09: agents compute for 0.5 on average"),
        ({"absences": [(i, 0.0, math.inf) for i in range(4)]}, {"events": 1}, ValueError, "nothing happens at all"),
        (
            {
                "scheme": "opportunistic",
                "update": [*[Trace([1.0])] * 3, Trace([2.0])],
                "gossip": [*[Exponential(1.0)] * 3, Trace([9.0])],
                "absences": [(3, 3.0, math.inf)],
            },
            {"events": 1000},
            ValueError,
            "nothing happens any more after .* events, .*: who is away has the newest model",
        ),
    ],
)
def test_what_cannot_be_drawn(options, ask, error, message):
    with pytest.raises(error, match=message):
        plan(**({"agents": 4, "update": 2.0, "gossip": 1.0} | options)).simulate(**ask)


def test_rows_that_sum_to_one_are_taken_as_they_are():
    W = metropolis(graphs.cycle(4))
    gossip = plan(graph=graphs.cycle(4), weight=W)
    assert gossip.simulate(events=10).weight is gossip.weight
    assert not gossip.weight.flags.writeable
    with pytest.raises(ValueError, match="row 0 sums to 1"):
        plan(graph=DIRECTED, weight=push_weights(DIRECTED))
    assert repr(plan(bound=3, cap=(2, 1.0))) == (
        "AsynchronousGossip(4 agents, push, 2 updates and 1 opportunities each per time, "
        "staleness at most 3, else wait, at most 2 messages in 1)"
    )
