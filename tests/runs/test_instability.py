"""An unstable prediction warns, with the sentence that the shell prints and that a diverged training repeats."""

import dataclasses
import warnings

import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p.runs.instability import instability


@pytest.fixture
def unstable(digits):
    W = p2p.metropolis(p2p.graphs.cycle(4))
    return p2p.Experiment(
        model=p2p.models.affine(), data=digits(), mixing=W, algorithm=p2p.DGD(step_size=50.0), rounds=400, record=5
    )


def test_an_unstable_prediction_warns_and_names_a_step_size_that_is_stable(unstable):
    with pytest.warns(p2p.UnstableWarning, match="spectral radius .* > 1; use a smaller step size") as caught:
        predicted = p2p.predict(unstable)
    assert str(caught[0].message) == instability(unstable, predicted)
    bound = predicted.dataset.attrs["sufficient_step_size"]
    assert f"guaranteed below step_size = {bound:.4g}; exact limit: ntkp2p stability" in str(caught[0].message)
    stable = dataclasses.replace(unstable, algorithm=p2p.DGD(step_size=0.99 * bound))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert instability(stable, p2p.predict(stable)) == ""


def test_a_diverged_training_names_the_same_step_size(unstable):
    bound = p2p.linear_system(
        unstable.algorithm, unstable.mixing, unstable.features(), unstable.data
    ).sufficient_step_size
    with pytest.raises(p2p.DivergedError, match=f"guaranteed below step_size = {bound:.4g}; exact limit"):
        p2p.train(unstable)


def test_weights_that_amplify_are_named_before_the_step_size(digits):
    W = np.array([[2.0, -1.0], [-1.0, 2.0]])
    run = p2p.Experiment(
        model=p2p.models.affine(), data=digits(agents=2), mixing=W, algorithm=p2p.DGD(step_size=0.1), rounds=5
    )
    with pytest.warns(p2p.UnstableWarning, match=r"the mixing matrix alone has spectral radius 3, .* lazy\(W\)"):
        p2p.predict(run)
