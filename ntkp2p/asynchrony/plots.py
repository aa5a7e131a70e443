"""Plots of clocks and events."""

from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ntkp2p.asynchrony import AsynchronousGossip, Events, Kind
from ntkp2p.asynchrony.events import AVERAGES
from ntkp2p.base.style import BLUE, DOTTED, FAINT, STYLE, VERMILLION
from ntkp2p.topology.plots import graph

#: Up to so many events each is drawn; of more the updates are counted.
MOST_EVENTS = 400


def senders(links: nx.Graph, /, *, ax: Axes) -> None:
    """The links between senders and receivers.

    Parameters
    ----------
    links
        An edge u → v where agent u sends to agent v.
    ax
        Where to draw.
    """
    graph(links, ax=ax)
    ax.set_title("links from sender to receiver")


def events(events: Events, /, *, ax: Axes | None = None) -> Axes:
    """Updates and messages of every agent over time; of more than 400 events how many updates there are when.

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
            bins = [np.linspace(0, events.time[-1], 41), np.arange(events.agents + 1) - 0.5]
            counts, *_ = np.histogram2d(events.time[updates], events.agent[updates], bins=bins)
            image = ax.pcolormesh(*bins, counts.T, cmap="Greys", vmin=0, rasterized=True)
            ax.figure.colorbar(image, ax=ax, label="updates", ticks=MaxNLocator(integer=True))
            ax.invert_yaxis()
        ax.set(xlabel="wall-clock time $t$", ylabel="agent")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def raster(events: Events, /, *, ax: Axes) -> list[Artist]:
    """Every update as a tick of its agent, and every message as an arrow to who takes it; returns the legend's handles.

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
    ax.plot(events.time[updates], events.agent[updates], markersize=min(15, 120 / events.agents), zorder=3, **tick)
    columns = (getattr(events, name).tolist() for name in ("time", "kind", "agent", "peer", "relay"))
    for now, kind, agent, peer, relay in zip(*columns, strict=True):
        if kind == Kind.SEND:
            sent[relay] = now
        elif kind in (*AVERAGES, Kind.LOST):
            lost, both = kind == Kind.LOST, kind == Kind.EXCHANGE
            look = {"color": VERMILLION if lost else BLUE, "linewidth": 0.8, "mutation_scale": 7}
            look |= {"arrowstyle": "-" if lost else "<|-|>" if both else "-|>", "linestyle": DOTTED if lost else "-"}
            start = (sent.get(relay, now), peer)
            ax.annotate("", (now, agent), start, arrowprops=look | {"shrinkA": 0, "shrinkB": 0}, zorder=2)
            if lost:
                ax.plot([now], [agent], "x", color=VERMILLION, markersize=6, markeredgewidth=1.4, zorder=4)
    for agent in range(events.agents):
        ax.axhline(agent, **FAINT, zorder=0)
    ax.set(xlim=(0, events.time[-1]), ylim=(events.agents - 0.5, -0.5))
    message: dict[str, Any] = {"color": BLUE, "linewidth": 0.8, "linestyle": "-", "marker": ">", "markersize": 3}
    handles: list[Artist] = [Line2D([], [], **tick, markersize=11, label="update")]
    handles.append(Line2D([], [], **message, label="message, sent to taken"))
    if (events.kind == Kind.LOST).any():
        look = {"color": VERMILLION, "linewidth": 0.8, "linestyle": DOTTED, "marker": "x"}
        handles.append(Line2D([], [], **look, label="message lost"))
    return handles


def clocks(mixing: AsynchronousGossip, /, *, ax: Axes | None = None) -> Axes:
    """How often every agent ends a computation and may talk.

    Parameters
    ----------
    mixing
        Asynchronous agents.
    ax
        Where to draw; by default new axes.
    """
    with plt.style.context(STYLE):
        if ax is None:
            ax = plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
        agents = np.arange(mixing.agents)
        ax.plot(agents, mixing.update_rates, "s", color="black", markersize=5, label="updates")
        look: dict[str, Any] = {"color": BLUE, "markerfacecolor": "white", "markersize": 6}
        ax.plot(agents, mixing.gossip_rates, "o", label="opportunities to talk", **look)
        ax.set(xlabel="agent", ylabel="mean rate / wall-clock time$^{-1}$")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend()
    return ax
