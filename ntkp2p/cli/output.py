"""What commands print: results to standard output, remarks, warnings and progress to standard error."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkp2p.runs.comparison import Comparison
    from ntkp2p.runs.experiment import Experiment
    from ntkp2p.runs.trajectory import Trajectory


#: What a summary prints of a run, if it was measured.
MEASURES = {
    "local_loss": "local loss",
    "global_loss": "global loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "consensus_distance": "consensus distance",
}


def print_what_the_streams_can_encode() -> None:
    """Replace characters that standard output or standard error cannot encode, such as in ASCII, by question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


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
        with console.capture() as text:  # rich exits with its own code when the pipe is closed
            console.print(result)
        print(text.get(), end="")
    else:
        print(result)


def with_gibibytes(facts: Any) -> Any:
    """Bytes of memory in words, for people."""
    if isinstance(facts, Mapping):
        return {
            name: f"{value / 2**30:.1f} GiB"
            if name in ("total", "free") and value is not None
            else with_gibibytes(value)
            for name, value in facts.items()
        }
    return [with_gibibytes(value) for value in facts] if isinstance(facts, list) else facts


def in_json(plain: Mapping[str, Any]) -> str:
    from json import dumps

    from ntkp2p.base.reports import as_plain

    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    return dumps(as_plain(plain), indent=2, ensure_ascii=not unicode, allow_nan=False)


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
    trained = trajectory.source == "trained"
    verdict = {"diverged": trajectory.diverged} if trained else {"stable": trajectory.stable}
    return facts | flags | verdict | ended


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
    """Report on stderr what limits a prediction: failures, the solver's accuracy, a shared kernel, instability."""
    from ntkp2p.runs.instability import instability

    for verdict in (t.dataset.attrs for t in predicted.values()):
        if "failure" in verdict:
            say(verdict["failure"])
    facts = predicted["rounds"].dataset.attrs
    error = max(t.dataset.attrs["error_estimate"] for t in predicted.values())
    if not all(t.dataset.attrs["converged"] for t in predicted.values()):
        say(f"the solver's error estimate is {error:.1e}, above the accuracy requested")
    if (cost := facts.get("sharing_error")) is not None:
        say(f"the shared kernel differs from the exact one by {cost:.1%} on a sample of the data")
    if sentence := instability(run, predicted["rounds"]):
        say(sentence)


def summary(trajectories: Mapping[Any, Trajectory], files: Sequence[Path]) -> str:
    """The results of the worst, the mean and the best agent, and the files written."""
    lines = []
    for source, trajectory in trajectories.items():
        last = trajectory.dataset.isel(round=_last_finite(trajectory))
        lines += [f"{source}, after round {last['round'].item()}: {_verdict(trajectory)}"]
        lines += [" " * 20 + "".join(f"{title:>12}" for title in ("worst agent", "mean", "best"))]
        for name, label in MEASURES.items():
            if name in last:
                values = last[name].values
                ends = values.min(), values.max()
                worst, best = ends if name == "test_accuracy" else ends[::-1]
                lines += [f"  {label:<18}" + "".join(f"{value:12.4g}" for value in (worst, values.mean(), best))]
    return "\n".join([*lines, f"written: {', '.join(map(str, files))}"])


def _last_finite(trajectory: Trajectory) -> int:
    """The last recorded round in which the losses of all agents are finite; the last one of all if there is none."""
    import numpy as np

    losses = trajectory.dataset["global_loss"].values if "global_loss" in trajectory.dataset else np.zeros((1, 1))
    finite = np.flatnonzero(np.isfinite(losses).all(axis=1))
    return int(finite[-1]) if len(finite) else -1


def _verdict(trajectory: Trajectory) -> str:
    facts = trajectory.dataset.attrs
    if trajectory.source == "trained":
        return "training diverged" if trajectory.diverged else "real networks"
    stable = "stable" if trajectory.stable else "unstable"
    drawn = " in the mean over draws" if "mean_over" in facts else ""
    return f"the linear model is {stable}{drawn}"


def _step_in_words(label: str, done: int, total: int) -> None:
    if label == "figures" and done:
        say(f"{done} of {total} figures drawn")


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
def progress(*, shown: bool = True, lines: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each label on a terminal's stderr; elsewhere nothing, or with `lines` one line for each step."""
    if not (shown and sys.stderr.isatty()):
        yield _step_in_words if shown and lines else lambda label, done, total: None
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
