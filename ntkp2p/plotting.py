"""Plots of trajectories and comparisons: every agent's curve, predicted and trained told apart without colour."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from ntkp2p._names import lookup
from ntkp2p.measures import COUNTERS, STEADY_VARIABLES
from ntkp2p.trajectory import Trajectory

if TYPE_CHECKING:
    from ntkp2p.compare import Comparison
    from ntkp2p.stability import StabilityMap, StabilityReport
    from ntkp2p.sweep import Sweep

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}

#: How a source is drawn. Trained curves are broad and coloured by agent, predictions thin, dark, and on top.
LINES: dict[str, dict[str, Any]] = {
    "trained": {"linewidth": 3.2, "alpha": 0.55, "solid_capstyle": "round", "zorder": 1},
    "rounds": {"linewidth": 0.9, "color": "black", "linestyle": (0, (4, 2)), "zorder": 3},
    "flow": {"linewidth": 0.9, "color": "#b03030", "linestyle": (0, (1, 1.5)), "zorder": 2},
    "steady": {"linewidth": 0.9, "alpha": 0.8, "linestyle": (0, (6, 2, 1, 2)), "zorder": 2},
}
#: By how much a curve may grow over its start before it is cut off.
OFF_THE_CHART = 1e6
#: How dark the agents' bands are together where all of them overlap; the lines stay visible on it.
BAND = 0.4
#: Graphs of more agents are not drawn: nobody could read them.
LARGEST_GRAPH = 100
LABELS = {
    "trained": "trained",
    "rounds": "predicted, rounds",
    "flow": "predicted, flow",
    "steady": "predicted, steady state",
}


def agent_curves(
    trajectories: Sequence[Trajectory],
    variable: str = "local_loss",
    /,
    *,
    ax: Axes | None = None,
    against: str = "round",
    log: bool | None = None,
    legend: bool = True,
) -> Axes:
    """Every agent's curve of one variable against rounds, or what they took.

    Parameters
    ----------
    trajectories
        Of one experiment, from different sources.
    variable
        A name of `ntkp2p.measures.VARIABLES`, or a steady state's bias.
    ax
        Where to draw; by default new axes.
    against
        "round", "time", or a name of `ntkp2p.measures.COUNTERS`: all agents' together.
    log
        Whether the vertical axis is logarithmic; by default for losses.
    legend
        Whether to name the sources.

    Raises
    ------
    ValueError
        For an unknown variable, or one that these runs do not have.
    """
    label = lookup(STEADY_VARIABLES | COUNTERS, variable, "variable")
    for trajectory in trajectories:
        known = dict.fromkeys(map(str, trajectory.dataset.data_vars))
        lookup(known, variable, "variable of this run")
        lookup({"round": None, "time": None} | {name: None for name in COUNTERS if name in known}, against, "abscissa")
    with plt.rc_context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(5, 3.4), layout="constrained")[1]
        # A diverging run leaves the picture, and not the floating-point numbers of the plotting library.
        ceiling = OFF_THE_CHART * max(_first_size(t.dataset[variable].values) for t in trajectories)
        for trajectory in trajectories:
            _draw(ax, trajectory, variable, against, ceiling)
        averaged = [t for t in trajectories if f"{variable}_std" in t.dataset][:1]  # one is enough: those of both agree
        for trajectory in averaged:
            _draw_band(ax, trajectory, variable, against, ceiling)
        if variable.endswith("loss") if log is None else log:
            ax.set_yscale("log")
        ax.set_xlabel(_abscissa_label(trajectories[0], against))
        ax.set_ylabel(label)
        ax.margins(x=0.01)
        if against == "round" and not np.isinf(trajectories[0].dataset["round"][-1]):
            _time_above(ax, trajectories[0])
        _mark_unstable(ax, trajectories)
        if legend:
            band = [Patch(color="0.3", alpha=BAND, linewidth=0, label="± one standard deviation")] if averaged else []
            # What grows leaves the upper left free; there the legend goes, below the mark.
            place = {} if all(t.stable for t in trajectories) else {"loc": "upper left", "bbox_to_anchor": (0, 0.93)}
            ax.legend(handles=source_handles([t.source for t in trajectories]) + band, **place)
    return ax


def comparison(comparison: "Comparison", variables: Sequence[str], /) -> Figure:
    """One panel a variable, sharing a legend."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(variables), figsize=(4.2 * len(variables), 3.4), squeeze=False)
        figure.set_layout_engine("constrained", wspace=0.06)
        for i, (ax, variable) in enumerate(zip(axes[0], variables, strict=True)):
            agent_curves(list(comparison.trajectories.values()), variable, ax=ax, legend=i == 0)
    return figure


def weighted_graph(mixing: np.ndarray, graph: nx.Graph, /, *, ax: Axes) -> Axes:
    """A graph whose edges are as broad as their weights, and whose agents are as large as their self-weights.

    Edges of a directed graph are arrows, u → v as broad as W[v, u]; negative weights are dashed.
    """
    place = nx.get_node_attributes(graph, "pos") or _layout(graph)
    own, crowd = np.diagonal(mixing), min(1.0, 30 / len(graph))
    areas = (80 if crowd == 1 else 40) + 500 * crowd * abs(own)  # the smallest have room for their number
    for u, v in graph.edges:
        radii = np.sqrt(areas[[u, v]]) / 2
        _draw_edge(ax, (place[u], place[v]), float(mixing[v, u]), radii if graph.is_directed() else None)
    x, y = np.array([place[q] for q in sorted(graph)]).T
    styles = ["-" if weight >= 0 else (0, (1.2, 0.8)) for weight in own]
    ax.scatter(x, y, s=areas, color="white", edgecolor="black", linewidth=0.8, linestyle=styles, zorder=3)
    for q, at in enumerate(zip(x, y, strict=True)):
        ax.annotate(str(q), at, ha="center", va="center", fontsize=7 if crowd == 1 else 5, zorder=4)
    ax.margins(0.15)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def mixing(matrix: Any, eigenvalues: np.ndarray, /, *, full: bool = True) -> list[Axes]:
    """The eigenvalues of a mixing matrix in the unit disc, and its graph with the weights where it can be read.

    Parameters
    ----------
    matrix
        W, dense or sparse.
    eigenvalues
        Those that are known.
    full
        Whether they are all.
    """
    with plt.rc_context(STYLE):
        axes = list(plt.subplots(1, 2, figsize=(8, 4), layout="constrained")[1])
        unit_disc(eigenvalues, ax=axes[0], title="eigenvalues" if full else "eigenvalues, the extreme ones")
        size = matrix.shape[0]
        if size <= LARGEST_GRAPH:
            _draw_graph(np.asarray(matrix), axes[1])
        else:
            axes[1].text(0.5, 0.5, f"{size} agents are too many to draw", ha="center", transform=axes[1].transAxes)
            axes[1].set_axis_off()
    return axes


def unit_disc(eigenvalues: np.ndarray, /, *, ax: Axes, title: str = "", mixing: bool = True) -> Axes:
    """Eigenvalues in the complex plane, the unit circle, and the circle of the largest modulus.

    Of mixing the eigenvalue 1 is set apart. What lies outside of the unit circle is crossed.
    """
    values = np.asarray(eigenvalues, complex)
    one: np.ndarray = np.zeros(len(values), bool)
    if mixing and len(values):
        one[abs(values - 1).argmin()] = True
    largest = float(abs(values[~one]).max(initial=0.0))
    angle = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.9)
    ax.plot(largest * np.cos(angle), largest * np.sin(angle), color="0.5", linewidth=0.9, linestyle=(0, (4, 2)))
    ax.axhline(0, color="0.85", linewidth=0.6, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.6, zorder=0)
    outside = (abs(values) > 1 + 1e-6) & ~one
    for chosen, marker, colour in ((~outside & ~one, "o", "#2a6f97"), (outside, "X", "#b03030")):
        x, y = np.real(values[chosen]), np.imag(values[chosen])
        ax.plot(x, y, marker, markersize=5, color=colour, alpha=0.7, markeredgewidth=0)
    ax.plot(np.real(values[one]), np.imag(values[one]), "s", markersize=6, color="white", markeredgecolor="black")
    reach = 1.12 * max(1.0, largest)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title, ylabel="imaginary part")
    name = "second modulus" if mixing else "spectral radius"
    ax.set_xlabel(f"real part; dashed: {name} {largest if largest > 1e-12 else 0:.4g}")
    return ax


def _layout(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """Where the agents go: by their distances, or in a ring where some cannot be reached."""
    links = graph.to_undirected()
    return nx.kamada_kawai_layout(links) if nx.is_connected(links) else nx.circular_layout(links)


def _draw_edge(ax: Axes, ends: tuple[Any, Any], weight: float, radii: np.ndarray | None) -> None:
    """A line, or an arrow that keeps clear of agents of such radii."""
    width, style = 9 * abs(weight), "-" if weight >= 0 else (0, (1.2, 0.8))
    colour = "#2a6f97" if weight >= 0 else "#b03030"
    if radii is None:
        xs, ys = zip(*ends, strict=True)
        ax.plot(xs, ys, color="0.85", linewidth=0.8, zorder=1)
        ax.plot(xs, ys, color=colour, linewidth=width, linestyle=style, solid_capstyle="butt", zorder=2)
        return
    # Bent, so that both directions of a link are seen.
    arrow = {"arrowstyle": "-|>", "mutation_scale": 7 + width, "connectionstyle": "arc3,rad=0.12"}
    look = {"color": colour, "linewidth": max(0.4, width / 2), "linestyle": style}
    look |= {"shrinkA": radii[0] + 1, "shrinkB": radii[1] + 1}
    ax.annotate("", xy=tuple(ends[1]), xytext=tuple(ends[0]), arrowprops=arrow | look, zorder=2)


def _draw_graph(W: np.ndarray, ax: Axes) -> None:
    links = W - np.diag(np.diagonal(W))
    symmetric = np.allclose(W, W.T, rtol=0, atol=1e-8)
    graph = nx.from_numpy_array(links.T != 0, create_using=nx.Graph if symmetric else nx.DiGraph)
    weighted_graph(W, graph, ax=ax)
    signs = "; dashed: below 0" if W.min() < 0 else ""
    ax.set_title("width: weights; size: self-weights" + signs + ("" if symmetric else "\narrows: who sends to whom"))


def source_handles(sources: Sequence[str], /) -> list[Line2D]:
    """Legend entries of the sources, one each, whatever the number of agents."""
    styles: list[dict[str, Any]] = [{"color": "0.4"} | LINES[source] for source in sources]
    return [Line2D([], [], label=LABELS[source], **style) for source, style in zip(sources, styles, strict=True)]


def _first_size(values: np.ndarray) -> float:
    """The size of a measure where it first is not zero: at the start, or a round later for a distance."""
    sizes = np.max(np.nan_to_num(np.abs(values), posinf=0.0), axis=1)
    return float(sizes[np.argmax(sizes > 0)]) or 1.0


def _abscissae(trajectory: Trajectory, against: str) -> np.ndarray:
    values = trajectory.dataset[against]
    return (values.sum("agent") if "agent" in values.dims else values).values


def _abscissa_label(trajectory: Trajectory, against: str) -> str:
    wall = trajectory.dataset.attrs.get("clock") == "wall"
    times = {
        "round": "event $k$" if wall else "round $k$",
        "time": "wall-clock time $t$" if wall else "flow time $t = \\eta k$",
    }
    return times[against] if against in times else f"{COUNTERS[against]}, by all agents"


def _draw(ax: Axes, trajectory: Trajectory, variable: str, against: str, ceiling: float) -> None:
    values, rounds = trajectory.dataset[variable].values, _abscissae(trajectory, against)
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, values.shape[1]))
    style = LINES[trajectory.source]
    if values.shape[1] > 20:
        style = style | {"linewidth": style["linewidth"] / 2}
    if np.isinf(rounds[-1]):  # levels: nothing there depends on the round
        for agent, level in enumerate(values[-1]):
            ax.axhline(level, **({"color": colours[agent]} | style))
        return
    for agent, curve in enumerate(np.where(np.abs(values) <= ceiling, values, np.nan).T):
        ax.plot(rounds, curve, **({"color": colours[agent]} | style))


def _draw_band(ax: Axes, trajectory: Trajectory, variable: str, against: str, ceiling: float) -> None:
    """Every agent's mean ± one standard deviation."""
    dataset = trajectory.dataset
    mean, std = np.minimum(dataset[variable].values, ceiling), np.minimum(dataset[f"{variable}_std"].values, ceiling)
    # A skewed loss may deviate by more than its mean: its band ends at a tenth of that, for a logarithmic axis.
    lower, upper = np.maximum(mean - std, mean / 10), mean + std
    alpha = 1 - (1 - BAND) ** (1 / mean.shape[1])
    for low, high in zip(lower.T, upper.T, strict=True):
        ax.fill_between(_abscissae(trajectory, against), low, high, color="0.3", alpha=alpha, linewidth=0, zorder=0)


def _time_above(ax: Axes, trajectory: Trajectory) -> None:
    if ax.child_axes:
        return
    rounds, times = (trajectory.dataset[name].values for name in ("round", "time"))
    if trajectory.dataset.attrs.get("clock") == "wall":
        scales = (lambda k: _between(k, rounds, times), lambda t: _between(t, times, rounds))
    else:
        step_size = trajectory.dataset.attrs["step_size"]
        scales = (lambda k: k * step_size, lambda t: t / step_size)
    above = ax.secondary_xaxis("top", functions=scales)
    above.set_xlabel(_abscissa_label(trajectory, "time"), fontsize=8)
    above.tick_params(labelsize=7)


def _between(x: Any, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Piecewise linear, and beyond the ends at the mean slope, for an axis has margins."""
    slope = (values[-1] - values[0]) / (known[-1] - known[0])
    beyond = slope * (np.minimum(x - known[0], 0) + np.maximum(x - known[-1], 0))
    return np.interp(x, known, values) + beyond


def _mark_unstable(ax: Axes, trajectories: Sequence[Trajectory]) -> None:
    unstable = [LABELS[t.source] for t in trajectories if not t.stable]
    if unstable:
        ax.text(0.03, 0.97, "unstable: " + "; ".join(unstable), transform=ax.transAxes, va="top", color="#b03030")


def stability_report(report: "StabilityReport", /) -> Figure:
    """The spectrum of a round in the unit disc, and which agents its slowest modes are in."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2 if report.modes else 1, figsize=(8.4, 3.6), squeeze=False)
        figure.set_layout_engine("constrained", wspace=0.06)
        per = "a period's map" if len(getattr(report.experiment.mixing, "order", ())) > 1 else "a round"
        title = f"{len(report.eigenvalues)} eigenvalues of {per}"
        unit_disc(report.eigenvalues, ax=axes[0, 0], title=title, mixing=False)
        if report.modes:
            ax, patterns = axes[0, 1], np.array([np.real(mode.agents) for mode in report.modes])
            largest = np.abs(patterns).max()
            image = ax.imshow(patterns, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
            figure.colorbar(image, ax=ax, label="share in the agent")
            lasts = [f"{mode.rounds:.3g} rounds" if np.isfinite(mode.rounds) else "for ever" for mode in report.modes]
            values = [f"|λ| = {abs(mode.eigenvalue):.6g}" for mode in report.modes]
            ax.set_yticks(
                range(len(lasts)), [f"{v}\n{last}" for v, last in zip(values, lasts, strict=True)], fontsize=7
            )
            ax.set_xlabel("agent")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_title("slowest modes, by the rounds to 1/e")
    return figure


def stability_map(map: "StabilityMap", /, *, ax: Axes) -> Axes:
    """The spectral radius over step size and delay, or λ_min, with the exact and the textbook's boundary."""
    radius = map.radius
    name = str(radius.dims[0])
    across, up = radius["step_size"].values, radius[name].values
    colours = plt.get_cmap("Reds").with_extremes(under="white")
    image = ax.pcolormesh(
        across, up, radius.values - 1, cmap=colours, vmin=1e-6, vmax=0.5, shading="nearest", rasterized=True
    )
    exact: dict[str, Any] = {"linewidth": 1.6, "label": "largest stable step size"}
    textbook: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 2)), "label": "textbook's sufficient bound"}
    for bounds, style in ((map.limits, exact), (map.textbook, textbook)):
        if name.endswith("delay"):  # whole rounds: there is nothing between two rows
            ax.stairs(bounds, _edges(up), orientation="horizontal", baseline=None, color="black", **style)
        else:
            ax.plot(bounds, up, color="black", **style)
    if across.min() > 0 and across.max() / across.min() > 30:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(across.min(), across.max())
    ax.set_xlabel("step size η")
    ax.set_ylabel(MAP_LABELS[name])
    ax.figure.colorbar(image, ax=ax, label="unstable: spectral radius − 1", extend="max")
    ax.legend(frameon=True, framealpha=0.9, edgecolor="none")  # to be read on dark cells, too
    return ax


def _edges(rows: np.ndarray) -> np.ndarray:
    """Where the rows of a map meet, and where the first and the last one end."""
    gaps = np.diff(rows) if len(rows) > 1 else np.ones(1)
    return np.concatenate([[rows[0] - gaps[0] / 2], (rows[1:] + rows[:-1]) / 2, [rows[-1] + gaps[-1] / 2]])


MAP_LABELS = {
    "gradient_delay": "gradients' delay / rounds",
    "message_delay": "messages' delay / rounds",
    "smallest_eigenvalue": "$\\lambda_{\\min}(W)$",
}


#: More curves than this cannot be told apart; a map takes their place.
MOST_CURVES = 8
#: How the cells of a sweep are marked.
PREDICTED: dict[str, Any] = {"markersize": 4, "linewidth": 1}
TRAINED: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "linestyle": "none"}
FINAL_LOSS = "agents' mean global loss after the last round"
#: What fields are called on an axis, with their units; others are called as they are in a file.
FIELDS = {
    "algorithm.step_size": "step size η",
    "algorithm.gradient_delay": "gradients' delay / rounds",
    "algorithm.message_delay": "messages' delay / rounds",
    "batch_size": "batch size / samples",
    "data.samples": "training samples",
    "model.width": "width / units",
    "rounds": "run / rounds",
    "split.agents": "agents",
}


def sweep(sweep: "Sweep", /, *, ax: Axes | None = None) -> Axes:
    """The final loss over one swept field, a curve for each combination of the others, or a map of many.

    Raises
    ------
    ValueError
        If no cell has been computed.
    """
    table = sweep.table()
    if "global_loss" not in table:
        raise ValueError("no cell of this sweep has been computed: see its failures")
    across = next((name for name in sweep.settings if _is_numeric(table[name])), next(iter(sweep.settings)))
    others = [name for name in sweep.settings if name != across]
    named = table[others].map(_tick).agg(", ".join, axis=1) if others else table["file"].map(lambda _: "")
    curves = {str(name): rows for name, rows in table.groupby(named, sort=False)}
    with plt.rc_context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")[1]
        ax.set_xlabel(FIELDS.get(across, across))
        title = ", ".join(FIELDS.get(name, name) for name in others)
        if len(curves) > MOST_CURVES:
            _loss_map(ax, table, across, curves)
            ax.set_ylabel(title)
        else:
            _loss_curves(ax, table, across, curves)
            ax.set_ylabel(FINAL_LOSS)
            handles = _loss_handles(ax, table)
            ax.legend(handles=handles, title=title or None, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return ax


def _is_numeric(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _tick(value: Any) -> str:
    return f"{value:g}" if _is_numeric([value]) else str(value)


def _loss_curves(ax: Axes, table: Any, across: str, curves: dict[str, Any]) -> None:
    """Predictions are small marks, joined where numbers go across; trainings large hollow ones about them.

    What is unstable is crossed above the axes.
    """
    numeric, names = _is_numeric(table[across]), list(table[across].unique())
    ceiling = OFF_THE_CHART * table.loc[np.isfinite(table["global_loss"]), "global_loss"].min()
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(curves)))
    for i, ((name, rows), colour) in enumerate(zip(curves.items(), colours, strict=True)):
        rows = rows.sort_values(across) if numeric else rows
        x = rows[across].to_numpy(float) if numeric else np.array([names.index(value) for value in rows[across]])
        look: dict[str, Any] = {"marker": "osD^vP*X"[i], "color": colour}
        line = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))[i % 4] if numeric else "none"
        losses = rows["global_loss"].where(rows["global_loss"] <= ceiling)
        ax.plot(x, losses, **look, **PREDICTED, linestyle=line, label=name)
        if "trained_global_loss" in rows:
            losses = rows["trained_global_loss"].where(rows["trained_global_loss"] <= ceiling)
            ax.plot(x, losses, **look, **TRAINED, label="_")
        unstable = x[_unstable(rows)]
        if len(unstable):
            height = np.full(len(unstable), 1.02 + 0.04 * i)
            above: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False}
            ax.plot(unstable, height, "x", color=colour, label="_", **above)
    ax.set_yscale("log")
    if not numeric:
        ax.set_xticks(range(len(names)), [_tick(name) for name in names])
        ax.margins(x=0.15)
    elif table[across].min() > 0 and table[across].max() / table[across].min() > 30:
        ax.set_xscale("log")


def _loss_handles(ax: Axes, table: Any) -> list[Line2D]:
    """The curves by their names, and what small, large and crossed marks are."""
    handles = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    handles = handles if len(handles) > 1 else []
    grey: dict[str, Any] = {"marker": "o", "color": "0.3"}
    handles.append(Line2D([], [], **grey, **PREDICTED, linestyle="none", label="predicted"))
    if "trained_global_loss" in table:
        handles.append(Line2D([], [], **grey, **TRAINED, label="trained"))
    if _unstable(table).any():
        handles.append(Line2D([], [], marker="x", color="0.3", linestyle="none", label="unstable"))
    return handles


def _unstable(rows: Any) -> np.ndarray:
    """Which cells are: not those that failed, of which nothing is known."""
    return np.array([stable == False for stable in rows["stable"]])  # noqa: E712


def _loss_map(ax: Axes, table: Any, across: str, curves: dict[str, Any]) -> None:
    names = sorted(table[across].unique()) if _is_numeric(table[across]) else list(table[across].unique())
    losses = np.array([rows.set_index(across)["global_loss"].reindex(names) for rows in curves.values()], float)
    chosen = table.loc[~_unstable(table), "global_loss"]
    chosen = chosen if chosen.notna().any() else table["global_loss"]
    norm = LogNorm(chosen.min(), min(chosen.max(), OFF_THE_CHART * chosen.min()))
    colours = plt.get_cmap("viridis").with_extremes(bad="white")
    image = ax.pcolormesh(np.arange(len(names)), np.arange(len(curves)), losses, norm=norm, cmap=colours)
    ax.set_xticks(range(len(names)), [_tick(name) for name in names])
    ax.set_yticks(range(len(curves)), list(curves), fontsize=7)
    ax.figure.colorbar(image, ax=ax, label=FINAL_LOSS, extend="max")
    for row, rows in enumerate(curves.values()):
        for name in rows.loc[_unstable(rows), across]:
            ax.plot(names.index(name), row, "x", color="#b03030")
