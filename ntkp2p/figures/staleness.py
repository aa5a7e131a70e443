"""The figures of unsynchronised agents: what their staleness costs, and from which step size on runs diverge.

Settings are ours: times are in units of the mean time that an agent's computation takes, μ = 1; data are made up. The
questions are those of Mitra and Ulukus, "Scale-robust timely asynchronous decentralized learning", arXiv 2404.19749.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ntkp2p import data as datasets
from ntkp2p.algorithms import LocalSGD
from ntkp2p.analysis.timeliness import timeliness
from ntkp2p.asynchrony import (
    AsynchronousGossip,
    Deterministic,
    Events,
    Exponential,
    staleness,
)
from ntkp2p.asynchrony.plots import raster
from ntkp2p.base.style import BLUE, LINES, ORANGE, VERMILLION
from ntkp2p.data import AgentData, Dataset
from ntkp2p.dynamics import linear_system
from ntkp2p.dynamics.mean_square import largest_mean_square_step_size
from ntkp2p.dynamics.step_size import largest_step_size
from ntkp2p.figures.capacity import CAPACITIES, COLOURS, MARKERS, SCHEMES
from ntkp2p.models import affine, mlp
from ntkp2p.runs.comparison import compare
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import predict
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.topology import metropolis

if TYPE_CHECKING:
    from ntkp2p.figures.study import Drawn, Study

WALL = "wall-clock time [mean computations]"
WALL_OF_FAST = "wall-clock time [mean computations of a fast agent]"
CONVERGED, DIVERGED = "converged", "diverged"
TRAINED = LINES["trained"] | {"linewidth": 2.8}
PREDICTED = LINES["rounds"]
EXPECTED = LINES["flow"] | {"linewidth": 1.3}


# --- what staleness costs ---

#: Scheme and law.
GOSSIPS = [("push", law) for law in CAPACITIES] + [("opportunistic", "λ ∝ n")]
#: As the legend calls them.
SPLITS = {"iid": "alike", "label": "sorted by target"}
POINTS = 61


def regression(study: Study, /) -> Drawn:
    """Linear and nonlinear regression over time, trained and predicted, for laws of capacity and numbers of agents."""
    setting = study.setting
    time = np.linspace(0, setting.regression_time, POINTS)
    axes_of: dict[str, list] = {
        "task": ["linear", "nonlinear"],
        "agents": list(setting.regression_agents),
        "split": list(SPLITS)[-setting.regression_splits :],
        "gossip": [_named(*pair) for pair in GOSSIPS[:: setting.regression_every]],
    }
    shape = tuple(map(len, axes_of.values()))
    losses = np.full((*shape, 3, len(time)), np.nan)
    for i, task in enumerate(axes_of["task"]):
        for (j, n), (k, by) in product(enumerate(axes_of["agents"]), enumerate(axes_of["split"])):
            data = regression_data(task, n, by)
            model = affine() if task == "linear" else mlp(width=setting.regression_width, depth=1)
            for m, (scheme, law) in enumerate(GOSSIPS[:: setting.regression_every]):
                name = f"{task} regression, {n} agents {SPLITS[by]}, {axes_of['gossip'][m]}"
                plan = AsynchronousGossip(
                    agents=n, update=Exponential(1.0), gossip=Exponential(CAPACITIES[law](n)), scheme=scheme
                )
                start = Experiment(
                    model=model, data=data, mixing=plan, algorithm=LocalSGD(0.3, steps=5), rounds=len(time)
                )
                losses[i, j, k, m] = _along(study, name, start, time, expected=task == "linear" and scheme == "push")
    found = xr.DataArray(
        losses,
        dims=(*axes_of, "source", "time"),
        coords=axes_of | {"source": ["trained", "rounds", "flow"], "time": time},
        name="global_loss",
    )
    return _draw_regression(found), {"": found.to_dataset()}


def regression_data(task: str, agents: int, by: str, /, *, samples: int = 5) -> AgentData:
    """Made-up data: targets of a nonlinear teacher, or of a linear one; five features and some noise."""
    data = datasets.load("regression", samples=samples * agents, features=5, noise=0.1)
    if task == "linear":
        rng = np.random.default_rng(0)
        slope, noise = rng.standard_normal((5, 1)) / np.sqrt(5), rng.standard_normal((data.samples, 1))
        data = Dataset(name="linear regression", inputs=data.inputs, targets=data.inputs @ slope + 0.1 * noise)
    return data.split(agents=agents, by=by)


def _named(scheme: str, law: str) -> str:
    return f"{SCHEMES[scheme]}, {law}"


def _along(study: Study, name: str, start: Experiment, time: np.ndarray, *, expected: bool) -> np.ndarray:
    """Mean global losses at some times: trained and predicted along one draw of events, and expected over all draws."""
    plan = start.mixing
    events = plan.simulate(duration=float(time[-1]), seed=1)
    reached = np.searchsorted(events.time, time, side="right")
    run = replace(start, mixing=events, rounds=len(events), record=np.unique(reached))
    features = run.features()
    trained = train(run, progress=lambda done, total: study.progress(name, done, total))
    predicted = predict(run, features=features)
    study.rows.append({"run": name} | {"linearisation": compare(trained, predicted).errors()["linearisation"]})
    curves = [t.global_loss.mean("agent").sel(round=reached).values for t in (trained, predicted)]
    mean = np.full(len(time), np.nan)
    if expected:
        interval = start.time(np.ones(1))[0]
        many = replace(start, rounds=int(np.ceil(time[-1] / interval)), record=4 * POINTS)
        flow = predict(many, time="flow", features=features)
        mean = np.interp(time, flow.time, flow.global_loss.mean("agent"))
    return np.stack([*curves, mean])


def _draw_regression(found: xr.DataArray) -> Figure:
    columns = [(int(n), by) for n in found["agents"].values for by in found["split"].values]
    figure, axes = plt.subplots(
        2, len(columns), figsize=(13.2, 6.6), sharex=True, sharey="row", layout="constrained", squeeze=False
    )
    for (i, task), (j, (n, by)) in product(enumerate(found["task"].values), enumerate(columns)):
        ax, part = axes[i, j], found.sel(task=task, agents=n, split=by)
        for m, gossip in enumerate(part["gossip"].values):
            scheme, law = next(pair for pair in GOSSIPS if _named(*pair) == gossip)
            face = COLOURS[law] if scheme == "push" else "white"
            look: dict[str, Any] = {"color": COLOURS[law], "marker": MARKERS[law], "markerfacecolor": face}
            trained, predicted, expected = part.isel(gossip=m)
            label = gossip if i == j == 0 else None
            ax.plot(trained["time"], trained, label=label, **(TRAINED | look), markersize=5, markevery=(4 + 3 * m, 15))
            ax.plot(predicted["time"], predicted, **PREDICTED)
            ax.plot(expected["time"], expected, **(EXPECTED | {"color": COLOURS[law], "zorder": 4}))
        ax.set_yscale("log")
        ax.set_title(f"{task}, {n} agents, data {SPLITS[by]}")
    axes[0, 0].plot([], [], label="predicted along the events", **PREDICTED)
    axes[0, 0].plot([], [], label="loss of the models expected over clocks", **(EXPECTED | {"color": "0.3"}))
    for row in axes:
        row[0].set_ylabel("global loss, mean of the agents")
    for ax in axes[-1]:
        ax.set_xlabel(WALL)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle("Asynchronous local SGD, 5 steps: trained (broad lines), one draw of events")
    return figure


# --- one run, looked at closely ---


def events(study: Study, /) -> Drawn:
    """Events and staleness in a run with stragglers and with late and lost messages."""
    plan = straggling(scheme="push", gossip=Exponential(1.0), transmission=0.4, absences=[(2, 4.0, 7.0)], cap=(1, 0.5))
    drawn = plan.simulate(duration=1200.0)
    counted = staleness(drawn, since=20.0)
    figure = plt.figure(figsize=(13.2, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    _draw_raster(figure.add_subplot(grid[:, :3]), drawn, plan, 10.0)
    _draw_histogram(figure.add_subplot(grid[0, 3:]), counted)
    ax = figure.add_subplot(grid[1, 3:])
    history = staleness(drawn, until=60.0)
    ax.plot(history.times, history.history, "-", color="0.2", linewidth=0.8)
    ax.axhline(counted.mean, color=VERMILLION, linestyle="--", linewidth=1)
    ax.set(xlabel=WALL_OF_FAST, ylabel="mean staleness\nof the pairs [updates]")
    distribution = xr.DataArray(counted.distribution, dims="staleness", name="share")
    series = xr.DataArray(history.history, coords={"time": history.times}, name="mean_staleness")
    study.rows.append({"run": "staleness of one run with stragglers", "mean": counted.mean})
    return figure, {"": drawn.to_dataset(), "_staleness": xr.merge([distribution, series])}


def straggling(**options: Any) -> AsynchronousGossip:
    """Eight agents of which the last two take five times as long to compute."""
    clocks = [Exponential(2.0, shift=0.5)] * 6 + [Deterministic(5.0)] * 2
    return AsynchronousGossip(agents=8, update=clocks, **options)


def _draw_raster(ax: Any, drawn: Events, plan: AsynchronousGossip, until: float) -> None:
    handles = raster(drawn.until(int(np.searchsorted(drawn.time, until))), ax=ax)
    for agent, leaves, returns in plan.absences:
        ax.fill_between([leaves, returns], agent - 0.28, agent + 0.28, color="0.85", zorder=0)
    handles.append(Patch(color="0.85", label="absent"))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.11), ncols=4, fontsize=8)
    names = [f"{agent}\nslow" if agent >= 6 else str(agent) for agent in range(plan.agents)]
    ax.set_yticks(range(plan.agents), names)
    ax.set(xlabel=WALL_OF_FAST, ylabel="agent", xlim=(0, until))


def _draw_histogram(ax: Any, counted: Any) -> None:
    ax.bar(np.arange(len(counted.distribution)), counted.distribution, width=0.9, color="0.6")
    ax.axvline(counted.mean, color=VERMILLION, linestyle="--", linewidth=1, label=f"mean {counted.mean:.2f}")
    high = counted.quantile(0.95)
    ax.axvline(high, color="black", linestyle=":", linewidth=1, label=f"95 % at most {high}")
    ax.set(xlabel="staleness [updates]", ylabel="share of time\nand pairs", xlim=(-0.7, counted.quantile(0.9995)))
    ax.legend(fontsize=8)


# --- stragglers ---


def stragglers(study: Study, /) -> Drawn:
    """Asynchronous beside synchronous local SGD with two slow agents, against time and against gradients computed."""
    setting = study.setting
    until = 3 * setting.regression_time
    plan = straggling(gossip=Exponential(4.0), transmission=0.1)
    drawn = plan.simulate(duration=until)
    ends = plan.synchronous_times(int(until))
    ends = ends[ends <= until]
    data = regression_data("nonlinear", plan.agents, "iid", samples=20)
    start = Experiment(
        model=mlp(width=setting.regression_width, depth=1),
        data=data,
        mixing=drawn,
        algorithm=LocalSGD(0.3, steps=5),
        rounds=len(drawn),
        record=120,
    )
    W = metropolis(nx.complete_graph(plan.agents))
    rounds = len(ends) - 1
    features, results = start.features(), {}
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.2), sharey=True, layout="constrained")
    for name, run, colour, marker in (
        ("asynchronous", start, BLUE, "o"),
        ("synchronous", replace(start, mixing=W, rounds=rounds, record=rounds + 1), ORANGE, "s"),
    ):
        trained = train(run, progress=lambda done, total, name=name: study.progress(name, done, total))
        predicted = predict(run, features=features)
        study.rows.append({"run": f"stragglers, {name}"} | _end(trained, predicted))
        joined = compare(trained, predicted).dataset
        times = ends[trained.dataset["round"]] if name == "synchronous" else trained.dataset["time"].values
        _draw_straggling(axes, joined, times, name, colour, marker)
        results[f"_{name}"] = joined.assign_coords(wall_clock_time=("round", times))
    axes[0].plot([], [], label="predicted", **PREDICTED)
    axes[0].set(yscale="log", xlabel=WALL_OF_FAST, ylabel="global loss: mean and range of the agents")
    axes[1].set(xlabel="gradients computed by all agents")
    axes[0].legend(fontsize=8)
    figure.suptitle("Two of eight agents take five times as long: local SGD of 5 steps, trained broad")
    return figure, results


def _end(trained: Any, predicted: Any) -> dict[str, float]:
    errors = compare(trained, predicted).errors()
    return {"linearisation": errors["linearisation"], "final loss": float(trained.global_loss[-1].mean())}


def _draw_straggling(axes: Any, joined: xr.Dataset, times: np.ndarray, name: str, colour: str, marker: str) -> None:
    losses = joined["global_loss"]
    across = times, joined["gradients"].sel(source="trained").sum("agent").values
    for ax, x in zip(axes, across, strict=True):
        own = losses.sel(source="trained")
        ax.fill_between(x, own.min("agent"), own.max("agent"), color=colour, alpha=0.25, linewidth=0, step="post")
        look: dict[str, Any] = TRAINED | {"color": colour, "marker": marker, "markersize": 5}
        look |= {"drawstyle": "steps-post"}  # models hold until the next event, or round
        ax.plot(x, own.mean("agent"), label=f"{name}, trained", markevery=max(1, len(x) // 10), **look)
        ax.plot(x, losses.sel(source="rounds").mean("agent"), **PREDICTED, drawstyle="steps-post")


# --- the edge of stability ---

#: Shares of the mean-square boundary at which runs are trained.
AROUND = (0.7, 1.3, 0.85, 1.15)


def boundary(study: Study, /) -> Drawn:
    """Runs on both sides of the predicted edge of stability, over the delay of updates, and their measured lateness.

    A single run may converge slightly above the mean-square limit, where rare draws make E‖s‖² grow.
    """
    setting = study.setting
    delays, seeds = np.arange(setting.boundary_delays), np.arange(setting.boundary_seeds)
    around = AROUND[: setting.boundary_runs]
    found = xr.Dataset(coords={"delay": delays, "share": list(around), "seed": seeds})
    edges, turned, late = [], [], []
    for delay in map(int, delays):
        # Growth per event falls with the delay.
        start = two_features(delay, (1 + delay) * setting.boundary_events)
        system = linear_system(start.algorithm, start.topology, start.features(), start.data)
        edge = largest_mean_square_step_size(system)
        edges.append((edge * system.curvature, largest_step_size(system) * system.curvature))
        runs = [
            replace(start, algorithm=LocalSGD(share * edge, delay=delay), seed=int(seed))
            for share, seed in product(around, seeds)
        ]
        turned.append([grown(study, run) for run in runs])
        late.append([_lateness(run) for run in runs])
    shape, dims = (len(delays), len(around), len(seeds)), ("delay", "share", "seed")
    found["mean_square_edge"], found["mean_edge"] = (("delay", list(values)) for values in zip(*edges, strict=True))
    found["textbook_edge"] = "delay", 2 * np.sin(np.pi / (2 * (2 * delays + 1)))
    found["grown"] = dims, np.reshape(turned, shape)
    for i, name in enumerate(("lateness", "usual_lateness", "margin")):
        found[name] = dims, np.array(late)[..., i].reshape(shape)
    study.rows += _agreement(found)
    return _draw_boundary(found), {"": found}


def two_features(delay: int, events: int, /) -> Experiment:
    """Three agents who fit a line to exact data: few states, and all losses have one minimiser."""
    inputs = np.random.default_rng(0).standard_normal((30, 1))
    line = Dataset(name="line", inputs=inputs, targets=inputs + 0.5)
    return Experiment(
        model=affine(),
        data=line.split(agents=3),
        mixing=AsynchronousGossip(agents=3, update=Exponential(1.0), gossip=Exponential(2.0)),
        algorithm=LocalSGD(0.1, delay=delay),
        rounds=events,
        record=2,
    )


def grown(study: Study, run: Experiment, /) -> float:
    """By which factor training takes the loss: log10; infinite where it leaves the finite numbers."""
    name = f"boundary, {run.algorithm!r}"
    try:
        losses = train(run, progress=lambda done, total: study.progress(name, done, total)).global_loss.mean("agent")
    except DivergedError:
        return float("inf")
    first, last = np.maximum(losses[[0, -1]], np.finfo(float).tiny)  # an exact fit leaves nothing
    return float(np.log10(last / first))


def _lateness(run: Experiment) -> tuple[float, float, float]:
    measured = timeliness(run).lateness["gradients"]
    return measured.mean, measured.usual, float(measured.margin.rounds)


def _agreement(found: xr.Dataset) -> list[dict[str, Any]]:
    diverged = found["grown"] > 0
    # A run that has moved by less than a thousandth or a thousandfold has not decided.
    decided = int((abs(found["grown"]) > 3).sum())
    rows = []
    predictions = {
        "mean-square boundary": found["share"] > 1,
        "boundary of the mean": found["share"] * found["mean_square_edge"] > found["mean_edge"],
        "textbook's boundary": found["share"] * found["mean_square_edge"] > found["textbook_edge"],
        "margin of measured lateness": found["lateness"] > found["margin"],
    }
    for name, beyond in predictions.items():
        right = int((beyond.broadcast_like(diverged) == diverged).sum())
        rows.append({"run": f"runs as the {name} says", "runs": diverged.size, "decided": decided, "right": right})
    return rows


def _draw_boundary(found: xr.Dataset) -> Figure:
    figure, (ax, beside) = plt.subplots(1, 2, figsize=(10.8, 4.6), layout="constrained")
    delays = found["delay"].values
    for name, line, label in (
        ("mean_square_edge", "-", "predicted, in the mean square"),
        ("mean_edge", "--", "predicted, in the mean"),
        ("textbook_edge", ":", r"textbook, all gradients $τ$ rounds late: $2\,\sin\,\frac{π}{2(2τ+1)}$"),
    ):
        ax.plot(delays, found[name], line, color="black", linewidth=1.2, label=label)
    step = (found["share"] * found["mean_square_edge"]).broadcast_like(found["grown"])
    # Draws of the same setting, and step sizes of the same margin, side by side.
    shift = 0.12 * (found["seed"] - found["seed"].mean())
    beside_it = 0.3 * (found["share"] - found["share"].min())
    diverged = (found["grown"] > 0).values
    for which, look, label in (
        (~diverged, {"marker": "o", "color": BLUE, "s": 26}, CONVERGED),
        (diverged, {"marker": "x", "color": VERMILLION, "s": 30, "linewidth": 1.4}, DIVERGED),
    ):
        delay = (found["delay"] + shift).broadcast_like(step).transpose(*step.dims).values[which]
        ax.scatter(delay, step.values[which], label=f"trained, {label}", zorder=3, **look)
        beside.scatter(
            (found["margin"] + beside_it).broadcast_like(step).transpose(*step.dims).values[which],
            found["lateness"].values[which],
            label=label,
            zorder=3,
            **look,
        )
    ax.set(
        yscale="log", xlabel="delay $τ$ of updates [own updates]", ylabel=r"step size $\times$ largest curvature, $η h$"
    )
    ax.set_xticks(delays)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8)
    ax.set_title("(a) step sizes around the edge of stability")
    _draw_margins(beside, found)
    figure.suptitle("Local SGD of three agents with two features each, memoryless clocks, delayed updates")
    return figure


def _draw_margins(ax: Any, found: xr.Dataset) -> None:
    most = float(found["lateness"].max()) + 1
    reach = max(most, float(found["margin"].max()) + 1)
    ax.plot([-1.5, reach], [-1.5, reach], "-", color="black", linewidth=1)
    ax.fill_between([-1.5, reach], -1.5, [-1.5, reach], color="0.88", zorder=0, label="inside the margin")
    ax.set(xlim=(-1.5, reach), ylim=(0, most))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        xlabel="delay margin of the synchronous rounds, as far as asked for [rounds]; −1: none",
        ylabel="measured mean lateness of gradients [rounds]",
    )
    ax.legend(fontsize=8, loc="upper left")
    ax.set_title("(b) the same runs by measured lateness")
