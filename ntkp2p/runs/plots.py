"""Plots of runs: agents told apart where they are few and summed up where they are many, sources by their lines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ntkp2p.base.checks import lookup
from ntkp2p.base.style import BLUE, DASHED, HIGHEST, LABELS, LINES, LOWEST, ORDERED, RANGES, STYLE, VERMILLION
from ntkp2p.data import AgentData
from ntkp2p.runs.measures import COUNTERS, STEADY_VARIABLES
from ntkp2p.runs.trajectory import Trajectory

if TYPE_CHECKING:
    from ntkp2p.runs.communication import Communication
    from ntkp2p.runs.comparison import Comparison
    from ntkp2p.runs.experiment import Experiment

#: Up to so many agents each has a curve; of more there are the mean, the range, and the two at its ends.
FEW = 12
#: By how much a curve may grow over its start before it is cut off.
OFF_THE_CHART = 1e6
#: How dark the agents' bands are together where all of them overlap; the lines stay visible on it.
BAND = 0.4


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
        A name of `ntkp2p.runs.measures.VARIABLES`, or a steady state's bias.
    ax
        Where to draw; by default new axes.
    against
        "round", "time", or a name of `ntkp2p.runs.measures.COUNTERS`: all agents' together.
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
            place = {} if not any(t.grows for t in trajectories) else {"loc": "upper left", "bbox_to_anchor": (0, 0.93)}
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
    colours = _agent_colours(agents)
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


def _agent_colours(agents: int) -> np.ndarray:
    return plt.get_cmap(ORDERED)(np.linspace(0.05, 0.9, agents))


def agent_bar(axes: Sequence[Axes], agents: int, /) -> Colorbar:
    """Draw a colour bar beside some axes that names the agents of `agent_curves`, up to 12.

    Parameters
    ----------
    axes
        All of one figure.
    agents
        Q.
    """
    levels = BoundaryNorm(np.arange(agents + 1) - 0.5, agents)
    colours = ScalarMappable(levels, ListedColormap(_agent_colours(agents)))
    return axes[0].figure.colorbar(colours, ax=list(axes), ticks=range(agents), label="agent", aspect=40, pad=0.01)


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
    unstable = [LABELS[t.source] for t in trajectories if t.grows]
    if unstable:
        ax.text(0.03, 0.97, "unstable: " + "; ".join(unstable), transform=ax.transAxes, va="top", color=VERMILLION)


def comparison(comparison: "Comparison", variables: Sequence[str], /) -> list[Axes]:
    """One panel a variable, sharing a legend.

    Parameters
    ----------
    comparison
        What `ntkp2p.compare` returns.
    variables
        Names of `ntkp2p.runs.measures.VARIABLES`.
    """
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, len(variables), figsize=(4.2 * len(variables), 3.4), squeeze=False)
        figure.set_layout_engine("constrained", wspace=0.06)
        for i, (ax, variable) in enumerate(zip(axes[0], variables, strict=True)):
            agent_curves(list(comparison.trajectories.values()), variable, ax=ax, legend=i == 0)
    return list(axes[0])


def experiment(experiment: "Experiment", /) -> list[Axes]:
    """The mixing graph with its weights, and the samples of each agent.

    Parameters
    ----------
    experiment
        Of a schedule the mean of its matrices is drawn; of clocks and events the links from sender to receiver.
    """
    with plt.style.context(STYLE):
        axes = list(plt.subplots(1, 2, figsize=(8.6, 3.8), layout="constrained")[1])
        experiment.topology.draw_links(axes[0])
        samples(experiment.data, ax=axes[1])
    return axes


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
