"""Read files that came from elsewhere, and write where the user says: no pipe or device is read, no file grows without
limit, and every problem with a file ends in one sentence that names it.
"""

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fer_utils.errors import DataError, TrainingError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


# --- Open -------------------------------------------------------------------------------------------------------------


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading; DataError as in `require_file`."""
    require_file(path)
    with readable(path):
        return path.open("rb")


def read_file(path: Path, limit: int) -> bytes:
    """Read a file; DataError as in `require_file`, and if it has more than `limit` bytes."""
    with open_file(path) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit:,} bytes; give the right file")
    return data


def require_file(path: Path) -> None:
    """Raise DataError unless a path leads to a file that may be read.

    To read a pipe, a device or a socket could take forever.
    """
    require_text(path)
    with readable(path):
        kind = KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    if kind:
        raise DataError(f"{path} is {kind}, not a file; remove or replace it")


def require_text(path: Path) -> None:
    """Raise DataError if a path contains bytes that are not text: it could not be printed or saved."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{path} has a name that is not text; rename it") from None


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn an OSError inside this block into a DataError that names the file, or `path` if the error names none."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{where} cannot be read ({error.strerror}); check that it exists and may be read") from error


# --- Write ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writable(path: str | Path) -> Iterator[None]:
    """Turn an OSError inside this block into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        fix = "check that its folder exists, that you may write there, and that the disk is not full"
        raise DataError(f"{path} cannot be written ({error.strerror}); {fix}") from error


def require_folder(folder: Path) -> None:
    """Raise DataError unless files can be written into a folder, which need not exist yet. Leaves nothing behind."""
    with writable(folder):
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise DataError(f"{nearest} is not a folder; name another one")
        tempfile.TemporaryFile(dir=nearest).close()


# --- Decode -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def decoding(problem: str, fix: str, raise_as: type[DataError] | type[TrainingError] = DataError) -> Iterator[None]:
    """Turn any error inside this block into one sentence: "<problem> (<error>); <fix>".

    Decoders of zips, images and weights raise nearly every class of error if the bytes are damaged or lie. Keep such
    a block short: it hides mistakes in our own code as well.
    """
    try:
        yield
    except raise_as:
        raise
    except Exception as error:
        raise raise_as(f"{problem} ({str(error)[:200] or type(error).__name__}); {fix}") from error


def read_arrays(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file; an error of any class if it is damaged or unpacks to more than `limit` bytes.

    Call it inside a block of `decoding`.
    """
    with open_file(path) as stream, np.load(stream, allow_pickle=False) as arrays:
        if sum(member.file_size for member in arrays.zip.infolist()) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
        if damaged := arrays.zip.testzip():  # compares every checksum; NumPy alone misses some damage
            raise ValueError(f"the checksum of {damaged} is wrong")
        return dict(arrays)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def whole_number(text: str, highest: int) -> int:
    """Parse a whole number from 0 to `highest` in the digits 0 to 9, blanks around it; ValueError for anything else.

    int() alone also accepts 0_3, +3 and the digits of other scripts.
    """
    digits = text.strip(" ")
    if not (digits.isascii() and digits.isdecimal() and int(digits[:20]) <= highest and len(digits) <= 20):
        raise ValueError(f"{text[:20]!r}, which is not a whole number from 0 to {highest:,}")
    return int(digits)
