"""The widgets behind `ntkp2p.explore`: tables of an experiment, and pictures of what they say.

The tables are the only state. A control reads its value from them and writes it into them; whatever is shown, trained,
copied or saved is made of them.
"""

import copy
import gc
import inspect
import io
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntkp2p.algorithms import DGD
from ntkp2p.base import style
from ntkp2p.base.errors import InputError
from ntkp2p.base.files import replacing
from ntkp2p.base.imports import needed
from ntkp2p.base.threads import one_thread
from ntkp2p.data import AgentData
from ntkp2p.kernels import Features
from ntkp2p.models import NETWORKS
from ntkp2p.runs import plots as runs_plots
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.prediction import explored
from ntkp2p.runs.tables import as_python, as_toml
from ntkp2p.runs.toml import tables_of, with_paths
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.runs.trajectory import Trajectory
from ntkp2p.topology import plots as topology_plots
from ntkp2p.topology.graphs import from_spec, sized
from ntkp2p.topology.matrix import usual_weights

with needed("explore", "notebooks"):
    import ipywidgets as widgets
    import PIL.Image

START: dict[str, Any] = {
    "rounds": 300,
    "model": {"name": "mlp", "width": 256, "depth": 2},
    "data": {"name": "digits", "classes": [0, 1], "samples": 48, "test_samples": 0},
    "split": {"agents": 8, "by": "label"},
    "mixing": {"graph": "cycle", "weights": "metropolis"},
    "algorithm": {"name": "DGD", "step_size": 0.1},
}
#: The data sets that need no file.
DATA = {
    "digits": START["data"],
    "mnist": START["data"] | {"name": "mnist"},
    "regression": {"name": "regression", "samples": 48, "test_samples": 0},
}
#: How a graph is asked for; those of other sizes than the agents' are made to fit where they can.
GRAPHS = {
    "cycle": "cycle",
    "path": "path",
    "star": "star",
    "complete": "complete",
    "exponential": "exponential",
    "grid": "grid:{rows},{columns}",
    "torus": "torus:{rows},{columns}",
    "hypercube": "hypercube:{dimension}",
    "erdos_renyi": "erdos_renyi:{agents},0.5",
    "random_geometric": "random_geometric:{agents},0.6",
    "directed_ring": "directed_ring",
    "directed_exponential": "directed_exponential",
}
#: Graphs that look like circles.
ROUND = ("cycle", "complete", "exponential", "directed_ring", "directed_exponential")
WEIGHTS = ("metropolis", "max_degree", "lazy_metropolis", "best_constant", "fastest_mixing", "push")
ALGORITHMS = ("DGD", "CTA", "ATC")
VARIABLES = ("local_loss", "global_loss", "consensus_distance", "parameter_distance")
#: What goes wrong by a choice of the user, such as a kernel that JAX finds no memory for, and is said in place of the
#: pictures.
MISTAKES = (InputError, MemoryError, jax.errors.JaxRuntimeError, OSError)
#: Pixels of an inch of a picture.
DPI = 100


class _Cancelled(Exception):
    pass


@dataclass(frozen=True)
class _Control:
    """A widget and the entry of a table that it stands for; without a table, of them all."""

    widget: Any
    table: str
    key: str

    def read(self, tables: Mapping[str, Any]) -> None:
        """Show what the tables have; what they have not cannot be chosen."""
        value = self._of(tables).get(self.key)
        self.widget.disabled = value is None
        if value is not None:
            _show(self.widget, value.partition(":")[0] if self.key == "graph" else value)

    def write(self, tables: dict[str, Any]) -> None:
        """Take over what the widget shows."""
        value = self.widget.value
        self._of(tables)[self.key] = rounded(value) if isinstance(value, float) else value

    def _of(self, tables: Mapping[str, Any]) -> Any:
        return tables[self.table] if self.table else tables


@contextmanager
def _collecting_later() -> Iterator[None]:
    """To look through all objects of JAX for garbage takes Python a fifth of a second: after a move, not within."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Picture:
    """One panel, which keeps its axes: most of the time of drawing would go into new ones.

    Parameters
    ----------
    pixels
        Width and height.
    place
        Of the axes, as shares of both: left, bottom, width and height.
    """

    def __init__(self, pixels: tuple[int, int], place: tuple[float, float, float, float]):
        # As large as it is, or as the page leaves it room.
        room = {"flex": f"{pixels[0]} 1 0%", "min_width": "0", "max_width": f"{pixels[0]}px", "height": "auto"}
        self.image = widgets.Image(format="png", layout=widgets.Layout(**room))
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


class Explorer(widgets.VBox):
    """Widgets for an experiment, of what `ntkp2p.explore` makes one.

    Attributes
    ----------
    tables
        The experiment as `Experiment.from_dict` takes it.
    experiment
        The run that is shown; None while the tables make none.
    predicted
        Its predictions, "rounds" and "flow" where it has one; of `DGD`, `CTA` and `ATC` without counters.
    trained
        Its networks' curves, once they are trained; else None.
    seconds
        What the last move took: "prediction", "drawing" and "encoding" of the pictures.
    """

    def __init__(self, start: Mapping[str, Any] | str | os.PathLike[str] | None = None):
        self.tables = _tables_of(start)
        self._data = DATA | {self.tables["data"]["name"]: copy.deepcopy(self.tables["data"])}
        self.experiment: Experiment | None = None
        self.predicted: Mapping[str, Trajectory] = {}
        self.trained: Trajectory | None = None
        self.seconds = dict.fromkeys(("prediction", "drawing", "encoding"), 0.0)
        self._eigenvalues = np.empty(0)
        self._drawn: Any = None
        self._pool: tuple[str, np.ndarray, Features] | None = None
        self._painting = threading.RLock()  # the plotting library's settings are global
        self._training: tuple[threading.Thread, threading.Event] | None = None
        self._deaf = False
        self._make_widgets()
        super().__init__([widgets.HBox([self._panel, self._view]), self._source])
        self._read()
        self._update()

    def toml(self) -> str:
        """The experiment as a TOML file."""
        return as_toml(self.tables)

    def python(self) -> str:
        """The experiment as Python source."""
        return as_python(self.tables)

    # Widgets

    def _make_widgets(self) -> None:
        wide = {"layout": widgets.Layout(width="280px"), "style": {"description_width": "82px"}}

        def choice(name: str, options: Any) -> Any:
            return widgets.Dropdown(description=name, options=list(options), **wide)

        def slider(name: str, least: float, most: float) -> Any:
            return widgets.FloatLogSlider(
                description=name, min=least, max=most, step=0.05, readout_format=".3g", **wide
            )

        self.data, self.graph = choice("data", self._data), choice("graph", GRAPHS)
        self.width = widgets.SelectionSlider(
            description="width", options=[2**i for i in range(4, 12)], continuous_update=False, **wide
        )
        self.depth = widgets.IntSlider(description="depth", min=1, max=4, continuous_update=False, **wide)
        self.agents = widgets.IntSlider(description="agents", min=2, max=16, **wide)
        self.partition = choice("partition", ("iid", "label", "dirichlet"))
        self.alpha = slider("alpha", -2, 2)
        self.weights, self.algorithm = choice("weights", WEIGHTS), choice("algorithm", ALGORITHMS)
        self.step_size = slider("step size", -3, 1)
        self.rounds = widgets.BoundedIntText(description="rounds", min=1, max=100_000, **wide)
        self.variable = choice("show", VARIABLES)
        self._controls = [
            _Control(self.data, "data", "name"),
            _Control(self.width, "model", "width"),
            _Control(self.depth, "model", "depth"),
            _Control(self.agents, "split", "agents"),
            _Control(self.partition, "split", "by"),
            _Control(self.alpha, "split", "alpha"),
            _Control(self.graph, "mixing", "graph"),
            _Control(self.weights, "mixing", "weights"),
            _Control(self.algorithm, "algorithm", "name"),
            _Control(self.step_size, "algorithm", "step_size"),
            _Control(self.rounds, "", "rounds"),
        ]
        for control in self._controls:
            control.widget.observe(lambda _, control=control: self._changed(control), "value")
        self.variable.observe(lambda _: self._draw_curves(), "value")

        self.train = widgets.Button(description="Train", icon="play", layout=widgets.Layout(width="90px"))
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="180px", visibility="hidden"))
        self.copy = widgets.Button(description="Copy as Python", layout=widgets.Layout(width="136px"))
        self.save = widgets.Button(description="Save as TOML", layout=widgets.Layout(width="136px"))
        self.name = widgets.Text("experiment.toml", description="file", continuous_update=False, **wide)
        self.note = widgets.HTML(layout=widgets.Layout(width="280px"))
        self.train.on_click(lambda _: self._toggle_training())
        self.copy.on_click(lambda _: self._copy())
        self.save.on_click(lambda _: self._save())
        buttons = [
            widgets.HBox([self.train, self.progress]),
            widgets.HBox([self.copy, self.save]),
            self.name,
            self.note,
        ]
        controls = [control.widget for control in self._controls]
        self._panel = widgets.VBox([*controls, self.variable, *buttons], layout=widgets.Layout(flex="0 0 296px"))

        self.verdict = widgets.HTML()
        self.curves = _Picture((600, 330), (0.11, 0.14, 0.86, 0.74))
        self.net = _Picture((270, 320), (0.02, 0.02, 0.96, 0.88))
        self.disc = _Picture((330, 320), (0.2, 0.15, 0.74, 0.75))
        self._pictures = widgets.VBox([self.curves.image, widgets.HBox([self.net.image, self.disc.image])])
        self._view = widgets.VBox(
            [self.verdict, self._pictures], layout=widgets.Layout(flex="0 1 600px", min_width="0")
        )
        self._source = widgets.Textarea(rows=12, layout=widgets.Layout(max_width="900px", width="100%", display="none"))

    def _read(self) -> None:
        """Let all controls show what the tables have."""
        self._deaf = True
        try:
            for control in self._controls:
                control.read(self.tables)
        finally:
            self._deaf = False

    def _changed(self, control: _Control) -> None:
        """Write what a control shows into the tables, and what goes with it."""
        if self._deaf:
            return
        control.write(self.tables)
        if control.widget is self.data:
            self.tables["data"] = copy.deepcopy(self._data[self.data.value])
        if control.widget is self.partition:
            for key in ("alpha", "skew"):
                self.tables["split"].pop(key, None)
            if self.partition.value == "dirichlet":
                self.tables["split"]["alpha"] = rounded(self.alpha.value)
        mixing = self.tables["mixing"]
        if control.widget is self.graph:
            mixing["graph"] = _spec(self.graph.value, self.agents.value)
        if control.widget is self.agents and "graph" in mixing:
            mixing["graph"] = _resized(mixing["graph"], self.agents.value)
        self._read()
        self._update()

    # What is shown

    @_collecting_later()
    def _update(self) -> None:
        """Predict the experiment of the tables, and draw it."""
        self.trained, self.note.value = None, "Training was cancelled by the change." if self._cancel() else ""
        if self._source.layout.display != "none":
            self._source.value = self.python()
        begin = time.perf_counter()
        try:
            self.experiment = Experiment.from_dict(self.tables)
            self.predicted, self._eigenvalues = explored(*self._dealt(self.experiment))
        except MISTAKES as error:
            self.experiment, self.predicted = None, {}
            self._refuse(str(error) or type(error).__name__)
            return
        self.seconds = {"prediction": time.perf_counter() - begin, "drawing": 0.0, "encoding": 0.0}
        self.verdict.value = verdict(self.predicted)
        self._pictures.layout.display = None
        self._allow(True)
        self._draw_curves()
        self._draw_graph()
        self._draw(self.disc, self._disc)

    def _dealt(self, experiment: Experiment) -> tuple[Experiment, Features]:
        """The experiment without test samples, which are not shown, and the kernel in the order of its agents' data."""
        none = {"test_inputs": np.empty(0), "test_targets": np.empty(0), "test_labels": None}
        data = replace(experiment.data.dataset, **none)
        asked = repr([self.tables.get(key) for key in ("data", "model", "seed", "kernel", "kernel_rtol")])
        # A file may have changed since it was read.
        if self._pool is None or self._pool[0] != asked or not np.array_equal(self._pool[1], data.inputs):
            self._say("computing the kernel …")
            pool = AgentData(dataset=data, indices=(np.arange(data.samples),))
            alone = {"mixing": np.eye(1), "algorithm": DGD(step_size=1.0), "batch_size": None, "record": 2}
            self._pool = asked, data.inputs, replace(experiment, data=pool, **alone).features()
        agents = replace(experiment.data, dataset=data)
        return replace(experiment, data=agents), self._pool[2].dealt(np.concatenate(agents.indices))

    def _refuse(self, message: str) -> None:
        """Say what is wrong in place of the pictures."""
        self.verdict.value = f"<b>This cannot be run.</b> {escape(' '.join(message.split()))}"
        self._pictures.layout.display = "none"
        self._allow(False)

    def _allow(self, allowed: bool) -> None:
        """Whether there is an experiment that could be trained, copied or saved."""
        for button in (self.train, self.copy, self.save):
            button.disabled = not allowed

    def _say(self, message: str) -> None:
        self.verdict.value = f"<i>{escape(message)}</i>"

    def _draw_curves(self) -> None:
        shown = [t for t in (self.trained, *self.predicted.values()) if t is not None]
        if shown:
            self._draw(self.curves, self._curves, shown)

    def _curves(self, ax: Axes, shown: list[Trajectory]) -> None:
        runs_plots.agent_curves(shown, self.variable.value, ax=ax)

    def _disc(self, ax: Axes) -> None:
        title = f"{len(self._eigenvalues)} eigenvalues of a round"
        topology_plots.unit_disc(self._eigenvalues, ax=ax, title=title, mixing=False)
        reach = max(1, 2 * int(ax.get_xlim()[1] / 3))
        ax.set(xticks=(-reach, 0, reach), yticks=(-reach, 0, reach))  # every label takes a millisecond

    def _draw_graph(self) -> None:
        mixing = self.experiment and self.experiment.mixing
        if self._drawn is None or not (isinstance(mixing, np.ndarray) and np.array_equal(self._drawn, mixing)):
            self._draw(self.net, self._net, mixing)
            self._drawn = mixing

    def _net(self, ax: Axes, mixing: Any) -> None:
        if not isinstance(mixing, np.ndarray) or len(mixing) > topology_plots.LARGEST_GRAPH:
            ax.text(0.5, 0.5, "no one matrix\nthat could be drawn", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        spec = self.tables["mixing"].get("graph")
        if spec is None:
            graph = nx.from_numpy_array(mixing.T - np.diag(np.diagonal(mixing)), create_using=nx.DiGraph)
        else:
            graph = _placed(spec, len(mixing))
        topology_plots.weighted_graph(mixing, graph, ax=ax)
        ax.set_title("width: weights; size: self-weights")

    def _draw(self, picture: "_Picture", draw: Callable[..., Any], *shown: Any) -> None:
        with self._painting:
            drawing, encoding = picture.draw(draw, *shown)
        self.seconds["drawing"] += drawing
        self.seconds["encoding"] += encoding

    # Training

    def _toggle_training(self) -> None:
        if self._cancel():
            self.note.value = "Training was cancelled."
        elif self.experiment is not None:
            cancelled = threading.Event()
            thread = threading.Thread(target=self._train, args=(self.experiment, cancelled), daemon=True)
            self._training = thread, cancelled
            self.train.description, self.train.icon, self.note.value = "Cancel", "stop", "Training the networks …"
            self.progress.value, self.progress.max = 0, int(self.experiment.rounds)
            self.progress.layout.visibility = "visible"
            thread.start()

    def _cancel(self) -> bool:
        """Leave a training, if there is one, to itself: it ends at its next recorded round, and shows nothing more."""
        with self._painting:
            if self._training is None:
                return False
            self._training[1].set()
            self._training_ends()
            return True

    def _training_ends(self) -> None:
        self._training = None
        self.train.description, self.train.icon, self.progress.layout.visibility = "Train", "play", "hidden"

    def _train(self, experiment: Experiment, cancelled: threading.Event) -> None:
        """Train in a thread of its own, while the widgets go on listening."""

        def progress(done: int, total: int) -> None:
            if cancelled.is_set():
                raise _Cancelled
            self.progress.value = done

        trained, said = None, ""
        try:
            trained = train(experiment, progress=progress)
            said = f"Trained for {trained.dataset['round'].values[-1]} rounds."
        except _Cancelled:
            return
        except DivergedError as error:
            trained, said = error.trajectory, str(error)
        except Exception as error:  # in a thread nobody else would hear of it
            said = str(error) if isinstance(error, MISTAKES) else f"a defect of the program: {error!r}"
        with self._painting:
            if not cancelled.is_set():
                self.trained = trained
                self._draw_curves()
                self.note.value = escape(" ".join(said.split()))
                self._training_ends()

    # To go on with elsewhere

    def _copy(self) -> None:
        self._source.value, self._source.layout.display = self.python(), None
        self.note.value = "The source is below: Ctrl+A and Ctrl+C copy it."
        self._source.focus()

    def _save(self) -> None:
        path = Path(self.name.value.strip())
        try:
            if not path.name:
                raise InputError("give the file a name, such as experiment.toml")
            if not path.parent.is_dir():
                raise InputError(f"there is no folder {path.parent}: make it first, or choose another")
            if path.exists():
                raise InputError(f"{path} exists already, and is left as it is: choose another name")
            with replacing(path) as temporary:
                temporary.write_text(self.toml(), encoding="utf-8")
            self.note.value = f"Written to {escape(str(path))}."
        except MISTAKES as error:
            self.note.value = escape(str(error))


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
    edge = 1 if time == "rounds" else 0
    about, beside = "", "not above" if trajectory.stable else "above"
    if "spectral_residual" in facts:  # beyond the edge, a stable run is there by no more than that
        about, beside = "about ", "within its residual of" if trajectory.stable and value > edge else beside
    said = f"{name}: {state}, {what} {about}{value:.6g}, {beside} {edge}."
    bound = facts["stable_step_size"]
    if time == "rounds" and not math.isnan(bound):
        said += f" Any step size up to {bound:.3g} is stable."
    elif not trajectory.stable:
        said += " Try a smaller step size, or other weights."
    return said


@cache
@one_thread()  # threads would wait for one another in many small products
def _placed(spec: str, agents: int) -> nx.Graph:
    """A graph that knows where its agents are drawn: to find that out takes longer than to draw them."""
    graph = from_spec(sized(spec, agents))
    if not nx.get_node_attributes(graph, "pos"):
        links = graph.to_undirected()
        place = nx.circular_layout if spec.partition(":")[0] in ROUND else nx.kamada_kawai_layout
        nx.set_node_attributes(graph, place(links), "pos")
    return graph


def _spec(name: str, agents: int) -> str:
    """A graph of that name for so many agents, as near to a square or a power of two as there is one."""
    rows = next(r for r in range(math.isqrt(agents), 0, -1) if agents % r == 0)
    sizes = {"agents": agents, "rows": rows, "columns": agents // rows, "dimension": max(1, agents.bit_length() - 1)}
    return GRAPHS.get(name, name).format(**sizes)


def _resized(spec: str, agents: int) -> str:
    """The graph of a table for so many agents, with what else it was asked for by."""
    name, colon, sizes = spec.partition(":")
    if "{rows}" in GRAPHS.get(name, "") or "{dimension}" in GRAPHS.get(name, ""):
        return _spec(name, agents)
    return ",".join([f"{name}:{agents}", *sizes.split(",")[1:]]) if colon else spec


def _show(widget: Any, value: Any) -> None:
    """Let a widget have a value, and add it to what can be chosen if need be."""
    if isinstance(widget, widgets.Dropdown | widgets.SelectionSlider):
        if value not in widget.options:
            widget.options = [*widget.options, value]
        widget.value = value
    elif isinstance(widget, widgets.FloatLogSlider):
        widget.min, widget.max = (f(e, math.log10(value)) for f, e in ((min, widget.min), (max, widget.max)))
        if rounded(widget.value) != value:  # a slider that is being moved is left where it is
            widget.value = value
    else:
        widget.min, widget.max = min(widget.min, value), max(widget.max, value)
        widget.value = value


def rounded(value: float, /) -> float:
    """To the three digits that a slider shows."""
    return float(f"{value:.3g}")


def _tables_of(start: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    """Tables of one's own, in which what can be chosen is named even where it is as by default."""
    if start is None:
        return copy.deepcopy(START)
    if isinstance(start, Mapping):
        tables, folder = copy.deepcopy(dict(start)), Path()
        Experiment.from_dict(tables)
    else:
        Experiment.from_toml(start)  # names the file where it finds a mistake
        tables, folder = tables_of(start)
    for table in ("data", "mixing"):  # wherever they are saved, or run
        tables[table] = with_paths(tables[table], folder.resolve())
    defaults = inspect.signature(NETWORKS[tables["model"]["name"]]).parameters
    for key in ("width", "depth"):
        if key in defaults:
            tables["model"].setdefault(key, defaults[key].default)
    tables["split"].setdefault("by", "iid")
    mixing = tables["mixing"]
    if "graph" in mixing and not {"scheme", "schedule", "weights"} & set(mixing):
        graph = from_spec(sized(mixing["graph"], tables["split"]["agents"]))
        mixing["weights"] = usual_weights(graph).removesuffix("_weights")
    return tables
