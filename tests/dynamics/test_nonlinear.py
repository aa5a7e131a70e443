"""What has no closed form, beside training and beside loops written by hand."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from scipy.special import expit, softmax

from ntkp2p import ATC, CTA, DGD, Experiment, graphs, metropolis, models, predict, train
from ntkp2p.base.precision import in_float64
from ntkp2p.data import Dataset
from ntkp2p.dynamics.nonlinear import integrate
from ntkp2p.dynamics.round import assemble

W = np.random.default_rng(0).dirichlet(np.ones(4), size=4)


def logistic(data, /, **options):
    """An affine classifier, which is its own linearisation."""
    defaults = {"model": models.affine(), "mixing": W, "algorithm": DGD(step_size=0.5), "rounds": 120, "record": 8}
    return Experiment(data=data, loss="cross_entropy", **(defaults | options))


@in_float64
def integrated(experiment, /, *, mixing=None, time="rounds", rtol=1e-8):
    """`integrate` of an experiment, whose mixing matrix may be one that is refused there."""
    mixing, data = experiment.mixing if mixing is None else mixing, experiment.data
    features = experiment.features()
    advance, parameters, _ = assemble(experiment.algorithm, mixing, features, data, loss="cross_entropy")
    start = advance.start(experiment.algorithm)
    return features, integrate(advance, parameters, start, experiment.recorded, time=time, rtol=rtol)


def gradients(z, features, data):
    """Every agent's, z of shape (Q, rank, columns), by the textbook's formulas."""
    found = np.zeros_like(z)
    for q in range(data.agents):
        own = data.owner == q
        s, y = features.matrix[own], data.targets[own]
        f = features.initial[own] + s @ z[q]
        pull = -y * expit(-y * f) if y.shape[1] == 1 else softmax(f, axis=1) - np.eye(y.shape[1])[data.labels[own]]
        found[q] = s.T @ pull / own.sum()
    return found


@pytest.mark.parametrize(
    ("algorithm", "classes"), [(DGD, (0, 1)), (DGD, (0, 1, 2)), (CTA, (0, 1, 2)), (ATC, (0, 1))], ids=str
)
def test_trained_affine_is_predicted_rounds(algorithm, classes, digits):
    experiment = logistic(digits(classes=classes), algorithm=algorithm(step_size=0.5))
    trained, predicted = train(experiment), predict(experiment)
    for name in ("local_loss", "global_loss", "test_loss", "parameter_distance"):
        np.testing.assert_allclose(predicted.dataset[name], trained.dataset[name], rtol=1e-10, err_msg=name)
    np.testing.assert_array_equal(predicted.test_accuracy, trained.test_accuracy)
    assert (predicted.local_loss[-1] < 0.6 * predicted.local_loss[0]).all()
    facts = predicted.dataset.attrs
    assert not facts["closed_form"]
    assert facts["stable"]
    assert facts["converged"]
    assert facts["error_estimate"] < 1e-12
    assert facts["loss"] == "cross_entropy"
    assert not {"spectral_radius", "sufficient_step_size"} & set(facts)


def test_an_exact_kernel_couples_the_outputs_and_is_followed_too(digits):
    """The same affine classifier, with the features of a network: one column for all outputs."""
    data = digits(classes=(0, 1, 2), samples=20)

    def init(key, x):
        return jnp.zeros((64, 3))

    def apply(theta, x):
        return x.reshape(len(x), -1) @ theta / 8

    experiment = logistic(data, model=(init, apply))
    assert experiment.features().columns == 1
    np.testing.assert_allclose(predict(experiment).local_loss, train(experiment).local_loss, rtol=1e-10)


def test_one_agent_is_gradient_descent_by_hand(digits):
    data = digits(agents=1, by="iid")
    experiment = logistic(data, mixing=np.ones((1, 1)), rounds=50, record=51)
    features, found = integrated(experiment)
    z, orbit = np.zeros((1, features.rank, 1)), []
    for _ in range(51):
        orbit.append(z.ravel())
        z = z - 0.5 * gradients(z, features, data)
    np.testing.assert_allclose(found.models[:, 0], orbit, rtol=0, atol=1e-12 * np.abs(orbit).max())
    outputs = features.initial + np.einsum("nr,kr->kn", features.matrix, np.array(orbit))[..., None]
    expected = np.mean(np.log1p(np.exp(-data.targets * outputs)), axis=(1, 2))
    np.testing.assert_allclose(predict(experiment).local_loss[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize(("classes", "rtol"), [((0, 1), 1e-5), ((0, 1, 2), 1e-10)], ids=["binary", "three classes"])
def test_flow_is_scipys(classes, rtol, digits):
    data = digits(classes=classes, samples=20)
    experiment = logistic(data, rounds=40, record=5)
    features, found = integrated(experiment, time="flow", rtol=rtol)
    shape = (4, features.rank, features.columns)

    def flow(t, z):
        z = z.reshape(shape)
        return ((np.tensordot(W, z, 1) - z) / 0.5 - gradients(z, features, data)).ravel()

    solved = scipy.integrate.solve_ivp(
        flow, (0, 20), np.zeros(np.prod(shape)), "DOP853", t_eval=0.5 * experiment.recorded, rtol=1e-12, atol=1e-14
    )
    expected = solved.y.T
    errors = np.linalg.norm(found.models.reshape(expected.shape) - expected, axis=1)
    assert found.converged
    assert np.max(errors[1:] / np.linalg.norm(expected[1:], axis=1)) < found.error <= rtol
    assert found.method == "diffrax Dopri8"


@pytest.mark.slow
def test_wide_networks_are_predicted_the_better_the_wider(digits):
    errors = []
    for width in (32, 512):
        run = logistic(digits(), model=models.mlp(width=width, depth=1), mixing=metropolis(graphs.cycle(4)), rounds=60)
        trained, predicted = train(run).local_loss.values, predict(run).local_loss.values
        errors.append(np.abs(trained - predicted).max() / trained[0].mean())
        assert trained[-1].mean() < 0.7 * trained[0].mean()  # it is training that is predicted, not rest
    # Sixteen times as wide: a quarter of the error by the bound of order width^(-1/2), less in practice.
    assert errors[1] < min(errors[0] / 3, 0.03)


def test_rounds_that_magnify_rounding_errors_say_so():
    """Labels that no line separates, and far too large a step: bounded, but what training does cannot be foretold."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 24)
    targets = 2.0 * labels[:, None] - 1
    noise = Dataset(name="noise", inputs=rng.normal(size=(24, 2)), targets=targets, labels=labels, classes=(0, 1))
    wild = logistic(noise.split(agents=4, by="iid"), algorithm=DGD(step_size=300.0), rounds=400)
    trained, predicted = train(wild), predict(wild)
    facts = predicted.dataset.attrs
    assert facts["stable"]
    assert not facts["converged"]
    assert 1e-10 < np.abs(predicted.local_loss / trained.local_loss - 1).max() < facts["error_estimate"] < 1e-5


@pytest.mark.parametrize("time", ["rounds", pytest.param("flow", marks=pytest.mark.slow)])
def test_mixing_that_expands_is_unstable_and_no_traceback(time, digits):
    _, found = integrated(logistic(digits(samples=12), rounds=800), mixing=3 * W, time=time)
    assert not found.stable
    assert np.isfinite(found.models[0]).all()
    assert np.isnan(found.models[-1]).all()


def test_too_few_steps_are_said(digits, monkeypatch):
    module = sys.modules["ntkp2p.dynamics.nonlinear"]  # its name in the package is that of its function
    monkeypatch.setattr(module, "MAX_STEPS", 20)
    module._diffrax.clear_cache()
    predicted = predict(logistic(digits(), rounds=500), time="flow")
    module._diffrax.clear_cache()
    facts = predicted.dataset.attrs
    assert "20 steps do not suffice for rtol = 1e-08, take a larger one" in facts["failure"]
    assert not facts["converged"]
    assert facts["stable"]
    assert "solver not converged" in repr(predicted)
    assert np.isfinite(predicted.local_loss[0]).all()
