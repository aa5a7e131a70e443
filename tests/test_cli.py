import ast
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

import ntkp2p
from ntkp2p import DivergedError, NoSteadyStateError, cli, schedules
from ntkp2p.base.errors import InputError, InputTypeError, MissingPackageError, NotConvergedError
from ntkp2p.base.files import replacing
from ntkp2p.cli import output

TOML = """
rounds = 20
record = 5

[model]
name = "affine"

[data]
name = "digits"
samples = 40
test_samples = 10

[split]
agents = 4
by = "label"

[mixing]
graph = "cycle"

[algorithm]
name = "DGD"
step_size = 0.2
"""


@pytest.fixture(autouse=True)
def interruptible():
    """A suite that was started in the background ignores interrupts, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(capsys):
    """`run(*arguments)` → exit code, standard output, standard error of the program in this process."""

    def program(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return program


@pytest.fixture
def experiment(tmp_path):
    """`experiment(old=new, ...)` writes the TOML above with replacements."""

    def write(*replacements):
        text = TOML
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write


def fails(result, *fragments):
    """Exit code 2 and one line on stderr that names the mistake and the remedy."""
    code, _, err = result
    assert code == 2, err
    assert err.startswith("ntkp2p: ")
    assert err.count("\n") == 1
    for fragment in fragments:
        assert fragment in err


COMMANDS = [name for name in cli.app if not name.startswith("-")]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_typed(name):
    """In the help of the command, and of the whole program: the parser takes them."""
    own, whole = (app.help_epilogue.splitlines() for app in (cli.app[name], cli.app))
    typed = [shlex.split(line.split("|")[0].split(">")[0]) for line in own if line.startswith("    ntkp2p ")]
    assert typed
    for words in [*typed, *(line.split(">")[0].split() for line in whole if line.startswith(f"    ntkp2p {name} "))]:
        command, _, _ = cli.app.parse_args(words[1:], exit_on_error=False, print_error=False)
        assert command.__name__ == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_quiet_and_speak_json(name, run):
    assert {"--json", "--quiet"} <= {
        option for argument in cli.app[name].assemble_argument_collection() for option in argument.names
    }
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Examples" in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(run, tmp_path, shell):
    # With --output, the shell's own files stay unchanged.
    code, _, _ = run("--install-completion", "--shell", shell, "--output", tmp_path / shell)
    assert code == 0
    script = (tmp_path / shell).read_text()
    assert all(word in script for word in ("stability", "quiet", "cache"))


def test_bash_completes_what_is_typed(tmp_path):
    (tmp_path / "script").write_text(cli.app.generate_completion(shell="bash"))
    typed = 'COMP_WORDS=(ntkp2p sta); COMP_CWORD=1; _ntkp2p; echo "${COMPREPLY[@]}"'
    typed += '; COMP_WORDS=(ntkp2p predict --ca); COMP_CWORD=2; _ntkp2p; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f"source {tmp_path}/script; {typed}"], capture_output=True, text=True)
    assert done.stdout.split() == ["stability", "--cache"], done.stderr


def test_figures_in_json(run, tmp_path, monkeypatch):
    table = pd.DataFrame({"run": ["a"], "linearisation": [0.5], "solver": [np.nan]}).set_index("run")
    monkeypatch.setattr("ntkp2p.figures.draw.draw", lambda out, **options: table)
    code, out, _ = run("figures", "--out", tmp_path, "--json", "-q")
    assert code == 0
    assert json.loads(out) == {
        "errors": [{"run": "a", "linearisation": 0.5, "solver": None}],
        "folder": str(tmp_path),
    }
    code, out, _ = run("figures", "--out", tmp_path)
    assert code == 0
    assert "50 %" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100  # the last line names the folder
    assert "| a | 50 % |" in (tmp_path / "errors.md").read_text()


def test_committed_figures_are_drawn_by_name_only(run, tmp_path, monkeypatch):
    drawn = []
    table = pd.DataFrame({"run": ["a"], "solver": [np.nan]}).set_index("run")
    monkeypatch.setattr("ntkp2p.figures.draw.draw", lambda out, **options: drawn.append(out) or table)
    monkeypatch.chdir(tmp_path)
    fails(run("figures", "--committed"), "only in the root folder of a clone")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure2.png").touch()
    for option in (["--out", "figures"], ["--quick"], ["--format", "pdf"]):
        fails(run("figures", "--committed", *option), "leave out --out, --quick and --format")
    assert not drawn
    for arguments in ([], ["--committed"], ["--out", "elsewhere", "--quick"]):
        assert run("figures", *arguments)[0] == 0
    assert drawn == [Path("drawn"), Path("figures"), Path("elsewhere")]


def test_figures_from_a_clone_leave_committed_files_alone():
    clone = Path(__file__).parents[1]
    assert f"/{cli.DRAWN}/" in (clone / ".gitignore").read_text().splitlines()
    assert all((clone / path).exists() for path in cli.CLONE)


def test_info_says_what_a_report_of_a_defect_needs(run):
    code, out, _ = run("info", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["libraries"]["numpy"] == np.__version__
    assert found["memory"]["total"] > found["memory"]["free"] > 0
    assert found["devices"][0]["platform"] == "cpu"
    code, out, _ = run("info")
    assert f"numpy {np.__version__}" in out


@pytest.fixture
def interrupted(monkeypatch):
    """`interrupted(label)`: Ctrl-C as soon as there is progress of that kind."""

    def at(label):
        @contextmanager
        def progress(*, shown):
            yield lambda what, *step: signal.raise_signal(signal.SIGINT) if what == label else None

        monkeypatch.setattr(output, "progress", progress)

    return at


def test_ctrl_c_keeps_what_was_recorded(run, experiment, tmp_path, interrupted):
    interrupted("training")
    path = experiment()
    code, out, err = run("compare", path, "--out", tmp_path)
    assert code == 130
    assert "training was interrupted at round 0 of 20" in err
    assert f"is in {tmp_path}; to train from the start, type again: ntkp2p compare {path}" in err
    assert "linearisation" in out
    kept = xr.load_dataset(tmp_path / "comparison.nc", engine="h5netcdf")
    assert kept.attrs["trained_interrupted_at"] == 0
    assert np.isfinite(kept["local_loss"].sel(source="trained")).all("agent").values.tolist() == [True, *[False] * 4]


@pytest.mark.parametrize("cache", [True, False])
def test_ctrl_c_says_how_to_go_on_with_a_kernel(run, experiment, tmp_path, monkeypatch, interrupted, cache):
    interrupted("kernel")
    path = experiment()
    options = ["--cache", "my blocks"] if cache else []
    monkeypatch.chdir(tmp_path)
    code, out, err = run("predict", path, *options)
    assert (code, out) == (130, "")
    if cache:
        assert f"kept in my blocks; to go on from there, type again: ntkp2p predict {path} --cache 'my blocks'" in err
        assert list(tmp_path.glob("my blocks/*/*.npz"))
    else:
        assert "nothing is kept; with --cache DIR the finished blocks of the kernel are" in err
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
def test_ctrl_c_at_a_terminal(experiment, tmp_path):
    """A real process at a real terminal: the bar is seen, then the key is pressed."""
    path = experiment(("rounds = 20", "rounds = 1000000"), ("record = 5", "record = 100"))
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "ntkp2p", "train", str(path), "--out", str(tmp_path / "results")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, start_new_session=True)
    os.close(end)
    said = b""
    while b"training" not in said:
        said += os.read(terminal, 1000)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # that is how Linux says that the process has closed its end
        while more := os.read(terminal, 1000):
            said += more
    os.close(terminal)
    process.communicate()
    assert process.returncode == 130
    assert b"type again: ntkp2p train" in b" ".join(said.split())
    assert b"Traceback" not in said
    assert sorted(os.listdir(tmp_path / "results")) == ["trained.nc", "trained.png"]
    recorded = xr.load_dataset(tmp_path / "results" / "trained.nc", engine="h5netcdf")
    assert recorded.attrs["interrupted_at"] == recorded["round"][-1] < 1000000


@pytest.mark.parametrize("broken", [lambda *_: np.linalg.inv(np.zeros((2, 2))), lambda *_: int("x")])
def test_a_defect_of_the_program_is_not_called_a_mistake(run, monkeypatch, broken):
    monkeypatch.setattr(cli, "_mixing", broken)
    code, out, err = run("check", "--graph", "cycle:5")
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("ntkp2p: this is a defect of the program")
    assert "ntkp2p info" in err


def test_exceptions_for_mistakes_share_one_type():
    """Every exception that the package raises for a mistake is of one type, whatever built-in type it also has."""
    for error in (InputTypeError, MissingPackageError, NotConvergedError, NoSteadyStateError, DivergedError):
        assert issubclass(error, InputError)


def test_mistakes_are_raised_as_such():
    """No `raise` of a built-in type that a user's mistake would have: the command line would call it a defect."""
    for path in Path(ntkp2p.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("ValueError", "TypeError", "ImportError", "ArithmeticError"), (path, node.lineno)


def test_files_are_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file"):
        signal.raise_signal(signal.SIGINT)
    assert not list(tmp_path.iterdir())
    (tmp_path / "other").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_kernel_is_kept_where_one_says(run, experiment, tmp_path, caplog):
    path = experiment(('name = "affine"', 'name = "mlp"\nwidth = 64'))
    caplog.set_level("INFO", "ntkp2p")
    code, _, err = run("predict", path, "--out", tmp_path, "--cache", tmp_path / "blocks")
    assert code == 0, err
    assert list((tmp_path / "blocks").glob("ntk-*/*.npz"))
    assert any("takes at most" in message for message in caplog.messages)
    (tmp_path / "file").write_text("")
    fails(run("predict", path, "--out", tmp_path, "--cache", tmp_path / "file"), "cannot write to", "--cache")


@pytest.mark.slow
def test_what_a_shared_kernel_costs_is_said(run, experiment, tmp_path):
    wide = 'name = "mlp"\nwidth = 64'
    path = experiment(
        ("rounds =", 'kernel = "shared"\nrounds ='),
        ('name = "affine"', wide),
        ("samples = 40", "classes = [0, 1, 2]\nsamples = 40"),
    )
    code, _, err = run("predict", path, "--out", tmp_path)
    assert code == 0
    assert "the shared kernel differs from the exact one by" in err


def test_compare_writes_what_it_says(run, experiment, tmp_path):
    code, out, err = run("compare", experiment(), "--out", tmp_path / "new" / "folder")
    assert code == 0
    assert all("a tangent kernel of" in line for line in err.splitlines())
    assert "linearisation" in out
    folder = tmp_path / "new" / "folder"
    dataset = xr.load_dataset(folder / "comparison.nc", engine="h5netcdf")
    assert list(dataset["source"].values) == ["trained", "rounds", "flow"]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_allclose(dataset["local_loss"][0], dataset["local_loss"][1], rtol=1e-10)


def test_cross_entropy_is_compared_likewise(run, experiment, tmp_path):
    code, out, err = run("compare", experiment(("rounds =", 'loss = "cross_entropy"\nrounds =')), "--out", tmp_path)
    assert code == 0, err
    assert "linearisation" in out
    dataset = xr.load_dataset(tmp_path / "comparison.nc", engine="h5netcdf")
    assert (dataset.attrs["loss"], dataset.attrs["rounds_closed_form"]) == ("cross_entropy", 0)
    np.testing.assert_allclose(dataset["local_loss"][0], dataset["local_loss"][1], rtol=1e-10)


@pytest.mark.slow
def test_cross_entropy_that_outgrows_all_bounds(run, experiment, tmp_path):
    np.save(tmp_path / "W.npy", np.array([[2.0, -1.0], [-1.0, 2.0]]))
    path = experiment(
        ("rounds =", 'loss = "cross_entropy"\nrounds ='),
        ("agents = 4", "agents = 2"),
        ('graph = "cycle"', 'file = "W.npy"'),
    )
    code, _, err = run("predict", path, "--out", tmp_path)
    assert code == 0, err
    assert "rounds are unstable: the models overflow; the mixing matrix alone has spectral radius 3," in err


def test_predict_and_train_write_what_they_say(run, experiment, tmp_path):
    """And say it in JSON: nothing else is on stdout, and nothing on stderr when they are quiet."""
    found = {}
    for name in ("predict", "train"):
        drawn = "--format", {"predict": "png", "train": "svg"}[name]
        code, out, err = run(name, experiment(), "--out", tmp_path / "results", *drawn, "--json", "-q")
        assert (code, err) == (0, "")
        found[name] = json.loads(out)
    fails(run("train", experiment(), "--out", tmp_path, "--format", "gif"), "format")
    files = {"predicted_rounds.nc", "predicted_flow.nc", "predicted.png", "trained.nc", "trained.svg"}
    assert {p.name for p in (tmp_path / "results").iterdir()} == files  # no temporary file is left
    assert {Path(file).name for result in found.values() for file in result["files"]} == files
    predicted, trained = found["predict"], found["train"]["runs"]["trained"]
    assert (list(predicted["runs"]), list(predicted["errors"]["local_loss"])[1:]) == (
        ["rounds", "flow"],
        ["time discretisation", "solver"],
    )
    assert predicted["runs"]["rounds"]["stable"] is predicted["runs"]["rounds"]["converged"] is True
    assert found["train"]["experiment"]["constants"] == "DGD(step_size=0.2)"
    recorded = xr.load_dataset(tmp_path / "results" / "trained.nc", engine="h5netcdf")
    assert (trained["round"], trained["final"]["local_loss"]) == (20, recorded["local_loss"][-1].values.tolist())
    assert ">trained</text>" in (tmp_path / "results" / "trained.svg").read_text()  # and not its outlines


def test_a_delayed_run_is_predicted_in_rounds(run, experiment, tmp_path):
    code, out, err = run(
        "predict", experiment(("step_size = 0.2", "step_size = 2.0\ngradient_delay = 2")), "--out", tmp_path
    )
    assert code == 0, err
    assert "rounds, after round 20: the linear model is unstable" in out
    assert "the linear model's rounds are unstable: spectral radius" in err
    assert "guaranteed below step_size = " in err
    assert {p.name for p in tmp_path.iterdir()} == {"experiment.toml", "predicted_rounds.nc", "predicted.png"}


def test_stability_prints_and_writes_its_report(run, experiment, tmp_path):
    code, out, err = run("stability", experiment(), "--target", "0.05", "--out", tmp_path / "results")
    assert code == 0, err
    for words in ("Stability of DGD", "largest stable step size", "rounds to the mean global loss 0.05"):
        assert words in out
    written = json.loads((tmp_path / "results" / "stability.json").read_text())
    assert written["verdicts"]["rounds"]["answer"] == "stable"
    assert (tmp_path / "results" / "stability.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("stability", experiment(("step_size = 0.2", "step_size = 50.0")), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["stable"]["rounds"] is False
    assert found["verdicts"]["rounds"]["remedy"] == f"step_size < {found['step_size_limit']:.6g}"


def test_check_reports_on_files_and_graphs(run, tmp_path):
    np.savetxt(tmp_path / "W.csv", np.full((3, 3), 1 / 3), delimiter=",")
    for arguments in (["--graph", "complete:3"], [tmp_path / "W.csv"]):
        code, out, _ = run("check", *arguments)
        assert code == 0
        assert "3 × 3" in out
        assert "works" in out


def test_check_weighs_directed_graphs_for_push_sum(run):
    code, out, _ = run("check", "--graph", "directed_random:6,0.5,seed=1", "--json")
    assert code == 0
    assert [v["answer"] for v in json.loads(out)["verdicts"].values()] == [*["does not work"] * 3, "works"]
    fails(run("check", "--graph", "directed_ring:6", "--weights", "max_degree"), "is directed", "by name 'push'")


def test_check_says_it_in_json_and_in_a_picture(run, tmp_path):
    code, out, _ = run("check", "--graph", "cycle:6", "--json", "--plot", tmp_path / "W.png")
    assert code == 0
    report = json.loads(out)
    assert (report["size"], report["verdicts"]["DGD"]["answer"]) == (6, "works")
    assert report["second_modulus"] == pytest.approx(2 / 3)
    assert (tmp_path / "W.png").read_bytes().startswith(b"\x89PNG")
    fails(run("check", "--graph", "cycle:6", "--plot", tmp_path / "W.nothing"), "nothing")


def test_check_takes_edge_lists_sparse_files_and_several(run, tmp_path):
    (tmp_path / "W.edges").write_text("0,1\n1,2\n2,0\n")
    code, out, _ = run("check", tmp_path / "W.edges")
    assert code == 0
    assert "the graph has no weights: metropolis(graph)" in out
    (tmp_path / "P.txt").write_text("0 0 0.5\n0 1 0.5\n1 0 1\n")
    code, out, _ = run("check", tmp_path / "P.txt", "--json")
    assert [v["answer"] for v in json.loads(out)["verdicts"].values()] == [*["does not work"] * 3, "works"]
    scipy.sparse.save_npz(tmp_path / "W.npz", scipy.sparse.csr_array(np.full((2, 2), 0.5)))
    assert "2 × 2" in run("check", tmp_path / "W.npz")[1]
    code, out, _ = run("check", tmp_path / "W.npz", tmp_path / "W.npz", tmp_path / "W.npz")
    assert "Periodic mixing, 3 rounds of 2 × 2" in out


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("W.csv", "", ["is empty"]),
        ("W.csv", "a,b\n1,0\n0,1\n", ["row 1", "header row"]),
        ("W.csv", "1,0\n1\n", ["row 2 has 1 numbers"]),
        ("W.edges", "0,1\n1,0\n", ["row 2 repeats the edge", "delete one"]),
        ("W.edges", "0,1\n1,1\n", ["row 2 is a self-loop"]),
        ("W.mat", "", ["from .csv, .npy, .npz or .edges"]),
    ],
)
def test_check_names_what_is_wrong_with_a_file(run, tmp_path, name, text, fragments):
    (tmp_path / name).write_text(text)
    fails(run("check", tmp_path / name), *fragments)


def test_check_needs_one_source(run, tmp_path):
    fails(run("check"), "either files or --graph")
    fails(run("check", tmp_path / "W.csv", "--graph", "cycle:3"), "either files or --graph")
    fails(run("check", tmp_path / "W.csv", "--weights", "metropolis"), "--weights goes with --graph")
    fails(run("check", tmp_path / "none.edges"), "there is no such file")


def test_weights_from_a_file_beside_the_experiment(run, experiment, tmp_path):
    np.save(tmp_path / "W.npy", np.full((4, 4), 0.25))
    assert run("predict", experiment(('graph = "cycle"', 'file = "W.npy"')), "--out", tmp_path)[0] == 0


# One test for each mistake that a user is likely to make.


def test_mixing_that_is_not_square(run, tmp_path):
    (tmp_path / "W.csv").write_text("0.5,0.5,0\n0,0.5,0.5\n")
    fails(run("check", tmp_path / "W.csv"), "square")


@pytest.mark.parametrize(
    ("W", "fragments"),
    [
        (np.array([[0.5, 0.4], [0.5, 0.5]]), ["row 0", "sums to 0.9", "sum"]),
        (np.full((3, 3), 1 / 3), ["3 × 3", "2 agents"]),
        (np.eye(2), ["connect"]),
    ],
    ids=["row sums", "size", "connection"],
)
def test_mixing_that_does_not_fit(run, experiment, tmp_path, W, fragments):
    np.save(tmp_path / "W.npy", W)
    path = experiment(('graph = "cycle"', 'file = "W.npy"'), ("agents = 4", "agents = 2"))
    fails(run("predict", path, "--out", tmp_path), *fragments)


def test_fewer_samples_than_agents(run, experiment, tmp_path):
    path = experiment(("samples = 40\n", "samples = 3\n"))
    fails(run("predict", path, "--out", tmp_path), "3 samples", "4 agents")


def test_unknown_graph(run, experiment, tmp_path):
    fails(run("check", "--graph", "cycel:5"), "unknown graph 'cycel'", "did you mean 'cycle'")
    path = experiment(('"cycle"', '"ring"'))
    fails(run("predict", path, "--out", tmp_path), "unknown graph 'ring'", "known:")


def test_nan_in_the_data(run, experiment, tmp_path):
    inputs = np.ones((40, 3))
    inputs[17, 1] = np.nan
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(40) % 2)
    path = experiment(('name = "digits"\nsamples = 40\ntest_samples = 10', 'name = "npz"\nfile = "data.npz"'))
    fails(run("predict", path, "--out", tmp_path), "NaN", "17")


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("step_size", "stepsize", ["unknown key in [algorithm] 'stepsize'", "did you mean 'step_size'"]),
        ("rounds = 20", "round = 20", ["unknown key 'round'", "did you mean 'rounds'"]),
        ("samples = 40\n", "sample = 40\n", ["[data]", "sample", "did you mean 'samples'"]),
        ("[split]\nagents", "[split]\nagent", ["unknown key in [split] 'agent'"]),
        ('graph = "cycle"', 'grpah = "cycle"', ["unknown key in [mixing] 'grpah'"]),
        ("step_size = 0.2", "", ["[algorithm] needs step_size"]),
        ("rounds = 20", "", ["rounds is missing"]),
        ("[mixing]\n", "[[mixing]]\n", ["mixing must be a table"]),
        ("rounds = 20", "rounds = ", ["is not TOML"]),
        ("rounds = 20", "rounds = 2.5", ["rounds must be a whole number"]),
        ("step_size = 0.2", "step_size = -1", ["step_size must be a finite positive number"]),
        ('name = "affine"', 'name = "affine"\nweight_std = -1.0', ["weight_std must be a finite number"]),
        ('name = "affine"', 'name = "affine"\noutputs = -1', ["outputs must be a whole number of at least 1"]),
        ("rounds = 20", "rounds = 100000000000000000000", ["rounds must be a whole number"]),
        ("record = 5", "record = [[1, 2], [3]]", ["record must be a number of rounds or a list"]),
        ('graph = "cycle"', "file = 3", ["file must be a path in quotes"]),
        ('name = "DGD"', 'name = "dgd"', ["unknown algorithm 'dgd'", "did you mean"]),
    ],
)
def test_misspelt_toml(run, experiment, tmp_path, old, new, fragments):
    fails(run("predict", experiment((old, new)), "--out", tmp_path), "experiment.toml", *fragments)


@pytest.mark.parametrize("typed", ["2.9", "2_0", "\u0663", "two"])
def test_counts_that_are_typed_are_whole_numbers(run, experiment, tmp_path, typed):
    result = run("sweep", experiment(), "--set", "rounds=2,3", "--workers", typed, "--out", tmp_path)
    fails(result, "--workers", "is no whole number")


@pytest.mark.parametrize("mixing", ["matrix", "schedule"])
def test_an_unstable_run_blames_a_single_matrix_only(mixing, capsys):
    W = np.array([[2.0, -1.0], [-1.0, 2.0]])
    facts = {
        "closed_form": True,
        "converged": True,
        "error_estimate": 0.0,
        "sufficient_step_size": 0.5,
        "spectral_radius": 3.0,
    }
    predicted = SimpleNamespace(dataset=SimpleNamespace(attrs=facts), stable=False)
    run = SimpleNamespace(topology=schedules.periodic([W, np.eye(2)] if mixing == "schedule" else [W]))
    output.flag(run, {"rounds": predicted})
    said = capsys.readouterr().err
    assert ("the mixing matrix alone has spectral radius 3" in said) == (mixing != "schedule")
    assert ("guaranteed below step_size = 0.5;" in said) == (mixing == "schedule")


def test_pickle_in_npy(run, tmp_path):
    np.save(tmp_path / "W.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    fails(run("check", tmp_path / "W.npy"), "pickle", "np.save")


def test_unwritable_folder(run, experiment, tmp_path):
    (tmp_path / "file").write_text("")
    fails(run("predict", experiment(), "--out", tmp_path / "file" / "folder"), "cannot write to", "--out")


@pytest.mark.parametrize("step_size", ["1e9", pytest.param("1e3", marks=pytest.mark.slow)])
def test_step_size_that_diverges(run, experiment, tmp_path, step_size):
    path = experiment(("step_size = 0.2", f"step_size = {step_size}"), ("rounds = 20", "rounds = 200"))
    fails(run("train", path, "--out", tmp_path), "training diverges", "agent", "guaranteed below step_size = 0.3755;")
    assert not np.isfinite(xr.load_dataset(tmp_path / "trained.nc", engine="h5netcdf")["local_loss"][-1]).all()
    # Predicted it is flagged and plotted, not an error; and so is the comparison.
    for command in ("predict", "compare"):
        code, out, err = run(command, path, "--out", tmp_path, "--json", "--quiet")
        assert code == 0
        assert json.loads(out)["runs"]["rounds"]["stable"] is False
        assert "the linear model's rounds are unstable: spectral radius" in err  # also with --quiet
        assert "guaranteed below step_size = 0.3755; exact limit: ntkp2p stability" in err
    assert (tmp_path / "predicted.png").exists()
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["check"], ["--graph"]),
        (["check", "missing.csv"], ["missing.csv", "no such file"]),
        (["predict", "missing.toml"], ["missing.toml does not exist"]),
        (["check", "W.csv", "--weights", "metropolis"], ["--weights goes with --graph"]),
        (["predcit"], ["predcit"]),
        (["predict"], ["EXPERIMENT"]),
        (["figures", "--only", "figure3"], ["unknown figure 'figure3'", "did you mean"]),
        (["check", "--graph", "cycle:5", "--weights", "metropolitan"], ["did you mean 'metropolis'"]),
    ],
)
def test_commands_that_cannot_be_run(run, arguments, fragments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(run(*arguments), *fragments)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_in_any_encoding(encoding):
    def printed(*arguments):
        program = [sys.executable, "-m", "ntkp2p", "check", "--graph", "cycle:4", *arguments]
        done = subprocess.run(
            program, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode(encoding)

    assert "Mixing matrix, 4" in printed()
    assert json.loads(printed("--json"))["verdicts"]


def test_the_installed_program():
    def program(*arguments):
        return subprocess.run([sys.executable, "-m", "ntkp2p", *arguments], capture_output=True, text=True)

    version = program("--version")
    assert version.returncode == 0
    assert version.stdout.strip()
    wrong = program("check", "--graph", "cycle:2")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    # Somebody who has read enough: head, for one.
    shut, stdout = os.pipe()
    os.close(shut)
    unread = subprocess.run(
        [sys.executable, "-m", "ntkp2p", "check", "--graph", "cycle:5"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(stdout)
    assert (unread.returncode, unread.stderr) == (141, b"")
