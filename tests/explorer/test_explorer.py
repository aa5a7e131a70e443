"""The explorer without a browser: what its controls do to the tables, the pictures and the experiment."""

import gc
import importlib
import sys
import tomllib

import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Experiment, PushSum, explore, graphs, metropolis, predict, predictions
from ntkp2p.algorithms import ALGORITHMS
from ntkp2p.base.registry import parameters_of
from ntkp2p.dynamics import linear_system
from ntkp2p.dynamics.eager import eager_system
from ntkp2p.explorer.widgets import VARIABLES, Explorer, verdict
from ntkp2p.kernels import Features

SMALL = {
    "rounds": 12,
    "record": 5,
    "model": {"name": "affine"},
    "data": {"name": "digits", "classes": [0, 1], "samples": 12, "test_samples": 4},
    "split": {"agents": 3, "by": "label"},
    "mixing": {"graph": "cycle", "weights": "metropolis"},
    "algorithm": {"name": "DGD", "step_size": 0.1},
}


@pytest.fixture
def explorer():
    return explore(SMALL)


def pictures(explorer: Explorer) -> list[bytes]:
    return [bytes(picture.image.value) for picture in (explorer.curves, explorer.net, explorer.disc)]


def ended(explorer: Explorer) -> None:
    explorer._training[0].join(60)
    assert explorer._training is None


def test_numpy_takes_the_same_rounds_of_an_exact_kernel(digits):
    algorithm = CTA(step_size=0.3)
    data = digits(agents=4, classes=(0, 1, 2), samples=18, by="dirichlet", alpha=0.7)
    rng = np.random.default_rng(0)
    W = metropolis(graphs.star(4))
    initial, matrix = rng.normal(size=(18, 3)), rng.normal(size=(54, 7))  # a sample has three rows
    features = Features(matrix, 1, initial, 0.0, np.asarray, np.asarray, None)
    expected = linear_system(algorithm, W, features, data)
    found = eager_system(algorithm, W, features, data)
    scale = np.abs(expected.matrix()).max()
    np.testing.assert_allclose(found.matrix(), expected.matrix(), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(found.offset, expected.offset, rtol=0, atol=1e-13 * np.abs(expected.offset).max())
    s = np.random.default_rng(0).normal(size=found.size)
    np.testing.assert_allclose(found.apply(s), expected.matrix() @ s, rtol=0, atol=1e-12 * scale)
    np.testing.assert_array_equal(found.models(s[None], np.zeros(1)), expected.models(s[None], np.zeros(1, int)))
    for name in ("curvature", "sufficient_step_size", "growth", "step_size"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)


def test_every_move_is_predicted_and_drawn(explorer, monkeypatch):
    monkeypatch.setattr(Experiment, "features", None)  # the kernel is there, and only its rows are redistributed
    for widget, value in [
        (explorer.step_size, 0.25),
        (explorer.algorithm, "ATC"),
        (explorer.partition, "dirichlet"),
        (explorer.alpha, 3.0),
        (explorer.agents, 4),
    ]:
        before = pictures(explorer)
        widget.value = value
        after = pictures(explorer)
        assert after[0] != before[0]
        assert after[0].startswith(b"\x89PNG")
        assert (after[1] != before[1]) == (widget is explorer.agents)
    before = bytes(explorer.net.image.value)
    explorer.graph.value, explorer.weights.value = "star", "lazy_metropolis"
    assert explorer.net.image.value != before
    before = bytes(explorer.curves.image.value)
    explorer.variable.value = "consensus_distance"
    assert explorer.curves.image.value != before
    assert explorer.tables["split"] == {"agents": 4, "by": "dirichlet", "alpha": 3.0}
    run = explorer.experiment
    assert run.algorithm == ATC(step_size=0.25)
    np.testing.assert_allclose(run.mixing, (np.eye(4) + metropolis(graphs.star(4))) / 2, rtol=1e-14)
    monkeypatch.undo()
    for time, shown in explorer.predicted.items():
        expected = predict(run, time=time)
        for name in ("local_loss", "global_loss", "consensus_distance", "parameter_distance"):
            difference = np.abs(shown.dataset[name].values - expected.dataset[name].values).max()
            # States are accurate to 1e-10 relative to how far they have moved, and losses are quadratic in them.
            assert difference <= 1e-9 * np.abs(expected.dataset[name].values).max()
        assert shown.stable == expected.stable
        assert shown.dataset.attrs["spectral_radius"] == pytest.approx(
            expected.dataset.attrs["spectral_radius"], rel=1e-10
        )


#: Every algorithm of the explorer, and what its controls are moved to.
CHOSEN = [
    ("DGD", {}),
    ("DGD", {"gradient_delay": 2, "message_delay": 1}),
    ("CTA", {}),
    ("ATC", {}),
    ("LocalSGD", {"steps": 2, "delay": 1, "momentum": 0.5}),
    ("PushSum", {"momentum": 0.5}),
    ("SparsePush", {"compression": "top_k", "averaging_rate": 0.2, "dense_rounds": 2}),
    ("SkewCompensatedSparsePush", {"compression": "random_k", "gradient_rounds": 3, "gossip_rounds": 2}),
    ("CHOCO", {"keep": 0.3}),
]


@pytest.fixture(scope="module")
def chooser():
    """An explorer for several tests, and the features of its data."""
    explorer = explore(SMALL | {"rounds": 20, "mixing": {"graph": "star"}})
    explorer._draw = lambda *_: None  # other tests look at the pictures
    return explorer, explorer.experiment.features()


@pytest.mark.parametrize(("name", "moved"), CHOSEN, ids=[f"{name} {', '.join(moved)}" for name, moved in CHOSEN])
def test_every_algorithm_is_predicted_as_elsewhere(name, moved, chooser):
    explorer, features = chooser
    explorer.gradient_delay.value = explorer.message_delay.value = 0
    explorer.algorithm.value = name
    explorer.weights.value = "push" if ALGORITHMS[name].stochastic == "column" else "metropolis"
    for control, value in moved.items():
        getattr(explorer, control).value = value
    shown = {control for control in explorer._controls if getattr(explorer, control).layout.display is None}
    assert set(moved) <= shown
    assert shown & {"momentum", "steps", "keep", "gossip_rounds"} <= set(parameters_of(ALGORITHMS[name])) | {"keep"}
    assert ("keep" in shown) == ("compression" in parameters_of(ALGORITHMS[name]))
    assert explorer.tables["algorithm"]["name"] == name
    expected = predictions(explorer.experiment, features=features)
    assert list(explorer.predicted) == list(expected)
    for time, trajectory in expected.items():
        found = explorer.predicted[time]
        for variable in VARIABLES:
            # The states are accurate to 1e-10 relative to how far they have moved, and losses are quadratic in them.
            scale = np.abs(trajectory.dataset[variable].values).max()
            np.testing.assert_allclose(
                found.dataset[variable], trajectory.dataset[variable], rtol=0, atol=1e-9 * scale, err_msg=variable
            )
        assert found.stable == trajectory.stable
        assert found.dataset.attrs.get("mean_field_share") == trajectory.dataset.attrs.get("mean_field_share")


def test_every_algorithm_can_be_chosen(chooser):
    assert list(chooser[0].algorithm.options) == list(ALGORITHMS)
    assert {name for name, _ in CHOSEN} == set(ALGORITHMS)


def test_a_parameter_keeps_its_value_until_an_algorithm_takes_it(explorer):
    explorer.algorithm.value = "LocalSGD"
    explorer.momentum.value, explorer.steps.value = 0.3, 2
    explorer.algorithm.value = "DGD"
    assert explorer.tables["algorithm"] == SMALL["algorithm"]
    explorer.algorithm.value = "PushSum"
    assert explorer.tables["algorithm"] == {"name": "PushSum", "step_size": 0.1, "momentum": 0.3}
    explorer.momentum.value = 0
    assert explorer.experiment.algorithm == PushSum(0.1)


def test_the_averaging_rate_follows_what_is_sent(explorer):
    explorer.algorithm.value = "CHOCO"
    explorer.averaging_rate.value = 0.5
    assert explorer.experiment.algorithm.averaging_rate == 0.5
    explorer.keep.value = 10**-0.5
    assert explorer.experiment.algorithm.averaging_rate == explorer.averaging_rate.value == 0.316


def test_the_share_of_the_largest_entries_is_measured_once(explorer, monkeypatch):
    explorer.algorithm.value = "SparsePush"
    explorer.compression.value = "top_k"
    shares = [explorer.predicted["rounds"].dataset.attrs["mean_field_share"]]
    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("ntkp2p.explorer.widgets"), "with_measured_shares", None)
        explorer.step_size.value = 0.2
    for widget, value in [(explorer.keep, 0.5), (explorer.partition, "iid")]:
        shares.append(explorer.predicted["rounds"].dataset.attrs["mean_field_share"])
        widget.value = value
    assert shares[0] == shares[1] != shares[2]


def test_weights_suit_the_algorithm_over_the_graph(explorer):
    explorer.algorithm.value = "PushSum"
    assert explorer.weights.value == "metropolis"
    explorer.graph.value = "directed_ring"
    assert explorer.weights.value == "push"
    assert "stable" in explorer.verdict.value
    explorer.graph.value = "star"
    assert explorer.weights.value == "push"
    explorer.algorithm.value = "DGD"
    assert explorer.weights.value == "metropolis"
    assert "stable" in explorer.verdict.value


def test_garbage_waits_for_the_end_of_a_move(explorer, monkeypatch):
    module = importlib.import_module("ntkp2p.explorer.widgets")
    collecting = []

    def predicted(*arguments, predict=module.explored):
        collecting.append(gc.isenabled())
        return predict(*arguments)

    monkeypatch.setattr(module, "explored", predicted)
    explorer.step_size.value = 0.2
    assert collecting == [False]
    assert gc.isenabled()


def test_another_model_or_data_set_has_another_kernel():
    explorer = explore(SMALL | {"model": {"name": "mlp", "width": 8, "depth": 1}})
    shown = explorer.curves.image.value
    for widget, value in [(explorer.width, 16), (explorer.data, "regression")]:
        before = explorer._pool
        widget.value = value
        assert explorer._pool is not before
        assert explorer.curves.image.value != shown
    assert explorer.experiment.data.name == "regression"
    assert explorer.tables["model"] == {"name": "mlp", "width": 16, "depth": 1}


@pytest.fixture
def file(tmp_path):
    """A user-defined data set, and what replaces it."""
    path = tmp_path / "own.csv"

    def write(seed: int) -> None:
        columns = np.random.default_rng(seed).normal(size=(6, 2)), np.arange(6) % 2
        np.savetxt(path, np.column_stack(columns), delimiter=",", header="a,b,c", comments="")

    write(0)
    return {"name": "csv", "file": str(path), "target": "c", "test_samples": 0}, write


def test_a_file_that_has_changed_has_another_kernel(file):
    data, write = file
    explorer = explore(SMALL | {"data": data})
    write(1)
    explorer.rounds.value = 13
    expected = predict(explorer.experiment).dataset["local_loss"]
    np.testing.assert_allclose(explorer.predicted["rounds"].dataset["local_loss"], expected, rtol=1e-7)


def test_the_data_that_it_began_with_can_be_had_again(file):
    data, _ = file
    explorer = explore(SMALL | {"data": data})
    began = explorer.experiment.describe()
    explorer.data.value = "regression"
    assert "file" not in explorer.tables["data"]
    explorer.data.value = "csv"
    assert explorer.experiment.describe() == began


def test_a_graph_keeps_its_options_with_other_agents():
    explorer = explore(SMALL | {"mixing": {"graph": "erdos_renyi:3,0.9,seed=4", "weights": "metropolis"}})
    explorer.agents.value = 4
    assert explorer.tables["mixing"]["graph"] == "erdos_renyi:4,0.9,seed=4"
    explorer.graph.value = "grid"
    explorer.agents.value = 6
    assert explorer.tables["mixing"]["graph"] == "grid:2,3"


def test_a_partition_that_is_chosen_again_is_the_same(explorer):
    explorer.partition.value = "dirichlet"
    explorer.alpha.value = 10**0.35
    chosen = dict(explorer.tables["split"])
    explorer.partition.value = "iid"
    explorer.partition.value = "dirichlet"
    assert explorer.tables["split"] == chosen == {"agents": 3, "by": "dirichlet", "alpha": 2.24}


def test_the_verdict_says_what_is_unstable(explorer):
    assert "Rounds: <b>stable</b>" in explorer.verdict.value
    bound = explorer.predicted["rounds"].dataset.attrs["sufficient_step_size"]
    assert f"up to {bound:.3g}" in explorer.verdict.value
    explorer.step_size.value = 10.0
    assert "unstable" in explorer.verdict.value
    assert not explorer.predicted["rounds"].stable
    assert "Flow: <b>stable</b>" in explorer.verdict.value
    assert verdict(explorer.predicted) == explorer.verdict.value


def test_the_verdict_says_what_iteration_leaves_open(explorer):
    facts = explorer.predicted["rounds"].dataset.attrs
    for radius, words in ((0.9999, "about 0.9999, not above 1."), (1.0001, "about 1.0001, within its residual of 1.")):
        facts |= {"spectral_radius": radius, "spectral_residual": 5e-4}
        assert words in verdict(explorer.predicted)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("graph", "torus", "needs both"),
        ("graph", "directed_ring", "push_weights"),
        ("agents", 16, "12 samples cannot be dealt to 16 agents"),
    ],
)
def test_what_cannot_be_run_is_said_and_mended(name, value, message, explorer):
    widget = getattr(explorer, name)
    good = widget.value
    widget.value = value
    assert message in explorer.verdict.value
    assert explorer.experiment is None
    assert explorer._pictures.layout.display == "none"
    assert all(button.disabled for button in (explorer.train, explorer.copy, explorer.save))
    widget.value = good
    assert "stable" in explorer.verdict.value
    assert explorer._pictures.layout.display is None
    assert not any(button.disabled for button in (explorer.train, explorer.copy, explorer.save))
    assert explorer.experiment.describe() == Experiment.from_dict(SMALL).describe()


def test_what_cannot_be_combined_is_said(explorer):
    explorer.graph.value = "star"
    for name, value, message in [
        ("weights", "push", "push-sum takes it as it is"),
        ("algorithm", "PushSum", "stable"),
        ("message_delay", 1, "leave messages out"),
        ("algorithm", "LocalSGD", "stable"),
        ("steps", 2, "stable"),
        ("gradient_delay", 1, "leave gradients out"),
    ]:
        getattr(explorer, name).value = value
        assert message in explorer.verdict.value
        assert (explorer.experiment is not None) == (message == "stable")


def test_training_is_shown_beside_the_predictions(explorer):
    before = bytes(explorer.curves.image.value)
    explorer.train.click()
    assert explorer.train.description == "Cancel"
    ended(explorer)
    assert explorer.curves.image.value != before
    assert explorer.progress.value == 12
    assert explorer.train.description == "Train"
    np.testing.assert_array_equal(
        explorer.trained.dataset["round"].values, explorer.predicted["rounds"].dataset["round"].values
    )
    np.testing.assert_allclose(  # an affine model's prediction is exact
        explorer.trained.dataset["local_loss"].values, explorer.predicted["rounds"].dataset["local_loss"], rtol=1e-7
    )
    explorer.step_size.value = 0.2
    assert explorer.trained is None  # of another experiment


@pytest.mark.parametrize("how", ["click", "change"])
def test_training_is_cancelled_by_a_second_click_or_a_change(how, explorer):
    explorer.rounds.value = 100_000
    explorer.train.click()
    thread, _ = explorer._training
    if how == "click":
        explorer.train.click()
    else:
        explorer.rounds.value = 12
    assert "cancelled" in explorer.note.value
    assert explorer._training is None
    thread.join(60)
    assert not thread.is_alive()
    assert explorer.trained is None
    assert explorer.train.description == "Train"


def test_training_that_diverges_is_said(explorer):
    explorer.rounds.value, explorer.step_size.value = 400, 10.0
    explorer.train.click()
    ended(explorer)
    assert "training diverges" in explorer.note.value
    assert explorer.trained.diverged


def test_the_experiment_goes_elsewhere(explorer, tmp_path):
    explorer.agents.value, explorer.step_size.value = 4, 0.37
    path = tmp_path / "run.toml"
    explorer.name.value = str(path)
    explorer.save.click()
    assert "Written to" in explorer.note.value
    assert Experiment.from_toml(path).describe() == explorer.experiment.describe()
    assert tomllib.loads(explorer.toml()) == explorer.tables
    explorer.step_size.value = 0.2
    explorer.save.click()
    assert "exists already" in explorer.note.value
    assert Experiment.from_toml(path).algorithm == DGD(step_size=0.37)
    explorer.name.value = " "
    explorer.save.click()
    assert "give the file a name" in explorer.note.value
    explorer.name.value = str(tmp_path / "none" / "run.toml")
    explorer.save.click()
    assert "make it first" in explorer.note.value
    explorer.copy.click()
    assert explorer._source.value == explorer.python()
    explorer.step_size.value = 0.3
    made: dict = {}
    exec(explorer._source.value, made)
    assert made["experiment"].describe() == explorer.experiment.describe()


def test_it_begins_with_a_file_and_keeps_what_it_cannot_express(tmp_path):
    np.savetxt(tmp_path / "W.csv", np.full((3, 3), 1 / 3), delimiter=",")
    (tmp_path / "run.toml").write_text(
        """
        rounds = 7
        seed = 3
        model = {name = "affine"}
        data = {name = "digits", classes = [2, 3], samples = 9, test_samples = 0}
        split = {agents = 3, by = "skew", skew = 0.5}
        mixing = {file = "W.csv"}
        algorithm = {name = "LocalSGD", step_size = 0.1}
        """
    )
    explorer = explore(tmp_path / "run.toml")
    assert explorer.experiment.describe() == Experiment.from_toml(tmp_path / "run.toml").describe()
    assert all(w.disabled for w in (explorer.width, explorer.depth, explorer.graph, explorer.weights, explorer.alpha))
    assert (explorer.algorithm.value, explorer.partition.value) == ("LocalSGD", "skew")
    explorer.step_size.value = 0.05
    assert "stable" in explorer.verdict.value
    assert list(explorer.predicted) == ["rounds", "flow"]
    assert explorer.tables["seed"] == 3


def test_a_file_saved_elsewhere_finds_its_mixing(tmp_path, monkeypatch):
    np.savetxt(tmp_path / "W.csv", np.full((3, 3), 1 / 3), delimiter=",")
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(tmp_path)
    explorer = explore(SMALL | {"mixing": {"file": "W.csv"}})
    explorer.name.value = "results/run.toml"
    explorer.save.click()
    assert Experiment.from_toml("results/run.toml").describe() == explorer.experiment.describe()


def test_it_begins_with_tables_that_leave_things_out():
    bare = SMALL | {"mixing": {"graph": "directed_ring"}, "split": {"agents": 3}}
    explorer = explore(bare)
    assert explorer.experiment.describe() == Experiment.from_dict(bare).describe()
    assert (explorer.weights.value, explorer.partition.value) == ("push", "iid")
    assert bare["mixing"] == {"graph": "directed_ring"}  # a copy of the tables


def test_what_is_wrong_at_the_start_is_raised(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown graph 'cycel'"):
        explore(SMALL | {"mixing": {"graph": "cycel"}})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        explore(tmp_path / "none.toml")
    monkeypatch.delitem(sys.modules, "ntkp2p.explorer.widgets")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'ntkp2p\[notebooks\]'"):
        explore()
