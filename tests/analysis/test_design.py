"""Predicted losses as functions that are differentiated, and weights that are designed with them."""

import dataclasses
import sys

import jax
import numpy as np
import pytest

from ntkp2p import (
    ATC,
    CTA,
    DGD,
    Experiment,
    Objective,
    best_weights,
    check_mixing,
    data,
    fastest_mixing,
    graphs,
    metropolis,
    models,
    predict,
    predictions,
    schedules,
    train,
)

RING = metropolis(graphs.cycle(5))
DIRECTED = np.random.default_rng(0).dirichlet(np.ones(5), size=5)


def run(digits, algorithm=DGD, mixing=RING, *, model=None, samples=40, **options):
    return Experiment(
        model=model or models.mlp(width=16, depth=1),
        data=digits(agents=5, samples=samples, **options),
        mixing=mixing,
        algorithm=algorithm(step_size=0.1),
        rounds=30,
    )


@pytest.mark.parametrize("time", ["rounds", "flow"])
@pytest.mark.parametrize(
    ("algorithm", "mixing", "method"),
    [
        (DGD, RING, "dense"),
        pytest.param(DGD, DIRECTED, "dense", marks=pytest.mark.slow),
        (CTA, DIRECTED, "dense"),
        (ATC, RING, "dense"),
        (DGD, RING, "krylov"),
        pytest.param(DGD, DIRECTED, "krylov", marks=pytest.mark.slow),
        (CTA, DIRECTED, "krylov"),
        pytest.param(ATC, RING, "krylov", marks=pytest.mark.slow),
    ],
)
def test_derivatives_are_finite_differences(algorithm, mixing, method, time, digits, monkeypatch):
    monkeypatch.setattr(sys.modules["ntkp2p.dynamics.windows"], "DENSE_SIZE", {"dense": 400, "krylov": 10}[method])
    experiment = run(digits, algorithm, mixing, samples=20)
    objective = Objective(experiment, time=time, rtol=1e-12)
    rng = np.random.default_rng(1)
    at = {"mixing": mixing, "step_size": 0.1, "targets": experiment.data.targets}
    along = {name: rng.normal(size=np.shape(value)) for name, value in at.items()}
    if objective.system.symmetric:
        along["mixing"] = along["mixing"] + along["mixing"].T
    if time == "flow":
        at["at"], along["at"] = 2.7, 1.0
    value, slopes = objective.value_and_grad(**at)
    assert value == pytest.approx(float(np.mean(objective(**at))), rel=1e-12)
    for name in at:
        ahead, back = (float(np.mean(objective(**at | {name: at[name] + h * along[name]}))) for h in (1e-5, -1e-5))
        slope = (ahead - back) / 2e-5
        # Its own error: h² times a third derivative, and rounding over h.
        assert np.sum(slopes[name] * along[name]) == pytest.approx(slope, rel=1e-5, abs=1e-9 * value)


@pytest.fixture(scope="module")
def predicted(digits):
    """An experiment, its features, and by time its prediction."""
    experiment = run(digits, ATC, DIRECTED)
    features = experiment.features()
    return experiment, features, predictions(experiment, features=features)


@pytest.mark.parametrize("variable", ["local_loss", "global_loss", "test_loss", "consensus_distance"])
def test_the_value_is_the_prediction(variable, predicted):
    experiment, features, both = predicted
    for time, found in both.items():
        value, slopes = Objective(experiment, variable, time=time, features=features).value_and_grad(mixing=DIRECTED)
        assert value == pytest.approx(float(found.dataset[variable][-1].mean()), rel=1e-9)
        assert np.isfinite(slopes["mixing"]).all()


def test_a_derivative_of_training(digits):
    """The loss of the trained affine model, differentiated by differences in the step size, is the predicted slope."""
    experiment = run(digits, model=models.affine())

    def trained(step_size):
        changed = dataclasses.replace(experiment, algorithm=DGD(step_size=step_size))
        return float(train(changed).global_loss[-1].mean())

    slope = Objective(experiment).value_and_grad(step_size=0.1)[1]["step_size"]
    assert slope == pytest.approx((trained(0.1 + 1e-5) - trained(0.1 - 1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("other", [metropolis, pytest.param(fastest_mixing, marks=pytest.mark.needs("cvxpy"))])
def test_designed_weights_beat_others_and_training_confirms_it(other, digits):
    graph = graphs.erdos_renyi(5, 0.7, seed=3)
    experiment = run(digits, mixing=metropolis(graph), model=models.affine(), by="label")
    features = experiment.features()
    designed = best_weights(experiment, features=features)
    report = check_mixing(designed)
    assert report.symmetric
    assert report.doubly_stochastic
    assert designed.min() >= 0
    assert not designed[(experiment.mixing == 0) & ~np.eye(5, dtype=bool)].any()
    losses = {}
    for name, W in {"designed": designed, "other": other(graph)}.items():
        changed = dataclasses.replace(experiment, mixing=W)
        losses[name] = float(train(changed).global_loss[-1].mean())
        assert float(predict(changed, features=features).global_loss[-1].mean()) == pytest.approx(
            losses[name], rel=1e-7
        )
    assert losses["designed"] < 0.99 * losses["other"]


def test_jax_differentiates_what_calls_it(digits):
    """One weight for all edges of the ring, differentiated through the matrix that it makes."""
    objective = Objective(run(digits))
    eye, ring = np.eye(5), np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0)

    def loss(weight):
        return objective(mixing=(1 - 2 * weight) * eye + weight * ring).mean()

    with jax.enable_x64(True):
        slope = float(jax.grad(loss)(0.3))
    assert slope == pytest.approx((loss(0.3 + 1e-5) - loss(0.3 - 1e-5)) / 2e-5, rel=1e-6)


def test_agents_that_agree_have_a_slope():
    source = data.load("regression", samples=20, features=2).split(agents=1, by="iid")
    alone = Experiment(model=models.affine(), data=source, mixing=np.eye(1), algorithm=DGD(step_size=0.1), rounds=5)
    value, slopes = Objective(alone, "consensus_distance").value_and_grad(step_size=0.1)
    assert value == slopes["step_size"] == 0
    np.testing.assert_allclose(best_weights(alone), np.eye(1), rtol=1e-14)


def test_what_cannot_be_differentiated_is_refused(digits):
    experiment = run(digits)
    objective = Objective(experiment)
    with pytest.raises(TypeError, match=r"use objective\.value_and_grad"):
        jax.grad(lambda W: objective(mixing=W).mean())(RING)
    with jax.enable_x64(True):
        with pytest.raises(TypeError, match=r"leave jax\.jit and jax\.vmap out"):
            jax.jit(lambda W: objective(mixing=W))(RING)
        with pytest.raises(ValueError, match="a round has no derivative"):
            jax.grad(lambda k: objective(at=k).mean())(3.0)
    for call, message in [
        ({"at": 2.5}, "whole numbers"),
        ({"at": -1}, "finite time ≥ 0"),
        ({"mixing": np.eye(3)}, r"mixing has shape \(3, 3\), and \(5, 5\)"),
        ({"mixing": DIRECTED}, "must be symmetric"),
        ({"targets": np.ones(40)}, r"targets has shape \(40,\)"),
        ({"step_size": -0.1}, "positive number"),
    ]:
        for evaluate in (objective, objective.value_and_grad):
            with pytest.raises(ValueError, match=message):
                evaluate(**call)
    with pytest.raises(ValueError, match="test_accuracy"):
        Objective(experiment, "test_accuracy")
    with pytest.raises(ValueError, match="use one mixing matrix"):
        Objective(run(digits, mixing=schedules.one_peer_exponential(5)))
    with pytest.raises(ValueError, match="squared error"):
        Objective(dataclasses.replace(experiment, loss="cross_entropy"))
    with pytest.raises(ValueError, match="symmetric mixing matrix of weights ≥ 0"):
        best_weights(run(digits, mixing=DIRECTED))
