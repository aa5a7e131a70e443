"""Time and memory of a round of Sparse-Push with ResNet-20 and VGG-11, at full size: one process for each.

python benchmarks/networks.py [resnet20 | vgg11]
"""

import resource
import subprocess
import sys
import time

NETWORKS = ("resnet20", "vgg11")
AGENTS, BATCH, ROUNDS = 8, 16, 6


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    print(f"{AGENTS} agents, {BATCH} images of 28 × 28 each, float32, momentum, 1 % of the entries sent")
    for name in NETWORKS:
        subprocess.run([sys.executable, __file__, name], check=True)


def measure(name: str) -> None:
    import jax

    import ntkp2p as p2p

    data = p2p.data.load("mnist", classes=tuple(range(10)), samples=AGENTS * BATCH, test_samples=0)
    run = p2p.Experiment(
        model=getattr(p2p.models, name)(),
        data=data.split(agents=AGENTS, by="iid"),
        mixing=p2p.schedules.one_peer_exponential(AGENTS),
        algorithm=p2p.SparsePush(0.05, p2p.TopK(0.01), momentum=0.9),
        rounds=2 * ROUNDS,
        record=[ROUNDS, ROUNDS + 1],
        loss="cross_entropy",
        batch_size=BATCH,
        precision="float32",
    )
    at = {}
    p2p.train(run, progress=lambda done, total: at.update({done: time.perf_counter()}))
    # From one record to the next there is one evaluation each: of more rounds, and of a single one.
    seconds = ((at[2 * ROUNDS] - at[ROUNDS + 1]) - (at[ROUNDS + 1] - at[ROUNDS])) / (ROUNDS - 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sent = p2p.communication(run)
    print(
        f"{name}: {run.initialise().size:,} parameters, {seconds:.2f} s a round, {peak:.2f} GiB at most, "
        f"{sent.bytes.mean():,.0f} bytes of an agent in a round ({sent.reduction:.0f} times fewer than dense), "
        f"on {jax.devices()[0].device_kind}",
        flush=True,
    )


if __name__ == "__main__":
    main()
