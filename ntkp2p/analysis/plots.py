"""Plots of analyses: stability, timeliness, comparisons of mixings, and sweeps."""

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ntkp2p.base.errors import InputError
from ntkp2p.base.style import BLUE, DASHED, STYLE, VERMILLION
from ntkp2p.runs.plots import OFF_THE_CHART
from ntkp2p.topology.plots import unit_disc

if TYPE_CHECKING:
    from ntkp2p.analysis.compare_mixings import MixingComparison
    from ntkp2p.analysis.stability_map import StabilityMap
    from ntkp2p.analysis.stability_report import StabilityReport
    from ntkp2p.analysis.sweep import Sweep
    from ntkp2p.analysis.timeliness import Timeliness


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
        mixing = report.experiment.topology
        per = "a period's map" if mixing.matrix is None and mixing.period > 1 else "a round"
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
    lasts = [f"{mode.rounds:.3g} rounds" if np.isfinite(mode.rounds) else "no decay" for mode in report.modes]
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
    textbook: dict[str, Any] = {"linewidth": 1, "linestyle": DASHED, "label": "sufficient bound of the literature"}
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
        raise InputError("no cell of this sweep has been computed: see its failures")
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
