"""The controls of the explorer: widgets, and the entries of an experiment's tables that they stand for."""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkp2p.algorithms import ALGORITHMS
from ntkp2p.algorithms.delayed import LATE
from ntkp2p.base.errors import InputError
from ntkp2p.base.imports import needed
from ntkp2p.base.registry import parameters_of
from ntkp2p.base.specs import named_in
from ntkp2p.models import NETWORKS
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.toml import tables_of, with_paths
from ntkp2p.topology import graphs
from ntkp2p.topology.graphs import from_spec, sized
from ntkp2p.topology.matrix import usual_weights

with needed("explore", "notebooks"):
    import ipywidgets as widgets

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
WEIGHTS = ("metropolis", "max_degree", "lazy_metropolis", "best_constant", "fastest_mixing", "push")


@dataclass(frozen=True)
class Control:
    """A widget and the entry of a table that it stands for.

    Attributes
    ----------
    widget
        What is moved.
    table
        Whose entry it is: a name, or names separated by a dot; empty for the experiment itself.
    key
        The entry.
    default
        What the widget shows where there is no such entry: a value, or a function of the tables. None if the entry can
        then not be chosen.
    """

    widget: Any
    table: str
    key: str
    default: Any = None

    def read(self, tables: Mapping[str, Any], /) -> None:
        """Show what the tables have; what they have not cannot be chosen."""
        if self.of_algorithm:
            taken = self.is_taken(tables)
            self.widget.layout.display = None if taken else "none"
            if not taken:  # it keeps its value until an algorithm takes it
                return
        value = self._entries(tables).get(self.key)
        value = self._default(tables) if value is None else value
        self.widget.disabled = value is None
        if value is not None:
            show(self.widget, named_in(graphs.GRAPHS, value)[0] if self.key == "graph" else value)

    def write(self, tables: dict[str, Any], /) -> None:
        """Take over what the widget shows; its default needs no entry."""
        value = rounded(self.widget.value) if isinstance(self.widget.value, float) else self.widget.value
        entries = self._entries(tables)
        if value == self._default(tables):
            entries.pop(self.key, None)
        else:
            entries[self.key] = value

    @property
    def of_algorithm(self) -> bool:
        """Whether it stands for a parameter that some algorithms have and others do not."""
        return self.table.startswith("algorithm")

    def is_taken(self, tables: Mapping[str, Any], /) -> bool:
        """Whether the algorithm of the tables has this parameter."""
        compression = self.table.partition(".")[2]
        return (compression or self.key) in {"name", *LATE, *parameters_of(ALGORITHMS[tables["algorithm"]["name"]])}

    def _default(self, tables: Mapping[str, Any]) -> Any:
        return self.default(tables) if callable(self.default) else self.default

    def _entries(self, tables: Any) -> Any:
        for name in filter(None, self.table.split(".")):
            tables = tables.setdefault(name, {})
        return tables


def controls(data: Mapping[str, Any], /) -> dict[str, Control]:
    """All controls by name, in the order in which they are shown; `data` has the data sets to choose from."""
    return {
        "data": Control(_choice("data", data), "data", "name"),
        "width": Control(_one_of("width", [2**i for i in range(4, 12)]), "model", "width"),
        "depth": Control(_whole("depth", 1, 4, continuous_update=False), "model", "depth"),
        "agents": Control(_whole("agents", 2, 16), "split", "agents"),
        "partition": Control(_choice("partition", ("iid", "label", "dirichlet")), "split", "by"),
        "alpha": Control(_log("alpha", -2, 2), "split", "alpha"),
        "graph": Control(_choice("graph", GRAPHS), "mixing", "graph"),
        "weights": Control(_choice("weights", WEIGHTS), "mixing", "weights"),
        "algorithm": Control(_choice("algorithm", ALGORITHMS), "algorithm", "name"),
        "step_size": Control(_log("step size", -3, 1), "algorithm", "step_size"),
        "steps": Control(_whole("local steps", 1, 8), "algorithm", "steps", 1),
        "delay": Control(_whole("update delay", 0, 8), "algorithm", "delay", 0),
        "compression": Control(_choice("compression", ("random_k", "top_k")), "algorithm.compression", "name"),
        "keep": Control(_log("sent share", -2, -0.05, value=0.1), "algorithm.compression", "keep"),
        "averaging_rate": Control(_log("averaging rate", -3, 0, value=0.1), "algorithm", "averaging_rate", _share_sent),
        "dense_rounds": Control(_whole("dense rounds", 0, 50), "algorithm", "dense_rounds", 0),
        "gradient_rounds": Control(_whole("gradient rounds", 1, 100, value=50), "algorithm", "gradient_rounds"),
        "gossip_rounds": Control(_whole("gossip rounds", 0, 50, value=8), "algorithm", "gossip_rounds"),
        "momentum": Control(_linear("momentum", 0, 0.95), "algorithm", "momentum", 0.0),
        "gradient_delay": Control(_whole("gradient delay", 0, 8), "algorithm", "gradient_delay", 0),
        "message_delay": Control(_whole("message delay", 0, 8), "algorithm", "message_delay", 0),
        "rounds": Control(widgets.BoundedIntText(min=1, max=100_000, **named("rounds")), "", "rounds"),
    }


def _share_sent(tables: Mapping[str, Any]) -> Any:
    """γ where none is given."""
    return tables["algorithm"]["compression"].get("keep")


def named(name: str) -> dict[str, Any]:
    return {"description": name, "layout": widgets.Layout(width="280px"), "style": {"description_width": "100px"}}


def _choice(name: str, options: Any) -> Any:
    return widgets.Dropdown(options=list(options), **named(name))


def _one_of(name: str, options: Any) -> Any:
    return widgets.SelectionSlider(options=options, continuous_update=False, **named(name))


def _log(name: str, least: float, most: float, **options: Any) -> Any:
    return widgets.FloatLogSlider(
        min=least, max=most, step=0.05, readout_format=".3g", **({"value": 1.0} | options), **named(name)
    )


def _linear(name: str, least: float, most: float) -> Any:
    return widgets.FloatSlider(min=least, max=most, step=0.05, value=least, **named(name))


def _whole(name: str, least: int, most: int, **options: Any) -> Any:
    return widgets.IntSlider(min=least, max=most, **({"value": least} | options), **named(name))


def follow(name: str, tables: dict[str, Any], known: Mapping[str, Control], start: Mapping[str, Any], /) -> None:
    """Change what goes with the entry of a control that was moved.

    Parameters
    ----------
    name
        Of the control.
    tables
        Which have the new entry already.
    known
        All controls.
    start
        The tables "data" and "algorithm" by name with which it began, which are restored as a whole.
    """
    split, mixing, chosen = tables["split"], tables["mixing"], known[name].widget.value
    if name == "data":
        tables["data"] = copy.deepcopy(start["data"][chosen])
    elif name == "partition":
        for key in ("alpha", "skew"):
            split.pop(key, None)
        if chosen == "dirichlet":
            known["alpha"].write(tables)
    elif name == "graph":
        mixing["graph"] = fitted(chosen, split["agents"])
    elif name == "agents" and "graph" in mixing:
        mixing["graph"] = resized(mixing["graph"], split["agents"])
    elif name == "algorithm":
        tables["algorithm"] = copy.deepcopy(start["algorithm"].get(chosen, {})) | {"name": chosen}
        for control in known.values():
            if control.of_algorithm and control.is_taken(tables):
                control.write(tables)
    elif name == "compression":
        tables["algorithm"]["compression"] = {"name": chosen}
        known["keep"].write(tables)
    elif name == "keep":
        tables["algorithm"].pop("averaging_rate", None)
    if name in ("graph", "algorithm"):
        _take_weights(tables)


def _take_weights(tables: dict[str, Any]) -> None:
    """Take weights that the algorithm can use over this graph, where the ones that were chosen cannot be."""
    mixing = tables["mixing"]
    if not {"graph", "weights"} <= set(mixing) or {"scheme", "schedule"} & set(mixing):
        return
    try:
        directed = from_spec(sized(mixing["graph"], tables["split"]["agents"])).is_directed()
    except InputError:  # which is said when the experiment is built
        return
    columns = ALGORITHMS[tables["algorithm"]["name"]].stochastic == "column"
    if directed and columns:
        mixing["weights"] = "push"
    elif not (directed or columns) and mixing["weights"] == "push":
        mixing["weights"] = "metropolis"


def fitted(name: str, agents: int) -> str:
    """A graph of that name for so many agents, as near to a square or a power of two as there is one."""
    rows = next(r for r in range(math.isqrt(agents), 0, -1) if agents % r == 0)
    sizes = {"agents": agents, "rows": rows, "columns": agents // rows, "dimension": max(1, agents.bit_length() - 1)}
    return GRAPHS.get(name, name).format(**sizes)


def resized(spec: str, agents: int) -> str:
    """The graph of a table for so many agents, with what else it was asked for by."""
    name, sizes = named_in(graphs.GRAPHS, spec)
    if "{rows}" in GRAPHS.get(name, "") or "{dimension}" in GRAPHS.get(name, ""):
        return fitted(name, agents)
    return spec if sizes is None else ",".join([f"{name}:{agents}", *sizes.split(",")[1:]])


def show(widget: Any, value: Any) -> None:
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


def tables_from(start: Mapping[str, Any] | str | os.PathLike[str] | None) -> dict[str, Any]:
    """A copy of the tables with every choice named, defaults included."""
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
    defaults = parameters_of(NETWORKS[tables["model"]["name"]])
    for key in ("width", "depth"):
        if key in defaults:
            tables["model"].setdefault(key, defaults[key].default)
    tables["split"].setdefault("by", "iid")
    mixing = tables["mixing"]
    if "graph" in mixing and not {"scheme", "schedule", "weights"} & set(mixing):
        graph = from_spec(sized(mixing["graph"], tables["split"]["agents"]))
        mixing["weights"] = usual_weights(graph).removesuffix("_weights")
    return tables
