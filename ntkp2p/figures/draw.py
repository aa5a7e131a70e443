"""Run, draw and write the figures by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputError
from ntkp2p.base.files import netcdf_engine, replacing, writable
from ntkp2p.base.style import STYLE
from ntkp2p.base.workers import Failure, locally
from ntkp2p.figures import capacity, sparse_push, staleness
from ntkp2p.figures.losses_by_graph import algorithms, figure1, figure2, parameters, ten_classes
from ntkp2p.figures.networks import design, stability, width
from ntkp2p.figures.study import FULL, QUICK, Drawn, Progress, Study
from ntkp2p.runs.trajectory import save_netcdf


def draw(
    out: Path,
    /,
    *,
    quick: bool = False,
    only: str | None = None,
    images: str | os.PathLike[str] | None = None,
    format: str = "png",
    workers: int = 1,
    progress: Progress = lambda label, done, total: None,
) -> pd.DataFrame:
    """Run, draw and write the figures.

    Parameters
    ----------
    out
        The folder that gets a picture for each figure and a netCDF file for each run; made if it does not exist.
    quick
        The same figures, each with small runs.
    only
        One of `FIGURES`, or "sparse-push" or "staleness" for all of it; by default every figure but those that take
        long, `LONG`.
    images
        A folder of IDX files whose images take MNIST's place in the accuracies of Sparse-Push, Fashion-MNIST for one.
    format
        Of the pictures: "png", or "pdf" or "svg" for vector graphics with text as text.
    workers
        Processes that draw side by side; each takes its share of the processors.
    progress
        Called with (run, round, rounds) as the runs go on; with several workers with ("figures", drawn, all).

    Returns
    -------
    errors
        A row for each run: linearisation, time discretisation and solver error of the local losses, and the seconds
        that prediction (its kernel included) and training took.

    Raises
    ------
    ValueError
        If there is no such figure, or format.
    ImportError, OSError
        Before anything is computed, if netCDF cannot be written, or nothing in that folder.
    """
    lookup(dict.fromkeys(("png", "pdf", "svg")), format, "format")
    netcdf_engine()
    writable(out, "out")
    names = [name for name in FIGURES if name not in LONG]
    if only is not None:
        names = [name for name in FIGURES if name == only or name.startswith(f"{only}-")] or [only]
    for name in names:
        lookup(FIGURES, name, "figure")
    task = _Task(tuple(names), out, quick, None if images is None else Path(images), format)
    tasks = [replace(task, names=group) for group in _groups(names)]
    rows = _drawn(task, progress) if min(workers, len(tasks)) < 2 else _side_by_side(tasks, workers, progress)
    return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame(index=pd.Index([], name="run"))


@dataclass(frozen=True)
class _Task:
    """Figures that one process draws."""

    names: tuple[str, ...]
    out: Path
    quick: bool
    images: Path | None
    format: str


def _groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The figures in groups that share no run: figure 1 first, for an early picture, and then the longest."""
    names = list(names)
    together = [tuple(name for name in group if name in names) for group in TOGETHER]
    groups = together + [(name,) for name in names if not any(name in group for group in TOGETHER)]
    return sorted(filter(None, groups), key=lambda group: (group != ("figure1",), group[0] not in EARLY))


def _side_by_side(tasks: Sequence[_Task], workers: int, progress: Progress) -> list[dict[str, Any]]:
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    done, total = 0, sum(len(task.names) for task in tasks)
    progress("figures", 0, total)
    for task, answer in locally(_drawn, tasks, workers):
        if isinstance(answer, Failure):
            kind = RuntimeError if answer.defect else InputError
            raise kind(f"{', '.join(task.names)} could not be drawn: {answer.reason}")
        rows[task.names], done = answer, done + len(task.names)
        progress("figures", done, total)
    return [row for name in FIGURES for names in rows if names[0] == name for row in rows[names]]


def _drawn(task: _Task, progress: Progress = lambda label, done, total: None) -> list[dict[str, Any]]:
    """Draw and write some figures; a row of errors for each run."""
    study = Study(QUICK if task.quick else FULL, progress, images=task.images)
    for number, name in enumerate(task.names, 1):
        with plt.style.context(STYLE):
            figure, results = FIGURES[name](study)
            with replacing(task.out / f"{name}.{task.format}") as temporary:
                figure.savefig(temporary, format=task.format)
            plt.close(figure)
        for part, result in results.items():
            save_netcdf(result, task.out / f"{name}{part}.nc")
        progress("figures", number, len(task.names))
    return study.rows


FIGURES: dict[str, Callable[[Study], Drawn]] = {
    "figure1": figure1,
    "figure2": figure2,
    "algorithms": algorithms,
    "width": width,
    "parameters": parameters,
    "ten_classes": ten_classes,
    "design": design,
    "stability": stability,
    "sparse-push-accuracy": sparse_push.accuracy,
    "sparse-push-predicted": sparse_push.predicted,
    "sparse-push-directed": sparse_push.directed,
    "staleness": capacity.scaling,
    "staleness-regression": staleness.regression,
    "staleness-events": staleness.events,
    "staleness-stragglers": staleness.stragglers,
    "staleness-boundary": staleness.boundary,
}
#: Figures that share runs: one process draws them all.
TOGETHER = (("figure2", "algorithms", "parameters"),)
#: Those that take longest, which begin first where several processes draw.
EARLY = ("width", "figure2", "design", "stability")
#: Drawn only if asked for by name.
LONG = (
    "sparse-push-accuracy",
    "sparse-push-predicted",
    "staleness",
    "staleness-regression",
    "staleness-stragglers",
    "staleness-boundary",
)
