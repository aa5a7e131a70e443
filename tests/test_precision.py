"""Numbers are right for a user who never touched JAX's flags, and whose process has x64 switched off or on."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray as xr

import ntkp2p as p2p

PROGRAM = """
import json
import numpy as np
import ntkp2p as p2p

experiment = p2p.Experiment(
    model=p2p.models.{model},
    data=p2p.data.load("digits", samples=24, test_samples=8).split(agents=3, by="label"),
    mixing=p2p.metropolis(p2p.graphs.cycle(3)),
    algorithm=p2p.ATC(step_size=0.2),
    rounds=60,
    record=4,
)
predicted, trained = p2p.predict(experiment), p2p.train(experiment)
import jax
print(json.dumps([predicted.local_loss.values.tolist(), trained.local_loss.values.tolist(), jax.config.jax_enable_x64]))
"""


def results(model, flag):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    if flag is not None:
        environment["JAX_ENABLE_X64"] = flag
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(model=model)], env=environment, capture_output=True, text=True, check=True
    )
    predicted, trained, after = json.loads(done.stdout)
    assert done.stderr == ""
    assert after is (flag == "1")  # the user's flag is as it was
    return np.array(predicted), np.array(trained)


@pytest.fixture(scope="module")
def untouched():
    return results("affine()", None)


def test_a_user_who_never_touched_the_flags(untouched):
    predicted, trained = untouched
    np.testing.assert_allclose(predicted, trained, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["0", "1"])
def test_a_user_who_did(flag, untouched):
    for found, expected in zip(results("affine()", flag), untouched, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_float32_training_is_float32_and_close(digits):
    import dataclasses

    from ntkp2p import DGD, Experiment, graphs, metropolis, models, train

    double = Experiment(
        model=models.mlp(width=64, depth=1),
        data=digits(),
        mixing=metropolis(graphs.cycle(4)),
        algorithm=DGD(step_size=0.1),
        rounds=30,
        record=4,
    )
    seen = []
    single = train(dataclasses.replace(double, precision="float32"), observe=lambda k, x: seen.append(x.dtype))
    assert set(map(str, seen)) == {"float32"}
    expected = train(double).local_loss
    error = np.abs(single.local_loss - expected).max() / expected.max()
    assert 1e-12 < error < 1e-5


@pytest.mark.parametrize(
    "flag",
    [
        jax.threefry_partitionable(False),
        jax.default_prng_impl("rbg"),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
        jax.disable_jit(True),
    ],
    ids=["partitionable", "rbg", "rank promotion", "dtype promotion", "debug nans", "disable jit"],
)
def test_no_flag_changes_a_run(flag, digits):
    """Random entries and mini-batches are drawn in training; a loss of zero has a gradient that is not a number."""
    run = p2p.Experiment(
        model=p2p.models.mlp(width=4, depth=1),
        data=digits(agents=3, samples=12, test_samples=4),
        mixing=p2p.push_weights(p2p.graphs.directed_ring(3)),
        algorithm=p2p.SparsePush(0.1, p2p.RandomK(0.2)),
        rounds=4,
        batch_size=2,
    )
    plain = p2p.predict(run), p2p.train(run)
    with flag:
        flagged = p2p.predict(run), p2p.train(run)
    for one, other in zip(plain, flagged, strict=True):
        xr.testing.assert_identical(one.dataset, other.dataset)


def test_a_platform_without_a_device_is_one_line(tmp_path):
    program = "import ntkp2p as p2p; p2p.models.prepare(p2p.models.affine(), __import__('numpy').ones((1, 2)), 1)"
    program += "; p2p.kernels.empirical_ntk(lambda p, x: x @ p, __import__('numpy').ones((2, 1)), [[1.0, 2.0]])"
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ntkp2p.InputError: JAX finds no device for JAX_PLATFORMS=cuda: unset it, or set JAX_PLATFORMS=cpu"
