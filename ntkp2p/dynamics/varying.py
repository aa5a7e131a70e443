"""Linear systems that change over time.

An ordered product of rounds, or of their exponentials, advances a state; if the system changes periodically, one period
is a linear system again.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.dynamics import krylov
from ntkp2p.dynamics.krylov import Time
from ntkp2p.dynamics.span import ROUNDING, Span
from ntkp2p.dynamics.system import BLOCK, LinearSystem, linear
from ntkp2p.dynamics.timetable import at_round
from ntkp2p.dynamics.windows import Asked, Found, Step, constant, is_dense, windows

#: From how many periods on a period is taken as one step.
PERIODS = 4
#: By how much a number of rounds may differ from a whole one by rounding.
WHOLE = 1e-9


def solve_varying(system: LinearSystem, asked: Asked, span: Span) -> Found:
    """Deviations of a system whose mixing changes: period by period, or round by round."""
    found, rounds, times = Found("products", {}), asked.rounds, asked.times
    if rounds[-1] > (last := last_round(system)):
        raise InputError(f"the mixing is given for {last} rounds, and round {rounds[-1]} is asked for")
    order, begin, periodic = system.timetable
    length = len(order) - begin
    # Over fewer periods than a basis has vectors at first, to take every round is quicker.
    enough = PERIODS if is_dense(system.size, asked.method) else krylov.LEAST
    repeats = periodic and rounds[-1] - begin >= enough * length
    if repeats and begin:
        return _after_a_beginning(system, asked, span)
    if repeats:
        wholes, which = np.unique(rounds // length, return_inverse=True)
        for time in times:
            inner = Span(system.size, ("rounds",), len(wholes), asked.memory, ROUNDING)
            one = windows(period(system, time), asked._replace(rounds=wholes, times=("rounds",)), inner)
            found.method, found.size = one.method, max(found.size, one.size)
            vectors, start, reached, amplified = inner.basis, system.initial[None], 0, 1.0
            for phase in np.unique(rounds % length):
                more = int(phase) - reached
                vectors = advance_over(system, vectors, reached, more, time, driven=False)
                start = advance_over(system, start, reached, more, time)
                reached += more
                at = np.flatnonzero(rounds % length == phase)
                c = inner.coefficients["rounds"][which[at]]
                basis, r = np.linalg.qr(np.concatenate([start - system.initial, vectors]).T)
                amplified = max(
                    amplified, float(np.linalg.norm(r[:, 1:], 2) / max(np.linalg.norm(inner.basis, 2), 1e-300))
                )
                span.add(basis.T, {time: (at, np.append(np.ones((len(at), 1)), c, axis=1) @ r.T)})
            found.errors[time] = amplified * (one.errors["rounds"] + inner.error)
        return found
    for time in times:
        found.errors[time] = _round_by_round(system, rounds, np.arange(len(rounds)), time, span)
    return found


def _round_by_round(system: LinearSystem, rounds: np.ndarray, places: np.ndarray, time: Time, span: Span) -> float:
    """Every round taken; the span has those asked for at these places. What rounding makes of it."""
    state, reached, block = system.initial[None], 0, max(1, BLOCK // (8 * system.size))
    for first in range(0, len(rounds), block):
        states = []
        for k in rounds[first : first + block]:
            state = advance_over(system, state, reached, int(k) - reached, time)
            reached = int(k)
            states.append(state[0] - system.initial)
        rows = np.array(states)
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        rows = rows[finite]
        scale = np.abs(rows).max(axis=1, initial=0.0)  # their squares may overflow
        scale = np.where(scale > 0, scale, 1.0)[:, None]
        q, r = np.linalg.qr((rows / scale).T)
        c = np.full((len(finite), len(q.T)), np.nan)
        c[finite] = r.T * scale
        span.add(q.T, {time: (places[first : first + block], c)})
    rounding = np.finfo(float).eps * (system.size + rounds[-1])
    return float(rounding * np.nan_to_num(system.growth, nan=1.0))


def _after_a_beginning(system: LinearSystem, asked: Asked, span: Span) -> Found:
    """What repeats itself from some round on only: the rounds until then, and from there a system of its own."""
    found, begin, rounds = Found("products", {}), int(system.timetable.begin), asked.rounds
    early, late = np.flatnonzero(rounds <= begin), np.flatnonzero(rounds > begin)
    for time in asked.times:
        rounding = _round_by_round(system, rounds[early], early, time, span) if len(early) else 0.0
        then, inner = eventual(system, time), Span(system.size, (time,), len(late), asked.memory, ROUNDING)
        rest = asked._replace(rounds=rounds[late] - begin, times=(time,))
        one = solve_varying(then, rest, inner) if then.varying else windows(constant(then), rest, inner)
        found.method, found.size = one.method, max(found.size, one.size)
        away = (then.initial - system.initial)[None]
        basis, r = np.linalg.qr(np.concatenate([away, inner.basis]).T)
        c = np.append(np.ones((len(late), 1)), inner.coefficients[time], axis=1)
        span.add(basis.T, {time: (late, c @ r.T)})
        # Relative to how far it is from where it then begins, which is at most twice as far as it has been from s_0.
        found.errors[time] = rounding + 2 * (one.errors[time] + inner.error)
    return found


def eventual(system: LinearSystem, time: Time, /) -> LinearSystem:
    """The system from the round on from which it repeats itself, and from the state that it has reached there."""
    begin = int(system.timetable.begin) if system.timetable.periodic else 0
    return system.shifted(begin, advance_over(system, system.initial[None], 0, begin, time)[0])


def last_round(system: LinearSystem, /) -> int | float:
    """The last round before which a system has a state."""
    order, begin, periodic = system.timetable
    return math.inf if periodic else begin or len(order)


def period(system: LinearSystem, time: Time, /) -> Step:
    """One period as one step."""
    over = partial(advance_over, system, begin=0, count=len(system.timetable.order), time=time)

    def linearly(s):
        return over(s[None], driven=False)[0]

    return Step(
        initial=system.initial,
        affine=lambda s: over(s[None])[0],
        linear=linearly,
        matrix=lambda: over(np.eye(system.size), driven=False).T,
        grow=lambda start, most: krylov.arnoldi(linearly, start, most),
        symmetric=False,
        growth=system.growth,
    )


@in_float64
def advance_over(
    system: LinearSystem,
    states: Float[np.ndarray, "p n"],
    begin: int,
    count: int,
    time: Time,
    *,
    driven: bool = True,
    length: float = 1.0,
) -> Float[np.ndarray, "p n"]:
    """States taken over `count` rounds from round `begin` on, in rounds or in flow, in one compiled loop.

    Parameters
    ----------
    driven
        Whether b takes part; without it, Φ is applied.
    length
        In flow, the share of each of these rounds that passes.
    """
    if time == "rounds":
        return system.over(states, begin, count, driven=driven)
    advanced = _flow_over(
        system.advance,
        driven,
        system.parameters,
        system.timetable,
        jnp.asarray(states, float),
        begin,
        count,
        length,
        math.ceil(system.rate / 2),
    )
    return np.asarray(advanced)


@partial(jax.jit, static_argnums=(0, 1))
def _flow_over(advance, driven, parameters, timetable, states, begin, count, length, parts):
    def one_round(k, states):
        now = at_round(parameters, timetable, k)
        return jax.vmap(partial(_exponential, advance, now, driven, length / parts, parts))(states)

    return jax.lax.fori_loop(begin, begin + count, one_round, states)


def _exponential(advance, parameters, driven: bool, length, parts, s: Array) -> Array:
    """The flow over parts of one round: e^{ℓ (M − I)} as e^{−ℓ} Σ (ℓ M)^j / j!, with b as one more state.

    Parts are so short that no term is much larger than the sum.
    """
    offset = advance(parameters, jnp.zeros_like(s)) if driven else jnp.zeros_like(s)

    def more(carry):
        total, term, *_ = carry
        return jnp.linalg.norm(term) > jnp.finfo(float).eps / 8 * jnp.linalg.norm(total)

    def add(carry):
        total, term, unit, j = carry
        term = length / j * (linear(advance, parameters, term) + unit * offset)
        return total + term, term, length / j * unit, j + 1

    def part(_, s):
        weight = jnp.exp(-length)
        # The first term is counted even if it is 0: the offset may still drive what rests at 0.
        first = add((weight * s, weight * s, weight, 1.0))
        return jax.lax.while_loop(more, add, first)[0]

    return jax.lax.fori_loop(0, parts, part, s)
