"""The devices that share the work: kernels and training spread over one mesh.

With `jax.distributed` started, the devices of every process belong to it; with one device there is nothing to notice.
"""

import jax
import numpy as np
from jax.sharding import Mesh

#: The mesh's only axis: blocks of a kernel, or agents, are divided along it.
AXIS = "devices"


def all_devices() -> Mesh:
    """The mesh of all devices that JAX sees, those of other processes included."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))
