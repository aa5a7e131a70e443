import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import (
    DGD,
    DivergedError,
    Experiment,
    InputError,
    Trajectory,
    compare,
    graphs,
    metropolis,
    models,
    predict,
    predictions,
    train,
)
from ntkp2p.base.precision import in_float64
from ntkp2p.runs.measures import COUNTERS, VARIABLES, losses


@pytest.fixture(scope="module")
def experiment(digits):
    return Experiment(
        model=models.mlp(width=32, depth=1),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.25),
        rounds=20,
        record=5,
    )


@pytest.fixture(scope="module")
def trajectories(experiment):
    return {"trained": train(experiment), **predictions(experiment)}


def test_labels(trajectories):
    for source, trajectory in trajectories.items():
        dataset = trajectory.dataset
        assert trajectory.source == source
        assert dict(dataset.sizes) == {"round": 5, "agent": 4}
        # A flow sends nothing.
        assert set(dataset.data_vars) == set(VARIABLES) | (set() if source == "flow" else set(COUNTERS))
        np.testing.assert_allclose(dataset["time"], 0.25 * dataset["round"])


@in_float64
def test_measures_are_the_definitions(experiment, trajectories):
    """At round 0 all agents hold θ₀: every measure is computed here once more, sample by sample."""
    model, data = experiment.initialise(), experiment.data
    outputs = np.asarray(model.apply(model.params, data.inputs), float)
    local = [
        np.mean([np.sum((outputs[i] - data.targets[i]) ** 2) / 2 for i in np.flatnonzero(data.owner == q)])
        for q in range(4)
    ]
    tests = np.asarray(model.apply(model.params, data.test_inputs), float)
    for trajectory in trajectories.values():
        start = trajectory.dataset.isel(round=0)
        np.testing.assert_allclose(start["local_loss"], local, rtol=1e-5)
        np.testing.assert_allclose(start["global_loss"], np.mean(local), rtol=1e-5)
        np.testing.assert_allclose(start["test_loss"], np.mean((tests - data.test_targets) ** 2) / 2, rtol=1e-5)
        np.testing.assert_allclose(start["test_accuracy"], np.mean((tests[:, 0] > 0) == data.test_labels))
        np.testing.assert_allclose(start["consensus_distance"], 0, atol=1e-12)
        np.testing.assert_allclose(start["parameter_distance"], 0, atol=1e-12)
    stated = losses(jnp.tile(outputs, (4, 1, 1)), data, "squared")
    np.testing.assert_allclose(stated["local_loss"], local, rtol=1e-12)
    np.testing.assert_allclose(stated["global_loss"], np.mean(local), rtol=1e-12)


def test_distances_are_the_definitions(experiment):
    seen = {}
    trained = train(experiment, observe=lambda k, x: seen.update({k: x}))
    x = seen[20]
    last = trained.dataset.isel(round=-1)
    np.testing.assert_allclose(last["parameter_distance"], [np.linalg.norm(q - seen[0][0]) for q in x])
    np.testing.assert_allclose(last["consensus_distance"], [np.linalg.norm(q - x.mean(0)) for q in x])


def test_netcdf_round_trip(trajectories, tmp_path):
    for source, trajectory in trajectories.items():
        path = trajectory.save(tmp_path / f"{source}.nc")
        again = Trajectory.load(path)
        assert again.dataset.identical(trajectory.dataset)
        assert repr(again) == repr(trajectory)
    assert len(list(tmp_path.iterdir())) == 3


def test_loading_what_is_not_a_trajectory(tmp_path, trajectories):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Trajectory.load(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("no netCDF")
    with pytest.raises(ValueError, match="has no checksum"):
        Trajectory.load(tmp_path / "text.nc")
    compare(*trajectories.values()).save(tmp_path)
    with pytest.raises(ValueError, match="not a trajectory"):
        Trajectory.load(tmp_path / "comparison.nc")


def test_dataframe(trajectories):
    frame = trajectories["trained"].to_dataframe()
    assert len(frame) == 20
    assert {"round", "agent", "time", "local_loss"} <= set(frame.columns)


def test_plot_returns_labelled_axes(trajectories):
    ax = trajectories["rounds"].plot()
    assert len(ax.lines) == 4
    assert "loss" in ax.get_ylabel()
    assert "round" in ax.get_xlabel()
    with pytest.raises(ValueError, match=r"unknown variable 'local_los'.*did you mean"):
        trajectories["rounds"].plot("local_los")


def test_fifty_agents_have_no_legend_of_fifty(digits):
    run = Experiment(
        model=models.affine(),
        data=digits(agents=50, samples=100),
        mixing=metropolis(graphs.cycle(50)),
        algorithm=DGD(step_size=0.1),
        rounds=5,
    )
    ax = predict(run).plot("consensus_distance")
    assert len(ax.lines) == 3  # the mean, the lowest and the highest
    assert len(ax.get_legend().get_texts()) == 3


def test_variables_are_attributes(trajectories):
    trained = trajectories["trained"]
    assert trained.local_loss.identical(trained.dataset["local_loss"])
    with pytest.raises(AttributeError, match="no 'local_los'"):
        trained.local_los  # noqa: B018


def test_comparison(trajectories, tmp_path):
    comparison = compare(trajectories["flow"], trajectories["trained"], trajectories["rounds"])
    assert list(comparison.trajectories) == ["trained", "rounds", "flow"]
    trained, rounds, flow = (trajectories[s].local_loss.values for s in comparison.trajectories)
    errors = comparison.errors()
    assert errors["linearisation"] == pytest.approx(np.abs(trained - rounds).max() / trained[0].mean(), rel=1e-6)
    assert errors["time discretisation"] == pytest.approx(np.abs(rounds - flow).max() / rounds[0].mean())
    assert errors["solver"] == trajectories["rounds"].dataset.attrs["error_estimate"]
    assert set(comparison.table().index) == set(VARIABLES)
    dataset = comparison.dataset
    assert dataset.attrs["algorithm"] == "DGD"
    np.testing.assert_array_equal(dataset["local_loss"].sel(source="flow"), flow)
    assert len(comparison.plot("local_loss", "test_accuracy")) == 2


def test_only_one_experiment_is_compared(experiment, trajectories):
    import dataclasses

    with pytest.raises(ValueError, match="different sources"):
        compare(trajectories["trained"], trajectories["trained"])
    with pytest.raises(ValueError, match=r"different sources.*found rounds"):
        compare(trajectories["rounds"])
    other = predict(dataclasses.replace(experiment, algorithm=DGD(step_size=0.1)))
    with pytest.raises(ValueError, match=r"not runs of one experiment: step_size is 0.25"):
        compare(trajectories["trained"], other)
    other = predict(dataclasses.replace(experiment, mixing=metropolis(graphs.complete(4))))
    with pytest.raises(ValueError, match="not runs of one experiment: mixing"):
        compare(trajectories["trained"], other)
    other = Trajectory(trajectories["rounds"].dataset.assign_attrs(loss="cross_entropy"))
    with pytest.raises(ValueError, match=r"loss is 'squared' .* and 'cross_entropy'"):
        compare(trajectories["trained"], other)


@pytest.mark.parametrize(("step_size", "diverged"), [(0.1, False), (20.0, True)])
def test_a_training_that_grew_has_diverged_though_its_losses_are_finite(experiment, step_size, diverged):
    algorithm = DGD(step_size=step_size)
    run = dataclasses.replace(experiment, algorithm=algorithm, rounds=30, model=models.affine(), record=2)
    trained = train(run)
    assert np.isfinite(trained.local_loss).all()
    grown = float(trained.local_loss.max() / trained.local_loss[0].max())
    assert (grown > 1000) == diverged == trained.diverged
    assert ("diverged" in repr(trained)) == diverged


def test_divergence_keeps_what_was_recorded(experiment):
    run = dataclasses.replace(experiment, algorithm=DGD(step_size=1e6), rounds=400, record=21, model=models.affine())
    predicted = predictions(run)
    assert not predicted["rounds"].stable
    assert predicted["flow"].stable  # Proposition 1: the flow is stable at every step size
    with pytest.raises(DivergedError, match="training diverges: at round") as diverged:
        train(run)
    trained = diverged.value.trajectory
    assert trained.diverged
    assert trained.grows
    with pytest.raises(InputError, match="does not decide stability: see its attribute diverged"):
        _ = trained.stable
    assert np.isfinite(trained.local_loss[:-1]).all()
    # As long as it lasts, what diverges is what was predicted to.
    finite = trained.local_loss[:-1]
    np.testing.assert_allclose(predicted["rounds"].local_loss[: len(finite)], finite, rtol=1e-8)
    comparison = compare(trained, *predicted.values())
    assert comparison.dataset["local_loss"].sel(source="trained").isnull().any()
    assert any("unstable" in t.get_text() for t in comparison.plot()[0].texts)
