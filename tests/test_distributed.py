"""The same numbers on one device, on eight, and on those of two processes."""

import os
import runpy
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ntkp2p import cli, devices

CHECKS = Path(__file__).with_name("distributed_checks.py")

TOML = """
rounds = 20
record = 5

[model]
name = "mlp"
width = 16
depth = 1

[data]
name = "digits"
samples = 30
test_samples = 10

[split]
agents = 7
by = "label"

[mixing]
graph = "cycle"

[algorithm]
name = "CTA"
step_size = 0.05
"""


@pytest.fixture
def start(tmp_path):
    """`start(check, devices, *arguments)` → a function that waits for the check and loads its results."""
    running = []

    def begin(check, devices, *arguments):
        out = tmp_path / f"{len(running)}.npz"
        process = subprocess.Popen(
            [sys.executable, CHECKS, check, out, *map(str, arguments)],
            # Most of the time would go into making programs fast that run once.
            env=os.environ
            | {
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)

        def results():
            printed, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            with np.load(out) as file:
                return dict(file) | {"printed": printed}

        return results

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def free_port():
    with socket.create_server(("localhost", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
def test_training_on_eight_devices(start):
    results = start("training", 8)()
    for run in ("DGD", "CTA", "ATC", "HeavyBall", "delayed"):
        one, eight = (
            {name.removeprefix(prefix): v for name, v in results.items() if name.startswith(prefix)}
            for prefix in (f"{run}/1/", f"{run}/8/")
        )
        # Ten agents and six idle ones; a state of two leaves has both divided, and no device has more than its own.
        assert one.pop("rows").size == 0
        rows = eight.pop("rows")
        assert rows.shape == (2 if run == "HeavyBall" else 1, 8)
        assert (rows == 2).all()
        assert one["parameters"].shape == eight["parameters"].shape == (10, 16 * 64 + 16 + 16 + 1)
        assert one.keys() == eight.keys() >= {"local_loss", "consensus_distance", "test_accuracy"}
        for name, expected in one.items():
            np.testing.assert_allclose(eight[name], expected, rtol=1e-10, atol=1e-13, err_msg=f"{run} {name}")


@pytest.mark.slow
def test_kernels_on_eight_devices(start):
    results = start("kernels", 8)()
    for count in (1, 3, 8):
        assert results[f"{count}/small/groups"] == -(-37 // (2 * count)) <= results[f"{count}/small/capacity"]
        assert results[f"{count}/tight/groups"] > results[f"{count}/tight/capacity"] == 1
        for case in ("whole", "small", "tight"):
            assert (results[f"{count}/{case}/blocks"] == count).all()
            for name in ("matrix", "against", "diagonal", "columns"):
                found, expected = results[f"{count}/{case}/{name}"], results[f"1/whole/{name}"]
                message = f"{name}, {count} devices, {case}"
                np.testing.assert_allclose(
                    found, expected, rtol=0, atol=1e-10 * np.abs(expected).max(), err_msg=message
                )
    np.testing.assert_allclose(results["8/tight/columns"], results["1/whole/matrix"][:, [6, 7, 60, 61]], atol=1e-12)


@pytest.mark.slow
def test_two_processes(start, free_port, tmp_path):
    (tmp_path / "experiment.toml").write_text(TOML)
    command = "compare", tmp_path / "experiment.toml", "--out"
    together = "--coordinator", f"localhost:{free_port}", "--processes", "2", "--process"
    results = [start("shell", 2, *command, tmp_path / str(process), *together, process) for process in (0, 1)]
    with pytest.raises(SystemExit):
        cli.main([*map(str, command), str(tmp_path / "alone")])
    first, second = (wait() for wait in results)
    expected = runpy.run_path(str(CHECKS))["kernel"]()
    for result in (first, second):
        assert (result["blocks"] == 2).all()  # of four, two are here
        for name in ("matrix", "against", "diagonal", "columns"):
            for found in (result[name], result[f"again/{name}"]):
                np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-10 * expected["matrix"].max())
        assert (result["code"], result["processes"], result["devices"]) == (0, 2, 4)
        assert "different experiments" in str(result["refusal"])
        assert "different experiments" in str(result["disagreement"])
    # Only the first writes, draws and prints.
    assert {p.name for p in (tmp_path / "0").iterdir()} == {"comparison.nc", "comparison.png"}
    assert not (tmp_path / "1").exists()
    assert "linearisation" in first["printed"]
    assert "linearisation" not in second["printed"]
    found, expected = (xr.load_dataset(tmp_path / f / "comparison.nc", engine="h5netcdf") for f in ("0", "alone"))
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-13, err_msg=str(name))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--processes", "2"], "--coordinator, --processes and --process go together"),
        (["--coordinator", "nowhere", "--processes", "2", "--process", "1"], "coordinator must be HOST:PORT"),
        (["--coordinator", "localhost:99999", "--processes", "2", "--process", "1"], "coordinator must be HOST:PORT"),
        (["--coordinator", "localhost:9", "--processes", "2", "--process", "2"], "process must be from 0 to 1"),
        (["--coordinator", "localhost:9", "--processes", "0", "--process", "0"], "processes must be at least 1"),
        (["--coordinator", "localhost:{}", "--processes", "2", "--process", "1"], "process 1 of 2 could not join at"),
        (["--coordinator", "localhost:{}", "--processes", "2", "--process", "0"], "process 1 of 2 did not come"),
    ],
)
def test_processes_that_cannot_meet(arguments, fragment, free_port, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiment.toml").write_text(TOML)
    monkeypatch.setattr(devices, "join", partial(devices.join, timeout=0.3))
    with pytest.raises(SystemExit) as exit:
        cli.main(
            [
                "train",
                str(tmp_path / "experiment.toml"),
                *["--out", str(tmp_path)],
                *(a.format(free_port) for a in arguments),
            ]
        )
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ntkp2p: ")
    assert error.count("\n") == 1
    assert fragment in error


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as listener, pytest.raises(OSError, match="cannot listen on port"):
        devices.join(f"localhost:{listener.getsockname()[1]}", 2, 0, timeout=1)


def test_a_mesh_with_other_axes(digits):
    import jax
    from jax.sharding import Mesh

    from ntkp2p import DGD, Experiment, graphs, metropolis, models, train

    experiment = Experiment(
        model=models.affine(),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=2,
    )
    with pytest.raises(ValueError, match="one axis 'devices'"):
        train(experiment, mesh=Mesh(np.asarray(jax.devices()), ("x",)))
