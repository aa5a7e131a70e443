"""The devices that share the work: kernels and training spread over one mesh.

After `join`, the devices of every process belong to it; with one device there is nothing to notice.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntkp2p.base import rendezvous
from ntkp2p.base.checks import whole_in
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64

#: The mesh's only axis: blocks of a kernel, or agents, are divided along it.
AXIS = "devices"


def all_devices() -> Mesh:
    """The mesh of all devices that JAX sees, those of other processes included.

    Examples
    --------
    >>> import jax
    >>> import ntkp2p as p2p
    >>> p2p.devices.all_devices().size == jax.device_count()
    True
    """
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def one_device() -> Mesh:
    """The mesh of the first of this process' devices alone.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> mesh = p2p.devices.one_device()
    >>> mesh.size, mesh.axis_names
    (1, ('devices',))
    """
    return Mesh(np.asarray(jax.local_devices()[:1]), (AXIS,))


def place(array: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    """A host's array on the mesh: its leading axes are divided along those named; it is copied everywhere without any.

    Parameters
    ----------
    array
        The same on every process.
    mesh
        The devices.
    *axes
        For each leading axis of the array the mesh's axis that divides it, or None.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def agree(number: float, mesh: Mesh, /, *, rtol: float = 0.0) -> bool:
    """Whether all processes of a mesh say the same number.

    Parameters
    ----------
    number
        What this process says.
    mesh
        The devices, of all the processes.
    rtol
        By how much they may differ, relative to the largest modulus.
    """
    said = _said(number, mesh)
    return bool(said.max() - said.min() <= rtol * np.abs(said).max())


def least(number: int, mesh: Mesh, /) -> int:
    """The smallest of the numbers, up to 2⁵³, that the processes of a mesh say: what all of them can go by.

    Parameters
    ----------
    number
        What this process says.
    mesh
        The devices, of all the processes.
    """
    return number if jax.process_count() == 1 else int(_said(number, mesh).min())


@in_float64
def _said(number: float, mesh: Mesh) -> np.ndarray:
    divided, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ()))
    said = jax.make_array_from_callback((mesh.size,), divided, lambda _: np.array([number], np.float64))
    return np.asarray(jax.jit(lambda said: said, out_shardings=everywhere)(said))


def join(coordinator: str, processes: int, process: int, /, *, timeout: float = 120) -> None:
    """Become one of several processes, on one machine or many, whose devices form one mesh.

    Call it before anything else computes; all processes then run the same program on the same experiment. Where
    `jax.distributed` has been started by other means, there is no need for it.

    Parameters
    ----------
    coordinator
        "HOST:PORT": where process 0 runs, and a free port there.
    processes
        How many there are.
    process
        Which of them this is, from 0 to processes − 1.
    timeout
        Seconds to wait for the others.

    Raises
    ------
    ValueError
        If the address or a number makes no sense.
    OSError
        If process 0 cannot listen on the port, or (a TimeoutError) not all have come in time.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not 0 < (whole_in(port) or 0) < 2**16:
        raise InputError(f"coordinator must be HOST:PORT, found {coordinator!r}: for instance 192.168.0.1:9876")
    if processes < 1:
        raise InputError(f"processes must be at least 1, found {processes}")
    if not 0 <= process < processes:
        raise InputError(f"process must be from 0 to {processes - 1} for {processes} processes, found {process}")
    names = [f"process {number} of {processes}" for number in range(processes)]
    if process == 0:
        rendezvous.receive(names[1:], int(port), timeout)
    else:
        rendezvous.connect(names[process], host.strip("[]"), int(port), timeout)
    jax.distributed.initialize(coordinator, processes, process)


def free_memory(device: Any = None) -> int:
    """Bytes that are free: of this machine, or of an accelerator.

    Parameters
    ----------
    device
        One of JAX's; by default this machine.
    """
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
