"""One network at one N and dtype: our kernel, the rate of matrix products, and the rivals, in a process of their own.

Prints a line of JSON when a route begins and one when it ends, so that the parent process knows what it died
of. Not for use by hand: see ntk.py.
"""

import json
import math
import sys
import time
from collections.abc import Callable

import _counts as counts
import jax
import jax.numpy as jnp
import numpy as np
from _memory import device_bytes, peak_resident, resident_from_now
from _neural_tangents import neural_tangents
from _process import best, machine, tell
from jax import lax

from ntkp2p import models
from ntkp2p.kernels import TangentKernel

IMAGE = (28, 28, 1)
SCALES = {"weight_std": math.sqrt(2), "bias_std": 0.1}
# In the Frobenius norm: float32 puts a ReLU or two on the other side of zero, which moves a sample's row by 1e-3.
TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
IMPLEMENTATIONS = {"nt jacobian contraction": 1, "nt NTK-vector products": 2, "nt structured derivatives": 3}

Pair = Callable[[jax.Array, jax.Array | None], jax.Array]


class Case:
    """The arrays and the counts that all routes share."""

    def __init__(self, network: str, samples: int, dtype: str):
        self.name, self.samples, self.dtype = network, samples, dtype
        self.bytes = np.dtype(dtype).itemsize
        if network == "mlp":
            model = models.mlp(width=1024, depth=2, **SCALES)
            self.layers = counts.mlp_layers(math.prod(IMAGE), 1024, 2)
        else:
            model = models.cnn(channels=32, depth=3, **SCALES)
            self.layers = counts.cnn_layers(*IMAGE, 32, 3)
        images = np.random.default_rng(0).standard_normal((samples, *IMAGE)).astype(dtype)
        prepared = models.prepare(model, images, 1)
        assert prepared.size == counts.parameters(self.layers)
        self.params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), dtype), prepared.params)
        self.images, self.x = images, jnp.asarray(images)
        self.forms = {"ours": prepared.apply}
        if network == "cnn":
            self.forms["lax.conv"] = convolutional
            outputs = [np.asarray(apply(self.params, self.x[:4])) for apply in self.forms.values()]
            np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def convolutional(params, x):
    """The same CNN with XLA's convolutions in place of patches and matrix products."""
    *convolutions, readout = params
    for layer in convolutions:
        n, m = layer["weight"].shape
        filters = (SCALES["weight_std"] / math.sqrt(n)) * layer["weight"].reshape(3, 3, n // 9, m)
        x = lax.conv_general_dilated(x, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + SCALES["bias_std"] * layer["bias"])
    x = x.reshape(len(x), -1)
    return (SCALES["weight_std"] / math.sqrt(x.shape[1])) * (x @ readout["weight"]) + SCALES["bias_std"] * readout[
        "bias"
    ]


def tangent_kernel(case: Case) -> TangentKernel:
    return TangentKernel(case.forms["ours"], case.params, case.images, precision=case.dtype)


def measure_ours(case: Case, seconds: float, repetitions: int) -> tuple[np.ndarray, dict]:
    start = time.perf_counter()
    kernel = tangent_kernel(case)
    compiled = time.perf_counter() - start
    # From here on the memory is the kernel's: the compiler has given back what it took.
    before = resident_from_now()
    result = kernel.matrix()
    first = time.perf_counter() - start
    grown = device_bytes("peak_bytes_in_use") if before is None else peak_resident() - before
    row = {
        "seconds": best(lambda: tangent_kernel(case).matrix(), first - compiled, seconds, repetitions),
        "first_call_seconds": first,
        "peak_bytes": grown,
        "stated_peak_bytes": kernel.peak if before is not None else kernel.working,
        "note": "",
    }
    return result, row


def measure_limit(case: Case, repetitions: int) -> dict:
    """The layerwise formula's matrix products at the rate of a large square product."""
    size = 1024 if repetitions == 1 else 4096 if jax.default_backend() == "cpu" else 8192
    square = jax.random.normal(jax.random.key(0), (size, size), case.dtype)
    product = jax.jit(jnp.matmul)
    start = time.perf_counter()
    product(square, square).block_until_ready()
    first = time.perf_counter() - start
    rate = 2 * size**3 / best(lambda: product(square, square).block_until_ready(), first, 8, max(5, repetitions))
    flops = counts.layerwise_flops(case.layers, case.samples)
    total = sum(flops.values())
    parts = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in flops.items())
    note = f"{total / 1e9:.1f} GFLOP ({parts}) at {rate / 1e9:.0f} GFLOP/s"
    return {"seconds": total / rate, "flops": flops, "flops_per_second": rate, "note": note}


def measure_rival(case: Case, route: str, form: str, reference: np.ndarray, plan: dict) -> dict:
    """The whole kernel in blocks that fit; if that would take too long, from the time of one pair of blocks."""
    pair, per_sample, per_pair = rival(case, route, form)
    size = min(plan["block"], counts.block(case.samples, per_sample, per_pair, plan["memory"]))
    if 2 * size * per_sample > plan["memory"] and size == 1:
        return {"note": f"skipped: one sample alone takes {per_sample / 2**30:.1f} GiB"}
    count = -(-case.samples // size)
    note = f"{count} blocks of {size}" if count > 1 else ""

    corner, first, each = time_corner(case, pair, size, plan)
    estimate = each if count == 1 else each * count * (count + 1) / 2
    if count == 1:
        kernel, seconds = corner, each
    elif estimate > plan["limit"]:
        kernel, seconds = corner, estimate
        note = f"≈ {count * (count + 1) // 2} × one of the {note}"
    else:
        start = time.perf_counter()
        kernel = blocked(case, pair, size)
        first = time.perf_counter() - start
        seconds = best(lambda: blocked(case, pair, size), first, plan["seconds"], plan["repetitions"])
    rows, columns = kernel.shape
    # A corner of several blocks is the one beside the diagonal.
    beside = reference[:rows, -columns:] if kernel is corner and count > 1 else reference
    difference = float(np.linalg.norm(kernel - beside) / np.linalg.norm(beside))
    row = {"seconds": seconds, "difference": difference, "estimated": note.startswith("≈"), "note": note}
    if kernel.dtype != case.dtype or not difference < TOLERANCE[case.dtype]:
        row |= {"note": f"{note} NOT THE SAME KERNEL ({kernel.dtype})".strip(), "differs": True}
    return row


def time_corner(case: Case, pair: Pair, size: int, plan: dict) -> tuple[np.ndarray, float, float]:
    """The kernel between the first and the last block: itself, the seconds with compilation, and without."""
    whole = size >= case.samples
    arguments = (case.x, None) if whole else (case.x[:size], case.x[-size:])
    start = time.perf_counter()
    corner = np.asarray(pair(*arguments))
    first = time.perf_counter() - start
    repetitions = plan["repetitions"] if whole else 1
    return corner, first, best(lambda: np.asarray(pair(*arguments)), first, plan["seconds"], repetitions)


def blocked(case: Case, pair: Pair, size: int) -> np.ndarray:
    """The kernel from the blocks on and above its diagonal."""
    kernel = np.empty((case.samples, case.samples), case.dtype)
    starts = range(0, case.samples, size)
    for i in starts:
        for j in starts[i // size :]:
            rows, columns = slice(i, i + size), slice(j, j + size)
            kernel[rows, columns] = pair(case.x[rows], None if i == j else case.x[columns])
            kernel[columns, rows] = kernel[rows, columns].T
    return kernel


def rival(case: Case, route: str, form: str) -> tuple[Pair, int, int]:
    """A route's kernel between two blocks, and its bytes per sample and per pair of samples."""
    apply = case.forms[form]
    # Activations and their cotangents, and a gradient of every parameter for each sample with the memory to compute it.
    walk, gradient = 3 * counts.activations(case.layers), 2 * counts.parameters(case.layers)
    per_sample, per_pair = case.bytes * (walk + gradient), 2 * case.bytes
    if route == "J Jᵀ":
        return jacobian_product(apply, case.params), per_sample, per_pair
    implementation = IMPLEMENTATIONS[route]
    if implementation == 2:
        per_pair += 2 * case.bytes * counts.largest_activation(case.layers)
    if implementation == 3 and case.name == "mlp":
        per_sample = case.bytes * walk
    with neural_tangents() as library:
        kernel = jax.jit(library.empirical_ntk_fn(apply, trace_axes=(-1,), vmap_axes=0, implementation=implementation))
    return lent(kernel, case.params), per_sample, per_pair


def lent(kernel, params) -> Pair:
    def pair(one, two):
        # The library is traced at the first call of each shape, so it needs its loans then.
        with neural_tangents():
            return kernel(one, two, params)

    return pair


def jacobian_product(apply, params) -> Pair:
    gradients = jax.vmap(jax.grad(lambda p, x: apply(p, x[None])[0, 0]), in_axes=(None, 0))

    @jax.jit
    def product(params, one, two):
        left = jax.tree.leaves(gradients(params, one))
        right = left if two is None else jax.tree.leaves(gradients(params, two))
        return sum(a.reshape(len(a), -1) @ b.reshape(len(b), -1).T for a, b in zip(left, right, strict=True))

    return lambda one, two: product(params, one, two)


def attempt(case: Case, route: str, form: str, reference: np.ndarray, plan: dict) -> dict:
    try:
        return measure_rival(case, route, form, reference, plan)
    except Exception as error:  # a rival's failure is a result
        reason = " ".join(str(error).split())[:120]
        return {"note": f"did not run: {type(error).__name__}: {reason}"}


def main() -> None:
    plan = json.loads(sys.argv[1])
    jax.config.update("jax_enable_x64", True)
    # An accelerator would else multiply float32 in fewer bits, and not in every route.
    jax.config.update("jax_default_matmul_precision", "highest")
    tell(machine=machine("neural-tangents"))
    case = Case(plan["network"], plan["samples"], plan["dtype"])
    tell(begins=["ours", "ours"])
    repetitions = plan["repetitions"]
    reference, row = measure_ours(case, plan["seconds"], repetitions)
    seconds = row["seconds"]
    tell(ends=["ours", "ours"], row=row)
    for route, form in plan["routes"]:
        tell(begins=[route, form])
        limit = route == "matrix products"
        row = measure_limit(case, repetitions) if limit else attempt(case, route, form, reference, plan)
        tell(ends=[route, form], row=row)
        jax.clear_caches()
    # Once more at the end, so that a busy moment of the machine does not count against one side only.
    tell(begins=["ours", "again"])
    tell(
        ends=["ours", "again"],
        row={"seconds": best(lambda: tangent_kernel(case).matrix(), seconds, plan["seconds"], repetitions)},
    )


if __name__ == "__main__":
    main()
