"""The tables of an experiment, as `Experiment.from_dict` takes them, written down: in TOML, and as Python source.

One description, three uses: it is run, it is a file for the command line, and it is a program to go on from.
"""

import ast
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w

from ntkp2p.algorithms import ALGORITHMS, COMPRESSORS
from ntkp2p.algorithms.delayed import LATE
from ntkp2p.asynchrony import CLOCKS
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.registry import Registry, in_order, parameters_of
from ntkp2p.base.specs import arguments_of, required
from ntkp2p.models import NETWORKS
from ntkp2p.topology.graphs import GRAPHS, from_spec, sized
from ntkp2p.topology.schedules import SCHEDULES
from ntkp2p.topology.weights import WEIGHTS, usual_name


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
        It imports this package, calls its public functions only, and imports the modules of the choices that the
        tables name as ``"package.module:Name"``.

    Raises
    ------
    KeyError, ValueError
        For tables of which `Experiment.from_dict` makes none.
    """
    tables, agents = dict(tables), tables["split"]["agents"]
    data = dict(tables.pop("data"))
    split = _call("split", **tables.pop("split"))
    fields = {
        "model": _made(NETWORKS, "p2p.models", dict(tables.pop("model"))),
        "data": f"{_call('p2p.data.load', repr(data.pop('name')), **data)}.{split}",
        "mixing": _mixing(dict(tables.pop("mixing")), agents, tables["rounds"]),
        "algorithm": _algorithm(dict(tables.pop("algorithm"))),
        **{name: _literal(value) for name, value in tables.items()},
    }
    lines = "".join(f"    {name}={source},\n" for name, source in fields.items())
    experiment = f"experiment = p2p.Experiment(\n{lines})\n"
    return "\n".join(["import ntkp2p as p2p", *(f"import {m}" for m in _modules(experiment)), "", experiment])


def _modules(source: str) -> list[str]:
    """The users' modules whose functions the source calls."""
    called = (ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return sorted({name.rpartition(".")[0] for name in called if re.fullmatch(r"(?!p2p\.)(\w+\.)+\w+", name)})


class _Source(str):
    """What is source already, and no text to be quoted."""


def _call(function: str, /, *first: str, **named: Any) -> _Source:
    return _Source(f"{function}({', '.join([*first, *(f'{name}={_literal(v)}' for name, v in named.items())])})")


def _made(registry: Registry, package: str, entries: dict[str, Any], *, key: str = "name") -> _Source:
    """A call of a choice, which is known by its own name in one of our packages, with the other entries."""
    name = entries.pop(key)
    function = _function(registry, package, name)
    first, others = in_order(registry[name], entries)
    return _call(function, *map(_literal, first), **others)


def _function(registry: Registry, package: str, name: str) -> str:
    if name.startswith(("p2p.", "p2p:")):
        raise InputError(f"{name} cannot be written as Python, where p2p is ntkp2p: give its module another name")
    return f"{package}.{registry[name].__name__}" if name in registry else name.replace(":", ".")


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
    if isinstance(entries.get("compression"), Mapping):
        entries["compression"] = _made(COMPRESSORS, "p2p", dict(entries["compression"]))
    algorithm = _made(ALGORITHMS, "p2p", entries)
    return _call("p2p.Delayed", algorithm, **delays) if delays else algorithm


def _mixing(entries: dict[str, Any], agents: int, rounds: int) -> _Source:
    if "scheme" in entries:
        return _asynchronous(entries, agents, rounds)
    if "schedule" not in entries:
        return _unscheduled(entries, agents)
    parameters = parameters_of(SCHEDULES[entries["schedule"]])
    if "mixing" in parameters:
        sources = {key: entries.pop(key) for key in ("file", "files", "graph", "weights") if key in entries}
        entries = {"mixing": _unscheduled(sources, agents), **entries}
    if "graph" in entries:
        entries["graph"] = _graph(entries["graph"], agents)
    entries |= {key: value for key, value in {"agents": agents, "rounds": rounds}.items() if key in parameters}
    return _made(SCHEDULES, "p2p.schedules", entries, key="schedule")


def _unscheduled(entries: dict[str, Any], agents: int) -> _Source:
    if "graph" in entries:
        return _weighted(entries["graph"], entries.get("weights"), agents)
    if "file" in entries:
        return _call("p2p.load_mixing", repr(entries["file"]))
    return _call("p2p.schedules.periodic", _list(_call("p2p.load_mixing", repr(path)) for path in entries["files"]))


def _weighted(spec: str, weights: str | None, agents: int) -> _Source:
    if weights is None:
        weights = usual_name(from_spec(sized(spec, agents)))
    if weights in WEIGHTS and weights.startswith("lazy_"):
        return _call("p2p.lazy", _weighted(spec, weights.removeprefix("lazy_"), agents))
    return _call(_function(WEIGHTS, "p2p", weights), _graph(spec, agents))


def _graph(spec: str, agents: int) -> _Source:
    name, arguments = arguments_of(GRAPHS, sized(spec, agents))
    parameters = parameters_of(GRAPHS[name])
    sizes = [p for p in required(parameters) if parameters[p].kind is not inspect.Parameter.KEYWORD_ONLY]
    function = _function(GRAPHS, "p2p.graphs", name)
    return _call(function, *(_literal(arguments.pop(size)) for size in sizes), **arguments)


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
    clocks = _call("p2p.AsynchronousGossip", agents=agents, **entries)
    return clocks if seed is None else _Source(f"{clocks}.{_call('simulate', events=rounds, seed=seed)}")


def _clocks(entries: Mapping[str, Any] | list, agents: int) -> _Source:
    if isinstance(entries, list):
        return _list(_clocks(each, agents) for each in entries)
    entries = dict(entries)
    if "trace" in entries:
        return _call("p2p.clocks.load_trace", repr(entries["trace"]), str(agents))
    return _made(CLOCKS, "p2p.clocks", entries, key="clock")


def _list(sources: Iterable[str]) -> _Source:
    return _Source(f"[{', '.join(sources)}]")
