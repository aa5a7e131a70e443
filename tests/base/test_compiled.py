"""Compiled programs that are kept, and programs that are not compiled again."""

import dataclasses
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ntkp2p import DGD, Experiment, graphs, metropolis, models, train

PROGRAM = """
import sys, numpy as np, jax, ntkp2p as p2p
print(p2p.keep_compiled(*sys.argv[1:]))
misses = []
jax.monitoring.register_event_listener(lambda name, **_: misses.append(name))
print(float(p2p.models.networks.outputs_of(lambda p, x: x @ p, np.ones((3, 1)), np.ones((2, 3), np.float32))[0, 0]))
print(misses.count("/jax/compilation_cache/cache_misses"))
"""


def ran(*arguments, **environment):
    """What a process prints: the folder, a number, and how many programs it compiled."""
    known = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR",)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=known | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    folder, number, compiled = ran(tmp_path)
    assert folder.startswith(str(tmp_path))
    assert number == "3.0"
    assert int(compiled) > 0
    assert ran(tmp_path) == [folder, "3.0", "0"]
    # Entries that cannot be read are compiled again.
    for entry in os.listdir(folder):
        if entry.endswith("-cache"):
            with open(os.path.join(folder, entry), "r+b") as file:
                file.truncate(10)
    assert ran(tmp_path, PYTHONWARNINGS="ignore")[:2] == [folder, "3.0"]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["off", "0"])
def test_an_environment_variable_switches_it_off(value):
    assert ran(NTKP2P_COMPILED=value)[0] == "None"


@pytest.mark.slow
def test_the_environment_names_another_folder(tmp_path):
    assert ran(NTKP2P_COMPILED=str(tmp_path))[0].startswith(str(tmp_path))
    assert ran(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[0] == str(tmp_path)


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_switches_it_off(tmp_path):
    (tmp_path / "file").touch()
    assert ran(tmp_path / "file" / "folder")[0] == "None"


def test_a_second_training_of_the_same_shapes_traces_nothing(digits, caplog):
    def experiment(step_size, width, seed):
        return Experiment(
            model=models.mlp(width=width, depth=1),
            data=digits(agents=3, samples=12),
            mixing=metropolis(graphs.path(3)),
            algorithm=DGD(step_size=step_size),
            rounds=4,
            record=3,
            seed=seed,
        )

    def logged(word):
        return [record.message for record in caplog.records if word in record.message]

    first = train(experiment(0.1, 4, 0))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        again = train(experiment(0.1, 4, 0))
        train(dataclasses.replace(experiment(0.1, 4, 1), mixing=metropolis(graphs.complete(3)), rounds=6))
        assert not logged("Finished tracing")
        train(experiment(0.2, 4, 0))  # the number of its messages is found by tracing
        assert not logged("compilation")
        train(experiment(0.1, 5, 0))
        assert logged("Finished tracing")
        assert logged("compilation")
    np.testing.assert_array_equal(first.local_loss, again.local_loss)
