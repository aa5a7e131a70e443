"""The average over initialisations, against dense covariances, and against networks that were really trained."""

import dataclasses
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ntkp2p import DGD, Experiment, Trajectory, compare, graphs, metropolis, models, predict, predictions, train
from ntkp2p.algorithms import CTA, World
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import infinite_features, infinite_kernels
from ntkp2p.runs import infinite_width as initialisations_module

pytestmark = [pytest.mark.needs("neural-tangents"), pytest.mark.usefixtures("optimised")]
LOSSES = ("local_loss", "global_loss", "test_loss")


def experiment(data, algorithm=None, model=None, rounds=20, **options):
    return Experiment(
        model=model or models.mlp(width=math.inf, depth=1, activation="gelu", bias_std=0.5),
        data=data,
        mixing=metropolis(graphs.cycle(data.agents)),
        algorithm=algorithm or DGD(step_size=0.1),
        rounds=rounds,
        **{"record": 6} | options,
    )


class Dense:
    """The same run without features or factors: θ_q − θ₀ = Jᵀ a_q, so that outputs are f₀ + K a_q.

    One round of CTA is v = W a, a⁺ = v − (η/N_q) 1_q (f₀ + K v − y); of DGD the gradient is at a. Both are affine in
    the state and in the initial errors, and one matrix advances these together.
    """

    def __init__(self, run, k, time):
        data = run.data
        agents, n, c = data.agents, data.samples, data.outputs
        every = np.concatenate([data.inputs, data.test_inputs])
        kernels = infinite_kernels(run.model, every)
        own = (data.owner == np.arange(agents)[:, None]) * float(run.algorithm.step_size) / data.sizes[:, None]
        mix = np.kron(run.mixing, np.eye(n))
        pull = scipy.linalg.block_diag(*[w[:, None] * kernels.ntk[:n, :n] for w in own])
        linear = mix - pull @ (mix if isinstance(run.algorithm, CTA) else np.eye(agents * n))
        forced = -np.concatenate([np.diag(w) for w in own])
        step = np.block([[linear, forced], [np.zeros((n, agents * n)), np.eye(n)]])
        many = (
            np.linalg.matrix_power(step, k) if time == "rounds" else scipy.linalg.expm(k * (step - np.eye(len(step))))
        )
        response = many[: agents * n, agents * n :].reshape(agents, n, n)  # of a_q to f₀ − y
        # f_q = f₀ + K R_q (f₀ − y), from f₀ on all inputs.
        moved = kernels.ntk[:, :n] @ response
        maps = np.eye(len(every)) + np.pad(moved, ((0, 0), (0, 0), (0, len(every) - n)))
        self.covariance = maps @ kernels.nngp @ maps.swapaxes(1, 2)
        self.mean = -moved @ data.targets
        self.data, self.outputs = data, c
        self.own = own > 0
        self.distance = {}
        centred = response - response.mean(axis=0)
        for name, r in (("parameter_distance", response), ("consensus_distance", centred)):
            metric = r.swapaxes(1, 2) @ kernels.ntk[:n, :n] @ r  # ‖J ᵀa‖² = aᵀ K a
            fixed = np.einsum("nc,qnm,mc->q", data.targets, metric, data.targets)
            self.distance[name] = np.sqrt(fixed + c * np.einsum("qnm,mn->q", metric, kernels.nngp[:n, :n]))

    def quadratic(self, name, q):
        """Weights, mean errors and covariance of a loss, outputs stacked into one vector."""
        data, n = self.data, self.data.samples
        rows = slice(n, None) if name == "test_loss" else slice(n)
        targets = data.test_targets if name == "test_loss" else data.targets
        weights = {
            "local_loss": self.own[q] / data.sizes[q],
            "global_loss": 1 / data.sizes[data.owner] / data.agents,
            "test_loss": np.full(len(data.test_inputs), 1 / max(len(data.test_inputs), 1)),
        }[name]
        errors = (self.mean[q, rows] - targets).T.ravel()
        return np.tile(weights, self.outputs), errors, np.kron(np.eye(self.outputs), self.covariance[q, rows, rows])

    def cumulants(self, name, q):
        """Of ½ eᵀ D e, the first four: (n−1)!/2 [tr (DV)ⁿ + n eᵀ (DV)ⁿ⁻¹ D e] (Mathai and Provost, 1992)."""
        weights, e, v = self.quadratic(name, q)
        dv = weights[:, None] * v
        powers = [np.linalg.matrix_power(dv, n) for n in range(5)]
        return [
            math.factorial(n - 1) / 2 * (np.trace(powers[n]) + n * e @ powers[n - 1] @ (weights * e))
            for n in range(1, 5)
        ]


@pytest.mark.parametrize("time", ["rounds", "flow"])
@pytest.mark.parametrize(("algorithm", "classes"), [(DGD(step_size=0.1), (0, 1)), (CTA(step_size=0.2), (0, 1, 2))])
def test_moments_are_those_of_the_dense_covariance(algorithm, classes, time, digits):
    run = experiment(digits(agents=3, samples=13, classes=classes, test_samples=5), algorithm)
    found = predict(run, time=time, rtol=1e-12)
    for i, k in enumerate(run.recorded):
        dense = Dense(run, int(k), time)
        for q in range(3):
            for name in LOSSES:
                mean, variance, *_ = dense.cumulants(name, q)
                assert float(found.dataset[name][i, q]) == pytest.approx(mean, rel=1e-10)
                assert float(found.dataset[f"{name}_std"][i, q]) == pytest.approx(math.sqrt(variance), rel=1e-10)
        for name, expected in dense.distance.items():
            np.testing.assert_allclose(found.dataset[name][i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2)])
def test_mean_accuracy_is_that_of_drawn_outputs(classes, digits):
    run = experiment(digits(agents=3, samples=12, classes=classes, test_samples=20))
    found = predict(run).dataset["test_accuracy"].values
    draws = 20_000
    rng = np.random.default_rng(0)
    for i, k in enumerate(run.recorded):
        dense = Dense(run, int(k), "rounds")
        n, q = run.data.samples, 1
        root = np.linalg.cholesky(dense.covariance[q, n:, n:] + 1e-12 * np.eye(20))
        f = dense.mean[q, n:] + np.einsum("nm,dmc->dnc", root, rng.normal(size=(draws, 20, run.data.outputs)))
        right = (f[..., 0] > 0 if f.shape[-1] == 1 else np.argmax(f, axis=-1)) == run.data.test_labels
        accuracy = right.mean(axis=1)
        assert abs(accuracy.mean() - found[i, q]) < 4 * accuracy.std() / math.sqrt(draws) + 1e-9


def test_groups_of_columns_and_blocks_of_rounds_are_the_whole(digits, monkeypatch):
    run = experiment(digits(agents=3, samples=12, test_samples=5), record=12)
    whole = predict(run)
    monkeypatch.setattr(initialisations_module, "MEMORY", 40_000)
    monkeypatch.setattr(initialisations_module, "BASIS", 25)
    assert len(initialisations_module._columns(run, run.features())) > 1
    blocks = list(initialisations_module._rounds(run.data, len(run.recorded)))
    assert len(blocks) > 1
    assert len(blocks[0][1]) > 1
    for name, values in predict(run).dataset.items():
        np.testing.assert_allclose(values, whole.dataset[name], rtol=1e-7, atol=1e-10)


@in_float64
def trained_losses(run, seeds):
    """Losses of real networks by the algorithm's own rounds, (seeds, recorded rounds, agents), one seed at a time."""
    data = run.data
    batch = jnp.asarray(data.inputs[:2])
    inputs, targets = jnp.asarray(data.inputs), jnp.asarray(data.targets)
    own = jnp.asarray((data.owner == np.arange(data.agents)[:, None]) / data.sizes[:, None])

    def losses(theta, apply):
        return own @ jnp.sum((apply(theta, inputs) - targets) ** 2, axis=1) / 2

    def one(key):
        theta, unravel = jax.flatten_util.ravel_pytree(run.model.init(key, batch, data.outputs))

        def apply(theta, x):
            return run.model.apply(unravel(theta), x)

        def local(theta, q):
            return losses(theta, apply)[q]

        world = World(
            mix=lambda x: jnp.asarray(run.mixing) @ x,
            grad=lambda x: jax.vmap(jax.grad(local))(x, jnp.arange(data.agents)),
            own=lambda x: jnp.diagonal(jnp.asarray(run.mixing))[:, None] * x,
        )
        state = run.algorithm.init(jnp.broadcast_to(theta, (data.agents, theta.size)))

        def advance(state, _):
            table = jax.vmap(losses, (0, None))(state, apply)  # of agent q's model on agent r's data
            return run.algorithm.round(state, world), {"local_loss": jnp.diag(table), "global_loss": table.mean(axis=1)}

        return jax.lax.scan(advance, state, length=run.rounds + 1)[1]

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
    found = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return {name: np.asarray(values)[:, run.recorded] for name, values in found.items()}


def test_these_are_the_losses_of_train(digits):
    run = experiment(digits(agents=3, samples=12), model=models.mlp(width=16, depth=1), rounds=8, record=3)
    found = trained_losses(run, [0, 7])
    for i, seed in enumerate([0, 7]):
        trained = train(dataclasses.replace(run, seed=seed))
        for name, values in found.items():
            np.testing.assert_allclose(values[i], trained.dataset[name], rtol=1e-9)


def standard_errors(dense, name, draws):
    """Of the mean and of the standard deviation of so many draws, agent by agent: var s² = (κ₄ + 2 κ₂² n/(n−1)) / n."""
    cumulants = [dense.cumulants(name, q) for q in range(dense.data.agents)]
    _, variance, _, fourth = np.array(cumulants).T
    of_variance = np.sqrt((fourth + 2 * variance**2 * draws / (draws - 1)) / draws)
    return np.sqrt(variance / draws), of_variance / (2 * np.sqrt(variance))


def test_many_affine_models_have_the_mean_and_the_spread(digits):
    """No width comes between: the only differences are those of drawing."""
    run = experiment(digits(agents=4, samples=24, test_samples=0), model=models.affine())
    assert run.features().spread is None
    predicted = predict(run, features=infinite_features(run.model, run.data.inputs, 1))
    assert predicted.infinite
    draws = 2000
    found = trained_losses(run, range(draws))
    for i, k in enumerate(run.recorded):
        dense = Dense(run, int(k), "rounds")
        for name, values in found.items():
            of_mean, of_std = standard_errors(dense, name, draws)
            mean, std = predicted.dataset[name][i], predicted.dataset[f"{name}_std"][i]
            assert np.all(np.abs(values[:, i].mean(axis=0) - mean) < 4 * of_mean)
            assert np.all(np.abs(values[:, i].std(axis=0, ddof=1) - std) < 4 * of_std)


@pytest.fixture(scope="module")
def wide(digits):
    """An infinite network's prediction, and the deviations of finite ones from it in units that ought to be O(1)."""
    data = digits(agents=4, samples=20, test_samples=0)
    run = experiment(data, model=models.mlp(width=math.inf, depth=1), rounds=12, record=5)
    return run, predict(run)


def deviations(wide, width, seeds):
    """Of mean and std of trained networks, relative to the predicted std: found, and expected of so many draws."""
    run, predicted = wide
    finite = dataclasses.replace(run, model=models.mlp(width=width, depth=1))
    found = trained_losses(finite, seeds)
    table = []
    for i, k in enumerate(run.recorded):
        dense = Dense(run, int(k), "rounds")
        for name, values in found.items():
            std = predicted.dataset[f"{name}_std"][i].values
            differences = (
                values[:, i].mean(axis=0) - predicted.dataset[name][i].values,
                values[:, i].std(axis=0, ddof=1) - std,
            )
            expected = standard_errors(dense, name, len(seeds))
            table.append([np.stack(differences) / std, np.stack(expected) / std])
    return np.array(table).swapaxes(0, 1)


def test_fifty_trained_networks_of_width_2048(wide):
    """Within the sampling error of fifty, and the O(1/width) term as measured on narrow networks."""
    at_32, noise = deviations(wide, 32, range(2000))
    shift = (np.abs(at_32) + 4 * noise) * 32 / 2048
    assert shift.max() < 0.02  # of a standard deviation: next to nothing at this width
    found, sampling = deviations(wide, 2048, range(50))
    assert np.all(np.abs(found) < 4 * sampling + shift)
    assert sampling.max() < 0.35


def test_infinite_width_from_toml(tmp_path):
    (tmp_path / "run.toml").write_text(
        """
        rounds = 10
        model = {name = "cnn", channels = inf, depth = 1}
        data = {name = "digits", classes = [0, 1], samples = 12}
        split = {agents = 3}
        mixing = {graph = "cycle"}
        algorithm = {name = "DGD", step_size = 0.1}
        """
    )
    assert predict(Experiment.from_toml(tmp_path / "run.toml")).infinite


@pytest.fixture(scope="module")
def predicted(digits):
    run = experiment(digits(agents=3, samples=12, test_samples=5))
    return run, predictions(run)


def test_a_trajectory_says_what_it_is(predicted, tmp_path):
    for trajectory in predicted[1].values():
        assert trajectory.infinite
        assert trajectory.dataset.attrs["width"] == "infinite"
        assert trajectory.dataset.attrs["converged"]
        assert trajectory.dataset.attrs["spread_error"] < 1e-7
        assert " ± " in repr(trajectory)
        again = Trajectory.load(trajectory.save(tmp_path / "run.nc"))
        assert again.dataset.identical(trajectory.dataset)
        assert again.infinite


def test_the_band_is_on_the_plots(predicted):
    _, both = predicted
    ax = both["rounds"].plot()
    assert len(ax.collections) == 3
    low, high = both["rounds"].local_loss - both["rounds"].local_loss_std, both["rounds"].local_loss
    corners = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert corners.max() == pytest.approx(float((high + both["rounds"].local_loss_std)[:, 0].max()))
    assert corners.min() == pytest.approx(float(np.maximum(low, high / 10)[:, 0].min()))
    assert "standard deviation" in ax.get_legend().get_texts()[-1].get_text()
    assert len(both["rounds"].plot("consensus_distance").collections) == 0
    panels = compare(*both.values()).plot("local_loss", "test_accuracy")
    assert [len(panel.collections) for panel in panels] == [3, 0]


def test_a_diverging_run_is_predicted_and_drawn(predicted):
    run, _ = predicted
    run = dataclasses.replace(run, algorithm=DGD(step_size=1e3), rounds=400, record=41)
    both = predictions(run)
    assert not both["rounds"].stable
    assert both["flow"].stable
    start = both["rounds"].dataset.isel(round=slice(3))
    assert np.isfinite(start["local_loss_std"]).all()
    both["rounds"].plot().figure.canvas.draw()


def test_any_width_and_seed_is_compared_with_the_average(predicted, tmp_path):
    run, both = predicted
    model = models.mlp(width=64, depth=1, activation="gelu", bias_std=0.5)
    trained = train(dataclasses.replace(run, model=model, seed=3))
    comparison = compare(trained, *both.values())
    errors = comparison.errors()
    worst = np.abs(trained.local_loss.values - both["rounds"].local_loss.values).max()
    assert errors["initialisation and width"] == pytest.approx(worst / both["rounds"].local_loss[0].values.mean())
    assert "linearisation" not in errors
    assert set(comparison.table().index) == {*LOSSES, "test_accuracy", "consensus_distance", "parameter_distance"}
    assert len(comparison.plot()) == 2
    comparison.save(tmp_path)
    other = train(dataclasses.replace(run, model=models.mlp(width=64, depth=1)))
    with pytest.raises(ValueError, match="not runs of one experiment: limit is"):
        compare(other, both["rounds"])


def test_what_needs_parameters_is_refused(predicted):
    run, _ = predicted
    for function in (train, lambda run: run.initialise()):
        with pytest.raises(ValueError, match="no parameters and can only be predicted: give it a size"):
            function(run)


def test_features_of_other_data_are_refused(predicted, digits):
    run, _ = predicted
    other = experiment(digits(agents=3, samples=12, test_samples=5, seed=1))
    with pytest.raises(ValueError, match="features are of other data"):
        predict(run, features=other.features())
