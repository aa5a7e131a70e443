"""Pictures of all results: agents told apart where they are few, summed up where they are many, sources by their lines.

The look is one style sheet, `STYLE`, for `matplotlib.pyplot.style.use`; every function draws within it and returns its
axes. Sources differ in the width and the dash of their lines and in what fills their bands, and not in colour alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ntkp2p._names import lookup
from ntkp2p.asynchrony import AsynchronousGossip, Events, Kind
from ntkp2p.asynchrony.events import AVERAGES
from ntkp2p.data import AgentData
from ntkp2p.measures import COUNTERS, STEADY_VARIABLES
from ntkp2p.topology import Schedule
from ntkp2p.trajectory import Trajectory

if TYPE_CHECKING:
    from ntkp2p.communication import Communication
    from ntkp2p.compare import Comparison
    from ntkp2p.dynamics import LinearSystem
    from ntkp2p.experiment import Experiment
    from ntkp2p.mixings import MixingComparison
    from ntkp2p.stability import StabilityMap, StabilityReport
    from ntkp2p.sweep import Sweep
    from ntkp2p.timeliness import Timeliness

#: The style sheet of all plots: `plt.style.use(STYLE)`, or by its name "ntkp2p.ntkp2p".
STYLE = Path(__file__).with_name("ntkp2p.mplstyle")
#: Its colours, which colour-blind readers tell apart: Okabe and Ito's.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK = matplotlib.rc_params_from_file(STYLE, use_default_template=False)[
    "axes.prop_cycle"
].by_key()["color"]
#: The agent at the lower end of a range, and at the upper one.
LOWEST, HIGHEST = BLUE, GREEN
#: What comes in an order, agents or classes, from dark to light in grey, too.
ORDERED = "viridis"
#: Lines beside the matter: axes, zeros, links under their weights.
FAINT: dict[str, Any] = {"color": "0.85", "linewidth": 0.6, "linestyle": "-"}
DASHED, DOTTED = (0, (4, 2)), (0, (1.2, 0.8))

#: How a source is drawn. Trained curves are broad and coloured by agent, predictions thin, dark, and on top.
LINES: dict[str, dict[str, Any]] = {
    "trained": {"linewidth": 3.2, "alpha": 0.55, "linestyle": "-", "solid_capstyle": "round", "zorder": 1},
    "rounds": {"linewidth": 0.9, "color": "black", "linestyle": DASHED, "zorder": 3},
    "flow": {"linewidth": 0.9, "color": VERMILLION, "linestyle": (0, (1, 1.5)), "zorder": 2},
    "steady": {"linewidth": 0.9, "alpha": 0.8, "linestyle": (0, (6, 2, 1, 2)), "zorder": 2},
}
#: The same of a range over many agents: filled, hatched or outlined.
RANGES: dict[str, dict[str, Any]] = {
    "trained": {"facecolor": "0.85", "edgecolor": "none", "zorder": 0},
    "rounds": {"facecolor": "none", "edgecolor": "0.45", "hatch": "////", "linewidth": 0.6, "zorder": 0.5},
    "flow": {"facecolor": "none", "edgecolor": VERMILLION, "linestyle": ":", "linewidth": 0.9, "zorder": 0.6},
    "steady": {"facecolor": "none", "edgecolor": "0.45", "hatch": "....", "linewidth": 0.6, "zorder": 0.5},
}
#: Up to so many agents each has a curve; of more there are the mean, the range, and the two at its ends.
FEW = 12
#: By how much a curve may grow over its start before it is cut off.
OFF_THE_CHART = 1e6
#: How dark the agents' bands are together where all of them overlap; the lines stay visible on it.
BAND = 0.4
#: Graphs of more agents, or of more links, are not drawn: nobody could read them.
LARGEST_GRAPH, MOST_LINKS = 100, 1500
#: Up to so many events each is drawn; of more the updates are counted.
MOST_EVENTS = 400
LABELS = {
    "trained": "trained",
    "rounds": "predicted, rounds",
    "flow": "predicted, flow",
    "steady": "predicted, steady state",
}

# --- agents' curves ---


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

    Of more than 12 agents there are, for each source, the mean, the range from the lowest to the highest, and the two
    agents that are at its ends in the last finite round of the first trajectory, each by its number.

    Parameters
    ----------
    trajectories
        Of one experiment, from different sources. The first one's curves have the agents' colours.
    variable
        A name of `ntkp2p.measures.VARIABLES`, or a steady state's bias.
    ax
        Where to draw; by default new axes.
    against
        "round", "time", or a name of `ntkp2p.measures.COUNTERS`: all agents' together.
    log
        Whether the vertical axis is logarithmic; by default for losses.
    legend
        Whether to name the sources and the agents.

    Returns
    -------
    Axes

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
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(5, 3.4), layout="constrained")[1]
        # A diverging run leaves the picture, and not the floating-point numbers of the plotting library.
        ceiling = OFF_THE_CHART * max(_first_size(t.dataset[variable].values) for t in trajectories)
        curves = [_curves(t, variable, against, ceiling, ax) for t in trajectories]
        few = curves[0].values.shape[1] <= FEW
        handles = (_draw_each if few else _draw_range)(ax, curves)
        averaged = [t for t in trajectories if f"{variable}_std" in t.dataset][:1]  # one is enough: those of both agree
        for trajectory in averaged:
            handles |= _draw_band(ax, trajectory, variable, against, ceiling)
        if variable.endswith("loss") if log is None else log:
            ax.set_yscale("log")
        ax.set_xlabel(_abscissa_label(trajectories[0], against))
        ax.set_ylabel(label)
        ax.margins(x=0.01)
        if against == "round" and not np.isinf(trajectories[0].dataset["round"][-1]):
            _time_above(ax, trajectories[0])
        _mark_unstable(ax, trajectories)
        if legend:
            # What grows leaves the upper left free; there the legend goes, below the mark. A range leaves nothing free.
            place = {} if all(t.stable for t in trajectories) else {"loc": "upper left", "bbox_to_anchor": (0, 0.93)}
            place = place if few else {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
            beside = {_SideBySide: HandlerTuple(ndivide=None, pad=0)}
            # To be read on curves, too.
            frame = {"frameon": True, "framealpha": 0.8, "edgecolor": "none", "fontsize": 8}
            ax.legend(list(handles.values()), list(handles), handler_map=beside, **frame, **place)
    return ax


class _Curves(NamedTuple):
    """A source's values (rounds, agents), how far they stay on the chart, and where they are drawn."""

    source: str
    across: np.ndarray
    values: np.ndarray
    ceiling: float
    place: dict[str, Any]

    def visible(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.abs(values) <= self.ceiling, values, np.nan)


class _SideBySide(tuple):
    """Handles that share a place in the legend; those of a plain tuple lie on one another."""


def _curves(trajectory: Trajectory, variable: str, against: str, ceiling: float, ax: Axes) -> _Curves:
    values, across = trajectory.dataset[variable].values, _abscissae(trajectory, against)
    if not np.isinf(across[-1]):
        return _Curves(trajectory.source, across, values, ceiling, {})
    # Levels: nothing there depends on the round, so that they go from one side of the axes to the other.
    levels = np.repeat(values[-1:], 2, axis=0)
    return _Curves(trajectory.source, np.array([0, 1]), levels, np.inf, {"transform": ax.get_yaxis_transform()})


def _draw_each(ax: Axes, found: Sequence[_Curves]) -> dict[str, Any]:
    """A curve for each agent; returns the legend's handles by their labels."""
    agents = found[0].values.shape[1]
    colours = plt.get_cmap(ORDERED)(np.linspace(0.05, 0.9, agents))
    for curves in found:
        style = LINES[curves.source]
        if curves is found[0] and "color" in style:  # with no training to carry the agents' colours, a prediction does
            style = {name: value for name, value in style.items() if name != "color"} | {"linewidth": 1.4}
        for colour, values in zip(colours, curves.visible(curves.values).T, strict=True):
            ax.plot(curves.across, values, **({"color": colour} | style), **curves.place)
    handles: dict[str, Any] = source_handles([curves.source for curves in found])
    if agents > 1:
        look = {"linewidth": 4, "solid_capstyle": "butt", "alpha": LINES[found[0].source].get("alpha")}
        ramp = (Line2D([], [], color=colour, **look) for colour in colours)
        handles[f"agents 0 to {agents - 1}"] = _SideBySide(ramp)
    return handles


def _draw_range(ax: Axes, found: Sequence[_Curves]) -> dict[str, Any]:
    """The mean, the range and the agents at its ends; returns the legend's handles by their labels."""
    ends, handles = _agents_at_the_ends(found[0]), {}
    for curves in found:
        line: dict[str, Any] = {"color": "0.35"} | LINES[curves.source]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, low, high = (curves.visible(of(curves.values, axis=1)) for of in (np.mean, np.min, np.max))
        ax.fill_between(curves.across, low, high, **RANGES[curves.source], **curves.place)
        ax.plot(curves.across, mean, **line, **curves.place)
        handles[LABELS[curves.source]] = (Patch(**RANGES[curves.source]), Line2D([], [], **line))
        for agent, colour in ends.items():
            own = curves.visible(curves.values[:, agent])
            ax.plot(curves.across, own, **(line | {"color": colour}), **curves.place)
            if curves is found[0]:
                _label_end(ax, curves, own, f"agent {agent}", colour, high=colour == HIGHEST)
    means = f"mean and range of {found[0].values.shape[1]} agents"
    handles[means] = (Patch(facecolor="0.92", edgecolor="0.45", linewidth=0.6), Line2D([], [], color="0.35"))
    if ends:
        lines = (Line2D([], [], color=colour, linewidth=2) for colour in ends.values())
        handles["lowest and highest at the end"] = _SideBySide(lines)
    return handles


def _agents_at_the_ends(curves: _Curves) -> dict[int, str]:
    """The lowest and the highest agent of the last finite round, with their colours; none without such a round."""
    shown = curves.visible(curves.values)
    finite = np.flatnonzero(np.isfinite(shown).all(axis=1))
    if not finite.size:
        return {}
    last = shown[finite[-1]]
    return {int(last.argmin()): LOWEST, int(last.argmax()): HIGHEST}


def _label_end(ax: Axes, curves: _Curves, own: np.ndarray, label: str, colour: str, *, high: bool) -> None:
    """A name beside the last visible point of a curve, above what is lower and below what is higher."""
    last = np.flatnonzero(np.isfinite(own))[-1]
    place: dict[str, Any] = {"xycoords": curves.place.get("transform", "data"), "textcoords": "offset points"}
    place |= {"va": "bottom" if high else "top", "fontsize": 8, "color": colour}
    ax.annotate(label, (curves.across[last], own[last]), (4, 0), **place)


def source_handles(sources: Sequence[str], /) -> dict[str, Any]:
    """A legend's handles of the sources by their labels, one each, whatever the number of agents.

    Parameters
    ----------
    sources
        Keys of `LINES`.
    """
    styles: list[dict[str, Any]] = [{"color": "0.4"} | LINES[source] for source in sources]
    return {LABELS[source]: Line2D([], [], **style) for source, style in zip(sources, styles, strict=True)}


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


def _draw_band(ax: Axes, trajectory: Trajectory, variable: str, against: str, ceiling: float) -> dict[str, Any]:
    """Mean ± one standard deviation of every agent, or of many their hull; returns the legend's handle."""
    dataset = trajectory.dataset
    mean, std = np.minimum(dataset[variable].values, ceiling), np.minimum(dataset[f"{variable}_std"].values, ceiling)
    # A skewed loss may deviate by more than its mean: its band ends at a tenth of that, for a logarithmic axis.
    lower, upper = np.maximum(mean - std, mean / 10), mean + std
    if mean.shape[1] > FEW:
        lower, upper = lower.min(axis=1, keepdims=True), upper.max(axis=1, keepdims=True)
    alpha = (1 - (1 - BAND) ** (1 / mean.shape[1])) if mean.shape[1] <= FEW else BAND / 3
    for low, high in zip(lower.T, upper.T, strict=True):
        ax.fill_between(_abscissae(trajectory, against), low, high, color="0.3", alpha=alpha, linewidth=0, zorder=0)
    return {"± one standard deviation": Patch(color="0.3", alpha=max(alpha, BAND / 3), linewidth=0)}


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
        ax.text(0.03, 0.97, "unstable: " + "; ".join(unstable), transform=ax.transAxes, va="top", color=VERMILLION)


def comparison(comparison: "Comparison", variables: Sequence[str], /) -> list[Axes]:
    """One panel a variable, sharing a legend.

    Parameters
    ----------
    comparison
        What `ntkp2p.compare` returns.
    variables
        Names of `ntkp2p.measures.VARIABLES`.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(variables), figsize=(4.2 * len(variables), 3.4), squeeze=False)
        figure.set_layout_engine("constrained", wspace=0.06)
        for i, (ax, variable) in enumerate(zip(axes[0], variables, strict=True)):
            agent_curves(list(comparison.trajectories.values()), variable, ax=ax, legend=i == 0)
    return list(axes[0])


# --- graphs and spectra ---


def weighted_graph(mixing: np.ndarray | None, graph: nx.Graph, /, *, ax: Axes) -> Axes:
    """A graph whose edges are as broad as their weights, and whose agents are as large as their self-weights.

    Edges of a directed graph are arrows, u → v as broad as W[v, u]; negative weights are dashed.

    Parameters
    ----------
    mixing
        W, shape (Q, Q), with rows in the graph's own node order; None for links of one width and agents of one size.
    graph
        Any networkx graph, drawn at its attribute "pos" if it has one.
    ax
        Where to draw; its lines and ticks are taken away.
    """
    place = nx.get_node_attributes(graph, "pos") or _layout(graph)
    row = {agent: q for q, agent in enumerate(graph)}
    W = _alike(graph) if mixing is None else mixing
    crowd = min(1.0, 30 / len(graph))
    own = np.diagonal(W)
    areas = (80 + 500 * abs(own)) * crowd**2  # the smallest have room for their number
    for u, v in graph.edges:
        ends = [row[u], row[v]]
        radii = np.sqrt(areas[ends]) / 2
        _draw_edge(ax, (place[u], place[v]), float(W[ends[1], ends[0]]), radii if graph.is_directed() else None)
    x, y = np.array([place[agent] for agent in graph]).T
    styles = ["-" if weight >= 0 else DOTTED for weight in own]
    ax.scatter(x, y, s=areas, color="white", edgecolor="black", linewidth=0.8, linestyle=styles, zorder=3)
    for agent, at in zip(graph, zip(x, y, strict=True), strict=True):
        ax.annotate(str(agent), at, ha="center", va="center", fontsize=np.clip(8 * crowd, 3.5, 7), zorder=4)
    ax.margins(0.15)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def graph(graph: nx.Graph, mixing: np.ndarray | None = None, /, *, ax: Axes | None = None) -> Axes:
    """A graph, with weights if there are some, or a note where it is too large to be read.

    Parameters
    ----------
    graph, mixing
        As for `weighted_graph`.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(4, 4), layout="constrained")[1]
        if len(graph) > LARGEST_GRAPH:
            return _note(ax, f"{len(graph)} agents are too many to draw")
        if graph.number_of_edges() > MOST_LINKS:
            return _note(ax, f"{graph.number_of_edges()} links are too many to draw")
        return weighted_graph(mixing, graph, ax=ax)


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
    with plt.style.context(STYLE):
        axes = list(plt.subplots(1, 2, figsize=(8, 4), layout="constrained")[1])
        unit_disc(eigenvalues, ax=axes[0], title="eigenvalues" if full else "eigenvalues, the extreme ones")
        _draw_mixing(matrix, axes[1])
    return axes


def unit_disc(eigenvalues: np.ndarray, /, *, ax: Axes, title: str = "", mixing: bool = True) -> Axes:
    """Eigenvalues in the complex plane, the unit circle, and the circle of the largest modulus.

    Parameters
    ----------
    eigenvalues
        Of any number, complex or real. What lies outside of the unit circle is crossed.
    ax
        Where to draw.
    title
        Of the axes.
    mixing
        Whether they are of mixing, of which the eigenvalue 1 is set apart.
    """
    values = np.asarray(eigenvalues, complex)
    one: np.ndarray = np.zeros(len(values), bool)
    if mixing and len(values):
        one[abs(values - 1).argmin()] = True
    largest = float(abs(values[~one]).max(initial=0.0))
    angle = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.9, linestyle="-")
    ax.plot(largest * np.cos(angle), largest * np.sin(angle), color="0.5", linewidth=0.9, linestyle=DASHED)
    ax.axhline(0, **FAINT, zorder=0)
    ax.axvline(0, **FAINT, zorder=0)
    outside = (abs(values) > 1 + 1e-6) & ~one
    for chosen, marker, colour in ((~outside & ~one, "o", BLUE), (outside, "X", VERMILLION)):
        x, y = np.real(values[chosen]), np.imag(values[chosen])
        ax.plot(x, y, marker, markersize=5, color=colour, alpha=0.7, markeredgewidth=0)
    ax.plot(np.real(values[one]), np.imag(values[one]), "s", markersize=6, color="white", markeredgecolor="black")
    reach = 1.12 * max(1.0, largest)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title, ylabel="imaginary part")
    name = "second modulus" if mixing else "spectral radius"
    ax.set_xlabel(f"real part; dashed: {name} {largest if largest > 1e-12 else 0:.6g}")
    return ax


def system(system: "LinearSystem", /, *, ax: Axes | None = None) -> Axes:
    """The eigenvalues of a round, or of a period's map, in the unit disc: of a large system the extreme ones.

    Parameters
    ----------
    system
        What `ntkp2p.linear_system` returns.
    ax
        Where to draw; by default new axes.
    """
    from ntkp2p.dynamics.stability import eigenvalues

    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(4, 4), layout="constrained")[1]
        values = eigenvalues(system)
        if not len(values):
            return _note(ax, "rounds that do not repeat themselves have no eigenvalues")
        of = "a period's map" if system.lasting.varying else "a round"
        count = f"{len(values)} extreme" if len(values) < system.lasting.size else f"{len(values)}"
        return unit_disc(values, ax=ax, title=f"{count} eigenvalues of {of}", mixing=False)


def _layout(graph: nx.Graph) -> dict[Any, np.ndarray]:
    """Where the agents go: by their distances, or in a ring where some cannot be reached."""
    links = graph.to_undirected()
    return nx.kamada_kawai_layout(links) if nx.is_connected(links) else nx.circular_layout(links)


def _alike(graph: nx.Graph) -> np.ndarray:
    """Weights that draw all links, and all agents, alike."""
    return np.full((len(graph), len(graph)), 0.15)


def _draw_edge(ax: Axes, ends: tuple[Any, Any], weight: float, radii: np.ndarray | None) -> None:
    """A line, or an arrow that keeps clear of agents of such radii."""
    width, style = 9 * abs(weight), "-" if weight >= 0 else DOTTED
    colour = BLUE if weight >= 0 else VERMILLION
    if radii is None:
        xs, ys = zip(*ends, strict=True)
        ax.plot(xs, ys, **FAINT, zorder=1)
        ax.plot(xs, ys, color=colour, linewidth=width, linestyle=style, solid_capstyle="butt", zorder=2)
        return
    # Bent, so that both directions of a link are seen.
    arrow = {"arrowstyle": "-|>", "mutation_scale": 7 + width, "connectionstyle": "arc3,rad=0.12"}
    look = {"color": colour, "linewidth": max(0.4, width / 2), "linestyle": style}
    look |= {"shrinkA": radii[0] + 1, "shrinkB": radii[1] + 1}
    ax.annotate("", xy=tuple(ends[1]), xytext=tuple(ends[0]), arrowprops=arrow | look, zorder=2)


def _draw_mixing(matrix: Any, ax: Axes) -> None:
    if matrix.shape[0] > LARGEST_GRAPH:
        _note(ax, f"{matrix.shape[0]} agents are too many to draw")
        return
    W = np.asarray(matrix)
    links = W - np.diag(np.diagonal(W))
    symmetric = np.allclose(W, W.T, rtol=0, atol=1e-8)
    weighted_graph(W, nx.from_numpy_array(links.T != 0, create_using=nx.Graph if symmetric else nx.DiGraph), ax=ax)
    signs = "; dashed: below 0" if W.min() < 0 else ""
    ax.set_title("width: weights; size: self-weights" + signs + ("" if symmetric else "\narrows: who sends to whom"))


def _note(ax: Axes, words: str) -> Axes:
    """Words in place of what cannot be drawn."""
    ax.text(0.5, 0.5, words, ha="center", transform=ax.transAxes)
    ax.set_axis_off()
    return ax


# --- runs ---


def experiment(experiment: "Experiment", /) -> list[Axes]:
    """Who mixes with whom, with the weights, and which samples each agent has.

    Parameters
    ----------
    experiment
        Of a schedule the mean of its matrices is drawn; of clocks and events who sends to whom.
    """
    with plt.style.context(STYLE):
        axes = list(plt.subplots(1, 2, figsize=(8.6, 3.8), layout="constrained")[1])
        _draw_links(experiment.mixing, axes[0])
        samples(experiment.data, ax=axes[1])
    return axes


def _draw_links(mixing: Any, ax: Axes) -> None:
    if isinstance(mixing, Schedule):
        _draw_mixing(np.mean(mixing.matrices[mixing.order], axis=0), ax)
        ax.set_title(f"mean of {mixing.period} rounds: {ax.get_title()}")
    elif isinstance(mixing, Events | AsynchronousGossip):
        graph(_senders(mixing), ax=ax)
        ax.set_title("who sends to whom")
    else:
        _draw_mixing(mixing, ax)


def _senders(mixing: Events | AsynchronousGossip) -> nx.Graph:
    """An edge u → v where user u sends to user v, undirected where all of them go both ways."""
    if isinstance(mixing, AsynchronousGossip):
        return nx.complete_graph(mixing.users) if mixing.graph is None else mixing.graph
    heard = np.isin(mixing.kind, AVERAGES)
    links = set(zip(mixing.peer[heard].tolist(), mixing.user[heard].tolist(), strict=True))
    exchanged = mixing.kind == Kind.EXCHANGE
    links |= set(zip(mixing.user[exchanged].tolist(), mixing.peer[exchanged].tolist(), strict=True))
    graph = nx.DiGraph() if links - {(v, u) for u, v in links} else nx.Graph()
    graph.add_nodes_from(range(mixing.users))
    graph.add_edges_from(links)
    return graph


def samples(data: AgentData, /, *, ax: Axes) -> Axes:
    """How many samples of each class the agents hold: stacked bars, or a heat map of many; bars for a regression.

    Parameters
    ----------
    data
        What `dataset.split` returns.
    ax
        Where to draw.
    """
    ax.set_xlabel("agent")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    agents, labels, classes = np.arange(data.agents), data.labels, data.classes
    if labels is None or classes is None:
        ax.bar(agents, data.sizes, color="0.6")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(ylabel="samples", title=f"samples of {data.name}, dealt by {data.by}")
        return ax
    counts = np.zeros((len(classes), data.agents))
    np.add.at(counts, (labels, data.owner), 1)
    ax.set_title(f"samples of {data.name} by class, dealt by {data.by}")
    if data.agents > FEW or len(classes) > 6:
        image = ax.imshow(counts, cmap="Greys", vmin=0, aspect="auto", interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label="samples", ticks=MaxNLocator(integer=True))
        ax.set_yticks(range(len(classes)), [str(name) for name in classes])
        ax.set_ylabel("class")
        return ax
    colours = plt.get_cmap(ORDERED)(np.linspace(0.15, 0.95, len(classes)))
    for row, (name, colour) in enumerate(zip(classes, colours, strict=True)):
        below = counts[:row].sum(axis=0)
        ax.bar(agents, counts[row], bottom=below, color=colour, edgecolor="white", linewidth=0.5, label=str(name))
    ax.set_ylabel("samples")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(title="class", ncols=len(classes), loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return ax


def communication(communication: "Communication", /) -> list[Axes]:
    """What all agents have sent by each round, beside dense exchange, and what each one sends over the run.

    Parameters
    ----------
    communication
        What `ntkp2p.communication` returns.
    """
    sent, dense = communication.bytes, communication.dense
    with plt.style.context(STYLE):
        axes = list(plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")[1])
        rounds = np.arange(len(sent) + 1)
        for counted, label in ((dense, "dense float32"), (sent, communication.experiment.algorithm.name)):
            total = np.append(0, np.cumsum(counted.sum(axis=1)))
            look = {"color": "0.6", "linestyle": DASHED} if counted is dense else {"color": BLUE, "linestyle": "-"}
            axes[0].plot(rounds, total, **look, label=label)
        per = "event $k$" if communication.experiment.asynchronous else "round $k$"
        axes[0].set(xlabel=per, ylabel="bytes sent until then, by all agents")
        axes[0].legend()
        agents = np.arange(sent.shape[1])
        axes[1].bar(agents, sent.sum(axis=0), color=BLUE, width=0.7)
        axes[1].bar(agents, dense.sum(axis=0), facecolor="none", edgecolor="0.4", linestyle="--", width=0.9)
        axes[1].set(xlabel="agent", ylabel="bytes sent over the run")
        axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].set_title("dashed: dense float32")
    return axes


def mixings(comparison: "MixingComparison", /) -> list[Axes]:
    """Bars of the spectral gap and the effective neighbours of each mixing, and of its rounds where they are known.

    Parameters
    ----------
    comparison
        What `ntkp2p.compare_mixings` returns.
    """
    columns = {"spectral_gap": "spectral gap", "effective_neighbours": "effective neighbours, agents"}
    columns |= {"rounds": "rounds to the target loss"}
    shown = [name for name in columns if name in comparison.table]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(shown), figsize=(2.4 + 2.6 * len(shown), 2.8), sharey=True, squeeze=False)
        figure.set_layout_engine("constrained")
        for ax, name in zip(axes[0], shown, strict=True):
            bars = ax.barh(list(comparison.table.index), comparison.table[name].fillna(0), color=BLUE)
            known = comparison.table[name].notna()
            values = [f"{v:.4g}" if k else "—" for v, k in zip(comparison.table[name], known, strict=True)]
            ax.bar_label(bars, values, padding=3, fontsize=8)
            ax.margins(x=0.25)
            ax.set_xlabel(columns[name])
        axes[0, 0].set_ylabel("mixing")
        axes[0, 0].invert_yaxis()
    return list(axes[0])


def events(events: Events, /, *, ax: Axes | None = None) -> Axes:
    """Updates and messages of every user over time; of more than 400 events how many updates there are when.

    Parameters
    ----------
    events
        What `AsynchronousGossip.draw` returns; those until a time are `events.until(count)`.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(7, 3.4), layout="constrained")[1]
        if len(events) <= MOST_EVENTS:
            ax.legend(handles=raster(events, ax=ax), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        else:
            updates = events.kind == Kind.UPDATE
            bins = [np.linspace(0, events.time[-1], 41), np.arange(events.users + 1) - 0.5]
            counts, *_ = np.histogram2d(events.time[updates], events.user[updates], bins=bins)
            image = ax.pcolormesh(*bins, counts.T, cmap="Greys", vmin=0, rasterized=True)
            ax.figure.colorbar(image, ax=ax, label="updates", ticks=MaxNLocator(integer=True))
            ax.invert_yaxis()
        ax.set(xlabel="wall-clock time $t$", ylabel="user")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def raster(events: Events, /, *, ax: Axes) -> list[Artist]:
    """Every update as a tick of its user, and every message as an arrow to who takes it; returns the legend's handles.

    Parameters
    ----------
    events
        Few enough to be read.
    ax
        Where to draw.
    """
    sent: dict[int, float] = {}
    updates = events.kind == Kind.UPDATE
    tick: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "|", "markeredgewidth": 1.8}
    ax.plot(events.time[updates], events.user[updates], markersize=min(15, 120 / events.users), zorder=3, **tick)
    columns = (getattr(events, name).tolist() for name in ("time", "kind", "user", "peer", "relay"))
    for now, kind, user, peer, relay in zip(*columns, strict=True):
        if kind == Kind.SEND:
            sent[relay] = now
        elif kind in (*AVERAGES, Kind.LOST):
            lost, both = kind == Kind.LOST, kind == Kind.EXCHANGE
            look = {"color": VERMILLION if lost else BLUE, "linewidth": 0.8, "mutation_scale": 7}
            look |= {"arrowstyle": "-" if lost else "<|-|>" if both else "-|>", "linestyle": DOTTED if lost else "-"}
            start = (sent.get(relay, now), peer)
            ax.annotate("", (now, user), start, arrowprops=look | {"shrinkA": 0, "shrinkB": 0}, zorder=2)
            if lost:
                ax.plot([now], [user], "x", color=VERMILLION, markersize=6, markeredgewidth=1.4, zorder=4)
    for user in range(events.users):
        ax.axhline(user, **FAINT, zorder=0)
    ax.set(xlim=(0, events.time[-1]), ylim=(events.users - 0.5, -0.5))
    message: dict[str, Any] = {"color": BLUE, "linewidth": 0.8, "linestyle": "-", "marker": ">", "markersize": 3}
    handles: list[Artist] = [Line2D([], [], **tick, markersize=11, label="update")]
    handles.append(Line2D([], [], **message, label="message, sent to taken"))
    if (events.kind == Kind.LOST).any():
        look = {"color": VERMILLION, "linewidth": 0.8, "linestyle": DOTTED, "marker": "x"}
        handles.append(Line2D([], [], **look, label="message lost"))
    return handles


def clocks(mixing: AsynchronousGossip, /, *, ax: Axes | None = None) -> Axes:
    """How often every user ends a computation and may talk.

    Parameters
    ----------
    mixing
        Users with clocks of their own.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
        users = np.arange(mixing.users)
        ax.plot(users, mixing.update_rates, "s", color="black", markersize=5, label="updates")
        look: dict[str, Any] = {"color": BLUE, "markerfacecolor": "white", "markersize": 6}
        ax.plot(users, mixing.gossip_rates, "o", label="opportunities to talk", **look)
        ax.set(xlabel="user", ylabel="mean rate / wall-clock time$^{-1}$")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax


def timeliness(report: "Timeliness", /, *, ax: Axes | None = None) -> Axes:
    """How late gradients and messages are, on average, usually and at most, beside the delay that is stable.

    Parameters
    ----------
    report
        What `ntkp2p.timeliness` returns.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(5.4, 2.4), layout="constrained")[1]
        for row, late in enumerate(report.lateness.values()):
            first = row == 0  # one legend for all rows
            ax.plot([0, late.largest], [row, row], color="0.7", linewidth=1, linestyle="-")
            for value, marker, name in (
                (late.mean, "o", "mean"),
                (late.usual, "d", "95 % at most"),
                (late.largest, "|", "largest"),
            ):
                ax.plot([value], [row], marker, color=BLUE, markersize=7, label=name if first else None)
            margin, known = late.margin.rounds, "stable up to" if late.margin.exact else "stable up to, at least"
            ax.plot([margin], [row], "s" if late.margin.exact else ">", color=VERMILLION, markersize=7, label=known)
        ax.set_yticks(range(len(report.lateness)), list(report.lateness))
        ax.set(
            xlabel="lateness / rounds of one update of every agent",
            ylabel="what is late",
            ylim=(len(report.lateness), -1),
        )
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        ax.legend(list(handles.values()), list(handles), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


# --- stability ---


def stability_report(report: "StabilityReport", /) -> list[Axes]:
    """The spectrum of a round in the unit disc, and which agents its slowest modes are in.

    Parameters
    ----------
    report
        What `ntkp2p.stability` returns.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2 if report.modes else 1, figsize=(8.4, 3.6), squeeze=False)
        figure.set_layout_engine("constrained", wspace=0.06)
        per = "a period's map" if len(getattr(report.experiment.mixing, "order", ())) > 1 else "a round"
        extreme = " extreme" if 0 < len(report.eigenvalues) < report.states else ""
        title = f"{len(report.eigenvalues)}{extreme} eigenvalues of {per}"
        unit_disc(report.eigenvalues, ax=axes[0, 0], title=title, mixing=False)
        if report.modes:
            _draw_modes(report, axes[0, 1])
    return list(axes[0])


def _draw_modes(report: "StabilityReport", ax: Axes) -> None:
    patterns = np.array([np.real(mode.agents) for mode in report.modes])
    largest = np.abs(patterns).max()
    image = ax.imshow(patterns, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="share in the agent")
    lasts = [f"{mode.rounds:.3g} rounds" if np.isfinite(mode.rounds) else "for ever" for mode in report.modes]
    values = [f"|λ| = {abs(mode.eigenvalue):.6g}" for mode in report.modes]
    ax.set_yticks(range(len(lasts)), [f"{v}\n{last}" for v, last in zip(values, lasts, strict=True)], fontsize=7)
    for row, column in zip(*np.nonzero(patterns < 0), strict=True):  # signs, which grey paper loses
        ax.text(
            column,
            row,
            "−",
            ha="center",
            va="center",
            color="white" if patterns[row, column] < -0.6 * largest else "black",
        )
    ax.set(xlabel="agent", ylabel="mode", title="slowest modes, by the rounds to 1/e")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def stability_map(map: "StabilityMap", /, *, ax: Axes | None = None) -> Axes:
    """The spectral radius over step size and delay, or λ_min, with the exact and the textbook's boundary.

    Parameters
    ----------
    map
        What `ntkp2p.stability_map` returns.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        return _draw_map(map, plt.subplots(layout="constrained")[1] if ax is None else ax)


def _draw_map(map: "StabilityMap", ax: Axes) -> Axes:
    radius = map.radius
    name = str(radius.dims[0])
    across, up = radius["step_size"].values, radius[name].values
    colours = plt.get_cmap("Reds").with_extremes(under="white")
    image = ax.pcolormesh(
        across, up, radius.values - 1, cmap=colours, vmin=1e-6, vmax=0.5, shading="nearest", rasterized=True
    )
    exact: dict[str, Any] = {"linewidth": 1.6, "linestyle": "-", "label": "largest stable step size"}
    textbook: dict[str, Any] = {"linewidth": 1, "linestyle": DASHED, "label": "textbook's sufficient bound"}
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
    with plt.style.context(STYLE):
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
            ax.plot(names.index(name), row, "x", color=VERMILLION)
