"""Finished arrays in a folder: each is whole, checked by its checksum, or not there."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ntkp2p.base.files import replacing


class Store:
    """A folder of named arrays, made if it does not exist."""

    def __init__(self, folder: str | Path, name: str, /):
        self._folder = Path(folder) / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, /) -> np.ndarray | None:
        """The array of that name; None if it is not there or damaged."""
        try:
            with (self._folder / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays["array"]
        except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            return None

    def put(self, name: str, array: np.ndarray, /) -> None:
        """Write an array, in one step."""
        with replacing(self._folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, array=array)  # a zip file, which keeps a CRC of every member
