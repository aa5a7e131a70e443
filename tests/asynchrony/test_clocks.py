"""Clocks against their distributions, and traces as they are in a file."""

import math

import numpy as np
import pytest
from scipy import stats

from ntkp2p.asynchrony import Deterministic, Exponential, Trace, Weibull, load_trace


def ticks(clock, count, seed=0):
    tick, times = clock.ticks(np.random.default_rng(seed)), [0.0]
    for _ in range(count):
        times.append(tick(times[-1]))
    return np.array(times[1:])


@pytest.mark.parametrize(
    ("clock", "distribution"),
    [
        (Exponential(2.0), stats.expon(scale=0.5)),
        (Exponential(4, shift=1), stats.expon(loc=1, scale=0.25)),
        (Weibull(0.7, 3.0), stats.weibull_min(0.7, scale=3)),
        (Weibull(2, 1.5, shift=0.2), stats.weibull_min(2, loc=0.2, scale=1.5)),
    ],
)
def test_intervals_have_their_distribution(clock, distribution):
    count = 5000
    intervals = np.diff(ticks(clock, count), prepend=0.0)
    # Dvoretzky–Kiefer–Wolfowitz: a larger distance has a probability of 1e-9 at most.
    far = math.sqrt(math.log(2 / 1e-9) / (2 * count))
    assert stats.ks_1samp(intervals, distribution.cdf).statistic < far
    lagged = np.corrcoef(stats.rankdata(intervals[:-1]), stats.rankdata(intervals[1:]))[0, 1]
    assert abs(lagged) < 6 / math.sqrt(count)
    assert clock.mean == pytest.approx(distribution.mean(), rel=1e-12)
    assert clock.memoryless == (clock == Exponential(2.0))


def test_a_deterministic_clock_and_its_phase():
    np.testing.assert_allclose(ticks(Deterministic(0.5), 4), [0.5, 1, 1.5, 2], rtol=1e-15)
    phases = np.array([ticks(Deterministic(0.5, random_phase=True), 3, seed) for seed in range(300)])
    np.testing.assert_allclose(np.diff(phases, axis=1), 0.5, rtol=1e-12)
    far = math.sqrt(math.log(2 / 1e-9) / (2 * len(phases)))
    assert stats.ks_1samp(phases[:, 0], stats.uniform(0, 0.5).cdf).statistic < far
    assert Deterministic(0.5).mean == 0.5


def test_a_trace_ticks_as_given_and_ends():
    trace = Trace([0.5, 2, 2, 3.5])
    assert trace.mean == 3.5 / 4
    np.testing.assert_array_equal(ticks(trace, 6), [0.5, 2, 2, 3.5, math.inf, math.inf])
    tick = trace.ticks(np.random.default_rng(0))
    assert [tick(0.0), tick(0.7), tick(1.0), tick(2.5)] == [0.5, 2, 2, 3.5]  # given up at 0.7 and 1, passed over at 2.5


def test_a_trace_from_a_file(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("agent, time, receiver\n1,0.25,0\n0,0.5,2\n2,1,0\n\n1,1.5,2\n")
    traces = load_trace(path, 3)
    assert [trace.times.tolist() for trace in traces] == [[0.5], [0.25, 1.5], [1]]
    assert [trace.receivers.tolist() for trace in traces] == [[2], [0, 2], [0]]
    path.write_text("agent,time\n0,1\n1,2\n")
    assert [trace.receivers for trace in load_trace(str(path), 2)] == [None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,agent\n", "first line is agent,time or agent,time,receiver, found 'time,agent'"),
        ("", "found nothing"),
        ("agent,time\n0,1\n1,5\n0,0.5\n", "line 4: agent 0 ticks at 1.0, then at 0.5: sort"),
        ("agent,time\n0,1\n2,5\n", "line 3 names agent 2, and there are the agents 0, …, 1"),
        ("agent,time\n0,1\n-1,5\n", "line 3 names agent -1"),
        ("agent,time,receiver\n0,1,7\n", "line 2 names agent 7"),
        ("agent,time\n0,1\n", "agent 1 has no line, so that it never updates: add"),
        ("agent,time\n0,one\n", "line 2 is '0,one': expected agent,time as numbers"),
        ("agent,time\n0,nan\n", "line 2 is '0,nan'"),
        ("agent,time,receiver\n0,1\n", "line 2 is '0,1': expected agent,time,receiver"),
    ],
)
def test_what_is_no_trace_in_a_file(text, message, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_trace(path, 2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Exponential(0.0), ValueError, "Exponential's rate is finite and above 0, got 0"),
        (lambda: Exponential(-1), ValueError, "above 0, got -1"),
        (lambda: Exponential(math.nan), ValueError, "got nan"),
        (lambda: Exponential("1"), TypeError, "rate is a number, got '1'"),
        (lambda: Exponential(True), TypeError, "rate is a number, got True"),
        (lambda: Exponential(1.0, shift=-0.1), ValueError, "shift is finite and 0 or more, got -0.1"),
        (lambda: Deterministic(math.inf), ValueError, "interval is finite and above 0, got inf"),
        (lambda: Weibull(0, 1.0), ValueError, "Weibull's shape is .* above 0"),
        (lambda: Weibull(1.0, -2), ValueError, "Weibull's scale"),
        (lambda: Trace([]), ValueError, "one time or more"),
        (lambda: Trace([0.5, 2.0, 1.0]), ValueError, r"times\[2\] = 1.0 .* comes before times\[1\] = 2.0: sort them"),
        (lambda: Trace([0.0, 1.0]), ValueError, "above 0, where agents begin, found 0.0"),
        (lambda: Deterministic(1.0, random_phase="no"), TypeError, "random_phase is True or False, got 'no'"),
        (lambda: Trace([0.5, math.inf]), ValueError, "found inf"),
        (lambda: Trace([-1.0]), ValueError, "found -1"),
        (lambda: Trace([1.0, 2.0], [1]), ValueError, r"2 times has as many receivers, .* shape \(1,\)"),
        (lambda: Trace([1.0], [0.5]), ValueError, "numbers of agents, found shape .* of float64"),
    ],
)
def test_what_is_no_clock(build, error, message):
    with pytest.raises(error, match=message):
        build()
