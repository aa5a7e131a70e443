"""Files that are either whole or not there, and the checks before a long computation that they can be written."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ntkp2p.base.imports import needed


@contextmanager
def replacing(path: str | os.PathLike[str], /) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and goes when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)  # as readable for others as the user's other files, which mkstemp's are not
    except OSError as error:
        raise type(error)(f"cannot write {path} ({error.strerror}): choose another folder") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def writable(folder: Path, option: str, /) -> Path:
    """The folder, which is made if it does not exist.

    Parameters
    ----------
    folder
        Where files are to be written.
    option
        What the user sets to choose another folder, for the message.

    Raises
    ------
    OSError
        If no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): choose another folder with {option}") from error
    return folder


def netcdf_engine() -> Literal["h5netcdf"]:
    """The engine with which xarray reads and writes netCDF.

    Raises
    ------
    ImportError
        If the engine, or HDF5 below it, cannot be imported.
    """
    with needed("reading and writing netCDF"):
        import h5netcdf  # noqa: F401
        import h5py  # noqa: F401  (which h5netcdf imports only when a file is written)
    return "h5netcdf"
