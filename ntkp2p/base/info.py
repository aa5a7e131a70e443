"""What a report of a defect needs to say of the machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ntkp2p import __version__
from ntkp2p.base.workers import processors

#: What numbers and files depend on, and the extras.
LIBRARIES = (
    *("jax", "jaxlib", "numpy", "scipy", "equinox", "diffrax", "networkx", "xarray", "h5netcdf", "h5py", "matplotlib"),
    *("scikit-learn", "mlxtend", "cyclopts", "neural-tangents", "cvxpy", "clarabel", "distributed", "ipywidgets"),
)
#: How the environment's variables begin that change what JAX and its kin do.
VARIABLES = ("JAX_", "XLA_", "CUDA_VISIBLE", "OMP_", "OPENBLAS_", "MKL_")


def info() -> dict[str, Any]:
    """Versions, platform, devices, memory in bytes, threads and JAX's flags, as JSON has them.

    A library that is not installed has the version None.
    """
    import jax
    import psutil
    import scipy.linalg  # noqa: F401  brings the threads that it computes with
    from threadpoolctl import threadpool_info

    from ntkp2p.base.devices import free_memory

    return {
        "ntkp2p": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count(), "usable": processors()},
        "memory": {"total": psutil.virtual_memory().total, "free": free_memory()},
        "devices": [
            {"name": str(device), "kind": device.device_kind, "platform": device.platform, "free": free_memory(device)}
            for device in jax.devices()
        ],
        "threads": {pool["prefix"]: pool["num_threads"] for pool in threadpool_info()},
        "jax_enable_x64": bool(jax.config.read("jax_enable_x64")),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
