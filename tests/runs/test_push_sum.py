"""Push-sum and its compressed kin, predicted in closed form beside training."""

import dataclasses

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from ntkp2p import (
    CHOCO,
    DGD,
    Algorithm,
    Compressor,
    Delayed,
    DivergedError,
    Experiment,
    Objective,
    PushSum,
    RandomK,
    SkewCompensatedSparsePush,
    SparsePush,
    TopK,
    World,
    compare,
    graphs,
    linear_system,
    metropolis,
    models,
    predict,
    push_weights,
    schedules,
    solve,
    stability,
    steady_state,
    train,
    transition,
)
from ntkp2p.dynamics import spectrum
from ntkp2p.dynamics.varying import advance_over
from ntkp2p.runs.mean_field import with_measured_shares
from ntkp2p.topology import Schedule

Q = 5
GRAPH = nx.DiGraph([(i, (i + 1) % Q) for i in range(Q)] + [(0, 2), (3, 1), (3, 0)])
P = push_weights(GRAPH)
OTHER = push_weights(nx.DiGraph([(i, (i + 2) % Q) for i in range(Q)] + [(4, 0)]))


def failing(rounds, seed=0):
    """P's links fail with probability 0.3, and their senders keep what they would have sent."""
    rng, matrices = np.random.default_rng(seed), []
    for _ in range(rounds):
        W = P * (rng.random(P.shape) > 0.3)
        np.fill_diagonal(W, 0)
        matrices.append(W + np.diag(1 - W.sum(axis=0)))
    return matrices


class Fraction(Compressor):
    """Lets a fixed part of every entry through: lossy and linear."""

    keep: float
    unbiased = True

    @property
    def share(self):
        return self.keep

    @property
    def averaging_rate(self):
        return self.keep

    def __call__(self, values, key, /):
        return self.keep * values


@pytest.fixture(scope="module")
def run(digits):
    def of(algorithm, mixing=P, rounds=60, **options):
        data = digits(agents=Q, samples=25, test_samples=5)
        return Experiment(
            model=models.affine(), data=data, mixing=mixing, algorithm=algorithm, rounds=rounds, record=9, **options
        )

    return of


HALF = Fraction(0.5)
ALGORITHMS = {
    "push-sum": (PushSum(0.3), P, 400),
    "momentum": (PushSum(0.05, momentum=0.9), P, 60),
    "failing links": (PushSum(0.3), schedules.sequence(failing(60)), 60),
    "periodic": (PushSum(0.3), schedules.periodic([P, OTHER, P]), 400),
    "one peer": (PushSum(0.3), schedules.one_peer_exponential(Q), 60),
    "sparse": (SparsePush(0.1, HALF, averaging_rate=0.4, dense_rounds=3, momentum=0.5), P, 60),
    "sparse, failing links": (SparsePush(0.1, HALF, dense_rounds=3), schedules.sequence(failing(60)), 60),
    "skew-compensated": (
        SkewCompensatedSparsePush(0.1, HALF, gradient_rounds=10, gossip_rounds=4, dense_rounds=3, momentum=0.5),
        P,
        200,
    ),
    "CHOCO": (CHOCO(0.1, HALF), metropolis(graphs.cycle(Q)), 60),
    "one of two matrices": (PushSum(0.3), Schedule(np.stack([np.eye(Q), P]), np.array([1]), True), 60),
    "delayed": (Delayed(PushSum(0.1), gradients=2), P, 60),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_trained_affine_models_are_predicted_exactly(name, run):
    algorithm, mixing, rounds = ALGORITHMS[name]
    experiment = run(algorithm, mixing, rounds)
    trained, predicted = train(experiment), predict(experiment)
    assert predicted.dataset.attrs["converged"]
    assert set(compare(trained, predicted).trajectories) == {"trained", "rounds"}
    for name, found in predicted.dataset.data_vars.items():
        exact = trained.dataset[name]
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10 * max(1, float(np.abs(exact).max())), err_msg=name)


def test_classes_by_cross_entropy_are_followed_exactly(run):
    experiment = run(PushSum(0.3), schedules.sequence(failing(40)), 40, loss="cross_entropy")
    trained, predicted = train(experiment), predict(experiment)
    for name in ("local_loss", "test_loss", "consensus_distance"):
        np.testing.assert_allclose(predicted.dataset[name], trained.dataset[name], rtol=1e-9, atol=1e-11)


def test_transitions_go_on_from_any_round(run):
    """Φ(k, k₀) before, across and after the round from which push-sum repeats itself."""
    experiment = run(PushSum(0.3), schedules.periodic([P, OTHER, P]))
    system = linear_system(experiment.algorithm, experiment.mixing, experiment.features(), experiment.data)
    begin, length = int(system.timetable.begin), len(system.timetable.order) - int(system.timetable.begin)
    assert length == 3
    start = np.random.default_rng(0).normal(size=system.size)
    for first, last in [(0, 5), (2, begin + 20), (begin + 1, begin + 20), (begin + 2, begin + 3)]:
        expected = advance_over(system, start[None], first, last - first, "rounds", driven=False)[0]
        found = transition(system, last, first, time="rounds") @ start
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.linalg.norm(expected))
    far = solve(system, [begin + 300, begin + 301]).states("rounds")
    later = solve(system.shifted(begin + 300, far[0]), [1]).states("rounds")[0]
    np.testing.assert_allclose(far[1], later, rtol=0, atol=1e-11 * np.linalg.norm(later))


def test_the_lasting_rounds_decide_on_stability(run):
    """Weights that have converged make push-sum a constant system, whose radius tells where training diverges."""
    limit = stability(run(PushSum(0.1))).step_size_limit
    radii = {}
    for factor in (0.98, 1.02):
        experiment = run(PushSum(factor * limit), rounds=1)
        system = linear_system(experiment.algorithm, P, experiment.features(), experiment.data)
        radii[factor] = spectrum(system).radius
    assert radii[0.98] < 1 < radii[1.02]
    losses = {f: train(run(PushSum(f * limit), rounds=2000)).global_loss.mean("agent") for f in (0.98, 1.02)}
    assert losses[0.98][-1] < losses[0.98][0] < losses[1.02][-1]


def test_push_sum_goes_to_the_average_and_dgd_to_the_perron_weighted_solution(digits):
    """On a lopsided directed graph, for a small step size: models of Σ_q π_q L_q, π W = π, and of the plain mean."""
    data = digits(agents=Q, samples=150, test_samples=0)
    W = P.T / P.T.sum(axis=1, keepdims=True)
    values, vectors = np.linalg.eig(W.T)
    pi = np.abs(vectors[:, np.argmax(values.real)])
    pi /= pi.sum()
    assert np.ptp(pi) > 0.1
    experiment = Experiment(model=models.affine(), data=data, mixing=W, algorithm=DGD(1e-4), rounds=1)
    features = experiment.features()

    def minimiser(weights):
        share = np.sqrt(weights[data.owner] / data.sizes[data.owner])[:, None]
        errors = features.initial - data.targets
        # A little of every direction is not seen by the data: the smallest singular values decide nothing here.
        return -np.linalg.lstsq(share * features.matrix, share * errors)[0][:, 0]

    def outputs(z):
        return features.initial[:, 0] + features.matrix @ z

    expected = {"DGD": outputs(minimiser(pi)), "push-sum": outputs(minimiser(np.full(Q, 1 / Q)))}
    scale = np.abs(expected["DGD"] - expected["push-sum"]).max()
    for name, algorithm, mixing in [("DGD", DGD(1e-4), W), ("push-sum", PushSum(1e-4), P)]:
        rest = steady_state(dataclasses.replace(experiment, algorithm=algorithm, mixing=mixing), features=features)
        found = rest.outputs(data.inputs)[..., 0]
        other = expected["push-sum" if name == "DGD" else "DGD"]
        assert np.abs(found - expected[name]).max() < 0.05 * scale < np.abs(found - other).max()


def test_random_entries_are_predicted_in_the_mean(run):
    """The mean parameters of 200 trained runs, within their standard error."""
    experiment = run(SparsePush(0.1, RandomK(0.5), averaging_rate=0.3), rounds=12)
    predicted = predict(experiment)
    assert predicted.dataset.attrs["mean_over"] == "RandomK"
    with jax.enable_x64(True):
        model = experiment.initialise()
        theta, apply = model.flat()
        found = np.asarray(
            jax.jit(jax.vmap(lambda key: one_run(experiment, apply, theta, model.layers, key)))(
                jax.random.split(jax.random.key(7), 200)
            )
        )
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(200)
    expected = np.array(
        [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(predicted.parameters(q))]) for q in range(Q)]
    )
    away = np.abs(mean - expected) / np.where(error > 1e-12, error, np.inf)
    # Of 325 parameters with normal errors of size 1, the largest stays below 4.6 with probability 0.999.
    assert away.max() < 4.6
    assert 0.8 < np.sqrt(np.mean(away[error > 1e-12] ** 2)) < 1.25


def one_run(experiment, apply, theta, layers, key):
    """One run with keys of its own, as the recursion of the algorithm with real gradients."""
    data, algorithm = experiment.data, experiment.algorithm
    inputs, targets = (jnp.asarray(data.per_agent(a)) for a in (data.inputs, data.targets))

    def loss(x, inputs, targets):
        return jnp.mean(jnp.sum((apply(theta + x, inputs) - targets) ** 2, axis=1)) / 2

    def one_round(state, key):
        keys = jax.random.split(key, Q)
        world = World(
            mix=lambda x: P @ x,
            grad=lambda x, when=True: jax.vmap(jax.grad(loss))(x, inputs, targets),
            own=lambda x: x,
            compress=lambda x, by, everything=False: jax.vmap(lambda x, key: by.by_layer(x, layers, key))(x, keys),
        )
        return algorithm.round(state, world), None

    start = algorithm.init(jnp.zeros((Q, theta.size)))
    return theta + algorithm.model(jax.lax.scan(one_round, start, jax.random.split(key, experiment.rounds))[0])


def test_draws_are_other_and_the_same_again(run):
    experiment = run(SparsePush(0.1, RandomK(0.5)), rounds=5, batch_size=2)
    first, again, other = (train(experiment, draw=draw).local_loss for draw in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


class Sparsely(Algorithm):
    """Adds what two links let through of ones: what was drawn can be read off the models."""

    def round(self, state, world, /):
        ones = jnp.ones_like(state)
        first = world.compress(ones, RandomK(0.3))
        return state + first + 10 * world.compress(ones, RandomK(0.3))


def test_every_message_of_every_agent_and_round_is_drawn_anew(run):
    seen = []
    experiment = dataclasses.replace(run(Sparsely(0.1), metropolis(graphs.cycle(Q)), rounds=8), record=range(9))
    train(experiment, observe=lambda k, x: seen.append(x))
    steps = np.round(np.diff(seen, axis=0))  # (rounds, agents, parameters)
    masks = np.concatenate([(steps % 10).reshape(-1, 65), (steps // 10).reshape(-1, 65)])
    assert set(np.unique(masks)) == {0, 1}
    assert len(np.unique(masks, axis=0)) == len(masks) == 2 * 8 * Q
    # Of 5,200 draws a share of 0.3, within five standard errors.
    assert abs(masks.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / masks.size)


def test_mini_batches_are_samples_of_the_agents_own(run):
    """One round of every agent is a step along the mean gradient of two of its five samples."""
    experiment = run(DGD(0.1), metropolis(graphs.cycle(Q)), rounds=1, batch_size=2)
    seen = []
    trained = train(experiment, observe=lambda k, x: seen.append(x))
    assert trained.dataset.attrs["batch_size"] == 2
    step, data = (seen[0] - seen[1]) / 0.1, experiment.data
    with jax.enable_x64(True):
        theta, apply = experiment.initialise().flat()
        rows = jax.vmap(jax.grad(lambda t, x, y: jnp.sum((apply(t, x[None])[0] - y) ** 2) / 2), (None, 0, 0))
        gradients = np.asarray(rows(theta, jnp.asarray(data.inputs), jnp.asarray(data.targets)))
    for q in range(Q):
        own = gradients[data.owner == q]
        pairs = [(own[i] + own[j]) / 2 for i in range(5) for j in range(i)]
        assert min(np.abs(step[q] - pair).max() for pair in pairs) < 1e-12


def test_a_batch_of_all_is_no_batch(run):
    full, batch = (train(run(PushSum(0.3), rounds=9, batch_size=size)) for size in (None, 5))
    np.testing.assert_allclose(full.local_loss, batch.local_loss, rtol=1e-12)
    assert predict(run(PushSum(0.3), rounds=9, batch_size=5)).dataset.attrs["mean_over"] == "mini-batches"


def test_the_largest_entries_are_a_mean_field(run):
    """δ is measured on the agents' gradients at the start, layer by layer; the prediction says so."""
    experiment = run(SparsePush(0.05, TopK(0.2)), rounds=40)
    predicted = predict(experiment)
    with jax.enable_x64(True):
        theta, apply = experiment.initialise().flat()
        sizes, kept, total = experiment.initialise().layers, 0.0, 0.0
        for q in range(Q):
            own = experiment.data.owner == q
            x, y = experiment.data.inputs[own], experiment.data.targets[own]
            g = np.asarray(jax.grad(lambda t, x=x, y=y: jnp.mean((apply(t, x) - y) ** 2) / 2)(theta))
            for part in np.split(g, np.cumsum(sizes)[:-1]):
                largest = np.sort(np.abs(part))[::-1][: max(1, int(0.2 * len(part)))]
                kept, total = kept + np.sum(largest**2), total + np.sum(part**2)
    share = predicted.dataset.attrs["mean_field_share"]
    np.testing.assert_allclose(share, kept / total, rtol=1e-9)
    given = dataclasses.replace(experiment, algorithm=SparsePush(0.05, TopK(0.2, share=share)))
    np.testing.assert_allclose(predict(given).local_loss, predicted.local_loss, rtol=1e-12)
    # An approximation, but not a bad one: it is nearer than the same run without compression.
    trained = train(experiment)
    errors = compare(trained, predicted).errors("global_loss")
    assert errors["linearisation and mean field"] == pytest.approx(
        float(np.abs(trained.global_loss - predicted.global_loss).max() / predicted.global_loss[0].mean())
    )
    exact, dense = trained.global_loss, predict(dataclasses.replace(experiment, algorithm=PushSum(0.05)))
    assert np.abs(exact - predicted.global_loss).max() < 0.5 * np.abs(exact - dense.global_loss).max()


def test_what_overflows_leaves_the_rounds_before_as_they_are(run):
    """A step size far too large over failing links: the prediction is that of training until both leave the floats."""
    mixing = schedules.sequence(failing(400))
    experiment = dataclasses.replace(run(PushSum(8.0), mixing, 400), record=range(0, 401, 20))
    predicted = predict(experiment)
    with pytest.raises(DivergedError) as caught:
        train(experiment)
    trained = caught.value.trajectory
    before = int(np.isfinite(trained.local_loss).all("agent").sum())
    assert 3 < before < len(experiment.recorded)
    np.testing.assert_allclose(predicted.local_loss[:before], trained.local_loss[:before], rtol=1e-9)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda run: run(PushSum(0.1), P.T), ValueError, r"row sums are 1 \(row q receives\): transpose it, W\.T"),
        (
            lambda run: run(CHOCO(0.1, TopK(0.1)), schedules.one_peer_exponential(Q)),
            ValueError,
            "CHOCO takes no mixing",
        ),
        (lambda run: run(CHOCO(0.1, TopK(0.1)), P), ValueError, "metropolis"),
        (
            lambda run: run(PushSum(0.1), batch_size=6),
            ValueError,
            "batch_size = 6 is more than the 5 samples of agent 0",
        ),
        (lambda run: run(PushSum(0.1), batch_size=0), ValueError, "batch_size must be a whole number of at least 1"),
        (
            lambda run: predict(run(SparsePush(0.1, TopK(0.1), adaptive=0.9))),
            ValueError,
            "one round of SparsePush is not affine",
        ),
        (lambda run: predict(run(PushSum(0.1)), time="flow"), ValueError, "discretise no gradient flow"),
        (
            lambda run: train(run(Delayed(PushSum(0.1), messages=1))),
            ValueError,
            r"messages can only be delayed if a round exchanges nothing but models.*\(5, 1\) as well: leave",
        ),
        (
            lambda run: Objective(run(PushSum(0.1), metropolis(graphs.cycle(Q)))).value_and_grad(mixing=np.eye(Q)),
            ValueError,
            "the weights of PushSum follow from the mixing",
        ),
        (lambda run: Objective(run(PushSum(0.1)))(), ValueError, "the weights of PushSum follow from the mixing"),
        (
            lambda run: with_measured_shares(
                dataclasses.replace(run(SparsePush(0.1, TopK(0.1))), model=models.mlp(width=float("inf")))
            ),
            ValueError,
            r"at infinite width no message .* TopK\(keep, share=\.\.\.\)",
        ),
        (
            lambda run: linear_system(
                SparsePush(0.1, TopK(0.1)), P, run(PushSum(0.1)).features(), run(DGD(0.1), P.T).data
            ),
            ValueError,
            "TopK has no closed form: a mean-field",
        ),
    ],
    ids=[f"case {number}" for number in range(12)],
)
def test_what_cannot_be_is_named(build, error, message, run):
    with pytest.raises(error, match=message):
        build(run)
