"""The central test: an affine model is its own linearisation, so what was trained equals what was predicted."""

import jax
import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Experiment, graphs, metropolis, models, predict, predictions, train

AGENTS = 5
MIXINGS = {
    "cycle": metropolis(graphs.cycle(AGENTS)),
    "star": metropolis(graphs.star(AGENTS)),
    "complete": metropolis(graphs.complete(AGENTS)),
    "random": np.random.default_rng(0).dirichlet(np.ones(AGENTS), size=AGENTS),
}


@pytest.mark.parametrize("classes", [(0, 1), tuple(range(10))], ids=["binary", "ten classes"])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_trained_affine_is_predicted_rounds(algorithm, mixing, classes, digits):
    experiment = Experiment(
        model=models.affine(),
        data=digits(agents=AGENTS, samples=30, classes=classes),
        mixing=MIXINGS[mixing],
        algorithm=algorithm(step_size=0.2),
        rounds=150,
        record=12,
    )
    trained, predicted = train(experiment), predict(experiment, rtol=1e-12)
    assert predicted.dataset.attrs["error_estimate"] < 1e-11
    for name in ("local_loss", "global_loss", "test_loss", "parameter_distance"):
        np.testing.assert_allclose(predicted.dataset[name], trained.dataset[name], rtol=1e-10, err_msg=name)
    # Agents in agreement differ by rounding, which is no relative accuracy.
    scale = float(trained.parameter_distance.max())
    np.testing.assert_allclose(predicted.consensus_distance, trained.consensus_distance, rtol=1e-10, atol=1e-12 * scale)
    np.testing.assert_allclose(predicted.test_accuracy, trained.test_accuracy, rtol=1e-12)


@pytest.mark.parametrize(
    ("split", "samples"),
    [
        ({"by": "iid"}, 60),
        ({"by": "dirichlet", "alpha": 0.5}, 60),
        ({"by": "skew", "skew": 0.5}, 60),
        ({"by": "iid"}, 200),
        pytest.param({"by": "dirichlet", "alpha": 0.5}, 200, marks=pytest.mark.slow),
        pytest.param({"by": "skew", "skew": 0.5}, 200, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_whatever_the_split_and_the_features(split, samples, digits):
    """Of 60 samples the features are by Cholesky, of 200 by Jacobian."""
    experiment = Experiment(
        model=models.affine(),
        data=digits(agents=5, samples=samples, **split),
        mixing=metropolis(graphs.path(5)),
        algorithm=DGD(step_size=0.2),
        rounds=100,
        record=8,
    )
    np.testing.assert_allclose(predict(experiment).local_loss, train(experiment).local_loss, rtol=1e-10)


@pytest.mark.parametrize("samples", [60, 400], ids=["Cholesky features", "Jacobian features"])
def test_parameters_and_outputs_are_rebuilt(samples, digits):
    experiment = Experiment(
        model=models.affine(),
        data=digits(classes=(0, 1, 2), samples=samples),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=ATC(step_size=0.2),
        rounds=50,
        record=[20],
    )
    seen = {}
    train(experiment, observe=lambda k, x: seen.update({k: x}))
    predicted = predict(experiment, rtol=1e-12)
    model = experiment.initialise()
    new = experiment.data.test_inputs
    for k in (0, 20, 50):
        outputs = predicted.outputs(new, k)
        assert outputs.shape == (4, len(new), 3)
        for q in range(4):
            theta = predicted.parameters(q, k)
            flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(theta)])
            np.testing.assert_allclose(flat, seen[k][q], rtol=0, atol=1e-10 * np.abs(seen[k]).max())
            with jax.enable_x64(True):
                np.testing.assert_allclose(outputs[q], model.apply(theta, new), rtol=0, atol=1e-10)
    errors = np.sum((predicted.outputs(new) - experiment.data.test_targets) ** 2, axis=-1) / 2
    np.testing.assert_allclose(errors.mean(axis=1), predicted.test_loss[-1], rtol=1e-12)
    right = predicted.outputs(new).argmax(axis=-1) == experiment.data.test_labels
    np.testing.assert_allclose(right.mean(axis=1), predicted.test_accuracy[-1], rtol=1e-12)


def test_models_of_a_run_that_has_none_are_refused(digits, tmp_path):
    experiment = Experiment(
        model=models.mlp(width=8, depth=1),
        data=digits(classes=(0, 1, 2)),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.2),
        rounds=4,
        record=[2],
        kernel="shared",
    )
    predicted = predict(experiment)
    with pytest.raises(ValueError, match="kernel='exact'"):
        predicted.parameters(0)
    with pytest.raises(ValueError, match="no agent 4"):
        predicted.parameters(4)
    with pytest.raises(ValueError, match=r"round 3 was not recorded, the nearest is 2: record=\[3\]"):
        predicted.outputs(experiment.data.inputs, 3)
    for without in (train(experiment), type(predicted).load(predicted.save(tmp_path / "p.nc"))):
        with pytest.raises(ValueError, match="no models with it"):
            without.parameters(0)


def test_dense_and_krylov_agree(digits):
    experiment = Experiment(
        model=models.mlp(width=64, depth=1),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=CTA(step_size=0.1),
        rounds=200,
    )
    dense, krylov = (predictions(experiment, method=m) for m in ("dense", "krylov"))
    for time in ("rounds", "flow"):
        np.testing.assert_allclose(krylov[time].local_loss, dense[time].local_loss, rtol=1e-7)


def test_recorded_rounds_do_not_depend_on_what_else_is_recorded(digits):
    def run(record):
        return Experiment(
            model=models.affine(),
            data=digits(),
            mixing=metropolis(graphs.cycle(4)),
            algorithm=DGD(step_size=0.2),
            rounds=30,
            record=record,
        )

    few, many = (train(run(r)).local_loss.sel(round=[0, 10, 30]) for r in ([10], 31))
    np.testing.assert_allclose(few, many, rtol=1e-12)
