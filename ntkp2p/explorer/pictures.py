"""What the explorer shows: panels that keep their axes, places of a graph's agents, and the verdict in words."""

import io
import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntkp2p.base import style
from ntkp2p.base.imports import needed
from ntkp2p.base.specs import named_in
from ntkp2p.base.threads import one_thread
from ntkp2p.runs.trajectory import Trajectory
from ntkp2p.topology.graphs import GRAPHS, from_spec, sized

with needed("explore", "notebooks"):
    import ipywidgets as widgets
    import PIL.Image

#: Graphs that look like circles.
ROUND = ("cycle", "complete", "exponential", "directed_ring", "directed_exponential")
#: Pixels of an inch of a picture.
DPI = 100


class Picture:
    """One panel, which keeps its axes: most of the time of drawing would go into new ones.

    Parameters
    ----------
    pixels
        Width and height.
    place
        Of the axes, as shares of both: left, bottom, width and height.
    """

    def __init__(self, pixels: tuple[int, int], place: tuple[float, float, float, float]):
        # As large as it is, or as the page allows.
        shrinks = {"flex": f"{pixels[0]} 1 0%", "min_width": "0", "max_width": f"{pixels[0]}px", "height": "auto"}
        self.image = widgets.Image(format="png", layout=widgets.Layout(**shrinks))
        with plt.style.context(style.STYLE):
            self._canvas = FigureCanvasAgg(Figure(figsize=(pixels[0] / DPI, pixels[1] / DPI), dpi=DPI))
            self.axes = self._canvas.figure.add_axes(place)

    def draw(self, draw: Callable[..., Any], *shown: Any) -> tuple[float, float]:
        """Show what `draw(axes, *shown)` draws; the seconds of drawing and of encoding."""
        begin, ax = time.perf_counter(), self.axes
        for artist in [*ax.lines, *ax.texts, *ax.patches, *ax.collections, *ax.child_axes, ax.get_legend()]:
            if artist is not None:
                artist.remove()
        ax.relim()
        # A title that keeps its place need not be kept clear of what is below it.
        with plt.style.context([style.STYLE, {"axes.titley": 1.02}]):
            draw(ax, *shown)
            ax.minorticks_off()  # they took a third of the time
            self._canvas.draw()
        drawn = time.perf_counter()
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.asarray(self._canvas.buffer_rgba())).save(buffer, format="png", compress_level=1)
        self.image.value = buffer.getvalue()
        return drawn - begin, time.perf_counter() - drawn


def verdict(predicted: Mapping[str, Trajectory], /) -> str:
    """What predictions say of stability, a sentence for each notion of time, in HTML."""
    return "<br>".join(_sentence(time, trajectory) for time, trajectory in predicted.items())


def _sentence(time: str, trajectory: Trajectory) -> str:
    facts = trajectory.dataset.attrs
    name, what = {"rounds": ("Rounds", "spectral radius"), "flow": ("Flow", "spectral abscissa")}[time]
    state = "<b>stable</b>" if trajectory.stable else '<b style="color:#b03030">unstable</b>'
    value = facts.get("spectral_radius" if time == "rounds" else "spectral_abscissa", math.nan)
    if math.isnan(value):
        return f"{name}: {state} in these rounds; there is no spectrum."
    limit = 1 if time == "rounds" else 0
    about, beside = "", "not above" if trajectory.stable else "above"
    if "spectral_residual" in facts:  # beyond the limit, a stable run is there by no more than that
        about, beside = "about ", "within its residual of" if trajectory.stable and value > limit else beside
    said = f"{name}: {state}, {what} {about}{value:.6g}, {beside} {limit}."
    bound = facts["sufficient_step_size"]
    if time == "rounds" and not math.isnan(bound):
        said += f" Any step size up to {bound:.3g} is stable."
    elif not trajectory.stable:
        said += " Try a smaller step size, or other weights."
    return said


@cache
@one_thread()  # threads would wait for one another in many small products
def placed(spec: str, agents: int) -> nx.Graph:
    """A graph that knows where its agents are drawn: to find that out takes longer than to draw them."""
    graph = from_spec(sized(spec, agents))
    if not nx.get_node_attributes(graph, "pos"):
        links = graph.to_undirected()
        place = nx.circular_layout if named_in(GRAPHS, spec)[0] in ROUND else nx.kamada_kawai_layout
        nx.set_node_attributes(graph, place(links), "pos")
    return graph
