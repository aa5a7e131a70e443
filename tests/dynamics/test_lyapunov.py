import dataclasses
import importlib

import numpy as np
import pytest
import scipy.linalg

from ntkp2p import ATC, CTA, DGD, Experiment, check_mixing, graphs, linear_system, metropolis, models
from ntkp2p.dynamics import LinearSystem
from ntkp2p.dynamics.timetable import Timetable

lyapunov = importlib.import_module("ntkp2p.dynamics.lyapunov")


def system_of(digits, algorithm, W):
    run = Experiment(
        model=models.mlp(width=16, depth=1),
        data=digits(agents=len(W), samples=16, test_samples=0),
        mixing=W,
        algorithm=algorithm,
        rounds=3,
    )
    return linear_system(run.algorithm, W, run.features(), run.data)


ONE_WAY = np.array([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.1, 0.1, 0.1, 0.7]])


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
def test_the_norms_bound_what_the_system_does(algorithm, digits):
    system = system_of(digits, algorithm(step_size=0.2), ONE_WAY)
    pi = check_mixing(ONE_WAY).perron_left
    found = lyapunov.certificate(system, pi)
    assert found.flow
    assert found.rounds
    M = system.matrix()
    root = np.repeat(np.sqrt(pi), system.size // 4)
    scaled = root[:, None] * M / root
    for rounds in (1, 2, 7):  # ‖M^k‖_π ≤ c^k, with equality at k = 1; and the flow's likewise
        norm = np.linalg.norm(np.linalg.matrix_power(scaled, rounds), 2)
        assert norm <= found.contraction**rounds * (1 + 1e-12)
        flow = np.linalg.norm(scipy.linalg.expm(rounds * (scaled - np.eye(len(M)))), 2)
        assert flow <= np.exp(found.logarithmic_norm * 0.2 * rounds) * (1 + 1e-12)
    assert np.linalg.norm(scaled, 2) == pytest.approx(found.contraction, rel=1e-12)
    # The slope of ‖exp(A t)‖ at t = 0 is the logarithmic norm; one-sided differences err by O(t).
    t = 1e-6
    slope = (np.linalg.norm(scipy.linalg.expm(t * (scaled - np.eye(len(M)))), 2) - 1) / (0.2 * t)
    assert slope == pytest.approx(found.logarithmic_norm, abs=1e-4)


def test_uniform_weights_prove_nothing_where_perron_weights_do(digits):
    """In the plain norm this W expands, and yet the run is stable: the bound of its growth is met by no transient."""
    lopsided = np.array([[0.98, 0.02, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.9, 0, 0, 0.1]])
    lopsided[0] = [0.97, 0.01, 0.01, 0.01]
    system = system_of(digits, DGD(step_size=0.02), lopsided)
    plain = lyapunov.certificate(system, np.full(4, 0.25))
    perron = lyapunov.certificate(system, check_mixing(lopsided).perron_left)
    assert not plain.rounds
    assert perron.flow
    assert perron.rounds
    flow, rounds = lyapunov.largest_transient(system)
    assert 1 < rounds <= perron.growth
    assert flow <= perron.growth


def test_what_is_iterated_proves_nothing_within_its_residual(digits):
    system = system_of(digits, ATC(step_size=0.2), metropolis(graphs.cycle(4)))
    dense = lyapunov.certificate(system, np.full(4, 0.25))
    iterated = lyapunov.certificate(system, np.full(4, 0.25), dense=0)
    assert iterated.logarithmic_norm == pytest.approx(dense.logarithmic_norm, abs=2 * iterated.residual / 0.2)
    assert iterated.contraction == pytest.approx(dense.contraction, abs=2 * iterated.residual)
    assert iterated.residual > dense.residual == 0
    assert dense.flow
    # This flow decays slowly: an eigenvalue within the residual could be positive.
    assert iterated.flow == (iterated.logarithmic_norm * 0.2 + iterated.residual <= lyapunov.ROUNDING)


def test_transients_of_a_shear_are_found():
    """‖exp(A t)‖ of A = [[−1, a], [0, −2]] reaches about a/4 (at t = ln 2, where e^{−t} − e^{−2t} = 1/4)."""
    M = np.eye(2) + np.array([[-1.0, 400.0], [0, -2.0]]) * np.log(2)  # one round is the time of the peak
    system = LinearSystem.of(M, np.zeros(2), np.zeros(2), step_size=np.log(2))
    flow, _ = lyapunov.largest_transient(system)
    assert flow == pytest.approx(100, rel=1e-4)


def test_what_cannot_be_certified_is_refused(digits):
    system = system_of(digits, DGD(step_size=0.02), metropolis(graphs.cycle(4)))
    with pytest.raises(ValueError, match="positive, found 0"):
        lyapunov.certificate(system, np.array([0.0, 0.5, 0.25, 0.25]))
    with pytest.raises(ValueError, match="one mixing matrix"):
        lyapunov.certificate(dataclasses.replace(system, timetable=Timetable(np.array([0, 1]))), np.full(4, 0.25))
