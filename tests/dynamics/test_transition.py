import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ntkp2p import ATC, CTA, DGD, Experiment, linear_system, models
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics import LinearSystem, solve, transition

RNG = np.random.default_rng(0)


def system(matrix, *, symmetric=False, step_size=0.5):
    n = len(matrix)
    offset, initial = np.random.default_rng(1).normal(size=n), np.random.default_rng(2).normal(size=n)
    return LinearSystem.of(np.asarray(matrix, float), offset, initial, step_size=step_size, symmetric=symmetric)


def with_spectrum(values, *, symmetric=True, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    if not symmetric:
        vectors = vectors @ np.diag(np.geomspace(1, 30, len(values))) @ np.linalg.qr(rng.normal(size=vectors.shape))[0]
    return vectors @ np.diag(values) @ np.linalg.inv(vectors)


def symmetrised(m):
    return (m + m.T) / 2


#: name → (M, declared symmetric)
SYSTEMS = {
    "symmetric": (symmetrised(with_spectrum(np.linspace(-0.3, 0.999, 40))), True),
    "nonsymmetric": (with_spectrum(np.linspace(-0.3, 0.999, 40), symmetric=False), False),
    "non-normal": (0.8 * np.eye(40) + 0.25 * np.eye(40, k=1), False),
    "rotating": (
        scipy.linalg.block_diag(
            *[0.98 * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in np.linspace(0.1, 3, 20)]
        ),
        False,
    ),
    "unstable": (with_spectrum(np.linspace(-0.3, 1.02, 40), symmetric=False), False),
    "eigenvalue one": (symmetrised(with_spectrum(np.r_[np.ones(3), np.linspace(-0.5, 0.9, 37)])), True),
}
ROUNDS = np.array([0, 1, 2, 7, 7, 40, 300])


def simulated(s, rounds):
    states, state = [], s.initial.copy()
    for k in range(rounds[-1] + 1):
        states += [state] * int(np.sum(rounds == k))
        state = s.apply(state) + s.offset
    return np.array(states)


def flow_by_scipy(s, rounds):
    a, b = (s.matrix() - np.eye(s.size)) / s.step_size, s.offset / s.step_size
    augmented = np.block([[a, b[:, None]], [np.zeros((1, s.size + 1))]])
    start = np.append(s.initial, 1)
    return np.array([(scipy.linalg.expm(augmented * s.step_size * k) @ start)[:-1] for k in rounds])


def relative(found, expected):
    scale = np.maximum.accumulate(np.linalg.norm(expected, axis=1))
    return (np.linalg.norm(found - expected, axis=1) / scale).max()


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_rounds_are_the_recursion_and_flow_is_scipys(name, method):
    matrix, symmetric = SYSTEMS[name]
    s = system(matrix, symmetric=symmetric)
    solution = solve(s, ROUNDS, method=method, rtol=1e-8)
    assert solution.method == method
    assert solution.converged
    assert relative(solution.states("rounds"), simulated(s, ROUNDS)) < 1e-8
    assert relative(solution.states("flow"), flow_by_scipy(s, ROUNDS)) < 1e-8


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
def test_the_error_estimate_bounds_the_error(name, rtol):
    matrix, symmetric = SYSTEMS[name]
    # Several copies with a spread make a system large enough for a basis to be a real reduction.
    matrix = scipy.linalg.block_diag(*[matrix * shift for shift in np.linspace(0.9, 1, 4)])
    s = system(matrix, symmetric=symmetric)
    rounds = np.array([1, 10, 60])
    solution = solve(s, rounds, method="krylov", rtol=rtol)
    assert solution.error <= rtol
    for time, exact in (("rounds", simulated(s, rounds)), ("flow", flow_by_scipy(s, rounds))):
        deviation, found = exact - s.initial, solution.states(time) - s.initial
        # scipy's and the recursion's own rounding come on top of the estimate.
        assert relative(found, deviation) <= solution.error + 1e-12


@pytest.mark.parametrize("algorithm", [DGD, CTA, ATC])
@pytest.mark.parametrize("rtol", [1e-3, 1e-7])
def test_the_bound_holds_where_growth_is_declared(algorithm, rtol, digits):
    """Not symmetric, not normal, and of a norm that is known: the error stays below the residual's sum."""
    W = 0.5 * np.eye(6) + 0.5 * np.random.default_rng(0).dirichlet(np.ones(6), size=6)
    run = Experiment(
        model=models.mlp(width=32, depth=1),
        data=digits(agents=6, samples=90),
        mixing=W,
        algorithm=algorithm(step_size=0.2),
        rounds=1,
    )
    s = linear_system(run.algorithm, W, run.features(), run.data)
    assert 1 < s.growth < 5
    rounds = np.array([1, 3, 10, 100, 1000])
    exact, found = (solve(s, rounds, method=method, rtol=rtol) for method in ("dense", "krylov"))
    assert found.size < s.size / 2
    assert found.error <= rtol
    for time in ("rounds", "flow"):
        assert relative(found.states(time), exact.states(time)) <= found.error


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_ten_thousand_times_span_few_vectors(symmetric):
    hard = system(np.diag(np.linspace(-0.99, 1, 600)), symmetric=symmetric)
    rounds = np.arange(3000)
    solution = solve(hard, rounds, method="krylov", rtol=1e-7)
    assert solution.converged
    assert len(solution.basis) < 150
    assert relative(solution.states("rounds")[1:], simulated(hard, rounds)[1:]) <= 1e-7
    few = rounds[500::500]
    assert relative(solution.states("flow", few), flow_by_scipy(hard, few)) <= 1e-7


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_amplified_rounding_is_owned_up_to(method):
    # ‖M^k‖ passes 1e13 before it falls: float64 has nothing left to promise, and the result says so.
    s = system(0.8 * np.eye(40) + 0.5 * np.eye(40, k=1))
    solution = solve(s, ROUNDS, method=method)
    assert not solution.converged
    assert solution.error > relative(solution.states("rounds"), simulated(s, ROUNDS))


@in_float64
def test_flow_is_diffrax():
    s = system(SYSTEMS["nonsymmetric"][0])
    a, b = jnp.asarray((s.matrix() - np.eye(40)) / s.step_size), jnp.asarray(s.offset / s.step_size)
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: a @ y + b),
        diffrax.Dopri8(),
        0.0,
        20.0,
        0.01,
        jnp.asarray(s.initial),
        saveat=diffrax.SaveAt(ts=jnp.array([0.5, 5.0, 20.0])),
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-12),
        max_steps=100_000,
    )
    assert relative(solve(s, [1, 10, 40]).states("flow"), np.asarray(solved.ys)) < 1e-8


@pytest.mark.parametrize("time", ["flow", "rounds"])
@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_semigroup(time, method):
    s = system(SYSTEMS["nonsymmetric"][0])
    whole, first, second = (transition(s, *ends, time=time) for ends in ((9, 2), (5, 2), (9, 5)))
    start = s.initial
    halves = second.apply(first.apply(start, method=method), method=method)
    np.testing.assert_allclose(halves, whole.apply(start, method=method), rtol=0, atol=1e-8 * np.linalg.norm(halves))
    np.testing.assert_allclose(second.matrix() @ first.matrix(), whole.matrix(), atol=1e-10)
    np.testing.assert_allclose(whole @ start, whole.matrix() @ start, rtol=0, atol=1e-10 * np.linalg.norm(start))


def test_transition_matrices_are_the_definitions():
    s = system(SYSTEMS["rotating"][0], step_size=0.25)
    a = (s.matrix() - np.eye(40)) / 0.25
    np.testing.assert_allclose(transition(s, 1.7, 0.3).matrix(), scipy.linalg.expm(1.4 * a), atol=1e-12)
    np.testing.assert_allclose(
        transition(s, 6, time="rounds").matrix(), np.linalg.matrix_power(s.matrix(), 6), atol=1e-12
    )


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_basis_that_may_not_grow_is_started_anew(symmetric):
    rounds = np.array([1, 5, 90, 91, 400])
    hard = system(np.diag(np.linspace(-0.99, 1, 500)), symmetric=symmetric)
    least, ample = (solve(hard, rounds, method="krylov", memory=vectors * 8 * 500) for vectors in (60, 700))
    assert least.size <= 30 < ample.size
    for solution in (least, ample):
        assert solution.converged
        for time, exact in (("rounds", simulated(hard, rounds)), ("flow", flow_by_scipy(hard, rounds))):
            deviation, found = exact - hard.initial, solution.states(time) - hard.initial
            assert relative(found, deviation) <= solution.error + 1e-12


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_windows_do_not_depend_on_the_units(scale, symmetric):
    n, rounds = 420, np.unique(np.geomspace(1, 1000, 20).astype(int))
    values = np.linspace(-0.9, 0.9995, n)
    matrix = np.diag(values) + (0 if symmetric else 0.02) * np.eye(n, k=1)
    offset, initial = scale * np.random.default_rng(0).normal(size=(2, n))
    s = LinearSystem.of(matrix, offset, initial, symmetric=symmetric)
    windows, whole = (solve(s, rounds, method=m, memory=8 * n * 100) for m in ("krylov", "dense"))
    assert windows.converged
    for time in ("rounds", "flow"):
        deviation = whole.states(time) - initial
        assert relative(windows.states(time) - initial, deviation) <= windows.errors[time] + 1e-12


@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("memory", [None, 8 * 500 * 60])
def test_an_unstable_run_is_followed_until_it_leaves_the_numbers(method, symmetric, memory):
    values = np.r_[1.2, np.linspace(-0.9, 0.99, 499)]
    s = LinearSystem.of(np.diag(values), np.ones(500), np.zeros(500), symmetric=symmetric)
    # 1.2^2000 is 1e158: its square is no number any more. 1.2^20000 itself is none.
    solution = solve(s, [0, 10, 2000, 20000], times=("rounds",), method=method, memory=memory)
    first = solution.states("rounds")[:, 0]
    with np.errstate(over="ignore"):
        exact = (1.2 ** np.array([0, 10, 2000.0]) - 1) / 0.2
    np.testing.assert_allclose(first[:3], exact, rtol=1e-6)
    assert np.isnan(first[3])


def test_a_pulse_that_crosses_the_basis_late_is_seen():
    """On a directed ring the residual is zero but in the few rounds when the pulse leaves the basis."""
    n, rounds = 450, np.unique(np.geomspace(1, 2000, 40).astype(int))
    ring = np.roll(np.eye(n), 1, axis=0)
    pulse = np.linalg.matrix_power(np.eye(n) - ring, 4)[0]
    s = LinearSystem.of(ring, 0 * pulse, pulse, growth=1.0)
    solution = solve(s, rounds, times=("rounds",), method="krylov", rtol=1e-5)
    exact = np.array([np.roll(pulse, k) for k in rounds]) - pulse
    assert relative(solution.states("rounds") - pulse, exact) <= solution.error


def test_what_the_span_leaves_out_is_counted():
    s = system(symmetrised(with_spectrum(np.linspace(-0.9, 0.999, 30))), symmetric=True)
    rounds = np.arange(1, 2000)
    rough, fine = solve(s, rounds, method="krylov", rtol=1e-3), solve(s, rounds, method="dense")
    for time in ("rounds", "flow"):
        error = relative(rough.states(time) - s.initial, fine.states(time) - s.initial)
        assert 1e-12 < error <= rough.errors[time] * (1 + 1e-6)


def test_a_basis_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"needs at least 0\.128 MB and may take 0\.001 MB: raise memory"):
        solve(system(np.eye(500)), [400], method="krylov", memory=1000)


def test_resting_system_rests():
    s = system(np.eye(3) / 2)
    still = LinearSystem.of(s.matrix(), s.initial / 2, s.initial)
    for method in ("dense", "krylov"):
        np.testing.assert_allclose(solve(still, [0, 9], method=method).states("flow"), [s.initial] * 2, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: solve(s, [3, 1]), "ascending whole numbers"),
        (lambda s: solve(s, [0.5]), "ascending whole numbers"),
        (lambda s: solve(s, []), "ascending whole numbers"),
        (lambda s: solve(s, 5), "ascending whole numbers"),
        (lambda s: solve(s, [1], times="rounds"), "one notion of time or both"),
        (lambda s: solve(s, [1], times=()), "one notion of time or both"),
        (lambda s: transition(s, np.inf), "to a finite t"),
        (lambda s: transition(s, 1).apply([3.0]), "states have shape"),
        (lambda s: transition(s, 1) @ [1j, 0], "finite real numbers"),
        (lambda s: LinearSystem.of(np.eye(3), np.ones(2), np.ones(3)), "have shapes"),
        (lambda s: LinearSystem.of(np.eye(2) + np.eye(2, k=1), np.ones(2), np.ones(2), symmetric=True), "it is not"),
        (lambda s: transition(s, 1, 2), "runs forward"),
        (lambda s: transition(s, 1.5, time="rounds"), "whole numbers"),
    ],
)
def test_bad_times_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(system(np.eye(2)))


def test_numbers_do_not_depend_on_the_flags():
    assert not jax.config.jax_enable_x64  # the process that runs these tests keeps JAX's default
    assert solve(system(np.eye(3) / 3), [5]).states("rounds").dtype == np.float64
