"""What a process that measures one case needs: its clock, its machine, and JSON for the parent process."""

import json
import math
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax


def best(run: Callable[[], Any], estimate: float, seconds: float, repetitions: int) -> float:
    """The shortest of some runs: `repetitions` at most, about `seconds` together, one at least."""
    shortest = math.inf
    for _ in range(max(1, min(repetitions, int(seconds / max(estimate, 1e-6))))):
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def machine(*libraries: str) -> dict:
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "processor": processor(),
        "cores": cores,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy", *libraries)},
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def tell(**line: Any) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)
