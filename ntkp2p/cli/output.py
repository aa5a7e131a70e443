"""What commands print: results to standard output, remarks, warnings and progress to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkp2p.runs.comparison import Comparison
    from ntkp2p.runs.experiment import Experiment
    from ntkp2p.runs.trajectory import Trajectory


def say(message: str) -> None:
    print(f"ntkp2p: {' '.join(message.split())}", file=sys.stderr)


def show(result: Any, plain: Mapping[str, Any] | None) -> None:
    """The result for people, or its numbers and words in JSON where there are such."""
    from ntkp2p.base.reports import Report

    if plain is not None:
        print(in_json(plain))
    elif isinstance(result, Report):
        from rich.console import Console

        console = Console()
        with console.capture() as text:  # rich has an exit code of its own where nobody reads
            console.print(result)
        print(text.get(), end="")
    else:
        print(result)


def in_json(plain: Mapping[str, Any]) -> str:
    from json import dumps

    from ntkp2p.base.reports import as_plain

    return dumps(as_plain(plain), indent=2, ensure_ascii=False, allow_nan=False)


def in_plain(
    run: Experiment,
    trajectories: Mapping[Any, Trajectory],
    files: Sequence[Path],
    side_by_side: Comparison | None = None,
) -> dict[str, Any]:
    """A run's description, what is known of it by source, the errors between the sources, and the files written."""
    description = run.describe()
    errors = {} if side_by_side is None else side_by_side.table().to_dict("index")
    return {
        "experiment": description,
        "runs": {source: _facts(trajectory, without=description) for source, trajectory in trajectories.items()},
        "errors": errors,
        "files": list(map(str, files)),
    }


def _facts(trajectory: Trajectory, *, without: Mapping[str, Any]) -> dict[str, Any]:
    """A trajectory's attributes, and every agent's measures at its last round."""
    last = trajectory.dataset.isel(round=-1)
    facts = {name: value for name, value in last.attrs.items() if name not in {"source", *without}}
    flags = {name: bool(facts[name]) for name in ("closed_form", "converged") if name in facts}
    measures = {name: values.values for name, values in last.data_vars.items()}
    ended = {"round": last["round"].item(), "time": last["time"].item(), "final": measures}
    return facts | flags | {"stable": trajectory.stable} | ended


def in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(item)}" for name, item in value.items())
    return "; ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def save_figure(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    from ntkp2p.base.files import replacing
    from ntkp2p.base.style import STYLE

    with replacing(path) as temporary, plt.style.context(STYLE):
        figure.savefig(temporary, format=path.suffix[1:])
    plt.close(figure)
    return path


def flag(run: Experiment, predicted: Mapping[Any, Trajectory]) -> None:
    import numpy as np

    for verdict in (t.dataset.attrs for t in predicted.values()):
        if "failure" in verdict:
            say(verdict["failure"])
    facts = predicted["rounds"].dataset.attrs
    error = max(t.dataset.attrs["error_estimate"] for t in predicted.values())
    if not all(t.dataset.attrs["converged"] for t in predicted.values()):
        say(f"the solver's error estimate is {error:.1e}, not the accuracy asked for")
    if (cost := facts.get("sharing_error")) is not None:
        say(f"the shared kernel differs from the exact one by {cost:.1%} on a sample of the data")
    if predicted["rounds"].stable:
        return
    bound = facts.get("sufficient_step_size", np.nan)
    # Of the matrices of a schedule none is at fault alone: one that grows may be undone by the next.
    W = run.topology.matrix
    mixing = 0.0 if W is None else max(abs(np.linalg.eigvals(W)))
    if mixing > 1 + 1e-9:
        remedy = f"the mixing matrix alone has {mixing:.4g}, which no step size mends: try lazy(W) or metropolis(graph)"
    else:
        remedy = f"stable below step_size = {bound:.4g}" if bound == bound else "use a smaller step size"
    # What is integrated has no spectrum.
    cause = f"spectral radius {facts['spectral_radius']:.4g} > 1" if facts["closed_form"] else "they outgrow all bounds"
    say(f"the rounds are unstable: {cause}; {remedy}")


@contextmanager
def remarks(*, shown: bool) -> Iterator[None]:
    """What the package logs on the way goes to stderr."""
    import logging

    log, handler = logging.getLogger("ntkp2p"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ntkp2p: %(message)s"))
    level = log.level
    if shown:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each run, on a terminal's stderr only."""
    if not (shown and sys.stderr.isatty()):
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    tasks = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        first = bars.add_task("compiling …", total=None)

        def update(label: str, done: int, total: int) -> None:
            # What comes before the first step is mostly compiling.
            description = label if done else f"{label}, compiling …"
            bars.update(first, visible=False)
            if label not in tasks:
                tasks[label] = bars.add_task(description, total=total)
            bars.update(tasks[label], completed=done, description=description)

        yield update
