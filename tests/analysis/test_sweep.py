import json
import math
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace
from unittest.mock import MagicMock

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import ntkp2p as p2p
from ntkp2p import cli
from ntkp2p.analysis.sweep import parse_settings
from ntkp2p.base.workers import Failure, locally, on_cluster
from ntkp2p.runs.trajectory import save_netcdf

module = sys.modules["ntkp2p.analysis.sweep"]

TOML = """
rounds = 12
record = 4

[model]
name = "affine"

[data]
name = "digits"
samples = 24
test_samples = 6

[split]
agents = 4
by = "label"

[mixing]
graph = "cycle"

[algorithm]
name = "DGD"
step_size = 0.2
"""
SETTINGS = {"algorithm.step_size": [0.1, 0.3], "mixing.graph": ["cycle", "star"]}


@pytest.fixture(scope="module")
def toml(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "experiment.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def here(monkeypatch):
    """Cells are computed in this process; returns the list of those that were."""
    computed = []

    def compute(function, tasks, count):
        for task in tasks:
            computed.append(task.settings)
            try:
                yield task, function(task)
            except ValueError as error:
                yield task, Failure.of(error)

    monkeypatch.setattr(module, "locally", compute)
    return computed


@pytest.fixture(scope="module")
def compiled(compiled_once):
    """Other processes share what this one has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def by_hand(**options):
    """The same cell's experiment, put together in Python."""
    graph = {"cycle": p2p.graphs.cycle, "star": p2p.graphs.star}[options.get("mixing.graph", "cycle")]
    data = p2p.data.load("digits", samples=24, test_samples=6).split(agents=4, by="label")
    algorithm = p2p.DGD(step_size=options["algorithm.step_size"])
    return p2p.Experiment(
        model=p2p.models.affine(), data=data, mixing=p2p.metropolis(graph(4)), algorithm=algorithm, rounds=12, record=4
    )


def assert_as_by_hand(result):
    for row in result.rows:
        with xr.open_dataset(result.folder / row["file"], engine="h5netcdf") as dataset:
            for time, expected in p2p.predictions(by_hand(**row["settings"])).items():
                found = dataset.sel(source=time)
                np.testing.assert_allclose(found["local_loss"], expected.local_loss, rtol=1e-9)
                np.testing.assert_allclose(found["consensus_distance"], expected.consensus_distance, atol=1e-9)


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.nc")}


@pytest.mark.slow
def test_interrupted_killed_and_gone_on_with(toml, tmp_path, compiled):
    settings = {"algorithm.step_size": [0.1, 0.3, 0.5]}

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        p2p.sweep(toml, settings, out=tmp_path, workers=1, progress=interrupt)
    assert not multiprocessing.active_children()
    before = stamps(tmp_path)
    assert len(before) == len(list(tmp_path.iterdir())) == 1

    killed, done = [], []

    def kill(number, total):
        done.append((number, total))
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            os.kill(killed[0].pid, signal.SIGKILL)

    result = p2p.sweep(toml, settings, out=tmp_path, workers=1, progress=kill)
    assert done == [(2, 3), (3, 3)]
    assert not result.failures
    assert not multiprocessing.active_children()
    after = stamps(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 3
    assert_as_by_hand(result)


@pytest.mark.slow
def test_a_task_that_kills_its_process_and_one_that_fails():
    answers = dict(locally(os._exit, ["a word", 3], 2))
    assert "str" in answers["a word"].reason
    assert answers[3].reason.startswith("its process dies")
    with pytest.raises(ValueError, match="no process could compute anything"):
        list(locally(os._exit, [3, 4], 2))


@pytest.mark.slow
@pytest.mark.needs("distributed")
def test_a_cluster_loses_a_worker(toml, tmp_path, compiled):
    from distributed import LocalCluster

    finished, forgotten = {}, []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, worker_dashboard_address=None
    ) as cluster:

        def ended(end):
            return [key for key, _, to, *_ in cluster.scheduler.transition_log if to == end]

        def kill(done, total):
            if done == 1:
                finished.update(stamps(tmp_path))
                until = time.monotonic() + 10
                while not ended("forgotten") and time.monotonic() < until:
                    time.sleep(0.01)
                forgotten.extend(ended("forgotten"))
                os.kill(cluster.workers[0].pid, signal.SIGKILL)

        result = p2p.sweep(toml, SETTINGS, out=tmp_path, scheduler=cluster.scheduler_address, progress=kill)
        computed = ended("memory")
    assert not result.failures
    assert len(finished) == len(forgotten) == 1
    assert finished.items() <= stamps(tmp_path).items()
    assert_as_by_hand(result)
    # What was written before the kill was computed once; what the worker had not returned, again.
    assert computed.count(forgotten[0]) == 1
    assert len(set(computed)) == 4
    with pytest.raises(OSError, match="no Dask scheduler answers at"):
        next(on_cluster(math.sqrt, [1.0], "tcp://127.0.0.1:1"))


def test_a_lost_scheduler_is_no_defect(monkeypatch):
    def lost(self):
        raise CancelledError

    future = type("Future", (), {"exception": lambda self: None, "result": lost})()
    client = MagicMock()
    client.submit.return_value = future
    fake = SimpleNamespace(Client=lambda *_, **__: client, as_completed=lambda futures, **_: futures)
    monkeypatch.setitem(sys.modules, "distributed", fake)
    with pytest.raises(OSError, match="scheduler at tcp://here was lost: start it, and the same sweep goes on"):
        next(on_cluster(abs, [1], "tcp://here"))


def test_what_is_there_is_not_computed_again(toml, tmp_path, here):
    p2p.sweep(toml, SETTINGS, out=tmp_path)
    before, computed = stamps(tmp_path), list(here)
    assert len(computed) == 4
    more = SETTINGS | {"mixing.graph": ["star", "cycle", "complete"], "algorithm.step_size": [0.3]}
    result = p2p.sweep(toml, more, out=tmp_path)
    assert [cell["mixing.graph"] for cell in here[4:]] == ["complete"]
    assert before.items() <= stamps(tmp_path).items()
    assert [row["settings"]["mixing.graph"] for row in result.rows] == ["star", "cycle", "complete"]

    # With training they lack something; and the next time they do not.
    here.clear()
    one = {"algorithm.step_size": [0.1]}
    p2p.sweep(toml, one, out=tmp_path, train=True)
    result = p2p.sweep(toml, one, out=tmp_path, train=True)
    assert len(here) == 1
    (row,) = result.table().to_dict("records")
    expected = by_hand(**{"algorithm.step_size": 0.1})
    trained, predicted = p2p.train(expected), p2p.predict(expected)
    assert row["trained_global_loss"] == pytest.approx(float(trained.global_loss[-1].mean()), rel=1e-10)
    assert row["global_loss"] == pytest.approx(float(predicted.global_loss[-1].mean()), rel=1e-10)
    assert row["linearisation"] < 1e-10


def test_another_experiment_in_the_same_folder(toml, tmp_path, here):
    path = tmp_path / "experiment.toml"
    one = {"algorithm.step_size": [0.1]}
    W = p2p.metropolis(p2p.graphs.cycle(4))
    np.save(tmp_path / "W.npy", W)
    path.write_text(TOML.replace('graph = "cycle"', 'file = "W.npy"'))
    p2p.sweep(path, one, out=tmp_path)
    np.save(tmp_path / "W.npy", (W + np.eye(4)) / 2)  # the same words in the TOML
    slower = p2p.sweep(path, one, out=tmp_path)
    path.write_text(path.read_text().replace("rounds = 12", "rounds = 13"))
    p2p.sweep(path, one, out=tmp_path)
    p2p.sweep(path, one, out=tmp_path)
    assert len(here) == len(stamps(tmp_path)) == 3

    file = slower.folder / p2p.sweep(path, one, out=tmp_path).rows[0]["file"]
    save_netcdf(xr.Dataset({"x": 1}), file)
    with pytest.raises(ValueError, match="is not of this sweep: move it away"):
        p2p.sweep(path, one, out=tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged: delete it"):
        p2p.sweep(path, one, out=tmp_path)


def test_cells_of_one_kernel_compute_it_once(toml, tmp_path, here, monkeypatch):
    seen = []
    features = p2p.Experiment.features
    monkeypatch.setattr(p2p.Experiment, "features", lambda self, **o: seen.append(self.seed) or features(self, **o))
    module._features.cache_clear()
    p2p.sweep(toml, {"algorithm.step_size": [0.1, 0.3], "seed": [3, 4]}, out=tmp_path)
    assert sorted(seen) == [3, 4]


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"algorithm.stepsize": [0.1]}, ["algorithm.stepsize=0.1", "did you mean 'step_size'"]),
        ({"algoritm.step_size": [0.1]}, ["unknown key 'algoritm'", "did you mean 'algorithm'"]),
        ({"algorithm.step_size": [0.1, -1.0], "seed": [0, 1]}, ["no cell with algorithm.step_size=-1.0", "positive"]),
        ({"rounds.of": [1]}, ["rounds.of cannot be set", "no table"]),
        ({"seed": [1, 1]}, ["seed has a value twice"]),
        ({"seed": []}, ["seed must have a list of values"]),
        ({"split.by": "iid"}, ["split.by must have a list of values, found 'iid'"]),
        ({"split": [{"agents": 4}], "split.agents": [4]}, ["split.agents is a part of split", "leave one"]),
        ({}, ["settings must name fields"]),
    ],
)
def test_settings_that_cannot_be(toml, tmp_path, here, settings, fragments):
    with pytest.raises(ValueError) as error:
        p2p.sweep(toml, settings, out=tmp_path / "out")
    assert all(fragment in str(error.value) for fragment in fragments), error.value
    assert not here
    assert not (tmp_path / "out").exists()


def test_an_experiment_is_not_swept(tmp_path):
    with pytest.raises(TypeError, match="takes a TOML file or its tables, found an Experiment"):
        p2p.sweep(by_hand(**{"algorithm.step_size": 0.1}), SETTINGS, out=tmp_path)


def test_settings_as_they_are_typed():
    texts = ["algorithm.step_size=0.1,1", "data.classes=[0,1],[2,3]", 'mixing.graph=cycle,"grid:2,2"', "split.by=iid"]
    assert parse_settings(texts) == {
        "algorithm.step_size": [0.1, 1],
        "data.classes": [[0, 1], [2, 3]],
        "mixing.graph": ["cycle", "grid:2,2"],
        "split.by": ["iid"],
    }
    clocks = "mixing.update={clock = 'exponential', rate = 1.0},{clock = 'exponential', rate = 2.0}"
    assert [value["rate"] for value in parse_settings([clocks])["mixing.update"]] == [1.0, 2.0]
    for text, fragment in {
        "seed": "FIELD=VALUE",
        "seed=": "FIELD=VALUE",
        "seed=1,,2": "empty value",
        "data.classes=[0,1": "not closed",
    }.items():
        with pytest.raises(ValueError, match=fragment):
            parse_settings([text])
    with pytest.raises(ValueError, match="twice"):
        parse_settings(["seed=1", "seed=2"])


def program(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return exit.value.code or 0, captured.out, captured.err


def test_the_program(toml, tmp_path, here, capsys):
    arguments = ["sweep", toml, "--set", "algorithm.step_size=0.1,100", "--out", tmp_path]
    code, out, err = program(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "algorithm.step_size" in out
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sweep.csv").read_text().startswith("algorithm.step_size,global_loss,")
    code, out, err = program(capsys, *arguments, "--json")
    assert [row["stable"] for row in json.loads(out)["cells"]] == [True, False]
    code, out, err = program(capsys, *arguments, "--quiet")
    assert (code, err) == (0, "")
    assert "2 cells" in out
    assert len(here) == 2

    code, _, err = program(capsys, *arguments, "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2
    assert "leave one of both out" in err


def test_a_combination_that_cannot_be(toml, tmp_path, here, capsys):
    fields = ["--set", "mixing.graph=cycle,hypercube:2", "--set", "split.agents=4,6"]
    code, out, err = program(capsys, "sweep", toml, *fields, "--out", tmp_path)
    assert code == 2
    assert len(here) == len(stamps(tmp_path)) == 3
    assert "1 not computed" in out
    assert "1 of 4 cells were not computed: mixing.graph=hypercube:2, split.agents=6; the first because" in err
    assert "4 × 4 but the data are split over 6 agents" in err
    assert err.count("\n") == 1
    assert "1 not computed" in p2p.sweep(toml, parse_settings(fields[1::2]), out=tmp_path)._repr_html_()


def test_the_program_says_how_to_go_on(toml, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(module, "locally", interrupted)
    code, _, err = program(capsys, "sweep", toml, "--set", "seed=1,2", "--out", tmp_path)
    assert code == 130
    assert err.startswith(
        f"ntkp2p: interrupted: the finished cells are kept in {tmp_path}; to go on with the others, type"
    )


def test_plots(toml, tmp_path, here):
    def drawn(settings, **options):
        result = p2p.sweep(toml, settings, out=tmp_path, **options)
        return result.table(), result.plot()

    table, ax = drawn({"algorithm.step_size": [1000.0, 0.1]})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.1, 1000.0])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [table["global_loss"][1], np.nan])  # off the chart
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1000.0])  # and marked
    assert ax.get_xlabel() == "step size η"
    _, ax = drawn({"split.by": ["iid", "label"]}, train=True)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["iid", "label"]
    assert len(ax.lines) == 2
    np.testing.assert_allclose(ax.lines[0].get_ydata(), ax.lines[1].get_ydata(), rtol=1e-9)
    table, ax = drawn({"mixing.graph": ["cycle", "star"], "algorithm.step_size": [0.1, 0.3]})
    assert len(ax.lines) == 2
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), table["global_loss"][2:])
    plt.close("all")


def test_a_map_takes_the_place_of_many_curves(tmp_path):
    graphs = [f"graph {i}" for i in range(9)]
    rows = tuple(
        {
            "settings": {"algorithm.step_size": step_size, "mixing.graph": graph},
            "facts": {"global_loss": step_size + i, "stable": i > 0},
            "file": "",
            "failure": "",
        }
        for step_size in (0.1, 0.2)
        for i, graph in enumerate(graphs)
    )
    ax = p2p.Sweep({"algorithm.step_size": [0.1, 0.2], "mixing.graph": graphs}, tmp_path, rows).plot()
    (image,) = ax.collections
    np.testing.assert_allclose(image.get_array()[:, 0], 0.1 + np.arange(9))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == graphs
    assert len(ax.lines) == 2  # both cells of the unstable graph
    plt.close("all")
