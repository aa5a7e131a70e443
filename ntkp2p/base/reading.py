"""Read files in one way: whatever a parser raises on bad bytes becomes one line with the file and a remedy."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from ntkp2p.base.errors import InputError

#: Characters of a parser's own words that a message quotes.
QUOTED = 120


class MalformedError(Exception):
    """What a file holds contradicts itself; `parsing` reports it."""


@contextmanager
def parsing(path: str | os.PathLike[str], kind: str, remedy: str, /) -> Iterator[None]:
    """Report any failure of a parser in the block as one line about the file.

    Only calls of a library's parser belong into the block: an error in our own code would be reported as a mistake in
    the file.

    Parameters
    ----------
    path
        The file, for the message.
    kind
        What the file should be, with its article: ``"a TOML file"``.
    remedy
        What to do about it.

    Raises
    ------
    InputError
        For any exception in the block, apart from those of ours, those of the operating system that name a file, and
        running out of memory.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, see its byte {error.start}: save it as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply for {kind}: {remedy}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise InputError(f"{path} is not {kind} ({_quoted(error)}): {remedy}") from error
    except Exception as error:
        raise InputError(f"{path} is not {kind} ({_quoted(error)}): {remedy}") from error


def text_of(path: Path, /) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises
    ------
    InputError
        If its bytes are not UTF-8.
    OSError
        If it cannot be read.
    """
    with parsing(path, "a text file", "save it as UTF-8"):
        return path.read_text(encoding="utf-8-sig")


def _quoted(error: Exception) -> str:
    """The error in one line, at most `QUOTED` characters of it."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= QUOTED else said[: QUOTED - 1] + "…"


#: Bytes that an archive may hold once it is unpacked.
MOST_BYTES = 2**32


def read_array(file: IO[bytes], size: int, /) -> np.ndarray:
    """Read one array from a .npy file of `size` bytes; its header is checked before memory is reserved.

    Raises
    ------
    MalformedError
        If the header announces more or fewer bytes than the file has, or the array is pickled. A damaged header may
        raise any exception; call it within `parsing`.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise MalformedError("pickled arrays are refused")
    found, expected = size - file.tell(), math.prod(shape) * dtype.itemsize
    if found != expected:
        raise MalformedError(f"its header announces {expected} bytes and {found} follow")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def must_unpack_to_little(path: Path, /) -> None:
    """Refuse a zip archive that would take more than `MOST_BYTES` of memory."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MOST_BYTES:
        raise InputError(
            f"{path} unpacks to {size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f} GiB: make it smaller"
        )
