"""Plots of graphs, mixing matrices and their eigenvalues."""

from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes

from ntkp2p.base.style import BLUE, DASHED, DOTTED, FAINT, STYLE, VERMILLION, note

#: Graphs of more agents, or of more links, are not drawn: they would not be legible.
LARGEST_GRAPH, MOST_LINKS = 100, 1500


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
    areas = (80 + 500 * abs(own)) * crowd**2  # the smallest can hold their number
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
            return note(ax, f"{len(graph)} agents are too many to draw")
        if graph.number_of_edges() > MOST_LINKS:
            return note(ax, f"{graph.number_of_edges()} links are too many to draw")
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
        draw_mixing(matrix, axes[1])
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


def draw_mixing(matrix: Any, ax: Axes) -> None:
    if matrix.shape[0] > LARGEST_GRAPH:
        note(ax, f"{matrix.shape[0]} agents are too many to draw")
        return
    W = np.asarray(matrix)
    links = W - np.diag(np.diagonal(W))
    symmetric = np.allclose(W, W.T, rtol=0, atol=1e-8)
    weighted_graph(W, nx.from_numpy_array(links.T != 0, create_using=nx.Graph if symmetric else nx.DiGraph), ax=ax)
    signs = "; dashed: below 0" if W.min() < 0 else ""
    ax.set_title("width: weights; size: self-weights" + signs + ("" if symmetric else "\narrows: sender to receiver"))
