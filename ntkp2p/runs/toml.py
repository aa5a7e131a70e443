"""Read an experiment's tables, from TOML or from a dictionary, and build what they describe."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntkp2p.algorithms import ALGORITHMS, COMPRESSORS, Algorithm, Delayed
from ntkp2p.algorithms.delayed import LATE
from ntkp2p.asynchrony import CLOCKS, AsynchronousGossip, Events, load_trace
from ntkp2p.base.checks import LARGEST_SEED, lookup, real, whole
from ntkp2p.base.errors import InputError
from ntkp2p.base.reading import parsing, text_of
from ntkp2p.base.registry import Registry, parameters_of
from ntkp2p.topology import Schedule, load_mixing, schedules
from ntkp2p.topology.graphs import from_spec, sized
from ntkp2p.topology.mixing import Mixing
from ntkp2p.topology.weights import from_graph


def tables_of(path: str | os.PathLike[str], /) -> tuple[dict[str, Any], Path]:
    """The tables of an experiment in TOML, and the folder that paths in them are relative to.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {found}: give the path of an experiment in TOML")
    text = text_of(path)
    with parsing(path, "TOML", "correct the file"):
        return tomllib.loads(text), path.parent


def named(registry: Registry, entries: Mapping[str, Any], *, table: str | None = None, key: str = "name") -> Any:
    """What a table describes: the choice under `key`, made with the other entries."""
    entries, table = dict(entries), table or registry.kind
    name = take(entries, table, key)
    return registry.make(name, **checked(registry[name], entries, table))


def algorithm_from(entries: Mapping[str, Any]) -> Algorithm:
    delays = {LATE[key]: whole(value, key, least=0) for key, value in entries.items() if key in LATE}
    entries = {key: value for key, value in entries.items() if key not in LATE}
    if isinstance(entries.get("compression"), Mapping):
        entries["compression"] = named(COMPRESSORS, entries["compression"])
    algorithm = named(ALGORITHMS, entries)
    return Delayed(algorithm, **delays) if delays else algorithm


def take(entries: dict[str, Any], table: str, key: str) -> Any:
    if key not in entries:
        raise InputError(f"[{table}] needs {key} = ...")
    return entries.pop(key)


def checked(function: Callable, entries: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The entries, if they are all parameters of the function and none of its required ones is missing."""
    parameters = {name: p for name, p in parameters_of(function).items() if name not in ("dataset", "self")}
    for key in entries:
        lookup(parameters, key, f"key in [{table}]")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in entries:
            raise InputError(f"[{table}] needs {name} = ...")
    return dict(entries)


def call(load: Callable, table: str, entries: Mapping[str, Any], name: str) -> Any:
    try:
        return load(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})
    except InputError as error:
        raise type(error)(f"[{table}] {error}") from error


def with_paths(entries: Mapping[str, Any], folder: Path, /) -> dict[str, Any]:
    """A table whose paths, relative to a folder, are such as the process takes them."""
    for key in ("file", "folder"):
        if not isinstance(entries.get(key, ""), str):
            raise InputError(f"{key} must be a path in quotes, found {entries[key]!r}")
    paths: dict[str, Any] = {key: str(folder / entries[key]) for key in ("file", "folder") if key in entries}
    if "files" in entries:
        names = entries["files"]
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise InputError(f'files must be a list of paths in quotes, ["W0.csv", "W1.csv"], found {names!r}')
        paths["files"] = [str(folder / name) for name in names]
    for key, value in entries.items():  # of clocks
        if isinstance(value, Mapping) and isinstance(value.get("trace"), str):
            paths[key] = {**value, "trace": str(folder / value["trace"])}
    return {**entries, **paths}


# What mixing is made of, and what a schedule may ask for beside it; the run knows the agents and the rounds.
_SOURCES = ("file", "files", "graph", "weights")
_ASKED = {
    key: tuple(name for name, build in schedules.SCHEDULES.items() if key in parameters_of(build))
    for key in ("seed", "probability", "agent", "leaves", "returns", "stochastic")
}


#: The fields of asynchronous agents, in addition to the graph and its weights.
_CLOCKED = [name for name in parameters_of(AsynchronousGossip) if name not in ("agents", "weight")]


def mixing_from(entries: dict[str, Any], agents: int, rounds: Any) -> np.ndarray | Mixing:
    if "scheme" in entries:
        return _asynchronous(entries, agents, rounds)
    if "schedule" in entries:
        return _schedule(entries, agents, rounds)
    for key in entries:
        lookup(dict.fromkeys((*_SOURCES, "schedule", *_ASKED)), key, "key in [mixing]")
    for key in entries:
        if key in _ASKED:
            names = " or ".join(f'"{name}"' for name in _ASKED[key])
            raise InputError(f"[mixing] takes {key} only with schedule = {names}: leave it out")
    return _unscheduled(entries, agents)


def _unscheduled(entries: Mapping[str, Any], agents: int) -> np.ndarray | Schedule:
    sources = [key for key in ("file", "files", "graph") if key in entries]
    if len(sources) != 1:
        raise InputError(
            '[mixing] needs either graph = "cycle", file = "W.csv", files = ["W0.csv", "W1.csv"], '
            f'schedule = "one_peer_exponential" or scheme = "push", found {" and ".join(sources) or "none of them"}'
        )
    if "graph" in entries:
        return from_graph(from_spec(sized(entries["graph"], agents)), entries.get("weights"))
    if "weights" in entries:
        raise InputError(f"[mixing] with {sources[0]} takes no weights: what is in a file are the weights")
    return load_mixing(entries["file"]) if "file" in entries else schedules.periodic(map(load_mixing, entries["files"]))


def _asynchronous(entries: dict[str, Any], agents: int, rounds: Any) -> Events | AsynchronousGossip:
    """Clocks, or with a seed the events of one draw, in training as in prediction."""
    for key in entries:
        lookup(dict.fromkeys((*_CLOCKED, "weight", "weights", "seed")), key, "key in [mixing] with a scheme")
    given = {key: value for key, value in entries.items() if key in _CLOCKED}
    for name in ("update", "gossip"):
        if name not in given:
            raise InputError(f'[mixing] with a scheme needs {name} = {{clock = "exponential", rate = 1.0}}')
        given[name] = _clocks(given[name], name, agents)
    if isinstance(given.get("transmission"), Mapping):
        given["transmission"] = _clocks(given["transmission"], "transmission", agents)
    if "graph" in given:
        given["graph"] = from_spec(sized(given["graph"], agents))
    if "cap" in given:
        given["cap"] = tuple(given["cap"]) if isinstance(given["cap"], list) else given["cap"]
    if "weight" in entries:
        given["weight"] = _number(entries["weight"], "weight in [mixing]", float)
    if "weights" in entries:
        if "graph" not in given or "weight" in entries:
            raise InputError("[mixing] takes weights with a graph, and then no weight: name one of both")
        given["weight"] = from_graph(given["graph"], entries["weights"])
    clocks = AsynchronousGossip(agents=agents, **given)
    if "seed" not in entries:
        return clocks
    seed = whole(entries["seed"], "seed in [mixing]", least=0, most=LARGEST_SEED)
    return clocks.simulate(events=whole(rounds, "rounds", least=1), seed=seed)


def _clocks(entries: Any, name: str, agents: int) -> Any:
    """One clock, or one for each agent: of a list of tables, or of a trace."""
    if isinstance(entries, list):
        return [_clocks(each, name, agents) for each in entries]
    if not isinstance(entries, Mapping):
        raise InputError(f'{name} in [mixing] must be {{clock = "exponential", rate = 1.0}}, found {entries!r}')
    if set(entries) == {"trace"}:
        return load_trace(entries["trace"], agents)
    return named(CLOCKS, entries, table=f"mixing.{name}", key="clock")


def _schedule(entries: dict[str, Any], agents: int, rounds: Any) -> Mixing:
    name, given = entries["schedule"], {k: v for k, v in entries.items() if k != "schedule"}
    build = schedules.SCHEDULES[name]
    parameters = parameters_of(build)
    for key in given:
        lookup(dict.fromkeys((*_SOURCES, *_ASKED, *parameters)), key, "key in [mixing]")
    if "mixing" in parameters:
        given["mixing"] = _unscheduled({key: given.pop(key) for key in _SOURCES if key in given}, agents)
    for key, value in given.items():
        if key not in parameters:
            raise InputError(f'[mixing] schedule = "{name}" takes no {key}: leave it out')
        given[key] = _number(value, f"{key} in [mixing]", parameters[key].annotation)
    if "graph" in given:
        given["graph"] = from_spec(sized(given["graph"], agents))
    run = {"agents": agents, "rounds": whole(rounds, "rounds", least=1)}
    given |= {key: value for key, value in run.items() if key in parameters}
    return schedules.SCHEDULES.make(name, **checked(build, given, "mixing"))


def _number(value: Any, name: str, kind: Any) -> Any:
    """The value, if it is a number where one is asked for, and anything where none is."""
    if kind is int:
        return whole(value, name, least=0)
    if kind is not float:
        return value
    return real(value, name)
