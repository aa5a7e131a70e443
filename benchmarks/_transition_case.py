"""One case of transition.py in a process of its own: a system to one horizon, output times of one kernel, or a figure.

Prints a line of JSON when a route begins and one when it ends. Not for use by hand: see transition.py.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import diffrax
import jax
import numpy as np
from _linear import Problem
from _memory import peak_resident, resident_from_now
from _process import best, machine, tell
from _rivals import Run, dense, expm_multiply, integrator, simulation, training
from threadpoolctl import threadpool_limits

from ntkp2p.dynamics import LinearSystem, Solution, solve
from ntkp2p.dynamics.krylov import TIMES
from ntkp2p.figures.study import FULL, Study
from ntkp2p.runs import measures
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import predictions
from ntkp2p.runs.training import train
from ntkp2p.runs.trajectory import Trajectory

#: What every route must reach, and what the reference does.
ACCURACY, REFERENCE = 1e-6, 1e-11
#: The largest systems whose dense matrices a rival forms: n² numbers and several products of such matrices a step.
DENSE_MOST = {"expm": 2000, "Kvaerno5": 2000}
SOLVERS = {"Tsit5": diffrax.Tsit5, "Kvaerno5": diffrax.Kvaerno5}


def main() -> None:
    plan = json.loads(sys.argv[1])
    jax.config.update("jax_enable_x64", True)
    tell(machine=machine("scipy", "diffrax"))
    # A library of matrix products that waits for its threads in a loop loses them on a machine that does anything else.
    with threadpool_limits(1, "blas"):
        {"case": measure_case, "times": measure_times, "figure2": measure_figure}[plan["kind"]](plan)


class Case:
    """A problem with its output times, and our answer, to which all others are held."""

    def __init__(self, plan: dict):
        self.plan, self.limit = plan, plan["limit"]
        self.problem = Problem(**plan["problem"])
        self.system: LinearSystem = self.problem.system
        self.total = min(plan["times"], plan["horizon"])
        self.step = plan["horizon"] // self.total
        self.rounds = self.step * np.arange(self.total + 1)

    def solve(self, *times: Any, rtol: float = ACCURACY) -> Solution:
        return solve(self.system, self.rounds, times=times, rtol=rtol, memory=self.plan["memory"])

    def error(self, states: np.ndarray, time: Any) -> float:
        """max_t ‖s(t) − s*(t)‖ / max_{τ ≤ t} ‖s*(τ) − s_0‖, of states at the first output times."""
        worst = size = 0.0
        for i, state in enumerate(states, start=1):
            exact = self.reference.states(time, slice(i, i + 1))[0]
            size = max(size, float(np.linalg.norm(exact - self.system.initial)))
            worst = max(worst, float(np.linalg.norm(state - exact)) / size)
        return worst


def measure_case(plan: dict) -> None:
    tell(begins="setting up")
    case = Case(plan)
    facts = {"states": case.system.size, "rank": case.problem.rank, "samples": case.problem.count}
    tell(ends="setting up", row=facts | {"model": "affine" if case.problem.affine else "MLP"})
    before = resident_from_now()
    ours = {name: (lambda kinds=kinds: case.solve(*kinds)) for name, kinds in OURS.items()} | {
        "ours, measured": lambda: measured(case),
        "ours, predictions": lambda: predicted(case),
    }
    ours = {name: run for name, run in ours.items() if name in plan["routes"]}
    found: dict[str, Any] = {}
    quick = set()
    for name, run in ours.items():
        tell(begins=name)
        start = time.perf_counter()
        found[name] = run()
        first = time.perf_counter() - start
        seconds = first
        if first < case.limit:
            quick.add(name)
            seconds = best(run, first, case.limit, 3)
        row = {"seconds": seconds, "peak_bytes": peak_resident(), "grown_bytes": peak_resident() - before}
        if name in OURS:
            row |= {"basis": found[name].size, "span": len(found[name].basis), "stated_error": found[name].error}
        tell(ends=name, row=row)
    tell(begins="reference")
    case.reference = case.solve("rounds", "flow", rtol=REFERENCE)
    tell(ends="reference", row={"basis": case.reference.size, "stated_error": case.reference.error})
    for name, kinds in OURS.items():
        if name in ours:
            of = found.pop(name)
            every = (of.states(kinds[0], slice(i, i + 1))[0] for i in range(1, case.total + 1))
            tell(ends=name, row={"error": case.error(every, kinds[0])})
    for name in plan["routes"]:
        if name not in ours:
            tell(begins=name)
            tell(ends=name, row=attempt(case, name))
            jax.clear_caches()
    # Once more at the end, so that a busy moment of the machine does not count against one side only.
    for name, run in ours.items():
        if name in OURS and name in quick:
            tell(begins=name)
            tell(ends=name, row={"again": best(run, 0.0, 0.0, 1)})


OURS = {"ours, rounds": ("rounds",), "ours, flow": ("flow",), "ours, both": ("rounds", "flow")}


def predicted(case: Case, *kinds: Any) -> Mapping[Any, Trajectory]:
    """All that the library says of the run, whether it is stable included, the features being there."""
    experiment = case.problem.experiment(int(case.rounds[-1]), case.rounds.tolist())
    return predictions(experiment, times=kinds or TIMES, features=case.problem.features, rtol=ACCURACY)


def measured(case: Case, *kinds: Any) -> dict[Any, dict[str, np.ndarray]]:
    """Every agent's losses and distances at all output times."""
    solution, system, features = case.solve(*(kinds or TIMES)), case.system, case.problem.features
    directions = np.concatenate([system.model(system.initial)[None], system.directions(solution.basis)])
    errors = (features.initial - case.problem.agent_data.targets).reshape(-1, features.columns)
    factors = measures.factors(directions, features.matrix, errors, case.problem.agent_data)
    return {
        kind: factors(np.pad(c, ((0, 0), (1, 0)), constant_values=1.0)) for kind, c in solution.coefficients.items()
    }


def attempt(case: Case, name: str) -> dict:
    if case.system.size > DENSE_MOST.get(name, math.inf):
        return {"note": f"not run: it takes matrices of {8 * case.system.size**2 / 1e9:.3g} GB"}
    try:
        return integrated(case, name) if name in SOLVERS else timed(case, rival(case, name), KIND[name])
    except Exception as error:  # a rival's failure is a result
        reason = " ".join(str(error).split())[:120]
        return {"note": f"did not run: {type(error).__name__}: {reason}"}


#: Which notion of time a rival computes.
KIND = {"simulation": "rounds", "training": "rounds"} | dict.fromkeys(("expm", "expm_multiply", *SOLVERS), "flow")


def rival(case: Case, name: str) -> Run:
    if name == "training":
        return training(case.problem, case.step)
    return {"simulation": simulation, "expm": dense, "expm_multiply": expm_multiply}[name](case.system, case.step)


def integrated(case: Case, name: str) -> dict:
    """A solver at the loosest tolerance that reaches the accuracy."""
    row = {}
    for tolerance in (1e-6, 1e-7, 1e-8, 1e-9):
        run = integrator(case.system, case.step, case.total, SOLVERS[name], tolerance)
        row = timed(case, run, "flow", 3 * case.limit if name in DENSE_MOST else None) | {"note": f"rtol {tolerance:g}"}
        if row["error"] <= ACCURACY:
            break
    return row


def timed(case: Case, run: Run, kind: str, limit: float | None = None) -> dict:
    """Seconds for all output times; from those for the first ones, if all would take longer than the limit.

    Twice as many each time, and what is left in proportion to the last ones: a solver's steps may grow.
    """
    limit = case.limit if limit is None else limit
    count, before, seconds_before = 1, 0, 0.0
    while True:
        start = time.perf_counter()
        states, once = run(count)
        spent = time.perf_counter() - start - once
        each = max(0.0, spent - seconds_before) / (count - before)
        seconds = spent + each * (case.total - count)
        if count == case.total or (seconds > limit and spent > limit / 4):
            break
        before, seconds_before = count, spent
        count = case.total if seconds <= limit else min(case.total, 2 * count)
    if run.__qualname__.startswith(ONCE):
        seconds += once
    row = {"seconds": seconds, "estimated": count < case.total, "share": count / case.total}
    return row | ({} if states is None else {"error": case.error(states, kind)})


#: Of these, what they spend once belongs to the result: of training it is compilation.
ONCE = ("dense", "expm_multiply")


def measure_times(plan: dict) -> None:
    """Few output times and many, in turns: solved; solved and measured; the whole prediction with given features."""
    tell(begins="setting up")
    cases = {times: Case(plan | {"times": times}) for times in plan["counts"]}
    tell(ends="setting up", row={})
    runs = {f"{times}, solved": partial(case.solve, "rounds") for times, case in cases.items()}
    runs |= {f"{times}, measured": partial(measured, case, "rounds") for times, case in cases.items()}
    runs |= {f"{times}, predicted": partial(predicted, case, "rounds") for times, case in cases.items()}
    for name, run in runs.items():
        tell(begins=name)
        run()  # compiles
    seconds = dict.fromkeys(runs, math.inf)
    for _ in range(plan["repetitions"]):
        for name, run in runs.items():
            seconds[name] = min(seconds[name], best(run, 0.0, 0.0, 1))
    for name in runs:
        tell(ends=name, row={"seconds": seconds[name]})


def measure_figure(plan: dict) -> None:
    """Figure 2's runs with wider networks: predicted with their kernels, rounds and flow, and trained."""
    study = Study(FULL, lambda *_: None)
    for graph in plan["graphs"]:
        experiment: Experiment = study.experiment(width=plan["width"], depth=2, graph=graph)
        tell(begins=f"{graph}, predicted")
        start = time.perf_counter()
        predictions(experiment)
        first = time.perf_counter() - start
        row = {
            "seconds": best(lambda e=experiment: predictions(e), first, plan["limit"], 2),
            "first_call_seconds": first,
            "features_seconds": best(experiment.features, 0.0, 0.0, 1),
        }
        tell(ends=f"{graph}, predicted", row=row | {"parameters": int(experiment.initialise().size)})
        tell(begins=f"{graph}, trained")
        tell(ends=f"{graph}, trained", row=timed_training(experiment, plan["limit"]))


def timed_training(experiment: Experiment, limit: float) -> dict:
    """Seconds between the first record and the last, programs being compiled; stopped, and extended, at the limit."""
    stamps: list[tuple[int, float]] = []

    class Enough(Exception):
        pass

    def progress(k, _):
        stamps.append((k, time.perf_counter()))
        if k > 8 and stamps[-1][1] - stamps[0][1] > limit:
            raise Enough

    with suppress(Enough):
        train(experiment, progress=progress)
    (_, start), (reached, end) = stamps[0], stamps[-1]
    rounds, records = experiment.rounds, len(experiment.recorded)
    seconds = end - start
    if reached < rounds:  # what is left has more rounds to a record than the start
        record = seconds_of_record(stamps)
        each = (seconds - record * (len(stamps) - 1)) / reached
        seconds = each * rounds + record * (records - 1)
    return {"seconds": seconds, "estimated": reached < rounds, "share": reached / rounds}


def seconds_of_record(stamps: list[tuple[int, float]]) -> float:
    """What a record takes: stretches of unequal length between records tell it from the rounds."""
    rounds, seconds = np.diff(np.array(stamps), axis=0).T
    slope_and_start = np.polyfit(rounds, seconds, 1) if len(set(rounds)) > 1 else (0.0, 0.0)
    return max(0.0, float(slope_and_start[1]))


if __name__ == "__main__":
    main()
