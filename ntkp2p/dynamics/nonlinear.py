r"""Dynamics without a closed form: linear models under a loss other than squared error.

The gradient of such a loss is not affine in the outputs, and a round is no affine map of the state s any more. It is
a function of it all the same, s ↦ F(s), and its orbit is followed step by step:

    rounds         s_{k+1} = F(s_k)
    gradient flow  ds/dt = (F(s) − s) / η,   t = η k

The flow is integrated in units of rounds, by an explicit method: its rates are those of the mixing, at most 2 a round,
and of the gradients, η times a curvature, which is moderate wherever the rounds are of use. Implicit methods take a
dense matrix of all states: with 800 of them and η times the curvature 0.5, 500 rounds to 1e-6 took Kvaerno5 37 s for
161 steps, Dopri8 0.03 s for 172.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics.round import Round
from ntkp2p.dynamics.system import models_of
from ntkp2p.dynamics.timetable import CONSTANT, Timetable, at_round

#: The flow's steps are at most so many.
MAX_STEPS = 100_000
#: From one accuracy of the flow to the next.
TIGHTER = 30
#: No tolerance below this one is tightened any further: rounding decides there.
TIGHTEST = 1e-13
#: Gradients that are bounded move the states at most in proportion to time; what outruns its start by this diverges.
BLOW_UP = 1e6


@dataclass(frozen=True)
class Integration:
    """The orbit of a round, or of its flow, at the requested rounds.

    Attributes
    ----------
    rounds
        The rounds asked for, ascending, shape (times,).
    models
        The agents' coordinates there, shape (times, Q, rank·columns); NaN where the orbit was not followed so far.
    size
        n, the number of states.
    method
        "rounds", or the name of the flow's integrator.
    error
        Estimate of max_t ‖e(t) − ẽ(t)‖ / max_{τ ≤ t} ‖e(τ)‖, e = s − s_0.
    converged
        Whether that estimate meets the tolerance asked for.
    stable
        False for an orbit that leaves the finite numbers, or outruns any bounded gradient.
    failure
        Why the integrator stopped before the end, and what to do; empty if it did not.
    """

    rounds: np.ndarray
    models: Float[np.ndarray, "times Q d"]
    size: int
    method: str
    error: float
    converged: bool
    stable: bool
    failure: str = ""


@in_float64
def integrate(
    advance: Round,
    parameters: PyTree,
    initial: Float[Array, " n"],
    rounds: np.ndarray,
    /,
    *,
    timetable: Timetable = CONSTANT,
    time: str = "rounds",
    rtol: float = 1e-8,
) -> Integration:
    """Follow a round, or its flow at t = η k.

    Parameters
    ----------
    advance, parameters
        As `ntkp2p.dynamics.round.assemble` makes them.
    initial
        s_0, shape (n,).
    rounds
        Ascending whole numbers k ≥ 0.
    timetable
        Where rounds differ: what each of them has.
    time
        "rounds": exact up to rounding, the error being its level times the growth of a small perturbation.
        "flow": by Dopri8 (Hairer, Nørsett and Wanner, 1993) in diffrax.
    rtol
        The flow is integrated at tolerances 30 times tighter each, until one differs from the one before by at most
        `rtol`; that difference, the looser one's error, is reported, and the tighter one is returned.
    """
    first = np.linalg.norm(_advance(advance, parameters, timetable, (initial, initial), 0, 1)[0] - initial)
    follow = _rounds if time == "rounds" else _flow
    states, error, method, failure = follow(advance, parameters, timetable, initial, rounds, float(first), rtol)
    reached = np.all(np.isfinite(states), axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.linalg.norm(states - np.asarray(initial), axis=1)
        outrun = moved[reached] > BLOW_UP * first * np.maximum(rounds[reached], 1)
    lost = not reached.all()
    return Integration(
        rounds=rounds,
        models=np.asarray(
            models_of(advance, parameters, timetable, np.where(reached[:, None], states, np.nan), rounds)
        ),
        size=len(initial),
        method=method,
        error=error,
        converged=error <= rtol,
        stable=not (outrun.any() or (lost and not failure)),
        failure=failure,
    )


def _rounds(advance, parameters, timetable, initial, rounds, first, rtol) -> tuple[np.ndarray, float, str, str]:
    direction = jnp.asarray(np.random.default_rng(0).normal(size=len(initial)))
    size = float(jnp.linalg.norm(direction))
    state, states, growth = (initial, direction), [], []
    for before, now in zip([0, *rounds], rounds, strict=False):
        state = _advance(advance, parameters, timetable, state, int(before), int(now))
        states.append(np.asarray(state[0]))
        growth.append(float(jnp.linalg.norm(state[1])) / size)
    states = np.array(states)
    reach = _reach(states, initial)
    # A perturbation matters that grows faster than the orbit does.
    with np.errstate(invalid="ignore"):  # an unstable orbit overflows: flagged, not an error
        relative = np.array(growth) * np.divide(first, reach, out=np.ones_like(reach), where=reach > first)
    worst = np.max(relative[np.isfinite(relative)], initial=1.0)
    return states, float(np.finfo(float).eps * (len(initial) + rounds[-1]) * worst), "rounds", ""


def _flow(advance, parameters, timetable, initial, rounds, first, rtol) -> tuple[np.ndarray, float, str, str]:
    size = first / np.sqrt(len(initial)) or 1.0  # an entry's, after one round
    jumps = jnp.arange(1.0, rounds[-1]) if len(timetable.order) else None

    def solve(tolerance):
        states, exhausted = _diffrax(
            advance, parameters, timetable, initial, jnp.asarray(rounds, float), jumps, tolerance, size
        )
        return np.asarray(states), bool(exhausted)

    def difference(coarse, fine):
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            relative = np.linalg.norm(fine - coarse, axis=1) / _reach(fine, initial)
        return float(np.max(relative[np.isfinite(relative)], initial=0.0))

    tolerance, error = max(rtol, TIGHTEST), float("inf")
    fine, exhausted = solve(tolerance)
    while error > rtol and tolerance >= TIGHTEST and not exhausted:
        coarse, tolerance = fine, tolerance / TIGHTER
        fine, exhausted = solve(tolerance)
        error = difference(coarse, fine)
    failure = ""
    if exhausted:
        reached = rounds[np.isfinite(fine).all(axis=1)][-1]
        error = float("inf")
        failure = (
            f"the flow is not integrated beyond round {reached}: {MAX_STEPS} steps do not suffice for "
            f"rtol = {rtol:g}, take a larger one, a smaller step size or fewer rounds"
        )
    return fine, error, "diffrax Dopri8", failure


def _reach(states: np.ndarray, initial: Array) -> np.ndarray:
    """The farthest that the states have been from the start by then."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.fmax.accumulate(np.linalg.norm(states - np.asarray(initial), axis=1))


@partial(jax.jit, static_argnums=0)
def _advance(
    advance: Callable,
    parameters: PyTree,
    timetable: Timetable,
    state: tuple[Array, Array],
    begin: Array | int,
    end: Array | int,
) -> tuple[Array, Array]:
    """A state, and a perturbation of it, taken from one round to another."""

    def step(k, state):
        return jax.jvp(partial(advance, at_round(parameters, timetable, k)), state[:1], state[1:])

    return jax.lax.fori_loop(begin, end, step, state)


@partial(jax.jit, static_argnums=0)
def _diffrax(
    advance: Callable,
    parameters: PyTree,
    timetable: Timetable,
    initial: Array,
    rounds: Array,
    jumps: Array | None,
    tolerance: Array,
    size: Array,
) -> tuple[Array, Array]:
    """The flow at these rounds, and whether there were too few steps."""
    import diffrax

    # Without the proportional part a fifth of the steps were rejected where stability bounds them.
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance * size, pcoeff=0.4, icoeff=0.3, dtmin=1e-12)
    if jumps is not None:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jumps)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda k, s, p: advance(at_round(p, timetable, jnp.floor(k).astype(int)), s) - s),
        diffrax.Dopri8(),
        t0=0.0,
        t1=rounds[-1],
        dt0=None,
        y0=initial,
        args=parameters,
        saveat=diffrax.SaveAt(ts=rounds),
        stepsize_controller=controller,
        max_steps=MAX_STEPS,
        throw=False,
    )
    return jnp.asarray(solution.ys), solution.result == diffrax.RESULTS.max_steps_reached
