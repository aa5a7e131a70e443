"""A million events of a thousand agents: time and memory to draw them and to count staleness; staleness beside theory.

python benchmarks/asynchrony.py
"""

import resource
import subprocess
import sys
import time

AGENTS, EVENTS = 1000, 1_000_000
OPTIONS = {
    "push": {},
    "push-pull": {"scheme": "push-pull"},
    "transmission 0.1": {"transmission": 0.1},
    "opportunistic": {"scheme": "opportunistic"},
    "bound 20": {"bound": 20},
    "cap of 2 in 1": {"cap": (2, 1.0)},
}


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    print(f"{AGENTS:,} agents, {EVENTS:,} events, Poisson clocks, μ = 1 and λ = 2")
    print(f"{'':<20}{'draw':>10}{'staleness':>12}{'and its distribution':>24}{'peak, draw':>14}{'in all':>10}")
    for name in OPTIONS:
        subprocess.run([sys.executable, __file__, name], check=True)
    compare()


def measure(name: str) -> None:
    """One plan, in a process of its own: seconds, and MiB beyond what the imports take."""
    from ntkp2p.asynchrony import AsynchronousGossip, Exponential, staleness

    before = peak()
    gossip = AsynchronousGossip(agents=AGENTS, update=Exponential(1.0), gossip=Exponential(2.0), **OPTIONS[name])
    seconds, events = timed(lambda: gossip.simulate(events=EVENTS))
    drawn = peak() - before
    times = [timed(lambda d=d: staleness(events, distribution=d))[0] for d in (False, True)]
    columns = f"{seconds:>8.2f} s{times[0]:>10.2f} s{times[1]:>22.2f} s{drawn:>10.0f} MiB{peak() - before:>6.0f} MiB"
    print(f"{name:<20}{columns}", flush=True)


def compare() -> None:
    from ntkp2p.asynchrony import AsynchronousGossip, Exponential, expected_staleness, staleness

    print("\nMean staleness over 2,000,000 events, from the time 30 on, beside (μ/λ) H of n − 1")
    print(f"{'agents':<20}{'clocks':<28}{'drawn':>8}{'formula':>10}{'error':>9}")
    poisson, shifted = (1.0, 2.0, 0.0, 0.0), (2.0, 4.0, 0.5, 0.25)
    cases = [(n, "Poisson", poisson) for n in (5, 10, 20, 50, 100, 200)]
    cases += [(n, "both half shift", shifted) for n in (5, 20, 100)]
    cases += [(20, "updates half shift", (2.0, 2.0, 0.5, 0.0)), (20, "gossip three quarters", (1.0, 8.0, 0.0, 0.375))]
    for agents, name, (update, gossip, update_shift, gossip_shift) in cases:
        plan = AsynchronousGossip(
            agents=agents, update=Exponential(update, update_shift), gossip=Exponential(gossip, gossip_shift)
        )
        found = staleness(plan.simulate(events=2 * EVENTS), since=30.0, distribution=False).mean
        formula = expected_staleness(agents, update, gossip, update_shift=update_shift, gossip_shift=gossip_shift)
        print(f"{agents:<20}{name:<28}{found:>8.4f}{formula:>10.4f}{formula / found - 1:>9.2%}", flush=True)


def timed(run):
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
