"""What is computed in a process of its own, with a number of virtual devices: results go to an NPZ file.

Run as `python distributed_checks.py CHECK OUT.npz ...`; the function here that is named CHECK takes what follows and
returns arrays by name.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh

import ntkp2p as p2p
from ntkp2p import cli

AGENTS = 10


class HeavyBall(p2p.Algorithm):
    """A state of several leaves, one of which has no agents: the count of rounds."""

    def init(self, x, /):
        return {"x": x, "v": 0 * x, "k": 0}

    def model(self, state, /):
        return state["x"]

    def round(self, state, world, /):
        v = 0.8 * state["v"] - self.step_size / (1 + 0.01 * state["k"]) * world.grad(state["x"])
        return {"x": world.mix(state["x"]) + v, "v": v, "k": state["k"] + 1}


def experiment(algorithm: type[p2p.Algorithm], **options) -> p2p.Experiment:
    """A small run; unequal numbers of samples, and agents that do not fill the devices."""
    return p2p.Experiment(
        model=p2p.models.mlp(width=16, depth=1),
        data=p2p.data.load("digits", samples=43, test_samples=10).split(agents=AGENTS, by="label"),
        mixing=p2p.metropolis(p2p.graphs.cycle(AGENTS)),
        algorithm=algorithm(step_size=0.05),
        rounds=30,
        record=4,
        **options,
    )


def training() -> dict[str, np.ndarray]:
    """Every recorded variable and the last parameters of each run, on one device and on all of them."""
    runs = {algorithm.__name__: experiment(algorithm) for algorithm in (p2p.DGD, p2p.CTA, p2p.ATC, HeavyBall)}
    delayed = p2p.Delayed(runs["ATC"].algorithm, gradients=2, messages=1)
    mixing = p2p.schedules.one_peer_exponential(AGENTS)
    runs["delayed"] = dataclasses.replace(runs["ATC"], algorithm=delayed, mixing=mixing)
    results = {}
    for label, run in runs.items():
        for count in (1, jax.device_count()):
            found = {}

            def observe(k, x, found=found):
                found.update(parameters=x, rows=rows_by_device(parameters=x.shape[1]))

            mesh = Mesh(np.asarray(jax.devices()[:count]), (p2p.devices.AXIS,))
            found |= p2p.train(run, mesh=mesh, observe=observe).dataset.data_vars
            results |= {f"{label}/{count}/{name}": np.asarray(v) for name, v in found.items()}
    return results


def kernel(mesh: Mesh | None = None, *, seed: int = 0, **options) -> dict[str, np.ndarray]:
    """The kernel of a small network: whole, with other inputs, its diagonal, some columns; and how it is divided."""
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(37, 6)), rng.normal(size=(11, 6))
    model = p2p.models.prepare(p2p.models.mlp(width=9, depth=2), x, 2, seed=seed)
    found = p2p.kernels.TangentKernel(model.apply, model.params, x, mesh=mesh, **options)
    results = {"matrix": found.matrix()}
    blocks = [len(leaf.addressable_shards) for leaf in jax.tree.leaves(list(found._held.values()))]
    layout = {"blocks": np.array(blocks), "groups": found._rows.groups, "capacity": found._room}
    layout["least"] = 8 * found.rows**2 + found._least_work() + 8 * found._local
    results |= {"against": found.against(other), "diagonal": found.diagonal()}
    return results | layout | {"columns": found.columns(np.array([3, 30]))}


def kernels() -> dict[str, np.ndarray]:
    """The kernel on one, three and all devices: in one group, and in several, with memory for all or for one."""
    results = {}
    for count in (1, 3, jax.device_count()):
        mesh = Mesh(np.asarray(jax.devices()[:count]), (p2p.devices.AXIS,))
        cases = {"whole": kernel(mesh)}
        with mock.patch.dict(p2p.kernels.ntk.BLOCK, cpu=2):
            cases["small"] = kernel(mesh)
            cases["tight"] = kernel(mesh, memory=int(cases["small"]["least"]))
        results |= {f"{count}/{case}/{name}": value for case, found in cases.items() for name, value in found.items()}
    return results


def rows_by_device(parameters: int) -> np.ndarray:
    """How many rows each device holds of the divided arrays that have so many columns: the agents' models."""
    divided = [a for a in jax.live_arrays() if a.shape[1:] == (parameters,) and not a.sharding.is_fully_replicated]
    return np.array([[len(shard.data) for shard in array.addressable_shards] for array in divided])


def shell(*arguments: str) -> dict[str, np.ndarray]:
    """The program with these arguments, what it computed with, and what it says to processes that do not agree."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        code = end.code or 0
    try:
        p2p.train(experiment(p2p.DGD, seed=jax.process_index()))
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    facts = {"code": code, "devices": jax.device_count(), "processes": jax.process_count(), "refusal": refusal}
    return facts | resumed()


def resumed() -> dict[str, np.ndarray]:
    """The kernel with a cache of this process's own, of which one process has lost a block, computed once more."""
    with tempfile.TemporaryDirectory() as folder:
        first = kernel(cache=folder)
        if jax.process_index() == 1:
            next(Path(folder).glob("*/*")).unlink()
        again = kernel(cache=folder)
    try:
        kernel(seed=jax.process_index())
    except ValueError as error:
        first |= {"disagreement": str(error)}
    return first | {f"again/{name}": value for name, value in again.items()}


if __name__ == "__main__":
    check, out, *arguments = sys.argv[1:]
    np.savez(out, **globals()[check](*arguments))
