import dataclasses

import numpy as np
import pytest

from ntkp2p import (
    ATC,
    DGD,
    Delayed,
    Experiment,
    PushSum,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    TopK,
    data,
    graphs,
    metropolis,
    models,
    predict,
    push_weights,
    schedules,
)

TOML = """
rounds = 20
model = {{name = "affine"}}
data = {{name = "digits", classes = [0, 1], samples = 40, test_samples = 20}}
split = {{agents = 4, by = "label"}}
algorithm = {{name = "DGD", step_size = 0.1}}
[mixing]
{}
"""


@pytest.fixture
def experiment(digits):
    return Experiment(
        model=models.affine(),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.2),
        rounds=20,
    )


def test_python_and_toml_describe_the_same_run(experiment, tmp_path):
    (tmp_path / "run.toml").write_text(
        """
        rounds = 20
        record = [3, 5]
        seed = 4
        model = {name = "mlp", width = 16, depth = 1}
        data = {name = "digits", classes = [0, 1], samples = 40, test_samples = 20}
        split = {agents = 4, by = "dirichlet", alpha = 0.5, seed = 2}
        mixing = {graph = "grid:2,2", weights = "lazy_metropolis"}
        algorithm = {name = "ATC", step_size = 0.1}
        """
    )
    written = Experiment(
        model=models.mlp(width=16, depth=1),
        data=data.load("digits", classes=(0, 1), samples=40, test_samples=20).split(
            agents=4, by="dirichlet", alpha=0.5, seed=2
        ),
        mixing=(np.eye(4) + metropolis(graphs.grid(2, 2))) / 2,
        algorithm=ATC(step_size=0.1),
        rounds=20,
        record=[3, 5],
        seed=4,
    )
    read = Experiment.from_toml(tmp_path / "run.toml")
    assert list(read.recorded) == [0, 3, 5, 20]
    np.testing.assert_array_equal(predict(read).local_loss, predict(written).local_loss)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("gradient_delay = 2, message_delay = 1", Delayed(DGD(step_size=0.1), gradients=2, messages=1)),
        ("message_delay = 0", Delayed(DGD(step_size=0.1))),
    ],
)
def test_delays_in_toml(keys, expected, tmp_path):
    text = TOML.format('graph = "cycle"').replace("step_size = 0.1", f"step_size = 0.1, {keys}")
    (tmp_path / "run.toml").write_text(text)
    read = Experiment.from_toml(tmp_path / "run.toml")
    assert read.algorithm == expected
    assert read.describe()["algorithm"] == "Delayed DGD"
    assert read.describe()["constants"] == repr(expected)
    (tmp_path / "run.toml").write_text(text.replace(keys, "message_delay = -1"))
    with pytest.raises(ValueError, match="message_delay must be a whole number of at least 0, found -1"):
        Experiment.from_toml(tmp_path / "run.toml")


def written(folder, algorithm, *, extra=""):
    text = TOML.format('graph = "directed_ring"').replace('name = "DGD", step_size = 0.1', algorithm)
    (folder / "run.toml").write_text(text.replace("rounds = 20", f"rounds = 20\n{extra}"))
    return folder / "run.toml"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ('name = "PushSum", momentum = 0.9', PushSum(0.1, momentum=0.9)),
        (
            'name = "SparsePush", compression = {name = "top_k", keep = 0.01}, averaging_rate = 0.02, dense_rounds = 3',
            SparsePush(0.1, TopK(0.01), averaging_rate=0.02, dense_rounds=3),
        ),
        (
            'name = "SkewCompensatedSparsePush", compression = {name = "random_k", keep = 0.1}, gradient_rounds = 5, '
            "gossip_rounds = 2",
            SkewCompensatedSparsePush(0.1, RandomK(0.1), gradient_rounds=5, gossip_rounds=2),
        ),
    ],
)
def test_algorithms_of_directed_graphs_are_read(tmp_path, entries, expected):
    read = Experiment.from_toml(written(tmp_path, f"step_size = 0.1, {entries}", extra="batch_size = 3"))
    assert read.algorithm == expected
    assert read.batch_size == 3
    np.testing.assert_allclose(read.mixing, push_weights(graphs.directed_ring(4)), rtol=1e-14)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ('compression = {name = "top_k", keep = 0}', "keep must be above 0 and below 1, found 0"),
        ('compression = {name = "top_k", keep = 1.5}', "keep must be above 0 and below 1, found 1.5"),
        ('compression = {name = "topk", keep = 0.1}', "unknown compression 'topk' .did you mean 'top_k'"),
        ('compression = {name = "top_k"}', "needs keep = "),
        ('compression = "top_k"', "compression must be a compressor of ntkp2p"),
        (
            'compression = {name = "top_k", keep = 0.1}, averaging_rate = 2',
            "averaging_rate must be above 0 and at most",
        ),
        ('compression = {name = "top_k", keep = 0.1}, gamma = 0.1', "unknown key in .algorithm. 'gamma'"),
    ],
)
def test_compressed_algorithms_name_what_is_wrong(tmp_path, entries, message):
    path = written(tmp_path, f'name = "SparsePush", step_size = 0.1, {entries}')
    with pytest.raises((ValueError, TypeError), match=message):
        Experiment.from_toml(path)


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        ('schedule = "one_peer_exponential"', schedules.one_peer_exponential(4)),
        ('files = ["W0.csv", "W1.csv"]', schedules.periodic([np.eye(4), metropolis(graphs.star(4))])),
        ('schedule = "random_matchings"\ngraph = "cycle"', schedules.random_matchings(graphs.cycle(4), 20)),
        (
            'schedule = "random_matchings"\ngraph = "grid:2,2"\nseed = 3',
            schedules.random_matchings(graphs.grid(2, 2), 20, seed=3),
        ),
        ('schedule = "rotating_ring"', schedules.rotating_ring(4)),
        (
            'schedule = "failing_links"\ngraph = "cycle"\nprobability = 0.1\nseed = 3',
            schedules.failing_links(metropolis(graphs.cycle(4)), 20, 0.1, seed=3),
        ),
        (
            'schedule = "failing_links"\ngraph = "directed_exponential"\nweights = "push"\nprobability = 0\n'
            'stochastic = "row"',
            schedules.sequence([push_weights(graphs.directed_exponential(4))] * 20),
        ),
        (
            'schedule = "absence"\nfiles = ["W0.csv", "W1.csv"]\nagent = 2\nleaves = 3\nreturns = 9',
            schedules.absence(schedules.periodic([np.eye(4), metropolis(graphs.star(4))]), 20, 2, 3, 9),
        ),
    ],
)
def test_schedules_in_toml(tmp_path, mixing, expected):
    np.savetxt(tmp_path / "W0.csv", np.eye(4), delimiter=",")
    np.savetxt(tmp_path / "W1.csv", metropolis(graphs.star(4)), delimiter=",")
    (tmp_path / "run.toml").write_text(TOML.format(mixing))
    read = Experiment.from_toml(tmp_path / "run.toml").mixing
    np.testing.assert_allclose(read.matrices, expected.matrices, rtol=1e-14)
    np.testing.assert_array_equal(read.order, expected.order)
    assert read.periodic is expected.periodic


def test_a_directed_graph_in_toml_has_push_sums_weights(tmp_path):
    for mixing in ('graph = "directed_ring"', 'graph = "directed_ring:4"\nweights = "push"'):
        (tmp_path / "run.toml").write_text(TOML.format(mixing))
        read = Experiment.from_toml(tmp_path / "run.toml").mixing
        np.testing.assert_allclose(read, push_weights(graphs.directed_ring(4)), rtol=1e-14)


FAILING = 'schedule = "failing_links"\ngraph = "cycle"\n'


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (
            "",
            r'\[mixing\] needs either graph = .* or scheme = "push", found none of them',
        ),
        ('graph = "cycle"\nfile = "W.csv"', "found file and graph"),
        ('files = ["W0.csv"]\nfile = "W.csv"', "found file and files"),
        ('files = ["W0.csv"]\nweights = "metropolis"', "with files takes no weights"),
        ('files = "W0.csv"', "files must be a list of paths in quotes"),
        ("files = []", "files must be a list of paths in quotes"),
        ('graph = "cycle"\nseed = 3', 'takes seed only with schedule = "random_matchings" or "failing_links": leave'),
        ('graph = "cycle"\nleaves = 3', 'takes leaves only with schedule = "absence": leave it out'),
        ('graph = "directed_ring"\nweights = "metropolis"', "the graph is directed, .* by name 'push'"),
        ('graph = "directed_random:4,0.6,seed=1"', r"row \d sums to .* but the column sums are 1.*push-sum takes it"),
        (FAILING, r"\[mixing\] needs probability = ..."),
        (FAILING + 'probability = "often"', r"probability in \[mixing\] must be a finite number, found 'often'"),
        (FAILING + "probability = true", r"probability in \[mixing\] must be a finite number, found True"),
        (FAILING + "probability = 2", "needs 0 <= probability <= 1, got 2"),
        (FAILING + 'probability = 0.1\nfile = "W.csv"', "found file and graph"),
        (FAILING + "probability = 0.1\nagent = 1", "takes no agent: leave it out"),
        (FAILING + 'probability = 0.1\nstochastic = "column"', "row . sums to .*push-sum takes it"),
        ('schedule = "failing_links"\nprobability = 0.1', "needs either graph = .*found none of them"),
        (FAILING.replace("failing_links", "absence") + "agent = 0.5", r"agent in \[mixing\] must be a whole number"),
        ('schedule = "rotating_ring"\nweights = "push"', "takes no weights: leave it out"),
        (
            'schedule = "one_peer_exponentail"',
            "unknown schedule 'one_peer_exponentail'.*did you mean 'one_peer_exponential'",
        ),
        ('schedule = "one_peer_exponential"\ngraph = "cycle"', "takes no graph: leave it out"),
        ('schedule = "one_peer_exponential"\nseed = 1', "takes no seed: leave it out"),
        ('schedule = "one_peer_exponential"\nfile = "W.csv"', "takes no file: leave it out"),
        ('schedule = "random_matchings"\nweights = "metropolis"\ngraph = "cycle"', "takes no weights: leave it out"),
        ('schedule = "random_matchings"', r"\[mixing\] needs graph = ..."),
        ('schedule = "random_matchings"\ngraph = "cycle"\nseed = -1', "seed in \\[mixing\\] must be a whole number"),
        ('schedule = "random_matchings"\ngraph = "cycle:5"', "5 × 5 but .* 4 agents"),
    ],
)
def test_mixing_in_toml_that_makes_no_sense(tmp_path, mixing, message):
    (tmp_path / "run.toml").write_text(TOML.format(mixing))
    with pytest.raises(ValueError, match=message):
        Experiment.from_toml(tmp_path / "run.toml")


def test_a_schedule_is_told_from_another(experiment):
    matrices = [metropolis(graphs.cycle(4)), metropolis(graphs.star(4))]
    mixings = [matrices[0], *map(schedules.periodic, (matrices, matrices[::-1])), schedules.sequence(matrices * 10)]
    runs = [dataclasses.replace(experiment, mixing=mixing) for mixing in mixings]
    assert len({run.describe()["mixing"] for run in runs}) == len(runs)
    np.testing.assert_allclose(runs[1].mixing.matrices, mixings[1].matrices, rtol=1e-14)
    assert "Schedule(4 agents, periodic over 2 rounds, 2 matrices), crc32" in runs[1].describe()["mixing"]


def test_seeds_make_different_networks(experiment):
    other = dataclasses.replace(experiment, seed=1)
    assert not np.allclose(predict(experiment).local_loss[0], predict(other).local_loss[0])


@pytest.mark.parametrize(
    ("rounds", "record", "expected"),
    [(4, 50, [0, 1, 2, 3, 4]), (100, 3, [0, 50, 100]), (10, [7, 2, 7], [0, 2, 7, 10]), (1, 2, [0, 1])],
)
def test_recorded_rounds(experiment, rounds, record, expected):
    assert list(dataclasses.replace(experiment, rounds=rounds, record=record).recorded) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rounds": 0}, ValueError, "rounds must be a whole number ≥ 1"),
        ({"seed": -1}, ValueError, "seed must be a whole number ≥ 0"),
        ({"record": 1}, ValueError, "record must be at least 2"),
        ({"record": [21]}, ValueError, "round 21 of a run of 20"),
        ({"record": [-1]}, ValueError, "rounds ≥ 0"),
        ({"loss": "hinge"}, ValueError, "unknown loss 'hinge'"),
        ({"kernel": "mean"}, ValueError, "unknown kernel 'mean'"),
        ({"precision": "float16"}, ValueError, "unknown precision"),
        ({"mixing": np.eye(4)}, ValueError, "connect"),
        ({"mixing": np.ones((3, 3)) / 3}, ValueError, "4 agents"),
        ({"mixing": schedules.one_peer_exponential(5)}, ValueError, "5 × 5 but .* 4 agents"),
        ({"mixing": schedules.periodic([np.eye(4)])}, ValueError, "mixing falls into 4 components"),
        (
            {"mixing": schedules.random_matchings(graphs.cycle(4), 19)},
            ValueError,
            "a schedule of 19 rounds for a run of 20: give it 20 matrices",
        ),
    ],
)
def test_bad_fields_are_refused(experiment, change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(experiment, **change)


def test_cross_entropy_is_of_classes(experiment):
    regression = data.load("regression", samples=40).split(agents=4, by="iid")
    with pytest.raises(ValueError, match=r'regression: use loss = "squared"'):
        dataclasses.replace(experiment, data=regression, loss="cross_entropy")
    source = data.load("digits", classes=(0, 1), samples=40)
    halves = dataclasses.replace(source, targets=source.targets / 2).split(agents=4, by="iid")
    with pytest.raises(ValueError, match=r"the targets of .* do not name classes: cross-entropy takes −1 and"):
        dataclasses.replace(experiment, data=halves, loss="cross_entropy")


def test_what_is_integrated_takes_no_method_for_linear_systems(experiment):
    with pytest.raises(ValueError, match="'krylov' is for squared error: leave it out"):
        predict(dataclasses.replace(experiment, loss="cross_entropy"), method="krylov")


@pytest.mark.needs("neural-tangents")
def test_cross_entropy_has_no_average_over_initialisations(experiment, neural_tangents):
    infinite = dataclasses.replace(experiment, model=models.mlp(width=float("inf"), depth=1), loss="cross_entropy")
    with pytest.raises(ValueError, match="take a finite width, or squared error"):
        predict(infinite)


def test_predict_refuses_an_unknown_time(experiment):
    with pytest.raises(ValueError, match='time must be "rounds" or "flow"'):
        predict(experiment, time="seconds")


def test_shared_kernel_is_an_approximation_that_can_be_had(digits):
    from ntkp2p import train

    run = Experiment(
        model=models.mlp(width=512, depth=1),
        data=digits(classes=(0, 1, 2)),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=60,
        record=6,
    )
    shared = dataclasses.replace(run, kernel="shared")
    trained = train(run).global_loss
    predicted = [predict(e) for e in (run, shared)]
    errors = [np.abs(p.global_loss - trained).max() / trained[0].mean() for p in predicted]
    assert errors[0] < errors[1] < 0.05
    # What that costs is stated beforehand, from the kernels alone.
    assert "sharing_error" not in predicted[0].dataset.attrs
    assert 0 < predicted[1].dataset.attrs["sharing_error"] < 0.2


def test_a_tolerance_for_the_kernel_takes_fewer_features(digits):
    run = Experiment(
        model=models.mlp(width=512, depth=1),
        data=digits(samples=100),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=60,
        record=6,
    )
    exact, rough = (predict(e) for e in (run, dataclasses.replace(run, kernel_rtol=0.05)))
    assert rough.dataset.attrs["rank"] < 0.9 * exact.dataset.attrs["rank"]
    assert 0 < rough.dataset.attrs["kernel_error"] < 3e-2
    # Outputs are off by what the factor leaves out of the kernel, and losses by about as much.
    np.testing.assert_allclose(
        rough.local_loss, exact.local_loss, rtol=0, atol=2e-2 * float(exact.local_loss[0].mean())
    )
    for wrong in (0, 1e-3j, "small", 2.0):
        with pytest.raises(ValueError, match="kernel_rtol must be a number between 0 and 1"):
            dataclasses.replace(run, kernel_rtol=wrong)


def test_options_reach_the_kernel(digits, tmp_path):
    run = Experiment(
        model=models.mlp(width=32, depth=1),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=5,
    )
    seen = []
    features = run.features(cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert list(tmp_path.glob("ntk-*/*.npz"))
    np.testing.assert_allclose(predict(run, features=features).local_loss, predict(run).local_loss, rtol=1e-12)
    with pytest.raises(ValueError, match="may be used"):
        run.features(memory=1000)
    infinite = dataclasses.replace(run, model=models.mlp(width=float("inf"), depth=1))
    with pytest.raises(ValueError, match="leave memory, mesh and cache out"):
        infinite.features(cache=tmp_path)
