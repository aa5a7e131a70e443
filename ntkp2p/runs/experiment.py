"""One frozen description of a run, from Python or from TOML."""

from __future__ import annotations

import copy
import os
import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jax.sharding import Mesh

from ntkp2p import data as datasets
from ntkp2p.algorithms import Algorithm
from ntkp2p.algorithms.contract import check_algorithm
from ntkp2p.base.checks import is_number, is_whole, lookup, whole
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.reports import html_table
from ntkp2p.data import AgentData
from ntkp2p.kernels import Features, infinite_features
from ntkp2p.models import NETWORKS, Model, Network, prepare
from ntkp2p.models.losses import must_be_loss, name_classes
from ntkp2p.runs.toml import algorithm_from, call, checked, mixing_from, named, tables_of, take, with_paths
from ntkp2p.topology.matrix import square_matrix
from ntkp2p.topology.mixing import Mixing, RunMixing
from ntkp2p.topology.schedules import as_run_mixing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Experiment:
    """A run: a network, the agents' data, a mixing matrix, an algorithm and a number of rounds.

    Parameters
    ----------
    model
        One of `ntkp2p.models`, a pair (init, apply), or an object with both (a Flax module).
    data
        The agents' data, `dataset.split(...)`.
    mixing
        W, shape (Q, Q): row q receives. Or one of `ntkp2p.schedules`: round k mixes with its matrix W_k. Or
        asynchronous agents, where each event counts as one round: an `AsynchronousGossip`, for which every training
        draws its own events and a prediction is the mean over all events, or the `Events` of one draw.
    algorithm
        For instance `DGD(step_size=0.1)`.
    rounds
        The horizon K, at least 1.
    record
        The number of recorded rounds, evenly spaced from 0 to K, or a list of rounds.
    loss
        The loss that the agents minimise: "squared" error, "cross_entropy" for classes (the outputs are logits), or
        ``"package.module:Name"``, a function of your own such as `ntkp2p.models.losses.squared`. Only squared error has
        a closed form; other losses are integrated numerically.
    batch_size
        Mini-batch size: samples drawn per agent and round, without replacement; by default all samples of the agent.
        A prediction with mini-batches is the mean over the draws.
    kernel
        "exact", or "shared": one kernel for all outputs, their mean. It is cheaper for many outputs, and an
        approximation: the prediction states `sharing_error`, the part of the exact kernel that it omits.
    kernel_rtol
        Tolerance of a low-rank factor of the kernel, relative to its largest diagonal entry; use it when the full
        kernel would not fit in memory. By default the full kernel is computed and factorised to rounding.
    precision
        The precision of training: "float64" or "float32". Kernels and predictions are always float64.
    seed
        The seed of the agents' common initialisation θ₀.

    Attributes
    ----------
    recorded
        The recorded rounds, ascending from 0 to K.

    Raises
    ------
    ValueError, TypeError
        If the run is not possible; the message states what was found and what to do.

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
    loss: str = "squared"
    batch_size: int | None = None
    kernel: Literal["exact", "shared"] = "exact"
    kernel_rtol: float | None = None
    precision: Literal["float64", "float32"] = "float64"
    seed: int = 0
    recorded: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if not isinstance(self.data, AgentData):
            raise InputTypeError(
                f"data must be dealt out to agents, found {type(self.data).__name__}: use data.split(agents=...)"
            )
        if not isinstance(self.algorithm, Algorithm):
            raise InputTypeError(
                f"algorithm must be an Algorithm, found {self.algorithm!r}: for instance DGD(step_size=0.1)"
            )
        for name in ("rounds", "seed"):
            value = getattr(self, name)
            least = int(name == "rounds")
            if not is_whole(value) or not least <= value < 2**31:
                raise InputError(f"{name} must be a whole number ≥ {least} and below 2³¹, found {value!r}")
        must_be_loss(self.loss, outputs=self.data.outputs)
        if self.loss == "cross_entropy":
            _must_have_classes(self.data)
        if self.batch_size is not None:
            _must_be_batch(self.batch_size, self.data)
        lookup(dict.fromkeys(("exact", "shared")), self.kernel, "kernel")
        if not (self.kernel_rtol is None or (is_number(self.kernel_rtol) and 0 < self.kernel_rtol < 1)):
            raise InputError(f"kernel_rtol must be a number between 0 and 1, found {self.kernel_rtol!r}: 1e-6 is usual")
        lookup(dict.fromkeys(("float64", "float32")), self.precision, "precision")
        if not isinstance(self.mixing, Mixing):
            object.__setattr__(self, "mixing", square_matrix(self.mixing))
        self.topology.must_suit(self.algorithm, agents=self.agents, rounds=int(self.rounds))
        check_algorithm(self.algorithm, self.agents, precision=self.precision, asynchronous=self.asynchronous)
        object.__setattr__(self, "recorded", _recorded(self.record, int(self.rounds)))

    @property
    def agents(self) -> int:
        """Q, the number of agents."""
        return self.data.agents

    @property
    def has_flow(self) -> bool:
        """Whether it can be predicted in flow time, too: a gradient flow, or wall-clock time of memoryless clocks."""
        return self.topology.has_flow(self.algorithm)

    @property
    def asynchronous(self) -> bool:
        """Whether agents are asynchronous."""
        return self.topology.asynchronous

    @cached_property
    def topology(self) -> RunMixing:
        """The mixing, as everything asks it: a matrix is a schedule of one, and what is drawn for a run has been."""
        if not isinstance(self.mixing, Mixing):
            return as_run_mixing(self.mixing)
        return self.mixing.resolved(int(self.rounds), self._seed_of(0))

    def sampled(self, draw: int = 0, /) -> Experiment:
        """The run with the mixing that training number `draw` draws, such as events of clocks; others as they are."""
        source = self.mixing if isinstance(self.mixing, Mixing) else self.topology
        mixing = source.sample(int(self.rounds), self._seed_of(draw))
        if mixing is source:
            return self
        # It is the same run, and was checked: with few events, some agents may not take part.
        drawn = copy.copy(self)
        drawn.__dict__.update(mixing=mixing, topology=mixing)  # the dataclass is frozen otherwise
        return drawn

    def _seed_of(self, draw: int) -> int:
        return int(np.random.SeedSequence([int(self.seed), draw]).generate_state(1)[0])

    def time(self, rounds: np.ndarray, /) -> np.ndarray:
        """When some `rounds` are over: flow time η k, or with events wall-clock time; its mean where none are drawn."""
        return self.topology.times(rounds, float(self.algorithm.step_size))

    def initialise(self) -> Model:
        """The network at the agents' common θ₀.

        Raises
        ------
        ValueError
            If it does not fit the data, or has infinite width and hence no parameters.
        """
        model = prepare(self.model, self.data.inputs, self.data.outputs, seed=self.seed)
        self.__dict__.setdefault("layers", model.layers)
        return model

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The sizes of the network's parameter arrays, as `Model.layers`."""
        return self.initialise().layers

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
            How the kernel of a finite network is computed, as for `ntkp2p.kernels.TangentKernel`.

        Raises
        ------
        ValueError
            As `Features.of`; or if a network of infinite width is given memory, a mesh or a cache.
        """
        if isinstance(self.model, Network) and self.model.infinite:
            if not memory is mesh is cache is None:
                raise InputError(f"{self.model} has its kernel in closed form: leave memory, mesh and cache out")
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
            "mixing": self._mixing_in_words(),
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

    def _mixing_in_words(self) -> str:
        words = f"{self.agents} agents" if self.topology.matrix is not None else repr(self.topology)
        return f"{words}, {_checksum(*self.topology.facts())}"

    def plot(self) -> list[Axes]:
        """Plot the mixing graph with its weights, and the agents' samples by class; return both axes.

        Of a schedule the mean over its rounds is drawn, of clocks and events the links from sender to receiver.
        """
        from ntkp2p.runs import plots

        return plots.experiment(self)

    def __repr__(self) -> str:
        model = "(init, apply)" if isinstance(self.model, tuple) else repr(self.model)
        mixing = f"W of {self.agents} agents" if self.topology.matrix is not None else repr(self.mixing)
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
            docs/experiment_file.md lists them. Paths in it are relative to its folder. Wherever it names a choice, such
            as an algorithm or a graph, ``"package.module:Name"`` is one from a module of your own, which is imported as
            Python finds it, in its path and not in the file's folder.

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
        except InputError as error:
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
                raise InputError(f"{key} is missing: add {'a table [' + key + ']' if key in names else key + ' = 300'}")
        for key in names:
            if not isinstance(tables[key], Mapping):
                raise InputError(f"{key} must be a table: write [{key}] above its fields")

        source = with_paths(tables["data"], folder)
        name = take(source, "data", "name")
        data = call(datasets.load, "data", source, name).split(**checked(datasets.split, tables["split"], "split"))
        return cls(
            model=named(NETWORKS, tables["model"]),
            data=data,
            mixing=mixing_from(with_paths(tables["mixing"], folder), data.agents, tables["rounds"]),
            algorithm=algorithm_from(tables["algorithm"]),
            **{key: tables[key] for key in plain if key in tables},
        )


def _must_be_batch(size: Any, data: AgentData) -> None:
    least = int(data.sizes.argmin())
    whole(size, "batch_size", least=1)
    if size > data.sizes[least]:
        raise InputError(
            f"batch_size = {size} is more than the {data.sizes[least]} samples of agent {least}: use at most "
            f"{data.sizes[least]}, or leave it out for full batches"
        )


def _must_have_classes(data: AgentData) -> None:
    if data.classes is None:
        raise InputError(f'cross-entropy is for classes, and {data.name} is a regression: use loss = "squared"')
    for name in ("targets", "test_targets"):
        if not name_classes(getattr(data, name)):
            raise InputError(
                f"the {name} of {data.name} do not name classes: cross-entropy takes −1 and +1 for two of them and "
                'one-hot rows for more, other targets go with loss = "squared"'
            )


def _checksum(*arrays: np.ndarray) -> str:
    return f"crc32 {zlib.crc32(b''.join(np.ascontiguousarray(a).tobytes() for a in arrays)):08x}"


def _recorded(record: int | Sequence[int], rounds: int) -> np.ndarray:
    if is_whole(record):
        if record < 2:
            raise InputError(f"record must be at least 2 (the start and the end), found {record}")
        return np.unique(np.linspace(0, rounds, min(int(record), rounds + 1)).round().astype(int))
    try:
        chosen = np.asarray(record)
    except ValueError:  # ragged
        chosen = np.empty(0)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu" or chosen.min() < 0:
        raise InputError(f"record must be a number of rounds or a list of rounds ≥ 0, found {record!r}")
    if chosen.max() > rounds:
        raise InputError(f"record asks for round {chosen.max()} of a run of {rounds}: raise rounds, or leave it out")
    return np.unique(np.concatenate([[0], chosen, [rounds]]))
