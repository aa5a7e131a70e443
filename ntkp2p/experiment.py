"""One frozen description of a run, from Python or from TOML."""

from __future__ import annotations

import copy
import inspect
import os
import textwrap
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jax.sharding import Mesh

from ntkp2p import data as datasets
from ntkp2p._names import lookup
from ntkp2p.algorithms import ALGORITHMS, COMPRESSORS, Algorithm, Delayed, LocalSGD
from ntkp2p.algorithms.awake import must_be_asynchronous
from ntkp2p.asynchrony import CLOCKS, AsynchronousGossip, Events, load_trace
from ntkp2p.data import AgentData
from ntkp2p.data.datasets import whole
from ntkp2p.dynamics.system import flow_time_of_a_round, has_flow
from ntkp2p.losses import LOSSES, name_classes
from ntkp2p.models import NETWORKS, Features, Model, Network, infinite_features, prepare
from ntkp2p.reports import html_table
from ntkp2p.topology import Schedule, load_mixing, schedules, validate_mixing
from ntkp2p.topology.graphs import from_spec, sized
from ntkp2p.topology.weights import from_graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Experiment:
    """A run: who trains what, on which data, over which mixing matrix, by which algorithm, for how long.

    Parameters
    ----------
    model
        One of `ntkp2p.models`, a pair (init, apply), or an object with both (a Flax module).
    data
        The agents' data, `dataset.split(...)`.
    mixing
        W, shape (Q, Q): row q receives. Or one of `ntkp2p.schedules`: round k mixes with its matrix W_k. Or agents with
        clocks of their own, one event being one round: `AsynchronousGossip(...)`, of which every training draws events
        of its own and a prediction is the mean over them, or the `Events` of one draw.
    algorithm
        For instance `DGD(step_size=0.1)`.
    rounds
        The horizon K, at least 1.
    record
        How many rounds are recorded, evenly spaced from 0 to K, or the rounds themselves.
    loss
        What the agents minimise and the measures report: "squared" error, or the "cross_entropy" of classes, the
        outputs being logits. Only the former has a closed form; the latter is predicted step by step.
    batch_size
        So many samples, drawn without replacement by every agent in every round anew, are what a gradient is of; by
        default all of the agent's. A prediction is then of the mean over these draws.
    kernel
        "exact", or "shared": the mean over outputs, cheaper for many outputs and no longer exact. A prediction then
        states `sharing_error`, what it leaves out of the exact kernel.
    kernel_rtol
        Where the kernel's factor stops, relative to the largest diagonal entry; columns are computed until it does, so
        that the samples may be more than a kernel of theirs that fits into memory. By default the kernel
        is computed as a whole and factorised to rounding.
    precision
        In which floats the networks train: "float64" or "float32". Kernels and predictions are always float64.
    seed
        The seed of the agents' common initialisation θ₀.

    Attributes
    ----------
    recorded
        The rounds that are recorded, ascending from 0 to K.

    Raises
    ------
    ValueError, TypeError
        For anything that cannot be run, with what was found and what to do.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> experiment = p2p.Experiment(
    ...     model=p2p.models.affine(),
    ...     data=p2p.data.load("regression", samples=20, test_samples=5).split(agents=4),
    ...     mixing=p2p.metropolis(p2p.graphs.cycle(4)),
    ...     algorithm=p2p.DGD(step_size=0.1),
    ...     rounds=20,
    ...     record=[5, 10],
    ... )
    >>> experiment.recorded
    array([ 0,  5, 10, 20])
    >>> experiment.time(experiment.recorded)
    array([0. , 0.5, 1. , 2. ])
    """

    model: Any
    data: AgentData
    mixing: Any
    algorithm: Algorithm
    rounds: int
    record: int | Sequence[int] = 50
    loss: Literal["squared", "cross_entropy"] = "squared"
    batch_size: int | None = None
    kernel: Literal["exact", "shared"] = "exact"
    kernel_rtol: float | None = None
    precision: Literal["float64", "float32"] = "float64"
    seed: int = 0
    recorded: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if not isinstance(self.data, AgentData):
            raise TypeError(
                f"data must be dealt out to agents, found {type(self.data).__name__}: use data.split(agents=...)"
            )
        if not isinstance(self.algorithm, Algorithm):
            raise TypeError(
                f"algorithm must be an Algorithm, found {self.algorithm!r}: for instance DGD(step_size=0.1)"
            )
        for name in ("rounds", "seed"):
            value = getattr(self, name)
            least = int(name == "rounds")
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or not least <= value < 2**31:
                raise ValueError(f"{name} must be a whole number ≥ {least} and below 2³¹, found {value!r}")
        lookup(LOSSES, self.loss, "loss")
        if self.loss == "cross_entropy":
            _must_have_classes(self.data)
        if self.batch_size is not None:
            _must_be_batch(self.batch_size, self.data)
        lookup(dict.fromkeys(("exact", "shared")), self.kernel, "kernel")
        if not (self.kernel_rtol is None or (isinstance(self.kernel_rtol, float) and 0 < self.kernel_rtol < 1)):
            raise ValueError(f"kernel_rtol must be a number between 0 and 1, found {self.kernel_rtol!r}: 1e-6 is usual")
        lookup(dict.fromkeys(("float64", "float32")), self.precision, "precision")
        mixing = self.mixing
        if isinstance(mixing, Events | AsynchronousGossip):
            _must_be_for(mixing, self.agents, int(self.rounds), self.algorithm)
        else:
            mixing = validate_mixing(
                mixing, agents=self.agents, rounds=int(self.rounds), stochastic=self.algorithm.stochastic
            )
        if isinstance(mixing, Schedule) and self.algorithm.static:
            raise ValueError(f"{self.algorithm.name} takes no mixing that changes over time: {self.algorithm.static}")
        object.__setattr__(self, "mixing", mixing)
        object.__setattr__(self, "recorded", _recorded(self.record, int(self.rounds)))

    @property
    def agents(self) -> int:
        """Q, the number of agents."""
        return self.data.agents

    @property
    def has_flow(self) -> bool:
        """Whether it can be predicted in flow time, too: a gradient flow, or wall-clock time of memoryless clocks."""
        return has_flow(self.algorithm, self.mixing)

    @property
    def asynchronous(self) -> bool:
        """Whether agents have clocks of their own."""
        return isinstance(self.mixing, Events | AsynchronousGossip)

    def drawn(self, draw: int = 0, /) -> Experiment:
        """The run with the events that training number `draw` draws of the agents' clocks; others as they are."""
        if not isinstance(self.mixing, AsynchronousGossip):
            return self
        seed = int(np.random.SeedSequence([int(self.seed), draw]).generate_state(1)[0])
        # It is the same run, and was checked: whether everybody takes part in so few events is left to chance.
        drawn = copy.copy(self)
        object.__setattr__(drawn, "mixing", self.mixing.draw(events=int(self.rounds), seed=seed))
        return drawn

    def time(self, rounds: np.ndarray, /) -> np.ndarray:
        """When some `rounds` are over: flow time η k, or with events wall-clock time; its mean where none are drawn."""
        if isinstance(self.mixing, Events):
            return np.append(0.0, self.mixing.time)[rounds]
        return flow_time_of_a_round(self.algorithm, self.mixing) * np.asarray(rounds)

    def initialise(self) -> Model:
        """The network at the agents' common θ₀.

        Raises
        ------
        ValueError
            If it does not fit the data, or has infinite width and hence no parameters.
        """
        return prepare(self.model, self.data.inputs, self.data.outputs, seed=self.seed)

    def features(
        self,
        *,
        memory: int | None = None,
        mesh: Mesh | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Features:
        """The linear model that the network becomes when it is wide: of infinite width, their average.

        Parameters
        ----------
        memory, mesh, cache, progress
            How the kernel of a finite network is computed, as for `ntkp2p.models.TangentKernel`.

        Raises
        ------
        ValueError
            As `Features.of`; or if a network of infinite width is given memory, a mesh or a cache.
        """
        if isinstance(self.model, Network) and self.model.infinite:
            if not memory is mesh is cache is None:
                raise ValueError(f"{self.model} has its kernel in closed form: leave memory, mesh and cache out")
            rtol = {} if self.kernel_rtol is None else {"rtol": self.kernel_rtol}
            return infinite_features(self.model, self.data.inputs, self.data.outputs, **rtol)
        return Features.of(
            self.initialise(),
            self.data.inputs,
            kernel=self.kernel,
            rtol=self.kernel_rtol,
            memory=memory,
            mesh=mesh,
            cache=None if cache is None else Path(cache),
            progress=progress,
        )

    def describe(self) -> dict[str, Any]:
        """The run in words and numbers that fit a file's attributes."""
        model = self.model
        architecture = model.architecture if isinstance(model, Network) else None
        return {
            "model": repr(model) if not isinstance(model, tuple) else "(init, apply)",
            **({} if architecture is None else {"limit": architecture.limit}),
            "data": f"{self.data.name}, {_checksum(self.data.inputs, self.data.targets)}",
            "split": f"{self.data.by}, {_checksum(self.data.owner)}",
            "mixing": _mixing_in_words(self.mixing),
            "algorithm": self.algorithm.name,
            "constants": repr(self.algorithm),
            "step_size": float(self.algorithm.step_size),
            "loss": self.loss,
            **({"clock": "wall"} if self.asynchronous else {}),
            **({} if self.batch_size is None else {"batch_size": int(self.batch_size)}),
            "seed": int(self.seed),
            "kernel": self.kernel,
            **({} if self.kernel_rtol is None else {"kernel_rtol": self.kernel_rtol}),
        }

    def plot(self) -> list[Axes]:
        """Who mixes with whom, with the weights, and the agents' samples by class; returns both axes.

        Of a schedule the mean over its rounds is drawn, of clocks and events who sends to whom.
        """
        from ntkp2p import plotting

        return plotting.experiment(self)

    def __repr__(self) -> str:
        model = "(init, apply)" if isinstance(self.model, tuple) else repr(self.model)
        mixing = f"W of {self.agents} agents" if isinstance(self.mixing, np.ndarray) else repr(self.mixing)
        run = f"{self.algorithm!r}, {self.rounds} rounds, loss {self.loss!r}, seed {self.seed}, {model}"
        short = [textwrap.shorten(words, 105, placeholder=" …") for words in (run, mixing, repr(self.data))]
        return "Experiment(" + ",\n  ".join(short) + ")"

    def _repr_html_(self) -> str:
        facts = {"agents": self.agents, "rounds": self.rounds, "recorded rounds": len(self.recorded)}
        rows = (facts | self.describe() | {"precision": self.precision}).items()
        return html_table(["Experiment", ""], ((name.replace("_", " "), value) for name, value in rows))

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], /) -> Experiment:
        """Read an experiment from a TOML file.

        Parameters
        ----------
        path
            A file with the fields of this class, `model`, `data`, `split`, `mixing` and `algorithm` being tables;
            the README shows one. Paths in it are relative to its folder.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not TOML, or a key is missing or unknown: the message names it and the closest known one.
        """
        tables, folder = tables_of(path)
        try:
            return cls.from_dict(tables, folder=folder)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], /, *, folder: Path = Path()) -> Experiment:
        """The experiment that a TOML file's tables describe; see `from_toml`.

        Parameters
        ----------
        tables
            Values by key, tables by name.
        folder
            What paths in them are relative to.

        Raises
        ------
        ValueError
            If a key is missing or unknown.
        """
        tables = dict(tables)
        names = ("model", "data", "split", "mixing", "algorithm")
        plain = [f.name for f in fields(cls) if f.init and f.name not in names]
        for key in tables:
            lookup(dict.fromkeys([*names, *plain]), key, "key")
        for key in [*names, "rounds"]:
            if key not in tables:
                raise ValueError(f"{key} is missing: add {'a table [' + key + ']' if key in names else key + ' = 300'}")
        for key in names:
            if not isinstance(tables[key], Mapping):
                raise ValueError(f"{key} must be a table: write [{key}] above its fields")

        source = with_paths(tables["data"], folder)
        name = _take(source, "data", "name")
        data = _call(datasets.load, "data", source, name).split(**_checked(datasets.split, tables["split"], "split"))
        return cls(
            model=_named(NETWORKS, tables["model"], "model"),
            data=data,
            mixing=_mixing(with_paths(tables["mixing"], folder), data.agents, tables["rounds"]),
            algorithm=_algorithm(tables["algorithm"]),
            **{key: tables[key] for key in plain if key in tables},
        )


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
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.parent
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _must_be_for(mixing: Events | AsynchronousGossip, agents: int, rounds: int, algorithm: Algorithm) -> None:
    """Refuse events, or clocks, that do not fit the run."""
    if mixing.users != agents:
        raise ValueError(
            f"mixing has {mixing.users} users but the data are split over {agents} agents: make them agree"
        )
    must_be_asynchronous(algorithm)
    if isinstance(mixing, Events):
        if rounds > len(mixing):
            raise ValueError(
                f"mixing has {len(mixing)} events for a run of {rounds}: one event is one round, draw more of them or "
                f"set rounds = {len(mixing)}"
            )
        mixing.must_be_lively()
        if isinstance(algorithm, LocalSGD) and (made := mixing.updates).min() <= algorithm.delay:
            raise ValueError(
                f"user {made.argmin()} makes {made.min()} updates in {len(mixing)} events, and each is applied "
                f"{algorithm.delay} of its updates later: draw more events, or take a delay below {made.min()}"
            )


def _must_be_batch(size: Any, data: AgentData) -> None:
    least = int(data.sizes.argmin())
    whole(size, "batch_size", least=1)
    if size > data.sizes[least]:
        raise ValueError(
            f"batch_size = {size} is more than the {data.sizes[least]} samples of agent {least}: use at most "
            f"{data.sizes[least]}, or leave it out for full batches"
        )


def _must_have_classes(data: AgentData) -> None:
    if data.classes is None:
        raise ValueError(f'cross-entropy is for classes, and {data.name} is a regression: use loss = "squared"')
    for name in ("targets", "test_targets"):
        if not name_classes(getattr(data, name)):
            raise ValueError(
                f"the {name} of {data.name} do not name classes: cross-entropy takes −1 and +1 for two of them and "
                'one-hot rows for more, other targets go with loss = "squared"'
            )


def _checksum(*arrays: np.ndarray) -> str:
    return f"crc32 {zlib.crc32(b''.join(np.ascontiguousarray(a).tobytes() for a in arrays)):08x}"


def _mixing_in_words(mixing: np.ndarray | Schedule | Events | AsynchronousGossip) -> str:
    if isinstance(mixing, AsynchronousGossip | Events):
        return f"{mixing!r}, {_checksum(*mixing.facts())}"
    if isinstance(mixing, Schedule):
        return f"{mixing!r}, {_checksum(mixing.matrices, mixing.order)}"
    return f"{len(mixing)} agents, {_checksum(mixing)}"


def _recorded(record: int | Sequence[int], rounds: int) -> np.ndarray:
    if isinstance(record, int | np.integer):
        if record < 2:
            raise ValueError(f"record must be at least 2 (the start and the end), found {record}")
        return np.unique(np.linspace(0, rounds, min(int(record), rounds + 1)).round().astype(int))
    try:
        chosen = np.asarray(record)
    except ValueError:  # ragged
        chosen = np.empty(0)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu" or chosen.min() < 0:
        raise ValueError(f"record must be a number of rounds or a list of rounds ≥ 0, found {record!r}")
    if chosen.max() > rounds:
        raise ValueError(f"record asks for round {chosen.max()} of a run of {rounds}: raise rounds, or leave it out")
    return np.unique(np.concatenate([[0], chosen, [rounds]]))


def _named(table: Mapping[str, Callable], entries: Mapping[str, Any], kind: str) -> Any:
    entries = dict(entries)
    build = lookup(table, _take(entries, kind, "name"), kind)
    return build(**_checked(build, entries, kind))


def _algorithm(entries: Mapping[str, Any]) -> Algorithm:
    keys = {"gradient_delay": "gradients", "message_delay": "messages"}
    delays = {keys[key]: whole(value, key, least=0) for key, value in entries.items() if key in keys}
    entries = {key: value for key, value in entries.items() if key not in keys}
    if isinstance(entries.get("compression"), Mapping):
        entries["compression"] = _named(COMPRESSORS, entries["compression"], "compression")
    algorithm = _named(ALGORITHMS, entries, "algorithm")
    return Delayed(algorithm, **delays) if delays else algorithm


def _take(entries: dict[str, Any], table: str, key: str) -> Any:
    if key not in entries:
        raise ValueError(f"[{table}] needs {key} = ...")
    return entries.pop(key)


def _checked(function: Callable, entries: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The entries, if they are all parameters of the function and none of its required ones is missing."""
    parameters = {
        name: p for name, p in inspect.signature(function).parameters.items() if name not in ("dataset", "self")
    }
    for key in entries:
        lookup(parameters, key, f"key in [{table}]")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in entries:
            raise ValueError(f"[{table}] needs {name} = ...")
    return dict(entries)


def _call(load: Callable, table: str, entries: Mapping[str, Any], name: str) -> Any:
    try:
        return load(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})
    except (ValueError, TypeError) as error:
        raise type(error)(f"[{table}] {error}") from error


def with_paths(entries: Mapping[str, Any], folder: Path, /) -> dict[str, Any]:
    """A table whose paths, relative to a folder, are such as the process takes them."""
    for key in ("file", "folder"):
        if not isinstance(entries.get(key, ""), str):
            raise ValueError(f"{key} must be a path in quotes, found {entries[key]!r}")
    paths: dict[str, Any] = {key: str(folder / entries[key]) for key in ("file", "folder") if key in entries}
    if "files" in entries:
        names = entries["files"]
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise ValueError(f'files must be a list of paths in quotes, ["W0.csv", "W1.csv"], found {names!r}')
        paths["files"] = [str(folder / name) for name in names]
    for key, value in entries.items():  # of clocks
        if isinstance(value, Mapping) and isinstance(value.get("trace"), str):
            paths[key] = {**value, "trace": str(folder / value["trace"])}
    return {**entries, **paths}


# What mixing is made of, and what a schedule may ask for beside it; the run knows the agents and the rounds.
_SOURCES = ("file", "files", "graph", "weights")
_ASKED = {
    key: tuple(name for name, build in schedules.SCHEDULES.items() if key in inspect.signature(build).parameters)
    for key in ("seed", "probability", "agent", "leaves", "returns", "stochastic")
}


#: What agents with clocks of their own are described by, beside the graph and its weights.
_CLOCKED = [name for name in inspect.signature(AsynchronousGossip).parameters if name not in ("users", "weight")]


def _mixing(entries: dict[str, Any], agents: int, rounds: Any) -> np.ndarray | Schedule | Events | AsynchronousGossip:
    if "scheme" in entries:
        return _asynchronous(entries, agents, rounds)
    for key in entries:
        lookup(dict.fromkeys((*_SOURCES, "schedule", *_ASKED)), key, "key in [mixing]")
    if "schedule" in entries:
        return _schedule(entries, agents, rounds)
    for key in entries:
        if key in _ASKED:
            names = " or ".join(f'"{name}"' for name in _ASKED[key])
            raise ValueError(f"[mixing] takes {key} only with schedule = {names}: leave it out")
    return _unscheduled(entries, agents)


def _unscheduled(entries: Mapping[str, Any], agents: int) -> np.ndarray | Schedule:
    sources = [key for key in ("file", "files", "graph") if key in entries]
    if len(sources) != 1:
        raise ValueError(
            '[mixing] needs either graph = "cycle", file = "W.csv", files = ["W0.csv", "W1.csv"], '
            f'schedule = "one_peer_exponential" or scheme = "push", found {" and ".join(sources) or "none of them"}'
        )
    if "graph" in entries:
        return from_graph(from_spec(sized(entries["graph"], agents)), entries.get("weights"))
    if "weights" in entries:
        raise ValueError(f"[mixing] with {sources[0]} takes no weights: what is in a file are the weights")
    return load_mixing(entries["file"]) if "file" in entries else schedules.periodic(map(load_mixing, entries["files"]))


def _asynchronous(entries: dict[str, Any], agents: int, rounds: Any) -> Events | AsynchronousGossip:
    """Clocks, or with a seed the events of one draw, in training as in prediction."""
    for key in entries:
        lookup(dict.fromkeys((*_CLOCKED, "weight", "weights", "seed")), key, "key in [mixing] with a scheme")
    given = {key: value for key, value in entries.items() if key in _CLOCKED}
    for name in ("update", "gossip"):
        if name not in given:
            raise ValueError(f'[mixing] with a scheme needs {name} = {{clock = "exponential", rate = 1.0}}')
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
            raise ValueError("[mixing] takes weights with a graph, and then no weight: name one of both")
        given["weight"] = from_graph(given["graph"], entries["weights"])
    clocks = AsynchronousGossip(users=agents, **given)
    if "seed" not in entries:
        return clocks
    seed = whole(entries["seed"], "seed in [mixing]", least=0)
    return clocks.draw(events=whole(rounds, "rounds", least=1), seed=seed)


def _clocks(entries: Any, name: str, agents: int) -> Any:
    """One clock, or one for each agent: of a list of tables, or of a trace."""
    if isinstance(entries, list):
        return [_clocks(each, name, agents) for each in entries]
    if not isinstance(entries, Mapping):
        raise ValueError(f'{name} in [mixing] must be {{clock = "exponential", rate = 1.0}}, found {entries!r}')
    if set(entries) == {"trace"}:
        return load_trace(entries["trace"], agents)
    entries = dict(entries)
    build = lookup(CLOCKS, _take(entries, f"mixing.{name}", "clock"), "clock")
    return build(**_checked(build, entries, f"mixing.{name}"))


def _schedule(entries: dict[str, Any], agents: int, rounds: Any) -> Schedule:
    name, given = entries["schedule"], {k: v for k, v in entries.items() if k != "schedule"}
    build = lookup(schedules.SCHEDULES, name, "schedule")
    parameters = inspect.signature(build).parameters
    if "mixing" in parameters:
        given["mixing"] = _unscheduled({key: given.pop(key) for key in _SOURCES if key in given}, agents)
    for key, value in given.items():
        if key not in parameters:
            raise ValueError(f'[mixing] schedule = "{name}" takes no {key}: leave it out')
        given[key] = _number(value, f"{key} in [mixing]", parameters[key].annotation)
    if "graph" in given:
        given["graph"] = from_spec(sized(given["graph"], agents))
    run = {"agents": agents, "rounds": whole(rounds, "rounds", least=1)}
    given |= {key: value for key, value in run.items() if key in parameters}
    return build(**_checked(build, given, "mixing"))


def _number(value: Any, name: str, kind: Any) -> Any:
    """The value, if it is a number where one is asked for, and anything where none is."""
    if kind is int:
        return whole(value, name, least=0)
    if kind is not float:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, found {value!r}")
    return float(value)
