"""The command line: the functions of the Python package; a mistake in the input gives one line and exit code 2.

Results go to standard output, everything else to standard error. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from ntkp2p import __version__
from ntkp2p.base.checks import whole_in
from ntkp2p.base.errors import InputError
from ntkp2p.base.imports import missing
from ntkp2p.cli import output

if TYPE_CHECKING:
    from ntkp2p.kernels import Features
    from ntkp2p.runs.experiment import Experiment
    from ntkp2p.runs.training import DivergedError, TrainingInterrupted
    from ntkp2p.runs.trajectory import Trajectory

#: Processes that draw figures side by side, at most: each takes up to 2 GB.
MOST_WORKERS = 4
#: What a figure can be saved as.
PICTURES = (".png", ".pdf", ".svg")
#: Where the figures are drawn by default: a folder that the repository ignores.
DRAWN = Path("drawn")
#: Files that only the root folder of a clone has, and the committed figures with them.
CLONE = (Path("pyproject.toml"), Path("figures/figure2.png"))


def _examples(*lines: str) -> str:
    return "Examples\n\n" + "".join(f"    {line}\n" for line in lines)


EXIT_CODES = """
Exit codes

    0    done
    1    a defect of the program: report it with what ntkp2p info prints
    2    a mistake in what was typed or in a file: one line says which
    130  interrupted by Ctrl-C: one line says what is kept
    141  the program that reads the output, such as head, has stopped

Results go to standard output, with --json as JSON and nothing else. Progress, on a terminal only, remarks, warnings
and errors go to standard error; --quiet leaves out progress and remarks.
"""

app = App(
    name="ntkp2p",
    help="Predict a peer-to-peer training run in closed form, and prove the prediction beside real training.",
    help_epilogue=_examples(
        "ntkp2p check --graph cycle:10",
        "ntkp2p compare experiment.toml --out results",
        "ntkp2p predict experiment.toml --json --quiet > predicted.json",
        "ntkp2p --install-completion",
    )
    + EXIT_CODES,
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # main says what is kept
)
app.register_install_completion_command(
    help="Let the Tab key complete commands, options and files: --shell bash, zsh or fish, by default the one in use."
)


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    """A whole number as typed; 2.9 would be rounded otherwise."""
    (token,) = tokens
    number = whole_in(token.value)
    if number is None:
        raise InputError(f"{token.value!r} is no whole number")  # cyclopts says of which option
    return number


Whole = Annotated[int | None, Parameter(converter=_whole)]
Out = Annotated[Path, Parameter(help="The folder that gets the results; made if it does not exist.")]
Toml = Annotated[Path, Parameter(help="An experiment in TOML; docs/experiment_file.md lists its fields.")]
Format = Annotated[Literal["png", "pdf", "svg"], Parameter(help="Of the pictures; PDF and SVG are vector graphics.")]
Cache = Annotated[Path | None, Parameter(help="A folder that keeps finished blocks of the kernel, to resume from.")]
Json = Annotated[bool, Parameter(show_default=False, help="Print the result in JSON.")]
Quiet = Annotated[
    bool,
    Parameter(
        name=("--quiet", "-q"),
        show_default=False,
        help="No progress and no remarks; warnings, errors and the result still come.",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Processes:
    """Several processes that compute one run together; the same command in each, by its number."""

    coordinator: Annotated[str | None, Parameter(help="HOST:PORT of process 0, a free port there.")] = None
    processes: Annotated[Whole, Parameter(help="How many processes there are.")] = None
    process: Annotated[Whole, Parameter(help="The number of this one, from 0; 0 writes and prints.")] = None


@app.command(help_epilogue=_examples("ntkp2p figures --quick", "ntkp2p figures --only figure1 --out first --json"))
def figures(
    *,
    quick: bool = False,
    only: str | None = None,
    images: Path | None = None,
    out: Path | None = None,
    committed: bool = False,
    format: Format = "png",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw the figures, predicted and trained on the same axes, and print the errors between them.

    Parameters
    ----------
    quick
        Draw with small runs.
    only
        One figure: figure1, figure2, algorithms, width, parameters, ten_classes, design, stability, or all of
        sparse-push or of staleness.
    images
        A folder of IDX files, Fashion-MNIST for one, in place of MNIST for the accuracies of Sparse-Push.
    out
        The folder that gets the results, by default drawn; made if it does not exist.
    committed
        For maintainers: redraw the figures that are committed in figures/, from the root folder of a clone.
    """
    from ntkp2p.base.compiled import keep_compiled
    from ntkp2p.base.workers import processors
    from ntkp2p.figures import draw, errors

    keep_compiled()
    folder = _results(_figures_folder(out, committed=committed, others=quick or format != "png"))
    with output.progress(shown=not quiet, lines=True) as progress:
        options: dict[str, Any] = {"images": images, "format": format, "workers": min(processors(), MOST_WORKERS)}
        table = draw.draw(folder, quick=quick, only=only, progress=progress, **options)
    plain = {"errors": table.reset_index().to_dict("records"), "folder": str(folder)}
    files = f"{folder}/" if only else f"{folder}/, this table to {errors.write(table, folder)}"
    output.show(f"{errors.as_text(table)}\nWritten: {files}", plain if json else None)


@app.command(
    help_epilogue=_examples(
        "ntkp2p check W.csv",
        "ntkp2p check --graph grid:4,5 --weights lazy_metropolis --plot W.png",
        "ntkp2p check --graph directed_ring:8 --json",
        "ntkp2p check even.edges odd.edges",
    )
)
def check(
    *files: Path,
    graph: str | None = None,
    weights: str | None = None,
    plot: Path | None = None,
    json: Json = False,
    quiet: Quiet = False,
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
    plot
        A PNG, PDF or SVG file for the spectrum in the unit disc and the graph with its weights.
    """
    from ntkp2p.topology import check_mixing

    if plot is not None:
        if plot.suffix.lower() not in PICTURES:
            raise InputError(f"--plot takes a file that ends in {', '.join(PICTURES)}, found {plot}")
        _writable(plot.parent, "--plot")
    report = check_mixing(_mixing(files, graph, weights))
    output.show(report, report.to_dict() if json else None)
    if plot is not None:
        output.save_figure(report.plot()[0].figure, plot)


@app.command(
    help_epilogue=_examples(
        "ntkp2p predict experiment.toml --out results",
        "ntkp2p predict experiment.toml --cache blocks",
        "ntkp2p predict experiment.toml --json | jq .runs.rounds.stable",
    )
)
def predict(
    experiment: Toml,
    /,
    *,
    out: Out = Path("results"),
    cache: Cache = None,
    format: Format = "png",
    processes: Processes | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict a run in closed form: predicted_rounds.nc, predicted_flow.nc unless it has delays, predicted.png."""
    from ntkp2p import compare

    run, folder = _begin(experiment, out, processes, cache)
    predicted = _predicted(run, folder, cache, quiet=quiet)
    if folder is None:
        return
    files = [trajectory.save(folder / f"predicted_{time}.nc") for time, trajectory in predicted.items()]
    both = compare(*predicted.values()) if len(predicted) > 1 else None
    ax = both.plot()[0] if both else predicted["rounds"].plot()
    files.append(output.save_figure(ax.figure, folder / f"predicted.{format}"))
    output.flag(run, predicted)
    errors = f"\n\n{both}" if both else ""
    output.show(
        output.summary(predicted, files) + errors, output.in_plain(run, predicted, files, both) if json else None
    )


@app.command(
    help_epilogue=_examples(
        "ntkp2p train experiment.toml --out results", "ntkp2p train experiment.toml --json --quiet > trained.json"
    )
)
def train(
    experiment: Toml,
    /,
    *,
    out: Out = Path("results"),
    format: Format = "png",
    processes: Processes | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the real networks of a run: trained.nc and trained.png."""
    run, folder = _begin(experiment, out, processes)
    trained, ended = _trained(run, folder, quiet=quiet)
    if folder is not None:
        files = [
            trained.save(folder / "trained.nc"),
            output.save_figure(trained.plot().figure, folder / f"trained.{format}"),
        ]
        result = {"trained": trained}
        output.show(output.summary(result, files), output.in_plain(run, result, files) if json else None)
    if ended is not None:
        raise ended


@app.command(
    help_epilogue=_examples(
        "ntkp2p stability experiment.toml",
        "ntkp2p stability experiment.toml --target 0.05 --out results",
        "ntkp2p stability experiment.toml --json | jq .step_size_limit",
    )
)
def stability(
    experiment: Toml,
    /,
    *,
    target: float | None = None,
    out: Path | None = None,
    cache: Cache = None,
    format: Format = "png",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Whether a run is stable, in rounds and in flow, why, and up to which step size and delay.

    Parameters
    ----------
    target
        A loss: the round in which the agents' mean global loss meets it is predicted.
    out
        A folder that gets stability.json and stability.png, the spectrum and the slowest modes.
    """
    from ntkp2p import stability as analysed
    from ntkp2p.base.files import replacing

    run = _read(experiment)
    folder = None if out is None else _writable(out)
    report = analysed(run, features=_features(run, cache, shown=not quiet), target=target)
    if folder is not None:
        with replacing(folder / "stability.json") as temporary:
            temporary.write_text(output.in_json(report.to_dict()) + "\n", encoding="utf-8")
        output.save_figure(report.plot()[0].figure, folder / f"stability.{format}")
    output.show(report, report.to_dict() if json else None)


@app.command(
    help_epilogue=_examples(
        "ntkp2p compare experiment.toml --out results",
        "ntkp2p compare experiment.toml --json | jq .errors.local_loss",
        "ntkp2p compare experiment.toml --coordinator 192.168.0.1:9876 --processes 2 --process 0",
    )
)
def compare(
    experiment: Toml,
    /,
    *,
    out: Out = Path("results"),
    cache: Cache = None,
    format: Format = "png",
    processes: Processes | None = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict and train a run, and set both side by side: comparison.nc, comparison.png and a table of errors."""
    from ntkp2p import compare as side_by_side

    run, folder = _begin(experiment, out, processes, cache)
    predicted = _predicted(run, folder, cache, quiet=quiet)
    if folder is not None:
        output.flag(run, predicted)
    trained, ended = _trained(run, folder, quiet=quiet)
    if folder is not None:
        result = side_by_side(trained, *predicted.values())
        files = [result.save(folder), output.save_figure(result.plot()[0].figure, folder / f"comparison.{format}")]
        output.show(
            f"{output.summary(result.trajectories, files)}\n\n{result}",
            output.in_plain(run, result.trajectories, files, result) if json else None,
        )
    if isinstance(ended, KeyboardInterrupt):
        raise ended
    if ended is not None and folder is not None:  # predicted and flagged, so that it is a result and not a mistake
        output.say(str(ended))


@app.command(help_epilogue=_examples("ntkp2p info", "ntkp2p info --json > machine.json"))
def info(*, json: Json = False, quiet: Quiet = False) -> None:
    """What a report of a defect needs: versions, platform, devices, memory, threads and JAX's flags."""
    from ntkp2p.base.info import info

    facts = info()
    width = max(map(len, facts))
    lines = (f"{name:<{width}}  {output.in_words(value)}" for name, value in output.with_gibibytes(facts).items())
    output.show("\n".join(lines), facts if json else None)


@app.command(
    help_epilogue=_examples(
        "ntkp2p sweep experiment.toml --set algorithm.step_size=0.1,0.3,1.0 --set mixing.graph=cycle,star --out sweep",
        "ntkp2p sweep experiment.toml --set seed=0,1,2 --train --workers 2",
        """ntkp2p sweep experiment.toml --set 'mixing.graph=cycle,"grid:2,4"'""",
        "ntkp2p sweep experiment.toml --set model.width=64,256,1024 --scheduler tcp://127.0.0.1:8786",
    )
)
def sweep(
    experiment: Toml,
    /,
    *,
    settings: Annotated[
        list[str],
        Parameter(name="--set", help="FIELD=VALUE,VALUE,... of the experiment, values as in TOML; again for more."),
    ],
    out: Out = Path("results"),
    train: bool = False,
    workers: Whole = None,
    scheduler: str | None = None,
    format: Format = "png",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict a run for every combination of some fields' values: one netCDF file each, sweep.csv and sweep.png.

    The same command again goes on where it was interrupted, and tries once more what failed.

    Parameters
    ----------
    train
        Train the real networks of every cell beside its prediction.
    workers
        How many processes of this machine compute; by default one for each processor.
    scheduler
        In place of these a Dask cluster: its address, such as tcp://127.0.0.1:8786. The workers need the data files
        that the experiment names.
    """
    from ntkp2p.analysis.sweep import parse_settings
    from ntkp2p.analysis.sweep import sweep as computed
    from ntkp2p.base.compiled import keep_compiled
    from ntkp2p.base.files import replacing

    keep_compiled()
    fields, folder = parse_settings(settings), _results(out)
    where = {"workers": workers, "scheduler": scheduler}
    with output.progress(shown=not quiet) as progress:
        result = computed(
            experiment,
            fields,
            out=folder,
            train=train,
            progress=lambda done, total: progress("cells", done, total),
            **where,
        )
    table = result.table()
    with replacing(folder / "sweep.csv") as temporary:
        table.to_csv(temporary, index=False)
    if "global_loss" in table:
        output.save_figure(result.plot().figure, folder / f"sweep.{format}")
    output.show(result, {"cells": table.to_dict("records"), "folder": str(folder)} if json else None)
    if failures := result.failures:
        reason, names = next(iter(failures.values())), list(failures)
        named = "; ".join(names[:5]) + ("; …" if len(names) > 5 else "")
        raise InputError(
            f"{len(failures)} of {len(result.rows)} cells were not computed: {named}; the first because {reason}; "
            f"all reasons are in {folder / 'sweep.csv'}, and the same command tries them again"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program: exit code 0, 1 for a defect, 2 for a user's mistake, 130 if interrupted."""
    output.print_what_the_streams_can_encode()
    typed = sys.argv[1:] if arguments is None else list(arguments)
    if arguments is None and "" not in sys.path:
        sys.path.append("")  # what a file names as package.module:Name may be in the current folder
    try:
        app(typed, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        output.say(f"{str(interruption) or 'interrupted'}: {_kept(typed, interruption)}")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor is the rest tried again at exit
        sys.exit(141)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # NumPy's, and JAX'
            output.say("out of memory: take fewer agents, samples or outputs")
        elif isinstance(error, CycloptsError | InputError | OSError):
            output.say(str(error))
        elif package := missing(error):
            output.say(f"ntkp2p needs {package}, which is not installed: pip install ntkp2p installs what is missing")
        else:
            traceback.print_exc()
            output.say("this is a defect of the program: please report the lines above, with what `ntkp2p info` prints")
            sys.exit(1)
        sys.exit(2)


def _kept(typed: Sequence[str], interruption: KeyboardInterrupt) -> str:
    """What there is of an interrupted command's work, and how to go on."""
    _, bound, _ = app.parse_args(typed, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    again = f"type again: {shlex.join([app.name[0], *typed])}"
    if hasattr(interruption, "trajectory"):
        return f"what was recorded until then is in {bound.arguments['out']}; to train from the start, {again}"
    if (cache := bound.arguments.get("cache")) is not None:
        if not any(cache.glob("*/*")):
            return f"no block of the kernel was finished yet; to begin again, {again}"
        return f"the finished blocks of the kernel are kept in {cache}; to go on from there, {again}"
    if "settings" in bound.arguments:
        return f"the finished cells are kept in {bound.arguments['out']}; to go on with the others, {again}"
    if "cache" in bound.arguments:
        return "nothing is kept; with --cache DIR the finished blocks of the kernel are"
    return f"to begin again, {again}"


def _read(path: Path) -> Experiment:
    """The experiment in a file; compiled programs are kept from here on."""
    from ntkp2p.base.compiled import keep_compiled
    from ntkp2p.runs.experiment import Experiment

    keep_compiled()
    return Experiment.from_toml(path)


def _begin(
    path: Path, out: Path, processes: Processes | None, cache: Path | None = None
) -> tuple[Experiment, Path | None]:
    """The run and the folder for its results: None in a process that leaves writing and printing to another."""
    from ntkp2p.base import devices

    run = _read(path)
    if cache is not None:
        _writable(cache, "--cache")
    if processes is None:
        return run, _results(out)
    address, count, number = processes.coordinator, processes.processes, processes.process
    if address is None or count is None or number is None:
        raise InputError(
            "--coordinator, --processes and --process go together: for instance "
            "--coordinator 192.168.0.1:9876 --processes 2 --process 0"
        )
    folder = _results(out) if number == 0 else None
    devices.join(address, count, number)
    return run, folder


def _predicted(run: Experiment, folder: Path | None, cache: Path | None, *, quiet: bool) -> Mapping[Any, Trajectory]:
    """The predictions that there are, in rounds and in flow."""
    from ntkp2p import predictions
    from ntkp2p.runs.instability import no_instability_warning

    features = _features(run, cache, shown=folder is not None and not quiet)
    with no_instability_warning():  # output.flag reports it
        return predictions(run, features=features)


def _features(run: Experiment, cache: Path | None, *, shown: bool) -> Features:
    """Those of the run; what the kernel will take is said before it is computed."""
    with output.remarks(shown=shown), output.progress(shown=shown) as progress:
        return run.features(cache=cache, progress=lambda done, total: progress("kernel", done, total))


def _trained(
    run: Experiment, folder: Path | None, *, quiet: bool
) -> tuple[Trajectory, DivergedError | TrainingInterrupted | None]:
    """What training recorded, and what ended it early if anything did."""
    from ntkp2p import DivergedError, TrainingInterrupted, train

    with output.progress(shown=folder is not None and not quiet) as progress:
        try:
            return train(run, progress=lambda done, total: progress("training", done, total)), None
        except (DivergedError, TrainingInterrupted) as ended:
            return ended.trajectory, ended


def _mixing(files: Sequence[Path], graph: str | None, weights: str | None) -> Any:
    """What is to be checked: a matrix, a graph with or without weights, or a schedule."""
    from ntkp2p.topology import load_mixing, schedules
    from ntkp2p.topology.graphs import from_spec
    from ntkp2p.topology.reading import read
    from ntkp2p.topology.weights import from_graph

    if bool(files) == (graph is not None):
        raise InputError("check takes either files or --graph: ntkp2p check W.csv, or ntkp2p check --graph cycle:10")
    if files and weights is not None:
        raise InputError(f"--weights goes with --graph: {files[0]} holds its own weights, leave it out")
    if graph is not None:
        return from_graph(from_spec(graph), weights)
    return read(files[0]) if len(files) == 1 else schedules.periodic(map(load_mixing, files))


def _figures_folder(out: Path | None, *, committed: bool, others: bool) -> Path:
    """The folder for the figures: the repository's own only if `committed`, and then only for those committed there."""
    if not committed:
        return DRAWN if out is None else out
    if out is not None or others:
        raise InputError("--committed draws the full figures as PNG in figures/: leave out --out, --quick and --format")
    if not all(map(Path.exists, CLONE)):
        raise InputError("--committed works only in the root folder of a clone of the repository: use --out instead")
    return Path("figures")


def _writable(folder: Path, option: str = "--out") -> Path:
    from ntkp2p.base.files import writable

    return writable(folder, option)


def _results(folder: Path) -> Path:
    """The folder for results, checked before anything is computed: it is writable, and netCDF can be written."""
    from ntkp2p.base.files import netcdf_engine

    netcdf_engine()
    return _writable(folder)
