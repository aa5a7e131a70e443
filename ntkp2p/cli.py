"""The command line: the same doors as in Python, one line and exit code 2 for a user's mistake.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

if TYPE_CHECKING:
    from ntkp2p.experiment import Experiment
    from ntkp2p.models import Features
    from ntkp2p.trajectory import Trajectory

app = App(
    name="ntkp2p",
    help="Predict a peer-to-peer training run in closed form, and prove the prediction beside real training.",
    version=lambda: version("ntkp2p"),
)

Out = Annotated[Path, Parameter(help="The folder that gets the results; made if it does not exist.")]
Toml = Annotated[Path, Parameter(help="An experiment in TOML; the README shows one.")]
Cache = Annotated[Path | None, Parameter(help="A folder that keeps finished blocks of the kernel, to resume from.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Processes:
    """Several processes that compute one run together; the same command in each, by its number."""

    coordinator: Annotated[str | None, Parameter(help="HOST:PORT of process 0, a free port there.")] = None
    processes: Annotated[int | None, Parameter(help="How many processes there are.")] = None
    process: Annotated[int | None, Parameter(help="The number of this one, from 0; 0 writes and prints.")] = None


@app.command
def figures(
    *, quick: bool = False, only: str | None = None, images: Path | None = None, out: Out = Path("figures")
) -> None:
    """Draw the figures, predicted and trained on the same axes, and print the errors between them.

    Parameters
    ----------
    quick
        The same figures in small.
    only
        One figure: figure1, figure2, algorithms, width, parameters, ten_classes, design, stability, or all of
        sparse-push or of staleness.
    images
        A folder of IDX files, Fashion-MNIST for one, in place of MNIST for the accuracies of Sparse-Push.
    """
    from ntkp2p import figures

    folder = _writable(out)
    with _progress() as progress:
        table = figures.draw(folder, quick=quick, only=only, images=images, progress=progress)
    print(table.to_string(float_format="{:.2e}".format, na_rep=""))
    print(f"\nErrors are the worst of any agent and round, relative to the initial loss. Written to {folder}/")


@app.command
def check(
    *files: Path, graph: str | None = None, weights: str | None = None, json: bool = False, plot: Path | None = None
) -> None:
    """Report on a mixing matrix: stochasticity, connection, spectrum, and which algorithms work over it, and why.

    Parameters
    ----------
    files
        A square matrix in a CSV, NPY or NPZ file, or an edge list "from to [weight]" in an .edges or .txt file. Of
        several, round k mixes with the k-th, and then from the first again.
    graph
        In place of a file: a graph such as cycle:10, grid:4,5 or directed_ring:8.
    weights
        The graph's weights: metropolis (the default), max_degree, best_constant, lazy_metropolis or fastest_mixing; of
        a directed graph push.
    json
        Print everything in JSON.
    plot
        A PNG, PDF or SVG file for the spectrum in the unit disc and the graph with its weights.
    """
    from ntkp2p.topology import check_mixing

    if plot is not None:
        _writable(plot.parent, "--plot")
    report = check_mixing(_mixing(files, graph, weights))
    _print(report, json)
    if plot is not None:
        _save_figure(report.plot()[0].figure, plot)


@app.command
def predict(
    experiment: Toml, /, *, out: Out = Path("results"), cache: Cache = None, processes: Processes | None = None
) -> None:
    """Predict a run in closed form: predicted_rounds.nc, predicted_flow.nc unless it has delays, predicted.png."""
    from ntkp2p import compare

    run, folder = _begin(experiment, out, processes, cache)
    predicted = _predicted(run, folder, cache)
    if folder is None:
        return
    for time, trajectory in predicted.items():
        trajectory.save(folder / f"predicted_{time}.nc")
    both = compare(*predicted.values()) if len(predicted) > 1 else None
    _save_figure(both.plot() if both else predicted["rounds"].plot().figure, folder / "predicted.png")
    _flag(run, predicted)
    print(both or predicted["rounds"])


@app.command
def train(experiment: Toml, /, *, out: Out = Path("results"), processes: Processes | None = None) -> None:
    """Train the real networks of a run: trained.nc and trained.png."""
    run, folder = _begin(experiment, out, processes)
    trained, diverged = _trained(run, folder)
    if folder is not None:
        trained.save(folder / "trained.nc")
        _save_figure(trained.plot().figure, folder / "trained.png")
    if diverged is not None:
        raise diverged
    if folder is not None:
        print(trained)


@app.command
def stability(
    experiment: Toml,
    /,
    *,
    target: float | None = None,
    out: Path | None = None,
    json: bool = False,
    cache: Cache = None,
) -> None:
    """Whether a run is stable, in rounds and in flow, why, and up to which step size and delay.

    Parameters
    ----------
    target
        A loss: the round in which the agents' mean global loss meets it is predicted.
    out
        A folder that gets stability.json and stability.png, the spectrum and the slowest modes.
    json
        Print everything in JSON.
    """
    from ntkp2p import stability as analysed
    from ntkp2p.experiment import Experiment
    from ntkp2p.files import replacing

    run = Experiment.from_toml(experiment)
    folder = None if out is None else _writable(out)
    report = analysed(run, features=_features(run, cache), target=target)
    if folder is not None:
        with replacing(folder / "stability.json") as temporary:
            temporary.write_text(_in_json(report) + "\n", encoding="utf-8")
        _save_figure(report.plot(), folder / "stability.png")
    _print(report, json)


@app.command
def compare(
    experiment: Toml, /, *, out: Out = Path("results"), cache: Cache = None, processes: Processes | None = None
) -> None:
    """Predict and train a run, and set both side by side: comparison.nc, comparison.png and a table of errors."""
    from ntkp2p import compare as side_by_side

    run, folder = _begin(experiment, out, processes, cache)
    predicted = _predicted(run, folder, cache)
    if folder is not None:
        _flag(run, predicted)
    trained, diverged = _trained(run, folder)
    if folder is None:
        return
    if diverged is not None:  # predicted and flagged, so that it is a result and not a mistake
        _say(str(diverged))
    result = side_by_side(trained, *predicted.values())
    result.save(folder)
    _save_figure(result.plot(), folder / "comparison.png")
    print(result)


@app.command
def sweep(
    experiment: Toml,
    /,
    *,
    settings: Annotated[
        list[str], Parameter(name="--set", negative=(), help="FIELD=VALUE,VALUE,... of the experiment; again for more.")
    ],
    out: Out = Path("results"),
    train: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Predict a run for every combination of some fields' values: one netCDF file each, sweep.csv and sweep.png.

    The same command again goes on where it was interrupted, and tries once more what failed. For example:

    ntkp2p sweep experiment.toml --set algorithm.step_size=0.1,0.3,1.0 --set mixing.graph=cycle,star --out sweep

    Parameters
    ----------
    train
        Train the real networks of every cell beside its prediction.
    workers
        How many processes of this machine compute; by default one for each processor.
    scheduler
        In place of these a Dask cluster: its address, such as tcp://127.0.0.1:8786. The workers need the data files
        that the experiment names.
    json
        Print the table in JSON.
    quiet
        Print nothing, and show no progress.
    """
    from ntkp2p.files import replacing
    from ntkp2p.reports import as_plain
    from ntkp2p.sweep import parse_settings
    from ntkp2p.sweep import sweep as computed

    fields, folder = parse_settings(settings), _writable(out)
    with _progress(shown=not quiet) as progress:
        try:
            result = computed(
                experiment,
                fields,
                out=folder,
                train=train,
                workers=workers,
                scheduler=scheduler,
                progress=lambda done, total: progress("cells", done, total),
            )
        except KeyboardInterrupt:
            _say(f"interrupted: the finished cells are in {folder}, and the same command goes on with the others")
            raise
    table = result.table()
    with replacing(folder / "sweep.csv") as temporary:
        table.to_csv(temporary, index=False)
    if "global_loss" in table:
        _save_figure(result.plot().figure, folder / "sweep.png")
    if json:
        from json import dumps

        print(dumps(as_plain(table.to_dict("records")), indent=2, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        print(result)
    if failures := result.failures:
        reason, names = next(iter(failures.values())), list(failures)
        named = "; ".join(names[:5]) + ("; …" if len(names) > 5 else "")
        raise ValueError(
            f"{len(failures)} of {len(result.rows)} cells were not computed: {named}; the first because {reason}; "
            f"all reasons are in {folder / 'sweep.csv'}, and the same command tries them again"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program: exit code 0, 2 for a user's mistake, 130 if interrupted."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        _say(str(error))
        sys.exit(2)
    except MemoryError:
        _say("out of memory: take fewer agents, samples or outputs")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("interrupted")
        sys.exit(130)


def _say(message: str) -> None:
    print(f"ntkp2p: {' '.join(message.split())}", file=sys.stderr)


def _print(report: Any, json: bool) -> None:
    from rich.console import Console

    if json:
        print(_in_json(report))
    else:
        Console().print(report)


def _in_json(report: Any) -> str:
    from json import dumps

    return dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)


def _begin(
    path: Path, out: Path, processes: Processes | None, cache: Path | None = None
) -> tuple[Experiment, Path | None]:
    """The run and the folder for its results: None in a process that leaves writing and printing to another."""
    from ntkp2p import devices
    from ntkp2p.experiment import Experiment

    run = Experiment.from_toml(path)
    if cache is not None:
        _writable(cache, "--cache")
    if processes is None:
        return run, _writable(out)
    address, count, number = processes.coordinator, processes.processes, processes.process
    if address is None or count is None or number is None:
        raise ValueError(
            "--coordinator, --processes and --process go together: for instance "
            "--coordinator 192.168.0.1:9876 --processes 2 --process 0"
        )
    folder = _writable(out) if number == 0 else None
    devices.join(address, count, number)
    return run, folder


def _predicted(run: Experiment, folder: Path | None, cache: Path | None) -> Mapping[Any, Trajectory]:
    """The predictions that there are, in rounds and in flow."""
    from ntkp2p import predictions

    return predictions(run, features=_features(run, cache, shown=folder is not None))


def _features(run: Experiment, cache: Path | None, *, shown: bool = True) -> Features:
    """Those of the run; what the kernel will take is said before it is computed."""
    import logging

    log = logging.getLogger("ntkp2p")
    if shown and not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("ntkp2p: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    with _progress(shown=shown) as progress:
        return run.features(cache=cache, progress=lambda done, total: progress("kernel", done, total))


def _trained(run: Experiment, folder: Path | None) -> tuple[Trajectory, ValueError | None]:
    """What training recorded, and how it diverged if it did."""
    from ntkp2p import DivergedError, train

    with _progress(shown=folder is not None) as progress:
        try:
            return train(run, progress=lambda done, total: progress("training", done, total)), None
        except DivergedError as error:
            return error.trajectory, error


def _mixing(files: Sequence[Path], graph: str | None, weights: str | None) -> Any:
    """What is to be checked: a matrix, a graph with or without weights, or a schedule."""
    from ntkp2p.topology import load_mixing, schedules
    from ntkp2p.topology.graphs import from_spec
    from ntkp2p.topology.reading import read
    from ntkp2p.topology.weights import from_graph

    if bool(files) == (graph is not None):
        raise ValueError("check takes either files or --graph: ntkp2p check W.csv, or ntkp2p check --graph cycle:10")
    if files and weights is not None:
        raise ValueError(f"--weights goes with --graph: {files[0]} holds its own weights, leave it out")
    if graph is not None:
        return from_graph(from_spec(graph), weights)
    return read(files[0]) if len(files) == 1 else schedules.periodic(map(load_mixing, files))


def _writable(folder: Path, option: str = "--out") -> Path:
    """The folder, made and tried out before any work begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): choose another folder with {option}") from error
    return folder


def _save_figure(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    from ntkp2p.plotting import STYLE

    with plt.rc_context(STYLE):
        figure.savefig(path)
    plt.close(figure)


def _flag(run: Experiment, predicted: Mapping[Any, Trajectory]) -> None:
    import numpy as np

    for verdict in (t.dataset.attrs for t in predicted.values()):
        if "failure" in verdict:
            _say(verdict["failure"])
    facts = predicted["rounds"].dataset.attrs
    error = max(t.dataset.attrs["error_estimate"] for t in predicted.values())
    if not all(t.dataset.attrs["converged"] for t in predicted.values()):
        _say(f"the solver's error estimate is {error:.1e}, not the accuracy asked for")
    if (cost := facts.get("sharing_error")) is not None:
        _say(f"the shared kernel differs from the exact one by {cost:.1%} on a sample of the data")
    if predicted["rounds"].stable:
        return
    bound = facts.get("stable_step_size", np.nan)
    # Of the matrices of a schedule none is at fault alone: one that grows may be undone by the next.
    mixing = max(abs(np.linalg.eigvals(run.mixing))) if isinstance(run.mixing, np.ndarray) else 0.0
    if mixing > 1 + 1e-9:
        remedy = f"the mixing matrix alone has {mixing:.4g}, which no step size mends: try lazy(W) or metropolis(graph)"
    else:
        remedy = f"stable below step_size = {bound:.4g}" if bound == bound else "use a smaller step size"
    # What is integrated has no spectrum.
    cause = f"spectral radius {facts['spectral_radius']:.4g} > 1" if facts["closed_form"] else "they outgrow all bounds"
    _say(f"the rounds are unstable: {cause}; {remedy}")


@contextmanager
def _progress(*, shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each run, on a terminal's stderr only."""
    if not (shown and sys.stderr.isatty()):
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    tasks = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def update(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield update
