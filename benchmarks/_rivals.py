"""What else takes a linear system through time: each a function of how many of the output times it shall reach.

Output times are equidistant, `step` rounds apart. A rival returns its states there, shape (count, n), and the seconds
that it spends once, however far it goes.
"""

import os
import time
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from _linear import Problem
from threadpoolctl import threadpool_limits

from ntkp2p.dynamics import LinearSystem
from ntkp2p.dynamics.system import advanced, product
from ntkp2p.runs.training import train

Run = Callable[[int], tuple[np.ndarray | None, float]]


def simulation(system: LinearSystem, step: int) -> Run:
    """The linear rounds one by one, in one compiled loop."""

    @jax.jit
    def follow(parameters, state, rounds):
        return jax.lax.fori_loop(0, rounds, lambda k, s: system.advance(parameters, s), state)

    def run(count):
        state, states = jnp.asarray(system.initial), []
        for _ in range(count):
            state = follow(system.parameters, state, step)
            states.append(np.asarray(state))
        return np.array(states), 0.0

    follow(system.parameters, jnp.asarray(system.initial), 1).block_until_ready()
    return run


def training(problem: Problem, step: int) -> Run:
    """The real model's rounds; the clock starts when its programs are compiled and the first losses recorded."""

    def run(count):
        start, models, stamps = time.perf_counter(), [], []

        def observe(k, x):
            stamps.append(time.perf_counter())
            if problem.affine:
                models.append(x)

        rounds = [step * i for i in range(count + 1)]
        train(problem.experiment(rounds[-1], rounds), observe=observe)
        # What came before is no part of training, and neither is what comes after the last record.
        apart = stamps[0] - start + time.perf_counter() - stamps[-1]
        if not problem.affine:
            return None, apart
        return (np.array(models[1:]) - models[0]).reshape(count, -1), apart

    return run


def dense(system: LinearSystem, step: int) -> Run:
    """The exponential of the whole matrix over the time between two outputs, and products with it."""

    def run(count):
        start = time.perf_counter()
        generator = system.matrix() - np.eye(system.size)
        augmented = np.block([[generator, system.offset[:, None]], [np.zeros((1, system.size + 1))]])
        with threadpool_limits(os.cpu_count(), "blas"):
            power = scipy.linalg.expm(step * augmented)
        once = time.perf_counter() - start
        state, states = np.append(system.initial, 1.0), []
        for _ in range(count):
            state = power @ state
            states.append(state[:-1])
        return np.array(states), once

    return run


def expm_multiply(system: LinearSystem, step: int) -> Run:
    """SciPy's truncated Taylor series on an operator, with the exact trace."""
    trace = trace_of_rounds(system) - system.size

    def run(count):
        start, operator = time.perf_counter(), Generator(system)
        first = np.append(system.initial, operator.unit)
        states = scipy.sparse.linalg.expm_multiply(
            operator, first, start=0, stop=step * count, num=count + 1, endpoint=True, traceA=trace
        )
        return states[1:, :-1], operator.prepared - start

    Generator(system).matmat(np.zeros((system.size + 1, 1)))
    return run


class Generator(scipy.sparse.linalg.LinearOperator):
    """[[M − I, b/u], [0, 0]], which takes (s, u) along the flow in units of rounds; u = ‖b‖₁ balances it."""

    def __init__(self, system: LinearSystem):
        super().__init__(float, (system.size + 1, system.size + 1))
        self.system, self.unit = system, float(np.abs(system.offset).sum())
        self.prepared = time.perf_counter()

    def _matvec(self, s):
        s = s.reshape(-1)
        return np.append(self._generator(s[:-1]) + self.system.offset * (s[-1] / self.unit), 0.0)

    def _rmatvec(self, s):
        s = s.reshape(-1)  # M is symmetric
        return np.append(self._generator(s[:-1]), self.system.offset @ s[:-1] / self.unit)

    def _matmat(self, s):
        return self._estimating(self._matvec, s)

    def _rmatmat(self, s):
        return self._estimating(self._rmatvec, s)

    def _generator(self, s):
        return np.asarray(product(self.system.advance, self.system.parameters, s)) - s

    def _estimating(self, one, s):
        """Several columns are what the estimates of norms ask for, once, before the series begins."""
        found = np.stack([one(column) for column in s.T], axis=1)
        self.prepared = time.perf_counter()
        return found


def trace_of_rounds(system: LinearSystem) -> float:
    """tr M of DGD: that of the mixing for every coordinate, less the step size times every agent's Hessian."""
    _, rank, columns = system.advance.shape
    matrix, weights = np.asarray(system.parameters["matrix"]), np.asarray(system.parameters["weights"])
    hessians = columns * np.sum(weights * np.sum(matrix**2, axis=-1))
    return float(rank * columns * np.trace(system.parameters["mixing"]) - system.step_size * hessians)


def integrator(system: LinearSystem, step: int, total: int, solver: type, tolerance: float) -> Run:
    """A solver of diffrax at a tolerance, relative to entries as large as those of the first round."""
    size = tolerance * np.linalg.norm(system.offset) / np.sqrt(system.size)

    @jax.jit
    def follow(parameters, state, times):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, s, p: advanced(system.advance, p, s) - s),
            solver(),
            t0=0.0,
            t1=times[-1],
            dt0=None,
            y0=state,
            args=parameters,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=size, pcoeff=0.4, icoeff=0.3),
            max_steps=10_000_000,
        ).ys

    def run(count, share=1.0):
        # Always as many times, so that nothing is compiled again: those beyond the end are the end.
        times = share * step * np.minimum(np.arange(1, total + 1), count)
        states = follow(system.parameters, jnp.asarray(system.initial), jnp.asarray(times, float))
        return np.asarray(states)[:count], 0.0

    run(1, share=1e-3)
    return run
