"""Each agent's loss, predicted and trained: over a complete, a star and a cycle graph, and by three algorithms."""

from __future__ import annotations

import matplotlib.pyplot as plt

from ntkp2p.algorithms import ATC, CTA, DGD
from ntkp2p.figures.study import Drawn, Study, row_of_panels, same_limits
from ntkp2p.runs.comparison import SOURCES, Comparison
from ntkp2p.runs.plots import agent_bar, agent_curves, source_handles

#: Rounds in which the flow differs visibly from the rounds.
FIRST_ROUNDS = 8


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
    figure, (early, whole) = row_of_panels(2)
    trajectories = list(result.trajectories.values())
    agent_curves(trajectories, "local_loss", ax=early)
    early.set_xlim(-0.2, 8)
    early.set_title("first rounds")
    agent_curves(trajectories, "local_loss", ax=whole, legend=False)
    whole.set_title("whole run")
    figure.suptitle("Affine classifier, complete graph, DGD: loss of each agent")
    return figure, {"": result.dataset}


def figure2(study: Study, /) -> Drawn:
    """Loss of each agent: wide network, DGD over cycle, star and complete graph; the first rounds below."""
    results = {graph: network(study, graph=graph) for graph in ("cycle", "star", "complete")}
    figure, axes = plt.subplots(2, 3, figsize=(10.8, 6.2), layout="constrained", height_ratios=(5, 4))
    for (whole, early), (graph, result) in zip(axes.T, results.items(), strict=True):
        for ax in (whole, early):
            agent_curves(list(result.trajectories.values()), ax=ax, legend=False)
        whole.set_title(f"{graph} graph")
        first = result.dataset["local_loss"].sel(round=slice(0, FIRST_ROUNDS))
        early.set(xlim=(-0.1, FIRST_ROUNDS), ylim=(0.8 * float(first.min()), 1.2 * float(first.max())))
        early.set_title(f"{graph} graph, first rounds", fontsize=9)
    for row in axes:
        same_limits(row)
        for ax in row[1:]:
            ax.set_ylabel("")
    agent_bar(axes.flat, study.setting.agents)
    sources = source_handles(SOURCES)
    figure.legend(list(sources.values()), list(sources), loc="outside lower center", ncols=len(sources))
    figure.suptitle(f"Two hidden layers of {study.setting.width}, DGD: loss of each of {study.setting.agents} agents")
    return figure, {f"_{graph}": result.dataset for graph, result in results.items()}


def algorithms(study: Study, /) -> Drawn:
    """DGD, CTA and ATC side by side on the cycle."""
    results = {a.__name__: network(study, algorithm=a) for a in (DGD, CTA, ATC)}
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


def parameters(study: Study, /) -> Drawn:
    """Parameter trajectories: distance from the start, and consensus distance."""
    result = network(study)
    figure, axes = row_of_panels(2)
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
    figure, axes = row_of_panels(3)
    for ax, variable in zip(axes, ("local_loss", "global_loss", "test_accuracy"), strict=True):
        agent_curves(list(result.trajectories.values()), variable, ax=ax, legend=ax is axes[0])
    figure.suptitle(f"Ten-class MNIST, one class each: one hidden layer of {study.setting.width}, cycle graph, DGD")
    return figure, {"": result.dataset}


def network(study: Study, *, graph: str = "cycle", algorithm: type = DGD) -> Comparison:
    return study.run(
        f"network, {graph}, {algorithm.__name__}",
        width=study.setting.width,
        depth=2,
        graph=graph,
        algorithm=algorithm,
    )
