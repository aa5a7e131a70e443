"""What the stability of 100,000 states costs, in products with M: spectrum, modes, certificate, largest step size.

python benchmarks/stability.py
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from _linear import Problem

from ntkp2p.algorithms import ATC, DGD
from ntkp2p.dynamics.lyapunov import certificate
from ntkp2p.dynamics.spectrum import slowest_modes, spectrum
from ntkp2p.dynamics.step_size import largest_step_size
from ntkp2p.dynamics.system import linear_system

AGENTS, STATES = 64, 100_000


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    problem = Problem(agents=AGENTS, graph="cycle", states=STATES)
    print(f"{'':<28}{'seconds':>10}{'products':>10}   found")
    for algorithm in (DGD, ATC):
        run = problem.experiment(1, [0, 1])
        chosen = algorithm(step_size=float(run.algorithm.step_size))
        system = linear_system(chosen, run.mixing, problem.features, problem.agent_data)
        product = min(timed(lambda system=system: system.apply(system.initial + 1.0))[0] for _ in range(5))
        print(f"{algorithm.__name__}, {system.size} states: a product takes {1e3 * product:.2f} ms")
        parts: dict[str, Callable] = {
            "spectrum": spectrum,
            "five slowest modes": slowest_modes,
            "certificate": lambda system: certificate(system, np.full(AGENTS, 1 / AGENTS)),
            "largest step size": largest_step_size,
        }
        for name, part in parts.items():
            seconds, found = timed(lambda part=part, system=system: part(system))
            print(f"  {name:<26}{seconds:>10.2f}{seconds / product:>10.0f}   {words(name, found, system)}")


def timed(run: Callable) -> tuple[float, object]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def words(name: str, found, system) -> str:
    if name == "spectrum":
        return f"radius {found.radius:.6g}, residual {found.residual:.1g}"
    if name == "five slowest modes":
        return f"|λ| from {abs(found[0].eigenvalue):.6g}, residuals up to {max(m.residual for m in found):.1g}"
    if name == "certificate":
        return f"contraction {found.contraction:.6g}, residual {found.residual:.1g}"
    return f"{found:.6g}, the textbook's bound {system.sufficient_step_size:.6g}"


if __name__ == "__main__":
    main()
