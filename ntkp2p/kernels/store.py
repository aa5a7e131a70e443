"""Store finished arrays in a folder, each with a checksum; a damaged one is reported and counts as missing."""

import logging
from pathlib import Path

import numpy as np

from ntkp2p.base.checksums import is_intact, seal
from ntkp2p.base.files import replacing

log = logging.getLogger(__name__)


class Store:
    """A folder of named arrays, created if it does not exist."""

    def __init__(self, folder: str | Path, name: str, /):
        self._folder = Path(folder) / name
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, /) -> np.ndarray | None:
        """Return the array with this name; None if there is none, or if its file is damaged."""
        path = self._folder / f"{name}.npz"
        try:
            if is_intact(path):
                with np.load(path, allow_pickle=False) as arrays:
                    return arrays["array"]
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning(f"{path} cannot be read ({error.strerror}): this block is computed again")
            return None
        log.warning(f"{path} is damaged: this block is computed again")
        return None

    def put(self, name: str, array: np.ndarray, /) -> None:
        """Write an array; a reader sees the whole file or none."""
        with replacing(self._folder / f"{name}.npz") as temporary:
            with temporary.open("wb") as file:
                np.savez(file, array=array)
            seal(temporary)
