"""One experiment with some of its fields varied, in every combination; each cell is computed once and kept as a file.

Cells are computed apart, by processes of this machine or by the workers of a Dask cluster, and written here as they
are finished. Finished cells are not computed again: the same sweep resumes where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
import time
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ntkp2p.base.checks import whole
from ntkp2p.base.devices import free_memory
from ntkp2p.base.errors import InputError, InputTypeError
from ntkp2p.base.files import netcdf_engine, writable
from ntkp2p.base.registry import sources_in
from ntkp2p.base.workers import Answers, Failure, locally, on_cluster, processors
from ntkp2p.kernels import Features
from ntkp2p.runs.comparison import SOURCES, Comparison
from ntkp2p.runs.experiment import Experiment
from ntkp2p.runs.instability import no_instability_warning
from ntkp2p.runs.prediction import predictions
from ntkp2p.runs.toml import tables_of
from ntkp2p.runs.training import DivergedError, train
from ntkp2p.runs.trajectory import load_netcdf, save_netcdf

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: The tables that say what a kernel is of, and the fields beside them.
KERNEL = ("model", "data", "split", "seed", "kernel", "kernel_rtol")
#: What a table tells of the last round, the agents' mean.
FINAL = ("global_loss", "consensus_distance", "test_accuracy")


@dataclass(frozen=True, repr=False)
class Sweep:
    """The cells of a sweep; print it for the table.

    Attributes
    ----------
    settings : dict
        By field, the values that it takes.
    folder : Path
        Where the cells' files are.
    rows : tuple of dict
        One for each combination, the last field varying fastest: its settings and what came of it.
    """

    settings: dict[str, list[Any]]
    folder: Path
    rows: tuple[dict[str, Any], ...]

    @property
    def failures(self) -> dict[str, str]:
        """The cells that could not be computed, and why."""
        return {_label(row["settings"]): row["failure"] for row in self.rows if row["failure"]}

    def table(self) -> pd.DataFrame:
        """One row for each cell.

        Its columns are the swept fields; of the last round the agents' mean `global_loss`, `consensus_distance` and
        `test_accuracy` as predicted in rounds, and the same `trained_…`; `rounds_to_tenth`, the first recorded round
        at which the predicted global loss is at most a tenth of the initial one; whether the rounds are `stable`; the
        worst errors of the global loss by kind, as `Comparison.errors`; the `seconds` that the cell took, with the
        kernel where it was the first to need it; its `file`, and a `failure` in words. What a cell lacks is NaN.
        """
        import pandas as pd

        rows = [
            {name: _in_cell(value) for name, value in row["settings"].items()}
            | row["facts"]
            | {"file": row["file"], "failure": row["failure"]}
            for row in self.rows
        ]
        return pd.DataFrame(rows)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The final global loss over a swept field, predicted and trained, into `ax` or new axes; returns them.

        The first numeric field goes across, one curve for each combination of the others; a map takes
        the place of more curves than can be told apart.

        Parameters
        ----------
        ax
            Where to draw; by default in a new figure.
        """
        from ntkp2p.analysis import plots

        return plots.sweep(self, ax=ax)

    def __repr__(self) -> str:
        return f"{self._title}\n{self._shown().to_string(na_rep='—', float_format='{:.4g}'.format)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title}</p>" + self._shown().to_html(na_rep="—", float_format="{:.4g}".format)

    @property
    def _title(self) -> str:
        failed = f", {len(self.failures)} not computed" if self.failures else ""
        return f"Sweep over {', '.join(self.settings)}: {len(self.rows)} cells{failed}"

    def _shown(self) -> pd.DataFrame:
        return self.table().drop(columns=["file"] if self.failures else ["file", "failure"])


def sweep(
    experiment: str | os.PathLike[str] | Mapping[str, Any],
    settings: Mapping[str, Sequence[Any]],
    /,
    *,
    out: str | os.PathLike[str],
    train: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Predict an experiment for every combination of some fields' values, and train it beside if asked to.

    Parameters
    ----------
    experiment
        A TOML file, or its tables, as for `Experiment.from_toml` and `Experiment.from_dict`.
    settings
        By field, the values that it takes: ``{"algorithm.step_size": [0.1, 0.3], "mixing.graph": ["cycle", "star"]}``.
        Fields within tables have dotted names, at any depth, and values are as in TOML.
    out
        The folder of the results, made if it does not exist: one netCDF file for each cell, like `Comparison.dataset`.
        A cell whose file is there is not computed again. A file is told by the whole experiment, with checksums of its
        data and mixing and of the modules of your own that it names, so that a changed one is another cell.
    train
        Whether to train the networks, too. Of cells that have been predicted only, both are then computed.
    workers
        How many processes of this machine compute; by default one for each processor. They divide its processors and
        its free memory among themselves. On one accelerator take 1.
    scheduler
        In place of processes here: the address of a Dask scheduler, "tcp://127.0.0.1:8786". Its workers need this
        library, and the data files that the experiment names under the same path; results are written here.
    progress
        Called with (cells done, all cells) after each.

    Returns
    -------
    Sweep
        A cell that cannot be computed leaves the others as they are; see `Sweep.failures`. It is tried again the next
        time. A step size that diverges is a result like any other, predicted as unstable.

    Raises
    ------
    ValueError, TypeError
        Before anything is computed: for a field or a value with which no cell can be run; if a file of a cell's name is
        damaged, or something else.
    OSError
        If there is no such TOML file, the folder cannot be written to, the scheduler's address does not answer, or
        it is lost: what was finished then is kept.
    InputError
        If processes cannot be started.
    ImportError
        If netCDF cannot be written, or for a cluster without dask.distributed.

    Notes
    -----
    Cells that differ in algorithm, mixing or rounds only have one kernel: it is computed once in each process that
    computes such cells. What a process was at when it died is computed once more.

    Processes are spawned: a script calls this below ``if __name__ == "__main__":``.
    """
    if scheduler is not None and workers is not None:
        raise InputError("workers are processes of this machine, and a scheduler has its own: leave one of both out")
    count = processors() if workers is None else whole(workers, "workers", least=1)
    settings = _checked_settings(settings)
    if isinstance(experiment, Experiment):
        raise InputTypeError(
            "sweep takes a TOML file or its tables, found an Experiment: its fields have no names to set"
        )
    tables, parent = (experiment, Path()) if isinstance(experiment, Mapping) else tables_of(experiment)
    cells = _cells(tables, parent.resolve(), settings, train)
    netcdf_engine()
    folder = writable(Path(out), "out")

    facts = {cell: _kept(folder / cell.file, cell) for cell in cells if not cell.failure}
    failures = {cell: cell.failure for cell in cells if cell.failure}
    missing = [cell for cell, found in facts.items() if found is None]
    done = len(cells) - len(missing)
    with closing(_answers(missing, count, scheduler)) as answers:
        for cell, answer in answers:
            if isinstance(answer, Failure):
                failures[cell] = answer.reason
            else:
                save_netcdf(answer, folder / cell.file)
                facts[cell] = json.loads(answer.attrs["facts"])
            done += 1
            if progress is not None:
                progress(done, len(cells))
    rows = tuple(
        {
            "settings": cell.settings,
            "facts": facts.get(cell) or {},
            "file": "" if cell in failures else cell.file,
            "failure": failures.get(cell, ""),
        }
        for cell in cells
    )
    return Sweep(settings, folder, rows)


def parse_settings(texts: Sequence[str], /) -> dict[str, list[Any]]:
    """The fields and values that are typed as ``field=value,value``.

    Parameters
    ----------
    texts
        One for each field. Values are as in TOML; what is none, such as a bare word, is a string.

    Raises
    ------
    ValueError
        If a text has another form, or a field comes twice.

    Examples
    --------
    >>> from ntkp2p.analysis.sweep import parse_settings
    >>> parse_settings(["algorithm.step_size=0.1,1", "split.by=iid,label", "data.classes=[0,1],[2,3]"])
    {'algorithm.step_size': [0.1, 1], 'split.by': ['iid', 'label'], 'data.classes': [[0, 1], [2, 3]]}
    """
    settings: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (equals and name.strip() and values.strip()):
            raise InputError(f"--set takes FIELD=VALUE,VALUE,..., found {text!r}: algorithm.step_size=0.1,0.3 is one")
        if name.strip() in settings:
            raise InputError(f"--set has {name.strip()} twice: name all of its values in one")
        settings[name.strip()] = _values(name.strip(), values)
    return settings


def _values(name: str, text: str) -> list[Any]:
    values, piece = [], ""
    for part in text.split(","):
        piece = f"{piece},{part}" if piece else part.strip()
        try:
            values.append(tomllib.loads(f"value = {piece}")["value"])
        except RecursionError:
            raise InputError(f"--set {name} has a value that is nested too deeply: use fewer brackets") from None
        except ValueError as error:
            if not isinstance(error, tomllib.TOMLDecodeError):
                raise InputError(f"--set {name} has a number with too many digits: use a smaller one") from error
            if piece.startswith(("[", "{", '"', "'")):  # it goes on behind this comma
                continue
            if not piece:
                raise InputError(f"--set {name} has an empty value in {text!r}: leave the comma out") from None
            values.append(piece)
        piece = ""
    if piece:
        raise InputError(f"--set {name} has the value {piece!r}, which is not closed: close the bracket or quote")
    return values


@dataclass(frozen=True)
class _Cell:
    """One combination: known by the checksum of all that its results depend on."""

    settings: dict[str, Any] = field(compare=False)
    tables: dict[str, Any] = field(compare=False)
    folder: Path = field(compare=False)
    train: bool
    checksum: str
    kernel: str = field(compare=False, default="")
    failure: str = field(compare=False, default="")

    @property
    def file(self) -> str:
        """Short, readable, and of this cell alone."""
        words = re.sub(r"[^\w.=+-]+", "_", _label({name.rpartition(".")[2]: v for name, v in self.settings.items()}))
        return f"{words[:80]}_{self.checksum[:12]}.nc"


def _checked_settings(settings: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    if not isinstance(settings, Mapping) or not settings:
        raise InputError('settings must name fields and their values: {"algorithm.step_size": [0.1, 0.3]}')
    for table, inner in itertools.permutations(settings, 2):
        if inner.startswith(f"{table}."):
            raise InputError(f"{inner} is a part of {table}, which is set as well: leave one of both out")
    checked = {}
    for name, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or len(values) == 0:
            raise InputError(
                f"{name} must have a list of values, found {values!r}: write [{values!r}] for a single one"
            )
        checked[name] = [value.item() if isinstance(value, np.generic) else value for value in values]
        try:
            known = [json.dumps(value, sort_keys=True) for value in checked[name]]
        except TypeError:
            raise InputTypeError(
                f"values of {name} must be as in TOML (numbers, words, lists), found {values!r}"
            ) from None
        if len(set(known)) < len(known):
            raise InputError(f"{name} has a value twice in {checked[name]}: leave one out")
    return checked


def _cells(tables: Mapping[str, Any], folder: Path, settings: Mapping[str, list[Any]], train: bool) -> list[_Cell]:
    """All combinations, the experiment of each built once, so that a mistake shows before anything is computed."""
    cells = [
        _cell(tables, folder, dict(zip(settings, values, strict=True)), train)
        for values in itertools.product(*settings.values())
    ]
    # A combination may be impossible, and is a failure of its own; a value that is so in all of them is a mistake.
    for name, values in settings.items():
        for value in values:
            those = [cell for cell in cells if cell.settings[name] is value]
            if all(cell.failure for cell in those):
                raise InputError(f"no cell with {_label({name: value})} can be run: {those[0].failure}")
    return cells


def _cell(tables: Mapping[str, Any], folder: Path, settings: dict[str, Any], train: bool) -> _Cell:
    filled = copy.deepcopy(dict(tables))
    for name, value in settings.items():
        _set(filled, name, value)
    try:
        run = Experiment.from_dict(filled, folder=folder)
    except (InputError, OSError) as error:
        return _Cell(settings, filled, folder, train, _checksum(filled), failure=Failure.of(error).reason)
    facts = run.describe()
    tests = [zlib.crc32(np.ascontiguousarray(x).tobytes()) for x in (run.data.test_inputs, run.data.test_targets)]
    described = [filled.get(name) for name in KERNEL]
    kernel = _checksum(*described, facts["data"], facts["split"], sources_in(described))
    return _Cell(settings, filled, folder, train, _checksum(filled, facts, tests, sources_in(filled)), kernel)


def _set(tables: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    inner = tables
    for key in path:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(f"{name} cannot be set: {key} is {inner!r}, and no table")
    inner[last] = value


def _checksum(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _label(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_in_cell(value)}" for name, value in settings.items())


def _in_cell(value: Any) -> Any:
    """A value as a table shows it: lists and tables in words."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _kept(path: Path, cell: _Cell) -> dict[str, Any] | None:
    """What the file of a cell tells; None if it is not there, or lacks the training."""
    if not path.exists():
        return None
    try:
        dataset = load_netcdf(path)
    except InputError as error:
        raise InputError(f"{path} is damaged: delete it, and its cell is computed again") from error
    if dataset.attrs.get("checksum") != cell.checksum:
        raise InputError(f"{path} is not of this sweep: move it away, or choose another folder")
    if cell.train and "trained" not in dataset["source"].values:
        return None
    return json.loads(dataset.attrs["facts"])


def _answers(cells: Sequence[_Cell], workers: int, scheduler: str | None) -> Answers:
    """The results of cells as they are finished, those of one kernel one after another."""
    cells = sorted(cells, key=lambda cell: cell.kernel)
    if cells and scheduler is not None:
        yield from on_cluster(_computed, cells, scheduler)
    elif cells:
        count = min(workers, len(cells))
        share = partial(_computed, memory=free_memory() // (2 * count))
        yield from locally(share, cells, count)


def _computed(cell: _Cell, memory: int | None = None) -> xr.Dataset:
    started = time.perf_counter()
    run = Experiment.from_dict(cell.tables, folder=cell.folder)
    with no_instability_warning():  # the table and the plot mark unstable cells
        trajectories = dict(predictions(run, features=_features(_Kernel(cell.kernel, run, memory))))
    if cell.train:
        try:
            trajectories["trained"] = train(run)
        except DivergedError as error:
            trajectories["trained"] = error.trajectory
    result = Comparison({source: trajectories[source] for source in SOURCES if source in trajectories})
    dataset = result.dataset
    facts = _facts(result, dataset) | {"seconds": round(time.perf_counter() - started, 3)}
    return dataset.assign_attrs(
        tables=json.dumps(cell.tables),
        settings=json.dumps(cell.settings),
        checksum=cell.checksum,
        facts=json.dumps(facts),
    )


@dataclass(frozen=True)
class _Kernel:
    """A run's kernel, the same as another one of the same checksum."""

    checksum: str
    run: Experiment = field(compare=False)
    memory: int | None = field(compare=False)


@lru_cache(maxsize=1)
def _features(kernel: _Kernel) -> Features:
    if getattr(kernel.run.model, "infinite", False):
        return kernel.run.features()
    return kernel.run.features(memory=kernel.memory)


def _facts(result: Comparison, dataset: xr.Dataset) -> dict[str, Any]:
    loss = dataset["global_loss"].mean("agent").sel(source="rounds")
    low = dataset["round"].values[(loss <= loss[0] / 10).values]
    facts: dict[str, Any] = {}
    for name in (name for name in FINAL if name in dataset):
        last = dataset[name][:, -1].mean("agent", skipna=False)
        facts[name] = float(last.sel(source="rounds"))
        if "trained" in result.trajectories:
            facts[f"trained_{name}"] = float(last.sel(source="trained"))
    facts["rounds_to_tenth"] = float(low[0]) if len(low) else np.nan
    facts["stable"] = result.trajectories["rounds"].stable
    return facts | result.errors("global_loss")
