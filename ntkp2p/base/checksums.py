"""Checksums at the end of files: any changed byte is found before a library parses the file.

The checksum is BLAKE2b over all bytes before it, so over the type, the shape and the values of the arrays in the file.
Readers of zip and HDF5 files ignore what follows the end of their data.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

#: What a checksum begins with; a hexadecimal digest follows.
MARK = b"\nntkp2p-blake2b:"
_DIGEST = 32
#: Bytes of a checksum in a file.
SIZE = len(MARK) + 2 * _DIGEST
#: Bytes that are read at a time.
_CHUNK = 2**20


def seal(path: Path, /) -> None:
    """Append the checksum of a file to it."""
    with path.open("rb+") as file:
        digest = _digest(file, file.seek(0, os.SEEK_END))
        file.seek(0, os.SEEK_END)
        file.write(MARK + digest)


def is_intact(path: Path, /) -> bool | None:
    """Whether a file's bytes match its checksum; None if it does not end with one.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - SIZE
        if end < 0:
            return None
        file.seek(end)
        found = file.read(SIZE)
        if not found.startswith(MARK):
            return None
        return _digest(file, end) == found[len(MARK) :]


def _digest(file: BinaryIO, end: int) -> bytes:
    """The hexadecimal digest of a file's first `end` bytes."""
    found = hashlib.blake2b(digest_size=_DIGEST)
    file.seek(0)
    while end > 0 and (part := file.read(min(_CHUNK, end))):
        found.update(part)
        end -= len(part)
    return found.hexdigest().encode()
