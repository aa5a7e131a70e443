"""Asynchronous runs: predicted along their events and in the mean over all events, and compared with training."""

import dataclasses

import jax
import networkx as nx
import numpy as np
import pytest

from ntkp2p import (
    ATC,
    DGD,
    AsynchronousGossip,
    DivergedError,
    Experiment,
    LocalSGD,
    Trajectory,
    clocks,
    communication,
    compare,
    data,
    linear_system,
    metropolis,
    models,
    predict,
    predictions,
    stability,
    stability_map,
    steady_state,
    timeliness,
    train,
)
from ntkp2p.asynchrony import Kind
from ntkp2p.dynamics.mean_square import mean_square_radius
from ntkp2p.dynamics.step_size import largest_step_size
from ntkp2p.dynamics.system import product

Q, ROUNDS = 5, 160
PLAIN = LocalSGD(0.2)
FAST = clocks.Exponential(3.0)
STRAGGLER = [clocks.Exponential(1.0, shift=0.3)] * (Q - 1) + [clocks.Deterministic(2.5)]
W = metropolis(nx.cycle_graph(Q))
ROWS = np.array(
    [[0.5, 0.5, 0, 0, 0], [0.3, 0.4, 0.3, 0, 0], [0, 0.1, 0.6, 0.3, 0], [0, 0, 0.2, 0.4, 0.4], [0.6, 0, 0, 0, 0.4]]
)
ONE_WAY = nx.from_numpy_array(ROWS.T * (1 - np.eye(Q)), create_using=nx.DiGraph)


def gossip(**options):
    return AsynchronousGossip(**{"agents": Q, "update": clocks.Exponential(1.0), "gossip": FAST} | options)


@pytest.fixture(scope="module")
def run(digits):
    split = digits(agents=Q, samples=25, test_samples=5)

    def of(mixing, algorithm=PLAIN, rounds=ROUNDS, **options):
        options = {"model": models.affine(), "record": 9} | options
        return Experiment(data=split, mixing=mixing, algorithm=algorithm, rounds=rounds, **options)

    return of


def worst(a, b, variable):
    x, y = a.dataset[variable], b.dataset[variable]
    return float(abs(x - y).max() / max(1.0, float(abs(y).max())))


@pytest.mark.parametrize(
    ("options", "algorithm"),
    [
        ({}, LocalSGD(0.2)),
        ({"scheme": "pull", "graph": nx.cycle_graph(Q)}, LocalSGD(0.2, steps=3)),
        ({"scheme": "push-pull", "update": STRAGGLER}, LocalSGD(0.2, momentum=0.8)),
        ({"scheme": "opportunistic"}, LocalSGD(0.2, steps=2, delay=2)),
        ({"transmission": clocks.Exponential(2.0), "update": STRAGGLER}, LocalSGD(0.2, steps=2)),
        ({"bound": 2, "update": STRAGGLER}, LocalSGD(0.2)),
        ({"bound": 2, "beyond": "drop", "transmission": 0.2}, LocalSGD(0.2, delay=1)),
        ({"cap": (2, 1.0), "weight": 0.3}, LocalSGD(0.2)),
        ({"weight": ROWS, "graph": ONE_WAY}, LocalSGD(0.2)),
        ({"absences": [(2, 5.0, 9.0)], "transmission": 0.3}, LocalSGD(0.2)),
        ({"update": clocks.Weibull(0.7, 1.0)}, ATC(0.2)),
    ],
    ids=lambda value: " ".join(value) or "plain" if isinstance(value, dict) else repr(value),
)
def test_along_its_events_an_affine_run_is_predicted_to_the_last_digits(run, options, algorithm):
    events = gossip(**options).simulate(events=ROUNDS, seed=3)
    experiment = run(events, algorithm)
    predicted, trained = predict(experiment), train(experiment)
    assert predicted.dataset.attrs["closed_form"]
    assert float(predicted.global_loss[-1].mean()) < 0.9 * float(predicted.global_loss[0].mean())
    for variable in predicted.dataset.data_vars:
        assert worst(predicted, trained, variable) < 1e-10, variable
    np.testing.assert_array_equal(predicted.time, np.append(0, events.time)[predicted.dataset["round"]])


def test_what_is_drawn_and_what_is_not_are_one_experiment(run):
    experiment = run(gossip())
    first, second = (train(experiment, draw=draw) for draw in (0, 1))
    assert worst(first, second, "global_loss") > 1e-3
    along = predict(experiment.sampled(1))
    assert worst(second, along, "local_loss") < 1e-10
    np.testing.assert_array_equal(second.time, along.time)
    comparison = compare(first, *predictions(experiment).values())
    assert "linearisation and draws" in comparison.errors()
    # To count events, or the time they take, are two ways of looking at the same mean.
    assert comparison.errors("global_loss")["events against time"] < 0.01


class Averaging(DGD):
    def round(self, x, world, /):
        return world.average(super().round(x, world))


class Affine:
    """The agents' runs in parameters, event after event, with nothing of the library's but the events."""

    def __init__(self, experiment):
        split, (theta, apply) = experiment.data, experiment.initialise().flat()
        start = np.asarray(apply(theta, split.inputs)).ravel()
        self.J = np.stack([np.asarray(apply(theta + e, split.inputs)).ravel() - start for e in np.eye(theta.size)], 1)
        self.error = start - split.targets.ravel()
        self.own = [np.flatnonzero(split.owner == q) for q in range(Q)]
        self.algorithm = experiment.algorithm

    def follow(self, events, until=np.inf):
        x, begun = np.zeros((Q, self.J.shape[1])), np.zeros((Q, self.J.shape[1]))
        for time, kind, agent, peer in zip(events.time, events.kind, events.agent, events.peer, strict=True):
            if time > until:
                break
            if kind == Kind.UPDATE:
                v, own = begun[agent], self.own[agent]
                for _ in range(self.algorithm.steps):
                    v = v - self.algorithm.step_size * self.J[own].T @ (self.J[own] @ v + self.error[own]) / len(own)
                x[agent] += v - begun[agent]
                begun[agent] = x[agent]
            else:
                x[agent] = (x[agent] + x[peer]) / 2
        return x


def test_over_memoryless_clocks_the_mean_of_200_runs_is_as_predicted(run):
    events, draws = 60, 200
    experiment = run(gossip(), LocalSGD(0.2, steps=2), rounds=events)
    with jax.enable_x64(True):
        oracle, length = Affine(experiment), 60 / (4 * Q)
    counted = np.array([oracle.follow(gossip().simulate(events=events, seed=seed)) for seed in range(draws)])
    timed = np.array(
        [oracle.follow(gossip().simulate(duration=2 * length, seed=seed), length) for seed in range(draws)]
    )
    theta = models_at_start(experiment)
    for time, found in zip(("rounds", "flow"), (counted, timed), strict=True):
        predicted = predict(experiment, time=time)
        assert predicted.dataset.attrs["mean_over"] == "clocks"
        assert float(predicted.time[-1]) == pytest.approx(length)
        mean = np.array([np.concatenate([np.ravel(leaf) for leaf in leaves(predicted, q)]) for q in range(Q)]) - theta
        seen = found.std(axis=0) > 1e-12
        deviation = (found.mean(axis=0) - mean)[seen] / (found.std(axis=0, ddof=1)[seen] / np.sqrt(draws))
        # Student's t for so many numbers that hang together; the largest of 325 independent ones is below 4.6 in 999
        # of 1,000 cases.
        assert np.abs(deviation).max() < 4.6
        assert 0.5 < np.sqrt(np.mean(deviation**2)) < 1.6


def leaves(trajectory, agent):
    return jax.tree.leaves(trajectory.parameters(agent))


def models_at_start(experiment):
    return np.asarray(experiment.initialise().flat()[0])


@pytest.mark.slow
def test_a_wide_network_is_predicted_within_its_linearisation_error(run):
    events, errors = gossip(transmission=0.2).simulate(events=ROUNDS, seed=1), []
    for width in (32, 512):
        experiment = run(events, LocalSGD(0.3, steps=2), model=models.mlp(width=width, depth=1))
        errors.append(compare(train(experiment), predict(experiment)).errors("local_loss")["linearisation"])
    # It falls like width^−1/2: by four, and by two at least.
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.02


def test_cross_entropy_is_followed_along_the_events(run):
    experiment = run(gossip().simulate(events=ROUNDS, seed=2), LocalSGD(0.05), loss="cross_entropy")
    predicted = predict(experiment)
    assert not predicted.dataset.attrs["closed_form"]
    assert worst(predicted, train(experiment), "local_loss") < 1e-10


def test_float32_trains_to_its_own_precision(run):
    events = gossip().simulate(events=ROUNDS, seed=2)
    single, double = (train(run(events, precision=p)) for p in ("float32", "float64"))
    assert 0 < worst(single, double, "local_loss") < 1e-5


def few(algorithm):
    """A small run: three agents, two weights and a bias."""
    split = data.load("regression", samples=12, features=2).split(agents=3, by="iid")
    experiment = Experiment(model=models.affine(), data=split, mixing=gossip(agents=3), algorithm=algorithm, rounds=10)
    return algorithm, experiment.mixing, experiment.features(), split


def test_second_moments_are_those_of_all_products():
    system = linear_system(*few(LocalSGD(0.3)))
    steps, shares = system.parameters["mixing"]
    products = np.zeros((system.size**2, system.size**2))
    with jax.enable_x64(True):
        for k, share in enumerate(np.asarray(shares)):
            one = system.parameters | {"mixing": jax.tree.map(lambda a, k=k: a[k], steps)}
            M = np.stack([np.asarray(product(system.advance, one, e)) for e in np.eye(system.size)], axis=1)
            products += share * np.kron(M, M)
    assert mean_square_radius(system) == pytest.approx(np.abs(np.linalg.eigvals(products)).max(), rel=1e-8)


@pytest.mark.slow
def test_runs_diverge_beyond_the_step_size_of_the_mean_square():
    algorithm, mixing, features, split = few(LocalSGD(0.2))
    one = Experiment(model=models.affine(), data=split, mixing=mixing, algorithm=algorithm, rounds=4000)
    report = stability(one, features=features)
    assert report.verdicts["rounds"].answer == "stable"
    limit = report.step_size_limit
    # The mean would bear more: runs that grow in opposite directions cancel.
    assert limit < largest_step_size(linear_system(algorithm, mixing, features, split))
    for share, stable in ((0.8, True), (1.3, False)):
        run = dataclasses.replace(one, algorithm=LocalSGD(share * limit))
        said = stability(run, features=features)
        assert said.stable["rounds"] is predict(run, features=features).stable is stable
        assert said.verdicts["rounds"].answer == ("stable" if stable else "unstable")
        assert (said.mean_square < 1) is stable
        losses = along(run, features)
        assert losses[-1] < losses[0] if stable else losses[-1] > 1e3 * losses[0]


def along(experiment, features):
    """The mean loss along the events of one draw."""
    return predict(experiment.sampled(), features=features).global_loss.mean("agent").values


def test_runs_that_diverge_are_stopped(run):
    with pytest.raises(DivergedError):
        train(run(gossip(), LocalSGD(1e3), rounds=2000))


def test_the_mean_comes_to_rest_where_a_solve_says():
    algorithm, mixing, features, split = few(LocalSGD(0.2, steps=2, momentum=0.5))
    one = Experiment(model=models.affine(), data=split, mixing=mixing, algorithm=algorithm, rounds=20_000, record=[0])
    rest, late = steady_state(one, features=features), predict(one, features=features)
    for variable in ("local_loss", "consensus_distance", "parameter_distance"):
        np.testing.assert_allclose(rest.dataset[variable][-1], late.dataset[variable][-1], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_lateness_is_measured_and_set_beside_the_margin(run):
    n = Q
    events = AsynchronousGossip(agents=n, update=clocks.Deterministic(1.0, random_phase=True), gossip=FAST).simulate(
        events=4000
    )
    one = run(events, LocalSGD(0.2, delay=2), rounds=4000)
    features = one.features()
    report = timeliness(one, features=features)
    # A computation is the round itself, and its update waits for two more; intervals are shorter at the beginning.
    late = report.lateness["gradients"]
    assert (late.largest, late.mean) == (pytest.approx(2, rel=0.02), pytest.approx(2, rel=0.02))
    # Each of the others reaches an agent at the rate 3/(n−1), and it takes half: an interval of that.
    L = n * np.eye(n) - np.ones((n, n))
    values, vectors = np.linalg.eigh(L * 3 / (n - 1) / 2)
    expected = vectors * np.exp(-values * report.interval) @ vectors.T
    np.testing.assert_allclose(report.mixing, expected, atol=0.05)
    np.testing.assert_allclose(report.mixing.sum(axis=1), 1, rtol=1e-12)
    assert late.inside
    assert "gradients, measured" in str(report)
    # The margin is of the algorithm's own rounds over that mixing: with delays of 0, 1 and 2, all of them as they are.
    system = linear_system(LocalSGD(0.2, delay=2), report.mixing, features, report.experiment.data)
    limit = largest_step_size(system)
    for share, inside in ((0.9, True), (1.2, False)):
        hasty = run(events, LocalSGD(share * limit, delay=2), rounds=4000)
        assert timeliness(hasty, features=features).lateness["gradients"].inside is inside
    assert stability(hasty, features=features).verdicts["gradients"].answer == "unstable"
    assert set(timeliness(run(events, DGD(0.2), rounds=4000), features=features).lateness) == {"messages"}


@pytest.mark.slow
def test_the_margin_of_several_local_steps_with_momentum_is_of_their_own_rounds():
    algorithm, mixing, features, split = few(LocalSGD(0.6, steps=3, momentum=0.3))
    one = Experiment(model=models.affine(), data=split, mixing=mixing, algorithm=algorithm, rounds=2000)
    report = timeliness(one, features=features)
    margin = report.lateness["gradients"].margin
    assert margin.exact
    for delay, stable in ((margin.rounds, True), (margin.rounds + 1, False)):
        later = dataclasses.replace(algorithm, delay=delay)
        system = linear_system(later, report.mixing, features, split)
        assert (np.abs(np.linalg.eigvals(system.matrix())).max() <= 1 + 1e-6) == stable


def test_without_gossip_in_between_a_gradient_is_not_late(run):
    slow = clocks.Exponential(0.2)
    events = gossip(update=clocks.Deterministic(1.0, random_phase=True), gossip=slow).simulate(events=600)
    found = timeliness(run(events, rounds=600)).lateness["gradients"]
    assert found.largest < 0.05
    assert found.margin.rounds >= 0


def test_messages_and_gradients_are_counted_by_agent(run):
    events = gossip(transmission=0.2, cap=(2, 1.0), update=STRAGGLER).simulate(events=ROUNDS, seed=5)
    experiment = run(events, LocalSGD(0.2, steps=3))
    counted = communication(experiment)
    size = experiment.initialise().size
    for q in range(Q):
        sent = sum(k == Kind.SEND and p == q for k, p in zip(events.kind, events.peer, strict=True))
        made = sum(k == Kind.UPDATE and u == q for k, u in zip(events.kind, events.agent, strict=True))
        assert counted.messages[:, q].sum() == sent > 0
        assert counted.bytes[:, q].sum() == 4 * size * sent
        assert counted.gradients[:, q].sum() == 3 * made > 0
    trained = train(experiment)
    np.testing.assert_array_equal(trained.bytes_sent[-1], counted.bytes.sum(axis=0))
    np.testing.assert_array_equal(trained.gradients[-1], counted.gradients.sum(axis=0))


def test_a_trajectory_is_saved_and_drawn_against_events_and_wall_clock_time(run, tmp_path):
    predicted = predict(run(gossip()))
    loaded = Trajectory.load(predicted.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.time, predicted.time)
    ax = loaded.plot()
    assert ax.get_xlabel() == "event $k$"
    assert ax.child_axes[0].get_xlabel() == "wall-clock time $t$"
    for against, across in (("time", loaded.time), ("gradients", loaded.gradients.sum("agent"))):
        curve = loaded.plot("global_loss", against=against).lines[0]
        np.testing.assert_array_equal(curve.get_xdata(), across)
    with pytest.raises(ValueError, match="abscissa"):
        loaded.plot(against="hope")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": AsynchronousGossip(agents=4, update=FAST, gossip=FAST)}, "mixing has 4 agents"),
        ({"mixing": gossip().simulate(events=100), "rounds": 101}, "100 events for a run of 101"),
        ({"mixing": gossip().simulate(events=5), "rounds": 5}, "never updates|never reached"),
        ({"algorithm": LocalSGD(0.2, delay=500)}, "500 of its updates later"),
        ({"algorithm": Averaging(0.2), "predicted": True}, r"world\.average needs all agents"),
    ],
)
def test_runs_that_do_not_fit_are_named(run, change, message):
    given = {"mixing": gossip().simulate(events=ROUNDS), "rounds": ROUNDS} | change
    act = predict if given.pop("predicted", False) else lambda experiment: experiment
    with pytest.raises(ValueError, match=message):
        act(run(**given))


def test_a_run_that_is_drawn_need_not_have_everybody_in_it(run):
    short = run(gossip(), rounds=4)
    assert predict(short.sampled()).stable is not None
    assert train(short).dataset.sizes["round"] == 5
    assert stability(short).spectrum.radius < 1


def test_a_mini_batch_is_drawn_for_every_local_step(run):
    """Of two samples: two steps with one each have four outcomes."""
    split = data.load("regression", samples=6, features=2).split(agents=3, by="iid")
    events = gossip(agents=3).simulate(events=60, seed=2)
    first = int(np.argmax(events.kind == Kind.UPDATE)) + 1
    run = Experiment(
        model=models.affine(),
        data=split,
        mixing=events,
        algorithm=LocalSGD(0.2, steps=2),
        rounds=60,
        record=[first],
        batch_size=1,
    )
    agent = events.agent[first - 1]
    found = {float(train(run, draw=draw).parameter_distance.sel(round=first)[agent]) for draw in range(12)}
    assert len(found) == 4


def test_other_mixing_is_another_experiment(run):
    graph = nx.cycle_graph(Q)
    plans = [gossip(), gossip(graph=graph), gossip(graph=graph, weight=0.4), gossip(update=clocks.Deterministic(1.0))]
    drawn = gossip().simulate(events=ROUNDS)
    mixings = [*plans, drawn, dataclasses.replace(drawn, weight=0.4)]
    assert len({run(mixing).describe()["mixing"] for mixing in mixings}) == len(mixings)


def test_what_has_no_closed_form_says_why(run):
    shifted = gossip(update=clocks.Exponential(1.0, shift=0.5))
    with pytest.raises(ValueError, match=r"not memoryless: predict single draws, experiment\.sampled\(0\)"):
        predict(run(shifted))
    assert stability(run(shifted)).verdicts["rounds"].answer == "not known"
    with pytest.raises(ValueError, match="a map is of synchronous rounds"):
        stability_map(run(gossip()), [0.1], gradient_delays=[0])
    with pytest.raises(ValueError, match="variance_scale"):
        predict(run(gossip(), LocalSGD(0.2, variance_scale=1.0)))
    with pytest.raises(ValueError, match="no gradient flow"):
        predict(run(gossip().simulate(events=ROUNDS)), time="flow")
    with pytest.raises(ValueError, match="defined for asynchronous agents"):
        timeliness(run(W, DGD(0.2)))
    with pytest.raises(ValueError, match="no agent applies an update in 20 events"):
        timeliness(run(gossip(), LocalSGD(0.2, delay=10), rounds=20))
    # Both can be trained.
    scaled = train(run(shifted, LocalSGD(0.2, variance_scale=1.0)))
    plain = train(run(shifted, LocalSGD(0.2)))
    assert (
        float(plain.global_loss[-1].mean()) < float(scaled.global_loss[-1].mean()) < float(scaled.global_loss[0].mean())
    )


TOML = """
rounds = 120
record = 5
model = {name = "affine"}
data = {name = "digits", classes = [0, 1], samples = 20, test_samples = 5}
split = {agents = 4, by = "iid"}
algorithm = {name = "LocalSGD", step_size = 0.2, steps = 2}

[mixing]
%s
"""


TRACED = 'update = {trace = "ticks.csv"}\ngossip = {trace = "ticks.csv"}'


def from_toml(folder, mixing):
    (folder / "ticks.csv").write_text("agent,time\n" + "".join(f"{k % 4},{k + 1}\n" for k in range(200)))
    (folder / "run.toml").write_text(TOML % mixing)
    return Experiment.from_toml(folder / "run.toml")


@pytest.mark.parametrize(
    ("mixing", "same"),
    [
        (
            'scheme = "push"\nupdate = {clock = "exponential", rate = 1.0}\ngossip = {clock = "exponential", rate = 3}',
            {"update": clocks.Exponential(1.0)},
        ),
        (
            'scheme = "pull"\ngraph = "cycle"\nweights = "metropolis"\ntransmission = {clock = "deterministic", '
            'interval = 0.1}\nupdate = {trace = "ticks.csv"}\ngossip = {clock = "exponential", rate = 3.0}\n'
            'absences = [[1, 3.0, 5.0]]\ncap = [3, 1.0]\nbound = 4\nbeyond = "drop"',
            {
                "update": [clocks.Trace(np.arange(q + 1.0, 200, 4)) for q in range(4)],
                "scheme": "pull",
                "graph": nx.cycle_graph(4),
                "weight": metropolis(nx.cycle_graph(4)),
                "transmission": clocks.Deterministic(0.1),
                "absences": [(1, 3.0, 5.0)],
                "cap": (3, 1.0),
                "bound": 4,
                "beyond": "drop",
            },
        ),
    ],
)
def test_clocks_are_read_from_a_file(tmp_path, mixing, same):
    expected = gossip(agents=4, **same)
    assert repr(from_toml(tmp_path, mixing).mixing) == repr(expected)
    drawn = from_toml(tmp_path, mixing + "\nseed = 7").mixing
    events = expected.simulate(events=120, seed=7)
    for name in ("time", "kind", "agent", "peer"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(events, name))


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        ('scheme = "push"\ngossip = {clock = "exponential", rate = 1.0}', "needs update = {clock"),
        ('scheme = "push"\nupdate = 3\ngossip = {clock = "exponential", rate = 1.0}', "update in .mixing. must be"),
        ('scheme = "shout"\nupdate = {clock = "exponential", rate = 1.0}\ngossip = {trace = "ticks.csv"}', "scheme"),
        ('scheme = "push"\nupdate = {clock = "sun", rate = 1.0}\ngossip = {trace = "ticks.csv"}', "clock"),
        ('scheme = "push"\nupdate = {clock = "exponential", rate = 0.0}\ngossip = {trace = "ticks.csv"}', "rate"),
        (
            'scheme = "push"\nweights = "metropolis"\nupdate = {trace = "ticks.csv"}\ngossip = {trace = "ticks.csv"}',
            "graph",
        ),
        ('scheme = "push"\nfile = "W.csv"', "file"),
    ],
)
def test_clocks_that_cannot_be_read_are_named(tmp_path, mixing, message):
    with pytest.raises(ValueError, match=message):
        from_toml(tmp_path, mixing)
