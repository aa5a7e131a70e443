import importlib

import numpy as np
import pytest

from ntkp2p import ATC, CTA, DGD, Experiment, graphs, metropolis, models, predict
from ntkp2p.dynamics import linear_system, spectrum

stability = importlib.import_module("ntkp2p.dynamics.stability")


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("step_size", [0.1, 10.0])
def test_iteration_finds_the_dense_extremes(algorithm, step_size, digits, monkeypatch):
    data = digits()
    experiment = Experiment(
        model=models.mlp(width=32, depth=1),
        data=data,
        mixing=metropolis(graphs.path(4)),
        algorithm=algorithm(step_size=step_size),
        rounds=1,
    )
    system = linear_system(experiment.algorithm, experiment.mixing, experiment.features(), data)
    values = np.linalg.eigvals(system.matrix())
    # Dense, then iterative: to its residual, times the eigenvalues' condition number, 1 where M is symmetric.
    conditioned = 1 if system.symmetric else np.linalg.cond(np.linalg.eig(system.matrix())[1])
    for size, tolerance in ((10**6, 1e-9), (0, conditioned * stability.TOLERANCE)):
        monkeypatch.setattr(stability, "DENSE_SIZE", size)
        found = spectrum(system)
        assert found.radius == pytest.approx(np.abs(values).max(), rel=tolerance)
        assert found.abscissa == pytest.approx((values.real.max() - 1) / step_size, abs=tolerance / step_size)


def test_the_edge_of_stability_is_where_the_radius_passes_one(digits):
    def run(step_size):
        return predict(
            Experiment(
                model=models.affine(),
                data=digits(),
                mixing=metropolis(graphs.complete(4)),
                algorithm=DGD(step_size=step_size),
                rounds=5,
            )
        )

    bound = run(0.1).dataset.attrs["stable_step_size"]
    assert run(0.99 * bound).stable
    # The bound is sufficient; this far beyond it, no mixing holds the stiffest agent's direction.
    assert not run(4 * bound).stable


def test_what_was_not_found_is_not_a_number(monkeypatch, digits):
    from scipy.sparse.linalg import ArpackNoConvergence

    def never(*args, **kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(stability, "DENSE_SIZE", 0)
    monkeypatch.setattr("scipy.sparse.linalg.eigs", never)
    experiment = Experiment(
        model=models.affine(),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=ATC(step_size=0.1),
        rounds=2,
    )
    assert np.isnan(predict(experiment).dataset.attrs["spectral_radius"])
