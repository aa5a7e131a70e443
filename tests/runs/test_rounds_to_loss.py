"""The rounds to a loss, against the same rounds trained."""

import dataclasses

import numpy as np
import pytest

from ntkp2p import ATC, DGD, Experiment, graphs, metropolis, models, rounds_to_loss, schedules, train
from ntkp2p.runs import rounds_to_loss as runs_rounds_to_loss


@pytest.fixture(scope="module")
def experiment(digits):
    """An affine model: its own linearisation, so what is predicted is what is trained."""
    return Experiment(
        model=models.affine(),
        data=digits(agents=4, samples=24),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.02),
        rounds=300,
        record=range(301),
    )


@pytest.fixture(scope="module")
def features(experiment):
    return experiment.features()


@pytest.fixture(scope="module")
def trained(experiment):
    return train(experiment).dataset["global_loss"].mean("agent").values


@pytest.mark.parametrize(
    ("share", "checkpoints"), [(1.0, runs_rounds_to_loss.CHECKPOINTS), (0.6, runs_rounds_to_loss.CHECKPOINTS), (0.4, 7)]
)
def test_the_first_round_that_trains_so_far(experiment, features, trained, share, checkpoints, monkeypatch):
    monkeypatch.setattr(runs_rounds_to_loss, "CHECKPOINTS", checkpoints)
    assert np.all(np.diff(trained) < 0)  # so that no dip can hide between two looks
    goal = share * trained[0] + 1e-12
    assert goal > trained[-1]
    first = int(np.argmax(trained <= goal))
    assert (first == 0) == (share == 1)
    assert rounds_to_loss(experiment, goal, features=features, most=300) == first


def test_the_longest_run(experiment, features, trained):
    goal = (trained[4] + trained[5]) / 2
    assert rounds_to_loss(experiment, goal, features=features, most=5) == 5
    assert rounds_to_loss(experiment, goal, features=features, most=4) is None


def test_a_dip_within_the_first_rounds_is_seen(experiment, monkeypatch):
    losses = np.array([1.0, 0.5, 0.1, 0.6, 0.7, *[0.8] * 95])
    monkeypatch.setattr(runs_rounds_to_loss, "mean_losses", lambda run, rounds, features: losses[rounds])
    assert rounds_to_loss(experiment, 0.2, most=99) == 2
    assert rounds_to_loss(experiment, 0.05, most=99) is None


def test_a_loss_that_is_never_reached(experiment, monkeypatch):
    monkeypatch.setattr(runs_rounds_to_loss, "FIRST", 200)
    unstable = dataclasses.replace(experiment, algorithm=ATC(step_size=50.0))
    assert rounds_to_loss(unstable, 1e-9) is None
    finite = schedules.random_matchings(graphs.cycle(4), 5)
    run = dataclasses.replace(experiment, mixing=finite, rounds=5, record=2)
    assert rounds_to_loss(run, 1e-9) is None


@pytest.mark.parametrize("wrong", [0, -1.0, np.nan, np.inf, "0.1", None, True])
def test_refuses_what_is_no_loss(experiment, wrong):
    with pytest.raises(ValueError, match="target must be a finite number above 0, found"):
        rounds_to_loss(experiment, wrong)


@pytest.mark.parametrize("wrong", [0, 1.5, True])
def test_refuses_what_is_no_number_of_rounds(experiment, wrong):
    with pytest.raises(ValueError, match="most must be a whole number of rounds"):
        rounds_to_loss(experiment, 0.1, most=wrong)
