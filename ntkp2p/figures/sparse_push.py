"""The figures of Sparse-Push: accuracy against bytes, predictions beside training, and what directed graphs lead to.

Settings are ours. The accuracy is that of every agent's own model on test images, their mean; the bytes are those that
an agent sends over the run, counted as in `ntkp2p.runs.communication`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ntkp2p import data as datasets
from ntkp2p.algorithms import DGD, Algorithm, PushSum, SkewCompensatedSparsePush, SparsePush, TopK
from ntkp2p.base.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION
from ntkp2p.models import mlp
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import predict
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.topology import graphs, push_weights, schedules

if TYPE_CHECKING:
    from ntkp2p.figures.study import Drawn, Study

#: By name: the algorithm for a step size, a momentum, a number of agents and of rounds.
Build = Callable[[float, Any, int, int], Algorithm]
ALGORITHMS: dict[str, Build] = {
    "push-sum": lambda eta, mu, agents, rounds: PushSum(eta, momentum=mu),
    "Sparse-Push 90 %": lambda eta, mu, agents, rounds: _sparse(eta, mu, 0.1, 0.2),
    "Sparse-Push 99 %": lambda eta, mu, agents, rounds: _sparse(eta, mu, 0.01, 0.04),
    "Sparse-Push 99.8 %": lambda eta, mu, agents, rounds: _sparse(eta, mu, 0.002, 0.01),
    "SCSP 99.8 %, 10 merges": lambda eta, mu, agents, rounds: _compensated(eta, mu, agents, rounds // 10),
    "SCSP 99.8 %, 1 merge": lambda eta, mu, agents, rounds: _compensated(eta, mu, agents, rounds),
}
MARKERS = dict(zip(ALGORITHMS, "osD^vP", strict=True))
COLOURS = dict(zip(ALGORITHMS, (BLACK, BLUE, SKY, ORANGE, VERMILLION, GREEN), strict=True))

GRAPHS: dict[str, Callable[[int, int, int], Any]] = {
    "directed ring": lambda agents, rounds, seed: push_weights(graphs.directed_ring(agents)),
    "one-peer exponential": lambda agents, rounds, seed: schedules.one_peer_exponential(agents),
    "exponential, 20 % of links fail": lambda agents, rounds, seed: schedules.failing_links(
        push_weights(graphs.directed_exponential(agents)), rounds, 0.2, seed=seed
    ),
}
SPLITS: dict[str, dict[str, Any]] = {"IID": {"by": "iid"}, "label-skewed, s = 0.8": {"by": "skew", "skew": 0.8}}


def _sparse(eta: float, mu: Any, keep: float, rate: float) -> SparsePush:
    return SparsePush(eta, TopK(keep), averaging_rate=rate, momentum=mu)


def _compensated(eta: float, mu: Any, agents: int, cycle: int) -> SkewCompensatedSparsePush:
    return SkewCompensatedSparsePush(
        eta,
        TopK(0.002),
        averaging_rate=0.01,
        momentum=mu,
        gradient_rounds=max(1, cycle - agents - 1),
        gossip_rounds=min(agents, cycle - 2),
    )


def accuracy(study: Study, /) -> Drawn:
    """Test accuracy against bytes, for graphs, splits, numbers of agents and seeds."""
    setting = study.setting
    axes: dict[str, list] = {
        "split": list(SPLITS),
        "graph": list(GRAPHS)[: setting.push_graphs],
        "agents": list(setting.push_agents),
        "algorithm": list(ALGORITHMS)[:: setting.push_every],
        "seed": list(range(setting.push_seeds)),
    }
    shape = [len(values) for values in axes.values()]
    records = np.linspace(0, setting.push_rounds, 7).astype(int)
    found = np.full((2, *shape, len(records)), np.nan)
    for at in product(*map(range, shape)):
        split, graph, agents, algorithm, seed = (axes[name][i] for name, i in zip(axes, at, strict=True))
        name = f"{algorithm}, {graph}, {agents} agents, {split}, seed {seed}"
        run = _run(study, split, graph, agents, algorithm, seed, records)
        trajectory = _trained(study, name, run)
        reached = len(trajectory["round"])
        for i, variable in enumerate(("test_accuracy", "bytes_sent")):
            found[(i, *at)][:reached] = trajectory[variable].mean("agent")
    dims = (*axes, "round")
    results = xr.Dataset({name: (dims, found[i]) for i, name in enumerate(("accuracy", "bytes"))})
    results = results.assign_coords(axes | {"round": records})
    study.rows += _table(results)
    return _draw(results), {"": results}


def _run(study: Study, split: str, graph: str, agents: int, algorithm: str, seed: int, records: Any) -> Experiment:
    setting = study.setting
    options: dict[str, Any] = {"samples": setting.push_samples, "test_samples": setting.push_tests, "seed": seed}
    if study.images is None:
        data = datasets.load("mnist", classes=tuple(range(10)), **options)
    else:
        data = datasets.load("idx", folder=study.images, **options)
    return Experiment(
        model=mlp(width=setting.push_width, depth=1),
        data=data.split(agents=agents, seed=seed, **SPLITS[split]),
        mixing=GRAPHS[graph](agents, setting.push_rounds, seed),
        algorithm=ALGORITHMS[algorithm](1.0, 0.9, agents, setting.push_rounds),
        rounds=setting.push_rounds,
        record=records,
        loss="cross_entropy",
        batch_size=32,
        precision="float32",
        seed=seed,
    )


def _trained(study: Study, name: str, run: Experiment) -> xr.Dataset:
    try:
        return train(run, progress=lambda done, total: study.progress(name, done, total)).dataset
    except DivergedError as error:
        return error.trajectory.dataset


def _table(results: xr.Dataset) -> list[dict[str, Any]]:
    """For each split and algorithm, over graphs and numbers of agents: bytes saved, and accuracy lost, by seed."""
    end = results.isel(round=-1)
    dense = end.sel(algorithm="push-sum")
    rows = []
    for split, algorithm in product(results["split"].values, results["algorithm"].values):
        own = end.sel(split=split, algorithm=algorithm)
        reduction = float((dense["bytes"].sel(split=split) / own["bytes"]).mean())
        accuracy = 100 * own["accuracy"]
        lost = 100 * dense["accuracy"].sel(split=split) - accuracy
        rows.append(
            {
                "run": f"{split}, {algorithm}",
                "fewer bytes": f"{reduction:.0f}×",
                "accuracy [%]": _mean_and_deviation(accuracy),
                "lost [%]": _mean_and_deviation(lost),
            }
        )
    return rows


def _mean_and_deviation(values: xr.DataArray) -> str:
    """Over seeds, of the mean over everything else."""
    of_seeds = values.mean([dim for dim in values.dims if dim != "seed"])
    spread = f" ± {float(of_seeds.std(ddof=1)):.1f}" if of_seeds.size > 1 else ""
    return f"{float(of_seeds.mean()):.1f}{spread}"


def _draw(results: xr.Dataset) -> Figure:
    splits, names = results["split"].values, results["graph"].values
    figure, axes = plt.subplots(
        len(splits),
        len(names),
        figsize=(0.4 + 3.3 * len(names), 3.1 * len(splits)),
        sharex=True,
        sharey="row",
        layout="constrained",
        squeeze=False,
    )
    for row, split in zip(axes, splits, strict=True):
        for ax, graph in zip(row, names, strict=True):
            _panel(ax, results.sel(split=split, graph=graph))
            ax.set_title(f"{graph}\n{split}" if split == splits[0] else split)
        row[0].set_ylabel("test accuracy, mean of the agents")
    for ax in axes[-1]:
        ax.set_xlabel("bytes sent by an agent")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _panel(ax: Any, results: xr.Dataset) -> None:
    sizes = results["agents"].values
    for algorithm in results["algorithm"].values:
        own = results.sel(algorithm=algorithm)
        colour, marker = COLOURS[algorithm], MARKERS[algorithm]
        for size, face in zip(sizes, (colour, "white"), strict=False):
            accuracy, sent = own["accuracy"].sel(agents=size), own["bytes"].sel(agents=size).mean("seed")
            mean, spread = accuracy.mean("seed"), accuracy.std("seed", ddof=1 if accuracy.sizes["seed"] > 1 else 0)
            ax.plot(sent[1:], mean[1:], "-", color=colour, linewidth=0.8, alpha=0.6, zorder=1)
            ax.errorbar(
                sent[-1:],
                mean[-1:],
                yerr=spread[-1:],
                color=colour,
                linestyle="-",
                marker=marker,
                markerfacecolor=face,
                markersize=6,
                capsize=2,
                linewidth=1,
                zorder=2,
                label=algorithm if size == sizes[0] else None,
            )
    ax.set_xscale("log")
    ax.grid(alpha=0.2)


def predicted(study: Study, /) -> Drawn:
    """Losses and consensus distances of the same algorithms in the wide regime, predicted beside training."""
    setting = study.setting
    agents, rounds = setting.push_agents[0], setting.rounds
    settings: dict[str, Any] = {"width": setting.width, "depth": 1, "agents": agents, "samples": setting.samples}
    start, features = study.experiment(**settings), study.features(**settings)
    start = replace(start, mixing=push_weights(graphs.directed_ring(agents)), rounds=rounds)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    results = {}
    for name, build in list(ALGORITHMS.items())[:: setting.push_every]:
        result = study.compared(
            f"directed ring, {name}", replace(start, algorithm=build(0.4, None, agents, rounds)), lambda: features
        )
        for ax, variable in zip(axes, ("global_loss", "consensus_distance"), strict=True):
            trained, predicted = (t.dataset[variable].mean("agent") for t in result.trajectories.values())
            ax.plot(trained["round"], trained, "-", color=COLOURS[name], linewidth=4, alpha=0.5, label=name)
            ax.plot(predicted["round"], predicted, color="black", linewidth=1, linestyle="--")
        results["_" + name.replace(" ", "_").replace(",", "").replace("%", "").replace(".", "_")] = result.dataset
    for ax, label in zip(
        axes, ("global loss, mean of the agents", "consensus distance, mean of the agents"), strict=True
    ):
        ax.set_xlabel("round $k$")
        ax.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[1].plot([], [], "k--", linewidth=1, label="predicted")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(
        f"Directed ring of {agents}, width {setting.width}; trained: broad, predicted (mean field of top-k): dashed"
    )
    return figure, results


def directed(study: Study, /) -> Drawn:
    """On a lopsided directed graph DGD goes to the Perron-weighted solution, and push-sum to the average."""
    from ntkp2p.figures.study import few_inputs

    start = replace(few_inputs(study), rounds=30_000)
    agents = start.agents
    graph = nx.DiGraph([(i, (i + 1) % agents) for i in range(agents)] + [(0, 2), (1, 0)])
    P = push_weights(graph)
    W = P.T / P.T.sum(axis=1, keepdims=True)
    runs = {"DGD, row-stochastic $W$": (DGD(0.05), W), "push-sum, column-stochastic $P$": (PushSum(0.05), P)}
    figure, ax = plt.subplots(figsize=(6.2, 4.0), layout="constrained")
    optimum, weighted = _minima(start, W)
    results = {}
    records = np.unique(np.geomspace(1, start.rounds, 60).astype(int))
    for (name, (algorithm, mixing)), colour in zip(runs.items(), (ORANGE, BLUE), strict=True):
        run = replace(start, mixing=mixing, algorithm=algorithm, record=records)
        trained, found = train(run), predict(run)
        for trajectory, style in (
            (trained, {"linewidth": 4, "alpha": 0.45, "linestyle": "-", "color": colour}),
            (found, {"linewidth": 0.9, "color": "black", "linestyle": "--"}),
        ):
            for q in range(agents):
                above = trajectory.global_loss.isel(agent=q) - optimum
                ax.loglog(
                    above["round"][1:], above[1:], label=name if trajectory is trained and q == 0 else None, **style
                )
        results[f"_{algorithm.name}"] = xr.concat([trained.dataset, found.dataset], dim="source", combine_attrs="drop")
    ax.axhline(weighted - optimum, color="black", linewidth=0.8, linestyle=":")
    ax.text(records[1], (weighted - optimum) * 1.08, r"minimiser of $\sum_q \pi_q L_q$", fontsize=8, va="bottom")
    ax.plot([], [], "k--", linewidth=0.9, label="predicted")
    ax.set_xlabel("round $k$")
    ax.set_ylabel(r"global loss above its minimum, $L(\theta_q) - \min L$")
    ax.legend(fontsize=8)
    ax.set_title(f"A directed graph of {agents} agents, each one's loss")
    return figure, results


def _minima(run: Experiment, W: np.ndarray) -> tuple[float, float]:
    """min L, and L where Σ_q π_q L_q is least, π W = π, for a linear model."""
    values, vectors = np.linalg.eig(W.T)
    perron = np.abs(np.real(vectors[:, np.argmin(np.abs(values - 1))]))
    features, data = run.features(), run.data
    errors = features.initial - data.targets

    def loss(weights: np.ndarray) -> float:
        share = np.sqrt(weights / weights.sum())[data.owner, None] / np.sqrt(data.sizes[data.owner])[:, None]
        z = -np.linalg.lstsq(share * features.matrix, share * errors)[0]
        even = 1 / (data.agents * data.sizes[data.owner])
        return float(even @ np.sum((errors + features.matrix @ z) ** 2, axis=1) / 2)

    return loss(np.ones(data.agents)), loss(perron)
