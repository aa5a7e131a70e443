import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkp2p import (
    ATC,
    CTA,
    DGD,
    Algorithm,
    Delayed,
    Experiment,
    Objective,
    World,
    compare,
    graphs,
    linear_system,
    metropolis,
    models,
    predict,
    predictions,
    schedules,
    solve,
    steady_state,
    train,
    transition,
)

RNG = np.random.default_rng(0)
W = RNG.dirichlet(np.ones(4), size=4)
H = RNG.normal(size=(3, 3))
X = RNG.normal(size=(4, 3))
ETA = 0.1


def world(k=0):
    """W's rows are rotated from round to round."""
    mixing = np.roll(W, k, axis=0)
    return World(
        mix=lambda x: mixing @ x,
        grad=lambda x, when=True: np.tanh(x) @ H,
        own=lambda x: np.diagonal(mixing)[:, None] * x,
    )


def recursion(algorithm, gradients, messages, rounds):
    """The delayed rounds as indices into everything that ever was."""
    x, sent, seen = X, [X] * messages, [X] * gradients

    def mix(k, value):
        mixing = np.roll(W, k, axis=0)
        sent.append(value)
        others = mixing - np.diag(np.diag(mixing))
        return np.diag(np.diag(mixing)) @ value + others @ sent[k]

    def grad(k, value):
        seen.append(value)
        return np.tanh(seen[k]) @ H

    for k in range(rounds):
        if algorithm is DGD:
            x = mix(k, x) - ETA * grad(k, x)
        elif algorithm is CTA:
            x = mix(k, x)
            x = x - ETA * grad(k, x)
        else:
            x = mix(k, x - ETA * grad(k, x))
    return x


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize(("gradients", "messages"), [(0, 0), (2, 0), (0, 3), (3, 1)])
def test_what_is_late_comes_from_earlier_rounds(algorithm, gradients, messages):
    delayed = Delayed(algorithm(step_size=ETA), gradients=gradients, messages=messages)
    # Twice around another one, delays add up.
    nested = Delayed(Delayed(algorithm(step_size=ETA), messages=messages), gradients=gradients)
    for one in (delayed, nested):
        with jax.enable_x64(True):
            state = one.init(jnp.asarray(X))
            for k in range(9):
                state = one.round(state, world(k))
        np.testing.assert_allclose(one.model(state), recursion(algorithm, gradients, messages, 9), rtol=0, atol=1e-13)


@pytest.fixture
def run(digits):
    def build(algorithm, mixing=None, **options):
        return Experiment(
            model=models.affine(),
            data=digits(samples=24),
            mixing=metropolis(graphs.path(4)) if mixing is None else mixing,
            algorithm=algorithm,
            **{"rounds": 40, "record": 9} | options,
        )

    return build


@pytest.mark.parametrize(
    ("algorithm", "delays", "mixing"),
    [
        (DGD, {"gradients": 2}, None),
        (CTA, {"gradients": 1, "messages": 2}, W),
        (ATC, {"messages": 3}, schedules.one_peer_exponential(4)),
    ],
    ids=["DGD", "CTA", "ATC, schedule"],
)
def test_trained_affine_is_predicted_rounds(algorithm, delays, mixing, run):
    experiment = run(Delayed(algorithm(step_size=0.1), **delays), mixing)
    trained, predicted = train(experiment), predict(experiment, rtol=1e-12)
    assert predicted.dataset.attrs["error_estimate"] < 1e-11
    for name in ("local_loss", "global_loss", "test_loss", "parameter_distance"):
        np.testing.assert_allclose(predicted.dataset[name], trained.dataset[name], rtol=1e-10, err_msg=name)
    comparison = compare(trained, predicted)
    assert np.isnan(comparison.errors()["time discretisation"])
    assert repr(predicted).startswith(f"Trajectory(rounds: Delayed {algorithm.__name__}, ")
    assert trained.dataset.attrs["constants"] == repr(experiment.algorithm)


def test_no_delay_is_the_algorithm_itself(run):
    plain, wrapped = (run(a, record=3) for a in (DGD(step_size=0.1), Delayed(DGD(step_size=0.1))))
    features = plain.features()
    systems = [linear_system(e.algorithm, e.mixing, features, e.data) for e in (plain, wrapped)]
    np.testing.assert_array_equal(systems[0].matrix(), systems[1].matrix())
    for name in ("size", "symmetric", "growth", "sufficient_step_size", "has_flow"):
        assert getattr(systems[0], name) == getattr(systems[1], name)
    assert systems[1].symmetric
    assert systems[1].growth == 1
    assert list(predictions(wrapped, features=features)) == ["rounds", "flow"]


def test_a_delayed_run_has_rounds_only(run):
    experiment = run(Delayed(DGD(step_size=0.1), gradients=1))
    features = experiment.features()
    found = predictions(experiment, features=features)
    assert list(found) == ["rounds"]
    assert "spectral_abscissa" not in found["rounds"].dataset.attrs
    system = linear_system(experiment.algorithm, experiment.mixing, features, experiment.data)
    assert not system.symmetric
    assert list(solve(system, [0, 3]).errors) == ["rounds"]
    logistic = dataclasses.replace(experiment, loss="cross_entropy")
    assert list(predictions(logistic, features=features)) == ["rounds"]
    for refused in (
        lambda: predict(experiment, time="flow", features=features),
        lambda: predict(logistic, time="flow", features=features),
        lambda: steady_state(experiment, time="flow", features=features),
        lambda: Objective(experiment, time="flow", features=features),
        lambda: solve(system, [0, 3], times=("rounds", "flow")),
        lambda: transition(system, 1.0),
    ):
        with pytest.raises(ValueError, match='discretise no gradient flow of the present state: take time="rounds"'):
            refused()


def test_the_step_size_is_the_modifiers_own():
    """There is only one, so replacing it replaces the gradient of the round."""
    delayed = Delayed(CTA(step_size=0.1), gradients=1)
    assert delayed.algorithm == CTA(step_size=0.1)
    assert jax.tree.leaves(delayed) == [0.1]
    changed = eqx.tree_at(lambda a: a.step_size, delayed, 0.3)
    state = changed.init(jnp.asarray(X))
    once = changed.round(state, world()).state
    np.testing.assert_allclose(once, W @ X - 0.3 * np.tanh(X) @ H, rtol=1e-5, atol=1e-5)  # float32


class Twice(Algorithm):
    def round(self, x, world, /):
        return world.mix(world.mix(x)) - self.step_size * world.grad(x)


def test_a_verb_that_is_called_twice_has_no_single_delay():
    late = Delayed(Twice(step_size=0.1), messages=1)
    with pytest.raises(ValueError, match=r"calls world\.mix once, but Twice calls it 2 times: leave messages out"):
        late.round(late.init(jnp.asarray(X)), world())
    fine = Delayed(Twice(step_size=0.1), gradients=1)
    assert fine.round(fine.init(jnp.asarray(X)), world()).state.shape == X.shape


@pytest.mark.parametrize("delay", [-1, 1.0, True, "2", None])
def test_delays_are_whole_rounds(delay):
    for name in ("gradients", "messages"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of rounds ≥ 0, found"):
            Delayed(DGD(step_size=0.1), **{name: delay})


def test_only_an_algorithm_can_be_delayed():
    with pytest.raises(TypeError, match=r"Delayed modifies an algorithm, found 0\.1: for instance Delayed\(DGD"):
        Delayed(0.1, gradients=1)
    assert repr(Delayed(DGD(step_size=0.1), gradients=2)) == "Delayed(DGD(step_size=0.1), gradients=2, messages=0)"
    assert Delayed(DGD(step_size=0.1), gradients=np.int64(2)) == Delayed(DGD(step_size=0.1), gradients=2)


SYMMETRIC = metropolis(graphs.path(4))


def radius(first, late, delay):
    """Of x_{k+1} = first x_k + late x_{k−τ}, by the block companion matrix."""
    n = len(first)
    companion = np.eye(n * (delay + 1), k=-n)
    companion[:n, :n] = first
    companion[:n, -n:] += late
    return np.abs(np.linalg.eigvals(companion)).max()


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("mixing", [SYMMETRIC, 1.6 * SYMMETRIC - 0.6 * np.eye(4)], ids=["lazy", "λ_min < 0"])
def test_late_gradients_are_stable_below_the_declared_step_size(delay, mixing):
    edge = Delayed(DGD(step_size=1.0), gradients=delay).sufficient_step_size(mixing, 2.0)
    for seed in range(20):
        factors = np.random.default_rng(seed).normal(size=(4, 2, 2))
        hessians = factors @ factors.swapaxes(1, 2)
        hessian = np.zeros((8, 8))
        for q in range(4):
            hessian[2 * q : 2 * q + 2, 2 * q : 2 * q + 2] = hessians[q]
        hessian *= 2.0 / np.linalg.eigvalsh(hessian).max()
        assert radius(np.kron(mixing, np.eye(2)), -0.999 * edge * hessian, delay) < 1
    # Where every agent has the same Hessian, it is the edge.
    assert radius(mixing, -edge * 2.0 * np.eye(4), delay) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("delay", [1, 4])
@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_late_messages_are_stable_below_the_declared_step_size(algorithm, delay):
    edge = Delayed(algorithm(step_size=1.0), messages=delay).sufficient_step_size(W, 2.0)
    own, others = np.diag(np.diag(W)), W - np.diag(np.diag(W))
    for seed in range(20):
        hessian = np.diag(2 * np.random.default_rng(seed).uniform(size=4) ** 0.1)
        step = np.eye(4) - edge * hessian
        first, late = {
            DGD: (own - edge * hessian, others),
            CTA: (step @ own, step @ others),
            ATC: (own @ step, others @ step),
        }[algorithm]
        assert radius(first, late, delay) <= 1 + 1e-12


def test_no_step_size_is_declared_where_none_is_known():
    for delayed, mixing in (
        (Delayed(DGD(step_size=0.1), gradients=1), W),
        (Delayed(CTA(step_size=0.1), gradients=1), SYMMETRIC),
        (Delayed(DGD(step_size=0.1), gradients=1, messages=1), SYMMETRIC),
        (Delayed(DGD(step_size=0.1), gradients=1), 2 * SYMMETRIC - np.eye(4)),
        (Delayed(DGD(step_size=0.1), gradients=1), 2 * SYMMETRIC),
        (Delayed(DGD(step_size=0.1), messages=1), np.eye(4)[::-1]),
        (Delayed(ATC(step_size=0.1), messages=1), 1.5 * np.eye(4) - 0.125),
        (Delayed(Twice(step_size=0.1), gradients=1), SYMMETRIC),
    ):
        assert np.isnan(delayed.sufficient_step_size(mixing, 1.0)), (delayed, mixing)
        assert np.isnan(delayed.growth(mixing, 1.0))
