"""The widgets behind `ntkp2p.explore`: tables of an experiment, and pictures of what they say.

The tables are the only state. A control reads its value from them and writes it into them; whatever is shown, trained,
copied or saved is made of them.
"""

import copy
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import jax
import networkx as nx
import numpy as np
from matplotlib.axes import Axes

from ntkp2p.algorithms import DGD, Algorithm, Compressor
from ntkp2p.algorithms.compression import compressors_of, with_compressors
from ntkp2p.base.errors import InputError
from ntkp2p.base.files import replacing
from ntkp2p.base.imports import needed
from ntkp2p.data import AgentData
from ntkp2p.explorer.controls import DATA, controls, follow, named, tables_from
from ntkp2p.explorer.pictures import Picture, placed, verdict
from ntkp2p.kernels import Features
from ntkp2p.runs import plots as runs_plots
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.mean_field import with_measured_shares
from ntkp2p.runs.prediction import explored
from ntkp2p.runs.tables import as_python, as_toml
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.runs.trajectory import Trajectory
from ntkp2p.topology import plots as topology_plots

with needed("explore", "notebooks"):
    import ipywidgets as widgets

VARIABLES = ("local_loss", "global_loss", "consensus_distance", "parameter_distance")
#: What goes wrong by a choice of the user, such as a kernel that JAX finds no memory for, and is said in place of the
#: pictures.
MISTAKES = (InputError, MemoryError, jax.errors.JaxRuntimeError, OSError)


class _Cancelled(Exception):
    pass


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


class Explorer(widgets.VBox):
    """Widgets for an experiment, of what `ntkp2p.explore` makes one.

    Attributes
    ----------
    tables
        The experiment as `Experiment.from_dict` takes it.
    experiment
        The run that is shown; None while the tables make none.
    predicted
        Its predictions, "rounds" and "flow" where it has one, without counters.
    trained
        Its networks' curves, once they are trained; else None.
    seconds
        What the last move took: "prediction", "drawing" and "encoding" of the pictures.
    """

    def __init__(self, start: Mapping[str, Any] | str | os.PathLike[str] | None = None):
        self.tables = tables_from(start)
        data, algorithm = (copy.deepcopy(self.tables[name]) for name in ("data", "algorithm"))
        self._start = {"data": DATA | {data["name"]: data}, "algorithm": {algorithm["name"]: algorithm}}
        self.experiment: Experiment | None = None
        self.predicted: Mapping[str, Trajectory] = {}
        self.trained: Trajectory | None = None
        self.seconds = dict.fromkeys(("prediction", "drawing", "encoding"), 0.0)
        self._eigenvalues = np.empty(0)
        self._drawn: Any = None
        self._pool: tuple[str, np.ndarray, Features] | None = None
        self._shares: dict[str, list[Compressor]] = {}
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
        self._controls = controls(self._start["data"])
        for name, control in self._controls.items():
            setattr(self, name, control.widget)
            control.widget.observe(lambda _, name=name: self._changed(name), "value")
        self.variable = widgets.Dropdown(options=list(VARIABLES), **named("show"))
        self.variable.observe(lambda _: self._draw_curves(), "value")
        buttons = self._make_buttons()
        moved = [control.widget for control in self._controls.values()]
        self._panel = widgets.VBox([*moved, self.variable, *buttons], layout=widgets.Layout(flex="0 0 296px"))

        self.verdict = widgets.HTML()
        self.curves = Picture((600, 330), (0.11, 0.14, 0.86, 0.74))
        self.net = Picture((270, 320), (0.02, 0.02, 0.96, 0.88))
        self.disc = Picture((330, 320), (0.2, 0.15, 0.74, 0.75))
        self._pictures = widgets.VBox([self.curves.image, widgets.HBox([self.net.image, self.disc.image])])
        shown = widgets.Layout(flex="0 1 600px", min_width="0")
        self._view = widgets.VBox([self.verdict, self._pictures], layout=shown)
        self._source = widgets.Textarea(rows=12, layout=widgets.Layout(max_width="900px", width="100%", display="none"))

    def _make_buttons(self) -> list[Any]:
        self.train = widgets.Button(description="Train", icon="play", layout=widgets.Layout(width="90px"))
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="180px", visibility="hidden"))
        self.copy = widgets.Button(description="Copy as Python", layout=widgets.Layout(width="136px"))
        self.save = widgets.Button(description="Save as TOML", layout=widgets.Layout(width="136px"))
        self.name = widgets.Text("experiment.toml", continuous_update=False, **named("file"))
        self.note = widgets.HTML(layout=widgets.Layout(width="280px"))
        self.train.on_click(lambda _: self._toggle_training())
        self.copy.on_click(lambda _: self._copy())
        self.save.on_click(lambda _: self._save())
        return [widgets.HBox([self.train, self.progress]), widgets.HBox([self.copy, self.save]), self.name, self.note]

    def _read(self) -> None:
        """Let all controls show what the tables have."""
        self._deaf = True
        try:
            for control in self._controls.values():
                control.read(self.tables)
        finally:
            self._deaf = False

    def _changed(self, name: str) -> None:
        """Write what a control shows into the tables, and what goes with it."""
        if self._deaf:
            return
        self._controls[name].write(self.tables)
        follow(name, self.tables, self._controls, self._start)
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
            self._shares.clear()
        agents = replace(experiment.data, dataset=data)
        run = replace(experiment, data=agents, algorithm=self._measured(experiment))
        return run, self._pool[2].dealt(np.concatenate(agents.indices))

    def _measured(self, experiment: Experiment) -> Algorithm:
        """The algorithm with the shares of its compressors, which are measured once for all other constants."""
        asked = repr([self.tables["split"], self.tables.get("loss"), compressors_of(experiment.algorithm)])
        if asked not in self._shares:
            self._shares[asked] = compressors_of(with_measured_shares(experiment).algorithm)
        measured = iter(self._shares[asked])
        return with_compressors(experiment.algorithm, lambda _: next(measured))

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
        runs_plots.agent_curves(shown, str(self.variable.value), ax=ax)

    def _disc(self, ax: Axes) -> None:
        title = f"{len(self._eigenvalues)} eigenvalues of a round"
        topology_plots.unit_disc(self._eigenvalues, ax=ax, title=title, mixing=False)
        reach = max(1, 2 * int(ax.get_xlim()[1] / 3))
        ax.set(xticks=(-reach, 0, reach), yticks=(-reach, 0, reach))  # every label takes a millisecond

    def _draw_graph(self) -> None:
        mixing = self.experiment and self.experiment.topology.matrix
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
            graph = placed(spec, len(mixing))
        topology_plots.weighted_graph(mixing, graph, ax=ax)
        ax.set_title("width: weights; size: self-weights")

    def _draw(self, picture: "Picture", draw: Callable[..., Any], *shown: Any) -> None:
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
        except Exception as error:  # in a thread it would be lost
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
