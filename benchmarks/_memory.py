"""What this process has in memory, and the most that it has had since it was asked."""

import ctypes
import gc
from pathlib import Path

import jax


def resident_from_now() -> int | None:
    """Bytes now in memory, where the peak is counted from now on; None if kernels live on an accelerator."""
    if device_bytes("bytes_in_use") is not None:
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak_resident() -> int:
    return status("VmHWM")


def status(name: str) -> int:
    """A figure of this process in bytes, as Linux knows it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def device_bytes(name: str) -> int | None:
    """A figure from an accelerator's allocator; None where kernels live in the host's memory."""
    return (jax.devices()[0].memory_stats() or {}).get(name)
