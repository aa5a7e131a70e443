import dataclasses
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkp2p import (
    ATC,
    DGD,
    Algorithm,
    Delayed,
    Experiment,
    graphs,
    lazy,
    metropolis,
    models,
    predict,
    schedules,
    stability,
    stability_map,
    train,
)
from ntkp2p.analysis.stability import _with_all_found
from ntkp2p.data import Dataset
from ntkp2p.dynamics import Spectrum, linear_system
from ntkp2p.dynamics.delay import delay_margin, delay_matrices
from ntkp2p.dynamics.spectrum import stability_tolerance
from ntkp2p.kernels import Features

W = metropolis(graphs.cycle(4))


def run_of(digits, algorithm=None, mixing=W, *, samples=8, inputs=3, **options):
    """Affine models on three principal inputs of the same kernel, so that every analysis is exact and quick."""
    data = digits(agents=4, samples=samples, test_samples=0)
    flat = data.inputs.reshape(len(data.inputs), -1)
    few = flat @ np.linalg.svd(flat)[2][:inputs].T * np.sqrt(inputs / flat.shape[1])
    dataset = Dataset(name="few digits", inputs=few, targets=data.targets, labels=data.labels, classes=(0, 1))
    starts = np.cumsum(data.sizes)[:-1]
    split = dataclasses.replace(data, dataset=dataset, indices=tuple(np.split(np.arange(len(few)), starts)))
    algorithm = DGD(step_size=0.1) if algorithm is None else algorithm
    settings = {"model": models.affine(), "rounds": 5} | options
    return Experiment(data=split, mixing=mixing, algorithm=algorithm, **settings)


def test_a_good_run_is_told_so(digits):
    report = stability(run_of(digits))
    assert report.stable == {"rounds": True, "flow": True}
    assert report.states == 16
    assert report.removal == "shown by rank tests"
    assert all(h.holds for h in report.hypotheses)
    assert str(report.verdicts["Proposition 1"]) == "applies: the flow is BIBO stable"
    assert report.certificates["uniform"].flow
    assert report.certificates["uniform"].growth == 1
    assert report.sufficient_step_size <= report.step_size_limit
    assert len(report.eigenvalues) == 16


@pytest.mark.parametrize("constant", [0, 2])
def test_directions_that_no_sample_feels_are_counted(constant, digits):
    """Inputs that are always zero: each takes one parameter away, for all agents together."""
    run = run_of(digits)
    inputs = np.hstack([run.data.dataset.inputs, np.zeros((8, constant))])
    data = dataclasses.replace(run.data, dataset=dataclasses.replace(run.data.dataset, inputs=inputs))
    report = stability(dataclasses.replace(run, data=data))
    assert report.removed == constant
    assert report.removal == "shown by rank tests"
    assert report.states == 16
    assert report.spectrum.abscissa < -1e-6
    assert report.stable["flow"]


def test_the_verdicts_are_what_training_does(digits):
    run = run_of(digits)
    limit = stability(run).step_size_limit
    for factor, stable in ((0.98, True), (1.02, False)):
        algorithm = DGD(step_size=factor * limit)
        other = dataclasses.replace(run, algorithm=algorithm, rounds=2000, record=2)
        report = stability(other)
        assert report.stable["rounds"] == stable
        assert report.step_size_limit == pytest.approx(limit, rel=1e-6)
        losses = train(other).global_loss.values[:, 0]
        assert (losses[-1] < losses[0]) == stable
    assert report.verdicts["rounds"].remedy == f"step_size < {limit:.6g}"


def test_the_turning_pair_is_sent_to_lazy_weights(digits):
    turning = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    turning = (turning + np.roll(np.roll(turning, 1, 0), 1, 1)) / 2  # a cycle without self-weights: λ = −1
    report = stability(run_of(digits, mixing=turning))
    assert report.step_size_limit == 0
    assert "lazy(W)" in report.verdicts["rounds"].remedy
    assert report.stable["flow"]
    assert stability(run_of(digits, mixing=lazy(turning))).stable["rounds"]


def test_one_sided_mixing_is_proved_by_its_perron_weights(digits):
    one_way = np.array([[0.9, 0.1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.4, 0, 0, 0.6]])
    report = stability(run_of(digits, mixing=one_way))
    assert [h.name for h in report.hypotheses if not h.holds] == ["column sums of W are one"]
    assert report.verdicts["Proposition 1"].reason.endswith("the spectrum shows the flow stable all the same")
    assert report.certificates["Perron"].flow
    assert report.certificates["Perron"].growth > 1
    assert max(report.transient) <= report.certificates["Perron"].growth


def test_delay_has_its_margin_and_late_runs_their_roots(digits):
    run = run_of(digits)
    margin = stability(run).margins["gradients"]
    assert margin.exact
    assert margin.sufficient <= margin.flow_time
    for delay, stable in ((margin.rounds, True), (margin.rounds + 1, False)):
        late = dataclasses.replace(run, algorithm=Delayed(DGD(step_size=0.1), gradients=delay))
        assert (predict(late).dataset.attrs["spectral_radius"] <= 1) == stable
    for eta, stable in ((0.3, True), (0.8, False)):
        report = stability(dataclasses.replace(run, algorithm=Delayed(DGD(step_size=eta), gradients=2)))
        # The flow at another η has another A₀ = −(I − W)/η, which moves its margin.
        matrices = delay_matrices(DGD(step_size=eta), W, run.features(), run.data)
        assert report.stable["flow"] == (2 * eta < delay_margin(*matrices)) == stable
        assert not report.margins
        assert "characteristic root" in str(report)


def test_the_rounds_to_a_target_are_those_of_training(digits):
    run = run_of(digits, rounds=200, record=201)
    losses = train(run).global_loss.values.mean(axis=1)
    assert np.all(np.diff(losses) < -1e-9)
    # Between two losses, so that no last digit decides.
    report = stability(run, target=float(losses[119] + losses[120]) / 2)
    assert report.rounds_to_target == 120
    assert "rounds to the mean global loss" in str(report)
    assert stability(run, target=1e-9).rounds_to_target is None


def test_a_large_system_is_analysed_by_iteration(digits, monkeypatch):
    import importlib

    run = run_of(digits, ATC(step_size=0.1))
    dense = stability(run)
    module, margins = (importlib.import_module(f"ntkp2p.analysis.{name}") for name in ("stability", "delay_margins"))
    monkeypatch.setattr(module, "DENSE", {True: 0, False: 0})
    for part in (module, margins):
        monkeypatch.setattr(part, "PBH_SIZE", 0)
    large = stability(run)
    assert large.spectrum.radius == pytest.approx(dense.spectrum.radius, abs=2e-3)
    assert large.step_size_limit == pytest.approx(dense.step_size_limit, rel=1e-3)
    assert large.hidden is None
    assert large.removal == "by construction"
    assert not large.margins["gradients"].exact
    for about, value in (("rounds", "spectral radius"), ("flow", "spectral abscissa")):
        assert re.search(f"{value} about .*residual", large.verdicts[about].reason)
        assert "residual" not in dense.verdicts[about].reason
    symmetric = stability(run_of(digits, DGD(step_size=0.1)))
    for about, value in (("rounds", "spectral radius"), ("flow", "spectral abscissa")):
        assert re.search(f"{value} at least .*residual", symmetric.verdicts[about].reason)  # Ritz values never pass it


def test_an_iterated_radius_decides_nothing_within_its_residual(digits):
    run = run_of(digits, ATC(step_size=0.1))
    report = stability(run)
    system = linear_system(run.algorithm, run.mixing, run.features(), run.data)

    def seen(radius, from_below):
        found = Spectrum(radius, (radius - 1) / 0.1, 5e-4, from_below)
        return dataclasses.replace(report, spectrum=found, stability_tolerance=stability_tolerance(system, found))

    doubtful = seen(1.0001, from_below=False)
    assert doubtful.stable == {"rounds": None, "flow": None}
    for about in ("rounds", "flow"):
        assert doubtful.verdicts[about].answer == "not known"
        assert re.search("about .*residual", doubtful.verdicts[about].reason)
    assert seen(0.9999, from_below=False).stable == {"rounds": True, "flow": True}
    for beyond in (seen(1.001, from_below=False), seen(1.0001, from_below=True)):
        assert beyond.stable == {"rounds": False, "flow": False}


def test_a_report_does_not_contradict_its_own_eigenvalues(digits):
    run = run_of(digits, ATC(step_size=0.1))
    system = linear_system(run.algorithm, run.mixing, run.features(), run.data)
    iterated, exact = Spectrum(0.9, -1.0, 1e-3), Spectrum(0.9, -1.0)
    found = _with_all_found(iterated, system, np.array([0.999, -0.5]), [])
    assert found == pytest.approx((0.999, (0.999 - 1) / 0.1, 1e-3, True))
    assert _with_all_found(exact, system, np.array([0.999]), []) == exact


class Twice(Algorithm):
    """Two gradient steps a round."""

    def round(self, x, world, /):
        x = world.mix(x) - self.step_size * world.grad(x)
        return x - self.step_size * world.grad(x)


def test_a_users_own_algorithm_is_analysed(digits):
    run = run_of(digits, Twice(step_size=0.05))
    report = stability(run)
    assert list(report.margins) == ["messages"]
    assert np.isnan(report.sufficient_step_size)
    for factor, stable in ((0.99, True), (1.01, False)):
        algorithm = Twice(step_size=factor * report.step_size_limit)
        predicted = predict(dataclasses.replace(run, algorithm=algorithm))
        assert (predicted.dataset.attrs["spectral_radius"] <= 1) == stable


def test_schedules_have_multipliers_or_rates(digits):
    periodic = stability(run_of(digits, mixing=schedules.one_peer_exponential(4)))
    assert periodic.stable == {"rounds": True, "flow": True}
    assert "Floquet multipliers" in periodic.sections
    assert periodic.spectrum.radius == pytest.approx(np.abs(periodic.eigenvalues).max() ** (1 / 2))
    drawn = stability(run_of(digits, mixing=schedules.random_matchings(graphs.cycle(4), 50)))
    assert drawn.stable == {"rounds": None, "flow": None}
    assert drawn.gossip is not None
    assert "converges in the mean square" in drawn.verdicts["rounds"].reason


@pytest.mark.needs("neural-tangents")
def test_infinite_width_has_no_parameters_to_count(digits):
    run = run_of(digits, model=models.mlp(width=float("inf"), depth=1))
    report = stability(run)
    assert report.removed is None
    assert report.stable["rounds"]


def test_it_reads_as_text_as_a_table_and_as_json(digits):
    report = stability(run_of(digits, DGD(step_size=5.0)))
    text, page = str(report), report._repr_html_()
    for word in ("spectral radius", "Slowest modes", "Proposition 1", "spectral radius"):
        assert word in text
        assert word in page
    assert max(map(len, text.splitlines())) <= 80
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["stable"] == {"rounds": False, "flow": True}
    assert facts["step_size_limit"] == pytest.approx(report.step_size_limit)
    assert facts["modes"][0]["rounds"] == "inf"
    axes = report.plot()
    assert [ax.get_xlabel().split(";")[0] for ax in axes] == ["real part", "agent"]
    plt.close(axes[0].figure)


def test_maps_agree_with_single_runs(digits):
    run = run_of(digits)
    etas = np.array([0.1, 0.4, 1.6])
    late = stability_map(run, etas, gradient_delays=[0, 3])
    for row, delay in enumerate((0, 3)):
        algorithm = Delayed(DGD(step_size=0.4), gradients=delay)
        radius = predict(dataclasses.replace(run, algorithm=algorithm)).dataset.attrs["spectral_radius"]
        assert float(late.radius[row, 1]) == pytest.approx(radius, rel=1e-10)
        stable = late.radius[row].values <= 1 + 1e-6
        np.testing.assert_array_equal(stable, etas <= late.limits[row])
    lazier = stability_map(run, etas, smallest_eigenvalues=[-1 / 3, 0.5])
    assert lazier.limits[0] == pytest.approx(late.limits[0])
    assert (lazier.textbook <= lazier.limits).all()
    half = stability(run_of(digits, mixing=(1 - 0.375) * np.eye(4) + 0.375 * W))
    assert lazier.limits[1] == pytest.approx(half.step_size_limit)
    for drawn in (late, lazier):
        ax = drawn.plot()
        assert ax.get_xlabel() == "step size η"
        plt.close(ax.figure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found none"),
        ({"gradient_delays": [1], "message_delays": [1]}, "found gradient_delay and message_delay"),
        ({"smallest_eigenvalues": [1.5]}, "below 1, found 1.5"),
    ],
)
def test_maps_say_what_they_need(options, message, digits):
    with pytest.raises(ValueError, match=message):
        stability_map(run_of(digits), [0.1], **options)
    with pytest.raises(ValueError, match="positive numbers"):
        stability_map(run_of(digits), [0.1, -1], gradient_delays=[0])


def test_cross_entropy_has_no_linear_rounds(digits):
    with pytest.raises(ValueError, match="not linear"):
        stability(run_of(digits, loss="cross_entropy"))


def test_other_data_need_other_features(digits):
    run = run_of(digits)
    other = run_of(digits, samples=12).features()
    assert isinstance(other, Features)
    with pytest.raises(ValueError, match="other data"):
        stability(run, features=other)
