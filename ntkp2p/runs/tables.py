"""The tables of an experiment, as `Experiment.from_dict` takes them, written down: in TOML, and as Python source.

One description, three uses: it is run, it is a file for the command line, and it is a program to go on from.
"""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w

from ntkp2p.algorithms import ALGORITHMS, COMPRESSORS
from ntkp2p.asynchrony import CLOCKS
from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputTypeError
from ntkp2p.topology.graphs import from_spec, sized
from ntkp2p.topology.matrix import usual_weights
from ntkp2p.topology.schedules import SCHEDULES

#: How Python calls a graph's weights; {} is the graph.
WEIGHTS = {
    "metropolis": "p2p.metropolis({})",
    "max_degree": "p2p.max_degree({})",
    "best_constant": "p2p.best_constant({})",
    "lazy_metropolis": "p2p.lazy(p2p.metropolis({}))",
    "fastest_mixing": "p2p.fastest_mixing({})",
    "push": "p2p.push_weights({})",
}


def as_toml(tables: Mapping[str, Any], /) -> str:
    """The text of a TOML file that `Experiment.from_toml` reads.

    Parameters
    ----------
    tables
        As `Experiment.from_dict` takes them.

    Raises
    ------
    TypeError
        For a value that TOML has no word for, such as None.
    """
    try:
        return tomli_w.dumps(tables)
    except TypeError as error:
        raise InputTypeError(f"this cannot be written as TOML: {error}") from error


def as_python(tables: Mapping[str, Any], /) -> str:
    """Python source that makes the same experiment, under the name `experiment`.

    Parameters
    ----------
    tables
        As `Experiment.from_dict` takes them, and valid.

    Returns
    -------
    source
        Which begins with its only import, and calls nothing but this package's public functions.

    Raises
    ------
    KeyError, ValueError
        For tables of which `Experiment.from_dict` makes none.
    """
    tables, agents = dict(tables), tables["split"]["agents"]
    data, model = dict(tables.pop("data")), dict(tables.pop("model"))
    split = _call("split", **tables.pop("split"))
    fields = {
        "model": _call(f"p2p.models.{model.pop('name')}", **model),
        "data": f"{_call('p2p.data.load', repr(data.pop('name')), **data)}.{split}",
        "mixing": _mixing(dict(tables.pop("mixing")), agents, tables["rounds"]),
        "algorithm": _algorithm(dict(tables.pop("algorithm"))),
        **{name: _literal(value) for name, value in tables.items()},
    }
    lines = "".join(f"    {name}={source},\n" for name, source in fields.items())
    return f"import ntkp2p as p2p\n\nexperiment = p2p.Experiment(\n{lines})\n"


class _Source(str):
    """What is source already, and no text to be quoted."""


def _call(function: str, /, *first: str, **named: Any) -> _Source:
    return _Source(f"{function}({', '.join([*first, *(f'{name}={_literal(v)}' for name, v in named.items())])})")


def _literal(value: Any) -> str:
    if isinstance(value, _Source):
        return value
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def _algorithm(entries: dict[str, Any]) -> _Source:
    delays = {late: entries.pop(key) for key, late in LATE.items() if key in entries}
    name = entries.pop("name")
    if isinstance(entries.get("compression"), Mapping):
        by = dict(entries["compression"])
        kind = lookup(COMPRESSORS, by.pop("name"), "compression")
        entries["compression"] = _call(f"p2p.{kind.__name__}", **by)
    algorithm = _call(f"p2p.{lookup(ALGORITHMS, name, 'algorithm').__name__}", **entries)
    return _call("p2p.Delayed", algorithm, **delays) if delays else algorithm


#: What a table and Python call it when an algorithm's gradients or messages are late.
LATE = {"gradient_delay": "gradients", "message_delay": "messages"}


def _mixing(entries: dict[str, Any], agents: int, rounds: int) -> _Source:
    if "scheme" in entries:
        return _asynchronous(entries, agents, rounds)
    if "schedule" not in entries:
        return _unscheduled(entries, agents)
    name = entries.pop("schedule")
    parameters = inspect.signature(lookup(SCHEDULES, name, "schedule")).parameters
    if "mixing" in parameters:
        sources = {key: entries.pop(key) for key in ("file", "files", "graph", "weights") if key in entries}
        entries = {"mixing": _unscheduled(sources, agents), **entries}
    if "graph" in entries:
        entries["graph"] = _graph(entries["graph"], agents)
    entries |= {key: value for key, value in {"agents": agents, "rounds": rounds}.items() if key in parameters}
    return _call(f"p2p.schedules.{name}", **entries)


def _unscheduled(entries: dict[str, Any], agents: int) -> _Source:
    if "graph" in entries:
        return _weighted(entries["graph"], entries.get("weights"), agents)
    if "file" in entries:
        return _call("p2p.load_mixing", repr(entries["file"]))
    return _call("p2p.schedules.periodic", _list(_call("p2p.load_mixing", repr(path)) for path in entries["files"]))


def _weighted(spec: str, weights: str | None, agents: int) -> _Source:
    if weights is None:
        weights = usual_weights(from_spec(sized(spec, agents))).removesuffix("_weights")
    return _Source(lookup(WEIGHTS, weights, "weights").format(_graph(spec, agents)))


def _graph(spec: str, agents: int) -> _Source:
    name, _, sizes = sized(spec, agents).partition(":")
    return _call(f"p2p.graphs.{name.strip()}", *(word.strip() for word in sizes.split(",")))


def _asynchronous(entries: dict[str, Any], agents: int, rounds: int) -> _Source:
    seed = entries.pop("seed", None)
    for name in ("update", "gossip", "transmission"):
        if isinstance(entries.get(name), Mapping | list):
            entries[name] = _clocks(entries[name], agents)
    weights, graph = entries.pop("weights", None), str(entries.pop("graph", ""))
    if graph:
        entries["graph"] = _graph(graph, agents)
        if weights is not None:
            entries["weight"] = _weighted(graph, weights, agents)
    clocks = _call("p2p.AsynchronousGossip", users=agents, **entries)
    return clocks if seed is None else _Source(f"{clocks}.{_call('draw', events=rounds, seed=seed)}")


def _clocks(entries: Mapping[str, Any] | list, agents: int) -> _Source:
    if isinstance(entries, list):
        return _list(_clocks(each, agents) for each in entries)
    entries = dict(entries)
    if "trace" in entries:
        return _call("p2p.clocks.load_trace", repr(entries["trace"]), str(agents))
    return _call(f"p2p.clocks.{lookup(CLOCKS, entries.pop('clock'), 'clock').__name__}", **entries)


def _list(sources: Iterable[str]) -> _Source:
    return _Source(f"[{', '.join(sources)}]")
