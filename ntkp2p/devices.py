"""The devices that share the work: kernels and training spread over one mesh.

With `jax.distributed` started, the devices of every process belong to it; with one device there is nothing to notice.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

#: The mesh's only axis: blocks of a kernel, or agents, are divided along it.
AXIS = "devices"


def all_devices() -> Mesh:
    """The mesh of all devices that JAX sees, those of other processes included."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def place(array: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    """A host's array on the mesh: its leading axes divided along those named, copied everywhere without any."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def free_memory(device: Any = None) -> int:
    """Bytes that are free: of this machine, or of an accelerator."""
    if device is not None and device.platform != "cpu":
        facts = device.memory_stats() or {}
        if "bytes_limit" in facts:
            return facts["bytes_limit"] - facts.get("bytes_in_use", 0)
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")  # the limit of a container, where there is one
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free
